//! The flags of `souk proxy` that bound what clients may take. They are called as in a node's file.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use souk_config::{EdgeLimits, RatesConfig};

use crate::failure::Usage;

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Connections open at once; for the next one the longest idle one goes [default: 10000]
    #[arg(long, value_name = "N")]
    connections_max: Option<u32>,
    /// Of these, what one IPv4 address, or one /64 of IPv6, may have
    #[arg(long, value_name = "N")]
    connections_per_address_max: Option<u32>,
    /// Requests in flight at once; the next is told to come back in a second [default: 10000]
    #[arg(long, value_name = "N")]
    requests_in_flight_max: Option<u32>,
    /// Request line and header fields together [default: 64 KiB]
    #[arg(long, value_name = "SIZE", value_parser = souk_config::value::parse_bytes)]
    header_bytes_max: Option<u64>,
    /// From the first byte of a header to its last [default: 10 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    header_deadline: Option<Duration>,
    /// A TLS handshake [default: 5 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    tls_handshake_deadline: Option<Duration>,
    /// A connection that asks for nothing [default: 75 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    idle_deadline: Option<Duration>,
    /// One request from its head to the head of its answer [default: what its upstream may take]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    request_deadline: Option<Duration>,
    /// After SIGTERM: how long requests under way may take to end [default: 10 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    drain_deadline: Option<Duration>,
    /// Requests per second of one IPv4 address, or one /64 of IPv6, on average; as many may come at once [default: no bound]
    #[arg(long, value_name = "N")]
    rate_per_address: Option<NonZeroU32>,
    /// Requests per second with one value of Authorization [default: no bound]
    #[arg(long, value_name = "N")]
    rate_per_token: Option<NonZeroU32>,
}

impl LimitArgs {
    pub(crate) fn settled(&self) -> Result<EdgeLimits, Usage> {
        let default = EdgeLimits::default();
        let limits = EdgeLimits {
            connections_max: self.connections_max.unwrap_or(default.connections_max),
            connections_per_address_max: self
                .connections_per_address_max
                .unwrap_or(default.connections_per_address_max),
            requests_in_flight_max: self.requests_in_flight_max.unwrap_or(default.requests_in_flight_max),
            header_bytes_max: self.header_bytes_max.unwrap_or(default.header_bytes_max),
            header_deadline: self.header_deadline.unwrap_or(default.header_deadline),
            tls_handshake_deadline: self.tls_handshake_deadline.unwrap_or(default.tls_handshake_deadline),
            idle_deadline: self.idle_deadline.unwrap_or(default.idle_deadline),
            request_deadline: self.request_deadline.unwrap_or(default.request_deadline),
            drain_deadline: self.drain_deadline.unwrap_or(default.drain_deadline),
            ..default
        };
        limits.check().map_err(|why| Usage(why.to_string()))?;
        Ok(limits)
    }

    pub(crate) fn request_deadline(&self) -> Option<Duration> {
        self.request_deadline
    }

    /// There is no site to count by.
    pub(crate) fn rates(&self) -> RatesConfig {
        RatesConfig { per_address: self.rate_per_address, per_token: self.rate_per_token, per_site: None }
    }
}

//! The flags of `souk proxy` that say where its answers come from.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use souk_config::upstream::Timeout;
use souk_config::{HealthCheck, HedgeAfter, IpNet, PeersConfig, QueryRules, UpstreamConfig, UpstreamHost};

use crate::failure::Usage;

#[derive(Debug, Args)]
#[command(next_help_heading = "Upstream")]
pub(crate) struct UpstreamArgs {
    /// A server of the merchant's, such as http://a:8080, "http://b:8080;weight=3" or "http://c:8080;h2c"; once for
    /// each server
    #[arg(long = "upstream", value_name = "URL[;weight=N][;h2c|;http1]", required = true)]
    servers: Vec<String>,
    /// Verify https servers by the CA in FILE (PEM) alone [default: the public ones]
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// Send the shopper's Host to the upstream instead of the upstream's own
    #[arg(long)]
    preserve_host: bool,
    /// Leave a query's parameter out of the cache's keys and of what the upstream gets: gclid, or utm_* for all that begin
    /// so; may be repeated
    #[arg(long, value_name = "NAME")]
    query_drop: Vec<String>,
    /// Put a query's parameters into the order of their names, for the cache and for the upstream
    #[arg(long)]
    query_sort: bool,
    /// Ask every server for PATH at an interval, and send nothing to one that fails three times in a row
    #[arg(long, value_name = "PATH")]
    health_path: Option<String>,
    /// The interval [default: 5 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration, requires = "health_path")]
    health_every: Option<Duration>,
    /// The one status that passes [default: 200 to 399]
    #[arg(long, value_name = "STATUS", requires = "health_path")]
    health_status: Option<u16>,
    /// Further tries of a request that failed and may be sent again; 0 to 5 [default: 2]
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Ask a second server too where the first has not answered a GET or HEAD within TIME, or within what 95 % of the
    /// latest answers took: "50 ms" or 95p [default: never]
    #[arg(long, value_name = "TIME|Np")]
    hedge_after: Option<HedgeAfter>,
    /// How long a connection to a server may take [default: 5 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    connect_timeout: Option<Duration>,
    /// How long a server may think before the first byte of its answer [default: 30 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    first_byte_timeout: Option<Duration>,
    /// How long a server may be silent in the middle of an answer [default: 30 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    idle_timeout: Option<Duration>,
    /// Requests that the upstream may be answering at once; the next gets a 503. Each may hold 256 KiB of memory whose server
    /// speaks HTTP/2 and whose reader stands still [default: 1024]
    #[arg(long, value_name = "N")]
    in_flight_max: Option<usize>,
    /// How often the names of servers are looked up again [default: 30 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    resolve_every: Option<Duration>,
    /// Believe what X-Forwarded-For, X-Forwarded-Proto and Forwarded say of the shopper, from senders in CIDR; may be
    /// repeated [default: nobody]
    #[arg(long = "trust", value_name = "CIDR", value_parser = souk_config::upstream::parse_range)]
    trusted: Vec<IpNet>,
    /// Another node of this place: what one of them fetches to store, it fetches for all; once for each other node
    #[arg(long = "peer", value_name = "URL", requires = "peer_own", requires = "peer_secret")]
    peers: Vec<String>,
    /// The URL by which the other nodes know this one
    #[arg(long, value_name = "URL", requires = "peers")]
    peer_own: Option<String>,
    /// A file of at least 32 bytes, the same on all of them, by which they know each other
    #[arg(long, value_name = "FILE", requires = "peers")]
    peer_secret: Option<PathBuf>,
}

impl UpstreamArgs {
    /// The upstream that these flags mean.
    pub(crate) fn settled(&self) -> anyhow::Result<UpstreamConfig> {
        let mut config = UpstreamConfig::of(&self.servers)?;
        if let Some(retries) = self.retries {
            config = config.with_retries(retries)?;
        }
        if let Some(every) = self.resolve_every {
            config = config.with_resolve_every(every)?;
        }
        for (which, time) in [
            (Timeout::Connect, self.connect_timeout),
            (Timeout::FirstByte, self.first_byte_timeout),
            (Timeout::Idle, self.idle_timeout),
        ] {
            if let Some(time) = time {
                config = config.with_timeout(which, time)?;
            }
        }
        if let Some(in_flight_max) = self.in_flight_max {
            config = config.with_in_flight(in_flight_max)?;
        }
        if self.preserve_host {
            config.host = UpstreamHost::Preserve;
        }
        config.query = QueryRules::new(&self.query_drop, self.query_sort)?;
        config.health_check = self.health_check()?;
        config.hedge_after = self.hedge_after;
        config.ca.clone_from(&self.upstream_ca);
        config.trusted.clone_from(&self.trusted);
        Ok(config)
    }

    /// The nodes that fills are shared with.
    pub(crate) fn peers(&self) -> Result<Option<PeersConfig>, Usage> {
        let (Some(own), Some(secret)) = (&self.peer_own, &self.peer_secret) else { return Ok(None) };
        let peers = PeersConfig::new(own, &self.peers, secret.clone());
        peers.map(Some).map_err(|why| Usage(why.to_string()))
    }

    fn health_check(&self) -> Result<Option<HealthCheck>, Usage> {
        let Some(path) = &self.health_path else { return Ok(None) };
        let mut check = HealthCheck::new(path).map_err(|why| Usage(why.to_string()))?;
        if let Some(every) = self.health_every {
            check = check.with_interval(every).map_err(|why| Usage(why.to_string()))?;
        }
        if let Some(status) = self.health_status {
            check = check.with_status(status).map_err(|why| Usage(why.to_string()))?;
        }
        Ok(Some(check))
    }
}

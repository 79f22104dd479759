//! How often somebody may ask a node: by address, by token, by shop.
//!
//! Each is off unless it is written: what is right depends on what stands before a node, and a number that fits nobody
//! turns shoppers away.

use std::num::NonZeroU32;

use serde::Deserialize;

use crate::error::Problem;

/// Requests per second, on average; as many may come at once. None: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RatesConfig {
    /// Of one IPv4 address, or one /64 of IPv6.
    pub per_address: Option<NonZeroU32>,
    /// Of one shopper's token, by its text.
    pub per_token: Option<NonZeroU32>,
    /// Of one site, from everybody together, at this node.
    pub per_site: Option<NonZeroU32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRates {
    requests_per_address_per_s: Option<u32>,
    requests_per_token_per_s: Option<u32>,
    requests_per_site_per_s: Option<u32>,
}

impl RawRates {
    pub(crate) fn validate(self) -> Result<RatesConfig, Problem> {
        let rate = |key: &str, written: Option<u32>| {
            let rate = |rate| {
                NonZeroU32::new(rate).ok_or_else(|| {
                    Problem::new(
                        format!("rates.{key}"),
                        "0 requests per second turn everybody away",
                        "write at least 1, or leave it out for no bound",
                    )
                })
            };
            written.map(rate).transpose()
        };
        Ok(RatesConfig {
            per_address: rate("requests_per_address_per_s", self.requests_per_address_per_s)?,
            per_token: rate("requests_per_token_per_s", self.requests_per_token_per_s)?,
            per_site: rate("requests_per_site_per_s", self.requests_per_site_per_s)?,
        })
    }
}

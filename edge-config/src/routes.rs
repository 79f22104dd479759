//! Merchants' own servers on routes of their sites: `[[upstreams]]` of a node's file.
//!
//! Owns which route is which server's, and that no two of them claim one path. What is decided about a request to a server
//! is [`crate::upstream`]'s, the same as for `souk proxy`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::error::Problem;
use crate::limits::EdgeLimits;
use crate::policy::{CachePolicy, PolicyRoute};
use crate::proxy::{DISK_BYTES_MIN, MEMORY_BYTES_MIN, OBJECT_BYTES_MAX_DEFAULT};
use crate::query::QueryRules;
use crate::shared::{self, Base};
use crate::upstream::{
    FIRST_BYTE_TIMEOUT_DEFAULT, HealthCheck, HedgeAfter, Timeout, UpstreamConfig, UpstreamHost, parse_range,
};
use crate::value::Span;

/// Routes of one node. Each keeps two tasks and its servers' connections; a place with more gives shops nodes of their own.
pub const ROUTES_MAX: usize = 256;
/// Longest path of a route, as of a plugin's.
pub const ROUTE_BYTES_MAX: usize = 256;
/// Longest name of a site: a DNS label.
const SITE_BYTES_MAX: usize = 63;
/// Where there are upstreams, they have this part of the memory and of the disk of the cache, and files have the rest.
const UPSTREAM_SHARE: u64 = 2;
/// Where several sites have upstreams, no one's responses take more than this part of that memory.
const SITE_SHARE: u64 = 2;
/// No response takes more than this part of it.
const OBJECT_SHARE: u64 = 8;

/// A merchant's server on a route of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRoute {
    /// Whose route it is, as the region calls the site.
    pub site: String,
    /// The one host name of the site that it is for, in lower case; all of them without it.
    pub host: Option<String>,
    /// `/`, or the path that everything of the route is under, without a slash at its end.
    pub path: String,
    pub upstream: UpstreamConfig,
}

/// What the cache may take, and who of it: derived from the limits, so that the sum stays what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShares {
    pub files_memory_bytes_max: u64,
    pub files_disk_bytes_max: u64,
    /// Of upstreams' responses, all together. 0 where there are no upstreams.
    pub upstreams_memory_bytes_max: u64,
    pub upstreams_disk_bytes_max: u64,
    /// Of one site's, in memory.
    pub site_memory_bytes_max: u64,
    /// Of one response.
    pub object_bytes_max: u64,
}

impl CacheShares {
    pub fn of(limits: &EdgeLimits, routes: &[UpstreamRoute]) -> Self {
        let sites = routes.iter().map(|route| &route.site).collect::<HashSet<_>>().len();
        let share = |all: u64| if sites == 0 { 0 } else { all / UPSTREAM_SHARE };
        let (memory, disk) = (share(limits.cache_memory_bytes_max), share(limits.cache_disk_bytes_max));
        Self {
            files_memory_bytes_max: limits.cache_memory_bytes_max - memory,
            files_disk_bytes_max: limits.cache_disk_bytes_max - disk,
            upstreams_memory_bytes_max: memory,
            upstreams_disk_bytes_max: disk,
            site_memory_bytes_max: if sites > 1 { memory / SITE_SHARE } else { memory },
            object_bytes_max: OBJECT_BYTES_MAX_DEFAULT.min(memory / OBJECT_SHARE),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRoute {
    site: String,
    host: Option<String>,
    path: Option<String>,
    servers: Vec<String>,
    ca: Option<PathBuf>,
    preserve_host: Option<bool>,
    policy: Option<String>,
    #[serde(default)]
    query_drop: Vec<String>,
    query_sort: Option<bool>,
    compress: Option<bool>,
    connect_timeout: Option<Span>,
    first_byte_timeout: Option<Span>,
    idle_timeout: Option<Span>,
    in_flight_max: Option<usize>,
    resolve_every: Option<Span>,
    retries_max: Option<u32>,
    hedge_after: Option<String>,
    health: Option<RawHealth>,
    #[serde(default)]
    trust: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHealth {
    path: String,
    every: Option<Span>,
    status: Option<u16>,
}

/// All routes of a file.
pub(crate) fn validate(
    raw: Vec<RawRoute>,
    limits: &EdgeLimits,
    base: &Base<'_>,
) -> Result<Vec<UpstreamRoute>, Problem> {
    if raw.len() > ROUTES_MAX {
        return Err(Problem::new(
            "upstreams",
            format!("{} routes are more than {ROUTES_MAX}", raw.len()),
            "serve some of the shops from nodes of their own",
        ));
    }
    let mut routes: Vec<UpstreamRoute> = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let key = format!("upstreams[{index}]");
        let route = raw.validate(&key, limits, base)?;
        let is_same = |other: &UpstreamRoute| {
            (&other.site, &other.host, &other.path) == (&route.site, &route.host, &route.path)
        };
        if let Some(other) = routes.iter().position(is_same) {
            return Err(Problem::new(
                key,
                format!("it is the route {} of site {} again, as upstreams[{other}]", route.path, route.site),
                "name all servers of a route in one `servers`, or write another `path`",
            ));
        }
        routes.push(route);
    }
    check_room(limits, &routes)?;
    Ok(routes)
}

/// Half of the cache must hold something.
fn check_room(limits: &EdgeLimits, routes: &[UpstreamRoute]) -> Result<(), Problem> {
    let shares = CacheShares::of(limits, routes);
    for (key, share, least) in [
        ("limits.cache_memory_bytes_max", shares.upstreams_memory_bytes_max, MEMORY_BYTES_MIN),
        ("limits.cache_disk_bytes_max", shares.upstreams_disk_bytes_max, DISK_BYTES_MIN),
    ] {
        if !routes.is_empty() && share < least {
            return Err(Problem::new(
                key,
                "half of it is too little for the responses of [[upstreams]]",
                format!("write at least \"{} MiB\"", (least * UPSTREAM_SHARE) >> 20),
            ));
        }
    }
    Ok(())
}

impl RawRoute {
    fn validate(self, key: &str, limits: &EdgeLimits, base: &Base<'_>) -> Result<UpstreamRoute, Problem> {
        let site = site(&format!("{key}.site"), self.site)?;
        let host = self.host.map(|host| host_name(&format!("{key}.host"), &host)).transpose()?;
        let path = path(&format!("{key}.path"), self.path.as_deref().unwrap_or("/"))?;
        let mut upstream = UpstreamConfig::of(&self.servers).map_err(|error| error.said().at(key))?;
        let policy: CachePolicy = self
            .policy
            .map_or_else(|| Ok(CachePolicy::default()), |text| text.parse())
            .map_err(|error: crate::policy::UnknownPolicy| {
                let known = "write \"safe\", \"heuristic\" to guess lifetimes, \"strict\" for an upstream whose every field is meant, or \"pass\" to keep nothing";
                Problem::new(format!("{key}.policy"), format!("{:?} is no cache policy", error.given), known)
            })?;
        if path == "/" {
            upstream.policy = policy;
        } else {
            // As a route of `souk proxy`: a path that the server may read as one outside of the route is safe.
            upstream.policy_routes = vec![PolicyRoute::new(path.clone(), policy)];
        }
        upstream.ca = self.ca.map(|file| base.path(&format!("{key}.ca"), &file)).transpose()?;
        if self.preserve_host.unwrap_or_default() {
            upstream.host = UpstreamHost::Preserve;
        }
        upstream.compress = self.compress.unwrap_or_default();
        let query = QueryRules::new(&self.query_drop, self.query_sort.unwrap_or_default());
        upstream.query = query.map_err(|error| error.said().at(key))?;
        // Before the request's own deadline: then what is stored may still stand in, and the log names the server.
        let patience = limits.request_deadline * 4 / 5;
        upstream.first_byte_timeout = FIRST_BYTE_TIMEOUT_DEFAULT.min(patience);
        for (which, time) in [
            (Timeout::Connect, self.connect_timeout),
            (Timeout::FirstByte, self.first_byte_timeout),
            (Timeout::Idle, self.idle_timeout),
        ] {
            if let Some(Span(time)) = time {
                upstream = upstream.with_timeout(which, time).map_err(|error| error.said().at(key))?;
            }
        }
        within_deadline(key, upstream.first_byte_timeout, limits)?;
        if let Some(in_flight_max) = self.in_flight_max {
            upstream = upstream.with_in_flight(in_flight_max).map_err(|error| error.said().at(key))?;
        }
        if let Some(Span(every)) = self.resolve_every {
            upstream = upstream.with_resolve_every(every).map_err(|error| error.said().at(key))?;
        }
        if let Some(retries) = self.retries_max {
            upstream = upstream.with_retries(retries).map_err(|error| error.said().at(key))?;
        }
        upstream.hedge_after = self
            .hedge_after
            .map(|text| text.parse::<HedgeAfter>().map_err(|error| error.said().at(key)))
            .transpose()?;
        upstream.health_check = self.health.map(|raw| raw.validate(key)).transpose()?;
        let network = |(index, text): (usize, &String)| {
            parse_range(text).map_err(|_| {
                Problem::new(
                    format!("{key}.trust[{index}]"),
                    format!("{text:?} is no range of addresses"),
                    "write it like \"10.0.0.0/8\", \"fd00::/8\" or \"192.0.2.7\"",
                )
            })
        };
        upstream.trusted = self.trust.iter().enumerate().map(network).collect::<Result<_, _>>()?;
        Ok(UpstreamRoute { site, host, path, upstream })
    }
}

fn within_deadline(key: &str, first_byte: Duration, limits: &EdgeLimits) -> Result<(), Problem> {
    if first_byte < limits.request_deadline {
        return Ok(());
    }
    let deadline = limits.request_deadline.as_millis();
    Err(Problem::new(
        format!("{key}.first_byte_timeout"),
        format!("{} ms are not below limits.request_deadline, {deadline} ms", first_byte.as_millis()),
        "write less, or raise the deadline: otherwise no request waits for the server that long",
    ))
}

impl RawHealth {
    fn validate(self, table: &str) -> Result<HealthCheck, Problem> {
        let mut check = HealthCheck::new(&self.path).map_err(|error| error.said().at(table))?;
        if let Some(Span(every)) = self.every {
            check = check.with_interval(every).map_err(|error| error.said().at(table))?;
        }
        if let Some(status) = self.status {
            check = check.with_status(status).map_err(|error| error.said().at(table))?;
        }
        Ok(check)
    }
}

fn site(key: &str, text: String) -> Result<String, Problem> {
    let valid = (1..=SITE_BYTES_MAX).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if valid {
        return Ok(text);
    }
    let shown: String = text.chars().take(80).collect();
    Err(Problem::new(
        key,
        format!("{shown:?} is not the name of a site"),
        "write it as the region has it: 1 to 63 characters of a-z, 0-9 and '-'",
    ))
}

fn host_name(key: &str, text: &str) -> Result<String, Problem> {
    let host = text.to_ascii_lowercase();
    if shared::is_dns_name(&host) {
        return Ok(host);
    }
    Err(Problem::new(
        key,
        format!("{text:?} is not a host name"),
        "write one of the site's, without a port, such as \"shop.example\"; leave it out for all of them",
    ))
}

/// A path whose every spelling is its own: nothing that a decoder would change.
fn path(key: &str, text: &str) -> Result<String, Problem> {
    let refused = |problem: String, remedy: &str| Err(Problem::new(key, problem, remedy));
    let segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'))
    };
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    if trimmed.is_empty() && text == "/" {
        return Ok("/".to_owned());
    }
    let plain = trimmed.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment));
    if !plain || text.len() > ROUTE_BYTES_MAX {
        let remedy = "write \"/\", or '/' and then segments of A-Z a-z 0-9 - . _ ~, such as \"/blog\"";
        return refused(format!("{text:?} is not the path of a route"), remedy);
    }
    if trimmed == "/api" || trimmed.starts_with("/api/") {
        return refused(
            format!("{text:?} is the shop's own API"),
            "write another path: no request would come here",
        );
    }
    Ok(trimmed.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(site: &str) -> UpstreamRoute {
        let upstream = UpstreamConfig::of(&["http://a".to_owned()]).expect("an upstream");
        UpstreamRoute { site: site.to_owned(), host: None, path: "/".to_owned(), upstream }
    }

    #[test]
    fn the_shares_of_the_cache_add_up_to_its_limits() {
        let limits = EdgeLimits::default();
        for routes in [vec![], vec![route("a")], vec![route("a"), route("b")]] {
            let shares = CacheShares::of(&limits, &routes);
            assert_eq!(
                shares.files_memory_bytes_max + shares.upstreams_memory_bytes_max,
                limits.cache_memory_bytes_max
            );
            assert_eq!(
                shares.files_disk_bytes_max + shares.upstreams_disk_bytes_max,
                limits.cache_disk_bytes_max
            );
            let (all, one) = (shares.upstreams_memory_bytes_max, shares.site_memory_bytes_max);
            assert_eq!(one, if routes.len() > 1 { all / 2 } else { all }, "nobody to share with");
            assert!(shares.object_bytes_max <= one / 4);
        }
    }

    #[test]
    fn a_route_is_a_path_in_one_spelling() {
        for (text, is) in [("/", "/"), ("/blog", "/blog"), ("/blog/", "/blog"), ("/a/b~c", "/a/b~c")] {
            assert_eq!(path("k", text).as_deref(), Ok(is), "{text}");
        }
        for text in ["", "blog", "//", "/a//b", "/..", "/a/./b", "/a%20b", "/a;b", "/api", "/api/x", "/a?b"] {
            assert!(path("k", text).is_err(), "{text:?}");
        }
        assert!(path("k", "/apiary").is_ok());
        assert!(path("k", &format!("/{}", "a".repeat(ROUTE_BYTES_MAX))).is_err());
    }
}

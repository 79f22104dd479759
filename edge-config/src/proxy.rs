//! Settings of `souk proxy`: the node as a caching reverse proxy with no region and no file.
//!
//! Owns the meaning and the limits of the flags. Refuses to know how they are parsed (the command line does that)
//! and what the cache does with them. The proxy in the edge crate is the caller.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use url::Url;

use crate::doors::Doors;

/// Memory for stored responses. A quarter of a 1 GiB machine: the smallest that a node is meant for.
pub const MEMORY_BYTES_MAX_DEFAULT: u64 = 256 * 1024 * 1024;
/// Largest response that is stored. An eighth of the default memory, so that one object cannot empty the cache.
pub const OBJECT_BYTES_MAX_DEFAULT: u64 = 32 * 1024 * 1024;
/// A TCP and TLS handshake over 3 round trips of 800 ms, and one lost SYN.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long an upstream may think before its first byte. Shop back ends have slow searches; shoppers leave after this.
pub const FIRST_BYTE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Silence in the middle of a body after which the upstream counts as dead.
pub const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Requests that may be waiting for this upstream at once. Beyond it a shopper gets an answer at once, not a queue.
pub const IN_FLIGHT_MAX_DEFAULT: usize = 1_024;
/// Smallest cache that still makes sense: a few pages with their pictures.
pub const MEMORY_BYTES_MIN: u64 = 1024 * 1024;

/// Which `Host` the upstream sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHost {
    /// The authority of the upstream URL. The host that the shopper asked for travels in `X-Forwarded-Host`.
    #[default]
    Upstream,
    /// The host that the shopper asked for.
    Preserve,
}

/// How far a cache goes in what RFC 9111 leaves to it. `docs/CACHE.md` tells the two apart rule by rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// For shops: what one careless field of an upstream could turn into a leak is off, and clients do not steer what
    /// the cache does.
    #[default]
    Safe,
    /// All that the RFC lets a shared cache do, for upstreams whose every field is meant.
    Strict,
}

impl CachePolicy {
    /// The name in settings and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Strict => "strict",
        }
    }
}

impl FromStr for CachePolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        [Self::Safe, Self::Strict]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| UnknownPolicy { given: text.to_owned() })
    }
}

/// The policy of everything under one path, as `PREFIX=POLICY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRoute {
    prefix: String,
    policy: CachePolicy,
}

/// Why there is no route in a text.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PolicyRouteError {
    #[error("{given:?} names no policy: write it like /assets=strict")]
    Form { given: String },
    #[error("{prefix:?} is no path to compare with: begin it with '/', without '?', '..', '//', ';' and '%'")]
    Prefix { prefix: String },
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
}

impl PolicyRoute {
    /// Whole segments only: `/a` holds `/a` and `/a/b`, and not `/ab`.
    fn holds(&self, path: &str) -> bool {
        let rest = path.strip_prefix(self.prefix.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for PolicyRoute {
    type Err = PolicyRouteError;

    fn from_str(text: &str) -> Result<Self, PolicyRouteError> {
        let (prefix, policy) =
            text.rsplit_once('=').ok_or_else(|| PolicyRouteError::Form { given: text.to_owned() })?;
        if !prefix.starts_with('/') || prefix.contains('?') || is_ambiguous(prefix) {
            return Err(PolicyRouteError::Prefix { prefix: prefix.to_owned() });
        }
        Ok(Self { prefix: prefix.to_owned(), policy: policy.parse()? })
    }
}

/// Whether a path may be another one to whoever normalises it. An encoded letter may be, too.
fn is_ambiguous(path: &str) -> bool {
    path.contains("//")
        || path.contains(['%', ';', '\\'])
        || path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// A policy that is none.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no cache policy {given:?}: choose safe or strict")]
pub struct UnknownPolicy {
    pub given: String,
}

/// A validated proxy: what the flags of `souk proxy` mean.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub doors: Doors,
    /// `http` or `https`, with a host; a path is put in front of every forwarded path.
    pub upstream: Url,
    /// The only CA (PEM) that an https upstream is verified by. Without it: the public ones.
    pub upstream_ca: Option<PathBuf>,
    /// Where health and metrics are served. Off without it: the public port never serves them.
    pub admin: Option<SocketAddr>,
    pub memory_bytes_max: u64,
    pub object_bytes_max: u64,
    pub host: UpstreamHost,
    /// The policy where no route has another.
    pub policy: CachePolicy,
    pub policy_routes: Vec<PolicyRoute>,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub idle_timeout: Duration,
    pub in_flight_max: usize,
}

/// Why a proxy cannot be made from these flags.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProxyConfigError {
    #[error("--upstream {given:?} is not a URL ({why}): write it like http://127.0.0.1:8080")]
    UpstreamUrl { given: String, why: String },
    #[error("--upstream {given:?} has the scheme {scheme:?}: only http and https can be fetched from")]
    UpstreamScheme { given: String, scheme: String },
    #[error("--upstream {given:?} names no host: write it like http://127.0.0.1:8080")]
    UpstreamHost { given: String },
    #[error("--upstream {given:?} must not carry {part}: it would be sent with every request")]
    UpstreamExtra { given: String, part: &'static str },
    #[error("the cache memory of {given} bytes is below {MEMORY_BYTES_MIN}, the least that holds a page")]
    MemoryTooSmall { given: u64 },
    #[error(
        "one object of {object} bytes does not fit a cache of {memory} bytes: lower it to a quarter or less"
    )]
    ObjectTooLarge { object: u64, memory: u64 },
}

impl ProxyConfig {
    /// The defaults around the two flags that have none.
    pub fn new(listen: SocketAddr, upstream: &str) -> Result<Self, ProxyConfigError> {
        Self::behind(Doors::clear(listen), upstream)
    }

    /// The same behind any doors.
    pub fn behind(doors: Doors, upstream: &str) -> Result<Self, ProxyConfigError> {
        Ok(Self {
            doors,
            upstream: upstream_url(upstream)?,
            upstream_ca: None,
            admin: None,
            memory_bytes_max: MEMORY_BYTES_MAX_DEFAULT,
            object_bytes_max: OBJECT_BYTES_MAX_DEFAULT,
            host: UpstreamHost::default(),
            policy: CachePolicy::default(),
            policy_routes: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            first_byte_timeout: FIRST_BYTE_TIMEOUT_DEFAULT,
            idle_timeout: IDLE_TIMEOUT_DEFAULT,
            in_flight_max: IN_FLIGHT_MAX_DEFAULT,
        })
    }

    /// The policy of one target as the client writes it: that of the longest route it lies under.
    ///
    /// A path that its upstream may read as another one (dots, encoded slashes, path parameters) is under no route that
    /// anybody meant: it is safe.
    pub fn policy_of(&self, target: &str) -> CachePolicy {
        let path = target.split('?').next().unwrap_or(target);
        let lies_under = self.policy_routes.iter().filter(|route| route.holds(path));
        let policy =
            lies_under.max_by_key(|route| route.prefix.len()).map_or(self.policy, |route| route.policy);
        if self.policy_routes.is_empty() || !is_ambiguous(path) { policy } else { CachePolicy::Safe }
    }

    /// Set the memory; objects are kept to an eighth of it, and never above the default object size.
    pub fn with_memory(mut self, memory_bytes_max: u64) -> Result<Self, ProxyConfigError> {
        if memory_bytes_max < MEMORY_BYTES_MIN {
            return Err(ProxyConfigError::MemoryTooSmall { given: memory_bytes_max });
        }
        self.memory_bytes_max = memory_bytes_max;
        self.object_bytes_max = self.object_bytes_max.min(memory_bytes_max / 8);
        Ok(self)
    }

    /// Set the largest object, after the memory.
    pub fn with_object(mut self, object_bytes_max: u64) -> Result<Self, ProxyConfigError> {
        if object_bytes_max > self.memory_bytes_max / 4 {
            return Err(ProxyConfigError::ObjectTooLarge {
                object: object_bytes_max,
                memory: self.memory_bytes_max,
            });
        }
        self.object_bytes_max = object_bytes_max;
        Ok(self)
    }
}

fn upstream_url(given: &str) -> Result<Url, ProxyConfigError> {
    let own = || given.to_owned();
    let url = Url::parse(given)
        .map_err(|why| ProxyConfigError::UpstreamUrl { given: own(), why: why.to_string() })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ProxyConfigError::UpstreamScheme { given: own(), scheme: url.scheme().to_owned() });
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(ProxyConfigError::UpstreamHost { given: own() });
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ProxyConfigError::UpstreamExtra { given: own(), part: "a user name or password" });
    }
    if url.query().is_some() {
        return Err(ProxyConfigError::UpstreamExtra { given: own(), part: "a query" });
    }
    if url.fragment().is_some() {
        return Err(ProxyConfigError::UpstreamExtra { given: own(), part: "a fragment" });
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn refuses_what_cannot_be_an_upstream_by_name() {
        let refused = |text: &str| ProxyConfig::new(listen(), text).map(|_| ()).expect_err(text);
        assert!(matches!(refused("127.0.0.1:8080"), ProxyConfigError::UpstreamUrl { .. }));
        assert!(matches!(refused("localhost:8080"), ProxyConfigError::UpstreamScheme { .. }));
        assert!(matches!(refused("ftp://shop.example"), ProxyConfigError::UpstreamScheme { .. }));
        assert!(matches!(refused("http://u:p@shop.example"), ProxyConfigError::UpstreamExtra { .. }));
        assert!(matches!(refused("http://shop.example/?a=b"), ProxyConfigError::UpstreamExtra { .. }));
        assert!(matches!(refused("http://shop.example/#a"), ProxyConfigError::UpstreamExtra { .. }));
        assert!(ProxyConfig::new(listen(), "http://shop.example/base").is_ok());
    }

    #[test]
    fn one_object_never_fills_the_cache() {
        let config = ProxyConfig::new(listen(), "http://shop.example").expect("valid");
        assert!(config.object_bytes_max <= config.memory_bytes_max / 8);
        let small = config.with_memory(8 * 1024 * 1024).expect("large enough");
        assert_eq!(small.object_bytes_max, 1024 * 1024);
        assert!(matches!(
            small.clone().with_object(4 * 1024 * 1024),
            Err(ProxyConfigError::ObjectTooLarge { .. })
        ));
        assert!(matches!(small.with_memory(10), Err(ProxyConfigError::MemoryTooSmall { given: 10 })));
    }

    #[test]
    fn policies_are_known_by_their_names() {
        assert_eq!("safe".parse(), Ok(CachePolicy::Safe));
        assert_eq!("strict".parse(), Ok(CachePolicy::Strict));
        let unknown = "Strict".parse::<CachePolicy>().expect_err("names are lower case");
        assert!(unknown.to_string().contains("safe or strict"), "{unknown}");
    }

    #[test]
    fn a_route_holds_whole_segments_and_nothing_that_can_be_read_in_two_ways() {
        let mut config = ProxyConfig::new(listen(), "http://shop.example").expect("valid");
        assert_eq!(config.policy_of("/a/../b"), CachePolicy::Safe);
        config.policy_routes =
            ["/assets=strict", "/assets/mine/=safe"].map(|text| text.parse().expect("a route")).to_vec();
        for strict in ["/assets", "/assets/", "/assets/a.css?v=1", "/assets/mine.css", "/assets/a?x=/../%"] {
            assert_eq!(config.policy_of(strict), CachePolicy::Strict, "{strict}");
        }
        for safe in [
            "/",
            "/assetsx",
            "/x/assets",
            "/assets/mine",
            "/assets/mine/cart",
            "/assets/../cart",
            "/assets/./cart",
            "/assets/%2e%2e/cart",
            "/assets//cart",
            "/assets/..;/cart",
            "/assets/a%2fcart",
        ] {
            assert_eq!(config.policy_of(safe), CachePolicy::Safe, "{safe}");
        }
        config.policy = CachePolicy::Strict;
        assert_eq!(config.policy_of("/cart"), CachePolicy::Strict);
        assert_eq!(config.policy_of("/x/../assets/mine"), CachePolicy::Safe);
    }

    #[test]
    fn routes_that_are_none_are_refused_by_name() {
        let refused = |text: &str| text.parse::<PolicyRoute>().expect_err(text);
        assert!(matches!(refused("/a"), PolicyRouteError::Form { .. }));
        assert!(matches!(refused("/a=lax"), PolicyRouteError::Policy(_)));
        for text in ["a=safe", "=safe", "/a?b=safe", "/a/../b=safe", "/%61=safe", "//a=safe"] {
            assert!(matches!(refused(text), PolicyRouteError::Prefix { .. }), "{text}");
        }
    }
}

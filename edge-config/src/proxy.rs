//! Settings of `souk proxy`: the node as a caching reverse proxy with no region and no file.
//!
//! Owns the meaning and the limits of the flags. Refuses to know how they are parsed (the command line does that)
//! and what the cache does with them. The proxy in the edge crate is the caller.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

use crate::doors::Doors;
use crate::upstream::{
    HealthCheck, HedgeAfter, PeersConfig, RESOLVE_EVERY_DEFAULT, RETRIES_DEFAULT, RETRIES_MAX, SERVERS_MAX,
    UpstreamServer, UpstreamServerError,
};

use crate::access::AccessConfig;
use crate::trace::TraceConfig;

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
/// Disk for stored responses, where a folder is given. Some 300,000 pages and pictures of shops; their index takes
/// about 30 MiB of memory.
pub const DISK_BYTES_MAX_DEFAULT: u64 = 4 * 1024 * 1024 * 1024;
/// Smallest disk tier: below it the files are too few to give one up for the next.
pub const DISK_BYTES_MIN: u64 = 16 * 1024 * 1024;

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

impl fmt::Display for PolicyRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, self.policy.name())
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
    /// At least one; all with the same scheme and path.
    pub servers: Vec<UpstreamServer>,
    /// The only CA (PEM) that an https upstream is verified by. Without it: the public ones.
    pub upstream_ca: Option<PathBuf>,
    /// Where health and metrics are served. Off without it: the public port never serves them.
    pub admin: Option<SocketAddr>,
    pub memory_bytes_max: u64,
    pub object_bytes_max: u64,
    /// Where stored responses outlive the process.
    pub disk: Option<DiskConfig>,
    pub host: UpstreamHost,
    /// The policy where no route has another.
    pub policy: CachePolicy,
    pub policy_routes: Vec<PolicyRoute>,
    /// Answer with encodings (br, zstd, gzip) that are made once of stored texts.
    pub compress: bool,
    /// Where a line for each request goes. Off without it.
    pub access: Option<AccessConfig>,
    /// The collector that some requests are told to. None without it.
    pub trace: Option<TraceConfig>,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub idle_timeout: Duration,
    pub in_flight_max: usize,
    /// How often the names of servers are looked up again.
    pub resolve_every: Duration,
    /// Active health checks. Without them, servers are judged by the requests they get.
    pub health_check: Option<HealthCheck>,
    /// Further tries of one request.
    pub retries_max: u32,
    pub hedge_after: Option<HedgeAfter>,
    /// Senders whose word about the client is taken: `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded`.
    pub trusted: Vec<IpNet>,
    /// Nodes to share fills with.
    pub peers: Option<PeersConfig>,
}

/// A folder of stored responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    pub dir: PathBuf,
    /// Bytes of all its files together.
    pub bytes_max: u64,
}

/// Why a proxy cannot be made from these flags.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProxyConfigError {
    #[error(transparent)]
    Upstream(#[from] UpstreamServerError),
    #[error("--upstream is given {given} times: one upstream has at most {SERVERS_MAX} servers")]
    TooManyServers { given: usize },
    #[error(
        "--upstream {given} differs from the first in its scheme or path: all servers of an upstream hold the same"
    )]
    ServersDiffer { given: String },
    #[error("--upstream {given} is there twice: give it more weight with ;weight=2")]
    ServerTwice { given: String },
    #[error("--retries {given} is too many: at most {RETRIES_MAX}")]
    TooManyRetries { given: u32 },
    #[error("--resolve-every must be at least 1 s: a name server is not there for one node alone")]
    ResolveEvery,
    #[error("the cache memory of {given} bytes is below {MEMORY_BYTES_MIN}, the least that holds a page")]
    MemoryTooSmall { given: u64 },
    #[error(
        "the disk of {given} bytes is below {DISK_BYTES_MIN}, the least that is worth a folder: raise --disk-size"
    )]
    DiskTooSmall { given: u64 },
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
            servers: vec![upstream.parse()?],
            upstream_ca: None,
            admin: None,
            memory_bytes_max: MEMORY_BYTES_MAX_DEFAULT,
            object_bytes_max: OBJECT_BYTES_MAX_DEFAULT,
            disk: None,
            host: UpstreamHost::default(),
            policy: CachePolicy::default(),
            policy_routes: Vec::new(),
            compress: false,
            access: None,
            trace: None,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            first_byte_timeout: FIRST_BYTE_TIMEOUT_DEFAULT,
            idle_timeout: IDLE_TIMEOUT_DEFAULT,
            in_flight_max: IN_FLIGHT_MAX_DEFAULT,
            resolve_every: RESOLVE_EVERY_DEFAULT,
            health_check: None,
            retries_max: RETRIES_DEFAULT,
            hedge_after: None,
            trusted: Vec::new(),
            peers: None,
        })
    }

    /// One more server of the same upstream.
    pub fn with_server(mut self, server: UpstreamServer) -> Result<Self, ProxyConfigError> {
        let own = || server.url.to_string();
        let differs = |first: &UpstreamServer| {
            (first.url.scheme(), path(first)) != (server.url.scheme(), path(&server))
        };
        if self.servers.iter().any(differs) {
            return Err(ProxyConfigError::ServersDiffer { given: own() });
        }
        if self.servers.iter().any(|known| known.url == server.url) {
            return Err(ProxyConfigError::ServerTwice { given: own() });
        }
        if self.servers.len() >= SERVERS_MAX {
            return Err(ProxyConfigError::TooManyServers { given: self.servers.len() + 1 });
        }
        self.servers.push(server);
        Ok(self)
    }

    /// Set how often one request may be sent again.
    pub fn with_retries(mut self, retries_max: u32) -> Result<Self, ProxyConfigError> {
        if retries_max > RETRIES_MAX {
            return Err(ProxyConfigError::TooManyRetries { given: retries_max });
        }
        self.retries_max = retries_max;
        Ok(self)
    }

    /// Set how often names are looked up again.
    pub fn with_resolve_every(mut self, every: Duration) -> Result<Self, ProxyConfigError> {
        if every < Duration::from_secs(1) {
            return Err(ProxyConfigError::ResolveEvery);
        }
        self.resolve_every = every;
        Ok(self)
    }

    /// The path in front of every forwarded path, without a slash at its end.
    pub fn prefix(&self) -> &str {
        self.servers.first().map_or("", path)
    }

    /// The policy of one target as the client writes it: that of the longest route it lies under.
    ///
    /// A path that its upstream may read as another one (dots, encoded slashes, path parameters) is under no route that
    /// anybody meant: it is safe.
    pub fn policy_of(&self, target: &str) -> CachePolicy {
        self.ruling(target).0
    }

    /// The same with the route that says so; none where the policy is everybody's, or the path lies under no route.
    pub fn ruling(&self, target: &str) -> (CachePolicy, Option<&PolicyRoute>) {
        let path = target.split('?').next().unwrap_or(target);
        if !self.policy_routes.is_empty() && is_ambiguous(path) {
            return (CachePolicy::Safe, None);
        }
        let lies_under = self.policy_routes.iter().filter(|route| route.holds(path));
        let route = lies_under.max_by_key(|route| route.prefix.len());
        (route.map_or(self.policy, |route| route.policy), route)
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

    /// Keep stored responses in a folder too, in `bytes_max` of it or the default.
    pub fn with_disk(mut self, dir: PathBuf, bytes_max: Option<u64>) -> Result<Self, ProxyConfigError> {
        let bytes_max = bytes_max.unwrap_or(DISK_BYTES_MAX_DEFAULT);
        if bytes_max < DISK_BYTES_MIN {
            return Err(ProxyConfigError::DiskTooSmall { given: bytes_max });
        }
        self.disk = Some(DiskConfig { dir, bytes_max });
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

fn path(server: &UpstreamServer) -> &str {
    server.url.path().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn servers_of_one_upstream_are_alike() {
        let config = || ProxyConfig::new(listen(), "http://a.example/base").expect("valid");
        let with = |text: &str| config().with_server(text.parse().expect("a server"));
        let two = with("http://b.example:81/base/;weight=3").expect("alike");
        assert_eq!((two.servers.len(), two.prefix()), (2, "/base"));
        for text in ["https://b.example/base", "http://b.example", "http://b.example/other"] {
            assert!(matches!(with(text), Err(ProxyConfigError::ServersDiffer { .. })), "{text}");
        }
        assert!(matches!(with("http://a.example/base"), Err(ProxyConfigError::ServerTwice { .. })));
        let refused = ProxyConfig::new(listen(), "ftp://shop.example").map(|_| ()).expect_err("no HTTP");
        assert!(matches!(refused, ProxyConfigError::Upstream(_)));
        assert!(matches!(config().with_retries(6), Err(ProxyConfigError::TooManyRetries { given: 6 })));
        let often = config().with_resolve_every(Duration::from_millis(10));
        assert!(matches!(often, Err(ProxyConfigError::ResolveEvery)));
        let all = (1..=SERVERS_MAX).try_fold(config(), |config, number| {
            let server = format!("http://s{number}.example/base").parse().expect("a server");
            config.with_server(server)
        });
        assert!(matches!(all, Err(ProxyConfigError::TooManyServers { given: 65 })));
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
    fn a_disk_has_a_least_size_and_a_default() {
        let config = ProxyConfig::new(listen(), "http://shop.example").expect("valid");
        let refused = config.clone().with_disk("/cache".into(), Some(1)).expect_err("one byte");
        assert_eq!(refused, ProxyConfigError::DiskTooSmall { given: 1 });
        assert!(refused.to_string().contains("--disk-size"), "{refused}");
        let disk = config.with_disk("/cache".into(), None).expect("the default").disk.expect("a disk");
        assert_eq!(disk.bytes_max, DISK_BYTES_MAX_DEFAULT);
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

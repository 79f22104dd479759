//! One upstream, put together: its servers and everything that is decided about a request to them.
//!
//! The same for `souk proxy`, which has one of flags, and for a node, which has one for each `[[upstreams]]` of its file.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{
    HealthCheck, HedgeAfter, RESOLVE_EVERY_DEFAULT, RETRIES_DEFAULT, RETRIES_MAX, SERVERS_MAX,
    UpstreamServer, UpstreamServerError,
};
use crate::error::Said;
use crate::policy::{CachePolicy, PolicyRoute, is_ambiguous, is_encoded_as_needed, readings};
use crate::query::QueryRules;

/// A TCP and TLS handshake over 3 round trips of 800 ms, and one lost SYN.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long an upstream may think before its first byte. Shop back ends have slow searches; shoppers leave after this.
pub const FIRST_BYTE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Silence in the middle of a body after which the upstream counts as dead.
pub const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Requests that may be waiting for this upstream at once. Beyond it a shopper gets an answer at once, not a queue.
pub const IN_FLIGHT_MAX_DEFAULT: usize = 1_024;
/// The shortest of these times: a server in the next rack answers in less, and one in the next town does not.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const RESOLVE_EVERY_MIN: Duration = Duration::from_secs(1);

/// Which `Host` the upstream sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHost {
    /// The authority of the upstream URL. The host that the shopper asked for travels in `X-Forwarded-Host`.
    #[default]
    Upstream,
    /// The host that the shopper asked for.
    Preserve,
}

/// Which of the waits for an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    Connect,
    FirstByte,
    Idle,
}

impl Timeout {
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Connect => ("--connect-timeout", "connect_timeout"),
            Self::FirstByte => ("--first-byte-timeout", "first_byte_timeout"),
            Self::Idle => ("--idle-timeout", "idle_timeout"),
        }
    }
}

/// A validated upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// At least one; all with the same scheme and path.
    pub servers: Vec<UpstreamServer>,
    /// The only CA (PEM) that an https upstream is verified by. Without it: the public ones.
    pub ca: Option<PathBuf>,
    pub host: UpstreamHost,
    /// The policy where no route has another.
    pub policy: CachePolicy,
    pub policy_routes: Vec<PolicyRoute>,
    /// What of a query is a request's own.
    pub query: QueryRules,
    /// Answer with encodings (br, zstd, gzip) that are made once of stored texts.
    pub compress: bool,
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
}

/// Why there is no upstream in these settings.
#[derive(Debug, PartialEq, Eq)]
pub enum UpstreamConfigError {
    /// One of the servers, counted from 0.
    Server(usize, UpstreamServerError),
    TooManyServers {
        given: usize,
    },
    ServersDiffer {
        index: usize,
        given: String,
    },
    ServerTwice {
        index: usize,
        given: String,
    },
    TooManyRetries {
        given: u32,
    },
    ResolveEvery,
    TooShort(Timeout),
    NothingInFlight,
}

impl UpstreamConfigError {
    pub(crate) fn said(&self) -> Said {
        let servers = |index: Option<usize>, problem: String, remedy: &str| {
            let key = index.map_or_else(|| "servers".to_owned(), |index| format!("servers[{index}]"));
            Said::new("--upstream", key, problem, remedy)
        };
        match self {
            Self::Server(index, error) => Said { key: format!("servers[{index}]"), ..error.said() },
            Self::TooManyServers { given } => {
                let remedy = format!("one upstream has at most {SERVERS_MAX}");
                servers(None, format!("names {given} servers"), &remedy)
            }
            Self::ServersDiffer { index, given } => servers(
                Some(*index),
                format!("{given} differs from the first in its scheme or path"),
                "all servers of an upstream hold the same",
            ),
            Self::ServerTwice { index, given } => {
                servers(Some(*index), format!("{given} is there twice"), "give it more weight with ;weight=2")
            }
            Self::TooManyRetries { given } => Said::new(
                "--retries",
                "retries_max",
                format!("{given} is too many"),
                format!("write at most {RETRIES_MAX}"),
            ),
            Self::ResolveEvery => Said::new(
                "--resolve-every",
                "resolve_every",
                "is below 1 s",
                "write at least 1 s, for a name server is not there for one node alone",
            ),
            Self::TooShort(which) => {
                let (flag, key) = which.names();
                let least = format!("{} ms", TIMEOUT_MIN.as_millis());
                Said::new(flag, key, format!("is below {least}"), format!("write at least \"{least}\""))
            }
            Self::NothingInFlight => {
                Said::new("--in-flight-max", "in_flight_max", "0 answers nobody", "write at least 1")
            }
        }
    }
}

impl fmt::Display for UpstreamConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.said(), f)
    }
}

impl std::error::Error for UpstreamConfigError {}

impl UpstreamConfig {
    /// The defaults around a first server.
    pub fn new(server: UpstreamServer) -> Self {
        Self {
            servers: vec![server],
            ca: None,
            host: UpstreamHost::default(),
            policy: CachePolicy::default(),
            policy_routes: Vec::new(),
            query: QueryRules::default(),
            compress: false,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            first_byte_timeout: FIRST_BYTE_TIMEOUT_DEFAULT,
            idle_timeout: IDLE_TIMEOUT_DEFAULT,
            in_flight_max: IN_FLIGHT_MAX_DEFAULT,
            resolve_every: RESOLVE_EVERY_DEFAULT,
            health_check: None,
            retries_max: RETRIES_DEFAULT,
            hedge_after: None,
            trusted: Vec::new(),
        }
    }

    /// The same of the texts of all its servers.
    pub fn of(servers: &[String]) -> Result<Self, UpstreamConfigError> {
        let parse = |(index, text): (usize, &String)| {
            text.parse::<UpstreamServer>().map_err(|error| UpstreamConfigError::Server(index, error))
        };
        let mut parsed = servers.iter().enumerate().map(parse);
        let Some(first) = parsed.next() else {
            return Err(UpstreamConfigError::Server(0, UpstreamServerError::None));
        };
        parsed.try_fold(Self::new(first?), |config, server| config.with_server(server?))
    }

    /// One more server of the same upstream.
    pub fn with_server(mut self, server: UpstreamServer) -> Result<Self, UpstreamConfigError> {
        let (index, given) = (self.servers.len(), server.url.to_string());
        let differs = |first: &UpstreamServer| {
            (first.url.scheme(), path(first)) != (server.url.scheme(), path(&server))
        };
        if self.servers.iter().any(differs) {
            return Err(UpstreamConfigError::ServersDiffer { index, given });
        }
        if self.servers.iter().any(|known| known.url == server.url) {
            return Err(UpstreamConfigError::ServerTwice { index, given });
        }
        if index >= SERVERS_MAX {
            return Err(UpstreamConfigError::TooManyServers { given: index + 1 });
        }
        self.servers.push(server);
        Ok(self)
    }

    /// Set how often one request may be sent again.
    pub fn with_retries(mut self, retries_max: u32) -> Result<Self, UpstreamConfigError> {
        if retries_max > RETRIES_MAX {
            return Err(UpstreamConfigError::TooManyRetries { given: retries_max });
        }
        self.retries_max = retries_max;
        Ok(self)
    }

    /// Set how often names are looked up again.
    pub fn with_resolve_every(mut self, every: Duration) -> Result<Self, UpstreamConfigError> {
        if every < RESOLVE_EVERY_MIN {
            return Err(UpstreamConfigError::ResolveEvery);
        }
        self.resolve_every = every;
        Ok(self)
    }

    /// Set one of the waits.
    pub fn with_timeout(mut self, which: Timeout, time: Duration) -> Result<Self, UpstreamConfigError> {
        if time < TIMEOUT_MIN {
            return Err(UpstreamConfigError::TooShort(which));
        }
        *match which {
            Timeout::Connect => &mut self.connect_timeout,
            Timeout::FirstByte => &mut self.first_byte_timeout,
            Timeout::Idle => &mut self.idle_timeout,
        } = time;
        Ok(self)
    }

    /// Set how many requests the upstream may be answering.
    pub fn with_in_flight(mut self, in_flight_max: usize) -> Result<Self, UpstreamConfigError> {
        if in_flight_max == 0 {
            return Err(UpstreamConfigError::NothingInFlight);
        }
        self.in_flight_max = in_flight_max;
        Ok(self)
    }

    /// The path in front of every forwarded path, without a slash at its end.
    pub fn prefix(&self) -> &str {
        self.servers.first().map_or("", path)
    }

    /// The policy of one target as the client writes it: that of the longest route it lies under.
    ///
    /// A path that its upstream may read as another one (dots, encoded slashes, path parameters) is under no route that
    /// anybody meant: it is safe. Where one of its readings lies under a route that keeps nothing, it may be the upstream's
    /// name for what lies there, and nothing of it is kept either; nor where nobody can tell how it is read, and there is such
    /// a route. One of which nothing but what has to be is encoded (`/caf%C3%A9`) is where its letters are.
    pub fn policy_of(&self, target: &str) -> CachePolicy {
        self.ruling(target).0
    }

    /// The same with the route that says so; none where the policy is everybody's, or the path lies under no route.
    pub fn ruling(&self, target: &str) -> (CachePolicy, Option<&PolicyRoute>) {
        let path = target.split('?').next().unwrap_or(target);
        if self.policy_routes.is_empty() || !is_ambiguous(path) {
            return self.ruling_on(path);
        }
        let Some(readings) = readings(path) else {
            let passes = |route: &PolicyRoute| route.policy() == CachePolicy::Pass;
            let any = self.policy == CachePolicy::Pass || self.policy_routes.iter().any(passes);
            return (if any { CachePolicy::Pass } else { CachePolicy::Safe }, None);
        };
        if readings.iter().any(|reading| self.ruling_on(reading).0 == CachePolicy::Pass) {
            return (CachePolicy::Pass, None);
        }
        let written = self.ruling_on(path);
        match readings.as_slice() {
            [_, decoded]
                if is_encoded_as_needed(path)
                    && !is_ambiguous(decoded)
                    && self.ruling_on(decoded) == written =>
            {
                written
            }
            _ => (CachePolicy::Safe, None),
        }
    }

    /// The same of a path that is read in one way.
    fn ruling_on(&self, path: &str) -> (CachePolicy, Option<&PolicyRoute>) {
        let lies_under = self.policy_routes.iter().filter(|route| route.holds(path));
        let route = lies_under.max_by_key(|route| route.prefix().len());
        (route.map_or(self.policy, PolicyRoute::policy), route)
    }
}

fn path(server: &UpstreamServer) -> &str {
    server.url.path().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(servers: &[&str]) -> Result<UpstreamConfig, UpstreamConfigError> {
        UpstreamConfig::of(&servers.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn servers_of_one_upstream_are_alike() {
        const FIRST: &str = "http://a.example/base";
        let two = config(&[FIRST, "http://b.example:81/base/;weight=3"]).expect("alike");
        assert_eq!((two.servers.len(), two.prefix()), (2, "/base"));
        for text in ["https://b.example/base", "http://b.example", "http://b.example/other"] {
            let refused = config(&[FIRST, text]);
            assert!(matches!(refused, Err(UpstreamConfigError::ServersDiffer { index: 1, .. })), "{text}");
        }
        assert!(matches!(config(&[FIRST, FIRST]), Err(UpstreamConfigError::ServerTwice { index: 1, .. })));
        assert!(matches!(config(&["ftp://shop.example"]), Err(UpstreamConfigError::Server(0, _))));
        assert!(matches!(config(&[]), Err(UpstreamConfigError::Server(0, UpstreamServerError::None))));
        let all: Vec<_> = (0..=SERVERS_MAX).map(|number| format!("http://s{number}.example/base")).collect();
        let refused = UpstreamConfig::of(&all).expect_err("one too many");
        assert_eq!(refused, UpstreamConfigError::TooManyServers { given: 65 });
        assert_eq!(refused.to_string(), "--upstream names 65 servers: one upstream has at most 64");
    }

    #[test]
    fn what_would_wait_for_nothing_is_refused_by_its_name() {
        let good = || config(&["http://a.example"]).expect("an upstream");
        assert_eq!(good().with_retries(6), Err(UpstreamConfigError::TooManyRetries { given: 6 }));
        let often = good().with_resolve_every(Duration::from_millis(10));
        assert_eq!(often, Err(UpstreamConfigError::ResolveEvery));
        assert_eq!(good().with_in_flight(0), Err(UpstreamConfigError::NothingInFlight));
        for (which, flag) in [
            (Timeout::Connect, "--connect-timeout "),
            (Timeout::FirstByte, "--first-byte-timeout "),
            (Timeout::Idle, "--idle-timeout "),
        ] {
            let refused = good().with_timeout(which, Duration::ZERO).expect_err("no time").to_string();
            assert!(refused.starts_with(flag) && refused.contains("at least"), "{refused}");
        }
        let quick = good().with_timeout(Timeout::Idle, Duration::from_secs(1)).expect("a second");
        assert_eq!(
            (quick.idle_timeout, quick.connect_timeout),
            (Duration::from_secs(1), CONNECT_TIMEOUT_DEFAULT)
        );
    }

    #[test]
    fn a_route_holds_whole_segments_and_nothing_that_can_be_read_in_two_ways() {
        let mut config = config(&["http://shop.example"]).expect("valid");
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
        config.policy_routes.push("/account=pass".parse().expect("a route"));
        for passing in [
            "/account",
            "/account/orders?n=1",
            "/x/%2e%2e/account",
            "/assets/..;/account",
            "/%61ccount",
            "/x/..;/account",
            "/account;x",
            "/account%3Bx/y.css",
            "//account",
            "/account/%2e%2e/assets/a.css",
            "/a%2faccount",
            "/%2561ccount",
            "/caf%E9",
        ] {
            assert_eq!(config.policy_of(passing), CachePolicy::Pass, "{passing}");
        }
        for kept in ["/accounts", "/caf%C3%A9", "/img/a%20b.jpg", "/x;v=2", "/x/../y", "//x", "/accounts;x"] {
            assert_eq!(config.policy_of(kept), CachePolicy::Safe, "{kept}");
        }
        for (target, policy) in [
            ("/assets/a%20b.jpg", CachePolicy::Strict),
            ("/assets/caf%C3%A9?x=%2f", CachePolicy::Strict),
            ("/assets/mine/a%20b", CachePolicy::Safe),
            ("/assets/%6dine/a", CachePolicy::Safe),
            ("/%61ssets/a.css", CachePolicy::Safe),
            ("/assets/a;v=2", CachePolicy::Safe),
        ] {
            assert_eq!(config.policy_of(target), policy, "{target}");
        }
        config.policy_routes.pop();
        config.policy = CachePolicy::Strict;
        assert_eq!(config.policy_of("/cart"), CachePolicy::Strict);
        assert_eq!(config.policy_of("/x/../assets/mine"), CachePolicy::Safe);
    }
}

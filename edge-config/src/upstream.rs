//! The servers that a node fetches from: where they are, how they are checked, and when another one is asked.
//!
//! Texts in, values out, with refusals that name the flag and the remedy. [`settings`] puts them together.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use url::Url;

use crate::doors::network;
use crate::error::Said;
use crate::value::parse_duration;

mod settings;

pub use settings::{
    CONNECT_TIMEOUT_DEFAULT, FIRST_BYTE_TIMEOUT_DEFAULT, IDLE_TIMEOUT_DEFAULT, IN_FLIGHT_MAX_DEFAULT,
    TIMEOUT_MIN, Timeout, UpstreamConfig, UpstreamConfigError, UpstreamHost,
};

/// Servers of one upstream. More is a fleet with a load balancer of its own.
pub const SERVERS_MAX: usize = 64;
/// Largest weight: beyond a hundred to one, the lighter server gets too few requests to be known.
pub const WEIGHT_MAX: u16 = 100;
/// How often names are looked up again. The time to live that most name servers of clouds give.
pub const RESOLVE_EVERY_DEFAULT: Duration = Duration::from_secs(30);
/// Further tries of one request. The third server that fails is no accident any more.
pub const RETRIES_DEFAULT: u32 = 2;
/// With more, one request could be at every server of a small shop at once.
pub const RETRIES_MAX: u32 = 5;
/// A dead server is noticed after three of these.
pub const CHECK_EVERY_DEFAULT: Duration = Duration::from_secs(5);
/// Checks in a row that fail before a server is out. One is an accident.
pub const CHECK_FAILED_MIN: u32 = 3;
/// Checks in a row that pass before it is back.
pub const CHECK_PASSED_MIN: u32 = 2;
/// Longest time of one check; never more than the interval.
pub const CHECK_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// What is spoken with a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/2 where TLS agrees on it, else HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 in the clear, by prior knowledge.
    H2c,
}

/// One server, as `URL[;weight=N][;h2c|;http1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamServer {
    /// `http` or `https`, with a host; a path is put in front of every forwarded path.
    pub url: Url,
    /// Its share of the requests, against the others'.
    pub weight: u16,
    pub protocol: UpstreamProtocol,
}

impl UpstreamServer {
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().expect("http and https have ports")
    }
}

/// Why a text names no server.
#[derive(Debug, PartialEq, Eq)]
pub enum UpstreamServerError {
    /// There is no text at all.
    None,
    Url {
        given: String,
        why: String,
    },
    Scheme {
        given: String,
        scheme: String,
    },
    Host {
        given: String,
    },
    Extra {
        given: String,
        part: &'static str,
    },
    Option {
        given: String,
        option: String,
    },
    Weight {
        given: String,
    },
    H2cOverTls {
        given: String,
    },
}

impl UpstreamServerError {
    pub(crate) fn said(&self) -> Said {
        const LIKE: &str = "write it like http://127.0.0.1:8080";
        let (problem, remedy) = match self {
            Self::None => ("names no server".to_owned(), LIKE.to_owned()),
            Self::Url { given, why } => (format!("{given:?} is not a URL ({why})"), LIKE.to_owned()),
            Self::Scheme { given, scheme } => (
                format!("{given:?} has the scheme {scheme:?}"),
                "only http and https can be fetched from".to_owned(),
            ),
            Self::Host { given } => (format!("{given:?} names no host"), LIKE.to_owned()),
            Self::Extra { given, part } => (
                format!("{given:?} must not carry {part}"),
                "leave it out, for it would be sent with every request".to_owned(),
            ),
            Self::Option { given, option } => (
                format!("{given:?} says {option:?}, which is unknown"),
                "write ;weight=N, ;h2c or ;http1".to_owned(),
            ),
            Self::Weight { given } => (
                format!("{given:?} has no weight that counts"),
                format!("a weight is a number from 1 to {WEIGHT_MAX}"),
            ),
            Self::H2cOverTls { given } => (
                format!("{given:?} says h2c, which is HTTP/2 in the clear"),
                "leave it out, for over https it is agreed upon by itself".to_owned(),
            ),
        };
        Said::new("--upstream", "servers", problem, remedy)
    }
}

impl fmt::Display for UpstreamServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.said(), f)
    }
}

impl std::error::Error for UpstreamServerError {}

impl FromStr for UpstreamServer {
    type Err = UpstreamServerError;

    fn from_str(given: &str) -> Result<Self, UpstreamServerError> {
        let own = || given.to_owned();
        let mut parts = given.split(';');
        let url = url(parts.next().unwrap_or_default(), given)?;
        let mut server = Self { url, weight: 1, protocol: UpstreamProtocol::Auto };
        for option in parts {
            match option.split_once('=') {
                Some(("weight", number)) => {
                    let weight = number.parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
                    server.weight = weight.ok_or_else(|| UpstreamServerError::Weight { given: own() })?;
                }
                None if option == "h2c" => server.protocol = UpstreamProtocol::H2c,
                None if option == "http1" => server.protocol = UpstreamProtocol::Http1,
                _ => {
                    return Err(UpstreamServerError::Option { given: own(), option: option.to_owned() });
                }
            }
        }
        if server.is_https() && server.protocol == UpstreamProtocol::H2c {
            return Err(UpstreamServerError::H2cOverTls { given: own() });
        }
        Ok(server)
    }
}

fn url(text: &str, given: &str) -> Result<Url, UpstreamServerError> {
    let own = || given.to_owned();
    let url =
        Url::parse(text).map_err(|why| UpstreamServerError::Url { given: own(), why: why.to_string() })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UpstreamServerError::Scheme { given: own(), scheme: url.scheme().to_owned() });
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(UpstreamServerError::Host { given: own() });
    }
    let extra = |part| Err(UpstreamServerError::Extra { given: own(), part });
    if !url.username().is_empty() || url.password().is_some() {
        return extra("a user name or password");
    }
    if url.query().is_some() {
        return extra("a query");
    }
    if url.fragment().is_some() {
        return extra("a fragment");
    }
    Ok(url)
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path and query on every server, as they are sent.
    pub path: String,
    pub every: Duration,
    pub timeout: Duration,
    pub failed_min: u32,
    pub passed_min: u32,
    /// The one status that passes; without it, 200 to 399.
    pub status: Option<u16>,
}

/// Why there is no health check.
#[derive(Debug, PartialEq, Eq)]
pub enum HealthCheckError {
    Path { given: String },
    Every,
    Status { given: u16 },
}

impl HealthCheckError {
    pub(crate) fn said(&self) -> Said {
        match self {
            Self::Path { given } => Said::new(
                "--health-path",
                "health.path",
                format!("{given:?} is no path"),
                "write it like /healthz",
            ),
            Self::Every => Said::new(
                "--health-every",
                "health.every",
                "is below 100 ms",
                "write at least 100 ms, for a server that answers checks answers nobody else",
            ),
            Self::Status { given } => Said::new(
                "--health-status",
                "health.status",
                format!("{given} is no final status"),
                "write one from 200 to 599",
            ),
        }
    }
}

impl fmt::Display for HealthCheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.said(), f)
    }
}

impl std::error::Error for HealthCheckError {}

impl HealthCheck {
    /// Checks by the defaults.
    pub fn new(path: &str) -> Result<Self, HealthCheckError> {
        let sendable =
            path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !sendable {
            return Err(HealthCheckError::Path { given: path.to_owned() });
        }
        Ok(Self {
            path: path.to_owned(),
            every: CHECK_EVERY_DEFAULT,
            timeout: CHECK_TIMEOUT_MAX,
            failed_min: CHECK_FAILED_MIN,
            passed_min: CHECK_PASSED_MIN,
            status: None,
        })
    }

    pub fn with_interval(mut self, every: Duration) -> Result<Self, HealthCheckError> {
        if every < Duration::from_millis(100) {
            return Err(HealthCheckError::Every);
        }
        self.every = every;
        self.timeout = CHECK_TIMEOUT_MAX.min(every);
        Ok(self)
    }

    pub fn with_status(mut self, status: u16) -> Result<Self, HealthCheckError> {
        if !(200..600).contains(&status) {
            return Err(HealthCheckError::Status { given: status });
        }
        self.status = Some(status);
        Ok(self)
    }

    /// Whether a response with this status passes.
    pub fn passes(&self, status: u16) -> bool {
        self.status.map_or_else(|| (200..400).contains(&status), |expected| status == expected)
    }
}

/// When a second server is asked beside the first: a time, or the one within which a share of the answers came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    Time(Duration),
    /// From 50 to 99.
    Percentile(u8),
}

/// A text that is neither.
#[derive(Debug, PartialEq, Eq)]
pub struct HedgeAfterError {
    pub given: String,
}

impl HedgeAfterError {
    pub(crate) fn said(&self) -> Said {
        let problem = format!("{:?} is no time and no percentile", self.given);
        Said::new(
            "--hedge-after",
            "hedge_after",
            problem,
            "write it like \"50 ms\", or like 95p (50p to 99p)",
        )
    }
}

impl fmt::Display for HedgeAfterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.said(), f)
    }
}

impl std::error::Error for HedgeAfterError {}

impl FromStr for HedgeAfter {
    type Err = HedgeAfterError;

    fn from_str(given: &str) -> Result<Self, HedgeAfterError> {
        let refused = || HedgeAfterError { given: given.to_owned() };
        if let Some(percent) = given.strip_suffix('p') {
            let percent = percent.parse().ok().filter(|percent| (50..=99).contains(percent));
            return percent.map(Self::Percentile).ok_or_else(refused);
        }
        let time = parse_duration(given).ok().filter(|time| !time.is_zero());
        time.map(Self::Time).ok_or_else(refused)
    }
}

/// Reads a range of addresses, such as `10.0.0.0/8`, or one address.
pub fn parse_range(text: &str) -> Result<IpNet, String> {
    network(text).ok_or_else(|| {
        format!("{text:?} is no range of addresses: write it like 10.0.0.0/8, fd00::/8 or 192.0.2.7")
    })
}

/// Nodes of one place that fetch each thing once for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersConfig {
    /// The URL by which the others know this node.
    pub own: UpstreamServer,
    pub others: Vec<UpstreamServer>,
    /// A file with what only these nodes know.
    pub secret: PathBuf,
}

/// Why nodes cannot be peers.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PeersError {
    #[error("--peer {given:?} must be a bare http or https URL, such as http://10.0.0.2:8080")]
    Url { given: String },
    #[error("--peer {given:?} is there twice, or is this node itself (--peer-own)")]
    Twice { given: String },
    #[error("{given} peers are too many: at most {PEERS_MAX}")]
    TooMany { given: usize },
}

/// Nodes of one place. A fill waits for one of them, so more would only add machines that it may fail at.
pub const PEERS_MAX: usize = 32;

impl PeersConfig {
    pub fn new(own: &str, others: &[String], secret: PathBuf) -> Result<Self, PeersError> {
        if others.len() > PEERS_MAX {
            return Err(PeersError::TooMany { given: others.len() });
        }
        let own = peer(own)?;
        let mut known = vec![own.clone()];
        for text in others {
            let peer = peer(text)?;
            if known.iter().any(|known| known.url == peer.url) {
                return Err(PeersError::Twice { given: text.clone() });
            }
            known.push(peer);
        }
        known.remove(0);
        Ok(Self { own, others: known, secret })
    }
}

fn peer(text: &str) -> Result<UpstreamServer, PeersError> {
    let refused = || PeersError::Url { given: text.to_owned() };
    let server: UpstreamServer = text.parse().map_err(|_| refused())?;
    let bare = server.url.path() == "/" && server.weight == 1 && server.protocol == UpstreamProtocol::Auto;
    if bare { Ok(server) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_url_with_options() {
        let server: UpstreamServer = "http://b:8080/base;weight=3;h2c".parse().expect("a server");
        assert_eq!((server.url.as_str(), server.weight), ("http://b:8080/base", 3));
        assert_eq!((server.protocol, server.port()), (UpstreamProtocol::H2c, 8080));
        let plain: UpstreamServer = "https://shop.example".parse().expect("a server");
        assert_eq!((plain.weight, plain.protocol), (1, UpstreamProtocol::Auto));
        assert_eq!((plain.port(), plain.is_https()), (443, true));
    }

    #[test]
    fn refuses_what_cannot_be_a_server_by_name() {
        use UpstreamServerError as E;
        let refused = |text: &str| text.parse::<UpstreamServer>().expect_err(text);
        assert!(matches!(refused("127.0.0.1:8080"), E::Url { .. }));
        assert!(matches!(refused("localhost:8080"), E::Scheme { .. }));
        assert!(matches!(refused("ftp://shop.example"), E::Scheme { .. }));
        assert!(matches!(refused("http://u:p@shop.example"), E::Extra { .. }));
        assert!(matches!(refused("http://shop.example/?a=b"), E::Extra { .. }));
        assert!(matches!(refused("http://shop.example/#a"), E::Extra { .. }));
        for weight in ["0", "101", "-1", "", "many"] {
            assert!(matches!(refused(&format!("http://a;weight={weight}")), E::Weight { .. }), "{weight}");
        }
        assert!(matches!(refused("http://a;heavy"), E::Option { .. }));
        assert!(matches!(refused("http://a;"), E::Option { .. }));
        assert!(matches!(refused("https://a;h2c"), E::H2cOverTls { .. }));
    }

    #[test]
    fn a_check_passes_by_its_status() {
        let check = HealthCheck::new("/healthz?deep=1").expect("a path");
        assert!(check.passes(204) && check.passes(302) && !check.passes(404) && !check.passes(503));
        let exact = check.with_status(418).expect("a status");
        assert!(exact.passes(418) && !exact.passes(200));
        assert_eq!(exact.with_status(100), Err(HealthCheckError::Status { given: 100 }));
        for path in ["", "healthz", "/a b", "/a#b", "/\r\nx"] {
            assert!(matches!(HealthCheck::new(path), Err(HealthCheckError::Path { .. })), "{path:?}");
        }
        let quick = HealthCheck::new("/").expect("a path").with_interval(Duration::from_millis(500));
        assert_eq!(quick.map(|check| check.timeout), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn hedges_after_a_time_or_a_percentile() {
        assert_eq!("95p".parse(), Ok(HedgeAfter::Percentile(95)));
        assert_eq!("50 ms".parse(), Ok(HedgeAfter::Time(Duration::from_millis(50))));
        for text in ["", "p", "100p", "49p", "50", "0 ms", "95 p"] {
            assert!(text.parse::<HedgeAfter>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_range_is_one_or_an_address() {
        assert_eq!(parse_range("10.0.0.0/8").map(|range| range.to_string()), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(parse_range("192.0.2.7").map(|range| range.to_string()), Ok("192.0.2.7/32".to_owned()));
        assert_eq!(parse_range("::1").map(|range| range.to_string()), Ok("::1/128".to_owned()));
        for text in ["", "10.0.0.0/33", "shop.example", "10.0.0"] {
            assert!(parse_range(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn peers_are_bare_urls_and_each_another_node() {
        let with = |own: &str, others: &[&str]| {
            let others: Vec<String> = others.iter().map(|text| (*text).to_owned()).collect();
            PeersConfig::new(own, &others, PathBuf::from("secret"))
        };
        assert_eq!(with("http://a:1", &["http://b:1", "http://c:1"]).map(|peers| peers.others.len()), Ok(2));
        for text in ["b:1", "http://b:1/x", "http://b:1;weight=2", "ftp://b"] {
            assert!(matches!(with("http://a:1", &[text]), Err(PeersError::Url { .. })), "{text}");
        }
        assert!(matches!(with("http://a:1", &["http://a:1/"]), Err(PeersError::Twice { .. })));
        assert!(matches!(with("http://a:1", &["http://b:1", "http://b:1"]), Err(PeersError::Twice { .. })));
        let many: Vec<String> = (0..33).map(|n| format!("http://p{n}")).collect();
        assert!(matches!(
            PeersConfig::new("http://a:1", &many, PathBuf::new()),
            Err(PeersError::TooMany { given: 33 })
        ));
    }
}

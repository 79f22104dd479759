//! Where shoppers connect: addresses, certificates, HTTP/3, and who may stand in between.
//!
//! The same doors for a node (from its file) and for `souk proxy` (from flags). Whether an address is free and a
//! certificate can be read is found out by whoever opens them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use crate::acme::{AcmeChallenge, AcmeConfig, RawAcme};
use crate::error::Problem;
use crate::shared::{self, Base, NamedFile};

/// Sockets that accept side by side on one address: more than a large machine has cores for them.
pub const WORKERS_MAX: usize = 64;
/// Addresses of one kind. Whoever listens to more wants 0.0.0.0 or [::].
const ADDRESSES_MAX: usize = 16;
/// Certificates. Looking at the files of so many takes a millisecond, twice a minute.
const CERTIFICATES_MAX: usize = 1_000;

/// Validated: there is at least one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doors {
    /// HTTP in clear text.
    pub http: Vec<SocketAddr>,
    pub https: Option<HttpsDoor>,
    /// Lets another process listen beside this one, so that a new one can take over without a refused connection.
    pub reuse_port: bool,
    /// Sockets on each address, each with a queue of its own.
    pub workers: usize,
    /// Whose connections begin with a PROXY protocol header, which says who the client is. Not empty: all connections over
    /// TCP must come from them, and begin so.
    pub proxy_protocol_from: Vec<IpNet>,
}

/// At least one address, and one certificate or a way to get one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsDoor {
    pub addrs: Vec<SocketAddr>,
    /// For whoever asks for a name that no certificate has, or for none. Without it they are refused by a TLS alert.
    pub default: Option<CertificateFiles>,
    /// Each for the names that are in it.
    pub certificates: Vec<CertificateFiles>,
    /// HTTP/3 too, on the same port numbers (UDP).
    pub http3: bool,
    /// Certificates that are got from an authority. There is a door in clear text then, at which it looks who asks.
    pub acme: Option<AcmeConfig>,
}

impl HttpsDoor {
    /// Certificates and their keys, by where a file names them.
    pub fn pairs(&self) -> impl Iterator<Item = (String, &CertificateFiles)> {
        let default = self.default.iter().map(|pair| ("listen.https".to_owned(), pair));
        let others = self.certificates.iter().enumerate();
        default.chain(others.map(|(i, pair)| (format!("listen.https.certificates[{i}]"), pair)))
    }

    pub(crate) fn named_files(&self) -> Vec<NamedFile<'_>> {
        let mut files = Vec::new();
        for (table, CertificateFiles { cert, key }) in self.pairs() {
            files.push(NamedFile::new(format!("{table}.cert"), cert));
            files.push(NamedFile::new(format!("{table}.key"), key));
        }
        let acme = self.acme.as_ref().and_then(|acme| acme.ca.as_ref());
        files.extend(NamedFile::maybe("listen.https.acme.ca", acme));
        files
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM, leaf first.
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Doors {
    /// One address in clear text, and nothing else.
    pub fn clear(addr: SocketAddr) -> Self {
        Self { http: vec![addr], https: None, reuse_port: false, workers: 1, proxy_protocol_from: Vec::new() }
    }

    /// Every address of a shopper's door.
    pub fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.http.iter().chain(self.https.iter().flat_map(|https| &https.addrs)).copied()
    }
}

/// `"a"` or `["a", "b"]`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "write an address, or a list of addresses")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn validate(self, key: &str) -> Result<Vec<SocketAddr>, Problem> {
        let texts = match self {
            Self::One(text) => return Ok(vec![shared::socket(key, &text)?]),
            Self::Many(texts) => texts,
        };
        if texts.is_empty() || texts.len() > ADDRESSES_MAX {
            return Err(Problem::new(
                key,
                format!("{} addresses", texts.len()),
                format!("write 1 to {ADDRESSES_MAX}, or leave the key out"),
            ));
        }
        texts.iter().enumerate().map(|(i, text)| shared::socket(&format!("{key}[{i}]"), text)).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawHttps {
    addr: OneOrMany,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default)]
    certificates: Vec<RawCertificate>,
    #[serde(default)]
    http3: bool,
    acme: Option<RawAcme>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCertificate {
    cert: PathBuf,
    key: PathBuf,
}

/// The doors of a file: what its `[listen]` says of shoppers.
pub(crate) fn validate(
    http: Option<OneOrMany>,
    https: Option<RawHttps>,
    reuse_port: bool,
    workers: Option<usize>,
    proxy_protocol_from: &[String],
    base: &Base<'_>,
) -> Result<Doors, Problem> {
    let http = http.map(|raw| raw.validate("listen.http")).transpose()?.unwrap_or_default();
    let https = https.map(|raw| raw.validate(base)).transpose()?;
    if http.is_empty() && https.is_none() {
        return Err(Problem::new(
            "listen",
            "shoppers cannot reach a node that listens to neither HTTP nor HTTPS",
            "add `http = \"0.0.0.0:8080\"` or a [listen.https] table",
        ));
    }
    let acme = https.as_ref().and_then(|https| https.acme.as_ref());
    if http.is_empty() && acme.is_some_and(|acme| acme.challenge == AcmeChallenge::Http01) {
        return Err(Problem::new(
            "listen.https.acme",
            "an authority looks who asks for a certificate in clear text, and nothing listens there",
            "add `http = \"0.0.0.0:80\"` to [listen], or `challenge = \"tls-alpn-01\"` here to have it look over TLS",
        ));
    }
    let workers = workers.unwrap_or(1);
    if !(1..=WORKERS_MAX).contains(&workers) {
        return Err(Problem::new(
            "listen.workers",
            format!("{workers} sockets are not between 1 and {WORKERS_MAX}"),
            "write how many cores shall accept connections, or leave it out for one",
        ));
    }
    let proxy_protocol_from = networks("listen.proxy_protocol_from", proxy_protocol_from)?;
    Ok(Doors { http, https, reuse_port, workers, proxy_protocol_from })
}

/// Networks, each also written as a single address.
fn networks(key: &str, texts: &[String]) -> Result<Vec<IpNet>, Problem> {
    let network = |(i, text): (usize, &String)| {
        network(text).ok_or_else(|| {
            Problem::new(
                format!("{key}[{i}]"),
                format!("{text:?} is neither an IP address nor a network"),
                "write for example \"10.0.0.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"",
            )
        })
    };
    texts.iter().enumerate().map(network).collect()
}

/// `10.0.0.0/8` or `10.0.0.7`.
pub fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl RawHttps {
    fn validate(self, base: &Base<'_>) -> Result<HttpsDoor, Problem> {
        let addrs = self.addr.validate("listen.https.addr")?;
        let default = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some(CertificateFiles {
                cert: base.path("listen.https.cert", &cert)?,
                key: base.path("listen.https.key", &key)?,
            }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(Problem::new(
                    "listen.https",
                    "`cert` and `key` belong together, and one of them is missing",
                    "name both, or put both into a [[listen.https.certificates]] table",
                ));
            }
        };
        let acme = self.acme.map(|raw| raw.validate(base)).transpose()?;
        if default.is_none() && self.certificates.is_empty() && acme.is_none() {
            return Err(Problem::new(
                "listen.https",
                "there is no certificate",
                "name `cert` and `key`, add a [[listen.https.certificates]] table for each, or a [listen.https.acme] table",
            ));
        }
        if self.certificates.len() > CERTIFICATES_MAX {
            return Err(Problem::new(
                "listen.https.certificates",
                format!("{} are more than {CERTIFICATES_MAX}", self.certificates.len()),
                "use certificates with several names, or wildcards",
            ));
        }
        let certificates = self.certificates.iter().enumerate().map(|(i, raw)| {
            Ok(CertificateFiles {
                cert: base.path(&format!("listen.https.certificates[{i}].cert"), &raw.cert)?,
                key: base.path(&format!("listen.https.certificates[{i}].key"), &raw.key)?,
            })
        });
        Ok(HttpsDoor {
            addrs,
            default,
            certificates: certificates.collect::<Result<_, Problem>>()?,
            http3: self.http3,
            acme,
        })
    }
}

//! Certificates that the program gets by itself: from which authority, for which names, and where it keeps them.
//!
//! The same for a node (from its file) and for `souk proxy` (from flags). Owns the limits of what may be asked for. The edge
//! crate asks (RFC 8555).

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;
use url::{Host, Url};

use crate::error::Problem;
use crate::shared::Base;

/// Names, each with a certificate of its own. Two thirds of what the best-known authority gives one account in three hours.
pub const DOMAINS_MAX: usize = 200;
/// Where an authority writes to.
const CONTACTS_MAX: usize = 4;
/// RFC 1035, as text.
const DOMAIN_BYTES_MAX: usize = 253;

/// How an authority looks whether a name leads here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// In clear text, on port 80 (RFC 8555 section 8.3).
    #[default]
    Http01,
    /// In a handshake, on port 443 (RFC 8737): for whoever has no door in clear text.
    TlsAlpn01,
}

impl AcmeChallenge {
    const REMEDY: &str = "write http-01 (in clear text, port 80) or tls-alpn-01 (over TLS, port 443)";
}

impl FromStr for AcmeChallenge {
    type Err = AcmeConfigError;

    fn from_str(text: &str) -> Result<Self, AcmeConfigError> {
        match text {
            "http-01" => Ok(Self::Http01),
            "tls-alpn-01" => Ok(Self::TlsAlpn01),
            other => Err(AcmeConfigError {
                what: "challenge",
                problem: format!("{other:?} is no way in which an authority looks here"),
                remedy: Self::REMEDY,
            }),
        }
    }
}

/// An authority that may be asked for certificates. Whoever names it accepts its terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Of the authority's directory: https, or http to this machine.
    pub directory: Url,
    /// `mailto:`
    pub contacts: Vec<String>,
    /// Lower case, each once; at least one.
    pub domains: Vec<String>,
    /// Account and certificates, with their keys. Nothing else may write here.
    pub cache: PathBuf,
    /// The authority that has signed the directory's own certificate (PEM), where it is none of the public ones.
    pub ca: Option<PathBuf>,
    /// How it looks.
    pub challenge: AcmeChallenge,
}

/// What cannot be asked for.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{problem}: {remedy}")]
pub struct AcmeConfigError {
    /// `directory`, `contact` and so on.
    pub what: &'static str,
    pub problem: String,
    pub remedy: &'static str,
}

impl AcmeConfig {
    pub fn new(
        directory: &str,
        contacts: Vec<String>,
        domains: Vec<String>,
        cache: PathBuf,
        ca: Option<PathBuf>,
    ) -> Result<Self, AcmeConfigError> {
        let refuse = |what, problem: String, remedy| Err(AcmeConfigError { what, problem, remedy });
        let Some(directory) = Url::parse(directory).ok().filter(is_directory) else {
            return refuse(
                "directory",
                format!("{directory:?} is no address of a directory"),
                "write it like https://acme-v02.api.letsencrypt.org/directory; http goes to this machine only",
            );
        };
        if contacts.len() > CONTACTS_MAX {
            let problem = format!("{} contacts are more than {CONTACTS_MAX}", contacts.len());
            return refuse("contact", problem, "name whoever shall hear of trouble");
        }
        if let Some(contact) = contacts.iter().find(|contact| !contact.starts_with("mailto:")) {
            return refuse(
                "contact",
                format!("{contact:?} is no contact"),
                "write it like mailto:operator@shop.example",
            );
        }
        if domains.is_empty() || domains.len() > DOMAINS_MAX {
            let problem = format!("{} names are not between 1 and {DOMAINS_MAX}", domains.len());
            return refuse("domain", problem, "name the hosts that shoppers ask for");
        }
        let mut known = Vec::with_capacity(domains.len());
        for domain in domains {
            let domain = domain.to_ascii_lowercase();
            if !is_domain(&domain) {
                return refuse(
                    "domain",
                    format!("{domain:?} is no host name that can be shown over HTTP"),
                    "write it like shop.example: no wildcard, no address, no port",
                );
            }
            if !known.contains(&domain) {
                known.push(domain);
            }
        }
        Ok(Self { directory, contacts, domains: known, cache, ca, challenge: AcmeChallenge::default() })
    }

    /// Set how the authority looks.
    #[must_use]
    pub fn looked_at_by(self, challenge: AcmeChallenge) -> Self {
        Self { challenge, ..self }
    }
}

fn is_directory(url: &Url) -> bool {
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => return false,
    };
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    plain && (url.scheme() == "https" || (url.scheme() == "http" && here))
}

/// Letters, digits and hyphens between dots: also the name of a file.
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= DOMAIN_BYTES_MAX && text.parse::<IpAddr>().is_err() && text.split('.').all(is_label)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAcme {
    directory: String,
    #[serde(default)]
    contacts: Vec<String>,
    domains: Vec<String>,
    cache: PathBuf,
    ca: Option<PathBuf>,
    challenge: Option<String>,
}

impl RawAcme {
    pub(crate) fn validate(self, base: &Base<'_>) -> Result<AcmeConfig, Problem> {
        const TABLE: &str = "listen.https.acme";
        let cache = base.path(&format!("{TABLE}.cache"), &self.cache)?;
        let ca = self.ca.map(|ca| base.path(&format!("{TABLE}.ca"), &ca)).transpose()?;
        let challenge = self.challenge.map_or_else(|| Ok(AcmeChallenge::default()), |text| text.parse());
        let config = challenge.and_then(|challenge| {
            let config = AcmeConfig::new(&self.directory, self.contacts, self.domains, cache, ca)?;
            Ok(config.looked_at_by(challenge))
        });
        config.map_err(|error: AcmeConfigError| {
            let key = match error.what {
                "contact" => "contacts",
                "domain" => "domains",
                what => what,
            };
            Problem::new(format!("{TABLE}.{key}"), error.problem, error.remedy)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(directory: &str, contact: &str, domains: &[&str]) -> Result<AcmeConfig, &'static str> {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        AcmeConfig::new(directory, vec![contact.to_owned()], domains, PathBuf::from("cache"), None)
            .map_err(|error| error.what)
    }

    const DIRECTORY: &str = "https://ca.example/directory";
    const CONTACT: &str = "mailto:a@shop.example";

    #[test]
    fn what_can_be_asked_for_is_asked_for_once_and_in_lower_case() {
        let config =
            of(DIRECTORY, CONTACT, &["Shop.Example", "shop.example", "localhost", "a-1.xn--bcher-kva.de"]);
        assert_eq!(config.expect("valid").domains, ["shop.example", "localhost", "a-1.xn--bcher-kva.de"]);
        for here in ["http://127.0.0.1:14000/dir", "http://localhost/dir", "http://[::1]:1/dir"] {
            of(here, CONTACT, &["a"]).expect(here);
        }
    }

    #[test]
    fn ways_to_look_are_known_by_their_names() {
        assert_eq!("http-01".parse(), Ok(AcmeChallenge::Http01));
        assert_eq!("tls-alpn-01".parse(), Ok(AcmeChallenge::TlsAlpn01));
        let refused = "dns-01".parse::<AcmeChallenge>().expect_err("nobody writes into a zone here");
        assert!(refused.what == "challenge" && refused.to_string().contains("tls-alpn-01"), "{refused}");
        assert_eq!(of(DIRECTORY, CONTACT, &["a"]).expect("valid").challenge, AcmeChallenge::Http01);
    }

    #[test]
    fn what_cannot_is_refused_by_name() {
        for directory in
            ["", "ca.example", "http://ca.example/", "ftp://ca.example/", "https://a@ca.example/"]
        {
            assert_eq!(of(directory, CONTACT, &["a"]), Err("directory"), "{directory}");
        }
        assert_eq!(of(DIRECTORY, "a@shop.example", &["a"]), Err("contact"));
        assert_eq!(of(DIRECTORY, CONTACT, &[]), Err("domain"));
        for domain in
            ["", "*.shop.example", "192.0.2.1", "::1", "a:80", "a..b", "a.", "../a", "a/b", "-a", "bücher.de"]
        {
            assert_eq!(of(DIRECTORY, CONTACT, &[domain]), Err("domain"), "{domain}");
        }
        let many: Vec<String> = (0..=DOMAINS_MAX).map(|n| format!("a{n}.example")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(of(DIRECTORY, CONTACT, &many), Err("domain"));
    }
}

//! Who a certificate says its holder is: one SPIFFE name in its alternative names. Pure.

use std::{fmt, str::FromStr};

use souk_replication::Node;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const TRUST_DOMAIN: &str = "spiffe://souk/";

/// Who a certificate says its holder is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// `spiffe://souk/<region>/edge/<node>`
    Edge {
        /// Name of the region that the node belongs to.
        region: String,
        /// Its number.
        node: Node,
    },
    /// `spiffe://souk/<region>/region`
    Region {
        /// Its name.
        region: String,
    },
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("not a certificate: {0}")]
    Malformed(String),
    /// No URI, or more than one, among its alternative names.
    #[error("{0} URI names where one SPIFFE name is expected")]
    Count(usize),
    /// Its URI is not a SPIFFE name of ours.
    #[error("not a SPIFFE name of a node or region: {0}")]
    Foreign(String),
}

impl Identity {
    /// Reads the identity out of a DER certificate. Does not verify the certificate: the TLS handshake did.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let malformed = |e: &dyn fmt::Display| IdentityError::Malformed(e.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| malformed(&e))?;
        let names = certificate.subject_alternative_name().map_err(|e| malformed(&e))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris.as_slice() {
            [uri] => uri.parse(),
            more => Err(IdentityError::Count(more.len())),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let foreign = || IdentityError::Foreign(uri.chars().take(200).collect());
        let path = uri.strip_prefix(TRUST_DOMAIN).ok_or_else(foreign)?;
        let mut parts = path.split('/');
        let region = parts.next().unwrap_or_default();
        // The characters of a SPIFFE path segment.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if region.is_empty()
            || region.len() > 63
            || !region.chars().all(plain)
            || matches!(region, "." | "..")
        {
            return Err(foreign());
        }
        let identity = match (parts.next(), parts.next(), parts.next()) {
            (Some("region"), None, None) => Self::Region { region: region.to_owned() },
            (Some("edge"), Some(node), None) => {
                Self::Edge { region: region.to_owned(), node: node.parse().map_err(|_| foreign())? }
            }
            _ => return Err(foreign()),
        };
        // One name, one spelling: no leading zeros, no signs.
        if identity.to_string() == uri { Ok(identity) } else { Err(foreign()) }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge { region, node } => write!(f, "{TRUST_DOMAIN}{region}/edge/{node}"),
            Self::Region { region } => write!(f, "{TRUST_DOMAIN}{region}/region"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_has_one_spelling() {
        for good in [
            "spiffe://souk/eu-west/edge/7",
            "spiffe://souk/eu-west/region",
            "spiffe://souk/r/edge/4294967295",
        ] {
            assert_eq!(good.parse::<Identity>().map(|i| i.to_string()).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "spiffe://souk/",
            "spiffe://souk//region",
            "spiffe://souk/eu/edge/",
            "spiffe://souk/eu/edge/07",
            "spiffe://souk/eu/edge/+7",
            "spiffe://souk/eu/edge/4294967296",
            "spiffe://souk/eu/edge/7/",
            "spiffe://souk/eu/edge/7/region",
            "spiffe://souk/../region",
            "spiffe://souk/eu%20/region",
            "spiffe://souk/e u/region",
            "spiffe://other/eu/region",
            "https://souk/eu/region",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}

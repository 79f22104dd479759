//! Certificates that the proxy gets by itself: the flags, and what they add up to.

use std::path::PathBuf;

use clap::Args;
use souk_config::{AcmeChallenge, AcmeConfig};

use crate::failure::Usage;

/// Asked for by the directory; the others belong to it.
#[derive(Debug, Args)]
pub(crate) struct AcmeArgs {
    /// Get certificates from this authority (ACME), whose terms are accepted by naming it, such as
    /// https://acme-v02.api.letsencrypt.org/directory
    #[arg(long = "acme-directory", value_name = "URL", requires_all = ["tls", "acme_domains", "acme_cache"])]
    acme_directory: Option<String>,
    /// Get a certificate for this host name, which must lead here and nowhere else; may be given several times
    #[arg(long = "acme-domain", value_name = "NAME", requires = "acme_directory")]
    acme_domains: Vec<String>,
    /// Whom the authority shall write to, such as mailto:operator@shop.example; may be given several times
    #[arg(long = "acme-contact", value_name = "URI", requires = "acme_directory")]
    acme_contacts: Vec<String>,
    /// Keep the account, the certificates and their keys in this folder, which nothing else writes to
    #[arg(long = "acme-cache", value_name = "DIR", requires = "acme_directory")]
    acme_cache: Option<PathBuf>,
    /// Trust the authority's own server by this certificate (PEM) instead of the public ones
    #[arg(long = "acme-ca", value_name = "FILE", requires = "acme_directory")]
    acme_ca: Option<PathBuf>,
    /// How the authority looks whether a name leads here: in clear text (port 80, --listen), or over TLS (port 443)
    #[arg(
        long = "acme-challenge",
        value_name = "http-01|tls-alpn-01",
        requires = "acme_directory",
        default_value = "http-01"
    )]
    acme_challenge: AcmeChallenge,
}

impl AcmeArgs {
    /// `in_clear`: there is a door in clear text.
    pub(super) fn settled(self, in_clear: bool) -> Result<Option<AcmeConfig>, Usage> {
        let (Some(directory), Some(cache)) = (self.acme_directory, self.acme_cache) else { return Ok(None) };
        if self.acme_challenge == AcmeChallenge::Http01 && !in_clear {
            let remedy = "give --listen, or --acme-challenge tls-alpn-01 to have it look over TLS";
            return Err(Usage(format!(
                "the authority looks in clear text, and nothing listens there: {remedy}"
            )));
        }
        AcmeConfig::new(&directory, self.acme_contacts, self.acme_domains, cache, self.acme_ca)
            .map(|config| Some(config.looked_at_by(self.acme_challenge)))
            .map_err(|error| Usage(format!("--acme-{}: {error}", error.what)))
    }
}

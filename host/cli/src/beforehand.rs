//! What a server's configuration names, looked at before the server makes or opens anything.
//!
//! `souk_config` opens no file but its own, and `souk_link` knows certificates but no configuration: here the two meet, so
//! that a certificate that is absent, or somebody else's, is a fault of a line in a file, with the same exit code as any other.
//! Whether a certificate is good today is not asked: a node must start again without its region, also the day after.

use std::fs::File;
use std::path::Path;

use souk_config::{ConfigError, EdgeConfig, HttpsDoor, LinkTls, LogConfig, NamedFile, RegionConfig, Source};
use souk_edge::tls::{Certificates, TlsError};
use souk_link::{Identity, Pem, Piece, StartError, TlsFiles};
use tracing_subscriber::EnvFilter;

/// A node's settings.
pub(crate) fn edge(file: &Path) -> Result<EdgeConfig, ConfigError> {
    let (config, source) = EdgeConfig::open(file)?;
    log(&config.log, &source)?;
    readable(&config.named_files(), &source)?;
    let expected = Identity::Edge { region: config.node.region.clone(), node: config.node.id };
    identity(&config.link.tls, &expected, &source)?;
    if let Some(https) = &config.listen.doors.https {
        certificates(https, &source)?;
    }
    Ok(config)
}

/// A region's.
pub(crate) fn region(file: &Path) -> Result<RegionConfig, ConfigError> {
    let (config, source) = RegionConfig::open(file)?;
    log(&config.log, &source)?;
    readable(&config.named_files(), &source)?;
    identity(&config.link, &Identity::Region { region: config.region.name.clone() }, &source)?;
    Ok(config)
}

fn log(log: &LogConfig, source: &Source) -> Result<(), ConfigError> {
    match EnvFilter::try_new(&log.filter) {
        Ok(_) => Ok(()),
        Err(error) => Err(source.blame(
            "log.filter",
            format!("{:?} is not a filter: {error}", log.filter),
            "write for example \"info\" or \"souk_link=debug,info\"",
        )),
    }
}

/// Opens each. A folder can be opened too, and what is no file at all (a pipe) would lose what is read from it.
fn readable(files: &[NamedFile<'_>], source: &Source) -> Result<(), ConfigError> {
    for NamedFile { key, path } in files {
        let opened = || match std::fs::metadata(path)? {
            kind if kind.is_dir() => Err(std::io::ErrorKind::IsADirectory.into()),
            kind if kind.is_file() => File::open(path).map(drop),
            _ => Ok(()),
        };
        if let Err(error) = opened() {
            return Err(source.blame(
                key,
                format!("{} cannot be read: {error}", path.display()),
                remedy(key),
            ));
        }
    }
    Ok(())
}

fn remedy(key: &str) -> &'static str {
    match key {
        "link.ca" | "link.cert" | "link.key" => {
            "`souk identity` makes the authority and the certificates of a region and its nodes"
        }
        _ if key.starts_with("link.seal_keys") => {
            "copy seal.pub from the region's data_dir, where the region makes it at its first start"
        }
        _ => "check the path, which begins in this file's folder, and its permissions",
    }
}

fn identity(tls: &LinkTls, expected: &Identity, source: &Source) -> Result<(), ConfigError> {
    let LinkTls { ca, cert, key } = tls.clone();
    let shown = cert.display().to_string();
    let files = TlsFiles { ca: Pem::File(ca), cert: Pem::File(cert), key: Pem::File(key) };
    let Err(error) = files.check(expected) else { return Ok(()) };
    Err(match error {
        StartError::WrongIdentity { found, .. } => {
            let (key, or) = slip(&found, expected);
            let problem = format!("{shown} is for {found}, and these settings are for {expected}");
            let make =
                format!("name the certificate for {expected} in link.cert (`souk identity` makes one)");
            source.blame(key, problem, or + &make)
        }
        StartError::Certificate { what, place, detail } => {
            let key = match what {
                Piece::Authority => "link.ca",
                Piece::Certificate => "link.cert",
                Piece::Key => "link.key",
            };
            source.blame(key, format!("{place} cannot be used as the {what}: {detail}"), remedy(key))
        }
        other => source.blame("link", other.to_string(), remedy("link.cert")),
    })
}

/// Which setting is most likely the wrong one, and what would be the right one there.
fn slip(found: &str, expected: &Identity) -> (&'static str, String) {
    use Identity::{Edge, Region};
    match (found.parse::<Identity>(), expected) {
        (Ok(Edge { region, node }), Edge { region: own, .. }) if region == *own => {
            ("node.id", format!("write id = {node}, or "))
        }
        (Ok(Edge { region, .. }), Edge { .. }) => ("node.region", format!("write region = {region:?}, or ")),
        (Ok(Region { region }), Region { .. }) => ("region.name", format!("write name = {region:?}, or ")),
        _ => ("link.cert", String::new()),
    }
}

/// Certificates for shoppers, pair by pair, so that the one is named that cannot be used.
fn certificates(https: &HttpsDoor, source: &Source) -> Result<(), ConfigError> {
    for (table, pair) in https.pairs() {
        let is_default = https.default.as_ref() == Some(pair) && table == "listen.https";
        let mut alone = HttpsDoor {
            addrs: Vec::new(),
            default: None,
            certificates: Vec::new(),
            http3: false,
            acme: None,
        };
        if is_default {
            alone.default = Some(pair.clone());
        } else {
            alone.certificates.push(pair.clone());
        }
        let Err(error) = Certificates::load(&alone) else { continue };
        let which = match &error {
            TlsError::Key { .. } | TlsError::Mismatch { .. } => "key",
            _ => "cert",
        };
        let remedy = "name a chain (PEM, leaf first) and the key that belongs to it";
        return Err(source.blame(format!("{table}.{which}"), error.to_string(), remedy));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::mint::{Authority, Files};

    /// The shipped examples, in a folder where all that they name is there.
    struct Set {
        folder: tempfile::TempDir,
    }

    impl Set {
        fn new() -> Self {
            let set = Self { folder: tempfile::tempdir().expect("a folder") };
            for folder in ["link", "tls"] {
                std::fs::create_dir(set.at(folder)).expect("a folder");
            }
            let authority = Authority::mint("test", Duration::from_secs(3600)).expect("an authority");
            std::fs::write(set.at("link/ca.pem"), &authority.pem).expect("a file");
            let edge = |region: &str, node| Identity::Edge { region: region.to_owned(), node };
            let region = Identity::Region { region: "eu-west".to_owned() };
            for (name, identity, host) in [
                ("link/edge-1", edge("eu-west", 1), ""),
                ("link/edge-2", edge("eu-west", 2), ""),
                ("link/region", region, "region.example.net"),
                ("tls/shop", edge("x", 1), "shop.example"),
                ("tls/other", edge("x", 1), "other.example"),
            ] {
                let files = Files::in_folder(set.folder.path(), name);
                let hosts: Vec<_> =
                    [host].into_iter().filter(|host| !host.is_empty()).map(str::to_owned).collect();
                authority.issue(&files, &identity, &hosts, Duration::from_secs(60)).expect("a certificate");
            }
            std::fs::write(set.at("link/seal.pub"), "a key").expect("a file");
            set
        }

        fn at(&self, name: &str) -> std::path::PathBuf {
            self.folder.path().join(name)
        }

        fn edge(&self, from: &str, to: &str) -> Result<(), String> {
            let example = include_str!("../../../edge-config/examples/edge.toml");
            assert!(example.contains(from), "the example no longer contains {from:?}");
            let file = self.at("edge.toml");
            std::fs::write(&file, example.replacen(from, to, 1)).expect("a file");
            edge(&file).map(drop).map_err(|error| self.told(&error))
        }

        fn region(&self, from: &str, to: &str) -> Result<(), String> {
            let example = include_str!("../../../edge-config/examples/region.toml");
            assert!(example.contains(from), "the example no longer contains {from:?}");
            let file = self.at("region.toml");
            std::fs::write(&file, example.replacen(from, to, 1)).expect("a file");
            region(&file).map(drop).map_err(|error| self.told(&error))
        }

        fn told(&self, error: &ConfigError) -> String {
            assert!(error.line > 0, "no line: {error}");
            error.to_string().replace(&format!("{}/", self.folder.path().display()), "")
        }
    }

    #[test]
    fn a_wrong_certificate_is_a_fault_of_a_line() {
        let set = Set::new();
        assert_eq!(set.edge("id = 1", "id = 1"), Ok(()));
        assert_eq!(set.region("name", "name"), Ok(()));
        for (from, to, said) in [
            (
                "id = 1 ",
                "id = 2 ",
                ": node.id: link/edge-1.pem is for spiffe://souk/eu-west/edge/1, and these settings are for \
                spiffe://souk/eu-west/edge/2; write id = 1, or name the certificate for spiffe://souk/eu-west/edge/2 in \
                link.cert",
            ),
            ("region = \"eu-west\"", "region = \"other\"", ": node.region: "),
            ("link/edge-1.pem", "link/region.pem", ": link.cert: "),
            (
                "link/edge-1.key",
                "link/edge-2.key",
                ": link.key: link/edge-2.key cannot be used as the private key: it is not the \
                key of link/edge-1.pem",
            ),
            (
                "link/edge-1.pem",
                "link/edge-9.pem",
                ": link.cert: link/edge-9.pem cannot be read: No such file",
            ),
            ("link/ca.pem", "link", ": link.ca: link cannot be read: is a directory"),
            ("link/seal.pub", "link/none.pub", ": link.seal_keys[0]: link/none.pub cannot be read"),
            ("tls/shop.pem", "tls/none.pem", ": listen.https.cert: tls/none.pem cannot be read"),
            (
                "tls/other.key",
                "tls/shop.key",
                ": listen.https.certificates[0].key: the certificate tls/other.pem and the key",
            ),
            (
                "filter = \"info\"",
                "filter = \"foo=bar=baz\"",
                ": log.filter: \"foo=bar=baz\" is not a filter",
            ),
        ] {
            let told = set.edge(from, to).expect_err(from);
            assert!(told.contains(said), "{told}\ndoes not say\n{said}");
        }
        let told = set.region("name = \"eu-west\"", "name = \"other\"").expect_err("another name");
        assert!(told.starts_with("region.toml:4: region.name: link/region.pem is for"), "{told}");
        let payments = "[[payments]]\nsite = \"shop\"\nprovider = \"stripe\"\nsecret_key_file = \"x\"\nwebhook_secret_file = \"y\"\n\n[log]";
        let told = set.region("[log]", payments).expect_err("no such file");
        assert!(told.contains(": payments[0].secret_key_file: x cannot be read"), "{told}");
    }
}

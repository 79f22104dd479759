//! The settings of a region: where it keeps the authoritative state, where nodes and operators reach it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::document::{Document, Source};
use crate::error::{ConfigError, Problem};
use crate::events::{EventsConfig, RawEvents};
use crate::limits::{RawRegionLimits, RegionLimits};
use crate::pair::{PairConfig, RawPair};
use crate::payments::{self, PaymentsConfig, RawPayments};
use crate::shared::{self, Base, CompilerConfig, LinkTls, LogConfig, NamedFile, RawCompiler, RawLog};
use crate::store::{RawStore, StoreConfig};

/// A region, ready to be raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionConfig {
    pub region: RegionIdentity,
    pub listen: RegionListen,
    pub link: LinkTls,
    pub control: ControlConfig,
    pub store: StoreConfig,
    pub vault: VaultConfig,
    pub limits: RegionLimits,
    pub compiler: CompilerConfig,
    /// One entry per shop that is paid at checkout. The others send invoices.
    pub payments: Vec<PaymentsConfig>,
    /// Who is told of what happens to orders, beside whoever asks.
    pub events: EventsConfig,
    /// The region that follows this one, or that this one follows.
    pub pair: Option<PairConfig>,
    pub log: LogConfig,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionIdentity {
    pub name: String,
    /// The blobs, the journal, and, without another `[store]`, the database. Nothing else may write here.
    pub data_dir: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionListen {
    /// Nodes, QUIC over UDP.
    pub link: SocketAddr,
    /// Operators and merchants, HTTP. Put a TLS terminator before it if it leaves the machine.
    pub control: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlConfig {
    /// The token itself is shown once, when it is made, and stored nowhere.
    pub operator_token_sha256: [u8; 32],
    /// The private key (PEM) that seals plugin releases. None: one of the region's own making, in its data folder. Never
    /// none beside a database that other processes may share: the second would seal all chains anew with a key that no
    /// node knows.
    pub seal_key: Option<PathBuf>,
}

/// By what shoppers' data is sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VaultConfig {
    /// The file of the key of keys. None: one of the region's own making, in its data folder.
    pub key_file: Option<PathBuf>,
}

impl RegionConfig {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Document::read(file)?.validate(RawRegion::validate)
    }

    /// The same, with where it came from.
    pub fn open(file: &Path) -> Result<(Self, Source), ConfigError> {
        let document = Document::read(file)?;
        Ok((document.validate(RawRegion::validate)?, Source(document)))
    }

    /// Every file that must be there before the region starts.
    pub fn named_files(&self) -> Vec<NamedFile<'_>> {
        let mut files = self.link.named_files();
        files.extend(NamedFile::maybe("control.seal_key", self.control.seal_key.as_ref()));
        files.extend(NamedFile::maybe("vault.key_file", self.vault.key_file.as_ref()));
        files.extend(self.store.named_files());
        for (i, shop) in self.payments.iter().enumerate() {
            files.push(NamedFile::new(format!("payments[{i}].secret_key_file"), &shop.secret_key_file));
            files.push(NamedFile::new(
                format!("payments[{i}].webhook_secret_file"),
                &shop.webhook_secret_file,
            ));
        }
        files.extend(self.events.named_files());
        files
    }

    /// The same for a text; `file` is where it came from: relative paths begin in its folder.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        Document::parse(text.to_owned(), file)?.validate(RawRegion::validate)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegion {
    region: RawIdentity,
    listen: RawListen,
    link: RawLink,
    control: RawControl,
    #[serde(default)]
    store: RawStore,
    #[serde(default)]
    vault: RawVault,
    #[serde(default)]
    limits: RawRegionLimits,
    #[serde(default)]
    compiler: RawCompiler,
    #[serde(default)]
    payments: Vec<RawPayments>,
    #[serde(default)]
    events: RawEvents,
    pair: Option<RawPair>,
    #[serde(default)]
    log: RawLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVault {
    key_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    name: String,
    data_dir: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    link: String,
    control: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    operator_token_sha256: String,
    seal_key: Option<PathBuf>,
}

impl RawRegion {
    fn validate(self, base: &Base<'_>) -> Result<RegionConfig, Problem> {
        let name = shared::place("region.name", self.region.name)?;
        let store = self.store.validate(base)?;
        if matches!(store, StoreConfig::Postgres(_)) && self.control.seal_key.is_none() {
            return Err(Problem::new(
                "control.seal_key",
                "processes that share a database vouch for releases with one key, and this one would make its own",
                "make one (openssl genpkey -algorithm ed25519 -out seal.key), give every process of the region the same \
                 file, and name it: seal_key = \"seal.key\"",
            ));
        }
        Ok(RegionConfig {
            events: self.events.validate(&name, base)?,
            region: RegionIdentity { name, data_dir: base.path("region.data_dir", &self.region.data_dir)? },
            listen: RegionListen {
                link: shared::socket("listen.link", &self.listen.link)?,
                control: shared::socket("listen.control", &self.listen.control)?,
            },
            link: LinkTls {
                ca: base.path("link.ca", &self.link.ca)?,
                cert: base.path("link.cert", &self.link.cert)?,
                key: base.path("link.key", &self.link.key)?,
            },
            control: ControlConfig {
                operator_token_sha256: token_hash(&self.control.operator_token_sha256)?,
                seal_key: self
                    .control
                    .seal_key
                    .map(|path| base.path("control.seal_key", &path))
                    .transpose()?,
            },
            store,
            vault: VaultConfig {
                key_file: self.vault.key_file.map(|path| base.path("vault.key_file", &path)).transpose()?,
            },
            limits: self.limits.validate()?,
            compiler: self.compiler.validate(),
            payments: payments::validate(self.payments, base)?,
            pair: self.pair.map(RawPair::validate).transpose()?,
            log: self.log.validate(),
        })
    }
}

fn token_hash(text: &str) -> Result<[u8; 32], Problem> {
    // The text is not echoed: someone may have pasted the token itself.
    let refused = || {
        Problem::new(
            "control.operator_token_sha256",
            "this is not the SHA-256 of a token",
            "write 64 hexadecimal digits: printf %s \"$TOKEN\" | sha256sum",
        )
    };
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(refused());
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| refused())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| refused())?;
    }
    Ok(hash)
}

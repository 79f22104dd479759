//! What a file may say about a node or a region, and what the program then believes.
//!
//! Two sides, never mixed. The *raw* side mirrors the TOML file, refuses unknown keys and is private to this crate.
//! The *validated* side ([`EdgeConfig`], [`RegionConfig`], [`ProxyConfig`]) has no `Option` where a default exists, no
//! text where a type exists, and no relative path: whoever holds one need not check it again. The way from one to
//! the other is [`EdgeConfig::load`] and its siblings; every refusal is a [`ConfigError`], which names the file, the
//! line, the key, what is wrong, and what to write instead.
//!
//! It opens no file but the configuration itself, binds no address, and knows no program above it: whether a
//! certificate can be read is found out by whoever uses it, who asks for [`EdgeConfig::named_files`] and lets [`Source`] say
//! where the fault is.
//!
//! Reading order: [`edge`] and [`region`] (the settings), [`doors`] and [`acme`] (where shoppers connect, and with whose
//! certificates), [`routes`], [`upstream`] and [`policy`] (merchants' own servers), [`peers`] (who fetches for all of a place),
//! [`proxy`] (the same from flags), [`limits`]
//! (every maximum with its reason), [`rates`] (how often somebody may ask), [`pair`] (a region's other half), [`payments`] (who takes the money), [`events`] (who is
//! told of orders), [`value`] (sizes and durations with units), [`error`].

pub mod access;
pub mod acme;
pub mod doors;
pub mod edge;
pub mod error;
pub mod events;
pub mod limits;
pub mod pair;
pub mod payments;
pub mod peers;
pub mod policy;
pub mod proxy;
mod query;
pub mod rates;
pub mod region;
pub mod routes;
pub mod store;
pub mod trace;
pub mod upstream;
pub mod value;

mod document;
mod shared;

pub use access::{AccessConfig, AccessFormat, AccessTo, UnknownAccessFormat};
pub use acme::{AcmeChallenge, AcmeConfig, AcmeConfigError};
pub use document::Source;
pub use doors::{CertificateFiles, Doors, HttpsDoor};
pub use edge::{EdgeConfig, EdgeLinkConfig, EdgeListen, NodeConfig, RegionAddr};
pub use error::ConfigError;
pub use events::{BrokerConfig, BrokerLogin, BrokerTls, EventsConfig, NatsConfig, RabbitMqConfig};
pub use ipnet::IpNet;
pub use limits::{EdgeLimits, RegionLimits, TooLittle};
pub use pair::{AckLevel, PairConfig};
pub use payments::{Capture, PaymentProviderKind, PaymentsConfig};
pub use peers::{PeerNode, PlaceConfig};
pub use policy::{CachePolicy, PolicyRoute};
pub use proxy::{ProxyConfig, ProxyConfigError};
pub use query::{DROPPED_MAX, PAIRS_MAX, QueryName, QueryRules, QueryRulesError};
pub use rates::RatesConfig;
pub use region::{ControlConfig, RegionConfig, RegionIdentity, RegionListen, VaultConfig};
pub use routes::{CacheShares, UpstreamRoute};
pub use shared::{CompilerConfig, LinkTls, LogConfig, LogFormat, NamedFile, Seccomp};
pub use store::{PASSWORD_VARIABLE, PostgresConfig, PostgresTls, StoreConfig};
pub use trace::{SAMPLED_PER_MILLE_DEFAULT, TraceConfig, TraceConfigError};
pub use upstream::{
    HealthCheck, HedgeAfter, PeersConfig, UpstreamConfig, UpstreamConfigError, UpstreamHost,
    UpstreamProtocol, UpstreamServer,
};

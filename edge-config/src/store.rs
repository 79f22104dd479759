//! Where a region keeps the truth: in a file of its own, or in a PostgreSQL that several region processes share.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::error::Problem;
use crate::shared::{self, Base, NamedFile};

/// What holds the tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreConfig {
    /// SQLite: `region.db` in the data folder.
    #[default]
    Sqlite,
    Postgres(PostgresConfig),
}

/// A PostgreSQL, and how to log in. Whoever shows this shows no secret: the password is read when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Name or address, or a folder of sockets; with the port. Dialled in turn until one takes writes.
    pub hosts: Vec<(String, u16)>,
    pub database: String,
    pub user: String,
    /// None: the environment's [`PASSWORD_VARIABLE`], or no password at all.
    pub password_file: Option<PathBuf>,
    pub tls: PostgresTls,
}

impl StoreConfig {
    /// The PostgreSQL at an address, as `[store]` with nothing but that would have it.
    pub fn postgres(url: &str) -> Result<PostgresConfig, String> {
        let raw =
            RawStore { engine: Some(RawEngine::Postgres), url: Some(url.to_owned()), ..RawStore::default() };
        // No path is named that could begin anywhere.
        raw.postgres(&Base(Path::new("")))
            .map_err(|refusal| format!("{}; {}", refusal.problem, refusal.remedy))
    }

    pub(crate) fn named_files(&self) -> Vec<NamedFile<'_>> {
        let Self::Postgres(database) = self else { return Vec::new() };
        let ca = match &database.tls {
            PostgresTls::Verified { ca } => ca.as_ref(),
            PostgresTls::Off => None,
        };
        let password = NamedFile::maybe("store.password_file", database.password_file.as_ref());
        password.into_iter().chain(NamedFile::maybe("store.ca", ca)).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostgresTls {
    /// To this machine only, unless it was asked for by name.
    Off,
    /// The server shows a certificate for its name.
    Verified {
        /// Who signed it. None: one of the authorities that browsers trust.
        ca: Option<PathBuf>,
    },
}

/// Where a password may come from beside a file.
pub const PASSWORD_VARIABLE: &str = "SOUK_STORE_PASSWORD";

const EXAMPLE: &str = "postgres://souk@db.example:5432/souk";
const PORT: u16 = 5432;
/// A cluster's members, of which one takes writes.
const HOSTS_MAX: usize = 8;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawStore {
    engine: Option<RawEngine>,
    url: Option<String>,
    standbys: Option<Vec<String>>,
    password_file: Option<PathBuf>,
    tls: Option<RawTls>,
    ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawEngine {
    Sqlite,
    Postgres,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawTls {
    Verify,
    Off,
}

impl RawStore {
    pub(crate) fn validate(self, base: &Base<'_>) -> Result<StoreConfig, Problem> {
        match self.engine.unwrap_or(RawEngine::Sqlite) {
            RawEngine::Sqlite => self.sqlite(),
            RawEngine::Postgres => self.postgres(base).map(StoreConfig::Postgres),
        }
    }

    fn sqlite(self) -> Result<StoreConfig, Problem> {
        let Self { url, standbys, password_file, tls, ca, engine: _ } = self;
        let of_postgres = [
            ("store.url", url.is_some()),
            ("store.standbys", standbys.is_some()),
            ("store.password_file", password_file.is_some()),
            ("store.tls", tls.is_some()),
            ("store.ca", ca.is_some()),
        ];
        match of_postgres.into_iter().find(|(_, is_set)| *is_set) {
            None => Ok(StoreConfig::Sqlite),
            Some((key, _)) => Err(Problem::new(
                key,
                "SQLite is a file in region.data_dir and has no such setting",
                "write engine = \"postgres\" beside it, or take it out",
            )),
        }
    }

    fn postgres(self, base: &Base<'_>) -> Result<PostgresConfig, Problem> {
        let key = "store.url";
        let Some(text) = self.url else {
            let remedy = format!("write where it is, such as url = {EXAMPLE:?}");
            return Err(Problem::new(key, "engine = \"postgres\" needs an address", remedy));
        };
        // The text is not echoed: somebody may have written the password into it.
        let refused = |why: &str| Problem::new(key, why, format!("write an address such as {EXAMPLE:?}"));
        let url = Url::parse(&text).map_err(|_| refused("this is not an address"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(refused("this is not the address of a PostgreSQL"));
        }
        if url.password().is_some() {
            return Err(Problem::new(
                key,
                "the password is in the address, where it is shown and logged",
                format!(
                    "write it into a file and name that in password_file, or give it in ${PASSWORD_VARIABLE}"
                ),
            ));
        }
        if url.fragment().is_some() || url.query().is_some() {
            return Err(refused("this has more than a user, a host, a port and a database"));
        }
        let user = plain(url.username()).ok_or_else(|| refused("this names no user"))?;
        let database =
            plain(url.path().trim_start_matches('/')).ok_or_else(|| refused("this names no database"))?;
        // A folder of sockets is written as libpq has it: its slashes as `%2F`.
        let host = url.host_str().unwrap_or_default().replace("%2F", "/").replace("%2f", "/");
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || host.contains('%') {
            return Err(refused("this names no host"));
        }
        let port = url.port().unwrap_or(PORT);
        let mut hosts = vec![(host, port)];
        for (index, text) in self.standbys.unwrap_or_default().into_iter().enumerate() {
            let text = shared::host_and_port(&format!("store.standbys[{index}]"), text)?;
            let (host, port) = text.rsplit_once(':').unwrap_or((&text, "5432"));
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            hosts.push((host, port.parse().unwrap_or(PORT)));
        }
        if hosts.len() > HOSTS_MAX {
            let problem = format!("{} servers are more than {HOSTS_MAX}", hosts.len());
            return Err(Problem::new("store.standbys", problem, "name the members of one cluster only"));
        }
        let is_here = hosts.iter().all(|(host, _)| is_this_machine(host));
        let tls = match self.tls {
            Some(RawTls::Off) => PostgresTls::Off,
            None if is_here && self.ca.is_none() => PostgresTls::Off,
            Some(RawTls::Verify) | None => {
                let ca = self.ca.as_deref().map(|path| base.path("store.ca", path)).transpose()?;
                PostgresTls::Verified { ca }
            }
        };
        let password_file =
            self.password_file.map(|path| base.path("store.password_file", &path)).transpose()?;
        Ok(PostgresConfig { hosts, database, user, password_file, tls })
    }
}

/// A name as it stands in an address. What would have to be written in another way there is refused: nobody needs it.
fn plain(text: &str) -> Option<String> {
    let valid = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    valid.then(|| text.to_owned())
}

pub(crate) fn is_this_machine(host: &str) -> bool {
    host.starts_with('/')
        || host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

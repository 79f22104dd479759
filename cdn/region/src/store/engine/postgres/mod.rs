//! PostgreSQL by its wire protocol: one database for several region processes.
//!
//! **Who writes.** Every writing transaction begins by counting the one row of table `store`, and thereby locks it: there is
//! one writer at a time over all processes, as there is one thread in each, and whatever a statement reads stays as it is
//! until the commit. It needs nothing but rows: no advisory locks, no `NOTIFY`, and so nothing that a pooler between or a
//! database that only speaks like PostgreSQL lacks.
//!
//! **Who reads** sees one snapshot (`REPEATABLE READ`), and waits for nobody.
//!
//! Connections are driven by a runtime of the engine's own, so that a thread that waits for one never waits for itself.

mod session;
mod tls;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use souk_config::{PostgresConfig, PostgresTls};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres::{Client, Config, NoTls};

use super::{Engine, Mode, Session};
use crate::store::{StoreError, schema};
pub(in crate::store) use session::PgSession;
use session::told;
use wait::wait;

/// To reach the database and log in: two round trips to another continent and a server that is busy.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Without a sign of the peer for so long a connection is lost. Less than a checkout waits.
const PEER_SILENT_MAX: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(3);
/// Of a name that resolves to several servers after a failover, the one that takes writes is the one that we want.
const SESSION_ATTRS: tokio_postgres::config::TargetSessionAttrs =
    tokio_postgres::config::TargetSessionAttrs::ReadWrite;
/// Two processes that make the tables of an empty database meet at most so often.
const FIRST_TABLE_ATTEMPTS_MAX: u32 = 5;

/// A database, and how to reach it.
pub(in crate::store) struct Postgres {
    config: Config,
    tls: Option<Arc<ClientConfig>>,
    /// Gone only while it is dropped.
    runtime: Option<Runtime>,
}

impl Postgres {
    /// Nothing is dialled yet. `password` is not part of the settings, which are shown and logged.
    pub(in crate::store) fn new(
        settings: &PostgresConfig,
        password: Option<&str>,
    ) -> Result<Self, StoreError> {
        let mut config = Config::new();
        config
            .user(&settings.user)
            .dbname(&settings.database)
            .application_name("souk-region")
            .connect_timeout(CONNECT_WAIT_MAX)
            .tcp_user_timeout(PEER_SILENT_MAX)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_EVERY)
            .keepalives_interval(KEEPALIVE_EVERY)
            .keepalives_retries(3)
            .target_session_attrs(SESSION_ATTRS);
        for (host, port) in &settings.hosts {
            config.host(host).port(*port);
        }
        if let Some(password) = password {
            config.password(password);
        }
        let tls = match &settings.tls {
            PostgresTls::Off => None,
            PostgresTls::Verified { ca } => Some(Arc::new(tls::client(ca.as_deref())?)),
        };
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        // Which server it is, its certificate says; what the password's exchange could add is not computed.
        config.channel_binding(ChannelBinding::Disable);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("region-postgres")
            .enable_io()
            .enable_time()
            .build()?;
        Ok(Self { config, tls, runtime: Some(runtime) })
    }

    fn connect(&self) -> Result<Client, StoreError> {
        let runtime = self.runtime.as_ref().expect("the runtime is taken only when the engine is dropped");
        let (config, tls) = (self.config.clone(), self.tls.clone());
        let dialled = runtime.spawn(async move {
            // Ends when its client is dropped, or the server goes away.
            match tls {
                Some(tls) => {
                    let (client, connection) = config.connect(tls::Connector(tls)).await?;
                    tokio::spawn(connection);
                    Ok(client)
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    tokio::spawn(connection);
                    Ok(client)
                }
            }
        });
        let given_up = dialled.abort_handle();
        // Each host of the settings gets its time.
        let wait_max = CONNECT_WAIT_MAX * u32::try_from(self.config.get_hosts().len()).unwrap_or(1) * 2;
        match wait(dialled, wait_max) {
            Some(Ok(Ok(client))) => Ok(client),
            Some(Ok(Err(error))) => Err(told(&error)),
            Some(Err(error)) => Err(StoreError::Lost(error.to_string())),
            None => {
                // It would log in when the server wakes, for nobody.
                given_up.abort();
                Err(StoreError::Lost("the server does not answer".to_owned()))
            }
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it is not allowed everywhere, and nothing is left to wait for.
            runtime.shutdown_background();
        }
    }
}

impl Engine for Postgres {
    fn migrate(&self, to: usize) -> Result<(), StoreError> {
        let session = PgSession::new(self.connect()?, Mode::Write);
        let mut attempt = 1;
        // `IF NOT EXISTS` does not keep two who begin at the same moment apart.
        while let Err(error) = session.script_patiently(schema::POSTGRES_FIRST) {
            if attempt == FIRST_TABLE_ATTEMPTS_MAX {
                return Err(error);
            }
            attempt += 1;
        }
        // Nothing to do, it needs no lock: a process starts beside others that have theirs.
        if schema::is_current_postgres(&session, to)? {
            return Ok(());
        }
        session.begin_patiently()?;
        let migrated = schema::migrate_postgres(&session, to).and_then(|()| {
            session.commit().map_err(|uncommitted| match uncommitted {
                super::Uncommitted::Not(error) | super::Uncommitted::Unknown(error) => error,
            })
        });
        if migrated.is_err() {
            session.roll_back();
        }
        migrated
    }

    fn open(&self, mode: Mode) -> Result<Box<dyn Session>, StoreError> {
        Ok(Box::new(PgSession::new(self.connect()?, mode)))
    }

    fn is_shared(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::home::Home;

    #[test]
    fn a_migration_may_take_longer_than_an_answer() {
        let Some(Home::Postgres(settings)) = Home::postgres() else { return };
        let engine = Postgres::new(&settings, None).expect("settings");
        let long = "SELECT pg_sleep(0.5)";
        let mut hasty = PgSession::new(engine.connect().expect("connects"), Mode::Write);
        hasty.answer_within_for_tests(Duration::from_millis(50));
        hasty.script_patiently(long).expect("it ends");
        assert!(matches!(hasty.script(long), Err(StoreError::Lost(_))), "as a statement it is given up");
        assert!(!hasty.roll_back(), "and its connection with it");
    }

    #[test]
    fn who_starts_while_another_migrates_waits_for_it_and_finds_it_done() {
        let Some(Home::Postgres(settings)) = Home::postgres() else { return };
        let engine = Arc::new(Postgres::new(&settings, None).expect("settings"));
        let first = PgSession::new(engine.connect().expect("connects"), Mode::Write);
        first.script(schema::POSTGRES_FIRST).expect("the first table");
        first.begin_patiently().expect("holds the row");
        let second = std::thread::spawn({
            let engine = Arc::clone(&engine);
            move || engine.migrate(schema::NEWEST)
        });
        // Until the server says that somebody waits for the row.
        let look = PgSession::new(engine.connect().expect("connects"), Mode::Read);
        let sql = "SELECT 1 FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE store%'";
        let look: &dyn Session = &look;
        while !look.exists(sql, &[]).expect("it can be asked") {
            std::thread::sleep(Duration::from_millis(10));
        }
        schema::migrate_postgres(&first, schema::NEWEST).expect("migrates");
        first.commit().expect("commits");
        second.join().expect("ends").expect("and finds nothing left to do");
        assert!(schema::is_current_postgres(&first, schema::NEWEST).expect("it can be asked"));
    }
}

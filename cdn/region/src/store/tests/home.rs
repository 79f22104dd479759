//! Where a test's database is, and which engine holds it.

use std::path::Path;

use souk_config::{PostgresConfig, PostgresTls};

use super::super::{Store, StoreError, StoreSettings};
use super::server::Server;

/// A database of one test's own. Opened twice it is the same one.
pub(crate) enum Home {
    File(tempfile::TempDir),
    Postgres(PostgresConfig),
}

impl Home {
    pub(crate) fn sqlite() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    /// On the server that all tests share; none where there is no PostgreSQL.
    pub(crate) fn postgres() -> Option<Self> {
        Server::shared().map(Self::of)
    }

    /// For tests that are about something else: SQLite, or what `SOUK_TEST_STORE` names.
    pub(crate) fn chosen() -> Self {
        match std::env::var("SOUK_TEST_STORE").as_deref() {
            Ok("postgres") => Self::postgres().expect("SOUK_TEST_STORE=postgres needs a PostgreSQL"),
            _ => Self::sqlite(),
        }
    }

    pub(super) fn of(server: &Server) -> Self {
        let (folder, database) = server.database();
        Self::Postgres(PostgresConfig {
            hosts: vec![(folder, 5432)],
            database,
            user: "souk".to_owned(),
            password_file: None,
            tls: PostgresTls::Off,
        })
    }

    /// The folder of a file database.
    pub(super) fn dir(&self) -> &Path {
        match self {
            Self::File(dir) => dir.path(),
            Self::Postgres(_) => panic!("a server's database is no folder of ours"),
        }
    }

    pub(crate) fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    pub(super) fn try_open(&self) -> Result<Store, StoreError> {
        self.try_open_with(StoreSettings::for_tests(1_000_000))
    }

    pub(crate) fn open_with(&self, settings: StoreSettings) -> Store {
        self.try_open_with(settings).unwrap()
    }

    fn try_open_with(&self, settings: StoreSettings) -> Result<Store, StoreError> {
        match self {
            Self::File(dir) => Store::open(dir.path(), settings),
            Self::Postgres(database) => Store::open_postgres(database, None, settings),
        }
    }

    /// Lets rows of the audit log be changed, as somebody with the database's own password can.
    pub(super) const fn unguard_audit(&self) -> &'static str {
        match self {
            Self::File(_) => "DROP TRIGGER audit_is_append_only_u",
            Self::Postgres(_) => "DROP TRIGGER audit_is_append_only ON audit",
        }
    }
}

/// Makes of each test that takes a [`Home`] one test per engine.
macro_rules! on_every_engine {
    ($($name:ident,)*) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name($crate::store::tests::home::Home::sqlite()).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    if let Some(home) = $crate::store::tests::home::Home::postgres() {
                        super::$name(home).await;
                    }
                }
            )*
        }
    };
}
pub(crate) use on_every_engine;

//! Where a test's database is, and which engine holds it.

use std::path::Path;

use super::super::{Store, StoreSettings};

/// A database of one test's own. Opened twice it is the same one.
pub(crate) struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub(crate) fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// The folder of a file database.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn open(&self) -> Store {
        self.open_with(StoreSettings::for_tests(1_000_000))
    }

    pub(crate) fn open_with(&self, settings: StoreSettings) -> Store {
        Store::open(self.dir.path(), settings).unwrap()
    }

    /// Lets rows of the audit log be changed, as somebody with the database's own password can.
    pub(super) fn unguard_audit(&self) -> &'static str {
        "DROP TRIGGER audit_is_append_only_u"
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
    };
}
pub(crate) use on_every_engine;

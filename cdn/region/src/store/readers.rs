//! Readers: a few connections that see committed states while the writer works.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{StoreError, schema};

/// Two per core of the smallest machine that we run on: a read that waits for the disk lets another one compute.
const READERS: usize = 4;
/// A read that has not begun by then would be answered to nobody.
const READ_WAIT_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Readers {
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut idle = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(path, flags)?;
            schema::prepare(&conn)?;
            conn.pragma_update(None, "query_only", true)?;
            idle.push(conn);
        }
        Ok(Self { idle: Mutex::new(idle), permits: Arc::new(Semaphore::new(READERS)) })
    }

    /// Lends a connection in a read transaction that begins with its first statement.
    pub(super) async fn lend(self: Arc<Self>) -> Result<Lent, StoreError> {
        let permits = Arc::clone(&self.permits);
        let permit = tokio::time::timeout(READ_WAIT_MAX, permits.acquire_owned())
            .await
            .map_err(|_| StoreError::Busy)?
            .map_err(|_| StoreError::Closed)?;
        let conn = self.idle.lock().pop().expect("there are as many connections as permits");
        let lent = Lent { pool: self, conn: Some(conn), _permit: permit };
        lent.conn().execute_batch("BEGIN DEFERRED")?;
        Ok(lent)
    }

    /// Waits until nobody reads, at most for `wait_max`, and lets nobody in until the permit is dropped. None: somebody
    /// reads for longer.
    pub(super) async fn withhold(&self, wait_max: Duration) -> Option<OwnedSemaphorePermit> {
        let all = Arc::clone(&self.permits).acquire_many_owned(READERS as u32);
        tokio::time::timeout(wait_max, all).await.ok()?.ok()
    }

    pub(crate) async fn run<T, F>(self: Arc<Self>, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let lent = self.lend().await?;
        match tokio::task::spawn_blocking(move || work(lent.conn())).await {
            Ok(result) => result,
            Err(e) if e.is_panic() => Err(StoreError::Panicked("a read".to_owned())),
            Err(_) => Err(StoreError::Closed),
        }
    }
}

/// A connection that finds its way back to the pool, also out of a panic.
pub(super) struct Lent {
    pool: Arc<Readers>,
    conn: Option<Connection>,
    /// Given back after the connection: fields drop after `Drop::drop` has run.
    _permit: OwnedSemaphorePermit,
}

impl Lent {
    pub(super) fn conn(&self) -> &Connection {
        self.conn.as_ref().expect("the connection is given back only when dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let conn = self.conn.take().expect("the connection is given back only when dropped");
        if !conn.is_autocommit() {
            // A read has nothing to keep. Were this to fail, the next BEGIN on the connection says so.
            let _ended = conn.execute_batch("ROLLBACK");
        }
        self.pool.idle.lock().push(conn);
    }
}

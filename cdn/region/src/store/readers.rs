//! Readers: a few connections that see committed states while the writer works.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::StoreError;
use super::engine::{Mode, Session, sqlite};

/// Two per core of the smallest machine that we run on: a read that waits for the disk lets another one compute.
const READERS: usize = 4;
/// A read that has not begun by then would be answered to nobody.
const READ_WAIT_MAX: Duration = Duration::from_secs(5);

/// A connection that can be lent for one read transaction at a time.
pub(crate) trait Reading: Send + 'static {
    fn begin(&self) -> Result<(), StoreError>;

    /// Ends the read; it has nothing to keep. False: the connection is good for nothing any more.
    fn end(&self) -> bool;
}

impl Reading for Box<dyn Session> {
    fn begin(&self) -> Result<(), StoreError> {
        Session::begin(&**self, Mode::Read)
    }

    fn end(&self) -> bool {
        self.roll_back()
    }
}

impl Reading for rusqlite::Connection {
    fn begin(&self) -> Result<(), StoreError> {
        Session::begin(self, Mode::Read)
    }

    fn end(&self) -> bool {
        self.roll_back()
    }
}

pub(crate) struct Readers<C> {
    open: Box<dyn Fn() -> Result<C, StoreError> + Send + Sync>,
    /// At most as many as permits; fewer after one has broken, until the next is asked for.
    idle: Mutex<Vec<C>>,
    permits: Arc<Semaphore>,
}

impl Readers<rusqlite::Connection> {
    /// Of a file that is not the store's.
    pub(crate) fn of_file(path: PathBuf) -> Result<Self, StoreError> {
        Self::open(move || sqlite::open_reader(&path))
    }
}

impl<C: Reading> Readers<C> {
    /// Opens them all, so that a database that cannot be reached shows at the start.
    pub(super) fn open(
        open: impl Fn() -> Result<C, StoreError> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let idle = (0..READERS).map(|_| open()).collect::<Result<_, _>>()?;
        Ok(Self { open: Box::new(open), idle: Mutex::new(idle), permits: Arc::new(Semaphore::new(READERS)) })
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        tokio::time::timeout(READ_WAIT_MAX, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| StoreError::Busy)?
            .map_err(|_| StoreError::Closed)
    }

    /// A connection in a read transaction that begins, at the latest, with its first statement. Blocks.
    fn begin(self: Arc<Self>, permit: OwnedSemaphorePermit) -> Result<Lent<C>, StoreError> {
        let idle = self.idle.lock().pop();
        let conn = match idle {
            // One that was idle may have been cut off meanwhile: a new one shows whether the database is there.
            Some(conn) if conn.begin().is_ok() => conn,
            _ => {
                let conn = (self.open)()?;
                conn.begin()?;
                conn
            }
        };
        Ok(Lent { pool: self, conn: Some(conn), _permit: permit })
    }

    /// Lends a connection for as long as somebody computes with what it shows.
    pub(super) async fn lend(self: Arc<Self>) -> Result<Lent<C>, StoreError> {
        let permit = self.permit().await?;
        blocking(move || self.begin(permit)).await
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
        F: FnOnce(&C) -> Result<T, StoreError> + Send + 'static,
    {
        let permit = self.permit().await?;
        blocking(move || work(self.begin(permit)?.conn())).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => Err(StoreError::Panicked("a read".to_owned())),
        Err(_) => Err(StoreError::Closed),
    }
}

/// A connection that finds its way back to the pool, also out of a panic.
pub(super) struct Lent<C: Reading> {
    pool: Arc<Readers<C>>,
    conn: Option<C>,
    /// Given back after the connection: fields drop after `Drop::drop` has run.
    _permit: OwnedSemaphorePermit,
}

impl<C: Reading> Lent<C> {
    pub(super) fn conn(&self) -> &C {
        self.conn.as_ref().expect("the connection is given back only when dropped")
    }
}

impl<C: Reading> Drop for Lent<C> {
    fn drop(&mut self) {
        let conn = self.conn.take().expect("the connection is given back only when dropped");
        if conn.end() {
            self.pool.idle.lock().push(conn);
        }
    }
}

//! What other processes over the same database have committed, noticed by asking.
//!
//! Each writing transaction counts one row. Whoever sees the number move reads the heads of the logs and the open marks, and
//! tells those who wait in this process. Nothing is right or wrong by it: a node hears of a price a moment later, and a
//! checkout that waits for an operation goes on a moment later.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::StoreError;
use super::cursor::Marks;
use super::engine::{Engine, Mode, Session};
use super::log;
use super::writer::Told;

/// How often. A price that was put at another process is at this one's nodes so much later; twenty questions a second, each
/// for one row that is in memory, are some thousandth of what a database answers.
const ASKED_EVERY: Duration = Duration::from_millis(50);
/// While the database is away.
const ASKED_EVERY_AWAY: Duration = Duration::from_secs(1);

/// The thread that asks. It ends when this is dropped, or told to.
pub(super) struct Others {
    /// Dropped, it ends the wait.
    stop: Mutex<Option<SyncSender<()>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Others {
    pub(super) fn watch(engine: Arc<dyn Engine>, told: Told) -> Result<Self, StoreError> {
        let (stop, stopped) = sync_channel(0);
        let thread = std::thread::Builder::new()
            .name("region-others".to_owned())
            .spawn(move || ask(&*engine, &told, &stopped))?;
        Ok(Self { stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn close(&self) {
        drop(self.stop.lock().take());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks for other processes' commits panicked");
        }
    }
}

fn ask(engine: &dyn Engine, told: &Told, stopped: &Receiver<()>) {
    let mut session = None;
    let mut seen = None;
    let mut wait = ASKED_EVERY;
    while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        match look(engine, &mut session, &mut seen, told) {
            Ok(()) => wait = ASKED_EVERY,
            Err(error) => {
                tracing::debug!(%error, "other processes' commits cannot be looked for");
                session = None;
                wait = ASKED_EVERY_AWAY;
            }
        }
    }
}

fn look(
    engine: &dyn Engine,
    session: &mut Option<Box<dyn Session>>,
    seen: &mut Option<u64>,
    told: &Told,
) -> Result<(), StoreError> {
    let session = match session {
        Some(session) => session,
        None => session.insert(engine.open(Mode::Read)?),
    };
    let commits: u64 = session.one("SELECT commits FROM store WHERE one = 1", &[], |row| row.get(0))?;
    if *seen == Some(commits) {
        return Ok(());
    }
    told.heads(&log::heads(&**session)?);
    let mut marks = Vec::new();
    let sql = "SELECT node, epoch, hwm, fold FROM cursor WHERE sealed = 0";
    session.each(sql, &[], &mut |row| {
        marks.push(Marks::read(row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    told.marks.advance(&marks);
    told.commits.send_modify(|count| *count += 1);
    *seen = Some(commits);
    Ok(())
}

//! What the standby holds, as far as its home knows: what whoever promises something waits for, at level 2.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use souk_config::AckLevel;
use souk_replication::{Fold, Hello, Mark, NodeState};
use tokio::sync::watch;

use crate::store::{Store, StoreError};

/// Operations of a node wait so long for the standby before the same batch is tried again: the link goes on meanwhile.
pub(crate) const APPLY_WAIT_MAX: Duration = Duration::from_secs(2);
/// Everything else: with what a checkout waits besides it stays below the nodes' `region_call_deadline` (5 s).
pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_millis(1_500);
/// How often it is looked what another process over the same database has heard from the standby.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why nothing can be promised.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotHeld {
    #[error("the standby does not say that it has it (ack_level = 2)")]
    Away,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is wrong where no standby can have anything.
pub(crate) const NOT_NOTED: &str = "nobody notes what a standby would need: another process over this database was started \
                                    without [pair], or is of another release. Give all of them one [pair] and start them again";

/// What is wrong with a standby whose connection lives.
pub(crate) const HANGS: &str = "the standby was connected and took in nothing of what it was sent for 100 s: look at its disk, its \
                                store and its log, and start it again";

/// The code of a refusal for which the shopper is to try again.
pub(crate) const STANDBY_AWAY: &str = "standby_away";

/// What is known of a standby.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) is_connected: bool,
    /// Everything that was noted up to here is on its disk.
    pub(crate) seq: u64,
    /// It was sent so many rows since this process began.
    pub(crate) rows: u64,
}

/// Shared by whoever hears the standby and whoever waits for it.
pub(crate) struct Held {
    level: AckLevel,
    /// It has taken over, and has had no standby since.
    is_alone: AtomicBool,
    known: watch::Sender<Known>,
    /// How far nodes' operations are on the standby's disk, as far as this process has heard.
    marks: Mutex<BTreeMap<(u32, u32), Mark>>,
    /// Since when the standby has lacked something without a break.
    behind_since: Mutex<Option<Instant>>,
    /// That nobody notes anything was told.
    is_unnoted: AtomicBool,
    /// What was made of the other region that an operator has to mend.
    trouble: Mutex<Option<&'static str>>,
    /// The standby did not take in what it was sent, and has taken in nothing since.
    is_hanging: AtomicBool,
}

impl Held {
    pub(crate) fn new(level: AckLevel, is_alone: bool) -> Self {
        Self {
            level,
            is_alone: AtomicBool::new(is_alone),
            known: watch::Sender::new(Known::default()),
            marks: Mutex::default(),
            behind_since: Mutex::new(Some(Instant::now())),
            is_unnoted: AtomicBool::new(false),
            trouble: Mutex::new(None),
            is_hanging: AtomicBool::new(false),
        }
    }

    /// What counts at the moment.
    pub(crate) fn level(&self) -> AckLevel {
        if self.is_alone() { AckLevel::One } else { self.level }
    }

    /// Whether what this home has counts until a standby holds everything.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Acquire)
    }

    /// A standby holds everything, and the store says so.
    pub(crate) fn not_alone(&self) {
        self.is_alone.store(false, Ordering::Release);
    }

    pub(crate) fn known(&self) -> Known {
        *self.known.borrow()
    }

    /// For how long the standby has lacked something.
    pub(crate) fn behind_for(&self) -> Duration {
        self.behind_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(crate) fn trouble(&self) -> Option<&'static str> {
        let hangs = self.is_hanging.load(Ordering::Relaxed).then_some(HANGS);
        (*self.trouble.lock()).or(hangs)
    }

    /// The standby takes in nothing. Shown until it has, however often it comes again meanwhile.
    pub(crate) fn hangs(&self) {
        if !self.is_hanging.swap(true, Ordering::Relaxed) {
            tracing::error!("{HANGS}");
        }
    }

    /// Says it once.
    pub(crate) fn set_trouble(&self, trouble: Option<&'static str>) {
        let before = std::mem::replace(&mut *self.trouble.lock(), trouble);
        if let Some(trouble) = trouble
            && before != Some(trouble)
        {
            tracing::error!("{trouble}");
        }
    }

    pub(crate) fn connected(&self, is_connected: bool) {
        self.known.send_modify(|known| known.is_connected = is_connected);
        if !is_connected {
            self.behind_since.lock().get_or_insert_with(Instant::now);
        }
    }

    /// The standby says that it has everything up to there. `began`: when that was the newest.
    pub(crate) fn held(
        &self,
        seq: u64,
        rows: u64,
        marks: &[((u32, u32), Mark)],
        is_all: bool,
        began: Instant,
    ) {
        self.is_hanging.store(false, Ordering::Relaxed);
        let mut by_epoch = self.marks.lock();
        for (key, mark) in marks {
            by_epoch.insert(*key, *mark);
        }
        drop(by_epoch);
        *self.behind_since.lock() = (!is_all).then_some(began);
        self.known.send_modify(|known| {
            known.seq = seq;
            known.rows += rows;
        });
    }

    /// Returns when everything that was committed before the call counts as safe: at once at level 1.
    ///
    /// Cancel safe: it only looks.
    pub(crate) async fn demand(&self, store: &Store, wait_max: Duration) -> Result<(), NotHeld> {
        if self.level == AckLevel::One || self.is_still_alone(store).await? {
            return Ok(());
        }
        let head = store.change_head().await?;
        if head == 0 {
            if !self.is_unnoted.swap(true, Ordering::Relaxed) {
                tracing::error!("{NOT_NOTED}");
            }
            return Err(NotHeld::Away);
        }
        let mut known = self.known.subscribe();
        let reached = async {
            if !store.is_shared() {
                // The sender is a field of `self`: it cannot be gone while we are borrowed.
                let _reached = known.wait_for(|known| known.seq >= head).await;
                return Ok(());
            }
            loop {
                if known.borrow_and_update().seq >= head || store.held_by_standby().await? >= head {
                    return Ok(());
                }
                tokio::select! {
                    _ = known.changed() => {}
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
            }
        };
        tokio::time::timeout(wait_max, reached).await.unwrap_or(Err(NotHeld::Away))
    }

    /// Where processes share a database, the one that the standby follows may have written down that the home is not alone any more.
    async fn is_still_alone(&self, store: &Store) -> Result<bool, StoreError> {
        if self.is_alone() && store.is_shared() && !store.is_alone().await? {
            self.not_alone();
        }
        Ok(self.is_alone())
    }

    /// What a node that says hello is told of its operations, while the standby may lack some of those that are committed.
    pub(crate) fn told(&self, hello: &Hello, committed: NodeState) -> NodeState {
        let key = (hello.node, committed.epoch);
        told(hello, committed, self.marks.lock().get(&key).copied())
    }
}

/// No more than the standby has, as far as is known (`held`), and no less than the node has forgotten: that was acknowledged, and
/// so the standby has it, whoever remembers.
fn told(hello: &Hello, committed: NodeState, held: Option<Mark>) -> NodeState {
    let forgotten = match hello.epoch {
        Some(epoch) if epoch == committed.epoch => hello.min_retained_seq.saturating_sub(1),
        _ => 0,
    };
    // An epoch begins with nothing, and everybody knows what that folds to.
    let held = held.unwrap_or(Mark { hwm: 0, fold: Some(Fold::EMPTY) });
    match held {
        Mark { hwm, .. } if hwm >= committed.hwm || forgotten >= committed.hwm => committed,
        Mark { hwm, fold } if hwm >= forgotten => NodeState { hwm, fold, ..committed },
        // What that folds to is not known here: the node does not compare.
        _ => NodeState { hwm: forgotten, fold: None, ..committed },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(number: u64) -> Option<Fold> {
        Some(Fold::from_number(number))
    }

    #[test]
    fn a_node_is_told_what_both_have_and_not_less_than_it_was_told_before() {
        let committed = NodeState { epoch: 3, hwm: 40, fold: fold(40) };
        let hello = |epoch, first| Hello {
            node: 7,
            epoch,
            min_retained_seq: first,
            last_seq: 90,
            ..Hello::default()
        };
        let at = |epoch, first, held: Option<u64>| {
            let held = held.map(|hwm| Mark { hwm, fold: fold(hwm) });
            let NodeState { epoch, hwm, fold } = told(&hello(epoch, first), committed, held);
            assert_eq!(epoch, 3, "the epoch is the region's");
            (hwm, fold.map(Fold::number))
        };
        assert_eq!(at(Some(3), 1, Some(40)), (40, Some(40)), "both have it all");
        assert_eq!(at(Some(3), 1, Some(30)), (30, Some(30)), "the standby is behind");
        assert_eq!(
            at(Some(3), 21, Some(30)),
            (30, Some(30)),
            "the node has kept more than the standby lacks"
        );
        assert_eq!(at(Some(3), 36, Some(30)), (35, None), "what it has forgotten was acknowledged");
        assert_eq!(at(Some(3), 21, None), (20, None), "the home was started again, and its standby is away");
        assert_eq!(at(Some(3), 41, None), (40, Some(40)), "nothing is kept");
        assert_eq!(at(Some(3), 60, None), (40, Some(40)), "a restored region is told of elsewhere");
        assert_eq!(at(None, 1, None), (0, Some(Fold::EMPTY.number())), "a wiped node");
        assert_eq!(at(Some(2), 30, Some(10)), (10, Some(10)), "its numbers are of another epoch");
    }
}

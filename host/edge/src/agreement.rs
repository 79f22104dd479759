//! Whether this node holds the rows that its region holds: what cursors cannot see.
//!
//! A cursor says how far a log was applied, and nothing of what became of the rows since: a bit that turned in the file, a change
//! that a fault of ours lost. So each minute the node asks what the rows of each log come to, and compares. A log that differs
//! is fetched whole at once, and served as it is until then; and so is one whose file does not hold any more what was written
//! to it. Owns the one task that asks; the sums are [`crate::state::Replica`]'s and the region's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Serialize;
use souk_commerce::call::{LogDigest, Request, Response};
use souk_link::{Log, RowsDigest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http::now_ms;
use crate::node::Node;
use crate::uplink::AskError;

/// Between two questions, give or take a tenth, so that nodes that were started together do not ask together.
const ASKED_EVERY: Duration = Duration::from_secs(60);
/// After a connection was made: until the logs have been brought up to date, mostly.
const ASKED_AFTER: Duration = Duration::from_secs(1);
/// The region's sum is of a moment ago, and the node may be a moment further behind.
const BEHIND_MAX: Duration = Duration::from_secs(10);
/// A log that differs once more so soon after it was fetched whole differs by a fault, and would differ for ever: it is told, and
/// not fetched a thousand times.
const REPAIRED_EVERY: Duration = Duration::from_secs(600);
/// So many questions are between two readings of the whole file.
const FILE_READ_EVERY: u32 = 30;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LogOutcome {
    log: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLog {
    log: &'static str,
}

/// What a comparison showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Equal,
    Differs,
    /// The node does not remember what its rows came to at the region's version, or is of another history.
    NotComparable,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Differs => "differs",
            Self::NotComparable => "not_comparable",
        }
    }
}

/// The last comparison of a log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compared {
    at_ms: u64,
    version: u64,
    outcome: Outcome,
}

#[derive(Debug, Default)]
struct Known {
    last: BTreeMap<Log, Compared>,
    repaired: BTreeMap<Log, Instant>,
}

/// What has been compared, and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    known: Mutex<Known>,
    compared: Family<LogOutcome, Counter>,
    repairs: Family<OfLog, Counter>,
}

impl Agreement {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register(
            "souk_log_digests",
            "Comparisons of a log's rows with the region's: equal, not_comparable, or differs (an alarm)",
            this.compared.clone(),
        );
        registry.register(
            "souk_log_repairs",
            "Logs that were fetched whole because their rows were not the region's",
            this.repairs.clone(),
        );
        this
    }

    /// The last comparison of that log.
    pub(crate) fn last(&self, log: Log) -> Option<Compared> {
        self.known.lock().last.get(&log).cloned()
    }

    /// Writes a comparison down. True: it is to be believed that the log differs.
    fn note(&self, log: Log, version: u64, outcome: Outcome, is_final: bool) -> bool {
        self.compared.get_or_create(&LogOutcome { log: log.name(), outcome: outcome.name() }).inc();
        let compared = Compared { at_ms: now_ms(), version, outcome };
        let before = self.known.lock().last.insert(log, compared);
        let again = before.is_some_and(|before| before.outcome == Outcome::Differs);
        outcome == Outcome::Differs && (is_final || again)
    }

    /// Whether the log may be fetched whole now.
    fn may_repair(&self, log: Log, now: Instant) -> bool {
        self.known.lock().repaired.get(&log).is_none_or(|at| now.duration_since(*at) >= REPAIRED_EVERY)
    }

    /// The log will be fetched whole.
    fn repaired(&self, log: Log, now: Instant) {
        self.known.lock().repaired.insert(log, now);
        self.repairs.get_or_create(&OfLog { log: log.name() }).inc();
    }
}

/// Asks and compares until the token says to end.
pub(crate) async fn keep(node: Arc<Node>, shutdown: CancellationToken) {
    shutdown.run_until_cancelled_owned(compare_for_ever(&node)).await;
}

async fn compare_for_ever(node: &Node) {
    let mut link = node.uplink.link().watch();
    let mut questions = 0_u32;
    loop {
        // Not before there is somebody to ask.
        if link.wait_for(|status| status.connected).await.is_err() {
            return;
        }
        tokio::time::sleep(ASKED_AFTER).await;
        let mut differ = Vec::new();
        if questions.checked_rem(FILE_READ_EVERY) == Some(FILE_READ_EVERY - 1) {
            differ.extend(read_file(node).await);
        }
        questions = questions.wrapping_add(1);
        match node.uplink.ask(&Request::Digests).await {
            Ok(Response::Digests(theirs)) => {
                for digest in theirs {
                    differ.extend(compare(node, &digest).await);
                }
            }
            Ok(Response::NotYet { .. }) | Err(AskError::Away | AskError::Unreachable(_) | AskError::Late) => {
            }
            Ok(other) => tracing::warn!(?other, "the region answers about something else"),
            Err(AskError::Failed(why)) => {
                tracing::debug!(
                    why,
                    "the region does not sum its logs up: it is of the release before this, or fails"
                );
            }
        }
        repair(node, &differ).await;
        let pause = ASKED_EVERY.mul_f64(rand::random_range(0.9..1.1));
        // A new connection is a reason to look: the region may have been restored, or this node's link repaired.
        let since = link.borrow().since;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = link.wait_for(|status| status.connected && status.since != since) => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Logs whose rows the file does not hold as they were written.
async fn read_file(node: &Node) -> Vec<Log> {
    let replica = node.replica.clone();
    match tokio::task::spawn_blocking(move || replica.rotten()).await {
        Ok(Ok(rotten)) => {
            for log in &rotten {
                tracing::error!(%log, "replica.redb does not hold what was written to it: its disk is not to be trusted");
            }
            rotten
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "replica.redb cannot be read: the next start moves it aside and fetches all logs");
            Vec::new()
        }
        Err(stopped) => {
            tracing::error!(%stopped, "reading replica.redb stopped half-way");
            Vec::new()
        }
    }
}

/// The log, if its rows are not the region's.
async fn compare(node: &Node, theirs: &LogDigest) -> Option<Log> {
    let log = Log::from_code(theirs.log)?;
    let mut cursors = node.replica.changed();
    let there = cursors.wait_for(|cursors| cursors.get(log) >= theirs.version);
    // Later than that it is not comparable this time.
    let _ = tokio::time::timeout(BEHIND_MAX, there).await;
    let world = node.replica.world();
    let is_of_this_history =
        theirs.version == 0 || world.histories.get(&theirs.log) == Some(&theirs.region_epoch);
    let ours = node.replica.digest_at(log, theirs.version).filter(|_| is_of_this_history);
    let outcome = match ours {
        None => Outcome::NotComparable,
        Some(ours) if ours == RowsDigest::from_parts(theirs.rows, theirs.sum) => Outcome::Equal,
        Some(_) => Outcome::Differs,
    };
    // While a snapshot is still being caught up with, a row that went meanwhile is missed for a moment. Not when there is
    // nothing more to come.
    let head = node.uplink.status().region_heads.get(log);
    let is_final = node.replica.cursors().get(log) == theirs.version && head <= theirs.version;
    node.agreement.note(log, theirs.version, outcome, is_final).then(|| {
        tracing::error!(
            %log,
            version = theirs.version,
            rows = ours.map(|ours| ours.rows()),
            rows_of_region = theirs.rows,
            "this node's rows are not the region's"
        );
        log
    })
}

async fn repair(node: &Node, differ: &[Log]) {
    let now = Instant::now();
    let mut logs: Vec<_> = differ.to_vec();
    logs.dedup();
    logs.retain(|log| node.agreement.may_repair(*log, now));
    if logs.is_empty() {
        // A log that was given up while the link said hello: nobody was told of it. One whose snapshot is on its way is left alone.
        let coming = node.replica.stagings();
        let mut untold = node.replica.given_up();
        untold.retain(|log| coming.iter().all(|staging| staging.log != *log));
        if !untold.is_empty() && node.uplink.status().since.elapsed() >= ASKED_EVERY {
            node.uplink.link().reconnect("a log is fetched whole");
        }
        return;
    }
    let (replica, whole) = (node.replica.clone(), logs.clone());
    match tokio::task::spawn_blocking(move || replica.mistrust(&whole)).await {
        Ok(Ok(())) => {
            for log in &logs {
                node.agreement.repaired(*log, now);
                tracing::warn!(%log, "the log is fetched whole");
            }
            node.uplink.link().reconnect("a log is fetched whole");
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "a log that differs cannot be given up: replica.redb is not written")
        }
        Err(stopped) => tracing::error!(%stopped, "a log that differs was not given up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_believed_to_differ_at_the_end_of_its_tail_or_the_second_time() {
        let agreement = Agreement::default();
        assert!(!agreement.note(Log::Price, 5, Outcome::Differs, false), "it may be on its way");
        assert!(agreement.note(Log::Price, 6, Outcome::Differs, false));
        assert!(!agreement.note(Log::Price, 7, Outcome::Equal, true));
        assert!(!agreement.note(Log::Price, 8, Outcome::Differs, false), "it was equal in between");
        assert!(agreement.note(Log::Stock, 1, Outcome::Differs, true), "nothing more is to come");
        assert!(!agreement.note(Log::Stock, 1, Outcome::NotComparable, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_differs_for_ever_is_not_fetched_for_ever() {
        let agreement = Agreement::default();
        assert!(agreement.may_repair(Log::Price, Instant::now()));
        agreement.repaired(Log::Price, Instant::now());
        assert!(!agreement.may_repair(Log::Price, Instant::now()));
        assert!(agreement.may_repair(Log::Catalog, Instant::now()), "another one");
        tokio::time::advance(REPAIRED_EVERY).await;
        assert!(agreement.may_repair(Log::Price, Instant::now()));
    }
}

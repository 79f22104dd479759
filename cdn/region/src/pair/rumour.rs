//! What nodes say of a later home than this one: a reason to ask, and no more.
//!
//! A node keeps the greatest term that it has met, and is rejected by a home of a lower one. What it says is no proof: it may be in
//! somebody's hands, or remember another region of this name. Were it believed, one node could end its region for ever. So nothing is
//! written down here. A region of a pair asks the other one, which its certificate vouches for, and gives way to that one's word alone
//! ([`super::home`]); a region without one goes on. Either says it, as an alarm.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use souk_link::Node;
use souk_replication::Term;

/// The log says it so often: a node that is rejected comes again within half a minute.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// Nobody has said it for so long: it is over. Four of a node's longest pauses.
const KEPT_FOR: Duration = Duration::from_secs(120);

/// The last that was heard.
#[derive(Debug, Clone, Copy)]
struct Heard {
    node: Node,
    met: Term,
    at: Instant,
    logged_at: Instant,
}

/// Shared by whoever hears nodes, whoever asks the other region, and whoever shows it.
#[derive(Debug)]
pub(crate) struct Rumours {
    /// Of this home.
    own: Term,
    /// There is another region that can be asked.
    is_paired: bool,
    last: Mutex<Option<Heard>>,
    /// Nodes that were rejected for it since start.
    count: AtomicU64,
    is_unasked: AtomicBool,
}

impl Rumours {
    pub(crate) fn new(own: Term, is_paired: bool) -> Self {
        Self {
            own,
            is_paired,
            last: Mutex::default(),
            count: AtomicU64::new(0),
            is_unasked: AtomicBool::new(false),
        }
    }

    /// A node was rejected, for it says that it has met a home of this term.
    pub(crate) fn hear(&self, node: Node, met: Term) {
        let now = Instant::now();
        let mut last = self.last.lock();
        let logged = last.map(|heard| heard.logged_at);
        let logged = logged.filter(|at| now.saturating_duration_since(*at) < LOGGED_EVERY);
        *last = Some(Heard { node, met, at: now, logged_at: logged.unwrap_or(now) });
        drop(last);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.is_unasked.store(true, Ordering::Release);
        if logged.is_none() {
            tracing::error!(
                node,
                met,
                own = self.own,
                "a node is rejected: it says that it has met a later home of this region. Its word ends nothing (docs/REGIONS.md)"
            );
        }
    }

    /// Whether something was heard since this was asked last.
    pub(crate) fn take_unasked(&self) -> bool {
        self.is_unasked.swap(false, Ordering::AcqRel)
    }

    /// Nodes that were rejected for it since start: each counts as often as it comes.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// What an operator has to know, while nodes say it.
    pub(crate) fn trouble(&self) -> Option<String> {
        let Heard { node, met, at, .. } = (*self.last.lock())?;
        if at.elapsed() > KEPT_FOR {
            return None;
        }
        let own = self.own;
        let then = if self.is_paired {
            "the other region does not confirm it, or does not answer"
        } else {
            "this region is not one of a pair, so nobody can be asked"
        };
        Some(format!(
            "node {node} is rejected: it says that it has met a home of term {met}, and this one is of term {own}; {then}. \
             See \"A node that has met a later home\" in docs/REGIONS.md"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_is_told_and_asked_about_once() {
        let rumours = Rumours::new(1, true);
        assert!(rumours.trouble().is_none() && !rumours.take_unasked());
        rumours.hear(7, 2);
        rumours.hear(9, Term::MAX);
        assert_eq!(rumours.count(), 2);
        let trouble = rumours.trouble().expect("it was just said");
        assert!(trouble.contains("node 9") && trouble.contains(&Term::MAX.to_string()), "{trouble}");
        assert!(rumours.take_unasked());
        assert!(!rumours.take_unasked(), "nobody has said it since");
        rumours.hear(7, 2);
        assert!(rumours.take_unasked());
        let alone = Rumours::new(1, false);
        alone.hear(7, 2);
        assert!(alone.trouble().is_some_and(|trouble| trouble.contains("not one of a pair")));
    }
}

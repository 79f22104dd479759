//! Memory that many stores have together. A store's own limit says what one guest may have; a ledger says what all
//! of a site's, and all of a process's, may have at a time, so that a node's memory is a sum that can be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are given out and come back. What is taken here is taken from the whole that it is a part of, too.
pub(crate) struct Ledger {
    bytes_max: usize,
    left: AtomicUsize,
    whole: Option<Arc<Self>>,
}

impl Ledger {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, left: AtomicUsize::new(bytes_max), whole: None })
    }

    /// At most so many bytes of another one's.
    pub(crate) fn part(whole: &Arc<Self>, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, left: AtomicUsize::new(bytes_max), whole: Some(Arc::clone(whole)) })
    }

    /// Whether there were so many left.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        // Relaxed: the number stands for itself and guards no other memory.
        let less = |left: usize| left.checked_sub(bytes);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err() {
            return false;
        }
        if self.whole.as_ref().is_none_or(|whole| whole.take(bytes)) {
            return true;
        }
        self.left.fetch_add(bytes, Ordering::Relaxed);
        false
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.give_back(bytes);
        }
    }

    /// Half of it is left, and half of the whole: memory may be kept for later.
    pub(crate) fn is_roomy(&self) -> bool {
        self.left.load(Ordering::Relaxed) >= self.bytes_max / 2
            && self.whole.as_ref().is_none_or(|whole| whole.is_roomy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_cannot_take_what_is_anothers_and_all_of_it_comes_back() {
        let whole = Ledger::new(100);
        let (a, b) = (Ledger::part(&whole, 60), Ledger::part(&whole, 60));
        assert!(a.take(60) && !a.take(1), "its own bound");
        assert!(!b.take(41) && b.take(40), "the bound of all");
        assert!(!a.is_roomy() && !b.is_roomy());
        b.give_back(40);
        assert!(!b.is_roomy(), "the whole is still more than half taken");
        a.give_back(60);
        assert!(a.is_roomy() && b.is_roomy());
        assert!(b.take(60), "a refusal took nothing");
    }
}

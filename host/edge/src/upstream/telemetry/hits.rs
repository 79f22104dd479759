//! A counter that cores do not take from each other.
//!
//! One counter for everybody is a line of memory that goes from core to core with every hit. Here each thread has its own,
//! and whoever reads adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Threads that count apart. More of them share.
const SHARDS: usize = 16;

/// Hits since they were last taken. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hits(Arc<[Shard; SHARDS]>);

/// On a cache line of its own (two are fetched at once).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(AtomicU64);

thread_local! {
    static OWN: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS
    };
}

impl Hits {
    pub(super) fn inc(&self) {
        let own = OWN.with(|own| *own);
        self.0[own].0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.swap(0, Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_lost_whoever_counts() {
        let hits = Hits::default();
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| (0..1_000).for_each(|_| hits.inc()));
            }
            scope.spawn(|| {
                for _ in 0..100 {
                    taken.fetch_add(hits.take(), Ordering::Relaxed);
                }
            });
        });
        assert_eq!(taken.into_inner() + hits.take(), 2 * SHARDS as u64 * 1_000);
    }
}

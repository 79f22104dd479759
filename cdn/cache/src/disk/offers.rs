//! What waits to be written, and whose it is: no site fills a queue that others share.
//!
//! Counts responses that were offered. Those that are written once more, and removals, have bounds of their own
//! ([`super::writer`], [`super::state`]).

use std::collections::HashMap;

use super::DiskLimits;
use super::record::HEADER_BYTES;

/// Bodies that wait to be written: what a slow disk writes in a tenth of a second, or two of the largest objects.
const BYTES_MIN: u64 = 16 * 1024 * 1024;
const OBJECTS: u64 = 2;
/// Records that wait to be written.
const RECORDS_MAX: u64 = 4_096;
/// Of several sites none has more than this part of both: whoever fetches faster than the disk writes loses copies of its
/// own. One of the largest objects fits.
const SITE_SHARE: u64 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    bytes: u64,
    records: u64,
}

/// What was offered and waits.
#[derive(Debug, Default)]
pub(super) struct Offers {
    all: Amount,
    of: HashMap<u16, Amount>,
}

impl Offers {
    /// Whether a record of so many bytes may wait, of the site with this share.
    pub(super) fn has_room_for(&self, share: u16, bytes: u64, limits: &DiskLimits) -> bool {
        let bytes_max = ((limits.largest_object() + HEADER_BYTES as u64) * OBJECTS).max(BYTES_MIN);
        let fits = |held: Amount, part: u64| {
            held.bytes + bytes <= bytes_max / part && held.records < RECORDS_MAX / part
        };
        let own = self.of.get(&share).copied().unwrap_or_default();
        fits(self.all, 1) && (!limits.shared || fits(own, SITE_SHARE))
    }

    pub(super) fn add(&mut self, share: u16, bytes: u64) {
        let own = self.of.entry(share).or_default();
        for amount in [&mut self.all, own] {
            amount.bytes += bytes;
            amount.records += 1;
        }
    }

    pub(super) fn remove(&mut self, share: u16, bytes: u64) {
        let Some(own) = self.of.get_mut(&share) else { return };
        for amount in [&mut self.all, &mut *own] {
            amount.bytes -= bytes;
            amount.records -= 1;
        }
        if own.records == 0 {
            self.of.remove(&share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_sites_has_half_of_the_queue_and_one_alone_has_all() {
        const MIB: u64 = 1 << 20;
        for (shared, fit) in [(true, 8), (false, 16)] {
            let limits = DiskLimits { bytes_max: 1 << 30, object_bytes_max: MIB, shared };
            let mut offers = Offers::default();
            for _ in 0..fit {
                assert!(offers.has_room_for(1, MIB, &limits));
                offers.add(1, MIB);
            }
            assert!(!offers.has_room_for(1, MIB, &limits));
            assert_eq!(offers.has_room_for(2, MIB, &limits), shared);
            (0..fit).for_each(|_| offers.remove(1, MIB));
            assert_eq!((offers.all, offers.of.len()), (Amount::default(), 0));
        }
        // The largest object of a large memory, and as many small ones as may wait.
        let limits = DiskLimits { bytes_max: 1 << 40, object_bytes_max: 64 * MIB, shared: true };
        let mut offers = Offers::default();
        assert!(offers.has_room_for(1, 64 * MIB + HEADER_BYTES as u64, &limits));
        let fit = (0..RECORDS_MAX).take_while(|_| {
            let has_room = offers.has_room_for(1, 1, &limits);
            offers.add(1, 1);
            has_room
        });
        assert_eq!(fit.count() as u64, RECORDS_MAX / SITE_SHARE);
    }
}

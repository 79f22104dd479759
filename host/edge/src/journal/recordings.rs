//! Recorded calls that wait to be carried to the region.
//!
//! Pure. Unlike entries of a journal, the ones that are there stay: a recording is a sample, and any will do.

use std::collections::{HashMap, VecDeque};

use souk_commerce::id::SiteId;
use souk_commerce::journal::{RECORDING_BYTES_MAX, RecordingBlob};

/// Bytes of all recordings together: a hundred or more of usual carts per site and second, at a round trip each.
const NODE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Of one site, so that one that records everything leaves others their room.
const SITE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Recordings {
    waiting: VecDeque<RecordingBlob>,
    of_site: HashMap<SiteId, usize>,
    bytes: usize,
}

impl Recordings {
    /// False: there is no room.
    pub(super) fn push(&mut self, recording: RecordingBlob) -> bool {
        let weight = weight(&recording);
        let of_site = self.of_site.get(&recording.site).copied().unwrap_or(0);
        if recording.bytes.len() > RECORDING_BYTES_MAX
            || of_site + weight > SITE_BYTES_MAX
            || self.bytes + weight > NODE_BYTES_MAX
        {
            return false;
        }
        self.of_site.insert(recording.site.clone(), of_site + weight);
        self.bytes += weight;
        self.waiting.push_back(recording);
        true
    }

    pub(super) fn pop(&mut self) -> Option<RecordingBlob> {
        let recording = self.waiting.pop_front()?;
        let weight = weight(&recording);
        self.bytes -= weight;
        if let Some(of_site) = self.of_site.get_mut(&recording.site) {
            *of_site -= weight;
            if *of_site == 0 {
                self.of_site.remove(&recording.site);
            }
        }
        Some(recording)
    }
}

fn weight(recording: &RecordingBlob) -> usize {
    size_of::<RecordingBlob>() + recording.bytes.len()
}

#[cfg(test)]
mod tests {
    use souk_commerce::journal::{CallIds, Source};

    use super::*;

    fn recording(site: &str, bytes: usize) -> RecordingBlob {
        let plugin = "pricing".parse().expect("a plugin");
        RecordingBlob {
            id: CallIds::new(1).next(5),
            site: site.parse().expect("a site"),
            source: Source { plugin, release: 1, hook: None },
            at_ms: 5,
            bytes: vec![0; bytes],
        }
    }

    #[test]
    fn a_site_that_records_everything_leaves_others_their_room() {
        let mut recordings = Recordings::default();
        assert!(!recordings.push(recording("shop", RECORDING_BYTES_MAX + 1)));
        let kept = (0..100).filter(|_| recordings.push(recording("shop", RECORDING_BYTES_MAX))).count();
        assert_eq!(kept, SITE_BYTES_MAX / RECORDING_BYTES_MAX - 1);
        for s in 0..100 {
            recordings.push(recording(&format!("shop-{s}"), RECORDING_BYTES_MAX));
            assert!(recordings.bytes <= NODE_BYTES_MAX);
        }
        let popped = std::iter::from_fn(|| recordings.pop()).count();
        assert_eq!(popped, NODE_BYTES_MAX / RECORDING_BYTES_MAX - 1);
        assert_eq!((recordings.bytes, recordings.of_site.len()), (0, 0));
        assert!(recordings.push(recording("shop", 10)));
    }
}

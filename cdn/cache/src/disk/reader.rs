//! The threads that read: a record from its place, compared with its checksums and with the key that is asked for, and
//! put into memory, where the request that waits finds it.
//!
//! A body is sent only after all of it was read and found right: a large one waits for that before its first byte, and no
//! client ever gets the first half of something that turns out to be broken.

use std::io;
use std::sync::Arc;

use super::gate::Doing;
use super::record;
use super::segment::{self, Place};
use super::state::{Counters, Job, Shared};
use crate::entry::{Entry, Resource};
use crate::purge::Verdict;

/// Records from later than this after now were written under another clock: how old they are cannot be known.
const CLOCK_SLACK_MS: u64 = 60_000;
/// Bodies of the variants of one key that are read at once, in objects of the largest size.
const OBJECTS_AT_ONCE: u64 = 2;

pub(super) fn run(shared: &Shared) {
    while let Some(job) = shared.next_job() {
        // Also if this panics: nobody waits for a thread that is gone.
        let _done = Done { shared, print: job.print };
        if let Err(error) = read(shared, &job) {
            shared.turn_off("read", error);
        }
    }
}

struct Done<'a> {
    shared: &'a Shared,
    print: u64,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.shared.done_reading(self.print);
    }
}

fn read(shared: &Shared, job: &Job) -> io::Result<()> {
    let (numbers, places): (_, Vec<_>) = {
        let state = shared.state.lock();
        let newest_first = state.index.get(job.print).iter().rev();
        let found = newest_first
            .filter_map(|held| Some((held.place, Arc::clone(state.files.get(&held.place.segment)?))));
        (state.numbers, found.collect())
    };
    let mut entries: Vec<(Place, Arc<Entry>)> = Vec::new();
    let (mut corrupt, mut purged) = (Vec::new(), Vec::new());
    let mut left = shared.limits.largest_object().saturating_mul(OBJECTS_AT_ONCE);
    for (place, file) in places {
        if place.body_bytes > left {
            break;
        }
        left -= place.body_bytes;
        shared.gate.pass(Doing::Read)?;
        match segment::read(&file, place)?.and_then(|raw| record::entry_of(&raw.meta, raw.body)) {
            Ok((key, entry)) => {
                let from_later = entry.freshness.received_ms() > job.now_ms.saturating_add(CLOCK_SLACK_MS);
                if key != job.key || from_later {
                    continue;
                }
                let born = numbers.of_log(entry.birth.born());
                let birth = entry.birth.clone().born_at(born);
                if shared.purges.judge(&key, &birth) == Verdict::Gone {
                    // The log says so too: it takes no record of its own.
                    purged.push(place);
                } else {
                    entries.push((place, Arc::new(Entry { birth, ..entry })));
                }
            }
            Err(_) => corrupt.push(place),
        }
    }
    if !corrupt.is_empty() || !purged.is_empty() {
        Counters::add(&shared.counters.corrupt, corrupt.len() as u64);
        Counters::add(&shared.counters.purged, purged.len() as u64);
        let gone = [corrupt.as_slice(), purged.as_slice()].concat();
        shared.state.lock().index.remove_where(job.print, |held| gone.contains(&held.place));
    }
    if entries.is_empty() && purged.is_empty() {
        Counters::add(&shared.counters.misses, 1);
    }
    if entries.is_empty() {
        return Ok(());
    }
    Counters::add(&shared.counters.hits, 1);
    shared.shelf.update(job.key.clone(), &mut |held| match held {
        // Fetched meanwhile: newer than what was read.
        Some(held) => Some(held.clone()),
        None => {
            // Under the lock that a removal takes too: what was removed while it was read is not brought back.
            let mut state = shared.state.lock();
            let mut resource = None;
            for (place, entry) in entries.iter().rev() {
                if state.index.holds(job.print, *place) {
                    state.index.mark_used(job.print, *place);
                    resource = Some(resource.unwrap_or_else(Resource::default).with(Arc::clone(entry)));
                }
            }
            resource
        }
    });
    Ok(())
}

//! The threads that read: a record from its place, compared with its checksums and with the key that is asked for, and
//! put into memory, where the request that waits finds it.
//!
//! A body is sent only after all of it was read and found right: a large one waits for that before its first byte, and no
//! client ever gets the first half of something that turns out to be broken.

use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::gate::Doing;
use super::index::Index;
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
    while let Some(mut job) = shared.next_job() {
        let look = job.look.take();
        // Also if this panics: nobody waits for a thread that is gone.
        let _done = Done { shared, print: look.is_none().then_some(job.print) };
        let done = match look {
            None => read(shared, &job),
            Some(answer) => look_at(shared, &job, answer),
        };
        if let Err(error) = done {
            shared.turn_off("read", error);
        }
    }
}

struct Done<'a> {
    shared: &'a Shared,
    print: Option<u64>,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.shared.done_reading(self.print);
    }
}

/// What the records of a key came to.
#[derive(Default)]
struct Found {
    /// Those that hold, the newest first.
    entries: Vec<(Place, Arc<Entry>)>,
    corrupt: Vec<Place>,
    purged: Vec<Place>,
}

fn find(shared: &Shared, job: &Job) -> io::Result<Found> {
    let (numbers, places): (_, Vec<_>) = {
        let state = shared.state.lock();
        let newest_first = state.index.get(job.print).iter().rev();
        let found = newest_first
            .filter_map(|held| Some((held.place, Arc::clone(state.files.get(&held.place.segment)?))));
        (state.numbers, found.collect())
    };
    let Found { mut entries, mut corrupt, mut purged } = Found::default();
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
    Ok(Found { entries, corrupt, purged })
}

/// For whoever asks what is there: nothing changes, and nothing is counted.
fn look_at(shared: &Shared, job: &Job, answer: oneshot::Sender<Option<Resource>>) -> io::Result<()> {
    let found = find(shared, job)?;
    let resource = held_still(&shared.state.lock().index, job, &found.entries);
    // Who asked may have gone.
    drop(answer.send(resource));
    Ok(())
}

/// Those that were not removed while they were read.
fn held_still(index: &Index, job: &Job, entries: &[(Place, Arc<Entry>)]) -> Option<Resource> {
    let held = entries.iter().rev().filter(|(place, _)| index.holds(job.print, *place));
    held.fold(None::<Resource>, |resource, (_, entry)| {
        Some(resource.unwrap_or_default().with(Arc::clone(entry)))
    })
}

fn read(shared: &Shared, job: &Job) -> io::Result<()> {
    let Found { entries, corrupt, purged } = find(shared, job)?;
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
            for (place, _) in &entries {
                state.index.mark_used(job.print, *place);
            }
            held_still(&state.index, job, &entries)
        }
    });
    Ok(())
}

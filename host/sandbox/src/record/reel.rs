//! Listens between a guest and its site's data, and plays the recorded answers back.

use std::sync::Arc;

use parking_lot::Mutex;
use souk_commerce::id::PluginName;
use souk_commerce::product::Listed;

use super::recording::{Good, HostCall, RECORDING_BYTES_MAX, Value};
use crate::hook::{Level, SiteData};

/// Writes down what a guest asks of its host and what it is told. A log line goes no further: the live call has
/// written it already.
pub(super) struct Reel {
    data: Arc<dyn SiteData>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
pub(super) struct Taken {
    pub(super) calls: Vec<HostCall>,
    /// Of everything, also what was not kept.
    pub(super) bytes: usize,
}

impl Reel {
    pub(super) fn over(data: Arc<dyn SiteData>) -> Arc<Self> {
        Arc::new(Self { data, taken: Mutex::default() })
    }

    pub(super) fn take(&self) -> Taken {
        std::mem::take(&mut self.taken.lock())
    }

    /// A recording that is too large anyway is not held in memory: a thousand answers of a mebibyte would be.
    fn note(&self, bytes: usize, call: impl FnOnce() -> HostCall) {
        let mut taken = self.taken.lock();
        taken.bytes = taken.bytes.saturating_add(bytes);
        if taken.bytes <= RECORDING_BYTES_MAX {
            taken.calls.push(call());
        }
    }
}

impl SiteData for Reel {
    fn product(&self, sku: &str) -> Option<Listed> {
        let found = self.data.product(sku);
        let answer = found.as_ref().map(Good::of);
        let bytes = sku.len() + answer.as_ref().map_or(0, Good::text_bytes);
        self.note(bytes, || HostCall::LookupProduct { sku: sku.to_owned(), answer });
        found
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        let found = self.data.kv(key);
        let bytes = key.len() + found.as_ref().map_or(0, Vec::len);
        self.note(bytes, || HostCall::KvGet { key: key.to_owned(), answer: found.as_deref().map(Value::of) });
        found
    }

    fn log(&self, _: &PluginName, level: Level, text: &str) {
        self.note(text.len(), || HostCall::Log { level, text: text.to_owned() });
    }
}

/// A site that knows what was answered in a recording, and nothing else. Within one call the same question has the
/// same answer, so the order of questions does not matter here; [`super::compare`] looks at it.
pub struct Playback {
    calls: Vec<HostCall>,
    unrecorded: Mutex<Vec<String>>,
}

/// Questions without a recorded answer that are told: the first ones say why the rest differ.
const UNRECORDED_MAX: usize = 16;

impl Playback {
    pub fn of(calls: &[HostCall]) -> Arc<Self> {
        Arc::new(Self { calls: calls.to_vec(), unrecorded: Mutex::default() })
    }

    pub(super) fn unrecorded(&self) -> Vec<String> {
        std::mem::take(&mut self.unrecorded.lock())
    }

    fn miss(&self, question: String) {
        let mut unrecorded = self.unrecorded.lock();
        if unrecorded.len() < UNRECORDED_MAX && !unrecorded.contains(&question) {
            unrecorded.push(question);
        }
    }
}

impl SiteData for Playback {
    fn product(&self, wanted: &str) -> Option<Listed> {
        let answer = self.calls.iter().find_map(|call| match call {
            HostCall::LookupProduct { sku, answer } if sku == wanted => Some(answer),
            _ => None,
        });
        match answer {
            Some(answer) => answer.as_ref().map(Good::listed),
            None => {
                self.miss(format!("lookup-product({:?})", crate::fault::bounded(wanted, 80)));
                None
            }
        }
    }

    fn kv(&self, wanted: &str) -> Option<Vec<u8>> {
        let answer = self.calls.iter().find_map(|call| match call {
            HostCall::KvGet { key, answer } if key == wanted => Some(answer),
            _ => None,
        });
        match answer {
            Some(answer) => answer.as_ref().and_then(Value::bytes),
            None => {
                self.miss(format!("kv-get({:?})", crate::fault::bounded(wanted, 80)));
                None
            }
        }
    }

    fn log(&self, _: &PluginName, _: Level, _: &str) {}
}

//! What a merchant's plugins did: the lines they logged, how each call ended, and the calls that were recorded whole.
//!
//! An account of what happened, for people. Nothing is decided from it, so it may have holes, and each hole says how
//! much is missing ([`Event::Dropped`]). A node collects entries and sends them to its region with
//! [`crate::call::Request::Journal`]; the region keeps them for the merchant, who reads them as JSON.
//!
//! What this module refuses to know: what is in a recording (`souk_sandbox` writes and reads it), how long anything is
//! kept, and who may read it. Every text in an entry is a stranger's: bounded and of one line, and still not to be
//! trusted by whoever shows it.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, DecodeError};
use crate::id::{InvalidName, NodeId, PluginName, SiteId};
use crate::site::Hook;

/// Longest text of an entry: one line of a log is at most 1 KiB, and so is the account of a trap.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest code or name of an outcome. A plugin's refusal codes are at most 64.
pub const NAME_BYTES_MAX: usize = 64;
/// Largest encoding of one entry: its text, its names at their limits (63 + 40 + 64), and the numbers around them.
pub const ENTRY_BYTES_MAX: usize = TEXT_BYTES_MAX + 512;
/// Most entries that travel together …
pub const BATCH_ENTRIES_MAX: usize = 512;
/// … and the bytes of their encodings together. A shopper's question behind a batch waits for one of these at most.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Largest recording. It travels whole in one call to the region, whose requests are sized for it.
pub const RECORDING_BYTES_MAX: usize = 256 * 1024;

/// The name of one call of a plugin: 26 characters of Crockford's base 32, the first ten of which are the time, so that
/// names sort as the calls happened. The same name is on the call's entries and on its recording.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u128);

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CALL_ID_CHARS: usize = 26;

impl CallId {
    /// When the call began, as far as its name says.
    pub fn at_ms(self) -> u64 {
        u64::try_from(self.0 >> 80).expect("128 - 80 bits fit into 64")
    }

    fn digits(self) -> [u8; CALL_ID_CHARS] {
        let mut text = [0; CALL_ID_CHARS];
        let mut rest = self.0;
        for digit in text.iter_mut().rev() {
            *digit = DIGITS[usize::try_from(rest & 31).expect("five bits")];
            rest >>= 5;
        }
        text
    }
}

/// Names calls, one after the other. Two of these never give the same name unless their nonces are equal.
#[derive(Debug)]
pub struct CallIds {
    nonce: u64,
    count: AtomicU64,
}

impl CallIds {
    /// `nonce` must be random: 40 bits of it tell this process from all others.
    pub const fn new(nonce: u64) -> Self {
        Self { nonce: nonce & ((1 << 40) - 1), count: AtomicU64::new(0) }
    }

    /// The name of a call that begins now. Wait-free.
    pub fn next(&self, now_ms: u64) -> CallId {
        // Forty bits of count per millisecond of time: no process makes 2^40 calls in one.
        let count = self.count.fetch_add(1, Ordering::Relaxed) & ((1 << 40) - 1);
        let time = u128::from(now_ms & ((1 << 48) - 1));
        CallId(time << 80 | u128::from(self.nonce) << 40 | u128::from(count))
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.digits()).expect("the digits are ASCII"))
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CallId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            kind: "call",
            text: text.chars().take(80).collect(),
            rule: "26 characters of 0-9 and A-Z without I, L, O and U, the first of which is at most 7",
        };
        if text.len() != CALL_ID_CHARS || !matches!(text.as_bytes()[0], b'0'..=b'7') {
            return Err(invalid());
        }
        text.bytes()
            .try_fold(0_u128, |number, byte| {
                let digit = DIGITS.iter().position(|&digit| digit == byte)?;
                Some(number << 5 | u128::try_from(digit).ok()?)
            })
            .map(Self)
            .ok_or_else(invalid)
    }
}

impl Serialize for CallId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CallId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> Encode<C> for CallId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0.to_be_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for CallId {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let bytes = d.bytes()?.try_into();
        bytes
            .map(|bytes| Self(u128::from_be_bytes(bytes)))
            .map_err(|_| minicbor::decode::Error::message("the name of a call must be 16 bytes").at(at))
    }
}

/// How loud a plugin's log line is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum Level {
    #[n(0)]
    Debug,
    #[n(1)]
    Info,
    #[n(2)]
    Warn,
    #[n(3)]
    Error,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Whose call it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Encode, Decode)]
pub struct Source {
    #[n(0)]
    pub plugin: PluginName,
    #[n(1)]
    pub release: u32,
    /// None for a request of an HTTP plugin.
    #[n(2)]
    #[cbor(with = "hook")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    #[n(0)]
    Ok,
    /// The plugin said no, on purpose.
    #[n(1)]
    Refused {
        #[n(0)]
        code: String,
        /// For the shopper to read.
        #[n(1)]
        message: String,
    },
    /// The name of the fault, of the broken guard, or `breaker_open`: a call that was not made at all.
    #[n(2)]
    Failed {
        #[n(0)]
        fault: String,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The plugin logged a line.
    #[n(0)]
    Log {
        #[n(0)]
        level: Level,
        #[n(1)]
        text: String,
    },
    /// A call failed; the details that a merchant needs to mend the plugin.
    #[n(1)]
    Fault {
        #[n(0)]
        fault: String,
        #[n(1)]
        detail: String,
    },
    /// A call ended, well or not.
    #[n(2)]
    Call {
        #[n(0)]
        duration_us: u64,
        #[n(1)]
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// So many entries of the site are missing here: it wrote more than its share, or they could not be carried.
    #[n(3)]
    Dropped {
        #[n(0)]
        count: u64,
    },
    /// The call was recorded; [`RecordingBlob::id`] is the entry's call.
    #[n(4)]
    Recorded {
        #[n(0)]
        bytes: u64,
    },
}

/// One line of a site's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Entry {
    #[n(0)]
    pub site: SiteId,
    #[n(1)]
    pub at_ms: u64,
    /// None when it happened at the region, which runs the plugins of a checkout too.
    #[n(2)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Known except for what a whole site lost.
    #[n(3)]
    #[serde(flatten)]
    pub source: Option<Source>,
    #[n(4)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallId>,
    #[n(5)]
    #[serde(flatten)]
    pub event: Event,
}

/// A recorded call on its way to the merchant.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RecordingBlob {
    #[n(0)]
    pub id: CallId,
    #[n(1)]
    pub site: SiteId,
    #[n(2)]
    pub source: Source,
    #[n(3)]
    pub at_ms: u64,
    /// What `souk_sandbox::record` encodes, at most [`RECORDING_BYTES_MAX`].
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// The beginning of `text`, at most `bytes_max` bytes of it.
pub fn bounded(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

impl Entry {
    /// Cuts whatever is longer than an entry may have: what comes from another machine was written by its limits.
    #[must_use]
    pub fn within_limits(mut self) -> Self {
        let cut = |text: &mut String, max| *text = bounded(std::mem::take(text), max);
        match &mut self.event {
            Event::Log { text, .. } => cut(text, TEXT_BYTES_MAX),
            Event::Fault { fault, detail } => {
                cut(fault, NAME_BYTES_MAX);
                cut(detail, TEXT_BYTES_MAX);
            }
            Event::Call { outcome: Outcome::Refused { code, message }, .. } => {
                cut(code, NAME_BYTES_MAX);
                cut(message, TEXT_BYTES_MAX);
            }
            Event::Call { outcome: Outcome::Failed { fault }, .. } => cut(fault, NAME_BYTES_MAX),
            Event::Call { outcome: Outcome::Ok, .. } | Event::Dropped { .. } | Event::Recorded { .. } => {}
        }
        self
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::to_bytes(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::from_bytes("an entry of a journal", bytes, ENTRY_BYTES_MAX)
    }
}

/// `#[cbor(with = "hook")]`: a hook travels as its number, nothing as null.
mod hook {
    use minicbor::{Decoder, Encoder};

    use super::Hook;

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        hook: &Option<Hook>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let number = hook.map(|hook| match hook {
            Hook::Catalog => 0_u8,
            Hook::Pricing => 1,
            Hook::Cart => 2,
            Hook::Checkout => 3,
        });
        e.encode(number)?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Option<Hook>, minicbor::decode::Error> {
        let at = d.position();
        Ok(Some(match d.decode::<Option<u8>>()? {
            None => return Ok(None),
            Some(0) => Hook::Catalog,
            Some(1) => Hook::Pricing,
            Some(2) => Hook::Cart,
            Some(3) => Hook::Checkout,
            Some(_) => return Err(minicbor::decode::Error::message("no such hook").at(at)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_names_sort_as_the_calls_happened_and_read_back() {
        let ids = CallIds::new(u64::MAX);
        let names: Vec<CallId> = [5, 5, 6, 1_900_000_000_000].map(|now| ids.next(now)).into();
        let texts: Vec<String> = names.iter().map(CallId::to_string).collect();
        assert!(texts.is_sorted() && names.is_sorted());
        assert!(texts.windows(2).all(|two| two[0] != two[1]));
        for (name, text) in names.iter().zip(&texts) {
            assert_eq!(text.len(), CALL_ID_CHARS);
            assert_eq!(text.parse(), Ok(*name));
        }
        assert_eq!(names[3].at_ms(), 1_900_000_000_000);
        let too_large = "8".to_owned() + &"0".repeat(25);
        for bad in ["", "01", &"U".repeat(26), &"é".repeat(13), &too_large, &texts[0].to_lowercase()] {
            assert!(bad.parse::<CallId>().is_err(), "{bad:?}");
        }
        assert_eq!("7ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse(), Ok(CallId(u128::MAX)));
    }

    #[test]
    fn an_entry_is_flat_json() {
        let entry = Entry {
            site: "shop".parse().expect("a site"),
            at_ms: 7,
            node: Some(NodeId(2)),
            source: Some(Source {
                plugin: "pricing".parse().expect("a plugin"),
                release: 3,
                hook: Some(Hook::Pricing),
            }),
            call: Some(CallIds::new(0).next(0)),
            event: Event::Call {
                duration_us: 40,
                outcome: Outcome::Refused { code: "no".to_owned(), message: "No.".to_owned() },
            },
        };
        let json = serde_json::json!({
            "site": "shop", "at_ms": 7, "node": 2, "plugin": "pricing", "release": 3, "hook": "pricing",
            "call": "00000000000000000000000000", "kind": "call", "duration_us": 40, "outcome": "refused", "code": "no", "message": "No.",
        });
        assert_eq!(serde_json::to_value(&entry).expect("JSON"), json);
        assert_eq!(serde_json::from_value::<Entry>(json).expect("an entry"), entry);
        let lost =
            Entry { source: None, node: None, call: None, event: Event::Dropped { count: 4 }, ..entry };
        let json = serde_json::json!({"site": "shop", "at_ms": 7, "kind": "dropped", "count": 4});
        assert_eq!(serde_json::to_value(&lost).expect("JSON"), json);
        assert_eq!(serde_json::from_value::<Entry>(json).expect("an entry"), lost);
    }

    #[test]
    fn the_largest_entry_is_within_its_limit_whatever_was_asked_of_it() {
        let long = || "é".repeat(2_000);
        for event in [
            Event::Log { level: Level::Error, text: long() },
            Event::Fault { fault: long(), detail: long() },
            Event::Call {
                duration_us: u64::MAX,
                outcome: Outcome::Refused { code: long(), message: long() },
            },
            Event::Call { duration_us: u64::MAX, outcome: Outcome::Failed { fault: long() } },
        ] {
            let entry = Entry {
                site: "s".repeat(63).parse().expect("a site"),
                at_ms: u64::MAX,
                node: Some(NodeId(u32::MAX)),
                source: Some(Source {
                    plugin: "p".repeat(40).parse().expect("a plugin"),
                    release: u32::MAX,
                    hook: Some(Hook::Checkout),
                }),
                call: Some(CallIds::new(u64::MAX).next(u64::MAX)),
                event,
            }
            .within_limits();
            let bytes = entry.to_bytes();
            assert!(bytes.len() <= ENTRY_BYTES_MAX, "{}", bytes.len());
            assert_eq!(Entry::from_bytes(&bytes), Ok(entry));
        }
    }
}

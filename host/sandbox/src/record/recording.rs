//! What a recording holds, and its encoding.
//!
//! **Encoding.** UTF-8 JSON of one object without insignificant space. Its first field, `souk_recording`, is the
//! [`VERSION`] of the encoding; fields are written in the order in which they stand here, an absent option and an
//! empty list are left out, and maps do not occur. So the encoding is canonical: equal recordings have equal bytes,
//! and "bit for bit" is a comparison of bytes. A reader of version 1 skips fields that it does not know; a change that
//! such a reader would misunderstand takes a new version.
//!
//! JSON, because the first reader of a recording is a merchant who wants to know why the price was 12.40, and because
//! the same text is a test's fixture.

use serde::{Deserialize, Serialize};
use souk_commerce::cart::LineKey;
use souk_commerce::id::{Country, Coupon, Digest, PluginName, SiteId, Sku};
use souk_commerce::money::{Currency, MINOR_MAX, Minor};
use souk_commerce::product::StockHint;
use souk_commerce::quote::Adjustment;
use souk_commerce::site::{Guard, Hook};

use crate::fault::Fault;
use crate::hook::{CartOp, Level, Presentation, Requested};

/// Of the encoding.
pub const VERSION: u32 = 1;
/// Largest encoded recording: a cart of about 700 lines. A larger call is recorded as being too large
/// ([`Recording::omitted_bytes`]), because every recording is carried to the region and kept there.
pub const RECORDING_BYTES_MAX: usize = 256 << 10;

/// One call of one hook of one release, as the guest saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    #[serde(rename = "souk_recording")]
    pub version: u32,
    /// Version of `souk:plugin` that the host spoke.
    pub contract: String,
    pub site: SiteId,
    pub plugin: PluginName,
    pub release: u32,
    pub component: Digest,
    pub hook: Hook,
    pub limits: Limits,
    /// The price guard of the site: not the guest's to see, but needed to say what an answer does to a price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
    pub context: Context,
    /// Bytes that the encoding would have had; then `input` and `host_calls` are empty and nothing can be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omitted_bytes: Option<u64>,
    pub input: Input,
    /// In the order in which the guest made them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_calls: Vec<HostCall>,
    pub outcome: Outcome,
    #[serde(default)]
    pub live: Live,
}

/// What the call could use. A replay has the same, except for the time: the recorded machine's is not this one's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: u64,
    pub table_elements: u64,
    pub stack_bytes: u64,
    pub host_calls: u32,
    pub log_bytes: u64,
    pub lifted_bytes: u64,
    pub deadline_us: u64,
}

/// The guest's `context`. `customer` is a keyed hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub now_ms: u64,
    pub currency: Currency,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub language: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coupons: Vec<Coupon>,
    pub seed: u64,
    /// Exactly the text that the guest got.
    pub settings: String,
}

/// What the call was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    Catalog { products: Vec<Good> },
    Pricing { lines: Vec<Line> },
    Cart { lines: Vec<Line>, change: Requested },
    Checkout { lines: Vec<Line>, total: Minor },
}

/// A line of a cart. Its position is the id by which the guest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenLine")]
pub struct Line {
    pub line: LineKey,
    pub quantity: u32,
    /// After the plugins before this one.
    pub amount: Minor,
    pub product: Good,
}

/// A line as a person may write it: what the rest of it says anyway can be left out.
#[derive(Deserialize)]
struct WrittenLine {
    #[serde(default)]
    line: Option<LineKey>,
    quantity: u32,
    #[serde(default)]
    amount: Option<Minor>,
    product: Good,
}

impl From<WrittenLine> for Line {
    fn from(WrittenLine { line, quantity, amount, product }: WrittenLine) -> Self {
        Self {
            line: line.unwrap_or_else(|| LineKey::of(product.sku.clone())),
            quantity,
            // Beyond the range of an amount, a cart has the greatest there is: as in a live call.
            amount: amount.unwrap_or_else(|| product.price.times(quantity).unwrap_or(Minor(MINOR_MAX))),
            product,
        }
    }
}

/// A product, with what the guest sees of it, and the floor that its host knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Good {
    pub sku: Sku,
    #[serde(default)]
    pub title: String,
    pub price: Minor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare_at: Option<Minor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Minor>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, String)>,
    #[serde(default)]
    pub stock: StockHint,
}

/// One question of the guest, with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostCall {
    /// The text as the host took it: one line of at most 1 KiB.
    Log { level: Level, text: String },
    LookupProduct {
        sku: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<Good>,
    },
    KvGet {
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<Value>,
    },
}

/// Bytes, readable where they are text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    Text(String),
    Hex(String),
}

/// What came out, after the host's check of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Presented(Vec<Presentation>),
    Adjusted(Vec<Adjustment>),
    Changed(Vec<CartOp>),
    Noted(Vec<Note>),
    Refused {
        code: String,
        message: String,
    },
    Failed {
        fault: String,
        #[serde(default)]
        detail: String,
    },
}

/// What a checkout plugin leaves on an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub code: String,
    pub text: String,
}

/// How the recorded run stands to the one that served the shopper.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Live {
    /// Same outcome.
    #[default]
    Same,
    /// Another outcome: the plugin's answer depends on who the shopper is, or the live call ran out of time.
    Differs,
}

/// Why bytes are no recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    #[error("{bytes} bytes are more than a recording has ({RECORDING_BYTES_MAX})")]
    TooLong { bytes: usize },
    #[error("not a recording: {0}")]
    Malformed(String),
    #[error("a recording of version {0}; this program reads version {VERSION}")]
    Version(u32),
    #[error("the input is a {input} call's, but the hook is {hook}")]
    Contradiction { hook: Hook, input: Hook },
    #[error("the call was too large to be recorded ({0} bytes)")]
    Omitted(u64),
}

impl Recording {
    /// Within [`RECORDING_BYTES_MAX`], whatever the call: one that is larger leaves out its input and host calls.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = json(self);
        if bytes.len() <= RECORDING_BYTES_MAX {
            return bytes;
        }
        let mut hollow = Self {
            omitted_bytes: Some(bytes.len() as u64),
            input: self.input.emptied(),
            host_calls: Vec::new(),
            outcome: self.outcome.emptied(),
            ..self.clone()
        };
        let bytes = json(&hollow);
        if bytes.len() <= RECORDING_BYTES_MAX {
            return bytes;
        }
        // Settings are at most 64 KiB, but quoted they may have six times as many.
        hollow.context.settings.clear();
        hollow.context.segments.clear();
        json(&hollow)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordingError> {
        /// Read first: another version's fields are nothing to complain about.
        #[derive(Deserialize)]
        struct Versioned {
            souk_recording: u32,
        }
        if bytes.len() > RECORDING_BYTES_MAX {
            return Err(RecordingError::TooLong { bytes: bytes.len() });
        }
        let malformed = |e: serde_json::Error| RecordingError::Malformed(e.to_string());
        let Versioned { souk_recording } = serde_json::from_slice(bytes).map_err(malformed)?;
        if souk_recording != VERSION {
            return Err(RecordingError::Version(souk_recording));
        }
        let recording: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        if recording.input.hook() != recording.hook {
            return Err(RecordingError::Contradiction {
                hook: recording.hook,
                input: recording.input.hook(),
            });
        }
        Ok(recording)
    }
}

fn json(recording: &Recording) -> Vec<u8> {
    serde_json::to_vec(recording).expect("these types have string keys only and no failing serialiser")
}

impl Input {
    pub fn hook(&self) -> Hook {
        match self {
            Self::Catalog { .. } => Hook::Catalog,
            Self::Pricing { .. } => Hook::Pricing,
            Self::Cart { .. } => Hook::Cart,
            Self::Checkout { .. } => Hook::Checkout,
        }
    }

    pub(super) fn emptied(&self) -> Self {
        match self {
            Self::Catalog { .. } => Self::Catalog { products: Vec::new() },
            Self::Pricing { .. } => Self::Pricing { lines: Vec::new() },
            Self::Cart { change, .. } => Self::Cart { lines: Vec::new(), change: change.clone() },
            Self::Checkout { total, .. } => Self::Checkout { lines: Vec::new(), total: *total },
        }
    }
}

impl Outcome {
    pub(crate) fn of_fault(fault: &Fault) -> Self {
        match fault {
            Fault::Refused { code, message } => {
                Self::Refused { code: code.clone(), message: message.clone() }
            }
            fault => Self::Failed { fault: fault.name().to_owned(), detail: fault.to_string() },
        }
    }

    /// One word for it: `adjusted`, `refused`, or the name of the fault.
    pub fn name(&self) -> &str {
        match self {
            Self::Presented(_) => "presented",
            Self::Adjusted(_) => "adjusted",
            Self::Changed(_) => "changed",
            Self::Noted(_) => "noted",
            Self::Refused { .. } => "refused",
            Self::Failed { fault, .. } => fault,
        }
    }

    pub(super) fn emptied(&self) -> Self {
        match self {
            Self::Presented(_) => Self::Presented(Vec::new()),
            Self::Adjusted(_) => Self::Adjusted(Vec::new()),
            Self::Changed(_) => Self::Changed(Vec::new()),
            Self::Noted(_) => Self::Noted(Vec::new()),
            bounded @ (Self::Refused { .. } | Self::Failed { .. }) => bounded.clone(),
        }
    }
}

impl Value {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex(hex::encode(bytes)),
        }
    }

    /// None where a hand-written fixture says something that is not hexadecimal.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.as_bytes().to_vec()),
            Self::Hex(text) => hex::decode(text).ok(),
        }
    }
}

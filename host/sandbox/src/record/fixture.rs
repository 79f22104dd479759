//! A test of a plugin, as a file that people read and write. `souk plugin replay --save` makes one of a recording,
//! `souk plugin test` runs it.
//!
//! ```json
//! {
//!   "souk_fixture": 1,
//!   "name": "ten per cent for trade customers",
//!   "context": { "currency": "GBP", "segments": ["trade"], "settings": { "trade_bp": 1000 } },
//!   "input": { "pricing": { "lines": [
//!     { "quantity": 2, "product": { "sku": "MUG", "title": "Mug", "price": 500 } }
//!   ] } },
//!   "host_calls": [ { "kv_get": { "key": "banner", "answer": { "text": "sale" } } } ],
//!   "expect": { "adjusted": [
//!     { "target": "cart", "effect": { "percent": -1000 }, "code": "trade", "label": "Trade price" }
//!   ] },
//!   "instructions_max": 50000
//! }
//! ```
//!
//! The words are those of a [`Recording`]. What is left out has the value that says least; a line without an `amount` costs its
//! price times its quantity. `host_calls` is what the site answers, in any order; what is not there is answered
//! with "none". A failure that is expected needs no `detail`: `{"failed": {"fault": "trap"}}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use souk_commerce::id::{Country, Coupon, Digest, PluginName, SiteId};
use souk_commerce::money::Currency;
use souk_commerce::site::Guard;

use super::recording::{Context, HostCall, Input, Limits, Live, Outcome, Recording, VERSION};
use crate::admit::CONTRACT;
use crate::hook::Allowance;
use crate::limits::HookLimits;

/// Of the encoding.
pub const FIXTURE_VERSION: u32 = 1;
/// Largest file that is read as a fixture: a recording, written with indentation.
pub const FIXTURE_BYTES_MAX: usize = 2 << 20;

/// One call and what must come out of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    #[serde(rename = "souk_fixture")]
    pub version: u32,
    /// What it shows, in a sentence.
    #[serde(default)]
    pub name: String,
    pub context: FixtureContext,
    pub input: Input,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_calls: Vec<HostCall>,
    pub expect: Outcome,
    /// A ceiling for what the call costs, instantiation included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions_max: Option<u64>,
    /// Under which a replay with another component computes its prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
}

/// [`Context`] with everything optional but the currency, and with settings that a person can read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixtureContext {
    pub currency: Currency,
    #[serde(default)]
    pub now_ms: u64,
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
    #[serde(default)]
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub settings: Value,
    /// In place of `settings`, where only these very bytes will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings_text: Option<String>,
}

/// Why bytes are no fixture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FixtureError {
    #[error("{bytes} bytes are more than a fixture has ({FIXTURE_BYTES_MAX})")]
    TooLong { bytes: usize },
    #[error("not a fixture: {0}")]
    Malformed(String),
    #[error("a fixture of version {0}; this program reads version {FIXTURE_VERSION}")]
    Version(u32),
}

impl Fixture {
    pub fn of(recording: &Recording, name: String) -> Self {
        let Context {
            now_ms,
            currency,
            country,
            region,
            language,
            segments,
            customer,
            coupons,
            seed,
            settings,
        } = recording.context.clone();
        // Only if it comes back as the same text: the guest reads text.
        let value = serde_json::from_str::<Value>(&settings).ok();
        let readable = value.map(|value| (value.to_string(), value)).filter(|(text, _)| *text == settings);
        let (settings, settings_text) = match readable {
            Some((_, value)) => (value, None),
            None => (Value::Null, Some(settings)),
        };
        Self {
            version: FIXTURE_VERSION,
            name,
            context: FixtureContext {
                currency,
                now_ms,
                country,
                region,
                language,
                segments,
                customer,
                coupons,
                seed,
                settings,
                settings_text,
            },
            input: recording.input.clone(),
            host_calls: recording.host_calls.clone(),
            expect: recording.outcome.clone(),
            instructions_max: None,
            guard: recording.guard,
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FixtureError> {
        if bytes.len() > FIXTURE_BYTES_MAX {
            return Err(FixtureError::TooLong { bytes: bytes.len() });
        }
        let fixture: Self =
            serde_json::from_slice(bytes).map_err(|e| FixtureError::Malformed(e.to_string()))?;
        if fixture.version != FIXTURE_VERSION {
            return Err(FixtureError::Version(fixture.version));
        }
        Ok(fixture)
    }

    /// For a person: indented, with a line break at its end.
    pub fn encode(&self) -> String {
        let mut text = serde_json::to_string_pretty(self)
            .expect("these types have string keys only and no failing serialiser");
        text.push('\n');
        text
    }

    /// The recording that this would be one of, for [`super::replay()`].
    pub fn recording(&self, site: SiteId, plugin: PluginName, component: Digest) -> Recording {
        let limits = HookLimits::default();
        let context = &self.context;
        Recording {
            version: VERSION,
            contract: CONTRACT.to_owned(),
            site,
            plugin,
            release: 0,
            component,
            hook: self.input.hook(),
            limits: Limits::of(&limits, Allowance::from(&limits)),
            guard: self.guard,
            context: Context {
                now_ms: context.now_ms,
                currency: context.currency,
                country: context.country.clone(),
                region: context.region.clone(),
                language: context.language.clone(),
                segments: context.segments.clone(),
                customer: context.customer.clone(),
                coupons: context.coupons.clone(),
                seed: context.seed,
                settings: context.settings_text.clone().unwrap_or_else(|| context.settings.to_string()),
            },
            omitted_bytes: None,
            input: self.input.clone(),
            host_calls: self.host_calls.clone(),
            outcome: self.expect.clone(),
            live: Live::Same,
        }
    }

    /// Whether this is what the fixture expects. The detail of a failure counts only where the fixture says one.
    pub fn meets(&self, outcome: &Outcome) -> bool {
        match (&self.expect, outcome) {
            (Outcome::Failed { fault, detail }, Outcome::Failed { fault: came, .. }) if detail.is_empty() => {
                fault == came
            }
            (expected, outcome) => expected == outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one in this module's documentation.
    const EXAMPLE: &str = r#"{
        "souk_fixture": 1,
        "name": "ten per cent for trade customers",
        "context": { "currency": "GBP", "segments": ["trade"], "settings": { "trade_bp": 1000 } },
        "input": { "pricing": { "lines": [
            { "quantity": 2, "product": { "sku": "MUG", "title": "Mug", "price": 500 } }
        ] } },
        "host_calls": [ { "kv_get": { "key": "banner", "answer": { "text": "sale" } } } ],
        "expect": { "adjusted": [
            { "target": "cart", "effect": { "percent": -1000 }, "code": "trade", "label": "Trade price" }
        ] },
        "instructions_max": 50000
    }"#;

    #[test]
    fn a_fixture_becomes_a_recording_and_comes_back() {
        let fixture = Fixture::decode(EXAMPLE.as_bytes()).expect("a fixture");
        let name = |text: &str| text.parse().expect("a name");
        let recording = fixture.recording("shop".parse().expect("a site"), name("trade"), Digest::of(b"x"));
        assert_eq!(recording.context.settings, r#"{"trade_bp":1000}"#);
        let Input::Pricing { lines } = &recording.input else { panic!("a pricing call") };
        assert_eq!((lines[0].line.to_string(), lines[0].amount.0), ("MUG".to_owned(), 1_000));
        let again = Fixture::of(&recording, fixture.name.clone());
        assert_eq!(Fixture { instructions_max: fixture.instructions_max, ..again.clone() }, fixture);
        assert_eq!(Fixture::decode(again.encode().as_bytes()), Ok(again));
    }

    #[test]
    fn settings_that_are_not_plain_json_keep_their_bytes() {
        let fixture = Fixture::decode(EXAMPLE.as_bytes()).expect("a fixture");
        let mut recording = fixture.recording(
            "shop".parse().expect("a site"),
            "trade".parse().expect("a plugin"),
            Digest::of(b"x"),
        );
        for text in ["", "{ \"b\":1, \"a\":2}", "null"] {
            recording.context.settings = text.to_owned();
            let fixture = Fixture::of(&recording, String::new());
            let again = fixture.recording(recording.site.clone(), recording.plugin.clone(), Digest::of(b"x"));
            assert_eq!(again.context.settings, text);
        }
    }

    #[test]
    fn an_expected_failure_needs_no_detail() {
        let mut fixture = Fixture::decode(EXAMPLE.as_bytes()).expect("a fixture");
        let failed = |detail: &str| Outcome::Failed { fault: "trap".to_owned(), detail: detail.to_owned() };
        fixture.expect = serde_json::from_str(r#"{"failed":{"fault":"trap"}}"#).expect("an outcome");
        assert!(fixture.meets(&failed("trapped: unreachable")));
        fixture.expect = failed("trapped: here");
        assert!(!fixture.meets(&failed("trapped: there")) && fixture.meets(&failed("trapped: here")));
    }
}

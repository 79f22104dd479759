//! What the cache would do with a request, and why, without doing it.
//!
//! Owns no decision: it asks the functions that [`Cache::look_up`] asks, in their order, and stops where a fetch would
//! start. A property test holds the two together. It refuses to know where its answer is read; the text of it is
//! [`Explanation`]'s `Display`.

use std::fmt;
use std::sync::Arc;

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    DATE, ETAG, EXPIRES, HeaderMap, HeaderName, LAST_MODIFIED, SET_COOKIE, VARY,
};
use http::{Method, StatusCode};

use super::flight::Boarding;
use super::stock::{Found, Looking};
use super::{Cache, Lookup, by_request, permit};
use crate::asked::Asked;
use crate::date;
use crate::disk::Silent;
use crate::entry::{Entry, Resource, StoredBody};
use crate::freshness::Use;
use crate::freshness::arithmetic::Arithmetic;
use crate::hit::Hit;
use crate::key::Key;
use crate::part::Span;
use crate::policy::Policy;
use crate::reason::PassReason;
use crate::status::{CACHE_STATUS, Forwarded, How};
use crate::vary::{VARIANTS_MAX, Variant};

/// The stored fields that caching depends on. The others are the page's own business, and some are secrets.
const TELLING: [HeaderName; 12] = [
    CACHE_CONTROL,
    HeaderName::from_static("cdn-cache-control"),
    EXPIRES,
    DATE,
    ETAG,
    LAST_MODIFIED,
    VARY,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_RANGE,
];

/// What the cache would do with a request, and all that it would decide it by.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub key: Key,
    pub method: Method,
    pub policy: Policy,
    pub outcome: Outcome,
    /// The head of the answer, where the cache has one: status and fields.
    pub answer: Option<(StatusCode, HeaderMap)>,
    /// What the variants of this key are told apart by, with this request's values as they are compared.
    pub variant: Vec<(HeaderName, Option<String>)>,
    /// Variants stored for this key.
    pub variants: usize,
    /// What is stored for this variant.
    pub stored: Option<StoredFacts>,
    /// Where what is stored for this key stands.
    pub tier: Tier,
    /// Fetches under way for this key, for all variants.
    pub fetches: usize,
    /// Why the last answer for this key could not be stored, and for how many more milliseconds that is believed. None left:
    /// the next answer tells.
    pub remembered: Option<(PassReason, u64)>,
    /// Nobody waits for that next answer.
    pub doubted: bool,
}

/// Where something is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Nowhere,
    Memory,
    /// On the disk only: the request that comes has it read into memory, and is answered from there.
    Disk,
    /// The disk has something for this key and does not say what. A request waits for it as long as this did, or not at all,
    /// and goes on as if it had nothing.
    Silent,
}

impl Tier {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "nowhere",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Silent => "silent_disk",
        }
    }
}

/// What would happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Answered from what is stored; nobody asks the upstream.
    Hit,
    /// Answered at once with what is stale. `refreshes`: this request would start the fetch that refreshes it.
    Stale { refreshes: bool },
    /// Answered from a response that is still arriving.
    Joins(Forwarded),
    /// Waits for the head of a response that another request is fetching.
    Waits(Forwarded),
    /// Asks the upstream with these fields beside the client's own, and stores what comes if it may.
    Fetches { why: Forwarded, with: HeaderMap },
    /// Asks the upstream, and stores nothing.
    Passes(PassReason),
    /// 504: the client wants only what is stored.
    OnlyIfCached,
}

impl Outcome {
    /// The stable name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale { .. } => "stale",
            Self::Joins(_) => "joins",
            Self::Waits(_) => "waits",
            Self::Fetches { .. } => "fetches",
            Self::Passes(_) => "passes",
            Self::OnlyIfCached => "only_if_cached",
        }
    }
}

/// A stored response, as far as it matters here.
#[derive(Clone, Debug)]
pub struct StoredFacts {
    pub status: StatusCode,
    /// The fields that caching depends on.
    pub fields: Vec<(HeaderName, String)>,
    /// Cookies that it would be replayed with: how many, for their values are secrets.
    pub cookies: usize,
    /// Bytes of the body, where they are known already.
    pub length: Option<u64>,
    /// All of the body is here.
    pub whole: bool,
    /// The encodings made of it, with their bytes.
    pub encodings: Vec<(&'static str, u64)>,
    /// Where it stands in the whole, if it is a part only.
    pub span: Option<Span>,
    pub arithmetic: Arithmetic,
}

impl Cache {
    /// What [`Cache::look_up`] would do with a request now, as far as the memory knows. Changes nothing, counts nothing, and
    /// waits for nobody.
    pub fn explain(&self, now_ms: u64, asked: &Asked) -> Explanation {
        let found = self.find(now_ms, asked, Looking::On);
        let tier = if found.resource.is_some() { Tier::Memory } else { Tier::Nowhere };
        self.told(now_ms, asked, found, tier)
    }

    /// The same with what stands on the disk only, which is looked at there and stays there. Waits for the disk as long as a
    /// request would.
    pub async fn explain_with_disk(&self, now_ms: u64, asked: &Asked) -> Explanation {
        let in_memory = self.explain(now_ms, asked);
        if in_memory.tier != Tier::Nowhere || by_request(asked).is_some() {
            return in_memory;
        }
        let Some(look) = self.0.disk.as_ref().and_then(|disk| disk.look(&asked.key, now_ms)) else {
            return in_memory;
        };
        match look.seen().await {
            Ok(Some(resource)) => {
                let selected = self.sifted(Some(Arc::new(resource)), asked, Looking::On);
                let tier = if selected.resource.is_some() { Tier::Disk } else { Tier::Nowhere };
                self.told(now_ms, asked, Self::found(now_ms, asked, selected), tier)
            }
            Ok(None) => in_memory,
            Err(Silent) => Explanation { tier: Tier::Silent, ..in_memory },
        }
    }

    fn told(&self, now_ms: u64, asked: &Asked, found: Found, tier: Tier) -> Explanation {
        let (outcome, hit) = match by_request(asked) {
            Some(lookup) => outcome_of(lookup),
            None => self.foresee(now_ms, asked, &found),
        };
        let answer = hit.map(|hit| {
            let (head, _) = hit.respond(now_ms, asked).into_parts();
            (head.status, head.headers)
        });
        let names = found.resource.as_deref().map(Resource::names).unwrap_or_default();
        let variant = Variant::named(names, &asked.headers, asked.policy.negotiate_languages);
        let stored = found.entry.as_ref().or(found.part.as_ref());
        let doubted = found.is_doubted(self, &asked.key, now_ms);
        Explanation {
            key: asked.key.clone(),
            method: asked.method.clone(),
            policy: asked.policy,
            outcome,
            answer,
            variant: variant
                .fields()
                .map(|(name, value)| (name.clone(), value.map(ToOwned::to_owned)))
                .collect(),
            variants: found.resource.as_deref().map_or(0, Resource::len),
            stored: stored.map(|entry| StoredFacts::of(entry, now_ms, asked)),
            tier,
            fetches: self.0.flights.lock().get(&asked.key).map_or(0, Vec::len),
            remembered: self
                .0
                .recollect(&asked.key, now_ms)
                .map(|remembered| (remembered.reason, remembered.until_ms.saturating_sub(now_ms))),
            doubted,
        }
    }

    /// [`Cache::look_up`] up to where something would change.
    fn foresee(&self, now_ms: u64, asked: &Asked, found: &Found) -> (Outcome, Option<Hit>) {
        if let Some(lookup) = self.without_flight(now_ms, asked, found) {
            return outcome_of(lookup);
        }
        let boarding = {
            let flights = self.0.flights.lock();
            let list = flights.get(&asked.key).map_or(&[][..], Vec::as_slice);
            self.of_use(list, asked).map(|flight| found.aboard(&flight, self, now_ms, asked))
        };
        match boarding {
            Some(Boarding::Send(hit)) => outcome_of(Lookup::Hit(hit)),
            Some(Boarding::Join(entry)) => outcome_of(Lookup::joined(entry, found.why)),
            Some(Boarding::Wait(_)) => (Outcome::Waits(found.why), None),
            Some(Boarding::Pass) => outcome_of(Lookup::Pass(PassReason::Remembered)),
            Some(Boarding::Alone) | None => match found.stale_hit() {
                Some(hit) => (Outcome::Stale { refreshes: true }, Some(hit)),
                None => {
                    let with = permit::conditions(found.entry.as_deref(), found.part.as_ref(), asked);
                    (Outcome::Fetches { why: found.why, with }, None)
                }
            },
        }
    }
}

/// What an answer of the look-up is called that changed nothing.
fn outcome_of(lookup: Lookup) -> (Outcome, Option<Hit>) {
    match lookup {
        Lookup::Hit(hit) => {
            let outcome = match hit.how() {
                How::WhileRevalidating => Outcome::Stale { refreshes: false },
                How::Joined(why) => Outcome::Joins(why),
                _ => Outcome::Hit,
            };
            (outcome, Some(hit))
        }
        Lookup::Stale(hit, _) => (Outcome::Stale { refreshes: true }, Some(hit)),
        Lookup::Miss(permit) => (Outcome::Fetches { why: permit.why(), with: HeaderMap::new() }, None),
        Lookup::Pass(reason) => (Outcome::Passes(reason), None),
        Lookup::Failed(_, hit) => (Outcome::Hit, hit),
        Lookup::OnlyIfCached => (Outcome::OnlyIfCached, None),
    }
}

impl Explanation {
    /// The same of a request that whoever owns the cache never asks it for, and why.
    #[must_use]
    pub fn passing(self, reason: PassReason) -> Self {
        Self { outcome: Outcome::Passes(reason), answer: None, ..self }
    }
}

impl StoredFacts {
    fn of(entry: &Arc<Entry>, now_ms: u64, asked: &Asked) -> Self {
        let fields = TELLING.into_iter().flat_map(|name| {
            let lines = entry.headers.get_all(&name).iter();
            lines.map(move |value| (name.clone(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        });
        Self {
            status: entry.status,
            fields: fields.collect(),
            cookies: entry.headers.get_all(SET_COOKIE).iter().count(),
            length: entry.length(),
            whole: matches!(entry.body, StoredBody::Whole(_)),
            encodings: encodings_of(entry),
            span: entry.span,
            arithmetic: entry.freshness.arithmetic(&entry.headers, now_ms, asked.obeyed()),
        }
    }
}

fn encodings_of(entry: &Entry) -> Vec<(&'static str, u64)> {
    let StoredBody::Whole(chunks) = &entry.body else { return Vec::new() };
    let made = chunks.encodings.iter().flat_map(|encodings| encodings.made());
    made.map(|(coding, encoded)| (coding.name(), encoded.total())).collect()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "outcome", &self.outcome.to_string())?;
        if let Some((status, headers)) = &self.answer {
            let age = headers.get(AGE).and_then(|age| age.to_str().ok());
            let age = age.map(|age| format!(", Age {age}")).unwrap_or_default();
            let coding = headers.get(CONTENT_ENCODING).and_then(|coding| coding.to_str().ok());
            let coding = coding.map(|coding| format!(", in {coding}")).unwrap_or_default();
            line(f, "answer", &format!("{}{age}{coding}", status.as_u16()))?;
            for said in headers.get_all(CACHE_STATUS) {
                line(f, "", &format!("cache-status: {}", String::from_utf8_lossy(said.as_bytes())))?;
            }
        }
        let key = &self.key;
        let (site, scheme) = (key.site(), key.scheme().as_str());
        line(f, "key", &format!("site {site}, {scheme}, {}, {}", key.authority(), key.target()))?;
        let switches: Vec<_> = self.policy.switches().collect();
        let switches = if switches.is_empty() { "none".to_owned() } else { switches.join(", ") };
        line(f, "switches", &switches)?;
        line(f, "variants", &format!("{} of at most {VARIANTS_MAX} stored", self.variants))?;
        for (name, value) in &self.variant {
            let value = value.as_deref().map_or_else(|| "not sent".to_owned(), |value| format!("{value:?}"));
            line(f, "", &format!("told apart by {name}: {value}"))?;
        }
        if self.fetches > 0 {
            line(f, "fetches", &format!("{} under way for this key", self.fetches))?;
        }
        if let Some((reason, left_ms)) = self.remembered {
            let told = format!("{}: {}", reason.name(), reason.sentence());
            let left = match left_ms.div_ceil(1_000) {
                0 if self.doubted => "until the next answer, for which nobody waits".to_owned(),
                0 => "until the next answer".to_owned(),
                seconds => format!("for {seconds} s more"),
            };
            line(f, "remembered", &format!("{told}; {left}"))?;
        }
        match self.tier {
            Tier::Nowhere => {}
            Tier::Memory => line(f, "tier", "memory")?,
            Tier::Disk => {
                line(
                    f,
                    "tier",
                    "disk: the request that comes has it read into memory, and is answered from there",
                )?;
            }
            Tier::Silent => {
                let silent = "the disk has something for this key and does not say what: it is not waited for any longer";
                line(f, "tier", silent)?;
            }
        }
        match &self.stored {
            None => line(f, "stored", "nothing for this variant"),
            Some(stored) => write!(f, "{stored}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit => f.write_str("hit: what is stored is sent, and the upstream is not asked"),
            Self::Stale { refreshes: true } => {
                f.write_str("stale: what is stored is sent at once, and one fetch refreshes it behind it")
            }
            Self::Stale { refreshes: false } => {
                f.write_str("stale: what is stored is sent at once; refreshing it is another request's work")
            }
            Self::Joins(_) => {
                f.write_str("joins: the response is arriving for another request, and is read along")
            }
            Self::Waits(_) => {
                f.write_str("waits: for the head of what another request is fetching, and no longer")
            }
            Self::Fetches { why, with } => {
                write!(f, "fetches ({}): {}", why.as_str(), why.sentence())?;
                for (name, value) in with {
                    write!(f, "; with {name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
                }
                Ok(())
            }
            Self::Passes(reason) => write!(f, "passes ({}): {}", reason.name(), reason.sentence()),
            Self::OnlyIfCached => {
                f.write_str("504: the client wants only what is stored, and nothing that may be used is")
            }
        }
    }
}

impl fmt::Display for StoredFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length =
            self.length.map_or_else(|| "of unknown length".to_owned(), |length| format!("{length} bytes"));
        let state = match self.span {
            Some(Span { first, end, complete }) => format!("the part {first}-{} of {complete}", end - 1),
            None if self.whole => "whole".to_owned(),
            None => "still arriving".to_owned(),
        };
        line(f, "stored", &format!("{}, {length}, {state}", self.status.as_u16()))?;
        for (name, value) in &self.fields {
            line(f, "", &format!("{name}: {value}"))?;
        }
        for (coding, bytes) in &self.encodings {
            line(f, "", &format!("encoded in {coding}: {bytes} bytes"))?;
        }
        if self.cookies > 0 {
            line(f, "", &format!("set-cookie: {} of them, which every client gets", self.cookies))?;
        }
        write!(f, "{}", self.arithmetic)
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reckoned, .. } = self;
        let mut sum = |name: &str, value: String| line(f, "", &format!("{name:<24} {value}"));
        sum("response_time", date::format(self.response_time_ms))?;
        let dated = self.date_value_s.map(|seconds| date::format(seconds.saturating_mul(1_000)));
        sum("date_value", dated.unwrap_or_else(|| "none that can be read".to_owned()))?;
        let apparent = self.apparent_age_s;
        sum("apparent_age", format!("{apparent} s = response_time - date_value, at least 0"))?;
        sum("age_value", format!("{} s, as Age came", reckoned.age_value_s))?;
        sum("response_delay", format!("{} s", reckoned.response_delay_s))?;
        sum(
            "corrected_initial_age",
            format!(
                "{} s = the greater of apparent_age and age_value + response_delay",
                self.corrected_initial_age_s
            ),
        )?;
        sum("resident_time", format!("{} s", self.resident_time_s))?;
        sum("current_age", format!("{} s = corrected_initial_age + resident_time", self.current_age_s))?;
        let targeted = if reckoned.targeted { ", in CDN-Cache-Control (RFC 9213)" } else { "" };
        sum(
            "freshness_lifetime",
            format!("{} s from {}{targeted}", self.lifetime_s, reckoned.lifetime.rule()),
        )?;
        sum("ttl", format!("{} s = freshness_lifetime - current_age", self.ttl_s))?;
        let windows =
            [("stale-while-revalidate", self.while_revalidate_s), ("stale-if-error", self.if_error_s)];
        for (name, seconds) in windows.into_iter().filter(|(_, seconds)| *seconds > 0) {
            let until = i64::from(self.lifetime_s) + i64::from(seconds);
            let left = until - i64::from(self.current_age_s);
            sum(name, format!("{seconds} s beyond its lifetime: {left} s from now (RFC 5861)"))?;
        }
        if self.always_ask {
            sum("no-cache", "each use asks the upstream".to_owned())?;
        }
        if self.never_stale {
            sum("never stale", "by must-revalidate, proxy-revalidate or no-cache".to_owned())?;
        }
        let usable = match self.usable {
            Use::Fresh => "without asking",
            Use::WhileRevalidating => "while it is refreshed",
            Use::Ask => "only after asking",
        };
        let on_error = if self.usable_on_error { "; and if the upstream fails" } else { "" };
        line(f, "usable", &format!("{usable}{on_error}"))
    }
}

/// One line of an explanation, under a name or under the one before.
fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    writeln!(f, "{name:<11} {text}")
}

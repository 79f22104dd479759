//! How long a stored response may be used: RFC 9111 section 4.2, computed once when it is stored.
//!
//! Owns age and lifetime arithmetic. Refuses to know why a response may be stored at all (see [`crate::admit`]).
//! [`arithmetic`] says the same sums aloud.

pub mod arithmetic;

use http::HeaderMap;
use http::header::{AGE, DATE, EXPIRES, LAST_MODIFIED};

use self::arithmetic::{LifetimeFrom, Reckoned};
use crate::date;
use crate::directives::{RequestDirectives, ResponseDirectives, delta_seconds};

/// RFC 9111 section 4.2.2 suggests a tenth of the time since the last change.
const HEURISTIC_DIVISOR: u64 = 10;
/// A guess never lasts longer than a day.
const HEURISTIC_S_MAX: u64 = 24 * 60 * 60;

/// Everything about time that a hit needs, in 32 bytes, and in 12 more what it was reckoned from. Written to the disk as it is: by the wall clock, so that what
/// is read after a restart has aged meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Freshness {
    #[n(0)]
    received_ms: u64,
    #[n(1)]
    initial_age_s: u32,
    #[n(2)]
    lifetime_s: u32,
    #[n(3)]
    while_revalidate_s: u32,
    #[n(4)]
    if_error_s: u32,
    #[n(5)]
    always_ask: bool,
    #[n(6)]
    never_stale: bool,
    #[n(8)]
    #[cbor(default)]
    reckoned: Reckoned,
    /// It asks each time by what its upstream said, and not because it was purged softly in its first second.
    #[n(7)]
    no_lifetime: bool,
}

/// How a stored response may be used at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Fresh: no question to the upstream.
    Fresh,
    /// Stale, but it may be sent while another request refreshes it.
    WhileRevalidating,
    /// The upstream must be asked first.
    Ask,
}

/// When a request left and when the head of its response came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchanged {
    pub asked_ms: u64,
    pub answered_ms: u64,
}

impl Freshness {
    /// The record of a response with these headers. None where it states no lifetime and `heuristic` gives none.
    pub fn of(
        headers: &HeaderMap,
        said: &ResponseDirectives,
        heuristic: bool,
        when: Exchanged,
    ) -> Option<Self> {
        let answered_s = when.answered_ms / 1_000;
        let date_s = date_value(headers);
        let apparent_s = apparent_age(date_s, answered_s);
        let delay_s = when.answered_ms.saturating_sub(when.asked_ms) / 1_000;
        let age_value_s = age_value(headers);
        let corrected_s = u64::from(age_value_s).saturating_add(delay_s);

        let (lifetime_s, from) = lifetime(headers, said, date_s.unwrap_or(answered_s), heuristic)?;
        let forbidden = said.must_revalidate || said.proxy_revalidate;
        Some(Self {
            received_ms: when.answered_ms,
            initial_age_s: saturate(apparent_s.max(corrected_s)),
            lifetime_s,
            while_revalidate_s: said.stale_while_revalidate_s.unwrap_or(0),
            if_error_s: said.stale_if_error_s.unwrap_or(0),
            always_ask: said.no_cache,
            no_lifetime: lifetime_s == 0,
            // `s-maxage` alone would forbid stale use too (section 5.2.2.10), but an upstream that writes
            // `stale-while-revalidate` beside it means what it writes.
            never_stale: forbidden || said.no_cache,
            reckoned: Reckoned {
                age_value_s,
                response_delay_s: saturate(delay_s),
                lifetime: from,
                targeted: said.targeted,
            },
        })
    }

    /// The record of a response that is sent once and not kept.
    pub(crate) fn stale_at_once(said: &ResponseDirectives, when: Exchanged) -> Self {
        Self {
            received_ms: when.answered_ms,
            initial_age_s: 0,
            lifetime_s: 0,
            while_revalidate_s: 0,
            if_error_s: said.stale_if_error_s.unwrap_or(0),
            always_ask: true,
            no_lifetime: true,
            never_stale: said.must_revalidate || said.proxy_revalidate || said.no_cache,
            reckoned: Reckoned::default(),
        }
    }

    /// The same, stale from `at_ms` on.
    #[must_use]
    pub(crate) fn softened(self, at_ms: u64) -> Self {
        Self { lifetime_s: self.lifetime_s.min(self.age_s(at_ms)), ..self }
    }

    /// When the head of the response arrived.
    pub fn received_ms(&self) -> u64 {
        self.received_ms
    }

    /// Milliseconds since the upstream made the response. It never goes down while `now_ms` goes up.
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        (u64::from(self.initial_age_s) * 1_000).saturating_add(now_ms.saturating_sub(self.received_ms))
    }

    /// The value of an `Age` field.
    pub fn age_s(&self, now_ms: u64) -> u32 {
        saturate(self.age_ms(now_ms) / 1_000)
    }

    /// Seconds of freshness left: what `Cache-Status` calls `ttl`, negative when stale.
    pub fn ttl_s(&self, now_ms: u64) -> i64 {
        i64::from(self.lifetime_s) - i64::from(self.age_s(now_ms))
    }

    pub fn is_fresh(&self, now_ms: u64) -> bool {
        !self.always_ask && self.age_ms(now_ms) < u64::from(self.lifetime_s) * 1_000
    }

    /// Seconds that it is fresh for from the moment when it arrived; none where each use needs the upstream.
    pub(crate) fn fresh_for_s(&self) -> u32 {
        if self.always_ask { 0 } else { self.lifetime_s.saturating_sub(self.initial_age_s) }
    }

    /// True if each use needs the upstream: such a response is never shared with a request that waits.
    pub fn asks_each_time(&self) -> bool {
        self.always_ask || self.no_lifetime
    }

    /// True if it can be of use only with a validator to ask with.
    pub fn needs_validator(&self) -> bool {
        self.asks_each_time() && (self.never_stale || (self.while_revalidate_s == 0 && self.if_error_s == 0))
    }

    /// How the response may be used at `now_ms`, for a client whose directives (if they are obeyed) are `asked`.
    pub fn usable(&self, now_ms: u64, asked: Option<&RequestDirectives>) -> Use {
        let stale_ms = self.stale_ms(now_ms);
        if let Some(asked) = asked {
            let too_old = asked.max_age_s.is_some_and(|max| self.age_ms(now_ms) >= u64::from(max) * 1_000);
            let too_soon = asked.min_fresh_s.is_some_and(|min| self.ttl_s(now_ms) < i64::from(min));
            if asked.no_cache || too_old || too_soon {
                return Use::Ask;
            }
            let content = asked.max_stale_s.is_some_and(|max| stale_ms <= u64::from(max) * 1_000);
            if content && !self.never_stale {
                return Use::Fresh;
            }
        }
        if self.is_fresh(now_ms) {
            Use::Fresh
        } else if !self.never_stale && stale_ms < u64::from(self.while_revalidate_s) * 1_000 {
            Use::WhileRevalidating
        } else {
            Use::Ask
        }
    }

    /// Whether it may be sent when the upstream fails (RFC 5861 section 4).
    pub fn usable_on_error(&self, now_ms: u64) -> bool {
        !self.never_stale && self.stale_ms(now_ms) <= u64::from(self.if_error_s) * 1_000
    }

    fn stale_ms(&self, now_ms: u64) -> u64 {
        self.age_ms(now_ms).saturating_sub(u64::from(self.lifetime_s) * 1_000)
    }
}

fn saturate(seconds: u64) -> u32 {
    // RFC 9111 section 1.2.2 lets a cache count to 2^31 - 1.
    u32::try_from(seconds.min(i32::MAX as u64)).expect("2^31 - 1 fits 32 bits")
}

fn date_value(headers: &HeaderMap) -> Option<u64> {
    headers.get(DATE).and_then(|value| date::parse(value.as_bytes()))
}

fn apparent_age(date_s: Option<u64>, answered_s: u64) -> u64 {
    date_s.map_or(0, |date_s| answered_s.saturating_sub(date_s))
}

/// The first member of the first `Age` line; anything but digits is ignored.
fn age_value(headers: &HeaderMap) -> u32 {
    headers
        .get(AGE)
        .and_then(|value| value.as_bytes().split(|byte| *byte == b',').next())
        .and_then(|member| delta_seconds(member.trim_ascii()))
        .unwrap_or(0)
}

/// Whether a response states its lifetime itself.
pub(crate) fn is_explicit(headers: &HeaderMap, said: &ResponseDirectives) -> bool {
    said.s_maxage_s.is_some() || said.max_age_s.is_some() || (!said.targeted && headers.contains_key(EXPIRES))
}

/// How long a response is fresh, and by which word of it.
fn lifetime(
    headers: &HeaderMap,
    said: &ResponseDirectives,
    date_s: u64,
    heuristic: bool,
) -> Option<(u32, LifetimeFrom)> {
    if let Some(seconds) = said.s_maxage_s {
        return Some((seconds, LifetimeFrom::SMaxAge));
    }
    if let Some(seconds) = said.max_age_s {
        return Some((seconds, LifetimeFrom::MaxAge));
    }
    if !said.targeted && headers.contains_key(EXPIRES) {
        let mut lines = headers.get_all(EXPIRES).iter();
        let expires_s = match (lines.next(), lines.next()) {
            (Some(only), None) => date::parse(only.as_bytes()),
            // Two dates are no date.
            _ => None,
        };
        return Some(match expires_s {
            Some(expires_s) => (saturate(expires_s.saturating_sub(date_s)), LifetimeFrom::Expires),
            None => (0, LifetimeFrom::UnreadableExpires),
        });
    }
    if said.no_cache {
        return Some((0, LifetimeFrom::NoCache));
    }
    if !heuristic {
        return None;
    }
    let changed_s = headers.get(LAST_MODIFIED).and_then(|value| date::parse(value.as_bytes()))?;
    let guess_s = (date_s.saturating_sub(changed_s) / HEURISTIC_DIVISOR).min(HEURISTIC_S_MAX);
    Some((saturate(guess_s), LifetimeFrom::LastModified))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000_000;
    const AT_ONCE: Exchanged = Exchanged { asked_ms: NOW, answered_ms: NOW };

    fn fresh(lines: &[(&str, &str)]) -> Option<Freshness> {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            let name = http::HeaderName::from_bytes(name.as_bytes()).expect("test header");
            map.append(name, value.parse().expect("test header"));
        }
        Freshness::of(&map, &ResponseDirectives::of(&map), false, AT_ONCE)
    }

    #[test]
    fn lifetimes_come_from_the_most_special_source() {
        let later = date::format(NOW + 100_000);
        type Fields<'a> = &'a [(&'a str, &'a str)];
        let table: [(Fields<'_>, Option<i64>); 12] = [
            (&[], None),
            (&[("cache-control", "max-age=10")], Some(10)),
            (&[("cache-control", "max-age=10, s-maxage=20")], Some(20)),
            (&[("cache-control", "s-maxage=0, max-age=10")], Some(0)),
            (&[("expires", &later)], Some(100)),
            (&[("expires", &later), ("cache-control", "max-age=5")], Some(5)),
            (&[("expires", "0")], Some(0)),
            (&[("expires", &later), ("expires", &later)], Some(0)),
            (&[("cdn-cache-control", "max-age=7"), ("cache-control", "max-age=99")], Some(7)),
            (&[("cdn-cache-control", "public"), ("expires", &later)], None),
            (&[("cache-control", "no-cache")], Some(0)),
            (&[("cache-control", "public")], None),
        ];
        for (lines, want) in table {
            assert_eq!(fresh(lines).map(|record| record.ttl_s(NOW)), want, "{lines:?}");
        }
    }

    #[test]
    fn age_is_the_first_member_and_digits_only() {
        let table = [
            ("7200", 7200),
            ("0, 7200", 0),
            ("7200, 0", 7200),
            ("-1", 0),
            ("7200.0", 0),
            ("abc", 0),
            ("2147483648", i32::MAX as u32),
            ("99999999999", i32::MAX as u32),
            ("7200;foo=1", 0),
        ];
        for (text, want) in table {
            let got = fresh(&[("cache-control", "max-age=3600"), ("age", text)]).expect("a lifetime");
            assert_eq!(got.age_s(NOW), want, "{text}");
        }
    }

    #[test]
    fn age_counts_the_date_and_the_delay() {
        let mut map = HeaderMap::new();
        map.insert("cache-control", "max-age=60".parse().expect("value"));
        map.insert("date", date::format(NOW - 30_000).parse().expect("value"));
        let said = ResponseDirectives::of(&map);
        let record = Freshness::of(&map, &said, false, AT_ONCE).expect("a lifetime");
        assert_eq!(record.age_s(NOW), 30, "an old Date is an age");
        assert_eq!(record.age_s(NOW + 10_000), 40);
        assert!(record.is_fresh(NOW + 29_999) && !record.is_fresh(NOW + 30_000));

        map.insert("age", "50".parse().expect("value"));
        let slow = Exchanged { asked_ms: NOW - 8_000, answered_ms: NOW };
        assert_eq!(Freshness::of(&map, &said, false, slow).expect("a lifetime").age_s(NOW), 58);
    }

    #[test]
    fn stale_use_needs_permission() {
        let swr = fresh(&[("cache-control", "max-age=10, stale-while-revalidate=5, stale-if-error=20")])
            .expect("ok");
        assert_eq!(swr.usable(NOW + 9_999, None), Use::Fresh);
        assert_eq!(swr.usable(NOW + 10_000, None), Use::WhileRevalidating);
        assert_eq!(swr.usable(NOW + 15_000, None), Use::Ask);
        assert!(swr.usable_on_error(NOW + 30_000) && !swr.usable_on_error(NOW + 30_001));

        for forbidding in ["must-revalidate", "proxy-revalidate", "no-cache"] {
            let text = format!("max-age=10, stale-while-revalidate=5, stale-if-error=20, {forbidding}");
            let record = fresh(&[("cache-control", &text)]).expect("ok");
            assert_eq!(record.usable(NOW + 12_000, None), Use::Ask, "{forbidding}");
            assert!(!record.usable_on_error(NOW + 12_000), "{forbidding}");
        }
        let plain = fresh(&[("cache-control", "max-age=10")]).expect("ok");
        assert!(!plain.usable_on_error(NOW + 10_001));
    }

    #[test]
    fn a_client_can_ask_for_less_or_more() {
        let record = fresh(&[("cache-control", "max-age=100"), ("age", "50")]).expect("ok");
        let asked = |text: &str| {
            let mut map = HeaderMap::new();
            map.insert("cache-control", text.parse().expect("value"));
            RequestDirectives::of(&map)
        };
        assert_eq!(record.usable(NOW, Some(&asked("no-cache"))), Use::Ask);
        assert_eq!(record.usable(NOW, Some(&asked("max-age=40"))), Use::Ask);
        assert_eq!(record.usable(NOW, Some(&asked("max-age=60"))), Use::Fresh);
        assert_eq!(record.usable(NOW, Some(&asked("min-fresh=60"))), Use::Ask);
        assert_eq!(record.usable(NOW + 60_000, Some(&asked("max-stale=20"))), Use::Fresh);
        assert_eq!(record.usable(NOW + 80_000, Some(&asked("max-stale=20"))), Use::Ask);
        assert_eq!(record.usable(NOW, None), Use::Fresh);
    }

    #[test]
    fn guesses_are_off_unless_asked_for() {
        let mut map = HeaderMap::new();
        map.insert("last-modified", date::format(NOW - 1_000_000).parse().expect("value"));
        map.insert("date", date::format(NOW).parse().expect("value"));
        let said = ResponseDirectives::of(&map);
        assert_eq!(Freshness::of(&map, &said, false, AT_ONCE), None);
        assert_eq!(Freshness::of(&map, &said, true, AT_ONCE).expect("a guess").ttl_s(NOW), 100);
    }

    proptest! {
        #[test]
        fn never_fresh_again_once_stale(
            max_age in any::<u32>(), age in any::<u32>(), swr in 0u32..1_000, delay in 0u64..100_000,
            early in any::<u32>(), later in any::<u32>(),
        ) {
            let mut map = HeaderMap::new();
            let text = format!("max-age={max_age}, stale-while-revalidate={swr}");
            map.insert("cache-control", text.parse().expect("value"));
            map.insert("age", age.to_string().parse().expect("value"));
            let when = Exchanged { asked_ms: NOW, answered_ms: NOW + delay };
            let record = Freshness::of(&map, &ResponseDirectives::of(&map), false, when).expect("a lifetime");
            let (first, second) = (NOW + u64::from(early.min(later)), NOW + u64::from(early.max(later)));
            prop_assert!(record.age_ms(first) <= record.age_ms(second));
            let rank = |used| match used { Use::Fresh => 0, Use::WhileRevalidating => 1, Use::Ask => 2 };
            prop_assert!(rank(record.usable(first, None)) <= rank(record.usable(second, None)));
            prop_assert!(record.usable_on_error(first) || !record.usable_on_error(second));
        }
    }
}

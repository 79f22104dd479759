//! The freshness decision against a model that is as plain as it can be: seconds as big numbers, one rule a line, no
//! saturation, no packing, and written from RFC 9111 and RFC 5861 rather than from the code.

use proptest::option;
use proptest::prelude::*;
use souk_cache::date;
use souk_cache::directives::{RequestDirectives, ResponseDirectives};
use souk_cache::freshness::{Exchanged, Freshness, Use};

use crate::{NOW, map};

/// One directive set of a response. Times are in seconds.
#[derive(Clone, Debug)]
struct Says {
    max_age: Option<u32>,
    s_maxage: Option<u32>,
    while_revalidate: Option<u32>,
    if_error: Option<u32>,
    no_cache: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
}

#[derive(Clone, Debug)]
struct Response {
    /// `Cache-Control`, and the field that takes its place.
    says: Says,
    targeted: Option<Says>,
    /// Seconds before (negative) or after the moment at which the response came.
    date: Option<i64>,
    expires: Option<i64>,
    modified: Option<i64>,
    age: Option<u32>,
    delay: u32,
}

#[derive(Clone, Debug, Default)]
struct Wants {
    no_cache: bool,
    max_age: Option<u32>,
    min_fresh: Option<u32>,
    max_stale: Option<Option<u32>>,
}

impl Says {
    /// A directive list; nothing that could make an empty `CDN-Cache-Control`.
    fn text(&self) -> String {
        let mut out = vec!["x".to_owned()];
        let mut put =
            |name: &str, value: Option<u32>| out.extend(value.map(|value| format!("{name}={value}")));
        put("max-age", self.max_age);
        put("s-maxage", self.s_maxage);
        put("stale-while-revalidate", self.while_revalidate);
        put("stale-if-error", self.if_error);
        for (name, said) in [
            ("no-cache", self.no_cache),
            ("must-revalidate", self.must_revalidate),
            ("proxy-revalidate", self.proxy_revalidate),
        ] {
            out.extend(said.then(|| name.to_owned()));
        }
        out.join(", ")
    }
}

impl Response {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let moment = |seconds: i64| date::format(NOW.saturating_add_signed(seconds * 1_000));
        let mut out = vec![("cache-control", self.says.text())];
        out.extend(self.targeted.as_ref().map(|says| ("cdn-cache-control", says.text())));
        out.extend(self.date.map(|seconds| ("date", moment(seconds))));
        out.extend(self.expires.map(|seconds| ("expires", moment(seconds))));
        out.extend(self.modified.map(|seconds| ("last-modified", moment(seconds))));
        out.extend(self.age.map(|seconds| ("age", seconds.to_string())));
        out
    }

    fn governs(&self) -> &Says {
        self.targeted.as_ref().unwrap_or(&self.says)
    }

    /// RFC 9111 section 4.2.1, with section 4.2.2 where guesses are allowed.
    fn lifetime(&self, guesses: bool) -> Option<i128> {
        let says = self.governs();
        let date = i128::from(self.date.unwrap_or(0));
        if let Some(seconds) = says.s_maxage.or(says.max_age) {
            return Some(i128::from(seconds));
        }
        if let (None, Some(expires)) = (&self.targeted, self.expires) {
            return Some((i128::from(expires) - date).max(0));
        }
        if says.no_cache {
            return Some(0);
        }
        let since_change = date - i128::from(self.modified.filter(|_| guesses)?);
        Some((since_change.max(0) / 10).min(86_400))
    }

    /// RFC 9111 section 4.2.3, `later` seconds after it came.
    fn age(&self, later: i128) -> i128 {
        let apparent = -i128::from(self.date.unwrap_or(0));
        let corrected = i128::from(self.age.unwrap_or(0)) + i128::from(self.delay);
        apparent.max(0).max(corrected) + later
    }

    fn use_of(&self, later: i128, lifetime: i128, wants: &Wants) -> Use {
        let says = self.governs();
        let age = self.age(later);
        let stale_for = age - lifetime;
        let fresh = stale_for < 0 && !says.no_cache;
        let never_stale = says.no_cache || says.must_revalidate || says.proxy_revalidate;
        let refused = wants.no_cache
            || wants.max_age.is_some_and(|max| age >= i128::from(max))
            || wants.min_fresh.is_some_and(|min| lifetime - age < i128::from(min));
        if refused {
            return Use::Ask;
        }
        let takes_stale = match wants.max_stale {
            None => false,
            Some(None) => true,
            Some(Some(max)) => stale_for <= i128::from(max),
        };
        if fresh || (takes_stale && !never_stale) {
            Use::Fresh
        } else if !never_stale && stale_for < i128::from(says.while_revalidate.unwrap_or(0)) {
            Use::WhileRevalidating
        } else {
            Use::Ask
        }
    }
}

fn seconds() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..30, 1 => 0u32..200_000, 1 => Just(i32::MAX as u32)]
}

fn says() -> impl Strategy<Value = Says> {
    let rare = || proptest::bool::weighted(0.1);
    let lifetimes = (option::of(seconds()), option::weighted(0.2, seconds()));
    (lifetimes, option::weighted(0.3, seconds()), option::weighted(0.3, seconds()), rare(), rare(), rare())
        .prop_map(
            |(
                (max_age, s_maxage),
                while_revalidate,
                if_error,
                no_cache,
                must_revalidate,
                proxy_revalidate,
            )| Says {
                max_age,
                s_maxage,
                while_revalidate,
                if_error,
                no_cache,
                must_revalidate,
                proxy_revalidate,
            },
        )
}

fn responses() -> impl Strategy<Value = Response> {
    let moments = (option::of(-40i64..10), option::weighted(0.3, -40i64..60), option::of(-2_000_000i64..10));
    (says(), option::weighted(0.2, says()), moments, option::weighted(0.3, 0u32..40), 0u32..3).prop_map(
        |(says, targeted, (date, expires, modified), age, delay)| Response {
            says,
            targeted,
            date,
            expires,
            modified,
            age,
            delay,
        },
    )
}

fn wants() -> impl Strategy<Value = Wants> {
    let some = || option::weighted(0.2, 0u32..40);
    (proptest::bool::weighted(0.1), some(), some(), option::weighted(0.2, option::of(0u32..40))).prop_map(
        |(no_cache, max_age, min_fresh, max_stale)| Wants { no_cache, max_age, min_fresh, max_stale },
    )
}

fn as_directives(wants: &Wants) -> RequestDirectives {
    let mut text: Vec<String> = Vec::new();
    text.extend(wants.no_cache.then(|| "no-cache".to_owned()));
    text.extend(wants.max_age.map(|seconds| format!("max-age={seconds}")));
    text.extend(wants.min_fresh.map(|seconds| format!("min-fresh={seconds}")));
    text.extend(wants.max_stale.map(|max| match max {
        None => "max-stale".to_owned(),
        Some(seconds) => format!("max-stale={seconds}"),
    }));
    RequestDirectives::of(&map(&[("cache-control", &text.join(", "))]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn what_is_decided_is_what_the_model_says(
        response in responses(),
        wants in option::of(wants()),
        later in 0u32..60,
        guesses: bool,
    ) {
        let fields = response.fields();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let headers = map(&fields);
        let said = ResponseDirectives::of(&headers);
        let when = Exchanged { asked_ms: NOW - u64::from(response.delay) * 1_000, answered_ms: NOW };
        let now_ms = NOW + u64::from(later) * 1_000;
        let record = Freshness::of(&headers, &said, guesses, when);
        let lifetime = response.lifetime(guesses);
        prop_assert_eq!(record.is_some(), lifetime.is_some());
        if let (Some(record), Some(lifetime)) = (record, lifetime) {
            let later = i128::from(later);
            prop_assert_eq!(i128::from(record.age_s(now_ms)), response.age(later));
            prop_assert_eq!(i128::from(record.ttl_s(now_ms)), lifetime - response.age(later));
            let obeyed = wants.as_ref().map(as_directives);
            let decided = record.usable(now_ms, obeyed.as_ref());
            prop_assert_eq!(decided, response.use_of(later, lifetime, &wants.unwrap_or_default()));
            let says = response.governs();
            let never_stale = says.no_cache || says.must_revalidate || says.proxy_revalidate;
            let window = i128::from(says.if_error.unwrap_or(0));
            let stale_for = (response.age(later) - lifetime).max(0);
            prop_assert_eq!(record.usable_on_error(now_ms), !never_stale && stale_for <= window);
        }
    }

    /// As time goes by, a response only gets worse: it is never fresh again.
    #[test]
    fn nothing_grows_younger(response in responses(), steps in proptest::collection::vec(0u64..100_000, 1..20)) {
        let fields = response.fields();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let headers = map(&fields);
        let when = Exchanged { asked_ms: NOW, answered_ms: NOW };
        if let Some(record) = Freshness::of(&headers, &ResponseDirectives::of(&headers), true, when) {
            let rank = |used| match used { Use::Fresh => 0, Use::WhileRevalidating => 1, Use::Ask => 2 };
            let (mut now_ms, mut worst, mut oldest) = (NOW, 0, 0);
            for step in steps {
                now_ms += step;
                let (now, age) = (rank(record.usable(now_ms, None)), record.age_s(now_ms));
                prop_assert!(now >= worst && age >= oldest);
                (worst, oldest) = (now, age);
            }
        }
    }
}

//! What only this node knows to be changed: what unsafe requests have changed that came through it. Its peers may have it as
//! it was.
//!
//! Each name is kept with the time at which it was taken back. An answer of a peer counts if its upstream was asked after that,
//! which its `Age` tells, with allowance for two clocks. The table is bounded: what leaves it becomes a floor, and what is
//! older than that no peer is believed about. Pure: the time is an argument.

use std::collections::{HashMap, VecDeque};

use souk_cache::Tag;

/// Names. Some 40 bytes each with their order: 5 MiB, and as many carts filled and stars given as a busy shop sees in an hour.
const NAMES_MAX: usize = 65_536;
/// `Age` is cut to whole seconds, here and where the peer had it from.
const AGE_SLACK_MS: u64 = 2_000;

#[derive(Debug)]
pub(super) struct TakenBack {
    names: HashMap<Tag, u64>,
    /// The oldest in front. A name that was taken back again since is passed over.
    order: VecDeque<(u64, Tag)>,
    floor_ms: Option<u64>,
    names_max: usize,
}

impl Default for TakenBack {
    fn default() -> Self {
        Self { names: HashMap::new(), order: VecDeque::new(), floor_ms: None, names_max: NAMES_MAX }
    }
}

impl TakenBack {
    pub(super) fn note(&mut self, name: Tag, now_ms: u64) {
        self.names.insert(name, now_ms);
        self.order.push_back((now_ms, name));
        while self.names.len() > self.names_max || self.order.len() > 2 * self.names_max {
            let Some((at_ms, name)) = self.order.pop_front() else { return };
            if self.names.get(&name) == Some(&at_ms) {
                self.names.remove(&name);
                self.floor_ms = Some(at_ms);
            }
        }
    }

    /// Whether an answer that came to a question of `asked_ms` with this age still holds, made from these.
    pub(super) fn holds(&self, made_from: impl IntoIterator<Item = Tag>, asked_ms: u64, age_s: u64) -> bool {
        // A thousandth for clocks that run apart: ten times what a bad one does.
        let age_ms = age_s.saturating_mul(1_001).saturating_add(AGE_SLACK_MS);
        let made_ms = asked_ms.saturating_sub(age_ms);
        let is_before = |at_ms: u64| made_ms <= at_ms;
        !self.floor_ms.is_some_and(is_before)
            && !made_from.into_iter().any(|name| self.names.get(&name).copied().is_some_and(is_before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Tag {
        Tag::named("shop", text)
    }

    #[test]
    fn what_is_older_than_the_change_is_not_believed() {
        let mut taken = TakenBack::default();
        assert!(taken.holds([name("page")], 0, 1 << 40), "nothing was taken back");
        taken.note(name("page"), 100_000);
        for (asked_ms, age_s, holds) in [
            (100_000, 0, false),
            (101_900, 0, false),
            (102_001, 0, true),
            (110_000, 7, true),
            (110_000, 8, false),
            // 1,000 s: a second for the clocks.
            (1_102_900, 1_000, false),
            (1_103_001, 1_000, true),
        ] {
            assert_eq!(
                taken.holds([name("other"), name("page")], asked_ms, age_s),
                holds,
                "{asked_ms} {age_s}"
            );
            assert!(taken.holds([name("other")], asked_ms, age_s));
        }
    }

    #[test]
    fn what_is_forgotten_becomes_a_floor() {
        let mut taken = TakenBack { names_max: 2, ..TakenBack::default() };
        for (at_ms, text) in [(10_000, "a"), (20_000, "b"), (30_000, "a"), (40_000, "c")] {
            taken.note(name(text), at_ms);
        }
        // "b" left, and took with it what is older.
        assert!(!taken.holds([name("b")], 22_000, 0) && taken.holds([name("b")], 22_001, 0));
        assert!(!taken.holds([name("a")], 32_000, 0) && taken.holds([name("a")], 32_001, 0));
        for at_ms in 0..100 {
            taken.note(name("c"), 50_000 + at_ms);
        }
        assert!(taken.order.len() <= 4 && taken.names.len() <= 2);
    }
}

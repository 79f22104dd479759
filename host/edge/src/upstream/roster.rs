//! The servers of one upstream, and who of them gets a request: health and balance together.
//!
//! Pure: time and draws are arguments, and what a server is made of is the caller's (`T`). The caller reports every pick
//! twice: [`Roster::answered`] when its head is there or not to be had, [`Roster::ended`] when it holds nothing any more.
//!
//! *Panic mode*: where every server is out, one of them is asked all the same. An answer that may fail is better than one
//! that surely does, and health that is judged wrongly must not take a shop down.

use std::time::Duration;

use super::balance::{self, Candidate, Latency};
use super::health::{Cause, Health, State, Thresholds, Verdict};

/// The longest that a server's `Retry-After` keeps retries away from it: its own word, but not for a day.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Names one server for as long as it is in the roster. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

#[derive(Debug)]
struct Member<T> {
    id: Id,
    /// The configured server that this one belongs to: it may have several addresses.
    name: usize,
    weight: f64,
    held: T,
    latency: Latency,
    health: Health,
    in_flight: usize,
    retry_after: Duration,
}

/// A server that was chosen. Its place is taken until [`Roster::ended`].
#[derive(Clone, Debug)]
pub(super) struct Pick<T> {
    pub(super) id: Id,
    pub(super) name: usize,
    pub(super) held: T,
    pub(super) trial: bool,
}

/// What a request needs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish<'a> {
    /// It can be sent elsewhere if it fails.
    pub(super) repeatable: bool,
    /// It has failed already, or is sent a second time to be sooner.
    pub(super) again: bool,
    /// Servers that it was sent to.
    pub(super) tried: &'a [Id],
}

/// What one server looks like to people and programs.
#[derive(Clone, Debug)]
pub(super) struct Seen<T> {
    pub(super) name: usize,
    pub(super) held: T,
    pub(super) state: State,
    pub(super) share: f64,
    pub(super) in_flight: usize,
    /// Seconds; none before the first answer.
    pub(super) latency: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Roster<T> {
    members: Vec<Member<T>>,
    ids: u32,
}

impl<T: Clone + PartialEq> Roster<T> {
    pub(super) fn new() -> Self {
        Self { members: Vec::new(), ids: 0 }
    }

    /// Makes `wanted` the servers of one configured name. Those that were there stay as they are, their past included.
    /// Whoever joins others later than at the `start` begins slowly.
    pub(super) fn set(&mut self, now: Duration, name: usize, weight: f64, wanted: Vec<T>, start: bool) {
        let others = self.members.iter().any(|member| member.name != name || wanted.contains(&member.held));
        self.members.retain(|member| member.name != name || wanted.contains(&member.held));
        for held in wanted {
            if self.members.iter().any(|member| member.name == name && member.held == held) {
                continue;
            }
            self.ids += 1;
            // Where nobody else can take the load, there is nothing to start slowly for.
            let health = if others && !start { Health::joining(now) } else { Health::serving(now) };
            self.members.push(Member {
                id: Id(self.ids),
                name,
                weight,
                held,
                latency: Latency::default(),
                health,
                in_flight: 0,
                retry_after: Duration::ZERO,
            });
        }
    }

    /// Chooses a server. `draws` are random numbers from 0 to below 1.
    pub(super) fn pick(&mut self, now: Duration, draws: [f64; 2], wish: Wish<'_>) -> Option<Pick<T>> {
        if let Some(index) = self.on_trial(now, wish) {
            return Some(self.take(index, true));
        }
        let mut open = self.open(wish, now, |member| member.health.is_in(now));
        if open.is_empty() {
            open = self.open(wish, now, |_| true);
        }
        let candidates: Vec<_> = open
            .iter()
            .map(|index| &self.members[*index])
            .map(|member| Candidate {
                weight: member.weight * member.health.share(now),
                in_flight: member.in_flight,
                latency: member.latency.seconds(now),
            })
            .collect();
        let chosen = balance::choose(&candidates, draws)?;
        Some(self.take(open[chosen], false))
    }

    /// Whether a request that was at `tried` could go elsewhere: to any server, or to one that is well.
    pub(super) fn has_other(&self, now: Duration, tried: &[Id], well: bool) -> bool {
        let wish = Wish { repeatable: true, again: true, tried };
        !self.open(wish, now, |member| !well || member.health.is_in(now)).is_empty()
    }

    /// Takes note of what a request met. Returns why the server is out from now on, if it is.
    pub(super) fn answered(
        &mut self,
        id: Id,
        now: Duration,
        took: Duration,
        verdict: Verdict,
    ) -> Option<Cause> {
        let ejected = self.members.iter().filter(|member| member.health.is_ejected()).count();
        let may_eject = ejected < ejected_max(self.members.len());
        let member = self.find(id)?;
        match (verdict, member.latency.seconds(now)) {
            (Verdict::Good, _) => member.latency.observe(now, took),
            // A server that refuses in a millisecond must not look like a fast one.
            (Verdict::Bad, Some(known)) => {
                member.latency.observe(now, took.max(Duration::from_secs_f64(known)))
            }
            (Verdict::Bad, None) => {}
        }
        member.health.judge(now, verdict, may_eject)
    }

    /// A request was given up before it was answered: the server takes at least as long as it was waited for.
    pub(super) fn given_up(&mut self, id: Id, now: Duration, waited: Duration) {
        let Some(member) = self.find(id) else { return };
        if member.latency.seconds(now).is_none_or(|estimate| waited.as_secs_f64() > estimate) {
            member.latency.observe(now, waited);
        }
    }

    /// What was taken with a pick is free again.
    pub(super) fn ended(&mut self, id: Id, trial: bool) {
        let Some(member) = self.find(id) else { return };
        member.in_flight = member.in_flight.saturating_sub(1);
        if trial {
            member.health.end_trial();
        }
    }

    /// A server said when to come back.
    pub(super) fn retry_after(&mut self, id: Id, now: Duration, pause: Duration) {
        if let Some(member) = self.find(id) {
            member.retry_after = now + pause.min(RETRY_AFTER_MAX);
        }
    }

    pub(super) fn checked(
        &mut self,
        held: &T,
        now: Duration,
        passed: bool,
        thresholds: Thresholds,
    ) -> Option<Cause> {
        let member = self.members.iter_mut().find(|member| member.held == *held)?;
        member.health.check(now, passed, thresholds)
    }

    pub(super) fn seen(&self, now: Duration) -> Vec<Seen<T>> {
        let seen = self.members.iter().map(|member| Seen {
            name: member.name,
            held: member.held.clone(),
            state: member.health.state(now),
            share: member.health.share(now),
            in_flight: member.in_flight,
            latency: member.latency.seconds(now),
        });
        seen.collect()
    }

    fn on_trial(&mut self, now: Duration, wish: Wish<'_>) -> Option<usize> {
        // The second server of a request must answer; a trial may fail.
        if wish.again {
            return None;
        }
        self.members.iter_mut().position(|member| member.health.try_out(now, wish.repeatable))
    }

    fn open(&self, wish: Wish<'_>, now: Duration, fits: impl Fn(&Member<T>) -> bool) -> Vec<usize> {
        let may = |member: &Member<T>| {
            !wish.tried.contains(&member.id) && (!wish.again || member.retry_after <= now) && fits(member)
        };
        (0..self.members.len()).filter(|index| may(&self.members[*index])).collect()
    }

    fn take(&mut self, index: usize, trial: bool) -> Pick<T> {
        let member = &mut self.members[index];
        member.in_flight += 1;
        Pick { id: member.id, name: member.name, held: member.held.clone(), trial }
    }

    fn find(&mut self, id: Id) -> Option<&mut Member<T>> {
        self.members.iter_mut().find(|member| member.id == id)
    }
}

/// Servers that may be ejected at once: half, rounded up, and never the last one. Failures of more than that have a reason
/// which all servers share, and sending everything to the rest would take that down too.
fn ejected_max(servers: usize) -> usize {
    servers.div_ceil(2).min(servers.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const ANY: Wish<'static> = Wish { repeatable: true, again: false, tried: &[] };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    struct World {
        roster: Roster<&'static str>,
        random: StdRng,
    }

    impl World {
        fn of(servers: &[&'static str]) -> Self {
            let mut roster = Roster::new();
            roster.set(s(0), 0, 1.0, servers.to_vec(), true);
            Self { roster, random: StdRng::seed_from_u64(3) }
        }

        fn pick(&mut self, now: Duration, wish: Wish<'_>) -> Option<Pick<&'static str>> {
            self.roster.pick(now, self.random.random(), wish)
        }

        /// One request from pick to end.
        fn ask(&mut self, now: Duration, verdict: impl Fn(&str) -> Verdict) -> &'static str {
            let pick = self.pick(now, ANY).expect("a server");
            let verdict = verdict(pick.held);
            let took = Duration::from_micros(if verdict == Verdict::Good { 10_000 } else { 100 });
            self.roster.answered(pick.id, now, took, verdict);
            self.roster.ended(pick.id, pick.trial);
            pick.held
        }

        fn state(&self, server: &str, now: Duration) -> State {
            let seen = self.roster.seen(now);
            seen.iter().find(|seen| seen.held == server).expect("it is there").state
        }

        fn fail(&mut self, server: &str, now: Duration) {
            for _ in 0..200 {
                self.ask(now, |at| if at == server { Verdict::Bad } else { Verdict::Good });
                if self.state(server, now) == State::Ejected {
                    return;
                }
            }
            panic!("{server} was not ejected");
        }
    }

    #[test]
    fn an_ejected_server_is_never_picked_while_another_is_there() {
        let mut world = World::of(&["a", "b", "c"]);
        world.fail("a", s(1));
        for _ in 0..500 {
            assert_ne!(world.ask(s(2), |_| Verdict::Good), "a");
        }
    }

    #[test]
    fn after_its_time_it_is_tried_and_comes_back_slowly() {
        let mut world = World::of(&["a", "b", "c"]);
        world.fail("a", s(1));
        assert_eq!(world.ask(s(7), |_| Verdict::Good), "a", "the next request is its trial");
        assert_eq!(world.ask(s(7), |_| Verdict::Good), "a");
        assert_eq!(world.state("a", s(7)), State::Returning);
        let share = |world: &mut World, now: Duration| {
            (0..1_000).filter(|_| world.ask(now, |_| Verdict::Good) == "a").count()
        };
        let slowly = share(&mut world, s(8));
        let later = share(&mut world, s(120));
        assert!(slowly < 150 && later > 250, "{slowly} of 1000, then {later}");
    }

    #[test]
    fn one_trial_at_once_and_a_client_that_leaves_frees_it() {
        let mut world = World::of(&["a", "b"]);
        world.fail("a", s(1));
        let trial = world.pick(s(7), ANY).expect("a server");
        assert!(trial.trial && trial.held == "a");
        for _ in 0..50 {
            assert_eq!(world.ask(s(7), |_| Verdict::Good), "b");
        }
        // Dropped without an answer.
        world.roster.ended(trial.id, trial.trial);
        assert_eq!(world.ask(s(7), |_| Verdict::Good), "a");
    }

    #[test]
    fn at_most_half_are_ejected_and_never_the_last() {
        for (servers, max) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (10, 5)] {
            assert_eq!(ejected_max(servers), max, "{servers}");
        }
        let mut world = World::of(&["a", "b", "c", "d"]);
        for _ in 0..1_000 {
            world.ask(s(1), |_| Verdict::Bad);
        }
        let out = ["a", "b", "c", "d"].iter().filter(|at| world.state(at, s(1)) == State::Ejected).count();
        assert_eq!(out, 2);
    }

    #[test]
    fn when_all_fail_their_checks_any_is_picked() {
        let mut world = World::of(&["a", "b"]);
        let thresholds = Thresholds { failed: 1, passed: 1 };
        assert_eq!(world.roster.checked(&"a", s(1), false, thresholds), Some(Cause::Check));
        for _ in 0..100 {
            assert_eq!(world.ask(s(1), |_| Verdict::Good), "b");
        }
        world.roster.checked(&"b", s(1), false, thresholds);
        let both: Vec<_> = (0..100).map(|_| world.ask(s(1), |_| Verdict::Good)).collect();
        assert!(both.contains(&"a") && both.contains(&"b"));
        world.roster.checked(&"a", s(1), true, thresholds);
        for _ in 0..100 {
            assert_eq!(world.ask(s(1), |_| Verdict::Good), "a");
        }
    }

    #[test]
    fn the_next_try_goes_elsewhere_and_not_to_who_asked_to_be_left_alone() {
        let mut world = World::of(&["a", "b", "c"]);
        let first = world.pick(s(0), ANY).expect("a server");
        let tried = [first.id];
        let wish = Wish { again: true, tried: &tried, ..ANY };
        for _ in 0..100 {
            let second = world.pick(s(0), wish).expect("another");
            assert_ne!(second.held, first.held);
            world.roster.ended(second.id, second.trial);
        }
        let others: Vec<_> = world.roster.members.iter().filter(|m| m.id != first.id).map(|m| m.id).collect();
        world.roster.retry_after(others[0], s(0), s(30));
        for _ in 0..100 {
            let second = world.pick(s(1), wish).expect("another");
            assert_eq!(second.id, others[1]);
            world.roster.ended(second.id, second.trial);
        }
        world.roster.retry_after(others[1], s(0), s(1_000_000));
        assert!(world.pick(s(1), wish).is_none() && !world.roster.has_other(s(1), &tried, false));
        assert!(world.roster.has_other(s(60), &tried, true), "a day is not believed");
        // First tries go there as before.
        assert!((0..100).any(|_| world.pick(s(1), ANY).is_some_and(|pick| pick.id == others[0])));
    }

    #[test]
    fn names_that_resolve_anew_keep_whom_they_had() {
        let mut world = World::of(&["a", "b"]);
        world.fail("a", s(1));
        world.roster.set(s(2), 0, 1.0, vec!["a", "c"], false);
        assert_eq!(world.state("a", s(2)), State::Ejected, "its past is kept");
        assert_eq!(world.state("c", s(2)), State::Returning, "who joins starts slowly");
        let held: Vec<_> = world.roster.seen(s(2)).iter().map(|seen| seen.held).collect();
        assert_eq!(held, ["a", "c"]);
        world.roster.set(s(2), 1, 2.0, vec!["d"], true);
        assert_eq!(world.state("d", s(2)), State::Serving, "but for the start");
        assert_eq!(world.roster.seen(s(2)).len(), 3, "another name's servers are not touched");
        let late = world.pick(s(2), ANY).expect("a server");
        world.roster.set(s(2), 0, 1.0, vec![], false);
        world.roster.set(s(2), 1, 1.0, vec![], false);
        // Whoever was asked and is gone is no mistake.
        assert_eq!(world.roster.answered(late.id, s(3), s(1), Verdict::Bad), None);
        world.roster.ended(late.id, late.trial);
        assert!(world.pick(s(3), ANY).is_none());
    }

    #[test]
    fn a_server_that_refuses_quickly_is_not_a_fast_one() {
        let mut world = World::of(&["a", "b"]);
        let mut to_a = 0;
        for request in 0..1_000 {
            let now = Duration::from_millis(request * 10);
            // Every third request fails: too few to eject.
            let a =
                world.ask(now, |at| if at == "a" && request % 3 == 0 { Verdict::Bad } else { Verdict::Good });
            to_a += u32::from(a == "a");
        }
        assert_eq!(world.state("a", s(10)), State::Serving);
        assert!((400..600).contains(&to_a), "{to_a} of 1000: its share, and no more");
    }
}

//! Load at a fixed pace, and what it saw: percentiles that a stalled server cannot flatter. And whether it is the server's
//! doing at all: a virtual machine whose processors are given to somebody else stalls whatever runs on it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::time::{Instant, sleep_until};

use crate::http::Answer;

/// The middle and the slow end of one round.
#[derive(Debug, Clone, Copy)]
pub struct Percentiles {
    pub p50: Duration,
    pub p99: Duration,
}

impl Percentiles {
    /// Of latencies in any order.
    pub fn of(mut latencies: Vec<Duration>) -> Self {
        assert!(!latencies.is_empty(), "a round has calls");
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
        Self { p50: at(50), p99: at(99) }
    }

    /// The median of each figure: one round that something else disturbed says nothing.
    pub fn median(rounds: &[Self]) -> Self {
        let median = |pick: fn(&Self) -> Duration| {
            let mut all: Vec<Duration> = rounds.iter().map(pick).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        Self { p50: median(|round| round.p50), p99: median(|round| round.p99) }
    }
}

/// Makes a call every so often, one after the other, and fails at the first that is not answered 200.
///
/// A latency counts from when the call could have been sent: calls that had to queue behind a slow one are as late as
/// a shopper would have found them, and the millisecond that the client's own timer may oversleep is nobody's.
pub async fn paced<F>(
    every: Duration,
    time: Duration,
    mut call: impl FnMut(usize) -> F,
) -> Result<Percentiles>
where
    F: Future<Output = Result<Answer>>,
{
    let began = Instant::now();
    let mut latencies = Vec::new();
    let mut due = began;
    while due < began + time {
        let sent = if Instant::now() < due {
            sleep_until(due).await;
            Instant::now()
        } else {
            due
        };
        let answer = call(latencies.len()).await?;
        ensure!(answer.status == 200, "a request was refused: {}: {}", answer.status, answer.text());
        latencies.push(sent.elapsed());
        due += every;
    }
    Ok(Percentiles::of(latencies))
}

/// What a round saw, if the hypervisor gave all the processor time that the machine asked for meanwhile.
///
/// A round that lost some shows who the neighbours of this machine are, and nothing else. To leave it out is no choice of
/// results: who was slow in it does not matter. On a machine that does not tell, every round counts.
pub async fn undisturbed<T>(round: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    let before = stolen_ticks();
    let seen = round.await?;
    Ok((stolen_ticks() == before).then_some(seen))
}

/// Ticks of 10 ms in which a processor of this machine had work and the hypervisor ran somebody else: see proc(5).
fn stolen_ticks() -> u64 {
    let read = || {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let all = stat.lines().next()?.strip_prefix("cpu ")?;
        all.split_whitespace().nth(7)?.parse().ok()
    };
    read().unwrap_or(0)
}

/// Rounds of several kinds, in turn, so that what the machine does beside them meets all alike; each until enough of it
/// were undisturbed.
pub struct Rounds {
    wanted: usize,
    kept: Vec<Vec<Percentiles>>,
    disturbed: usize,
}

impl Rounds {
    /// Turns for each round that is wanted, at most: on a machine that is never left alone a measurement must end, too.
    const TURNS_PER_ROUND_MAX: usize = 8;

    pub fn new(kinds: usize, wanted: usize) -> Self {
        Self { wanted, kept: vec![Vec::new(); kinds], disturbed: 0 }
    }

    /// Runs `round` of each kind that lacks some, again and again. Fails if the machine was not left alone for long enough.
    pub async fn run<F>(&mut self, mut round: impl FnMut(usize) -> F) -> Result<()>
    where
        F: Future<Output = Result<Option<Percentiles>>>,
    {
        for _ in 0..self.wanted * Self::TURNS_PER_ROUND_MAX {
            for kind in 0..self.kept.len() {
                if self.kept[kind].len() < self.wanted {
                    match round(kind).await? {
                        Some(seen) => self.kept[kind].push(seen),
                        None => self.disturbed += 1,
                    }
                }
            }
            if self.kept.iter().all(|kept| kept.len() >= self.wanted) {
                return Ok(());
            }
        }
        bail!(
            "the hypervisor took processor time in {} rounds and left {:?} of each kind: no measurement",
            self.disturbed,
            self.kept.iter().map(Vec::len).collect::<Vec<_>>()
        )
    }

    pub fn of(&self, kind: usize) -> &[Percentiles] {
        &self.kept[kind]
    }

    pub fn disturbed(&self) -> usize {
        self.disturbed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Percentiles = Percentiles { p50: Duration::ZERO, p99: Duration::ZERO };

    #[tokio::test]
    async fn rounds_go_on_until_enough_were_undisturbed_and_end_where_none_is() -> Result<()> {
        let mut order = Vec::new();
        let mut rounds = Rounds::new(2, 2);
        rounds
            .run(|kind| {
                order.push(kind);
                // The first of the second kind is disturbed.
                let seen = (order != [0, 1]).then_some(SEEN);
                async move { Ok(seen) }
            })
            .await?;
        assert_eq!((order.as_slice(), rounds.disturbed()), (&[0, 1, 0, 1, 1][..], 1));
        let never = Rounds::new(1, 2).run(async |_| Ok(None)).await;
        ensure!(never.is_err_and(|error| error.to_string().contains("16 rounds")));
        Ok(())
    }
}

//! Load at a fixed pace, and what it saw: percentiles that a stalled server cannot flatter.

use std::time::Duration;

use anyhow::{Result, ensure};
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

//! Load at a fixed pace, and what it saw: percentiles that a stalled server cannot flatter. And whether it was the server at
//! all: a virtual machine whose processors are given to somebody else stalls whatever runs on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::sync::oneshot;
use tokio::time::sleep_until;

use crate::http::Answer;

/// One call: when it could have been sent, and how long its answer took from then.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub due: Instant,
    pub took: Duration,
}

/// Makes a call every so often, one after the other, and fails at the first that is not answered 200.
///
/// A latency counts from when the call could have been sent: calls that had to queue behind a slow one are as late as
/// a shopper would have found them, and the millisecond that the client's own timer may oversleep is nobody's.
pub async fn paced<F>(every: Duration, time: Duration, mut call: impl FnMut(usize) -> F) -> Result<Vec<Call>>
where
    F: Future<Output = Result<Answer>>,
{
    let began = Instant::now();
    let mut calls = Vec::new();
    let mut next = began;
    while next < began + time {
        let due = if Instant::now() < next {
            sleep_until(next.into()).await;
            Instant::now()
        } else {
            next
        };
        let answer = call(calls.len()).await?;
        ensure!(answer.status == 200, "a request was refused: {}: {}", answer.status, answer.text());
        calls.push(Call { due, took: due.elapsed() });
        next += every;
    }
    Ok(calls)
}

/// A load on a thread and a runtime of its own: whatever else the test does meanwhile, such as sending megabytes, would be in
/// the latencies of a client that shares a thread with it. A client that it uses must be of its own ([`Client::afresh`]).
///
/// [`Client::afresh`]: crate::http::Client::afresh
pub async fn apart<F>(load: impl FnOnce() -> F + Send + 'static) -> Result<Vec<Call>>
where
    F: Future<Output = Result<Vec<Call>>>,
{
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("load".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Whoever asked may have gone.
        let _ = tell.send(runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(load())));
    })?;
    told.await.context("the load's thread has panicked")?
}

/// A thread on each processor that wants it for a moment every millisecond, before everybody else. Where it gets it late,
/// no other thread had the processor: the hypervisor ran somebody else's machine, or the kernel did something that it does
/// not interrupt.
pub struct Machine {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Stall>>>,
}

/// A time in which a processor of this machine stood still.
#[derive(Debug, Clone, Copy)]
struct Stall {
    from: Instant,
    to: Instant,
}

impl Machine {
    const LOOKS_EVERY: Duration = Duration::from_millis(1);
    /// A timer and a change of threads take a tenth of this.
    const LATE_MIN: Duration = Duration::from_millis(1);
    /// For what has piled up meanwhile.
    const RECOVERS_WITHIN: Duration = Duration::from_millis(5);
    /// Most important: needs root, without which a machine under load looks as if it stood still.
    const NICENESS: i32 = -20;

    pub fn watch() -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let allowed = sched_getaffinity(None)?;
        let processors = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor));
        let threads = processors.map(|processor| {
            let ended = Arc::clone(&ended);
            std::thread::Builder::new().name(format!("watch-{processor}")).spawn(move || {
                let mut only = CpuSet::new();
                only.set(processor);
                let placed = sched_setaffinity(None, &only).is_ok();
                if placed && rustix::process::nice(Self::NICENESS).is_ok() {
                    return Self::look(&ended);
                }
                crate::skip("watching the machine for stalls", "no right to run before everybody else");
                Vec::new()
            })
        });
        Ok(Self { threads: threads.collect::<Result<_, _>>()?, ended })
    }

    fn look(ended: &AtomicBool) -> Vec<Stall> {
        let mut stalls = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            let due = Instant::now() + Self::LOOKS_EVERY;
            std::thread::sleep(Self::LOOKS_EVERY);
            let woken = Instant::now();
            if woken.saturating_duration_since(due) >= Self::LATE_MIN {
                stalls.push(Stall { from: due, to: woken + Self::RECOVERS_WITHIN });
            }
        }
        stalls
    }

    /// Ends the watch and leaves out what met a stall. A long call is likelier to meet one than a short one, so the p99 of
    /// all calls is told beside that of the rest.
    pub fn undisturbed(self, kinds: Vec<Vec<Call>>) -> Vec<Undisturbed> {
        self.ended.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| thread.join().unwrap_or_default());
        let mut stalls: Vec<Stall> = ended.flatten().collect();
        stalls.sort_unstable_by_key(|stall| stall.from);
        let meets = |call: &Call| {
            let end = call.due + call.took;
            let begun = stalls.partition_point(|stall| stall.from <= end);
            // A stall is at most seconds long, and few are.
            stalls[..begun].iter().rev().take(1_000).any(|stall| stall.to >= call.due)
        };
        let of = |calls: Vec<Call>| {
            let all = calls.len();
            let latencies: Vec<_> = calls.iter().filter(|call| !meets(call)).map(|call| call.took).collect();
            let p99_of_all = percentile(calls.iter().map(|call| call.took).collect(), 990);
            Undisturbed { left_out: all - latencies.len(), latencies, p99_of_all }
        };
        kinds.into_iter().map(of).collect()
    }
}

/// The calls of one kind of round, without those in which the machine stood still.
#[derive(Debug)]
pub struct Undisturbed {
    latencies: Vec<Duration>,
    left_out: usize,
    p99_of_all: Duration,
}

fn percentile(mut latencies: Vec<Duration>, per_mille: usize) -> Duration {
    latencies.sort_unstable();
    latencies.get(latencies.len().saturating_sub(1) * per_mille / 1_000).copied().unwrap_or_default()
}

impl Undisturbed {
    fn at(&self, per_mille: usize) -> Duration {
        percentile(self.latencies.clone(), per_mille)
    }

    pub fn p99(&self) -> Duration {
        self.at(990)
    }

    /// One line: percentiles, the p99 beside that of `quiet`, and how much of the load is not in it.
    pub fn row(&self, name: &str, quiet: &Self) -> String {
        let ms = |per_mille| self.at(per_mille).as_secs_f64() * 1e3;
        let more = (self.p99().as_secs_f64() / quiet.p99().as_secs_f64() - 1.0) * 100.0;
        let all = self.latencies.len() + self.left_out;
        format!(
            "  {name:<40} p50 {:>5.2} ms  p90 {:>5.2}  p99 {:>6.2} ({more:>+6.1} %)  p99.9 {:>6.2}  of {} calls, {:.1} % met a stall (p99 with them {:.2})",
            ms(500),
            ms(900),
            ms(990),
            ms(999),
            all,
            self.left_out as f64 / all.max(1) as f64 * 100.0,
            self.p99_of_all.as_secs_f64() * 1e3,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_met_a_stall_is_left_out_and_what_is_slow_by_itself_is_not() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let stall = Stall { from: at(100), to: at(120) };
        let ended = Arc::new(AtomicBool::new(false));
        let machine = Machine { ended, threads: vec![std::thread::spawn(move || vec![stall])] };
        let call = |due, took| Call { due: at(due), took: Duration::from_millis(took) };
        let calls = vec![call(0, 50), call(90, 20), call(95, 100), call(110, 1), call(121, 70), call(200, 1)];
        let seen = machine.undisturbed(vec![calls]);
        assert_eq!((seen[0].left_out, seen[0].latencies.len()), (3, 3));
        assert_eq!(seen[0].at(1_000), Duration::from_millis(70));
    }
}

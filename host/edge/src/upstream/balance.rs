//! Which of several servers gets the next request: power of two choices on peak EWMA of latency.
//!
//! Two servers are drawn by weight, and the one with less load takes the request: what it is likely to take (latency)
//! times how many are before it (in flight, against its weight). Two random choices are as good as the full comparison
//! and do not send everybody to the one server that looked best a moment ago. Pure: time and draws are arguments.
//! Knows nothing of health; [`super::roster`] says who may be drawn.

use std::time::Duration;

/// How long a latency is remembered: after this much time a third of it is left. Long enough to outlast a garbage
/// collection at the server, short enough that a slow server is asked again within a minute.
const DECAY: Duration = Duration::from_secs(10);
/// Below this, a difference is the scheduling of the machines between and not the server.
const LATENCY_FLOOR_S: f64 = 0.001;
/// Loads within this factor are alike, and the weights decide. Without it, servers that are equal would share requests
/// by their latest latency, and with few requests in flight every second one would go to the lighter server.
const ALIKE: f64 = 2.0;

/// An estimate of what a server takes until the head of its response: it follows a rise at once and a fall slowly.
#[derive(Clone, Debug, Default)]
pub(super) struct Latency {
    /// Seconds at the time of the last observation.
    peak: Option<f64>,
    at: Duration,
}

impl Latency {
    pub(super) fn observe(&mut self, now: Duration, took: Duration) {
        let took = took.as_secs_f64();
        self.peak = Some(match self.peak {
            Some(peak) if took < peak => {
                let kept = self.kept(now);
                peak * kept + took * (1.0 - kept)
            }
            _ => took,
        });
        self.at = now;
    }

    /// The estimate in seconds. Without new observations it falls, so that a server that nobody asks is asked again.
    pub(super) fn seconds(&self, now: Duration) -> Option<f64> {
        self.peak.map(|peak| peak * self.kept(now))
    }

    fn kept(&self, now: Duration) -> f64 {
        (-now.saturating_sub(self.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// What is known of a server that may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its share of the requests; above 0.
    pub(super) weight: f64,
    pub(super) in_flight: usize,
    /// Seconds; none of a server that has not answered yet.
    pub(super) latency: Option<f64>,
}

/// The index of the candidate that takes the request. `draws` are two random numbers from 0 to below 1.
pub(super) fn choose(candidates: &[Candidate], draws: [f64; 2]) -> Option<usize> {
    let first = draw(candidates, None, draws[0])?;
    let Some(second) = draw(candidates, Some(first), draws[1]) else { return Some(first) };
    let loads = Loads::of(candidates);
    let lighter = loads.of_one(&candidates[second]) * ALIKE < loads.of_one(&candidates[first]);
    Some(if lighter { second } else { first })
}

/// One index, each as likely as its weight says.
fn draw(candidates: &[Candidate], but: Option<usize>, draw: f64) -> Option<usize> {
    let others = || candidates.iter().enumerate().filter(|(index, _)| Some(*index) != but);
    let mut left = others().map(|(_, candidate)| candidate.weight).sum::<f64>() * draw;
    let mut last = None;
    for (index, candidate) in others() {
        last = Some(index);
        left -= candidate.weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

/// What the loads of these candidates are measured by.
struct Loads {
    weight_mean: f64,
    latency_mean: f64,
}

impl Loads {
    fn of(candidates: &[Candidate]) -> Self {
        let known: Vec<f64> = candidates.iter().filter_map(|candidate| candidate.latency).collect();
        let weights: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        Self {
            weight_mean: weights / candidates.len().max(1) as f64,
            latency_mean: known.iter().sum::<f64>() / known.len().max(1) as f64,
        }
    }

    /// A server that has not answered yet is taken for an average one: taken for a fast one, it would get everything
    /// until its first answer.
    fn of_one(&self, candidate: &Candidate) -> f64 {
        let latency = candidate.latency.unwrap_or(self.latency_mean).max(LATENCY_FLOOR_S);
        let before = candidate.in_flight as f64 * self.weight_mean / candidate.weight;
        latency * (1.0 + before)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Servers that take a fixed time, asked at a steady rate on a clock of their own.
    struct Simulated {
        weights: Vec<f64>,
        takes: Vec<Duration>,
        latencies: Vec<Latency>,
        /// When each request in flight ends.
        ends: Vec<Vec<Duration>>,
        now: Duration,
        random: StdRng,
    }

    impl Simulated {
        fn new(servers: &[(f64, u64)]) -> Self {
            Self {
                weights: servers.iter().map(|(weight, _)| *weight).collect(),
                takes: servers.iter().map(|(_, takes)| ms(*takes)).collect(),
                latencies: vec![Latency::default(); servers.len()],
                ends: vec![Vec::new(); servers.len()],
                now: Duration::ZERO,
                random: StdRng::seed_from_u64(7),
            }
        }

        /// Shares of the requests in percent.
        fn run(&mut self, requests: usize, every: Duration) -> Vec<usize> {
            let mut counts = vec![0; self.takes.len()];
            for _ in 0..requests {
                self.now += every;
                for (index, ends) in self.ends.iter_mut().enumerate() {
                    let before = ends.len();
                    ends.retain(|end| *end > self.now);
                    if ends.len() < before {
                        self.latencies[index].observe(self.now, self.takes[index]);
                    }
                }
                let candidates: Vec<_> = (0..self.takes.len())
                    .map(|index| Candidate {
                        weight: self.weights[index],
                        in_flight: self.ends[index].len(),
                        latency: self.latencies[index].seconds(self.now),
                    })
                    .collect();
                let chosen = choose(&candidates, self.random.random()).expect("there are servers");
                self.ends[chosen].push(self.now + self.takes[chosen]);
                counts[chosen] += 1;
            }
            counts.iter().map(|count| count * 100 / requests).collect()
        }
    }

    #[test]
    fn equal_servers_share_equally_and_by_weight() {
        let equal = Simulated::new(&[(1.0, 10), (1.0, 10), (1.0, 10)]).run(30_000, ms(5));
        assert!(equal.iter().all(|share| (30..=36).contains(share)), "{equal:?}");
        let weighted = Simulated::new(&[(3.0, 10), (1.0, 10)]).run(30_000, ms(5));
        assert!((68..=82).contains(&weighted[0]), "{weighted:?}");
        // Many in flight: 100 requests a second of a second each.
        let crowded = Simulated::new(&[(3.0, 1_000), (1.0, 1_000)]).run(30_000, ms(10));
        assert!((65..=80).contains(&crowded[0]), "{crowded:?}");
    }

    #[test]
    fn a_slow_server_gets_little_and_a_recovered_one_comes_back() {
        let mut world = Simulated::new(&[(1.0, 10), (1.0, 10), (1.0, 500)]);
        world.run(2_000, ms(5));
        let slow = world.run(10_000, ms(5));
        assert!(slow[2] <= 3, "a slow server keeps {} %", slow[2]);
        world.takes[2] = ms(10);
        // A minute, in which it is asked again by and by.
        world.run(12_000, ms(5));
        let recovered = world.run(10_000, ms(5));
        assert!(recovered[2] >= 25, "a recovered server has {} % again", recovered[2]);
    }

    #[test]
    fn a_server_that_has_not_answered_is_not_flooded() {
        let candidates = [
            Candidate { weight: 1.0, in_flight: 2, latency: Some(0.01) },
            Candidate { weight: 1.0, in_flight: 8, latency: None },
        ];
        for draw in [0.0, 0.4, 0.6, 0.99] {
            assert_eq!(choose(&candidates, [draw, 0.0]), Some(0));
        }
    }

    #[test]
    fn one_is_chosen_and_none_is_not() {
        let one = [Candidate { weight: 1.0, in_flight: 9, latency: Some(9.0) }];
        assert_eq!(choose(&one, [0.99, 0.99]), Some(0));
        assert_eq!(choose(&[], [0.5, 0.5]), None);
    }

    #[test]
    fn a_rise_is_seen_at_once_and_a_fall_by_and_by() {
        let mut latency = Latency::default();
        latency.observe(ms(0), ms(10));
        latency.observe(ms(1), ms(900));
        assert!(latency.seconds(ms(1)).expect("observed") >= 0.9);
        latency.observe(ms(2), ms(10));
        assert!(latency.seconds(ms(2)).expect("observed") > 0.8, "one fast answer proves nothing");
        for second in 1..60 {
            latency.observe(ms(second * 1_000), ms(10));
        }
        assert!(latency.seconds(ms(60_000)).expect("observed") < 0.02);
    }
}

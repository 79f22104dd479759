//! Where second runs are made: one thread per node, behind a queue that never makes a shopper wait.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::journal::CallId;
use souk_commerce::site::Guard;

use super::Recorder;
use super::recording::{Context, Limits, Live, Outcome, Recording, VERSION};
use super::redact::{self, KEY_BYTES};
use super::reel::Reel;
use super::subject::{self, Answer, Subject};
use crate::admit::CONTRACT;
use crate::fault::Fault;
use crate::hook::{Allowance, Call, HookPlugin, Invocation, SiteData};

/// Calls that wait for their second run. A call holds its lines (at most 1,000 of some 100 bytes; the products are
/// the catalogue's own), so a full queue of greatest calls is 13 MB; a second run takes about 100 us.
const QUEUE_MAX: usize = 128;
/// A site may have so many times as many calls waiting as there are free places: one busy site alone has up to 103 of
/// 128, two have 57 each, and there is always a place for a site that has none.
const WAITING_PER_FREE: usize = 4;
/// How nice the thread of second runs is. They have no turn of their site's, so they run when nobody serves shoppers.
const NICENESS: i32 = 19;

/// Cheap to clone. The thread ends when the last clone and the last chain that records are gone and the queue is empty.
#[derive(Clone)]
pub struct Studio {
    queue: SyncSender<Box<Capture>>,
    sites: Arc<Mutex<HashMap<SiteId, Weak<Seats>>>>,
    waiting: Arc<AtomicUsize>,
    metrics: StudioMetrics,
}

/// How many calls wait: of a site, and of all.
struct Seats {
    own: AtomicUsize,
    all: Arc<AtomicUsize>,
}

/// One of them; given back when the call has been recorded or thrown away.
struct Seat(Arc<Seats>);

impl Seats {
    /// A shopper's thread that looks while another takes a seat may take one too many: the queue itself is bounded.
    fn take(self: &Arc<Self>) -> Option<Seat> {
        let free = QUEUE_MAX.saturating_sub(self.all.load(Ordering::Relaxed));
        if self.own.load(Ordering::Relaxed) >= free * WAITING_PER_FREE {
            return None;
        }
        self.own.fetch_add(1, Ordering::Relaxed);
        self.all.fetch_add(1, Ordering::Relaxed);
        Some(Seat(Arc::clone(self)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.own.fetch_sub(1, Ordering::Relaxed);
        self.0.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the operator sees of recordings.
#[derive(Clone, Debug, Default)]
pub struct StudioMetrics {
    pub recorded: Counter,
    /// Wanted, but the queue was full, or the site's part of it.
    pub dropped: Counter,
    /// The second run ended in a way that says nothing about the plugin.
    pub failed: Counter,
    /// Recorded, but not with the live call's outcome.
    pub differed: Counter,
}

impl StudioMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for (name, help, counter) in [
            ("souk_recordings", "Calls of a hook that were recorded", &metrics.recorded),
            (
                "souk_recordings_dropped",
                "Calls that were to be recorded while the queue was full",
                &metrics.dropped,
            ),
            ("souk_recordings_failed", "Second runs that the host could not make", &metrics.failed),
            (
                "souk_recordings_differing",
                "Recordings whose outcome is not the live call's, because the shopper is hashed in them",
                &metrics.differed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        metrics
    }
}

impl Studio {
    /// `key` is the secret under which shoppers are hashed: random, and best forgotten with the process.
    pub fn start(
        recorder: Arc<dyn Recorder>,
        key: [u8; KEY_BYTES],
        metrics: StudioMetrics,
    ) -> std::io::Result<Self> {
        let (queue, captures) = sync_channel(QUEUE_MAX);
        let thread_metrics = metrics.clone();
        std::thread::Builder::new()
            .name("souk-studio".to_owned())
            .spawn(move || run(&captures, &*recorder, &key, &thread_metrics))?;
        Ok(Self { queue, sites: Arc::default(), waiting: Arc::default(), metrics })
    }

    /// What a step of a chain is given, to record its calls.
    pub(crate) fn tape(&self, site: &SiteId, plugin: &PluginName, release: u32, record_bp: u16) -> Tape {
        let (site, plugin) = (site.clone(), plugin.clone());
        let (seats, sampler) = (self.seats(&site), Sampler::anywhere());
        Tape { studio: self.clone(), site, plugin, release, record_bp, seats, sampler }
    }

    /// A site's chains share theirs.
    fn seats(&self, site: &SiteId) -> Arc<Seats> {
        let mut sites = self.sites.lock();
        if let Some(seats) = sites.get(site).and_then(Weak::upgrade) {
            return seats;
        }
        sites.retain(|_, seats| seats.strong_count() > 0);
        let seats = Arc::new(Seats { own: AtomicUsize::new(0), all: Arc::clone(&self.waiting) });
        sites.insert(site.clone(), Arc::downgrade(&seats));
        seats
    }
}

/// One release's way into the studio.
pub(crate) struct Tape {
    studio: Studio,
    site: SiteId,
    plugin: PluginName,
    release: u32,
    record_bp: u16,
    seats: Arc<Seats>,
    /// Its own: how often others are called has no part in what is recorded of this one.
    sampler: Sampler,
}

/// A finished live call that is to be recorded.
struct Capture {
    id: CallId,
    site: SiteId,
    plugin: PluginName,
    release: u32,
    loaded: HookPlugin,
    context: Context,
    allowance: Allowance,
    guard: Option<Guard>,
    subject: Subject,
    data: Arc<dyn SiteData>,
    /// None: the host's own trouble.
    live: Option<Outcome>,
    _seat: Seat,
}

impl Tape {
    /// Called after the live call, on its thread. Costs one addition unless the call is to be recorded.
    pub(crate) fn offer<R: Answer>(
        &self,
        loaded: &HookPlugin,
        invocation: &Invocation<'_>,
        subject: impl FnOnce() -> Subject,
        answer: &Result<R, Fault>,
    ) {
        if !self.sampler.draw(self.record_bp) {
            return;
        }
        let Some(seat) = self.seats.take() else {
            self.studio.metrics.dropped.inc();
            return;
        };
        let capture = Capture {
            id: invocation.id,
            site: self.site.clone(),
            plugin: self.plugin.clone(),
            release: self.release,
            loaded: loaded.clone(),
            context: Context::of(invocation),
            allowance: invocation.allowance,
            guard: invocation.guard.get(),
            subject: subject(),
            data: Arc::clone(invocation.call.data),
            live: subject::outcome(answer).ok(),
            _seat: seat,
        };
        match self.studio.queue.try_send(Box::new(capture)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.studio.metrics.dropped.inc();
            }
        }
    }
}

fn run(
    captures: &Receiver<Box<Capture>>,
    recorder: &dyn Recorder,
    key: &[u8; KEY_BYTES],
    metrics: &StudioMetrics,
) {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::warn!(%error, "calls are recorded at the priority of those that serve shoppers");
    }
    for capture in captures {
        let id = capture.id;
        match capture.record(key) {
            Ok(recording) => {
                metrics.recorded.inc();
                if recording.live == Live::Differs {
                    metrics.differed.inc();
                }
                recorder.take(id, recording);
            }
            Err(fault) => {
                metrics.failed.inc();
                tracing::debug!(%fault, "a call could not be recorded");
            }
        }
    }
}

impl Capture {
    /// The second run.
    fn record(self, key: &[u8; KEY_BYTES]) -> Result<Recording, Fault> {
        let mut context = self.context;
        context.customer =
            context.customer.as_deref().map(|customer| redact::customer(key, &self.site, customer));
        let reel = Reel::over(self.data);
        let data: Arc<dyn SiteData> = Arc::clone(&reel) as Arc<dyn SiteData>;
        let call = context.call(&data);
        let invocation = Invocation::new(&call, &self.plugin, &context.settings, self.allowance);
        let outcome = self.subject.ask(&self.loaded, &invocation)?;
        let taken = reel.take();
        let live = if self.live.as_ref() == Some(&outcome) { Live::Same } else { Live::Differs };
        let mut recording = Recording {
            version: VERSION,
            contract: CONTRACT.to_owned(),
            plugin: self.plugin.clone(),
            release: self.release,
            component: self.loaded.digest(),
            hook: self.subject.hook(),
            limits: Limits::of(self.loaded.engine().limits(), self.allowance),
            guard: self.guard,
            omitted_bytes: None,
            input: self.subject.input(),
            host_calls: taken.calls,
            outcome,
            live,
            site: self.site,
            context,
        };
        if taken.bytes > super::RECORDING_BYTES_MAX {
            recording.omit(taken.bytes);
        }
        Ok(recording)
    }
}

impl Context {
    fn of(invocation: &Invocation<'_>) -> Self {
        let call = invocation.call;
        Self {
            now_ms: call.now_ms,
            currency: call.currency,
            country: call.country.clone(),
            region: call.region.clone(),
            language: call.language.clone(),
            segments: call.segments.clone(),
            customer: call.customer.clone(),
            coupons: call.coupons.clone(),
            seed: call.seed,
            settings: invocation.settings.to_owned(),
        }
    }

    pub(crate) fn call<'a>(&self, data: &'a Arc<dyn SiteData>) -> Call<'a> {
        Call {
            now_ms: self.now_ms,
            currency: self.currency,
            country: self.country.clone(),
            region: self.region.clone(),
            language: self.language.clone(),
            segments: self.segments.clone(),
            customer: self.customer.clone(),
            coupons: self.coupons.clone(),
            seed: self.seed,
            data,
        }
    }
}

/// What `record_bp` counts in.
const WHOLE: u64 = 10_000;

/// Draws evenly: of each 10,000 draws in turn, exactly the share is won. Which of them looks like chance, because traffic
/// has rhythms of its own: with every second call recorded, a shop whose calls alternate between two kinds would have one
/// kind recorded only. It is none, so that a test can say which calls are recorded.
#[derive(Debug, Default)]
struct Sampler(AtomicU64);

impl Sampler {
    /// Begins in the middle: a chain that sleeps often would otherwise never come to its one call of ten thousand.
    fn anywhere() -> Self {
        // Far from where counting would begin anew, which would cut one ten thousand short.
        Self(AtomicU64::new(RandomState::new().build_hasher().finish() >> 1))
    }

    fn draw(&self, record_bp: u16) -> bool {
        let share = u64::from(record_bp);
        // Most releases record nothing or everything.
        if share == 0 || share >= WHOLE {
            return share > 0;
        }
        let draw = self.0.fetch_add(1, Ordering::Relaxed);
        shuffled(draw % WHOLE, draw / WHOLE) < share
    }
}

/// The place of `draw` in an order of 0 to 9,999 that is another in each round. Each step permutes the numbers of 14 bits;
/// whoever lands on 10,000 or above goes on until below, which permutes the rest.
fn shuffled(draw: u64, round: u64) -> u64 {
    const BITS: u32 = 14;
    const MASK: u64 = (1 << BITS) - 1;
    // Spreads the round over all bits (the finish of SplitMix64).
    let mut key = round.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^= key >> 31;
    let mut place = draw;
    loop {
        // Three rounds of: add, multiply by an odd number, fold the upper half into the lower.
        for part in [key, key >> 14, key >> 28] {
            place = (place + (part & MASK)).wrapping_mul(0x2c9b) & MASK;
            place ^= place >> (BITS / 2);
        }
        if place < WHOLE {
            return place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampler_wins_exactly_its_share() {
        for share in [0_u16, 1, 37, 2_500, 9_999, 10_000, 20_000] {
            let sampler = Sampler::default();
            for _ in 0..3 {
                let won = (0..10_000).filter(|_| sampler.draw(share)).count();
                assert_eq!(won, usize::from(share.min(10_000)), "{share}");
            }
        }
    }

    #[test]
    fn no_rhythm_of_the_traffic_hides_from_the_sampler() {
        for share in [100_u16, 1_000, 2_500, 5_000, 9_000] {
            for kinds in 2..=16 {
                let sampler = Sampler::default();
                let mut won = vec![0; kinds];
                let draws = 200_000;
                for draw in 0..draws {
                    won[draw % kinds] += usize::from(sampler.draw(share));
                }
                let even = draws * usize::from(share) / 10_000 / kinds;
                // Four times what chance would scatter by.
                let apart = 4 * even.isqrt();
                assert!(won.iter().all(|won| won.abs_diff(even) <= apart), "{share}, {kinds}: {won:?}");
            }
        }
    }

    #[test]
    fn a_site_that_records_much_leaves_seats() {
        let studio_of = |sites: usize| {
            let all = Arc::new(AtomicUsize::new(0));
            (0..sites)
                .map(|_| Arc::new(Seats { own: AtomicUsize::new(0), all: all.clone() }))
                .collect::<Vec<_>>()
        };
        for (sites, most) in [(1, 103), (2, 57)] {
            let sites = studio_of(sites);
            let mut taken = Vec::new();
            for _ in 0..QUEUE_MAX {
                taken.extend(sites.iter().filter_map(Seats::take));
            }
            assert!(sites.iter().all(|seats| seats.own.load(Ordering::Relaxed) == most), "{most}");
            assert!(taken.len() < QUEUE_MAX, "a site that has none finds a seat");
            drop(taken);
            assert!(sites.iter().all(|seats| seats.take().is_some()), "given back");
        }
    }
}

//! The publisher against a broker that loses, forgets and refuses, and against itself: two at once, and one that dies.

use std::collections::{BTreeMap, HashMap, HashSet};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use souk_commerce::id::{OrderId, SiteId};
use souk_commerce::site::SiteSettings;
use souk_config::AckLevel;

use super::*;
use crate::saga::machine::Event;
use crate::store::StoreSettings;
use crate::store::audit::Actor;
use crate::store::publisher::{Forgotten, LEASE_MS};
use crate::store::site::By;
use crate::store::tests::home::{Home, on_every_engine};

const REGION: &str = "eu-west";
const SEEDS: u64 = 12;
const ROUNDS: u32 = 60;

fn site() -> SiteId {
    "shop".parse().unwrap()
}

/// What goes wrong with one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Luck {
    Kept,
    /// It does not get there.
    Lost,
    /// It does not get there, and what is sent after it does.
    LostInSilence,
    /// It is kept, and nobody says so.
    KeptInSilence,
    /// It is kept, and then whoever sent it is dead.
    KeptAndDies,
    Dies,
}

/// A stream, as servers keep it; or a queue, which counts nothing and knows no id again.
#[derive(Debug, Default)]
struct Stream {
    is_queue: bool,
    /// Somebody has deleted it.
    is_gone: bool,
    /// It is not made again.
    is_refused: bool,
    made: u64,
    connections: u64,
    /// Of the first message that is kept.
    first: u64,
    /// Ids, by position.
    kept: Vec<String>,
    /// Ids that are known again.
    known: HashMap<String, u64>,
    /// Of the messages to come.
    luck: Vec<Luck>,
    is_away: bool,
    sent: u64,
}

impl Stream {
    fn keep(&mut self, id: &str) -> Receipt {
        if self.is_queue {
            self.kept.push(id.to_owned());
            return Receipt { position: None, is_repeated: false };
        }
        if let Some(position) = self.known.get(id) {
            return Receipt { position: Some(*position), is_repeated: true };
        }
        self.kept.push(id.to_owned());
        let position = self.kept.len() as u64;
        self.known.insert(id.to_owned(), position);
        Receipt { position: Some(position), is_repeated: false }
    }

    /// With everything in it.
    fn delete(&mut self) {
        self.is_gone = true;
        self.kept.clear();
    }

    /// As after a loss of power: the end was not on the disks.
    fn lose(&mut self, count: usize) {
        let left = self.kept.len().saturating_sub(count);
        for id in self.kept.split_off(left) {
            self.known.remove(&id);
        }
    }
}

fn away<T>() -> Result<T, NotHeld> {
    Err(NotHeld::Away("away".to_owned()))
}

/// The broker; clones are connections of other processes.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Stream>>);

impl Broker for Fake {
    fn name(&self) -> String {
        "fake/events".to_owned()
    }

    fn connections(&self) -> u64 {
        self.0.lock().connections
    }

    fn prepare(&self, anew: bool) -> BoxFuture<'_, Result<Option<Sink>, NotHeld>> {
        let mut stream = self.0.lock();
        let found = if stream.is_away {
            away()
        } else if stream.is_gone && anew && stream.is_refused {
            Err(NotHeld::Refused("no".to_owned()))
        } else {
            stream.is_gone &= !anew;
            let head = if stream.is_queue { 0 } else { stream.kept.len() as u64 };
            Ok((!stream.is_gone).then(|| Sink { stream: stream.made.to_string(), head }))
        };
        Box::pin(std::future::ready(found))
    }

    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Acknowledgement, NotHeld>> {
        Box::pin(async move {
            let (luck, receipt) = {
                let mut stream = self.0.lock();
                stream.sent += 1;
                let luck = if stream.is_away { Luck::Lost } else { stream.luck.pop().unwrap_or(Luck::Kept) };
                if stream.is_gone {
                    return Ok(Box::pin(std::future::ready(Err(NotHeld::Unroutable("gone".to_owned()))))
                        as Acknowledgement);
                }
                let is_kept = !matches!(luck, Luck::Lost | Luck::LostInSilence | Luck::Dies);
                (luck, is_kept.then(|| stream.keep(&message.id)))
            };
            match luck {
                Luck::Kept => {
                    let receipt = receipt.expect("it is kept");
                    Ok(Box::pin(std::future::ready(Ok(receipt))) as Acknowledgement)
                }
                Luck::Lost => away(),
                Luck::LostInSilence | Luck::KeptInSilence => {
                    Ok(Box::pin(std::future::ready(away())) as Acknowledgement)
                }
                Luck::KeptAndDies | Luck::Dies => std::future::pending().await,
            }
        })
    }

    fn at(&self, position: u64) -> BoxFuture<'_, Result<Found, NotHeld>> {
        let stream = self.0.lock();
        let kept = position.checked_sub(1).and_then(|index| stream.kept.get(usize::try_from(index).unwrap()));
        let found = match kept {
            None => Found::Nothing,
            Some(_) if position < stream.first => Found::Nothing,
            Some(id) => Found::Event(envelope::seq_of(id).expect("an id of ours")),
        };
        Box::pin(std::future::ready(Ok(found)))
    }
}

/// A region's store, and processes that hand on what is in it.
struct World {
    store: Store,
    fake: Fake,
    now_ms: u64,
    publishers: Vec<Publisher>,
    orders: Vec<OrderId>,
}

impl World {
    /// `stores`: one for each process.
    async fn new(stores: Vec<Store>) -> Self {
        Self::with(stores, Stream::default()).await
    }

    async fn with(stores: Vec<Store>, stream: Stream) -> Self {
        let store = stores[0].clone();
        let actor = Actor { name: "test".to_owned(), peer: String::new() };
        let settings = SiteSettings::new(site(), "GBP".parse().unwrap());
        store.put_site(settings, By::Operator, actor).await.unwrap();
        let fake = Fake(Arc::new(Mutex::new(stream)));
        let publishers = stores.into_iter().map(|store| publisher(store, &fake)).collect();
        let orders = (0..5).map(|number| OrderId([number; 16])).collect();
        Self { store, fake, now_ms: 1_000, publishers, orders }
    }

    async fn happen(&self, order: usize) {
        self.store.happen(site(), self.orders[order], Event::Captured, self.now_ms).await.unwrap();
    }

    /// A step of one process; one that dies in it is replaced.
    async fn step(&mut self, process: usize) -> Result<Step, Trouble> {
        let now_ms = self.now_ms;
        let clock = move || now_ms;
        let publisher = &mut self.publishers[process];
        // Nothing in here waits for a clock, but a store that writes.
        let dies = tokio::time::sleep(Duration::from_millis(400));
        let is_mortal =
            self.fake.0.lock().luck.iter().any(|luck| matches!(luck, Luck::KeptAndDies | Luck::Dies));
        tokio::select! {
            outcome = publisher.step(&clock) => outcome,
            () = dies, if is_mortal => {
                *publisher = self::publisher(publisher.store.clone(), &self.fake);
                Ok(Step::Did)
            }
        }
    }

    /// Heals everything, and lets each process hand on what is left.
    async fn calm(&mut self) {
        {
            let mut stream = self.fake.0.lock();
            stream.luck.clear();
            (stream.is_away, stream.is_refused) = (false, false);
        }
        for process in 0..self.publishers.len() {
            self.now_ms += LEASE_MS;
            for _ in 0..100 {
                if let Ok(Step::Nothing) = self.step(process).await {
                    break;
                }
            }
        }
    }

    /// The broker has every event of the outbox, and the place says so. Answers how many came more than once, and whether
    /// each order's came for the first time as they happened.
    async fn check(&self) -> (usize, bool) {
        let happened = self.store.events_after(0, 100_000).await.unwrap();
        let kept = self.fake.0.lock().kept.clone();
        let unique: HashSet<_> = kept.iter().collect();
        for (_, event) in &happened {
            assert!(unique.contains(&event.id), "{} is not there: {kept:?}", event.id);
        }
        assert_eq!(unique.len(), happened.len(), "nothing is there that did not happen");
        let look = self.store.look_at_publisher("fake/events".to_owned()).await.unwrap();
        assert_eq!(look.progress.unwrap().place, look.newest);
        let waiting = self.store.waiting_events("fake/events".to_owned()).await.unwrap();
        assert_eq!((waiting.events, waiting.since_ms), (0, None));
        let orders: HashMap<_, _> = happened.iter().map(|(_, event)| (&event.id, event.order)).collect();
        let (mut seen, mut last, mut in_order) = (HashSet::new(), BTreeMap::new(), true);
        for id in kept.iter().filter(|id| seen.insert(*id)) {
            let seq = envelope::seq_of(id).unwrap();
            in_order &= last.insert(orders[id].to_string(), seq).is_none_or(|before| before < seq);
        }
        (kept.len() - unique.len(), in_order)
    }
}

fn publisher(store: Store, fake: &Fake) -> Publisher {
    let pair = Arc::new(pair::held::Held::new(AckLevel::One, false));
    Publisher::new(store, Box::new(fake.clone()), REGION.to_owned(), Arc::new(Telemetry::new()), pair)
}

on_every_engine! {
    each_event_arrives_and_those_of_an_order_as_they_happened,
    a_queue_gets_each_event_also_after_it_was_deleted,
    a_stream_that_loses_its_end_or_is_made_anew_gets_it_again,
    a_broker_that_is_away_is_waited_for_and_the_turn_is_given_up,
    nothing_is_handed_on_that_the_standby_does_not_have,
}

/// One process on a file, two on a server.
fn processes(home: &Home) -> Vec<Store> {
    match home {
        Home::File(_) => {
            let store = home.open();
            vec![store.clone(), store]
        }
        Home::Postgres(_) => vec![home.open(), home.open()],
    }
}

/// Messages and acknowledgements that are lost, names that are forgotten, processes that die in the middle; two at once.
async fn each_event_arrives_and_those_of_an_order_as_they_happened(home: Home) {
    let mut world = World::new(processes(&home)).await;
    let mut repeated = 0;
    for seed in 0..SEEDS {
        repeated += storm(&mut world, seed, false).await;
    }
    assert!(repeated > 0, "a test in which nothing comes twice shows nothing");
}

/// The same of a queue, which counts nothing; and now and then somebody deletes it.
async fn a_queue_gets_each_event_also_after_it_was_deleted(home: Home) {
    let queue = Stream { is_queue: true, ..Stream::default() };
    let mut world = World::with(processes(&home), queue).await;
    let mut repeated = 0;
    for seed in 0..SEEDS {
        repeated += storm(&mut world, seed, true).await;
    }
    assert!(repeated > 0, "a test in which nothing comes twice shows nothing");
    // While nothing happens: with the next event, everything comes again.
    world.fake.0.lock().delete();
    world.happen(0).await;
    world.calm().await;
    assert_eq!(world.check().await, (0, true));
    // Nobody makes it for a while, and the process that saw that it was gone dies.
    {
        let mut stream = world.fake.0.lock();
        stream.delete();
        stream.is_refused = true;
    }
    world.happen(1).await;
    let Err(Trouble::Broker(NotHeld::Unroutable(_))) = world.step(0).await else { panic!("it is gone") };
    let Err(Trouble::Broker(NotHeld::Refused(_))) = world.step(0).await else { panic!("nobody makes it") };
    world.publishers[0] = publisher(world.store.clone(), &world.fake);
    // Somebody makes it by hand.
    world.fake.0.lock().is_gone = false;
    world.calm().await;
    assert_eq!(world.check().await, (0, true), "everything that is kept is there again");
    // A process that was in the middle of a batch when it went does not note what the former queue held.
    let (store, name) = (&world.store, "fake/events".to_owned());
    let now_ms = world.now_ms + LEASE_MS;
    let claim = store.claim_events(name.clone(), "0".to_owned(), None, now_ms).await.unwrap();
    let Claim::Ours(turn) = claim else { panic!("nobody has the turn any more") };
    assert!(turn.place > 0);
    let forget = async |fence| store.forget_published(name.clone(), fence).await.unwrap();
    assert_eq!(forget(Some(turn.fence)).await, Forgotten::Events);
    assert!(!store.note_published(name.clone(), turn, false).await.unwrap());
    assert_eq!(forget(Some(turn.fence)).await, Forgotten::Anothers, "there was a turn since");
    assert_eq!(forget(None).await, Forgotten::Anothers, "there was a first one");
    assert_eq!(forget(Some(turn.fence + 1)).await, Forgotten::Nothing, "it is at the beginning already");
    let look = store.look_at_publisher(name).await.unwrap();
    assert_eq!(look.progress.unwrap().place, 0);
}

/// A quarter of an hour of bad luck, and calm. Answers how many messages came more than once.
async fn storm(world: &mut World, seed: u64, deletes: bool) -> usize {
    let mut chance = StdRng::seed_from_u64(seed);
    for _ in 0..ROUNDS / 4 {
        for _ in 0..chance.random_range(0..6) {
            world.happen(chance.random_range(0..5)).await;
        }
        {
            let mut stream = world.fake.0.lock();
            stream.luck = (0..chance.random_range(0..5))
                .map(|_| match chance.random_range(0..40) {
                    0 => Luck::Dies,
                    1 => Luck::KeptAndDies,
                    2..5 => Luck::Lost,
                    5..10 => Luck::LostInSilence,
                    10..14 => Luck::KeptInSilence,
                    _ => Luck::Kept,
                })
                .collect();
            stream.is_away = chance.random_range(0..10) == 0;
            if chance.random_range(0..5) == 0 {
                stream.known.clear();
            }
            if deletes && chance.random_range(0..8) == 0 {
                stream.delete();
            }
        }
        world.now_ms += [10, 1_000, LEASE_MS][chance.random_range(0..3)];
        let process = chance.random_range(0..2);
        let _outcome = world.step(process).await;
    }
    // What was deleted while nothing happened is found with the next event.
    if deletes {
        world.happen(0).await;
    }
    world.calm().await;
    let (twice, in_order) = world.check().await;
    assert!(in_order, "seed {seed}: {:?}", world.fake.0.lock().kept);
    twice
}

async fn a_stream_that_loses_its_end_or_is_made_anew_gets_it_again(home: Home) {
    let store = home.open();
    let mut world = World::new(vec![store]).await;
    let refill = async |world: &mut World| {
        for order in [0, 1, 1, 2, 0, 3, 4, 4] {
            world.happen(order).await;
        }
        world.calm().await;
        world.check().await
    };
    refill(&mut world).await;
    // All servers lost power; the connection with them. Nothing happens meanwhile.
    {
        let mut stream = world.fake.0.lock();
        stream.lose(5);
        stream.connections += 1;
    }
    world.calm().await;
    assert!(world.check().await.1, "handed on again, in order");
    // The leader lost it, and the connection is to another server: the next message is put where an old one was.
    world.fake.0.lock().lose(3);
    refill(&mut world).await;
    // The same, and the process dies before it has noted what it saw.
    {
        let mut stream = world.fake.0.lock();
        stream.lose(2);
        stream.luck = vec![Luck::Dies, Luck::Kept, Luck::Kept, Luck::Kept];
    }
    for order in [0, 1, 2, 3, 4] {
        world.happen(order).await;
    }
    assert_eq!(world.step(0).await.unwrap(), Step::Did);
    world.calm().await;
    world.check().await;
    // Somebody deleted the stream, and it was made again.
    {
        let mut stream = world.fake.0.lock();
        let made = stream.made + 1;
        *stream = Stream { made, connections: stream.connections + 1, ..Stream::default() };
    }
    world.calm().await;
    assert!(world.check().await.1);
    // What the stream has kept for its time is gone in peace, and is not handed on again.
    let sent = {
        let mut stream = world.fake.0.lock();
        stream.first = 1_000;
        stream.connections += 1;
        stream.sent
    };
    world.happen(0).await;
    world.calm().await;
    world.check().await;
    assert_eq!(world.fake.0.lock().sent, sent + 1);
}

async fn a_broker_that_is_away_is_waited_for_and_the_turn_is_given_up(home: Home) {
    let mut world = World::new(processes(&home)).await;
    assert_eq!(world.step(0).await.unwrap(), Step::Did, "the stream is looked at before anything happens");
    assert_eq!(world.step(0).await.unwrap(), Step::Nothing);
    for order in 0..3 {
        world.happen(order).await;
    }
    world.fake.0.lock().luck = vec![Luck::Lost, Luck::Kept];
    let Err(Trouble::Broker(NotHeld::Away(_))) = world.step(0).await else { panic!("a message was lost") };
    let waiting = world.store.waiting_events("fake/events".to_owned()).await.unwrap();
    assert_eq!((waiting.events, waiting.since_ms), (2, Some(world.now_ms)), "the first has arrived");
    // At once, by another process: the one that failed has given its turn up.
    assert_eq!(world.step(1).await.unwrap(), Step::Did);
    assert_eq!(world.step(1).await.unwrap(), Step::Nothing);
    world.check().await;
}

async fn nothing_is_handed_on_that_the_standby_does_not_have(home: Home) {
    let settings = StoreSettings { is_followed: true, ..StoreSettings::for_tests(1_000) };
    let mut world = World::new(vec![home.open_with(settings)]).await;
    let pair = Arc::new(pair::held::Held::new(AckLevel::Two, false));
    world.publishers[0].pair = Arc::clone(&pair);
    world.happen(0).await;
    let Err(Trouble::NotSafe) = world.step(0).await else { panic!("the standby has nothing") };
    assert_eq!(world.fake.0.lock().sent, 0);
    pair.held(u64::MAX, 0, &[], true, std::time::Instant::now());
    world.calm().await;
    world.check().await;
}

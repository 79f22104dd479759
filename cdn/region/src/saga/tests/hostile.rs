//! Many checkouts through a provider that fails, by workers that die: nobody pays twice, and no unit is lost.

use super::*;

/// What a hostile run came to.
#[derive(Debug, Default)]
struct Figures {
    placed: u64,
    declined: u64,
    charged: u64,
    deaths: u64,
    /// Times at which there was something to do.
    moments: u64,
    requests: u64,
    repeated: u64,
    troubles: u64,
}

/// Many checkouts, some with bad cards, some cancelled by the merchant half-way, through a provider that fails at a third of
/// its requests, by workers of which a fifth die at each step.
async fn hostile(checkouts: usize, seed: u64) -> Figures {
    const WORKERS: usize = 64;
    /// Messages that come at once.
    const MESSAGES_AT_ONCE: usize = 32;
    /// By how much whoever takes a row up may be late. Without it each of ten thousand rows is a moment of its own, and at each
    /// moment the whole shop waits for the slowest answer.
    const LATE_MS_MAX: u64 = 20_000;
    const PRODUCTS: usize = 20;
    let provider = FakeProvider::hostile(seed, 35).await;
    // Every second unit that is wanted is there: many go without.
    let received = (checkouts / PRODUCTS) as u64;
    let world = Arc::new(World::new(provider, true, PRODUCTS, received).await);
    let drafts = Arc::new(world.carts(checkouts).await);
    let luck = Arc::new(AtomicU64::new(seed));
    let (deaths, asking) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let moments = Arc::new(AtomicU64::new(0));
    let (ordering, next) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (world, drafts, luck, next) =
            (Arc::clone(&world), Arc::clone(&drafts), Arc::clone(&luck), Arc::clone(&next));
        tasks.spawn(async move {
            while let Some(draft) = drafts.get(next.fetch_add(1, Ordering::SeqCst)) {
                let card = if chance(&luck).is_multiple_of(12) { BAD_CARD } else { "pm_card_visa" };
                let place = world.reserve(draft.clone(), card, true).await;
                assert!(matches!(place, Place::Reserved | Place::OutOfStock { .. }), "{place:?}");
                // The same question once more, as of a shopper whose answer was lost.
                if place == Place::Reserved && chance(&luck).is_multiple_of(3) {
                    let again = world.reserve(draft.clone(), card, true).await;
                    assert!(matches!(again, Place::Repeated(_)), "{again:?}");
                }
                if chance(&luck).is_multiple_of(10) {
                    let wish = if chance(&luck).is_multiple_of(2) { Wish::Cancel } else { Wish::Refund };
                    drop(world.wish(draft.order.id, wish).await);
                }
            }
        });
    }
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (world, luck, deaths) = (Arc::clone(&world), Arc::clone(&luck), Arc::clone(&deaths));
        let (asking, ordering, moments) = (Arc::clone(&asking), Arc::clone(&ordering), Arc::clone(&moments));
        workers.spawn(async move {
            loop {
                let die = || match chance(&luck) % 20 {
                    0 | 1 => {
                        deaths.fetch_add(1, Ordering::Relaxed);
                        Luck::DiesBeforeAsking
                    }
                    2 | 3 => {
                        deaths.fetch_add(1, Ordering::Relaxed);
                        Luck::DiesBeforeWriting
                    }
                    _ => Luck::Lives,
                };
                if world.work(die, &asking).await {
                    continue;
                }
                for some in world.provider.messages().chunks(MESSAGES_AT_ONCE) {
                    let read = some.iter().map(|(signature, body)| {
                        let payments = &world.payments;
                        async move { payments.message(&site(), Some(signature), body).await.unwrap() }
                    });
                    futures_util::future::join_all(read).await;
                }
                match world.store.checkout_due(&[]).await.unwrap() {
                    None if !ordering.load(Ordering::SeqCst) => return,
                    // Nobody is at work: what comes next comes now.
                    Some(due_ms) if asking.load(Ordering::SeqCst) == 0 => {
                        if due_ms > world.now_ms() {
                            moments.fetch_add(1, Ordering::Relaxed);
                            world.leap(due_ms + chance(&luck) % LATE_MS_MAX).await;
                        }
                    }
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    ordering.store(false, Ordering::SeqCst);
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    world.calm().await;
    let charged = world.check(&drafts).await;
    let mut figures = Figures {
        charged,
        deaths: deaths.load(Ordering::Relaxed),
        moments: moments.load(Ordering::Relaxed),
        ..Figures::default()
    };
    for draft in drafts.iter() {
        match world.store.order(draft.order.id).await.unwrap().map(|order| order.state) {
            Some(OrderState::Declined) | None => figures.declined += 1,
            Some(_) => figures.placed += 1,
        }
    }
    world.provider.books(|books| {
        figures.requests = books.requests;
        figures.repeated = books.repeated;
        figures.troubles = books.troubles;
    });
    figures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_pays_twice_and_no_unit_is_lost_whatever_the_provider_does() {
    let figures = hostile(300, 7).await;
    assert!(figures.placed > 30 && figures.declined > 30 && figures.charged > 30, "{figures:?}");
    assert!(figures.moments > 10 && figures.repeated > 10, "{figures:?}");
    assert!(figures.deaths > 100 && figures.troubles > 100, "{figures:?}");
}

/// The same at length: `cargo test -p souk-region --lib ten_thousand -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "minutes; asked for by name"]
async fn ten_thousand_checkouts_and_no_double_charge() {
    let began = std::time::Instant::now();
    let figures = hostile(10_000, 11).await;
    println!(
        "10,000 checkouts, 0 double charges, sold + available = received: {figures:?} in {:?}",
        began.elapsed()
    );
}

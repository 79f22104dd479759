//! Who may promise something at level 2: as the only process of a home, and as one of several over one database. And what a former
//! home keeps that becomes a standby.

use std::sync::Arc;
use std::time::{Duration, Instant};

use souk_commerce::money::Minor;
use souk_commerce::product::PriceRow;
use souk_config::{AckLevel, RegionConfig};
use tokio_util::sync::CancellationToken;

use super::follow;
use super::held::{Held, NotHeld};
use crate::journal::Journal;
use crate::own;
use crate::store::backup::Door;
use crate::store::pair::sink::Sink;
use crate::store::pair::standing::Standing;
use crate::store::tests::home::{Home, on_every_engine};
use crate::store::tests::{actor, furnish, site, sku};
use crate::store::{Store, StoreError, StoreSettings};

/// For what never comes.
const NO_TIME: Duration = Duration::from_millis(100);
/// For what is there already: a busy machine, and a server's answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

on_every_engine! {
    a_home_of_which_nothing_is_noted_promises_nothing,
}

fn followed(home: &Home) -> Store {
    home.open_with(StoreSettings { is_followed: true, ..StoreSettings::for_tests(1_000) })
}

async fn set_price(store: &Store, price: i64) -> Result<(), StoreError> {
    store.put_price(site(), sku("PEN"), PriceRow::of(Minor(price)), actor()).await.map(drop)
}

async fn is_held_within(held: &Held, store: &Store, wait_max: Duration) -> bool {
    match held.demand(store, wait_max).await {
        Ok(()) => true,
        Err(NotHeld::Away) => false,
        Err(error @ NotHeld::Store(_)) => panic!("{error}"),
    }
}

async fn is_held(held: &Held, store: &Store) -> bool {
    is_held_within(held, store, ANSWERED_WITHIN).await
}

async fn lacks(held: &Held, store: &Store) -> bool {
    !is_held_within(held, store, NO_TIME).await
}

async fn a_home_of_which_nothing_is_noted_promises_nothing(home: Home) {
    // It was alone, and has rows that nobody has noted.
    furnish(home.open()).await.close();
    let alone = home.open();
    assert!(is_held(&Held::new(AckLevel::One, false), &alone).await);
    assert!(lacks(&Held::new(AckLevel::Two, false), &alone).await, "no standby can have it");
    alone.close();
    drop(alone);
    // It is followed from now on, and nothing has been written since.
    let store = followed(&home);
    let held = Held::new(AckLevel::Two, false);
    assert!(lacks(&held, &store).await, "no standby has come");
    let head = store.change_head().await.unwrap();
    held.held(head, 0, &[], true, Instant::now());
    assert!(is_held(&held, &store).await);
    set_price(&store, 7).await.unwrap();
    assert!(lacks(&held, &store).await);
    store.close();
}

/// Two handles stand for two processes: they share nothing but the database.
#[tokio::test]
async fn of_several_processes_one_hears_the_standby_and_all_promise_no_more_than_it_holds() {
    let Some(home) = Home::postgres() else { return };
    let one = furnish(followed(&home)).await;
    let two = followed(&home);
    assert_eq!(
        one.change_stream().await.unwrap(),
        two.change_stream().await.unwrap(),
        "the second begins no other"
    );
    let (of_one, of_two) = (Held::new(AckLevel::Two, false), Held::new(AckLevel::Two, false));
    set_price(&two, 1).await.unwrap();
    assert!(lacks(&of_two, &two).await);
    // The first hears it.
    let head = one.change_head().await.unwrap();
    of_one.held(head, 0, &[], true, Instant::now());
    assert!(is_held(&of_one, &one).await, "as of what it has heard itself");
    assert!(lacks(&of_two, &two).await);
    one.note_held_by_standby(head).await.unwrap();
    assert!(is_held(&of_two, &two).await, "as of what the first has written down");
    // Whoever writes, both know that the standby lacks it.
    for (writer, price) in [(&one, 2), (&two, 3)] {
        set_price(writer, price).await.unwrap();
        assert!(lacks(&of_one, &one).await && lacks(&of_two, &two).await);
        let head = one.change_head().await.unwrap();
        of_one.held(head, 0, &[], true, Instant::now());
        one.note_held_by_standby(head).await.unwrap();
        assert!(is_held(&of_one, &one).await && is_held(&of_two, &two).await);
    }
    // One that was started without [pair] ends the noting for all of them: nobody promises anything, and says why.
    let without = home.open();
    assert!(lacks(&of_one, &one).await && lacks(&of_two, &two).await);
    without.close();
    // One is told that there is a later home: the other one writes nothing any more either.
    let at = one.clone();
    let standing = tokio::task::spawn_blocking(move || at.replaced(2)).await.unwrap().unwrap();
    assert_eq!(standing, Standing::Replaced { term: 1, by: 2 });
    let refused = set_price(&two, 4).await.unwrap_err();
    assert!(refused.to_string().contains("not home"), "{refused}");
    one.close();
    two.close();
}

/// After a takeover what the home has counts, until one of its processes writes down that a standby holds everything.
#[tokio::test]
async fn several_processes_are_alone_together_and_not_alone_together() {
    let (Some(former), Some(home)) = (Home::postgres(), Home::postgres()) else { return };
    let Home::Postgres(database) = &home else { unreachable!("a server's") };
    let (store, door) = (furnish(followed(&former)).await, Door::postgres(database, None).unwrap());
    door.follow(false).unwrap().unwrap();
    let mut sink = Sink::of_server(database, None).unwrap();
    let mut source = store.source().unwrap();
    source.send(None, 1, 7, &mut |frame| sink.take(frame).map(drop).is_ok()).unwrap();
    drop(sink);
    door.take_over(&serde_json::json!({}), false).unwrap().unwrap();
    let (one, two) = (followed(&home), followed(&home));
    assert!(one.is_alone().await.unwrap() && two.is_alone().await.unwrap());
    let of_two = Arc::new(Held::new(AckLevel::Two, true));
    set_price(&two, 1).await.unwrap();
    assert!(is_held(&of_two, &two).await && of_two.is_alone());
    one.is_not_alone().await.unwrap();
    assert!(lacks(&of_two, &two).await && !of_two.is_alone(), "it has heard nothing, and looks");
    for store in [one, two, store] {
        store.close();
    }
}

/// Whoever is erased at the home then is in no file of a former one but that of its rows.
#[tokio::test]
async fn a_region_that_is_made_the_standby_keeps_no_recorded_calls() {
    let place = tempfile::tempdir().unwrap();
    let hash = "0".repeat(64);
    let text = format!(
        "[region]\nname = \"eu\"\ndata_dir = \"data\"\n[listen]\nlink = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n\
         [link]\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\n[control]\noperator_token_sha256 = \"{hash}\"\n\
         [pair]\naddrs = [\"127.0.0.1:7443\"]\nserver_name = \"region.test\"\n"
    );
    let config = RegionConfig::parse(&text, &place.path().join("region.toml")).unwrap();
    let dir = &config.region.data_dir;
    own::folder(dir).unwrap();
    let store = furnish(Store::open(dir, StoreSettings::for_tests(1_000)).unwrap()).await;
    store.close();
    drop(store);
    Journal::open(dir, CancellationToken::new()).unwrap().close();
    // A region that was killed leaves its log too.
    std::fs::write(dir.join("journal.db-wal"), b"calls").unwrap();
    let files = ["journal.db", "journal.db-wal"].map(|name| dir.join(name));
    assert!(follow(&config, false).is_err(), "it is somebody's");
    assert!(files.iter().all(|file| file.exists()));
    follow(&config, true).unwrap();
    assert!(!files.iter().any(|file| file.exists()));
}

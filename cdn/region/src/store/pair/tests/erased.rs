//! What a shopper had erased at the home is gone at its standby too, whatever went wrong there meanwhile.

use super::*;
use crate::store::vault::Keyring;

on_every_engine! {
    what_was_erased_is_in_no_file_of_a_standby,
    a_key_whose_destruction_was_cut_short_is_destroyed_when_it_is_told_again,
}

async fn erase(store: &Store, customer: &str) {
    let customer = Some(customer.to_owned());
    let erased = store.erase_shopper(site(), customer, BTreeSet::new(), actor()).await.unwrap();
    assert!(matches!(erased, Erased::Now(_)), "{erased:?}");
}

fn keyring(home: &Home) -> Keyring {
    match home {
        Home::File(dir) => Keyring::of_file(dir.path()).unwrap(),
        Home::Postgres(database) => {
            Keyring::of_server(std::sync::Arc::new(Postgres::new(database, None).unwrap())).unwrap()
        }
    }
}

/// The standby dies between the note and the key.
async fn a_key_whose_destruction_was_cut_short_is_destroyed_when_it_is_told_again(place: Home) {
    let home = home_of_the_other_kind(&place);
    let store = furnish(followed(&home)).await;
    for turn in 0..2 {
        some_trade(&store, turn).await;
    }
    let mut standby = Standby::on(place);
    let mut source = store.source().unwrap();
    standby.follow(&mut source);
    let key = store.vault.find(&site(), "shopper-0").unwrap().expect("a key").id;
    erase(&store, "shopper-0").await;
    keyring(&standby.home).note_destroyed(&site(), &key).unwrap();
    standby.follow(&mut source).expect("there is something");
    door(&standby.home).take_over(&serde_json::json!({}), false).unwrap().unwrap();
    let after = standby.home.open();
    assert!(!after.vault.has(&site(), &key).unwrap(), "noted, and there still");
    assert!(after.vault.find(&site(), "shopper-0").unwrap().is_none());
    assert!(after.vault.find(&site(), "shopper-1").unwrap().is_some(), "nobody else's");
    after.close();
    store.close();
}

/// Its file, while it is in use: with the write-ahead log.
async fn what_was_erased_is_in_no_file_of_a_standby(home: Home) {
    const KEY: &str = "what-a-browser-made-up";
    let store = furnish(followed(&home)).await;
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_owned();
    let holds_it = || {
        let mut files = std::fs::read_dir(&dir).unwrap();
        files.any(|file| {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes())
        })
    };
    let mut standby = Standby::on(Home::File(place));
    let mut source = store.source().unwrap();
    for is_read in [false, true] {
        standby.follow(&mut source);
        let mut order = draft(&store, 90 + u8::from(is_read), &[("PEN", 1)], KEY).await;
        order.order.customer = Some("ada".to_owned());
        assert_eq!(store.place(order).await.unwrap(), Place::Placed);
        standby.follow(&mut source).expect("there is something");
        assert!(holds_it());
        erase(&store, "ada").await;
        let reader = is_read.then(|| door(&standby.home).look().unwrap());
        standby.follow(&mut source).expect("there is something");
        assert_eq!(holds_it(), is_read, "somebody reads the state of before");
        drop(reader);
        standby.sink.take(Down::Idle { at_ms: 1 }).unwrap();
        assert!(!holds_it());
    }
    store.close();
}

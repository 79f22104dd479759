//! Stores that were restored from a backup, and have not begun their new history when they become something else.

use std::collections::BTreeMap;

use souk_replication::FIRST_TERM;

use super::*;
use crate::store::schema;

on_every_engine! {
    a_restored_store_that_was_replaced_is_made_the_home_again,
    a_restored_store_that_follows_takes_over,
}

/// As `souk region restore` leaves it: nobody has started a region on it.
fn restored(home: &Home) -> Door {
    let door = door(home);
    door.fill(schema::NEWEST).unwrap().unwrap().end(&BTreeMap::new(), FIRST_TERM).unwrap();
    door
}

fn asks_for_new_history(door: &Door) -> bool {
    let session = door.engine.open(Mode::Read).unwrap();
    session.exists("SELECT 1 FROM meta WHERE key = 'restore_pending'", &[]).unwrap()
}

/// Its region asks the other one at its start, before it begins anything.
async fn a_restored_store_that_was_replaced_is_made_the_home_again(home: Home) {
    let door = restored(&home);
    assert!(asks_for_new_history(&door));
    assert_eq!(door.replaced(2).unwrap(), Standing::Replaced { term: FIRST_TERM, by: 2 });
    let taken = door.take_over(&serde_json::json!({}), true).unwrap().unwrap();
    assert_eq!(taken.term, 3);
    let after = home.open();
    assert!(after.wants_new_history().await.unwrap());
    after.close();
}

async fn a_restored_store_that_follows_takes_over(place: Home) {
    assert!(asks_for_new_history(&restored(&place)));
    let home = home_of_the_other_kind(&place);
    let store = furnish(followed(&home)).await;
    let mut standby = Standby::on(place);
    assert!(!asks_for_new_history(&door(&standby.home)), "what it holds is given up");
    assert!(standby.follow(&mut store.source().unwrap()).expect("it has nothing").is_whole);
    let taken = door(&standby.home).take_over(&serde_json::json!({}), false).unwrap().unwrap();
    assert_eq!(taken.term, 2);
    let after = standby.home.open();
    assert!(after.wants_new_history().await.unwrap());
    after.close();
    store.close();
}

//! What is kept when a command fails, a process is killed, a row is touched.

use super::*;

on_every_engine! {
    a_failing_command_leaves_its_neighbours_alone,
    the_audit_log_shows_where_it_was_touched,
}

#[tokio::test]
async fn what_was_answered_is_there_after_an_unclean_stop() {
    let home = Home::sqlite();
    let store = shop(&home).await;
    let draft = draft(&store, 1, &[("MUG", 2)], "key-1").await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    let heads = *store.log_heads().borrow();
    // The files as a power cut would leave them: copied while the writer and its WAL are still open.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(home.dir()).unwrap() {
        let file = file.unwrap();
        if !file.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let after = Store::open(copy.path(), StoreSettings::for_tests(1_000_000)).unwrap();
    assert_eq!(*after.log_heads().borrow(), heads);
    assert_eq!(after.marks().get(101, 1).map(|mark| mark.hwm), Some(1));
    assert_eq!(after.order(draft.order.id).await.unwrap(), Some(draft.order.clone()));
    assert_eq!(left(&after, "MUG").await, Some(Some(3)));
    assert_eq!(
        after.place(draft.clone()).await.unwrap(),
        Place::Repeated(Standing::Placed(Box::new(draft.order)))
    );
    assert!(matches!(after.audit_chain().await.unwrap(), Chain::Whole { rows } if rows == 2));
}

async fn a_failing_command_leaves_its_neighbours_alone(home: Home) {
    let store = shop(&home).await;
    // Sent together they share a commit; either way the good ones must stand and the bad ones must leave nothing.
    let good = |n: i64| store.put_price(site(), sku("MUG"), PriceRow::of(Minor(n)), actor());
    let fails = store.write(|tx| -> Result<Decision<()>, StoreError> {
        log::append(tx, Log::Purge, b"half")?;
        tx.sql
            .execute(
                "INSERT INTO stock (site, sku, available, sold, reserved, granted, received, short, counted, version)
                 VALUES ('shop', 'X', 1, 0, 0, 0, 2, 0, 0, 77)",
                &[],
            )?;
        Ok(Decision::Keep(()))
    });
    let panics = store.write(|tx| -> Result<Decision<()>, StoreError> {
        log::append(tx, Log::Purge, b"half")?;
        panic!("a bug");
    });
    let (first, failed, panicked, second) = tokio::join!(good(1), fails, panics, good(2));
    assert!(matches!(first.unwrap(), Put::Written { .. }) && matches!(second.unwrap(), Put::Written { .. }));
    assert!(
        matches!(failed, Err(StoreError::Sqlite(_) | StoreError::Refused { .. })),
        "the CHECK on stock holds: {failed:?}"
    );
    assert!(matches!(panicked, Err(StoreError::Panicked(text)) if text == "a bug"));
    assert_eq!(store.log_heads().borrow().get(Log::Purge), 0);
    assert_eq!(store.goods(site(), sku("MUG")).await.unwrap().unwrap().price.unwrap().price, Minor(2));
}

async fn the_audit_log_shows_where_it_was_touched(home: Home) {
    let store = shop(&home).await;
    for price in 1..5 {
        store.put_price(site(), sku("MUG"), PriceRow::of(Minor(price)), actor()).await.unwrap();
    }
    assert_eq!(store.audit_chain().await.unwrap(), Chain::Whole { rows: 6 });
    let rows = store.audit(0, 10).await.unwrap();
    assert_eq!((rows.len(), rows[2].action.as_str(), rows[2].subject.as_str()), (6, "price.put", "shop/MUG"));
    store.close();
    assert!(matches!(
        store.put_price(site(), sku("MUG"), PriceRow::of(Minor(9)), actor()).await,
        Err(StoreError::Closed)
    ));

    let store = home.open();
    let deleted =
        store.write(|tx| tx.sql.execute("DELETE FROM audit WHERE seq = 4", &[]).map(Decision::Keep));
    assert!(deleted.await.is_err(), "append-only");
    let unguarded = home.unguard_audit();
    let touched = store.write(move |tx| {
        tx.sql.execute(unguarded, &[])?;
        tx.sql.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 4", &[])?;
        Ok(Decision::Keep(()))
    });
    touched.await.unwrap();
    store.close();
    assert_eq!(home.open().audit_chain().await.unwrap(), Chain::BrokenAt { seq: 4 });
}

/// Where the child of the next test keeps its store.
const KILLED_DIR: &str = "SOUK_REGION_TEST_KILLED_DIR";

/// The child: changes a price again and again and says each version that it was answered.
#[tokio::test]
async fn write_until_killed() {
    let Some(dir) = std::env::var_os(KILLED_DIR) else { return };
    let store = furnish(Store::open(Path::new(&dir), StoreSettings::for_tests(1_000_000)).unwrap()).await;
    for price in 1.. {
        let put = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(price)), actor()).await.unwrap();
        let Put::Written { version } = put else { panic!("each price is new") };
        println!("answered {version} {price}");
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_answered() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let home = Home::sqlite();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::keeping::write_until_killed", "--nocapture"])
        .env(KILLED_DIR, home.dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut answered = (0, 0);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for (count, line) in lines.map_while(Result::ok).filter(|line| line.contains("answered ")).enumerate() {
        let words: Vec<i64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        answered = (words[0] as u64, words[1]);
        if count == 40 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(answered.0 > 40);
    let after = home.open();
    // What was under way may have been committed without an answer; what was answered must be there.
    let head = after.log_heads().borrow().get(Log::Price);
    assert!(head >= answered.0, "answered {answered:?}, found {head}");
    let price = after.goods(site(), sku("MUG")).await.unwrap().unwrap().price.unwrap().price;
    assert!(price.0 >= answered.1 && price.0 <= answered.1 + 1, "answered {answered:?}, found {price}");
    assert!(matches!(after.audit_chain().await.unwrap(), Chain::Whole { .. }));
}

//! A backup from the store's side: every row out of one engine and into either, and what is broken is found.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use souk_config::{RegionConfig, StoreConfig};

use super::super::backup::{Cell, Door, file_in};
use super::super::goods::Put;
use super::*;
use crate::backup::{BackupError, Checked, Waived, back_up, restore, verify, verify_running};

on_every_engine! {
    a_backup_is_one_moment_of_either_engine_for_either_engine,
    what_is_broken_between_rows_is_found_in_a_region_that_runs,
    an_older_grant_than_the_backup_knows_is_mended,
}

/// A region's folder, and its settings over this database.
struct Estate {
    dir: tempfile::TempDir,
    store: StoreConfig,
}

impl Estate {
    fn over(home: &Home) -> Self {
        let store = match home {
            Home::File(_) => StoreConfig::Sqlite,
            Home::Postgres(database) => StoreConfig::Postgres(database.clone()),
        };
        let dir = match home {
            // The database lies in the region's folder.
            Home::File(of) => tempfile::tempdir_in(of.path()).unwrap(),
            Home::Postgres(_) => tempfile::tempdir().unwrap(),
        };
        Self { dir, store }
    }

    fn config(&self, home: &Home) -> RegionConfig {
        let data_dir = match home {
            Home::File(dir) => dir.path().to_owned(),
            Home::Postgres(_) => self.dir.path().to_owned(),
        };
        let text = format!(
            "[region]\nname = \"eu\"\ndata_dir = {data_dir:?}\n[listen]\nlink = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n\
             [link]\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\n[control]\noperator_token_sha256 = \"{}\"\n",
            "0".repeat(64)
        );
        let config = RegionConfig::parse(&text, &self.dir.path().join("region.toml")).unwrap();
        RegionConfig { store: self.store.clone(), ..config }
    }
}

fn door(config: &RegionConfig) -> Door {
    match &config.store {
        StoreConfig::Sqlite => Door::sqlite(file_in(&config.region.data_dir)),
        StoreConfig::Postgres(database) => Door::postgres(database, None).unwrap(),
    }
}

/// Every row of every table, in an order of their own.
fn rows(config: &RegionConfig) -> Vec<(String, Vec<Vec<Cell>>)> {
    let snapshot = door(config).look().unwrap();
    let all = |table| {
        let mut rows = Vec::new();
        snapshot
            .rows(table, &mut |cells| {
                rows.push(cells.to_vec());
                Ok(())
            })
            .unwrap();
        rows.sort_by_key(|row| format!("{row:?}"));
        (table.name.clone(), rows)
    };
    snapshot.tables.iter().map(all).collect()
}

fn put_blob(config: &RegionConfig, text: &str) -> Digest {
    let digest = Digest::of(text.as_bytes());
    let path = crate::blobs::path_in(&config.region.data_dir.join("blobs"), digest);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    digest
}

/// A shop with something in most tables.
async fn busy_shop(home: &Home, config: &RegionConfig) -> Store {
    let store = shop(home).await;
    let identity = log::Identity { region_epoch: 41, reset_key: [3; 32] };
    store.identity(identity).await.unwrap();
    let ordered = draft(&store, 1, &[("MUG", 2), ("PEN", 1)], "key-1").await;
    assert_eq!(store.place(ordered).await.unwrap(), Place::Placed);
    enrol(&store, 7, 3).await;
    let mut shopper = Shopper::new(7, 3, 9);
    let ops = vec![shopper.add("MUG", 1), shopper.add("CAP", 4), b"no operation".to_vec()];
    store.apply_batch(7, 3, 1, ops).await.unwrap();
    let digest = put_blob(config, "a picture");
    let assets = [("/a.png".to_owned(), Asset::new(digest, 9, "image/png".to_owned()))];
    store.put_assets(site(), assets.into(), actor()).await.unwrap().unwrap();
    let compared = "INSERT INTO payment_report (site, at_ms, body) VALUES ('shop', 5, '{}')";
    store.write(move |tx| tx.sql.execute(compared, &[]).map(Decision::Keep)).await.unwrap();
    store
}

fn quiet() -> impl FnMut(crate::backup::Progress<'_>) {
    |_| {}
}

fn faults(checked: &Checked) -> String {
    checked.faults.join("\n")
}

async fn a_backup_is_one_moment_of_either_engine_for_either_engine(home: Home) {
    let place = Estate::over(&home);
    let config = place.config(&home);
    let store = busy_shop(&home, &config).await;
    let before = rows(&config);
    let kept = tempfile::tempdir().unwrap();
    let made = back_up(&config, kept.path(), None, &mut quiet()).unwrap();
    assert_eq!((made.sizes.orders, made.sizes.blobs, made.new_blobs, made.region_epoch), (1, 1, 1, 41));
    assert_eq!(made.absent, [""; 0]);
    // It goes on, and the backup does not change.
    store.put_price(site(), sku("MUG"), PriceRow::of(Minor(9)), actor()).await.unwrap();
    let again = back_up(&config, kept.path(), None, &mut quiet()).unwrap();
    assert_eq!(
        (again.sizes.blobs, again.new_blobs),
        (1, 0),
        "what an earlier backup has is not copied again"
    );
    let scratch = tempfile::tempdir().unwrap();
    let checked = verify(&made.path, scratch.path(), &mut quiet()).unwrap();
    assert_eq!((faults(&checked).as_str(), checked.sizes), ("", made.sizes.clone()));
    let newest = verify(kept.path(), scratch.path(), &mut quiet()).unwrap();
    assert_eq!(newest.path, Some(again.path));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing stays of a check");

    for target in [Some(Home::sqlite()), Home::postgres()].into_iter().flatten() {
        let place = Estate::over(&target);
        let config = place.config(&target);
        let restored = restore(&config, &made.path, Waived::default(), &mut quiet()).unwrap();
        assert_eq!((restored.former_epoch, restored.sizes), (41, made.sizes.clone()));
        assert!(rows(&config) == before, "each row is what it was");
        assert_eq!(
            std::fs::read(crate::blobs::path_in(
                &config.region.data_dir.join("blobs"),
                Digest::of(b"a picture")
            ))
            .unwrap(),
            b"a picture"
        );
        let twice = restore(&config, &made.path, Waived::default(), &mut quiet());
        assert!(matches!(twice, Err(BackupError::NotEmpty(_))), "{twice:?}");

        let store = target.open();
        assert!(store.wants_new_history().await.unwrap(), "the region is told");
        let repeated = draft(&store, 2, &[("MUG", 1)], "key-2").await;
        assert_eq!(store.place(repeated).await.unwrap(), Place::Placed);
        let position =
            store.read(|conn| conn.one("SELECT max(position) FROM orders", &[], |row| row.get::<u64>(0)));
        assert!(position.await.unwrap() > 1 << 32, "whoever follows orders is not passed by");
        assert_eq!(left(&store, "MUG").await, Some(Some(2)), "5, less 2 before and 1 after");
        assert!(matches!(store.audit_chain().await.unwrap(), Chain::Whole { .. }));
        store.new_history_has_begun(actor(), 42).await.unwrap();
        assert!(!store.wants_new_history().await.unwrap());
        assert_eq!(
            store.payment_report(site()).await.unwrap(),
            None,
            "the shop's books are compared anew, at once"
        );
        let put = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(8)), actor()).await.unwrap();
        assert!(matches!(put, Put::Written { .. }));
        store.close();
        let checked = verify_running(&config, &mut quiet()).unwrap();
        assert_eq!(faults(&checked), "");
    }
    store.close();
}

async fn what_is_broken_between_rows_is_found_in_a_region_that_runs(home: Home) {
    let place = Estate::over(&home);
    let config = place.config(&home);
    let store = busy_shop(&home, &config).await;
    assert_eq!(faults(&verify_running(&config, &mut quiet()).unwrap()), "");
    let breaches = [
        ("UPDATE orders SET total = total + 1", "an order's money adds up"),
        ("UPDATE orders SET total = total - 1", ""),
        ("UPDATE order_line SET total = total + 1", "lines of"),
        ("DELETE FROM order_line", "the lines of an order are listed"),
        ("UPDATE stock SET reserved = 1, available = available - 1 WHERE sku = 'MUG'", "units are reserved"),
        ("UPDATE cart SET digest = (SELECT hash FROM audit WHERE seq = 1)", "a cart is what its digest says"),
        ("UPDATE cart SET order_id = NULL", "an order has sealed its cart"),
        ("DELETE FROM log WHERE log = 3", "a log has every entry"),
        ("UPDATE log_head SET version = 0, floor = 0", "no row is newer than its log"),
        (home.unguard_audit(), ""),
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 2", "not so of row 2"),
    ];
    for (sql, law) in breaches {
        store.write(move |tx| tx.sql.execute(sql, &[]).map(Decision::Keep)).await.unwrap();
        let found = faults(&verify_running(&config, &mut quiet()).unwrap());
        assert!(found.contains(law), "{sql}: {found}");
    }
    let blob = crate::blobs::path_in(&config.region.data_dir.join("blobs"), Digest::of(b"a picture"));
    std::fs::write(&blob, "a pictUre").unwrap();
    assert!(faults(&verify_running(&config, &mut quiet()).unwrap()).contains("other bytes"));
    std::fs::remove_file(&blob).unwrap();
    assert!(faults(&verify_running(&config, &mut quiet()).unwrap()).contains("is not there"));
    store.close();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.metadata().unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_byte_that_has_changed_anywhere_is_found_and_nothing_is_restored() {
    let home = Home::sqlite();
    let place = Estate::over(&home);
    let config = place.config(&home);
    let store = busy_shop(&home, &config).await;
    let kept = tempfile::tempdir().unwrap();
    back_up(&config, kept.path(), None, &mut quiet()).unwrap();
    store.close();
    let scratch = tempfile::tempdir().unwrap();
    let target = Home::sqlite();
    let target_place = Estate::over(&target);
    let target_config = target_place.config(&target);
    let files = files(kept.path());
    assert!(files.len() > 30, "{files:?}");
    for (index, file) in files.iter().enumerate() {
        let whole = std::fs::read(file).unwrap();
        let mut broken = whole.clone();
        let at = (index * 7_919) % broken.len();
        broken[at] ^= 0x20;
        std::fs::write(file, &broken).unwrap();
        let shown = file.display();
        let checked = verify(kept.path(), scratch.path(), &mut quiet()).unwrap();
        assert!(!checked.faults.is_empty(), "{shown}, byte {at}");
        let refused = restore(&target_config, kept.path(), Waived::default(), &mut quiet());
        assert!(matches!(refused, Err(BackupError::Broken { .. })), "{shown}: {refused:?}");
        std::fs::write(file, &broken[..broken.len() - 1]).unwrap();
        assert!(
            !verify(kept.path(), scratch.path(), &mut quiet()).unwrap().faults.is_empty(),
            "{shown}, cut off"
        );
        assert!(!file_in(&target_config.region.data_dir).exists(), "nothing is restored");
        std::fs::write(file, whole).unwrap();
    }
    assert_eq!(faults(&verify(kept.path(), scratch.path(), &mut quiet()).unwrap()), "");
    restore(&target_config, kept.path(), Waived::default(), &mut quiet()).unwrap();
}

#[tokio::test]
async fn rows_that_break_a_law_are_not_restored_although_their_digests_are_right() {
    let home = Home::sqlite();
    let place = Estate::over(&home);
    let config = place.config(&home);
    let store = busy_shop(&home, &config).await;
    let sql = "UPDATE orders SET total = total + 1";
    store.write(move |tx| tx.sql.execute(sql, &[]).map(Decision::Keep)).await.unwrap();
    store.close();
    let kept = tempfile::tempdir().unwrap();
    let made = back_up(&config, kept.path(), None, &mut quiet()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let found = faults(&verify(&made.path, scratch.path(), &mut quiet()).unwrap());
    assert!(found.contains("an order's money adds up"), "{found}");
    let target = Home::sqlite();
    let target_place = Estate::over(&target);
    let refused = restore(&target_place.config(&target), &made.path, Waived::default(), &mut quiet());
    assert!(matches!(&refused, Err(BackupError::Broken { faults }) if faults.len() == 1), "{refused:?}");
    let left: Vec<_> =
        std::fs::read_dir(target.dir()).unwrap().flatten().map(|file| file.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("region.db")), "{left:?}");
}

#[tokio::test]
async fn a_backup_needs_the_key_that_sealed_its_releases() {
    let home = Home::sqlite();
    let place = Estate::over(&home);
    let config = place.config(&home);
    let store = busy_shop(&home, &config).await;
    store.close();
    let key = SealKey::generate(&[8; 32]);
    std::fs::write(home.dir().join("seal.pub"), key.public_pem()).unwrap();
    let kept = tempfile::tempdir().unwrap();
    back_up(&config, kept.path(), None, &mut quiet()).unwrap();
    let target = Home::sqlite();
    let target_place = Estate::over(&target);
    let target_config = target_place.config(&target);
    let refused = restore(&target_config, kept.path(), Waived::default(), &mut quiet());
    assert!(matches!(&refused, Err(BackupError::OtherSealKey { own: None, .. })), "{refused:?}");
    std::fs::write(target.dir().join("seal.key"), key.to_pem()).unwrap();
    restore(&target_config, kept.path(), Waived::default(), &mut quiet()).unwrap();
    let other = Home::sqlite();
    let other_place = Estate::over(&other);
    restore(
        &other_place.config(&other),
        kept.path(),
        Waived { seal_key: true, ..Waived::default() },
        &mut quiet(),
    )
    .unwrap();
}

#[tokio::test]
async fn one_backup_at_a_time_and_what_a_killed_one_left_is_cleared() {
    let home = Home::sqlite();
    let place = Estate::over(&home);
    let config = place.config(&home);
    let store = busy_shop(&home, &config).await;
    let kept = tempfile::tempdir().unwrap();
    std::fs::create_dir(kept.path().join(".unfinished-0123")).unwrap();
    std::fs::write(kept.path().join(".unfinished-0123/orders.rows"), "half").unwrap();
    let mut second = None;
    let mut meanwhile = |_: crate::backup::Progress<'_>| {
        second.get_or_insert_with(|| back_up(&config, kept.path(), None, &mut quiet()).map(|made| made.path));
    };
    let made = back_up(&config, kept.path(), None, &mut meanwhile).unwrap();
    assert!(matches!(second, Some(Err(BackupError::Busy { .. }))), "{second:?}");
    assert!(!kept.path().join(".unfinished-0123").exists());
    let empty = tempfile::tempdir().unwrap();
    let nothing = verify(empty.path(), empty.path(), &mut quiet());
    assert!(matches!(nothing, Err(BackupError::NoBackup { .. })), "{nothing:?}");
    // A newer format, honestly told: who reads it must be newer, too.
    let text = std::fs::read_to_string(made.path.join("manifest.json")).unwrap();
    let newer = text.replacen("\"format\": 1", "\"format\": 2", 1);
    std::fs::write(made.path.join("manifest.json"), &newer).unwrap();
    std::fs::write(made.path.join("manifest.sha256"), format!("{}\n", Digest::of(newer.as_bytes()))).unwrap();
    let unknown = verify(&made.path, empty.path(), &mut quiet());
    assert!(matches!(unknown, Err(BackupError::NewerFormat { format: 2, known: 1 })), "{unknown:?}");
    store.close();
}

#[tokio::test]
async fn old_backups_go_with_what_only_they_had() {
    let home = Home::sqlite();
    let estate = Estate::over(&home);
    let config = estate.config(&home);
    let store = busy_shop(&home, &config).await;
    let kept = tempfile::tempdir().unwrap();
    let blobs = kept.path().join("blobs");
    let first = back_up(&config, kept.path(), NonZeroUsize::new(2), &mut quiet()).unwrap();
    let picture = put_blob(&config, "another picture, of which the first says nothing at all");
    let assets = [("/b.png".to_owned(), Asset::new(picture, 55, "image/png".to_owned()))];
    store.put_assets(site(), assets.into(), actor()).await.unwrap().unwrap();
    let second = back_up(&config, kept.path(), NonZeroUsize::new(2), &mut quiet()).unwrap();
    assert_eq!((first.pruned, second.pruned), (0, 0));
    let former = crate::blobs::path_in(&blobs, Digest::of(b"a picture"));
    assert!(former.exists() && crate::blobs::path_in(&blobs, picture).exists());
    let third = back_up(&config, kept.path(), NonZeroUsize::new(2), &mut quiet()).unwrap();
    assert_eq!(third.pruned, 1);
    assert!(!first.path.exists() && second.path.exists() && third.path.exists());
    assert!(!former.exists(), "nobody refers to it any more");
    let scratch = tempfile::tempdir().unwrap();
    for path in [second.path, third.path] {
        assert_eq!(faults(&verify(&path, scratch.path(), &mut quiet()).unwrap()), "");
    }
    store.close();
}

/// A node has promised units of a grant that it got after the backup was made.
async fn an_older_grant_than_the_backup_knows_is_mended(home: Home) {
    use souk_commerce::id::{GrantId, HoldId};
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let promise = |number: u8, units: u64, at_ms: u64| {
        let (hold, grant) = (HoldId([number; 16]), GrantId([77; 16]));
        let cart = CartId([number; 16]);
        Operation::Reserve { site: site(), cart, at_ms, hold, sku: sku("MUG"), units, grant }.to_bytes()
    };
    let now_ms = crate::clock::now_ms();
    let outcome = |applied: Apply| match applied {
        Apply::Applied(Applied { promises, promises_refused, .. }) => (promises, promises_refused),
        other => panic!("{other:?}"),
    };
    let told = store.apply_batch(1, 1, 1, vec![promise(1, 2, now_ms)]).await.unwrap();
    assert_eq!(outcome(told), (0, 1), "nobody has lent it anything");
    store.new_history_has_begun(actor(), 7).await.unwrap();
    let ops = vec![
        promise(2, 3, now_ms),
        promise(3, 3, now_ms),
        promise(4, 1, now_ms - 86_400_000),
        promise(2, 3, now_ms),
    ];
    let told = store.apply_batch(1, 1, 2, ops).await.unwrap();
    assert_eq!(
        outcome(told),
        (1, 2),
        "three of the five are promised, no three are left, and one was long over"
    );
    let report = store.stock_report(site(), sku("MUG")).await.unwrap().unwrap();
    assert_eq!((report.reserved, report.available, report.received), (3, Some(2), 5));
    store.close();
}

#[tokio::test]
async fn what_was_taken_out_of_a_cart_stays_out_whoever_sends_first() {
    let home = Home::chosen();
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    enrol(&store, 2, 1).await;
    let mut first = Shopper::new(1, 1, 5);
    let put_in = first.add("MUG", 1);
    // The cart follows its shopper to the second node, where the line is removed.
    let mut second =
        Shopper { node: 2, state: first.state.clone(), clock: first.clock, ..Shopper::new(2, 1, 5) };
    let taken_out = second.edit(|edit| edit.remove(Entry::Line(LineKey::of(sku("MUG")))));
    store.new_history_has_begun(actor(), 7).await.unwrap();
    store.apply_batch(2, 1, 1, vec![taken_out]).await.unwrap();
    store.apply_batch(1, 1, 1, vec![put_in]).await.unwrap();
    let cart = store.cart(site(), CartId([5; 16])).await.unwrap().unwrap();
    assert_eq!(Cart::from_bytes(&cart.state).unwrap().lines(), [], "it does not come back");
}

#[tokio::test]
async fn what_is_gone_is_told_until_it_is_read() {
    use souk_replication::Gone;
    let home = Home::chosen();
    let store = shop(&home).await;
    enrol(&store, 7, 3).await;
    let gone = vec![Gone { epoch: 3, first: 812, last: Some(840) }, Gone { epoch: 2, first: 5, last: None }];
    store.note_gone(7, gone.clone()).await.unwrap();
    store.note_gone(7, gone).await.unwrap();
    let told = store.gone().await.unwrap();
    let told: Vec<_> =
        told.iter().map(|row| (row.node, row.pop.as_str(), row.epoch, row.first, row.last)).collect();
    assert_eq!(told, [(7, "lon", 2, 5, None), (7, "lon", 3, 812, Some(840))]);
    assert_eq!(store.gone_totals().await.unwrap(), (2, 30));
    assert_eq!(store.gone_is_read(actor()).await.unwrap(), 2);
    assert_eq!(store.gone_totals().await.unwrap(), (0, 0));
    assert_eq!(store.gone_is_read(actor()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_backup_of_what_is_sealed_needs_the_keyring() {
    let home = Home::sqlite();
    let place = Estate::over(&home);
    let config = place.config(&home);
    let store = busy_shop(&home, &config).await;
    let mut order = draft(&store, 3, &[("PEN", 1)], "key-3").await;
    order.order.customer = Some("ada@example.com".to_owned());
    assert_eq!(store.place(order).await.unwrap(), Place::Placed);
    store.close();
    // Its keyring too: what is in its log comes into the file.
    drop(store);
    let kept = tempfile::tempdir().unwrap();
    back_up(&config, kept.path(), None, &mut quiet()).unwrap();
    for target in [Some(Home::sqlite()), Home::postgres()].into_iter().flatten() {
        let target_place = Estate::over(&target);
        let target_config = target_place.config(&target);
        let dir = &target_config.region.data_dir;
        let before = files(dir);
        let refused = restore(&target_config, kept.path(), Waived::default(), &mut quiet());
        let told = refused.as_ref().map_or_else(ToString::to_string, |restored| format!("{restored:?}"));
        assert!(matches!(refused, Err(BackupError::NoKeyring(_))), "{told}");
        assert!(told.contains("there is no keyring in ") && told.contains("--without-keyring"), "{told}");
        assert_eq!(files(dir), before, "nothing was touched");
        let waived = Waived { keyring: true, ..Waived::default() };
        restore(&target_config, kept.path(), waived, &mut quiet()).unwrap();
    }
    // With the keyring, its key of keys is needed too, and that one.
    let target = Home::sqlite();
    let target_place = Estate::over(&target);
    let target_config = target_place.config(&target);
    let dir = &target_config.region.data_dir;
    std::fs::copy(home.dir().join("keyring.db"), dir.join("keyring.db")).unwrap();
    let put = |file: &str, text: &str| {
        std::fs::write(dir.join(file), text).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(dir.join(file), private).unwrap();
    };
    for (text, why) in [
        (None, "there is no such file"),
        (Some("no key"), "cannot use the key of keys"),
        (Some(&*format!("souk-vault-1 {}\n", "ab".repeat(32))), "another key of keys"),
    ] {
        text.into_iter().for_each(|text| put("vault.key", text));
        let refused = restore(&target_config, kept.path(), Waived::default(), &mut quiet());
        let told = refused.map_or_else(|error| error.to_string(), |restored| format!("{restored:?}"));
        assert!(told.contains(why), "{told}");
    }
    put("vault.key", &format!("souk-vault-1 {}\n", hex::encode([6_u8; 32])));
    restore(&target_config, kept.path(), Waived::default(), &mut quiet()).unwrap();
}

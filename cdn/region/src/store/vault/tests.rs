//! The vault on a keyring of its own: what opens, what does not, and what is left when a key is destroyed.

use std::collections::HashSet;

use super::copied::KeyRows;
use super::*;
use crate::store::backup::Cell;
use crate::store::engine::{Mode, Session};

fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn open(dir: &tempfile::TempDir, seeds: &[u8]) -> Result<Vault, StoreError> {
    Vault::open(&KekFile::for_tests(seeds), Keyring::of_file(dir.path())?)
}

#[test]
fn a_shopper_has_one_key_and_what_it_sealed_opens_in_its_place_only() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(&dir, &[1]).unwrap();
    let shop = site("shop");
    let ada = vault.subject(&shop, "ada").unwrap();
    assert_eq!(vault.subject(&shop, "ada").unwrap().id, ada.id);
    assert_ne!(vault.subject(&shop, "bob").unwrap().id, ada.id);
    assert_ne!(vault.subject(&site("other"), "ada").unwrap().id, ada.id);
    let sealed = ada.seal("ada", "a");
    assert!(is_sealed(&sealed) && sealed != ada.seal("ada", "a"), "no two are equal");
    assert_eq!(vault.open_text(&shop, &sealed, "a").unwrap().as_deref(), Some("ada"));
    assert!(vault.open_text(&shop, &sealed, "b").is_err(), "moved to another place");
    assert_eq!(vault.open_text(&site("other"), &sealed, "a").unwrap(), None, "or to another shop");
    assert!(vault.open_text(&shop, "souk1:AQ", "a").is_err());
    assert!(vault.open_text(&shop, "souk1:!", "a").is_err());
    assert_eq!(
        vault.open_text(&shop, "of an older version", "a").unwrap().as_deref(),
        Some("of an older version")
    );
    let of_site = vault.seal_of_site(&shop, "a note", "n").unwrap();
    assert_eq!(vault.open_text(&shop, &of_site, "n").unwrap().as_deref(), Some("a note"));
}

#[test]
fn nothing_opens_any_more_when_a_key_is_destroyed_and_the_next_one_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let (shop, hash) = (site("shop"), [3; 32]);
    let vault = open(&dir, &[1]).unwrap();
    let ada = vault.subject(&shop, "ada").unwrap();
    let sealed = ada.seal("ada", "a");
    let question = vault.question(&shop, Some("ada"), &hash).unwrap();
    assert_ne!(question, hash);
    let trace = vault.trace(&shop, "ada").unwrap();
    let wrapped = vault.0.keyring.subject_by_id(&shop, &ada.id).unwrap().expect("a row").wrapped;
    vault.destroy(&shop, &ada.id).unwrap();
    // While it is in use, and not only when it is closed.
    let files =
        || std::fs::read_dir(dir.path()).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    let holds = |what: &[u8]| files().any(|bytes| bytes.windows(what.len()).any(|window| window == what));
    assert!(!holds(&wrapped) && !holds(b"ada"));
    let destroyed = vault.destroyed(None, 9).unwrap();
    assert_eq!(destroyed, [(shop.clone(), ada.id)], "its random number stays, and leads to nobody");
    assert_eq!(vault.destroyed(Some(&ada.id), 9).unwrap(), []);
    assert_eq!(vault.open_text(&shop, &sealed, "a").unwrap(), None);
    assert_eq!(vault.question(&shop, Some("ada"), &hash).unwrap(), hash, "nobody's any more");
    let again = vault.subject(&shop, "ada").unwrap();
    assert_ne!(again.id, ada.id);
    assert_ne!(again.question(&hash), question);
    assert_eq!(vault.trace(&shop, "ada").unwrap(), trace, "an auditor knows that it is the same");
    assert!(holds(&again.id));
}

#[test]
fn the_key_of_keys_changes_by_a_line_and_a_start_and_no_other_opens_anything() {
    let dir = tempfile::tempdir().unwrap();
    let shop = site("shop");
    let sealed = open(&dir, &[1]).unwrap().subject(&shop, "ada").unwrap().seal("ada", "a");
    let Err(refusal) = open(&dir, &[2]) else { panic!("another key opens it") };
    assert!(refusal.to_string().contains("key_file"), "{refusal}");
    for seeds in [&[2, 1][..], &[2], &[2]] {
        let vault = open(&dir, seeds).unwrap();
        assert_eq!(vault.open_text(&shop, &sealed, "a").unwrap().as_deref(), Some("ada"), "{seeds:?}");
    }
    assert!(open(&dir, &[1]).is_err(), "the old one opens nothing any more");
}

#[test]
fn what_is_changed_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(&dir, &[1]).unwrap();
    let shop = site("shop");
    let sealed = vault.subject(&shop, "ada").unwrap().seal("ada", "a");
    let bytes = URL_SAFE_NO_PAD.decode(sealed.strip_prefix(MARK).unwrap()).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let text = format!("{MARK}{}", URL_SAFE_NO_PAD.encode(changed));
        // The number of another shopper, who is not there, opens nothing; the rest does not fit.
        assert!(!matches!(vault.open_text(&shop, &text, "a"), Ok(Some(_))), "byte {at}");
    }
}

#[test]
fn a_key_that_a_reader_kept_in_the_log_goes_when_its_destruction_is_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let shop = site("shop");
    let vault = open(&dir, &[1]).unwrap();
    let ada = vault.subject(&shop, "ada").unwrap();
    let keyring = &vault.0.keyring;
    let wrapped = keyring.subject_by_id(&shop, &ada.id).unwrap().expect("a row").wrapped;
    let holds_it = || {
        let mut files = std::fs::read_dir(dir.path()).unwrap();
        files.any(|file| {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            bytes.windows(wrapped.len()).any(|window| window == wrapped)
        })
    };
    let row = vec![Cell::Blob(ada.id.to_vec()), Cell::Text(shop.to_string())];
    let columns = ["id".to_owned(), "site".to_owned()];
    let told = || keyring.take_in("key_destroyed", &columns, std::slice::from_ref(&row));
    // Somebody copies the keyring.
    let copies = rusqlite::Connection::open(dir.path().join("keyring.db")).unwrap();
    let reader: &dyn Session = &copies;
    reader.begin(Mode::Read).unwrap();
    assert!(reader.exists("SELECT 1 FROM key_of_shopper", &[]).unwrap());
    assert!(matches!(told(), Err(StoreError::Busy)));
    assert!(!vault.has(&shop, &ada.id).unwrap() && holds_it(), "it is out of the table, and in the log");
    drop(copies);
    told().unwrap();
    assert!(!holds_it());
}

/// The home has noted a destruction, and died before the key went: it sends both, the note first.
#[test]
fn a_key_that_is_noted_as_destroyed_is_not_taken_in() {
    let (home, standby) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shop = site("shop");
    let vault = open(&home, &[1]).unwrap();
    let ada = vault.subject(&shop, "ada").unwrap();
    let bob = vault.subject(&shop, "bob").unwrap();
    vault.0.keyring.note_destroyed(&shop, &ada.id).unwrap();
    let copy = open(&standby, &[1]).unwrap();
    let take = |rows: KeyRows| {
        let columns: Vec<String> = rows.columns.iter().map(|column| (*column).to_owned()).collect();
        copy.0.keyring.take_in(rows.table, &columns, &rows.rows)
    };
    vault.keyring_rows_of_sites(&mut |rows| take(rows)).unwrap();
    vault.keyring_rows_destroyed(&mut HashSet::new(), &mut |rows| take(rows)).unwrap();
    vault.keyring_rows_of_shoppers(&mut |rows| take(rows)).unwrap();
    assert!(!copy.has(&shop, &ada.id).unwrap());
    assert!(copy.has(&shop, &bob.id).unwrap());
}

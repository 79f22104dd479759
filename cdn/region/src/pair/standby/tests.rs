//! A standby whose process knows less than its disk.

use std::path::Path;

use super::*;
use crate::store::StoreSettings;
use crate::store::backup::file_in;
use crate::store::tests::furnish;
use crate::store::tests::home::Home;

pub(super) fn config(dir: &Path) -> Arc<RegionConfig> {
    let hash = "0".repeat(64);
    let text = format!(
        "[region]\nname = \"eu\"\ndata_dir = \"data\"\n[listen]\nlink = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n\
         [link]\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\n[control]\noperator_token_sha256 = \"{hash}\"\n"
    );
    Arc::new(RegionConfig::parse(&text, &dir.join("region.toml")).unwrap())
}

#[tokio::test]
async fn a_standby_goes_on_from_what_is_on_its_disk() {
    let (home, place) = (Home::sqlite(), tempfile::tempdir().unwrap());
    let settings = StoreSettings { is_followed: true, ..StoreSettings::for_tests(1_000) };
    let store = furnish(home.open_with(settings)).await;
    let door = Door::sqlite(file_in(place.path()));
    door.follow(false).unwrap().unwrap();
    let region = NotHome::new(NotHomeParts {
        config: config(place.path()),
        door: door.clone(),
        standing: door.standing().unwrap(),
        blobs: Arc::new(Blobs::open(place.path(), 1 << 20, false).unwrap()),
        kek: KekFile::for_tests(&[6]),
        seal_key: String::new(),
        dialer: None,
        sink: None,
        ended: CancellationToken::new(),
    });
    // A commit whose answer was lost: it is one, and this process does not know.
    let (mut sink, mut source) = (Sink::of_file(place.path()).unwrap(), store.source().unwrap());
    let sent = source.send(None, 1, 77, &mut |frame| sink.take(frame).is_ok()).unwrap();
    let sent = sent.expect("the standby had nothing");
    assert_eq!(region.greeting(true).holds, None);
    assert!(region.look_again().await.is_ok());
    assert_eq!(region.greeting(true).holds.map(|holds| holds.seq), Some(sent.to));
    assert!(!region.ended.is_cancelled());
    // Made the home beside it, it follows nobody.
    door.take_over(&json!({}), false).unwrap().unwrap();
    assert!(region.look_again().await.is_err());
    assert!(region.ended.is_cancelled());
    store.close();
}

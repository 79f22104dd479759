//! Files from a home over a real connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use souk_commerce::feed::Asset;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::blobs::{Blobs, path_in};
use crate::pair::home::tests::{COMES_WITHIN, Line, followed};
use crate::pair::standby::NotHomeParts;
use crate::pair::standby::tests::config;
use crate::store::KekFile;
use crate::store::backup::{Door, file_in};
use crate::store::pair::sink::Sink;
use crate::store::tests::home::Home;
use crate::store::tests::{actor, furnish, site};

const POLL: Duration = Duration::from_millis(20);

async fn keep(blobs: &Arc<Blobs>, bytes: &[u8]) -> Digest {
    let (digest, mut upload) = (Digest::of(bytes), blobs.begin().await.unwrap());
    upload.write(bytes).await.unwrap();
    upload.finish(digest).await.unwrap();
    digest
}

#[tokio::test]
async fn a_file_that_is_damaged_at_the_home_keeps_no_other_back() {
    let (home, place) = (Home::sqlite(), tempfile::tempdir().unwrap());
    let texts = ["one", "two", "three", "four"].map(str::as_bytes);
    let asset = |bytes: &[u8]| Asset {
        digest: Digest::of(bytes),
        bytes: bytes.len() as u64,
        content_type: "text/plain".to_owned(),
        former: Vec::new(),
    };
    let named = texts.iter().enumerate().map(|(at, text)| (format!("/{at}"), asset(text)));
    let store = furnish(followed(&home)).await;
    store.put_assets(site(), named.collect::<BTreeMap<_, _>>(), actor()).await.unwrap().expect("a site");
    let door = Door::sqlite(file_in(place.path()));
    door.follow(false).unwrap().unwrap();
    let (mut sink, mut source) = (Sink::of_file(place.path()).unwrap(), store.source().unwrap());
    source.send(None, 1, 7, &mut |frame| sink.take(frame).is_ok()).unwrap();
    store.close();
    drop((sink, source, store));

    let line = Line::of(home, 1, true).await;
    for text in texts {
        keep(&line.end.blobs, text).await;
    }
    // The one that is asked for first.
    let mut digests = texts.map(Digest::of);
    digests.sort();
    std::fs::write(path_in(&line.dir().join("blobs"), digests[0]), b"rot").unwrap();
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
    region.files.notify_one();
    let others_are_here = async {
        while !region.blobs.are_here(digests[1..].iter().copied()).await.unwrap() {
            tokio::time::sleep(POLL).await;
        }
        // The last of them is counted a moment after it is here.
        while region.shown.lock().files_missing != 1 {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::select! {
        never = region.fetch_files(&line.standby) => match never {},
        come = timeout(COMES_WITHIN, others_are_here) => come.expect("they come"),
    }
    assert_eq!(region.blobs.size(digests[0]).await.unwrap(), None);
    line.end().await;
}

#[test]
fn a_look_that_brings_nothing_is_repeated_ever_less_often() {
    let mut pause = FILES_PAUSE;
    for _ in 0..10 {
        pause = pause_after(pause, 0, 3);
    }
    assert_eq!(pause, FILES_PAUSE_MAX);
    assert_eq!(pause_after(pause, 1, 3), FILES_PAUSE, "files come");
    assert_eq!(pause_after(pause, 0, 0), FILES_PAUSE, "nothing is missing");
}

/// A disk that takes no file is asked once a look, not once for each file.
#[test]
fn a_full_disk_is_ours_and_what_came_damaged_is_not() {
    let full = BlobError::Io(std::io::ErrorKind::StorageFull.into());
    assert!(matches!(Unfetched::from(full), Unfetched::Ours(_)));
    let damaged = BlobError::OtherDigest { actual: Digest::of(b"rot") };
    assert!(matches!(Unfetched::from(damaged), Unfetched::Theirs(_)));
}

//! What stands in slices, and an upstream that has something else there now.

use super::*;
use crate::http::RequestBody;
use crate::upstream::Outcome;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Clients that come at once.
const CROWD: usize = 30;

impl World {
    /// Asks for the first bytes until they are answered so.
    async fn until_status(&self, status: u16) -> Got {
        let asks = async {
            loop {
                let got = self.range("bytes=0-9").await;
                if got.status == status {
                    return got;
                }
                pause(5).await;
            }
        };
        tokio::time::timeout(PATIENCE, asks).await.expect("the old one is shown for ever")
    }

    /// Asks without a network between, so that nothing is read ahead.
    async fn ask(&self) -> Response<Body> {
        let request = Request::get("/film").header("host", "shop.example").body(RequestBody::empty());
        let peer = plain(([127, 0, 0, 1], 1).into());
        self.proxy.handle(request.expect("a request"), peer, now_ms()).await
    }

    fn waiting(&self) -> i64 {
        self.proxy.sample();
        self.proxy.metrics().waiting.get()
    }
}

#[tokio::test]
async fn what_is_not_there_any_more_is_shown_once_more_and_not_for_as_long_as_it_may_be_stale() {
    for status in [404, 410, 403, 200] {
        let file = File::with(9 * MIB, "max-age=0, stale-while-revalidate=86400");
        let world = world(&file, |_| {}).await;
        world.range("bytes=0-9").await.is(1, 0, 10);
        *file.instead.lock() = Some(status);
        world.range("bytes=0-9").await.is(1, 0, 10);
        // A range of the new one, which is short and stored whole.
        let shown = if status == 200 { 206 } else { status };
        let asks = async {
            loop {
                let got = world.range("bytes=0-2").await;
                if got.status == shown && got.field("etag") == "\"other\"" {
                    return;
                }
                pause(5).await;
            }
        };
        tokio::time::timeout(PATIENCE, asks).await.unwrap_or_else(|_| panic!("{status} is not seen"));
    }
}

#[tokio::test]
async fn an_error_in_the_place_of_a_head_takes_nothing_away() {
    let file = File::with(9 * MIB, "max-age=0, stale-if-error=600");
    let world = world(&file, |_| {}).await;
    world.range("bytes=0-9").await.is(1, 0, 10);
    *file.instead.lock() = Some(503);
    for _ in 0..2 {
        let got = world.range("bytes=0-9").await;
        got.is(1, 0, 10);
        assert_eq!(got.status, 206);
    }
    *file.instead.lock() = Some(404);
    world.until_status(404).await;
}

#[tokio::test]
async fn a_crowd_that_finds_something_small_in_its_place_is_one_fetch() {
    let file = File::with(9 * MIB, "max-age=1");
    let world = world(&file, |_| {}).await;
    world.range("bytes=0-9").await.is(1, 0, 10);
    // Stale, so that its head is asked for, and not so that each asks for itself.
    pause(1_100).await;
    *file.instead.lock() = Some(200);
    file.asked();
    let closed = file.gate.write().await;
    let crowd = join_all((0..CROWD).map(|_| world.bytes("GET", &[])));
    let opens = async {
        while world.waiting() < CROWD as i64 - 1 {
            pause(5).await;
        }
        drop(closed);
    };
    let (all, ()) = tokio::join!(crowd, opens);
    assert!(all.iter().all(|got| got.body.as_deref() == Some(b"other")));
    assert_eq!(file.asked(), ["-", "-"], "its head is asked for, and then the whole");
}

#[tokio::test]
async fn who_reads_the_old_one_takes_nothing_from_the_new_one() {
    let file = File::of(9 * MIB);
    let world = world(&file, |_| {}).await;
    let slow = world.ask().await;
    *file.changes_at.lock() = Some(3 * MIB);
    assert!(world.bytes("GET", &[]).await.body.is_none(), "it breaks off");
    world.range("bytes=0-9").await.is(2, 0, 10);
    file.asked();
    assert!(slow.into_body().collect().await.is_err(), "so does the one that has read nothing yet");
    world.range("bytes=0-9").await.is(2, 0, 10);
    assert!(!file.asked().contains(&"-".to_owned()), "the head of the second version stays");
}

#[tokio::test]
async fn parts_that_may_not_be_kept_are_not() {
    for control in ["no-store", "private"] {
        let file = File::of(9 * MIB);
        *file.part_control.lock() = Some(control);
        let world = world(&file, |_| {}).await;
        for _ in 0..2 {
            let got = world.range("bytes=0-9").await;
            assert_eq!(got.body.expect("whole"), File::bytes(1, 0, 10), "{control}");
        }
        let slices = world.proxy.metrics().slices.clone();
        let count = |outcome| slices.get_or_create(&Outcome { outcome }).get();
        assert_eq!(["fetch", "hit", "changed"].map(count), [0, 0, 1], "{control}");
    }
}

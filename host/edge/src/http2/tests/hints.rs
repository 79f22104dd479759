//! Interim responses before the answer.

use super::*;

fn link(text: &str) -> HeaderMap {
    let mut fields = HeaderMap::from_iter([(LINK, HeaderValue::from_str(text).expect("text"))]);
    // Of another connection.
    fields.insert("connection", HeaderValue::from_static("x"));
    fields.insert("x", HeaderValue::from_static("y"));
    fields
}

async fn next_hint(response: &mut ResponseFuture) -> Option<Response<()>> {
    poll_fn(|cx| response.poll_informational(cx)).await.map(|hint| hint.expect("a hint"))
}

fn interims(request: &Request<RequestBody>) -> Interims {
    request.extensions().get::<Interims>().expect("it may speak").clone()
}

#[tokio::test]
async fn hints_come_before_the_answer_and_in_order() {
    for is_brief in [false, true] {
        let go_on = Arc::new(Notify::new());
        let mut pair = Pair::with(is_brief, h2::client::Builder::new(), {
            let go_on = Arc::clone(&go_on);
            move |request| {
                let go_on = Arc::clone(&go_on);
                async move {
                    let interims = interims(&request);
                    assert!(interims.send(StatusCode::EARLY_HINTS, &link("</a>")));
                    go_on.notified().await;
                    assert!(interims.send(StatusCode::EARLY_HINTS, &link("</b>")));
                    // And one that is there together with the answer.
                    assert!(!interims.send(StatusCode::SWITCHING_PROTOCOLS, &link("</c>")));
                    response(full("page"))
                }
            }
        })
        .await;
        let mut asked = pair.get("/").await;
        for text in ["</a>", "</b>"] {
            let hint = next_hint(&mut asked).await.expect("a hint");
            assert_eq!(hint.status(), StatusCode::EARLY_HINTS);
            assert_eq!(hint.headers().len(), 1, "{hint:?}");
            assert_eq!(hint.headers()[LINK], text);
            go_on.notify_one();
        }
        assert!(next_hint(&mut asked).await.is_none());
        let answer = asked.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key(LINK));
        assert_eq!(read(answer.into_body()).await.expect("whole").0, b"page");
        pair.finish().await;
    }
}

#[tokio::test]
async fn hints_without_end_are_dropped_and_the_answer_comes() {
    const HINTS: usize = 10_000;
    let mut pair = Pair::new(|request| async move {
        let interims = interims(&request);
        for _ in 0..HINTS {
            interims.send(StatusCode::EARLY_HINTS, &link("</a>"));
            // Whoever writes takes them away at once, and they are counted yet.
            tokio::task::yield_now().await;
        }
        response(full("page"))
    })
    .await;
    let mut asked = pair.get("/").await;
    let mut hints = 0;
    while next_hint(&mut asked).await.is_some() {
        hints += 1;
    }
    // A name of 4, a value of 4 and 32 for each of two fields.
    assert_eq!(hints, 16 * 1024 / (4 + 4 + 32 + 32));
    let answer = asked.await.expect("an answer");
    assert_eq!(read(answer.into_body()).await.expect("whole").0, b"page");
    pair.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_after_a_hint_is_not_worked_for() {
    let (dropped, mut is_dropped) = oneshot::channel();
    let (spoke, speaks) = oneshot::channel();
    let once = parking_lot::Mutex::new(Some((dropped, spoke)));
    let mut pair = Pair::new(move |request| {
        let once = once.lock().take();
        async move {
            let Some((dropped, spoke)) = once else { return response(full("page")) };
            let _guard = Guard(Some(dropped));
            let interims = interims(&request);
            interims.send(StatusCode::EARLY_HINTS, &link("</a>"));
            let _ = spoke.send(interims);
            std::future::pending().await
        }
    })
    .await;
    let mut asked = pair.get("/").await;
    next_hint(&mut asked).await.expect("a hint");
    let interims = speaks.await.expect("it speaks");
    assert!((&mut is_dropped).now_or_never().is_none());
    drop(asked);
    is_dropped.await.expect("its handler is dropped");
    assert!(!interims.send(StatusCode::EARLY_HINTS, &link("</b>")), "nobody listens");
    pair.get("/").await.await.expect("the connection goes on");
    pair.finish().await;
}

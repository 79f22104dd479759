//! Bodies in both directions: windows, trailers, and ends that are none.

use std::sync::atomic::{AtomicUsize, Ordering};

use http_body::Body as _;

use super::*;

/// Pieces of 16 KiB, and how many have been taken.
fn pieces(count: usize, taken: Arc<AtomicUsize>) -> Body {
    let pieces = (0..count).map(move |number| {
        taken.fetch_add(1, Ordering::Relaxed);
        let byte = u8::try_from(number % 256).expect("a byte");
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![byte; PIECE_BYTES])))
    });
    StreamBody::new(stream::iter(pieces)).map_err(|never| match never {}).boxed_unsync()
}

const PIECE_BYTES: usize = 16 * 1024;
const PIECES: usize = 64;
/// What a client lets come before it reads (RFC 9113 section 6.9.2).
const WINDOW_BYTES: usize = 65_535;

#[tokio::test]
async fn a_body_goes_as_fast_as_it_is_read() {
    let taken = Arc::new(AtomicUsize::new(0));
    let mut pair = Pair::new({
        let taken = Arc::clone(&taken);
        move |_| std::future::ready(response(pieces(PIECES, Arc::clone(&taken))))
    })
    .await;
    let mut body = pair.get("/").await.await.expect("a head").into_body();
    // It is read by nobody, until nothing moves any more.
    let mut before = usize::MAX;
    while before != taken.load(Ordering::Relaxed) {
        before = taken.load(Ordering::Relaxed);
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
    }
    // The client's window, what may wait of a stream, and a piece that waits for room.
    let most = (WINDOW_BYTES + SEND_BYTES_MAX) / PIECE_BYTES + 2;
    assert!(before <= most, "{before} pieces of at most {most}");
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        body.flow_control().release_capacity(data.len()).expect("given back");
        bytes.extend_from_slice(&data);
    }
    let want: Vec<u8> =
        (0..PIECES).flat_map(|number| vec![u8::try_from(number).expect("a byte"); PIECE_BYTES]).collect();
    assert!(bytes == want, "{} bytes", bytes.len());
    drop(body);
    pair.finish().await;
}

#[tokio::test]
async fn a_body_whose_reader_leaves_is_dropped() {
    let (dropped, is_dropped) = oneshot::channel();
    let once = parking_lot::Mutex::new(Some(dropped));
    let mut pair = Pair::new(move |_| {
        let guard = Guard(once.lock().take());
        let mut body = pieces(PIECES, Arc::default());
        let frames = stream::poll_fn(move |cx| {
            let _ = &guard;
            Pin::new(&mut body).poll_frame(cx)
        });
        std::future::ready(response(StreamBody::new(frames).boxed_unsync()))
    })
    .await;
    let body = pair.get("/").await.await.expect("a head").into_body();
    drop(body);
    is_dropped.await.expect("it is dropped");
    pair.finish().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_never_a_clean_end() {
    let mut pair = Pair::new(|request| {
        let path = request.uri().path().to_owned();
        let piece = Ok(Frame::data(Bytes::from_static(b"half")));
        let frames = match path.as_str() {
            "/breaks" => vec![piece, Err(BodyError::from("gone"))],
            // Whatever the reason of an upstream's reset was, it is not this client's.
            "/reset" => vec![piece, Err(BodyError::from(h2::Error::from(Reason::NO_ERROR)))],
            _ => vec![piece],
        };
        let mut response = response(StreamBody::new(stream::iter(frames)).boxed_unsync());
        match path.as_str() {
            "/short" => drop(response.headers_mut().insert(CONTENT_LENGTH, 5.into())),
            "/long" => drop(response.headers_mut().insert(CONTENT_LENGTH, 3.into())),
            _ => {}
        }
        std::future::ready(response)
    })
    .await;
    for path in ["/breaks", "/reset", "/short", "/long"] {
        // A reset overtakes what has not been written, be it the head.
        let read = async { read(pair.get(path).await.await?.into_body()).await };
        let error = read.await.expect_err("not whole");
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{path}: {error}");
    }
    let whole = pair.get("/whole").await.await.expect("the connection goes on");
    assert_eq!(read(whole.into_body()).await.expect("whole").0, b"half");
    pair.finish().await;
}

#[tokio::test]
async fn trailers_end_a_body_in_both_directions() {
    let pair = Pair::new(|request| async move {
        let collected = request.into_body().collect().await.expect("a whole body");
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let length = collected.to_bytes().len();
        let mut back = HeaderMap::new();
        back.insert("sum", trailers.get("sum").expect("a trailer").clone());
        back.insert("keep-alive", HeaderValue::from_static("x"));
        let frames = [Ok(Frame::data(Bytes::from(length.to_string()))), Ok(Frame::trailers(back))];
        response(StreamBody::new(stream::iter(frames)).boxed_unsync())
    })
    .await;
    // Larger than any window, so that these must be given back.
    let upload = vec![b'x'; 3 * CONNECTION_WINDOW_BYTES as usize];
    let mut send = pair.send.clone().ready().await.expect("an open connection");
    let (asked, mut body) = send.send_request(request(Method::POST, "/"), false).expect("a request");
    let mut left = Bytes::from(upload.clone());
    while !left.is_empty() {
        body.reserve_capacity(left.len());
        let room = poll_fn(|cx| body.poll_capacity(cx)).await.expect("a window").expect("room");
        body.send_data(left.split_to(room.min(left.len())), false).expect("sent");
    }
    body.send_trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("sum"),
        HeaderValue::from_static("7"),
    )]))
    .expect("sent");
    let answer = asked.await.expect("an answer");
    let (bytes, trailers) = read(answer.into_body()).await.expect("whole");
    assert_eq!(String::from_utf8_lossy(&bytes), upload.len().to_string());
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
    assert_eq!(trailers["sum"], "7");
    drop(send);
    drop(body);
    pair.finish().await;
}

#[tokio::test]
async fn the_half_of_an_upload_is_not_taken_for_the_whole() {
    for reason in [Reason::NO_ERROR, Reason::CANCEL] {
        let (told, tells) = oneshot::channel();
        let (came, comes) = oneshot::channel();
        let once = parking_lot::Mutex::new(Some((told, came)));
        let pair = Pair::new(move |request| {
            let (told, came) = once.lock().take().expect("one request");
            // In a task of its own, as a checkout is: the stream's end does not end it.
            tokio::spawn(async move {
                let mut body = request.into_body();
                let first = body.frame().await.expect("some").expect("data").into_data().expect("data");
                assert_eq!(first, "half");
                let _ = came.send(());
                let _ = told.send(body.collect().await.map(|_| ()));
            });
            std::future::pending()
        })
        .await;
        let mut send = pair.send.clone().ready().await.expect("an open connection");
        let (asked, mut body) = send.send_request(request(Method::POST, "/"), false).expect("a request");
        body.send_data(Bytes::from_static(b"half"), false).expect("sent");
        comes.await.expect("it comes");
        body.send_reset(reason);
        let ended = tells.await.expect("it is told");
        assert!(ended.is_err(), "{reason:?}");
        drop((send, body, asked));
        pair.finish().await;
    }
}

#[tokio::test]
async fn an_answer_may_come_before_its_request_has_ended() {
    let mut pair = Pair::new(|_| std::future::ready(response(full("no")))).await;
    let mut send = pair.send.clone().ready().await.expect("an open connection");
    let (asked, body) = send.send_request(request(Method::POST, "/"), false).expect("a request");
    let answer = asked.await.expect("an answer");
    assert_eq!(read(answer.into_body()).await.expect("whole").0, b"no");
    drop(send);
    drop(body);
    pair.get("/").await.await.expect("the connection goes on");
    pair.finish().await;
}

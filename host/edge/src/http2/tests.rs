//! A client of h2's on the other end of a pipe.

use std::convert::Infallible;
use std::future::poll_fn;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, stream};
use h2::client::{ResponseFuture, SendRequest};
use http::header::{CONTENT_LENGTH, DATE, HeaderMap, LINK};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::DuplexStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http::{Body, RequestBody, full};
use crate::interim::Interims;
use crate::listen::{Answer, ListenLimits, Peer};

mod bodies;
mod hints;

type Respond = dyn Fn(Request<RequestBody>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

struct Handler {
    respond: Box<Respond>,
    is_brief: bool,
}

impl Answer for Handler {
    fn answer(self: Arc<Self>, request: Request<RequestBody>, _: Peer) -> BoxFuture<'static, Response<Body>> {
        (self.respond)(request)
    }

    fn passes_interims(&self) -> bool {
        true
    }

    fn is_brief(&self) -> bool {
        self.is_brief
    }
}

/// A server, and a client that has shaken hands with it.
struct Pair {
    send: SendRequest<Bytes>,
    serving: JoinHandle<Result<(), BodyError>>,
    end: CancellationToken,
    client: JoinHandle<Result<(), h2::Error>>,
}

impl Pair {
    async fn new<F>(respond: impl Fn(Request<RequestBody>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::with(true, h2::client::Builder::new(), respond).await
    }

    async fn with<F>(
        is_brief: bool,
        client: h2::client::Builder,
        respond: impl Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let (near, serving, end) = serve_one(is_brief, respond);
        let (send, connection) = client.handshake(near).await.expect("HTTP/2");
        Self { send, serving, end, client: tokio::spawn(connection) }
    }

    async fn ask(&mut self, request: Request<()>) -> ResponseFuture {
        let mut send = self.send.clone().ready().await.expect("an open connection");
        send.send_request(request, true).expect("a request").0
    }

    async fn get(&mut self, path: &str) -> ResponseFuture {
        self.ask(request(Method::GET, path)).await
    }

    /// Nothing was left undone on either end.
    async fn finish(self) {
        drop(self.send);
        self.client.await.expect("no panic").expect("a clean end");
        self.serving.await.expect("no panic").expect("a clean end");
    }
}

fn serve_one<F>(
    is_brief: bool,
    respond: impl Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
) -> (DuplexStream, JoinHandle<Result<(), BodyError>>, CancellationToken)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(16 * 1024);
    let addr = ([127, 0, 0, 1], 1).into();
    let end = CancellationToken::new();
    let desk = Arc::new(Desk {
        answer: Arc::new(Handler { respond: Box::new(move |request| respond(request).boxed()), is_brief }),
        tie: ListenLimits::default().gate().admit([127, 0, 0, 1].into()).expect("room"),
        peer: Peer { addr, tls: true },
        alt_svc: None,
        challenges: None,
        draining: CancellationToken::new(),
    });
    let ends = end.clone().cancelled_owned();
    let serving = tokio::spawn(async move { serve(far, &protocol(20), desk, ends).await });
    (near, serving, end)
}

fn request(method: Method, path: &str) -> Request<()> {
    let request = Request::builder().method(method).uri(format!("https://shop.example{path}"));
    request.body(()).expect("a request")
}

fn response(body: Body) -> Response<Body> {
    Response::new(body)
}

/// All of a body, its windows given back as it comes, and its trailers.
async fn read(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

/// Says when it is dropped.
struct Guard(Option<oneshot::Sender<()>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(dropped) = self.0.take() {
            let _ = dropped.send(());
        }
    }
}

#[tokio::test]
async fn an_answer_is_a_head_and_its_body() {
    for is_brief in [false, true] {
        let mut pair = Pair::with(is_brief, h2::client::Builder::new(), |request| async move {
            let mut response = response(match request.uri().path() {
                "/empty" => crate::http::empty(),
                path => full(path.to_owned()),
            });
            response.headers_mut().insert("keep-alive", HeaderValue::from_static("x"));
            response.headers_mut().insert("te", HeaderValue::from_static("gzip"));
            response
        })
        .await;
        let answer = pair.get("/page").await.await.expect("an answer");
        assert!(!answer.body().is_end_stream());
        let names: Vec<_> = answer.headers().keys().cloned().collect();
        assert_eq!(names, [CONTENT_LENGTH, DATE]);
        assert_eq!(read(answer.into_body()).await.expect("whole").0, b"/page");
        // Their end is on the head's own frame.
        let empty = pair.get("/empty").await.await.expect("an answer");
        assert!(empty.body().is_end_stream());
        let head = pair.ask(request(Method::HEAD, "/page")).await.await.expect("an answer");
        assert!(head.body().is_end_stream());
        assert_eq!(head.headers()[CONTENT_LENGTH], "5");
        drop((empty, head));
        pair.finish().await;
    }
}

#[tokio::test]
async fn who_panics_ends_one_stream() {
    for is_brief in [false, true] {
        let mut pair = Pair::with(is_brief, h2::client::Builder::new(), |request| async move {
            assert_ne!(request.uri().path(), "/panic", "on purpose");
            response(full("page"))
        })
        .await;
        let error = pair.get("/panic").await.await.expect_err("no answer");
        assert_eq!(error.reason(), Some(Reason::CANCEL), "{error}");
        pair.get("/page").await.await.expect("the connection goes on");
        pair.finish().await;
    }
}

#[tokio::test]
async fn one_that_is_slow_hinders_no_other() {
    let go_on = Arc::new(Notify::new());
    let mut pair = Pair::new({
        let go_on = Arc::clone(&go_on);
        move |request| {
            let go_on = Arc::clone(&go_on);
            async move {
                if request.uri().path() == "/slow" {
                    go_on.notified().await;
                }
                response(full("page"))
            }
        }
    })
    .await;
    let slow = pair.get("/slow").await;
    pair.get("/page").await.await.expect("an answer");
    go_on.notify_one();
    slow.await.expect("an answer");
    pair.finish().await;
}

#[tokio::test]
async fn in_the_drain_what_is_open_is_answered_and_nothing_new() {
    let go_on = Arc::new(Notify::new());
    let mut pair = Pair::new({
        let go_on = Arc::clone(&go_on);
        move |_| {
            let first = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first ")))]);
            let go_on = Arc::clone(&go_on);
            let last = stream::once(async move {
                go_on.notified().await;
                Ok(Frame::data(Bytes::from_static(b"last")))
            });
            let body = StreamBody::new(futures_util::StreamExt::chain(first, last));
            std::future::ready(response(body.map_err(|never| match never {}).boxed_unsync()))
        }
    })
    .await;
    let mut half = pair.get("/page").await.await.expect("a head").into_body();
    assert_eq!(half.data().await.expect("some").expect("data"), "first ");
    pair.end.cancel();
    // The client is told, and asks for nothing more here.
    let refused = loop {
        match pair.send.clone().ready().await {
            Err(error) => break error,
            Ok(mut send) => match send.send_request(request(Method::GET, "/late"), true) {
                Ok((late, _)) => drop(late.await),
                Err(error) => break error,
            },
        }
    };
    assert!(refused.is_go_away(), "{refused}");
    // First come, first served: those that came before the client was told have been dropped.
    go_on.notify_one();
    assert_eq!(read(half).await.expect("whole").0, b"last");
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_there_may_be_quiet_and_one_that_is_not_is_left() {
    let (near, serving, _end) = serve_one(true, |_| std::future::ready(response(full("page"))));
    let (mut send, connection) = h2::client::handshake(near).await.expect("HTTP/2");
    let client = tokio::spawn(connection);
    // It answers pings.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!serving.is_finished());
    send = send.ready().await.expect("an open connection");
    send.send_request(request(Method::GET, "/"), true).expect("a request").0.await.expect("an answer");
    drop((send, client));

    let (near, serving, _end) = serve_one(true, |_| std::future::ready(response(full("page"))));
    let (_send, _silent) = h2::client::handshake(near).await.expect("HTTP/2");
    let since = tokio::time::Instant::now();
    let error = serving.await.expect("no panic").expect_err("nobody is there");
    assert!(error.is::<Lost>(), "{error}");
    assert_eq!(since.elapsed().as_secs(), 30);
}

//! Answers that hyper does not know of, between those that it does; and frames that go together.

use super::*;

/// Has `/hand…` at hand: its target, and `length` bytes.
struct Hand {
    length: usize,
}

impl Prompt for Hand {
    fn answer(&self, plain: &Plain<'_>) -> Option<Ready> {
        plain.target.starts_with("/hand").then(|| Ready {
            head: format!(
                "HTTP/1.1 200 OK\r\nx-target: {}\r\ncontent-length: {}\r\n",
                plain.target, self.length
            )
            .into(),
            tail: "x-tail: 1\r\n\r\n".into(),
            body: (0..self.length).map(|at| Bytes::from(vec![b'a' + (at % 26) as u8])).collect(),
            file: None,
            line: None,
        })
    }
}

fn prompted(capacity: usize, gate: &Arc<Gate>, length: usize) -> DuplexStream {
    serve_by(capacity, gate, |wire| wire.prompted_by(Some(Box::new(Hand { length }))))
}

fn at_hand(target: &str, length: usize) -> String {
    let body: String = (0..length).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
    format!("HTTP/1.1 200 OK\r\nx-target: {target}\r\ncontent-length: {length}\r\nx-tail: 1\r\n\r\n{body}")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\n{HOST}\r\n")
}

/// In the tests' way: what is not at hand is hyper's, who answers with the target.
fn answer_to(target: &str, length: usize, hypers: bool) -> String {
    if hypers { ok(&format!("{target} 0")) } else { at_hand(target, length) }
}

#[tokio::test(start_paused = true)]
async fn answers_of_both_come_in_the_order_of_their_requests() {
    let targets = ["/first", "/hand1", "/hyper", "/hand2", "/hand3", "/hyper", "/hand4"];
    for capacity in [1, 7, 100, 64 * 1024] {
        let gate = gate();
        let (mut read, mut write) = tokio::io::split(prompted(capacity, &gate, 40));
        let mut text = String::new();
        // A head that comes in pieces is hyper's.
        let alone = targets.into_iter().filter(|_| capacity >= get("/hand1").len());
        for (at, target) in alone.enumerate() {
            write.write_all(get(target).as_bytes()).await.expect("sent");
            let expected = answer_to(target, 40, !target.starts_with("/hand"));
            let mut answer = vec![0; expected.len()];
            read.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(String::from_utf8_lossy(&answer), expected, "{at}, {capacity}");
            text.push_str(&expected);
        }
        drop(write);
        assert_eq!(text.contains("x-tail"), capacity >= 100);
        // All at once, in one read or in several: whoever answers, the order stays.
        let (mut read, mut write) = tokio::io::split(prompted(capacity, &gate, 40));
        let all: String = targets.iter().map(|target| get(target)).collect();
        tokio::spawn(async move { write.write_all(all.as_bytes()).await.map(|()| write) });
        let mut text = Vec::new();
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(5), read.read_buf(&mut text)).await {
        }
        let text = String::from_utf8_lossy(&text);
        let mut rest = &*text;
        for target in targets {
            let either = [true, false].map(|hypers| answer_to(target, 40, hypers));
            let found = either.iter().find_map(|answer| rest.strip_prefix(answer.as_str()));
            rest = found.unwrap_or_else(|| panic!("{target} at {rest:?}"));
        }
        assert_eq!(rest, "");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_answered_at_once_that_is_not_alone_or_not_plain() {
    for request in [
        format!("GET /hand HTTP/1.1\r\n{HOST}Range: bytes=0-1\r\n\r\n"),
        "GET /hand HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
        format!("POST /hand HTTP/1.1\r\n{HOST}Content-Length: 0\r\n\r\n"),
        format!("GET /hand HTTP/1.0\r\n{HOST}Connection: keep-alive\r\n\r\n"),
    ] {
        let mut client = prompted(64 * 1024, &gate(), 1);
        client.write_all(get("/first").as_bytes()).await.expect("sent");
        let mut first = vec![0; ok("/first 0").len()];
        client.read_exact(&mut first).await.expect("an answer");
        client.write_all(request.as_bytes()).await.expect("sent");
        let mut said = vec![0; 1024];
        let count = client.read(&mut said).await.expect("an answer");
        let said = String::from_utf8_lossy(&said[..count]).into_owned();
        assert!(said.contains("/hand 0") && !said.contains("x-tail"), "{request}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_request_after_answers_at_once_is_still_refused_by_name() {
    let mut client = prompted(64 * 1024, &gate(), 3);
    for target in ["/first", "/hand", "/hand", "/hyper", "/hand"] {
        client.write_all(get(target).as_bytes()).await.expect("sent");
        let mut answer = vec![0; answer_to(target, 3, !target.starts_with("/hand")).len()];
        client.read_exact(&mut answer).await.expect("an answer");
    }
    client.write_all(format!("GET /hand#x HTTP/1.1\r\n{HOST}\r\n").as_bytes()).await.expect("sent");
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("a clean end");
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("\"fragment_in_target\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_an_answer_at_once_is_work_and_then_shown_out() {
    let gate = gate();
    let mut client = prompted(256, &gate, 10_000);
    client.write_all(get("/first").as_bytes()).await.expect("sent");
    let mut first = vec![0; ok("/first 0").len()];
    client.read_exact(&mut first).await.expect("an answer");
    client.write_all(get("/hand").as_bytes()).await.expect("sent");
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(in_flight(&gate).contains("in_flight 1"), "{}", in_flight(&gate));
    let mut rest = Vec::new();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let _ = client.read_to_end(&mut rest).await;
    assert!(rest.len() <= 512, "{} bytes, of which the pipe held 256", rest.len());
    assert!(started.elapsed() < Duration::from_secs(70));
    tokio::task::yield_now().await;
    assert!(in_flight(&gate).contains("in_flight 0"), "{}", in_flight(&gate));
}

fn in_flight(gate: &Gate) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    gate.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a page");
    text
}

#[tokio::test(start_paused = true)]
async fn a_full_node_has_nothing_at_hand() {
    let gate = Gate::new(GateLimits {
        connections_max: 10,
        connections_per_address_max: 10,
        requests_in_flight_max: 1,
    });
    let mut busy = serve(64 * 1024, &gate);
    let mut client = prompted(64 * 1024, &gate, 1);
    client.write_all(get("/first").as_bytes()).await.expect("sent");
    let mut first = vec![0; ok("/first 0").len()];
    client.read_exact(&mut first).await.expect("an answer");
    client.write_all(get("/hand").as_bytes()).await.expect("sent");
    let mut hand = vec![0; at_hand("/hand", 1).len()];
    client.read_exact(&mut hand).await.expect("an answer");
    busy.write_all(get("/slow").as_bytes()).await.expect("sent");
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.write_all(get("/hand").as_bytes()).await.expect("sent");
    let mut said = [0; 64];
    // The tests' service has no answer to what the gate says, and ends.
    let read = client.read(&mut said).await;
    assert!(!matches!(read, Ok(count) if said[..count].starts_with(b"HTTP/1.1 200")), "it was answered");
}

/// Counts writes.
struct Counted {
    stream: DuplexStream,
    writes: Arc<std::sync::atomic::AtomicUsize>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_made_together_go_together_and_none_waits_for_a_slow_one() {
    let (client, server) = tokio::io::duplex(256 * 1024);
    let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let server = Counted { stream: server, writes: Arc::clone(&writes) };
    let tie = gate().admit(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("room");
    let wire = Wire::new(server, Spoken::Http2, limits(), tie);
    let service =
        service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(request).await) });
    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    tokio::spawn(async move { drop(builder.serve_connection(TokioIo::new(wire), service).await) });
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let ask = |path: String| {
        let mut send = send.clone();
        async move {
            let request = Request::post(format!("http://a{path}")).body(Empty::<Bytes>::new());
            let answer = send.send_request(request.expect("a request")).await.expect("an answer");
            answer.into_body().collect().await.expect("a body").to_bytes()
        }
    };
    assert_eq!(ask("/warm".to_owned()).await, "/warm 0");
    let before = writes.load(std::sync::atomic::Ordering::SeqCst);
    let all: Vec<_> = (0..50).map(|at| tokio::spawn(ask(format!("/{at}")))).collect();
    for (at, one) in all.into_iter().enumerate() {
        assert_eq!(one.await.expect("asked"), format!("/{at} 0"));
    }
    let took = writes.load(std::sync::atomic::Ordering::SeqCst) - before;
    assert!(took <= 25, "{took} writes for 50 answers");

    let started = Instant::now();
    let slow = tokio::spawn(ask("/slow".to_owned()));
    for at in 0..5 {
        assert_eq!(ask(format!("/{at}")).await, format!("/{at} 0"));
    }
    assert!(started.elapsed() < Duration::from_secs(1), "they waited for the slow one");
    assert_eq!(slow.await.expect("asked"), "/slow 0");
    assert_eq!(ask("/large".to_owned()).await.len(), 1 << 20);
}

//! Interim responses from an upstream to a client, through the listener that shoppers reach.

use tokio_util::sync::CancellationToken;

use super::*;

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";

/// An upstream that hints, and waits for the word before it answers.
async fn hinting(go_on: Arc<tokio::sync::Notify>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let go_on = Arc::clone(&go_on);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.expect("a request"));
                }
                stream
                    .write_all(format!("HTTP/1.1 100 Continue\r\n\r\n{HINT}").as_bytes())
                    .await
                    .expect("said");
                go_on.notified().await;
                let answer = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n\
                              connection: close\r\n\r\npage";
                stream.write_all(answer.as_bytes()).await.expect("answered");
            });
        }
    });
    at
}

/// All that a client reads for one request after which the connection closes.
async fn raw(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    text
}

#[tokio::test]
async fn early_hints_reach_their_client_at_once_and_are_not_stored() {
    let go_on = Arc::new(tokio::sync::Notify::new());
    let upstream = hinting(Arc::clone(&go_on)).await;
    let config =
        ProxyConfig::new(([127, 0, 0, 1], 0).into(), &format!("http://{upstream}")).expect("a config");
    let stop = CancellationToken::new();
    let running = crate::run_proxy(config, stop.clone()).await.expect("it listens");
    let at = running.listening.http.expect("the public port");

    let mut stream = TcpStream::connect(at).await.expect("connected");
    stream.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut hint = vec![0; HINT.len()];
    stream.read_exact(&mut hint).await.expect("before there is an answer");
    assert_eq!(String::from_utf8_lossy(&hint), HINT);
    go_on.notify_one();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\npage"), "{answer}");
    assert!(!answer.contains("link"), "{answer}");

    let hit = raw(at, "GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(hit.starts_with("HTTP/1.1 200 OK\r\n") && !hit.contains("link"), "{hit}");

    // A request that is not answered from the cache, and a client that knows no interim responses.
    go_on.notify_one();
    let passed =
        raw(at, "POST /b HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert!(passed.starts_with(&format!("{HINT}HTTP/1.1 200 OK\r\n")), "{passed}");
    go_on.notify_one();
    let old = raw(at, "GET /c HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n") && old.ends_with("page"), "{old}");
    stop.cancel();
    running.done.await.expect("it ends in order");
}

#[tokio::test]
async fn early_hints_reach_a_client_of_http2_as_frames_of_their_own() {
    let go_on = Arc::new(tokio::sync::Notify::new());
    let upstream = hinting(Arc::clone(&go_on)).await;
    let config =
        ProxyConfig::new(([127, 0, 0, 1], 0).into(), &format!("http://{upstream}")).expect("a config");
    let stop = CancellationToken::new();
    let running = crate::run_proxy(config, stop.clone()).await.expect("it listens");
    let at = running.listening.http.expect("the public port");

    let stream = TcpStream::connect(at).await.expect("connected");
    let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let client = tokio::spawn(connection);
    for (method, path, is_hinted) in
        [("GET", "/a", true), ("GET", "/a", false), ("POST", "/b", true), ("GET", "/c", true)]
    {
        let mut send = send.clone().ready().await.expect("an open connection");
        let request = Request::builder().method(method).uri(format!("http://a{path}"));
        let (mut asked, _) = send.send_request(request.body(()).expect("a request"), true).expect("sent");
        if is_hinted {
            // Before there is an answer.
            let hint = std::future::poll_fn(|cx| asked.poll_informational(cx)).await;
            let hint = hint.expect("a hint").expect("a head");
            assert_eq!(hint.status(), 103, "{method} {path}");
            assert_eq!(hint.headers()["link"], "</a.css>; rel=preload");
            go_on.notify_one();
        }
        let none = std::future::poll_fn(|cx| asked.poll_informational(cx)).await;
        assert!(none.is_none(), "{method} {path}: {none:?}");
        let answer = asked.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("link"), "{answer:?}");
        let page = answer.into_body().data().await.expect("some").expect("data");
        assert_eq!(page, "page");
    }
    drop(send);
    client.await.expect("no panic").expect("in order");
    stop.cancel();
    running.done.await.expect("it ends in order");
}

//! One shopper against a node that answers from a script: what is taken as done, and what is a finding.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::super::Rate;
use super::super::oracle::Catalogue;
use super::*;

/// What the node does with a request: answers with a status and a body, or ends the connection.
pub(in crate::replay) type Reply = Option<(u16, Value)>;
type Script = Arc<dyn Fn(&str, &str, usize) -> Reply + Send + Sync>;

/// A node that answers every request by asking `reply` for method, path and how many requests came before.
pub(in crate::replay) async fn node(
    reply: impl Fn(&str, &str, usize) -> Reply + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let reply: Script = Arc::new(reply);
    let count = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&reply), Arc::clone(&count)));
        }
    });
    address
}

/// One request per connection.
async fn serve(mut stream: TcpStream, reply: Script, count: Arc<AtomicUsize>) {
    let mut request = Vec::new();
    let head = loop {
        if let Some(at) = request.windows(4).position(|w| w == b"\r\n\r\n") {
            break String::from_utf8_lossy(&request[..at]).to_ascii_lowercase();
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let length: usize =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    while request.len() < head.len() + 4 + length {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Some((status, body)) = reply(method, path, count.fetch_add(1, Ordering::SeqCst)) else { return };
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // A client that has gone away is the test's business.
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// A town with that one node.
pub(in crate::replay) fn town(http: SocketAddr) -> Arc<Town> {
    Arc::new(Town {
        client: Client::new(),
        nodes: vec![NodeHandle { name: "edge-lon".into(), pop: "lon".into(), http, admin: http }],
        host: "retail.localhost".into(),
        oracle: Oracle {
            catalogue: Catalogue::new(),
            pricing: Value::Null,
            cart: Value::Null,
            cart_plugin: "cart".into(),
        },
        books: Books::new(),
        pace: Pace::new(Rate::Max),
        seed: 1,
    })
}

/// A shopper with a cart in which three pieces of A are acknowledged.
async fn shopper(reply: impl Fn(&str, &str, usize) -> Reply + Send + Sync + 'static) -> Shopper {
    let town = town(node(reply).await);
    let place = Arc::new(Semaphore::new(1)).acquire_owned().await.expect("it is open");
    let mut shopper = Shopper::new(town, 0, None, place);
    shopper.book.cart = "c0".into();
    shopper.holds("A", 3, 1);
    shopper.patience = Duration::from_millis(400);
    shopper
}

fn problem(code: &str) -> Reply {
    Some((404, json!({ "code": code, "detail": "no such line" })))
}

#[tokio::test]
async fn a_line_that_is_gone_at_the_first_removal_was_lost() {
    let mut shopper = shopper(|_, _, _| problem("unknown_line")).await;
    shopper.remove("A").await;
    assert_eq!(shopper.town.books.tally().refused.count, 1);
    assert_eq!(shopper.book.lines["A"].quantity, 3, "the audit looks for what was acknowledged");
}

#[tokio::test]
async fn a_refusal_that_did_nothing_is_no_reason_to_believe_in_a_removal() {
    let busy = || Some((503, json!({ "code": "node_busy" })));
    let mut shopper =
        shopper(move |_, _, before| if before == 0 { busy() } else { problem("unknown_line") }).await;
    shopper.remove("A").await;
    assert_eq!(shopper.town.books.tally().refused.count, 1);
}

#[tokio::test]
async fn a_removal_of_unknown_outcome_was_done_when_the_line_is_gone() {
    let mut shopper = shopper(|_, _, before| if before == 0 { None } else { problem("unknown_line") }).await;
    shopper.remove("A").await;
    let tally = shopper.town.books.tally();
    assert_eq!((tally.refused.count, tally.unknown, tally.unknown_done), (0, 1, 1));
    assert_eq!(shopper.book.lines["A"].quantity, 0);
}

#[tokio::test]
async fn a_line_that_cannot_be_changed_because_it_is_gone_is_a_finding_at_any_attempt() {
    for lost_first in [false, true] {
        let reply = move |_: &str, _: &str, before| {
            if before == 0 && lost_first { None } else { problem("unknown_line") }
        };
        let mut shopper = shopper(reply).await;
        shopper.set("A", 2).await;
        assert_eq!(shopper.town.books.tally().refused.count, 1, "lost first: {lost_first}");
    }
}

#[tokio::test]
async fn an_addition_that_stays_unknown_is_told() {
    let lines = json!({ "lines": [{ "line": "A", "quantity": 3 }] });
    let mut shopper =
        shopper(move |method, _, _| if method == "get" { Some((200, lines.clone())) } else { None }).await;
    shopper.add("A", 1).await;
    let tally = shopper.town.books.tally();
    assert_eq!(tally.unanswered.count, 1, "{:?}", tally.unanswered);
    assert!(shopper.book.lines["A"].uncertain);
}

#[tokio::test]
async fn a_cart_without_a_number_is_told() {
    let mut shopper = shopper(|_, _, _| Some((201, json!({})))).await;
    assert_eq!(shopper.create().await, None);
    assert_eq!(shopper.town.books.tally().unanswered.count, 1);
}

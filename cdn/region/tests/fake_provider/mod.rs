//! A payment provider to be tested against: Stripe's part of the conversation over real HTTP, with books of its own.
//!
//! It keeps the three promises that are relied on (see `saga::provider`) and is otherwise as bad as a provider can be: it
//! drops the line before and after it has done what it was asked, is silent for longer than anybody waits, fails and repeats
//! the failure to every repetition, is busy, and sends its messages twice and in the wrong order. What goes wrong depends on
//! the seed, the key and how often the key has come, so that it is the same in each run whoever comes first.
//!
//! What it says was charged is what was charged.

#![allow(dead_code, reason = "two test programs share it, and each uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(crate) const KEY: &str = "sk_test_51Secret";
pub(crate) const WEBHOOK_SECRET: &str = "whsec_test_secret";
/// A card that no bank accepts.
pub(crate) const BAD_CARD: &str = "pm_card_chargeDeclined";
/// How long it is silent when it is; above what a test's client waits.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Nothing,
    /// The line drops before anything is done.
    LostBefore,
    /// It is done, and then the line drops.
    LostAfter,
    /// A failure before anything is done, repeated to each repetition.
    FailsFirst,
    /// A failure after it is done, repeated to each repetition.
    FailsLast,
    /// Too many requests: nothing is done.
    Busy,
    /// It is done at once, and answered when nobody waits any more.
    Silent,
    /// It is done when nobody waits any more.
    Late,
    /// The answer comes, after a moment.
    Slow,
    /// It refuses what is asked, for good. Not one of [`TROUBLES`], which pass.
    Refuses,
}

pub(crate) const TROUBLES: [Trouble; 9] = [
    Trouble::Nothing,
    Trouble::LostBefore,
    Trouble::LostAfter,
    Trouble::FailsFirst,
    Trouble::FailsLast,
    Trouble::Busy,
    Trouble::Silent,
    Trouble::Late,
    Trouble::Slow,
];

#[derive(Debug, Clone)]
pub(crate) struct Intent {
    pub(crate) id: String,
    pub(crate) order: String,
    site: String,
    pub(crate) amount: i64,
    pub(crate) status: &'static str,
    pub(crate) refunded: bool,
    /// How often money was taken.
    pub(crate) captures: u32,
    pub(crate) refunds: u32,
    /// When it was made, and when its hold ended: captured, or given up.
    pub(crate) made_s: u64,
    pub(crate) held_until_s: Option<u64>,
}

#[derive(Debug, Clone)]
struct Stored {
    form: String,
    status: StatusCode,
    body: Value,
}

/// What was charged, and how it came to it.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) intents: Vec<Intent>,
    /// Their places, by order.
    by_order: BTreeMap<String, Vec<usize>>,
    keys: BTreeMap<String, Stored>,
    /// Requests that are being worked on, by key.
    under_way: BTreeSet<String>,
    /// How often each key has come.
    seen: BTreeMap<String, u32>,
    pub(crate) requests: u64,
    pub(crate) repeated: u64,
    /// A key that came with another question: never by an honest client.
    pub(crate) misused: u64,
    pub(crate) troubles: u64,
    messages: Vec<Value>,
    /// Messages there ever were.
    told: u64,
}

pub(crate) struct FakeProvider {
    pub(crate) addr: SocketAddr,
    books: Arc<Mutex<Books>>,
    listening: JoinHandle<()>,
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Decides what goes wrong: by the key, and how often it has come.
type Manners = Arc<dyn Fn(&str, u32) -> Trouble + Send + Sync>;

fn mix(mut seed: u64, text: &str) -> u64 {
    for byte in text.bytes().chain(*b"souk") {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
    seed ^ (seed >> 31)
}

impl FakeProvider {
    /// Of so many hundred requests one in which something goes wrong.
    pub(crate) async fn hostile(seed: u64, percent: u64) -> Self {
        Self::start(Arc::new(move |key, nth| {
            let chance = mix(seed.wrapping_add(u64::from(nth) << 32), key);
            if chance % 100 >= percent {
                return Trouble::Nothing;
            }
            let index =
                usize::try_from((chance / 100) % (TROUBLES.len() as u64 - 1)).expect("a small number");
            TROUBLES[1 + index]
        }))
        .await
    }

    pub(crate) async fn honest() -> Self {
        Self::start(Arc::new(|_, _| Trouble::Nothing)).await
    }

    pub(crate) async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let books: Arc<Mutex<Books>> = Arc::default();
        let shared = Arc::clone(&books);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (books, manners) = (Arc::clone(&shared), Arc::clone(&manners));
                tokio::spawn(serve(stream, books, manners));
            }
        });
        Self { addr, books, listening }
    }

    pub(crate) fn api(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn books<T>(&self, look: impl FnOnce(&Books) -> T) -> T {
        look(&self.books.lock())
    }

    /// Somebody at the provider's own desk changes a payment.
    pub(crate) fn by_hand(&self, order: &str, change: impl FnOnce(&mut Intent)) {
        let mut books = self.books.lock();
        let intent =
            books.intents.iter_mut().find(|intent| intent.order == order).expect("there is a payment");
        change(intent);
        let intent = intent.clone();
        books.announce(&intent);
    }

    /// A payment that nobody was told of.
    pub(crate) fn orphan(&self, order: &str, amount: i64, status: &'static str) {
        let captures = u32::from(status == "succeeded");
        let mut books = self.books.lock();
        let intent = books.intent(order, "shop", amount, status);
        books.intents[intent].captures = captures;
    }

    /// Whether something that was asked may still be done.
    pub(crate) fn is_busy(&self) -> bool {
        !self.books.lock().under_way.is_empty()
    }

    /// What it has to say since the last time, signed: everything twice, and the last things first.
    pub(crate) fn messages(&self) -> Vec<(String, Vec<u8>)> {
        let mut messages = std::mem::take(&mut self.books.lock().messages);
        messages.reverse();
        let twice = [messages.clone(), messages].concat();
        twice.into_iter().map(|message| sign(&message.to_string(), WEBHOOK_SECRET, now_s())).collect()
    }
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The header and the body of a message.
pub(crate) fn sign(body: &str, secret: &str, at_s: u64) -> (String, Vec<u8>) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at_s}.{body}").as_bytes());
    (format!("t={at_s},v1={}", hex::encode(tag)), body.as_bytes().to_vec())
}

async fn serve(stream: TcpStream, books: Arc<Mutex<Books>>, manners: Manners) {
    let service = service_fn(move |request| {
        let (books, manners) = (Arc::clone(&books), Arc::clone(&manners));
        async move { answer(request, &books, &manners).await }
    });
    // An error of the service drops the line, which is what it is for.
    let _dropped =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the line drops")
    }
}

impl std::error::Error for Dropped {}

impl From<Infallible> for Dropped {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

fn say(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response
}

fn fault(kind: &str, code: &str) -> Value {
    json!({ "error": { "type": kind, "code": code } })
}

async fn answer(
    request: Request<Incoming>,
    books: &Arc<Mutex<Books>>,
    manners: &Manners,
) -> Result<Response<Full<Bytes>>, Dropped> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
    let form = String::from_utf8(body.to_vec()).expect("a form is text");
    let expected = format!("Bearer {KEY}");
    if head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) != Some(expected.as_str()) {
        return Ok(say(StatusCode::UNAUTHORIZED, &fault("invalid_request_error", "key")));
    }
    let path = head.uri.path().to_owned();
    books.lock().requests += 1;
    if head.method == Method::GET {
        let query = head.uri.query().unwrap_or_default();
        return Ok(books.lock().look(&path, &pairs(query)));
    }
    let key =
        head.headers.get("idempotency-key").and_then(|v| v.to_str().ok()).expect("each change has a key");
    let key = key.to_owned();
    let nth = {
        let mut books = books.lock();
        let nth = books.seen.entry(key.clone()).or_default();
        *nth += 1;
        *nth
    };
    let trouble = manners(&key, nth);
    if trouble != Trouble::Nothing {
        books.lock().troubles += 1;
    }
    match trouble {
        Trouble::LostBefore => return Err(Dropped),
        Trouble::Busy => {
            return Ok(say(StatusCode::TOO_MANY_REQUESTS, &fault("rate_limit_error", "rate_limit")));
        }
        Trouble::Refuses => {
            return Ok(say(StatusCode::BAD_REQUEST, &fault("invalid_request_error", "charge_disputed")));
        }
        _ => {}
    }
    let question = format!("{path}?{form}");
    {
        let mut books = books.lock();
        if let Some(stored) = books.keys.get(&key).cloned() {
            books.repeated += 1;
            if stored.form != question {
                books.misused += 1;
                return Ok(say(StatusCode::BAD_REQUEST, &fault("idempotency_error", "other_parameters")));
            }
            return Ok(say(stored.status, &stored.body));
        }
        if !books.under_way.insert(key.clone()) {
            return Ok(say(StatusCode::CONFLICT, &fault("idempotency_error", "in_use")));
        }
    }
    // In a task of its own: a client that goes away does not stop what it has asked for.
    let books = Arc::clone(books);
    let working = tokio::spawn(async move {
        match trouble {
            Trouble::Late => tokio::time::sleep(SILENCE).await,
            Trouble::Slow => tokio::time::sleep(Duration::from_millis(15)).await,
            _ => {}
        }
        let mut books = books.lock();
        let failed = (StatusCode::INTERNAL_SERVER_ERROR, fault("api_error", "oops"));
        let (status, said) = match trouble {
            Trouble::FailsFirst => failed,
            Trouble::FailsLast => {
                books.carry_out(&path, &pairs(&form));
                failed
            }
            _ => books.carry_out(&path, &pairs(&form)),
        };
        books.keys.insert(key.clone(), Stored { form: question, status, body: said.clone() });
        books.under_way.remove(&key);
        (status, said)
    });
    let (status, said) = working.await.map_err(|_| Dropped)?;
    match trouble {
        Trouble::LostAfter => return Err(Dropped),
        Trouble::Silent => tokio::time::sleep(SILENCE).await,
        _ => {}
    }
    Ok(say(status, &said))
}

fn pairs(text: &str) -> BTreeMap<String, String> {
    serde_urlencoded::from_str::<Vec<(String, String)>>(text).expect("a form").into_iter().collect()
}

impl Intent {
    /// Whether money was taken and not given back.
    pub(crate) fn stands(&self) -> bool {
        self.status == "succeeded" && !self.refunded
    }

    fn shown(&self) -> Value {
        let declined = self.status == "requires_payment_method";
        let error = declined.then(|| json!({ "code": "card_declined" }));
        json!({
            "id": self.id, "object": "payment_intent", "status": self.status,
            "amount": self.amount, "currency": "gbp", "last_payment_error": error,
            "metadata": { "souk_order": self.order, "souk_site": self.site },
            "latest_charge": { "refunded": self.refunded },
        })
    }
}

impl Books {
    fn announce(&mut self, intent: &Intent) {
        self.told += 1;
        let id = format!("evt_{}", self.told);
        let kind = format!("payment_intent.{}", intent.status);
        self.messages.push(json!({ "id": id, "type": kind, "data": { "object": intent.shown() } }));
    }

    /// Writes a new payment into the books; answers its place.
    fn intent(&mut self, order: &str, site: &str, amount: i64, status: &'static str) -> usize {
        let place = self.intents.len();
        let (id, order, site) = (format!("pi_{}", place + 1), order.to_owned(), site.to_owned());
        self.by_order.entry(order.clone()).or_default().push(place);
        self.intents.push(Intent {
            id,
            order,
            site,
            amount,
            status,
            refunded: false,
            captures: 0,
            refunds: 0,
            made_s: now_s(),
            held_until_s: None,
        });
        place
    }

    /// The place of the payment with this name.
    fn place(&self, id: &str) -> Option<usize> {
        let place = id.strip_prefix("pi_")?.parse::<usize>().ok()?.checked_sub(1)?;
        (place < self.intents.len()).then_some(place)
    }

    fn look(&self, path: &str, query: &BTreeMap<String, String>) -> Response<Full<Bytes>> {
        if path == "/v1/payment_intents/search" {
            let order =
                query["query"].strip_prefix("metadata['souk_order']:'").and_then(|q| q.strip_suffix('\''));
            let places = self.by_order.get(order.expect("a search for one order")).into_iter().flatten();
            let data: Vec<_> = places.map(|place| self.intents[*place].shown()).collect();
            return say(StatusCode::OK, &json!({ "data": data, "has_more": false }));
        }
        if path == "/v1/payment_intents" {
            // The newest first, a few at a time; of very many as many as are asked for, since no client reads pages for ever.
            const FEW: usize = 3;
            const VERY_MANY: usize = 1_000;
            let asked = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(FEW);
            let page = if self.intents.len() > VERY_MANY { asked } else { FEW };
            let newest: Vec<_> = self.intents.iter().rev().collect();
            let from = query.get("starting_after").map_or(0, |after| {
                1 + newest.iter().position(|i| i.id == *after).expect("a name that was given out")
            });
            let page: Vec<_> = newest[from..].iter().take(page).map(|i| i.shown()).collect();
            let has_more = from + page.len() < newest.len();
            return say(StatusCode::OK, &json!({ "data": page, "has_more": has_more }));
        }
        let id = path.trim_start_matches("/v1/payment_intents/");
        match self.place(id) {
            Some(place) => say(StatusCode::OK, &self.intents[place].shown()),
            None => say(StatusCode::NOT_FOUND, &fault("invalid_request_error", "resource_missing")),
        }
    }

    fn carry_out(&mut self, path: &str, form: &BTreeMap<String, String>) -> (StatusCode, Value) {
        let refused =
            || (StatusCode::BAD_REQUEST, fault("invalid_request_error", "payment_intent_unexpected_state"));
        if path == "/v1/payment_intents" {
            let declined = form["payment_method"] == BAD_CARD;
            let amount = form["amount"].parse().expect("an amount");
            let status = if declined { "requires_payment_method" } else { "requires_capture" };
            let (order, site) = (&form["metadata[souk_order]"], &form["metadata[souk_site]"]);
            let place = self.intent(order, site, amount, status);
            let intent = self.intents[place].clone();
            self.announce(&intent);
            if declined {
                let error = json!({ "error": { "type": "card_error", "code": "card_declined",
                    "decline_code": "insufficient_funds" } });
                return (StatusCode::PAYMENT_REQUIRED, error);
            }
            return (StatusCode::OK, intent.shown());
        }
        let refund = path == "/v1/refunds";
        let (id, what) = if refund {
            (form["payment_intent"].as_str(), "refund")
        } else {
            path.trim_start_matches("/v1/payment_intents/").split_once('/').expect("what to do with it")
        };
        let Some(place) = self.place(id) else {
            return (StatusCode::NOT_FOUND, fault("invalid_request_error", "resource_missing"));
        };
        let intent = &mut self.intents[place];
        match (what, intent.status) {
            ("capture", "requires_capture") => {
                intent.status = "succeeded";
                intent.captures += 1;
                intent.held_until_s = Some(now_s());
            }
            ("cancel", "requires_capture") => {
                intent.status = "canceled";
                intent.held_until_s = Some(now_s());
            }
            ("refund", "succeeded") if !intent.refunded => {
                intent.refunded = true;
                intent.refunds += 1;
            }
            _ => return refused(),
        }
        let intent = intent.clone();
        self.announce(&intent);
        let shown = if refund { json!({ "id": "re_1", "status": "succeeded" }) } else { intent.shown() };
        (StatusCode::OK, shown)
    }
}

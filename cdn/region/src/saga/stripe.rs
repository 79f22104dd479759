//! A provider that speaks as Stripe does: forms out, JSON back, one "payment intent" per order.
//!
//! An intent is made and confirmed in one request, with `capture_method=manual`: the bank holds the amount, and giving it up
//! is a void and no refund. It bears the order's number as metadata, by which it is found again when its answer was lost.
//! What each answer means for the money is decided in [`heard`] and [`found`], and nowhere else; a request that cannot be
//! told to have failed counts as one that may have been carried out. What its amounts mean is [`units`]'.

mod units;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use souk_commerce::id::{OrderId, SiteId};

use super::machine::{Found, Outcome};
use super::provider::{
    Listed, Listing, Message, MessageRefused, NotFoundOut, PaymentProvider, Secret, SetupError,
};
use super::signature::Verifier;
use crate::store::checkout::Charge;

/// One request and its answer. Stripe's own libraries wait for 80 s; ours can give up earlier, because it asks again with
/// the same key. A card that its bank looks at for longer than this is found by the look-up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Of that, to reach the server.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// An intent with its charge has some 5 KiB; a page of a hundred, half a MiB.
const ANSWER_BYTES_MAX: usize = 2 << 20;
/// Payments of one page: as many as the API gives.
const PAGE: &str = "100";
/// The shape of the answers that are read here.
const API_VERSION: &str = "2024-06-20";
/// Longest name of a payment. Stripe's have 27 characters.
const REFERENCE_BYTES_MAX: usize = 128;
/// Idle connections to the provider that are kept, and for how long.
const IDLE_MAX: usize = 32;
const IDLE_FOR: Duration = Duration::from_secs(30);
/// Where the order's number stands.
const METADATA: &str = "metadata[souk_order]";

/// The connections to providers, shared by all shops: its roots and its idle connections are there once.
#[derive(Clone)]
pub(crate) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

pub(crate) struct Stripe {
    http: Http,
    /// Without a slash at its end.
    api: String,
    authorization: HeaderValue,
    verifier: Verifier,
    deadline: Duration,
}

/// Why there is no answer.
enum Missed {
    /// The server was not reached: nothing was sent.
    NotSent(String),
    /// It may have been received.
    Lost(String),
}

struct Answer {
    status: StatusCode,
    body: Bytes,
}

#[derive(Deserialize)]
struct Intent {
    id: String,
    status: String,
    #[serde(default)]
    amount: i64,
    /// What was taken of it.
    #[serde(default)]
    amount_received: Option<i64>,
    #[serde(default)]
    currency: String,
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(default)]
    latest_charge: Option<LatestCharge>,
    #[serde(default)]
    last_payment_error: Option<Fault>,
}

/// A name where it was not asked to be expanded.
#[derive(Deserialize)]
#[serde(untagged)]
enum LatestCharge {
    Whole { refunded: bool },
    Named(#[expect(dead_code, reason = "only that it is a name matters")] String),
}

#[derive(Deserialize, Default)]
struct Metadata {
    #[serde(default)]
    souk_order: Option<String>,
    #[serde(default)]
    souk_site: Option<String>,
}

#[derive(Deserialize)]
struct Refund {
    status: String,
}

#[derive(Deserialize)]
struct Failure {
    error: Fault,
}

#[derive(Deserialize, Default)]
struct Fault {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    decline_code: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Intent>,
    #[serde(default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct WebhookBody {
    id: String,
    data: WebhookData,
}

#[derive(Deserialize)]
struct WebhookData {
    object: WebhookObject,
}

/// An intent, a charge or a refund: the latter two name their intent.
#[derive(Deserialize)]
struct WebhookObject {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    object: Option<String>,
    #[serde(default)]
    payment_intent: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

impl Fault {
    /// A word for programs, as the provider has it: `insufficient_funds`.
    fn code(self) -> String {
        const CODE_BYTES_MAX: usize = 64;
        let code = self.decline_code.or(self.code).or(self.kind).unwrap_or_default();
        let tame = !code.is_empty()
            && code.len() <= CODE_BYTES_MAX
            && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if tame { code } else { "declined".to_owned() }
    }
}

impl Http {
    pub(crate) fn new() -> Result<Self, SetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| SetupError::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_MAX));
        // Plain HTTP only to this machine: the configuration refuses it elsewhere.
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Ok(Self(client))
    }
}

impl Stripe {
    pub(crate) fn new(http: Http, api: &str, key: &Secret, webhook: Secret) -> Result<Self, SetupError> {
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.reveal()))
            .map_err(|_| SetupError::Tls("the key cannot stand in a header".to_owned()))?;
        authorization.set_sensitive(true);
        Ok(Self {
            http,
            api: api.trim_end_matches('/').to_owned(),
            authorization,
            verifier: Verifier::new(&webhook),
            deadline: DEADLINE,
        })
    }

    /// For tests, in which a server that never answers must not be waited for.
    #[cfg(test)]
    pub(crate) fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    async fn post(&self, path: &str, key: &str, form: &[(&str, &str)]) -> Result<Answer, Missed> {
        let body = serde_urlencoded::to_string(form).map_err(|e| Missed::NotSent(e.to_string()))?;
        let request = self
            .request(Method::POST, path)
            .header("idempotency-key", key)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(body));
        self.send(request).await
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Answer, Missed> {
        let query = serde_urlencoded::to_string(query).map_err(|e| Missed::NotSent(e.to_string()))?;
        let request = self.request(Method::GET, &format!("{path}?{query}")).body(Full::default());
        self.send(request).await
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let uri = format!("{}{path}", self.api);
        // A part that is no URI makes the builder fail, and the request is never sent.
        let uri = Uri::try_from(uri).unwrap_or_default();
        Request::builder()
            .method(method)
            .uri(uri)
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::USER_AGENT, concat!("souk/", env!("CARGO_PKG_VERSION")))
            .header("stripe-version", API_VERSION)
    }

    async fn send(&self, request: http::Result<Request<Full<Bytes>>>) -> Result<Answer, Missed> {
        let request = request.map_err(|error| Missed::NotSent(error.to_string()))?;
        let asking = async {
            let answer = self.http.0.request(request).await.map_err(|error| {
                if error.is_connect() { Missed::NotSent(text(&error)) } else { Missed::Lost(text(&error)) }
            })?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Missed::Lost(error.to_string()))?.to_bytes();
            Ok(Answer { status: head.status, body })
        };
        match tokio::time::timeout(self.deadline, asking).await {
            Ok(answered) => answered,
            Err(_) => Err(Missed::Lost(format!("no answer within {:?}", self.deadline))),
        }
    }

    async fn ask(
        &self,
        path: &str,
        key: &str,
        form: &[(&str, &str)],
        wants: fn(&[u8]) -> Option<Outcome>,
    ) -> Outcome {
        match self.post(path, key, form).await {
            Ok(answer) => heard(&answer, key, wants),
            Err(Missed::NotSent(reason)) => {
                tracing::warn!(key, reason, "the payment provider cannot be reached");
                Outcome::NotNow
            }
            Err(Missed::Lost(reason)) => {
                tracing::warn!(key, reason, "the payment provider's answer is missing");
                Outcome::Unknown { answered: false }
            }
        }
    }

    async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Option<T>, NotFoundOut> {
        let answer = self.get(path, query).await.map_err(|missed| match missed {
            Missed::NotSent(reason) | Missed::Lost(reason) => NotFoundOut(reason),
        })?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => serde_json::from_slice(&answer.body)
                .map(Some)
                .map_err(|error| NotFoundOut(format!("an answer that is not understood: {error}"))),
            status => Err(NotFoundOut(format!("it answers {status}"))),
        }
    }
}

/// What an answer to a change means. `wants` reads the body of a success.
fn heard(answer: &Answer, key: &str, wants: fn(&[u8]) -> Option<Outcome>) -> Outcome {
    let status = answer.status;
    if status.is_success() {
        return wants(&answer.body).unwrap_or_else(|| {
            tracing::error!(key, %status, "the payment provider's answer is not understood");
            Outcome::Unknown { answered: false }
        });
    }
    if status.is_server_error() {
        // It is stored under the key, and says nothing of what was done before.
        return Outcome::Unknown { answered: true };
    }
    let fault = serde_json::from_slice::<Failure>(&answer.body).map(|failure| failure.error);
    match status {
        // Another request with this key is under way.
        StatusCode::CONFLICT => Outcome::Unknown { answered: false },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            tracing::error!(key, %status, "the payment provider does not accept the shop's key: see secret_key_file");
            Outcome::NotNow
        }
        StatusCode::TOO_MANY_REQUESTS => Outcome::NotNow,
        StatusCode::PAYMENT_REQUIRED => Outcome::Declined { code: fault.unwrap_or_default().code() },
        _ if status.is_client_error() => {
            let code = fault.unwrap_or_default().code();
            tracing::warn!(key, %status, code, "the payment provider refuses a request");
            Outcome::Refused { code }
        }
        _ => Outcome::Unknown { answered: false },
    }
}

fn authorized(body: &[u8]) -> Option<Outcome> {
    let intent: Intent = serde_json::from_slice(body).ok()?;
    let reference = reference(&intent.id)?;
    Some(match intent.status.as_str() {
        "requires_capture" | "succeeded" => Outcome::Done { reference: Some(reference) },
        "processing" => Outcome::Unknown { answered: false },
        _ => Outcome::Declined { code: intent.last_payment_error.unwrap_or_default().code() },
    })
}

/// Reads an intent that is to have come to `status`.
fn reached(body: &[u8], status: &str) -> Option<Outcome> {
    let intent: Intent = serde_json::from_slice(body).ok()?;
    Some(match intent.status.as_str() {
        now if now == status => Outcome::Done { reference: None },
        "processing" => Outcome::Unknown { answered: false },
        _ => Outcome::Refused { code: "unexpected_state".to_owned() },
    })
}

fn refunded(body: &[u8]) -> Option<Outcome> {
    let refund: Refund = serde_json::from_slice(body).ok()?;
    Some(match refund.status.as_str() {
        "succeeded" | "pending" => Outcome::Done { reference: None },
        "failed" | "canceled" => Outcome::Refused { code: "refund_failed".to_owned() },
        _ => Outcome::Unknown { answered: false },
    })
}

/// A name that can stand in a path.
fn reference(id: &str) -> Option<String> {
    let valid = (1..=REFERENCE_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    valid.then(|| id.to_owned())
}

fn found(intent: &Intent) -> Result<Found, NotFoundOut> {
    let reference =
        reference(&intent.id).ok_or_else(|| NotFoundOut("a payment without a name".to_owned()))?;
    let is_refunded = matches!(intent.latest_charge, Some(LatestCharge::Whole { refunded: true }));
    let has_failed = intent.last_payment_error.is_some();
    Ok(match intent.status.as_str() {
        "requires_capture" => Found::Authorized { reference },
        "succeeded" if is_refunded => Found::Refunded { reference },
        "succeeded" => Found::Captured { reference },
        "canceled" => Found::Voided { reference },
        "processing" => Found::Processing,
        "requires_payment_method" if has_failed => Found::Declined,
        // It was made a moment ago, and the request that confirms it may still be under way; or a word that we do not know.
        _ => Found::Unconfirmed { reference },
    })
}

fn order_of(metadata: Option<&Metadata>) -> Option<OrderId> {
    metadata?.souk_order.as_ref()?.parse().ok()
}

/// One line of the books. A payment that says which of the account's shops it is of, and names another, is none of ours.
fn listed(intent: &Intent, site: &SiteId) -> Result<Listed, NotFoundOut> {
    let metadata = intent.metadata.as_ref();
    let names_other = |m: &Metadata| m.souk_site.as_deref().is_some_and(|name| name != site.as_str());
    // A part of it may have been taken, at the provider's own desk.
    let taken = intent.amount_received.filter(|_| intent.status == "succeeded");
    Ok(Listed {
        reference: intent.id.clone(),
        order: order_of(metadata.filter(|m| !names_other(m))),
        found: found(intent)?,
        amount: units::from_stripe(&intent.currency, taken.unwrap_or(intent.amount)),
    })
}

/// An error with its causes: hyper's own words are "error sending request".
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// A call about a payment whose name is not known cannot be made, and so was not.
fn named<'a>(charge: &'a Charge, key: &str) -> Option<&'a str> {
    if charge.reference.is_none() {
        tracing::error!(key, "a payment without a name cannot be changed");
    }
    charge.reference.as_deref()
}

const UNNAMED: Outcome = Outcome::NotNow;

/// The amount as it is asked for; none: it cannot be, and nothing was asked.
fn amount(charge: &Charge, key: &str) -> Option<String> {
    let amount = units::to_stripe(&charge.currency, charge.amount);
    if amount.is_none() {
        tracing::error!(
            key, currency = charge.currency, amount = %charge.amount,
            "the payment provider takes no such amount in this currency: let the shop's prices end in its smallest payable unit"
        );
    }
    amount.map(|amount| amount.to_string())
}

const NOT_PAYABLE: &str = "amount_not_payable";

impl PaymentProvider for Stripe {
    fn authorize<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let Some(method) = &charge.method else {
                return Outcome::Refused { code: "no_method".to_owned() };
            };
            let Some(amount) = amount(charge, key) else {
                return Outcome::Refused { code: NOT_PAYABLE.to_owned() };
            };
            let order = charge.order.to_string();
            let currency = charge.currency.to_ascii_lowercase();
            let form = [
                ("amount", amount.as_str()),
                ("currency", currency.as_str()),
                ("payment_method", method.reveal()),
                ("capture_method", "manual"),
                ("confirm", "true"),
                // Nobody is there to be sent to the bank's page.
                ("error_on_requires_action", "true"),
                ("payment_method_types[]", "card"),
                (METADATA, order.as_str()),
                ("metadata[souk_site]", charge.site.as_str()),
            ];
            self.ask("/v1/payment_intents", key, &form, authorized).await
        })
    }

    fn capture<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let Some(name) = named(charge, key) else { return UNNAMED };
            let Some(amount) = amount(charge, key) else {
                return Outcome::Refused { code: NOT_PAYABLE.to_owned() };
            };
            let path = format!("/v1/payment_intents/{name}/capture");
            let form = [("amount_to_capture", amount.as_str())];
            self.ask(&path, key, &form, |body| reached(body, "succeeded")).await
        })
    }

    fn void<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let Some(name) = named(charge, key) else { return UNNAMED };
            let path = format!("/v1/payment_intents/{name}/cancel");
            self.ask(&path, key, &[], |body| reached(body, "canceled")).await
        })
    }

    fn refund<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let Some(name) = named(charge, key) else { return UNNAMED };
            let order = charge.order.to_string();
            let form = [("payment_intent", name), (METADATA, order.as_str())];
            self.ask("/v1/refunds", key, &form, refunded).await
        })
    }

    fn look_up<'a>(&'a self, charge: &'a Charge) -> BoxFuture<'a, Result<Found, NotFoundOut>> {
        Box::pin(async move {
            if let Some(name) = &charge.reference {
                let path = format!("/v1/payment_intents/{name}");
                let intent: Option<Intent> = self.read(&path, &[("expand[]", "latest_charge")]).await?;
                // Payments are never deleted: this is another account than the one that it was made in.
                let unknown = || {
                    NotFoundOut(format!(
                        "it does not know the payment {name}: is secret_key_file that of another account, or of its test mode?"
                    ))
                };
                return found(&intent.ok_or_else(unknown)?);
            }
            let query = format!("metadata['souk_order']:'{}'", charge.order);
            let search = [("query", query.as_str()), ("expand[]", "data.latest_charge")];
            let page: Option<Page> = self.read("/v1/payment_intents/search", &search).await?;
            let page = page.ok_or_else(|| NotFoundOut("it knows no search".to_owned()))?;
            let is_mine = |intent: &&Intent| order_of(intent.metadata.as_ref()) == Some(charge.order);
            let mine: Vec<_> = page.data.iter().filter(is_mine).collect();
            if mine.len() > 1 {
                tracing::error!(order = %charge.order, payments = mine.len(), "an order has more than one payment");
            }
            // The one with money in it, should there ever be two.
            let mine = mine.into_iter().map(found).collect::<Result<Vec<_>, _>>()?;
            let weight = |found: &Found| match found {
                Found::Captured { .. } => 3,
                Found::Authorized { .. } => 2,
                Found::Processing | Found::Unconfirmed { .. } => 1,
                _ => 0,
            };
            Ok(mine.into_iter().max_by_key(weight).unwrap_or(Found::Absent))
        })
    }

    fn list<'a>(
        &'a self,
        site: &'a SiteId,
        since_ms: u64,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Listing, NotFoundOut>> {
        Box::pin(async move {
            let since = (since_ms / 1_000).to_string();
            let mut query =
                vec![("limit", PAGE), ("created[gte]", since.as_str()), ("expand[]", "data.latest_charge")];
            query.extend(after.map(|after| ("starting_after", after)));
            let page: Option<Page> = self.read("/v1/payment_intents", &query).await?;
            let page = page.ok_or_else(|| NotFoundOut("it knows no list".to_owned()))?;
            let next = page.data.last().filter(|_| page.has_more).map(|intent| intent.id.clone());
            let payments = page.data.iter().map(|intent| listed(intent, site));
            Ok(Listing { payments: payments.collect::<Result<_, _>>()?, next })
        })
    }

    fn parse_webhook(
        &self,
        signature: Option<&str>,
        body: &[u8],
        now_ms: u64,
    ) -> Result<Message, MessageRefused> {
        self.verifier.check(signature, body, now_ms)?;
        let read: WebhookBody = serde_json::from_slice(body).map_err(|_| MessageRefused::Unreadable)?;
        let id = reference(&read.id).ok_or(MessageRefused::Unreadable)?;
        let object = read.data.object;
        let is_intent = object.object.as_deref() == Some("payment_intent");
        let name = if is_intent { object.id } else { object.payment_intent };
        let order = order_of(object.metadata.as_ref());
        Ok(Message { id, order, reference: name.as_deref().and_then(reference) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Outcome {
        let answer =
            Answer { status: StatusCode::from_u16(status).unwrap(), body: Bytes::from(body.to_owned()) };
        heard(&answer, "key", authorized)
    }

    #[test]
    fn only_what_certainly_failed_counts_as_failed() {
        let done = Outcome::Done { reference: Some("pi_1".to_owned()) };
        let declined = |code: &str| Outcome::Declined { code: code.to_owned() };
        let refused = |code: &str| Outcome::Refused { code: code.to_owned() };
        let unknown = |answered| Outcome::Unknown { answered };
        for (status, body, expected) in [
            (200, r#"{"id":"pi_1","status":"requires_capture"}"#, done),
            (200, r#"{"id":"pi_1","status":"processing"}"#, unknown(false)),
            (200, r#"{"id":"pi_1","status":"requires_action"}"#, declined("declined")),
            (200, r#"{"id":"../x","status":"requires_capture"}"#, unknown(false)),
            (200, "garbage", unknown(false)),
            (302, "", unknown(false)),
            (400, r#"{"error":{"type":"invalid_request_error"}}"#, refused("invalid_request_error")),
            (401, "", Outcome::NotNow),
            (
                402,
                r#"{"error":{"code":"card_declined","decline_code":"insufficient_funds"}}"#,
                declined("insufficient_funds"),
            ),
            (402, r#"{"error":{"code":"\u001b[31m"}}"#, declined("declined")),
            (409, "", unknown(false)),
            (429, "", Outcome::NotNow),
            (500, "", unknown(true)),
            (503, "", unknown(true)),
        ] {
            assert_eq!(answer(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn what_an_intent_says_of_the_money() {
        let read = |text: &str| found(&serde_json::from_str(text).unwrap()).unwrap().name();
        assert_eq!(
            read(r#"{"id":"pi_1","status":"succeeded","latest_charge":{"refunded":true}}"#),
            "refunded"
        );
        assert_eq!(
            read(r#"{"id":"pi_1","status":"succeeded","latest_charge":{"refunded":false}}"#),
            "captured"
        );
        assert_eq!(read(r#"{"id":"pi_1","status":"succeeded","latest_charge":"ch_1"}"#), "captured");
        assert_eq!(
            read(
                r#"{"id":"pi_1","status":"requires_payment_method","last_payment_error":{"code":"card_declined"}}"#
            ),
            "declined"
        );
        assert_eq!(read(r#"{"id":"pi_1","status":"canceled"}"#), "voided");
        // The bank has not said anything yet.
        for status in ["requires_payment_method", "requires_confirmation", "requires_action", "new_word"] {
            let text = format!(r#"{{"id":"pi_1","status":"{status}","latest_charge":null}}"#);
            assert_eq!(read(&text), "unconfirmed", "{status}");
        }
    }

    #[test]
    fn a_line_of_the_books_is_of_one_shop_and_says_what_was_taken() {
        let site: SiteId = "shop".parse().unwrap();
        let order = OrderId([7; 16]);
        let read = |fields: &str| {
            let text = format!(r#"{{"id":"pi_1","amount":1000,"currency":"gbp",{fields}}}"#);
            let line = listed(&serde_json::from_str(&text).unwrap(), &site).unwrap();
            (line.order, line.amount)
        };
        let of = |shop: &str| format!(r#""status":"succeeded","metadata":{{"souk_order":"{order}"{shop}}}"#);
        assert_eq!(read(&of("")), (Some(order), Some(1_000)), "of a version that did not say which shop");
        assert_eq!(read(&of(r#","souk_site":"shop""#)), (Some(order), Some(1_000)));
        assert_eq!(read(&of(r#","souk_site":"other""#)), (None, Some(1_000)));
        assert_eq!(read(r#""status":"succeeded","metadata":null"#), (None, Some(1_000)));
        let in_part = r#""status":"succeeded","amount_received":400"#;
        assert_eq!(read(in_part), (None, Some(400)), "what was taken in part is not the whole");
        assert_eq!(read(r#""status":"requires_capture","amount_received":0"#), (None, Some(1_000)));
    }

    #[test]
    fn a_message_about_something_without_metadata_is_read() {
        let stripe =
            Stripe::new(Http::new().unwrap(), "http://127.0.0.1:1", &Secret::new("sk"), Secret::new("whsec"));
        let body =
            r#"{"id":"evt_1","data":{"object":{"id":"pi_1","object":"payment_intent","metadata":null}}}"#;
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"whsec");
        let tag = hex::encode(aws_lc_rs::hmac::sign(&key, format!("5.{body}").as_bytes()));
        let message = stripe.unwrap().parse_webhook(Some(&format!("t=5,v1={tag}")), body.as_bytes(), 5_000);
        assert_eq!(message.unwrap().reference.as_deref(), Some("pi_1"));
    }
}

//! One shopper, from the first request to the order.
//!
//! A shopper does what a good client does: keeps cookies, comes back when told to, repeats only what may be repeated,
//! and when the outcome of an addition is not known reads the cart before trying again. Writes into the books what
//! was acknowledged. Knows nothing of the other shoppers.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::NodeHandle;
use super::books::{Books, CartBook, Kind, OrderBook};
use super::client::{Answer, Ask, Client, NoAnswer};
use super::invoices::Invoice;
use super::oracle::{Basket, Oracle, differences};
use super::pace::Pace;
use super::plan::{Step, mix, plan};

/// A shopper is stubborn: a cut of ten seconds, a region that catches up and a node that is killed twice fit well.
const OPERATION_MAX: Duration = Duration::from_secs(120);
/// How long a traveller tries to be served at the new PoP before going back.
const ARRIVAL_MAX: Duration = Duration::from_secs(5);
/// First pause after a refusal or a dead connection, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Every so-many-th shopper sends the order twice, with one key; and reads it back at another PoP.
const ORDERS_TWICE: usize = 20;
const READS_ORDER: usize = 10;

/// What all shoppers share.
#[derive(Debug)]
pub(super) struct Town {
    pub(super) client: Client,
    pub(super) nodes: Vec<NodeHandle>,
    pub(super) host: String,
    pub(super) oracle: Oracle,
    pub(super) books: Books,
    pub(super) pace: Pace,
    pub(super) seed: u64,
}

/// How an operation ended.
enum Verdict {
    Done(Answer),
    /// A removal that was repeated after an attempt of unknown outcome, and that finds nothing to remove any more.
    DoneBefore,
    Refused(Answer),
    /// It may have been done. Only for what must not simply be repeated.
    Unknown,
    GaveUp,
}

/// What an attempt of unknown outcome means for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Done twice it would count twice: the shopper has to look first.
    Never,
    /// Done twice it is as if done once.
    Freely,
    /// The same; but once it was done there is no such line any more, and the shop says so.
    Removal,
}

pub(super) struct Shopper {
    town: Arc<Town>,
    index: usize,
    at: usize,
    cookies: Vec<(String, String)>,
    token: Option<String>,
    basket: Basket,
    book: CartBook,
    /// A place among the shoppers who act at once; given back while waiting for the region.
    place: Option<OwnedSemaphorePermit>,
    /// [`OPERATION_MAX`].
    patience: Duration,
}

impl Shopper {
    pub(super) fn new(
        town: Arc<Town>,
        index: usize,
        token: Option<String>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            town,
            index,
            at: 0,
            cookies: Vec::new(),
            token,
            basket: Basket::default(),
            book: CartBook::default(),
            place: Some(place),
            patience: OPERATION_MAX,
        }
    }

    /// The whole visit. Returns what the shopper knows of the cart, none if there never was one.
    pub(super) async fn shop(mut self, invoice: Invoice) -> Option<CartBook> {
        let plan = plan(&invoice, self.index, self.town.seed);
        self.at = plan.begins_at % self.town.nodes.len();
        self.book.invoice.clone_from(&invoice.number);
        self.basket.country = invoice.country.as_ref().map(ToString::to_string);
        if self.token.is_some() {
            self.basket.segments.push("trade".into());
        }
        self.create().await?;
        let mut total = None;
        for step in plan.steps {
            match step {
                Step::Add(sku, quantity) => self.add(sku.as_str(), quantity).await,
                Step::Set(sku, quantity) => self.set(sku.as_str(), quantity).await,
                Step::Remove(sku) => self.remove(sku.as_str()).await,
                Step::Coupon(code) => self.coupon(code).await,
                Step::Quote => total = self.quote().await,
                Step::Travel => self.travel().await,
            }
        }
        if let Some(total) = total {
            self.order(total).await;
        }
        self.book.cookies = self.cookie_header();
        self.book.coupons.clone_from(&self.basket.coupons);
        Some(self.book)
    }

    async fn create(&mut self) -> Option<()> {
        let body = match &self.basket.country {
            Some(country) => json!({ "country": country }),
            None => json!({}),
        };
        // A cart whose creation was not answered is nobody's; the next one is as good.
        match self
            .until_known(Kind::Create, Ask::new(Method::POST, "/api/carts").json(body), Repeat::Freely)
            .await
        {
            Verdict::Done(answer) => {
                let Some(cart) = answer.body["cart"].as_str() else {
                    self.unanswered(&format!("a cart was created without a number: {}", answer.summary()));
                    return None;
                };
                cart.clone_into(&mut self.book.cart);
                Some(())
            }
            _ => None,
        }
    }

    async fn add(&mut self, sku: &str, quantity: u32) {
        let began = Instant::now();
        let before = self.basket.lines.get(sku).copied().unwrap_or(0);
        let after = before + quantity;
        loop {
            if began.elapsed() >= self.patience {
                self.unanswered(&format!(
                    "the addition of {sku} ended unknown every time, and was never done"
                ));
                break;
            }
            let ask =
                Ask::new(Method::POST, self.path("/lines")).json(json!({ "sku": sku, "quantity": quantity }));
            match self.until_known(Kind::Add, ask, Repeat::Never).await {
                Verdict::Done(_) => return self.holds(sku, after, 1),
                Verdict::Refused(_) => return,
                Verdict::GaveUp | Verdict::DoneBefore => break,
                Verdict::Unknown => match self.look(sku).await {
                    Some(quantity) if quantity == after => {
                        self.town.books.tally().unknown_done += 1;
                        return self.holds(sku, after, 0);
                    }
                    Some(quantity) if quantity == before => {}
                    Some(quantity) => {
                        let text = format!(
                            "invoice {}, cart {}, {sku}: {before} or {after} expected after an addition of unknown outcome, found {quantity}",
                            self.book.invoice, self.book.cart
                        );
                        self.town.books.tally().strange_lines.add(text);
                        return self.holds(sku, quantity, 0);
                    }
                    None => break,
                },
            }
        }
        self.book.lines.entry(sku.to_owned()).or_default().uncertain = true;
    }

    async fn set(&mut self, sku: &str, quantity: u32) {
        let ask = Ask::new(Method::PATCH, self.line_path(sku)).json(json!({ "quantity": quantity }));
        match self.until_known(Kind::Change, ask, Repeat::Freely).await {
            Verdict::Done(_) => self.holds(sku, quantity, 1),
            Verdict::Refused(_) => {}
            Verdict::DoneBefore | Verdict::Unknown | Verdict::GaveUp => {
                self.book.lines.entry(sku.to_owned()).or_default().uncertain = true;
            }
        }
    }

    async fn remove(&mut self, sku: &str) {
        let ask = Ask::new(Method::DELETE, self.line_path(sku));
        match self.until_known(Kind::Change, ask, Repeat::Removal).await {
            Verdict::Done(_) => self.holds(sku, 0, 1),
            Verdict::DoneBefore => {
                self.town.books.tally().unknown_done += 1;
                self.holds(sku, 0, 0);
            }
            Verdict::Refused(_) => {}
            Verdict::Unknown | Verdict::GaveUp => {
                self.book.lines.entry(sku.to_owned()).or_default().uncertain = true;
            }
        }
    }

    async fn coupon(&mut self, code: &str) {
        let ask = Ask::new(Method::PUT, self.path(&format!("/coupons/{code}")));
        if let Verdict::Done(_) = self.until_known(Kind::Change, ask, Repeat::Freely).await {
            self.basket.coupons.push(code.to_owned());
            self.basket.coupons.sort();
            self.town.books.tally().acknowledged += 1;
        }
    }

    /// Asks for a quote and checks it against the oracle. Returns the total that the node said.
    async fn quote(&mut self) -> Option<i64> {
        let Verdict::Done(answer) =
            self.until_known(Kind::Quote, Ask::get(self.path("/quote")), Repeat::Freely).await
        else {
            return None;
        };
        self.town.books.tally().quotes += 1;
        self.compare("quote", &answer.body);
        answer.body["total"].as_i64()
    }

    fn compare(&self, what: &str, quote: &Value) {
        let expected = self.town.oracle.quote(&self.basket, now_ms());
        let found = differences(&expected, quote);
        if !found.is_empty() {
            let text = format!(
                "invoice {}, cart {}, {what} at {}: {}",
                self.book.invoice,
                self.book.cart,
                self.node().name,
                found.join("; ")
            );
            self.town.books.tally().differing_quotes.add(text);
        }
    }

    /// Goes to the next PoP with nothing but the cookies, and stays if the cart is found there.
    async fn travel(&mut self) {
        if self.town.nodes.len() < 2 {
            return;
        }
        let home = self.at;
        self.at = (self.at + 1) % self.town.nodes.len();
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        while began.elapsed() < ARRIVAL_MAX {
            match self.send(Ask::get(self.path(""))).await {
                Ok(answer) if answer.status.is_success() => {
                    let wanted = self.own_lines();
                    let found = own_lines(&answer.body);
                    let mut tally = self.town.books.tally();
                    tally.moves += 1;
                    if found != wanted {
                        tally.stale_reads.add(format!(
                            "invoice {}, cart {} at {}: {} lines expected, {} found",
                            self.book.invoice,
                            self.book.cart,
                            self.town.nodes[self.at].name,
                            wanted.len(),
                            found.len()
                        ));
                    }
                    return;
                }
                // The node has never heard of the cart and cannot ask, or nobody is there.
                Ok(answer) if answer.status.is_client_error() => {
                    let text =
                        format!("invoice {}: read after travelling: {}", self.book.invoice, answer.summary());
                    self.town.books.tally().stale_reads.add(text);
                    break;
                }
                Ok(_) | Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        self.at = home;
        self.town.books.tally().moves_put_off += 1;
    }

    async fn order(&mut self, total: i64) {
        let key = format!("replay-{:x}-{}", mix(self.town.seed, self.index as u64, 7), self.book.cart);
        let Some(order) = self.checkout(total, &key).await else { return };
        self.compare("order", &order["quote"]);
        let id = order["id"].as_str().unwrap_or_default().to_owned();
        let charged = order["quote"]["total"].as_i64().unwrap_or(i64::MIN);
        if charged != total {
            let text = format!("invoice {}: ordered at {total}, charged {charged}", self.book.invoice);
            self.town.books.tally().differing_quotes.add(text);
        }
        self.town.books.tally().acknowledged += 1;
        self.book.order = Some(OrderBook { id: id.clone(), total });
        if self.index % ORDERS_TWICE == ORDERS_TWICE - 1 {
            let again = self.checkout(total, &key).await;
            let second = again.as_ref().and_then(|o| o["id"].as_str()).unwrap_or("no order");
            if second != id {
                let text = format!("invoice {}: one key, two answers: {id} and {second}", self.book.invoice);
                self.town.books.tally().strange_lines.add(text);
            }
        }
        if self.index % READS_ORDER == READS_ORDER - 1 {
            self.at = (self.at + 1) % self.town.nodes.len();
            let verdict =
                self.until_known(Kind::Read, Ask::get(format!("/api/orders/{id}")), Repeat::Freely).await;
            let found = matches!(&verdict, Verdict::Done(answer) if answer.body["id"] == id.as_str());
            if !found {
                let text =
                    format!("invoice {}: order {id} is not known at {}", self.book.invoice, self.node().name);
                self.town.books.tally().stale_reads.add(text);
            }
        }
    }

    /// One key for all attempts: the region places one order however often it is asked.
    async fn checkout(&mut self, total: i64, key: &str) -> Option<Value> {
        let body = json!({ "cart": self.book.cart, "total": total });
        let key = key.to_owned();
        let ask = Ask::new(Method::POST, "/api/checkouts").json(body);
        match self
            .until_known(Kind::Checkout, Ask { idempotency_key: Some(&key), ..ask }, Repeat::Freely)
            .await
        {
            Verdict::Done(answer) => Some(answer.body),
            Verdict::Refused(answer) if answer.code() == "price_changed" => {
                self.compare("checkout", &answer.body["quote"]);
                let said = &answer.body["quote"]["total"];
                let text = format!("invoice {}: quoted {total}, the region says {said}", self.book.invoice);
                self.town.books.tally().differing_quotes.add(text);
                None
            }
            _ => None,
        }
    }

    /// What the line holds at the node where an addition of unknown outcome was sent. Only that node can know: the
    /// operation may lie in its outbox, where no other node and no region sees it yet.
    async fn look(&mut self, sku: &str) -> Option<u32> {
        match self.until_known(Kind::Read, Ask::get(self.path("")), Repeat::Freely).await {
            Verdict::Done(answer) => Some(quantity(&answer.body, sku)),
            Verdict::Refused(answer) => {
                let text =
                    format!("invoice {}, cart {}: {}", self.book.invoice, self.book.cart, answer.summary());
                self.town.books.tally().strange_lines.add(text);
                None
            }
            Verdict::DoneBefore | Verdict::Unknown | Verdict::GaveUp => None,
        }
    }

    /// Sends until the outcome is known, or for what may not be repeated, until it is unknown.
    async fn until_known(&mut self, kind: Kind, ask: Ask<'_>, repeat: Repeat) -> Verdict {
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        let mut last = String::new();
        // An attempt of this very call may have done it.
        let mut maybe_done = false;
        while began.elapsed() < self.patience {
            self.town.pace.wait().await;
            let was_cut = self.town.books.is_cut();
            let sent = Instant::now();
            let why;
            let unknown = match self.send(ask.clone()).await {
                Ok(answer) if answer.status.is_success() => {
                    self.town.books.answered(kind, sent.elapsed(), was_cut);
                    return Verdict::Done(answer);
                }
                Ok(answer) if answer.status.is_client_error() => {
                    // Only then: to a first attempt it says that an acknowledged line is lost.
                    if maybe_done && repeat == Repeat::Removal && answer.code() == "unknown_line" {
                        return Verdict::DoneBefore;
                    }
                    let text = format!("invoice {}: {:?} {}", self.book.invoice, kind, answer.summary());
                    self.town.books.tally().refused.add(text);
                    return Verdict::Refused(answer);
                }
                Ok(answer) => {
                    why = format!("{} {}", answer.status.as_u16(), answer.code());
                    if was_cut && self.town.books.is_cut() {
                        self.town.books.refused_during_cut(kind, &why);
                    }
                    last = answer.summary();
                    pause = answer.retry_after.unwrap_or(pause).clamp(PAUSE_MIN, PAUSE_MAX);
                    // Every other 503 is a refusal before anything was done.
                    answer.status != StatusCode::SERVICE_UNAVAILABLE || answer.code() == "outcome_unknown"
                }
                Err(error) => {
                    last = error.to_string();
                    let unknown = matches!(error, NoAnswer::Unknown(_));
                    why = if unknown { "connection lost" } else { "nobody listens" }.to_owned();
                    unknown
                }
            };
            if unknown {
                self.town.books.tally().unknown += 1;
                maybe_done = true;
                if repeat == Repeat::Never {
                    return Verdict::Unknown;
                }
            }
            if kind == Kind::Checkout && self.place.take().is_some() {
                self.town.books.tally().checkouts_put_off += 1;
            }
            *self.town.books.tally().retries.entry(why).or_default() += 1;
            sleep(self.jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        self.unanswered(&format!("{kind:?}: {last}"));
        Verdict::GaveUp
    }

    fn unanswered(&self, what: &str) {
        let text = format!("invoice {} at {}: {what}", self.book.invoice, self.node().name);
        self.town.books.tally().unanswered.add(text);
    }

    async fn send(&mut self, ask: Ask<'_>) -> Result<Answer, NoAnswer> {
        let town = Arc::clone(&self.town);
        let token = self.token.clone();
        let ask =
            Ask { cookies: Some(self.cookie_header()), bearer: token.as_deref(), ..ask.host(&town.host) };
        let answer = town.client.send(town.nodes[self.at].http, ask).await?;
        for (name, value) in &answer.cookies {
            self.cookies.retain(|(n, _)| n != name);
            self.cookies.push((name.clone(), value.clone()));
        }
        Ok(answer)
    }

    fn holds(&mut self, sku: &str, quantity: u32, acknowledged: u64) {
        if quantity == 0 {
            self.basket.lines.remove(sku);
        } else {
            self.basket.lines.insert(sku.to_owned(), quantity);
        }
        let line = self.book.lines.entry(sku.to_owned()).or_default();
        line.quantity = quantity;
        line.acknowledged += acknowledged;
        self.town.books.tally().acknowledged += acknowledged;
    }

    fn own_lines(&self) -> Vec<(String, u32)> {
        self.basket.lines.iter().map(|(sku, quantity)| (sku.clone(), *quantity)).collect()
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/carts/{}{rest}", self.book.cart)
    }

    fn line_path(&self, sku: &str) -> String {
        self.path(&format!("/lines/{}", utf8_percent_encode(sku, NON_ALPHANUMERIC)))
    }

    fn node(&self) -> &NodeHandle {
        &self.town.nodes[self.at]
    }

    fn cookie_header(&self) -> String {
        let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    /// Up to half as long again, so that shoppers who were refused together do not come back together.
    fn jittered(&self, pause: Duration) -> Duration {
        let share = mix(self.town.seed, self.index as u64, u64::from(pause.subsec_nanos())) % 512;
        pause + pause.mul_f64(f64::from(u32::try_from(share).unwrap_or(0)) / 1_024.0)
    }
}

/// Quantity of the shopper's own line of `sku` in a cart as the API shows it.
fn quantity(cart: &Value, sku: &str) -> u32 {
    own_lines(cart).into_iter().find(|(s, _)| s == sku).map_or(0, |(_, quantity)| quantity)
}

/// The shopper's own lines, sorted: not those that a plugin added.
pub(super) fn own_lines(cart: &Value) -> Vec<(String, u32)> {
    let lines = cart["lines"].as_array().map_or(&[][..], Vec::as_slice);
    let mut own: Vec<(String, u32)> = lines
        .iter()
        .filter_map(|line| {
            let id = line["line"].as_str()?;
            let quantity = u32::try_from(line["quantity"].as_u64()?).ok()?;
            (!id.contains('~')).then(|| (id.to_owned(), quantity))
        })
        .collect();
    own.sort();
    own
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
pub(super) mod tests;

//! The writers: shoppers who fill carts over HTTP and order them, and note every acknowledgement, until they are told to go.
//!
//! A shopper repeats only what may be repeated: a checkout under its key. An addition that got no answer is noted as doubtful
//! and the next one is made. Every fourth shopper shares his cart with somebody at another node who knows nothing of him, so
//! that both change it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use http::Method;
use hyper_util::client::legacy;
use parking_lot::Mutex;
use serde_json::{Value, json};
use souk_tests::http::{Answer, Client};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::books::{Bought, CartBook, Open, Tally};
use crate::seed::mix;
use crate::shop::{HOST, PRODUCTS, price, sku};

/// Longer than a node's own deadline for a request, which is half a minute.
const ANSWER_MAX: Duration = Duration::from_secs(40);
/// A checkout is tried again so long. Most faults of a row are shorter.
const CHECKOUT_MAX: Duration = Duration::from_secs(150);
const PAUSE: Duration = Duration::from_millis(40);
/// Of those who come back, so many ask at once.
const AT_ONCE: usize = 16;
/// Additions to one cart where a row does not say another number.
const ADDITIONS_MAX: u64 = 20;

/// What the shoppers of a row do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Habits {
    pub(crate) shoppers: usize,
    /// Additions to one cart; 0 says twenty.
    pub(crate) additions_max: u64,
    /// Of a hundred carts so many are ordered.
    pub(crate) ordered_percent: u64,
    /// They pay with these, in turn; without any, by invoice.
    pub(crate) cards: &'static [&'static str],
    /// They want one of this and nothing else, once each, and so many come in all.
    pub(crate) scarce: Option<(&'static str, usize)>,
    /// Nobody shares a cart.
    pub(crate) alone: bool,
    /// A shopper leaves a checkout that has no answer after so long, until [`Crowd::come_back`]; without it, as long as most
    /// faults take.
    pub(crate) patience: Option<Duration>,
    pub(crate) seed: u64,
}

/// All shoppers of a row.
pub(crate) struct Crowd {
    town: Arc<Town>,
    shoppers: JoinSet<Vec<CartBook>>,
    /// Of those who have gone.
    books: Vec<CartBook>,
}

struct Town {
    habits: Habits,
    /// The nodes, each over connections of its own.
    nodes: Vec<Client>,
    /// Acknowledged changes, by node: whether a fault met a writer.
    acknowledged: Vec<AtomicU64>,
    tally: Mutex<Tally>,
    closing: AtomicBool,
    /// Who has come for the scarce product.
    came: AtomicUsize,
    /// Shoppers who have not gone yet.
    inside: AtomicUsize,
}

impl Crowd {
    pub(crate) fn gather(nodes: &[std::net::SocketAddr], habits: Habits) -> Self {
        let clients = nodes.iter().map(|addr| Client::new(*addr).with("host", HOST));
        let town = Arc::new(Town {
            nodes: clients.collect(),
            acknowledged: nodes.iter().map(|_| AtomicU64::new(0)).collect(),
            tally: Mutex::default(),
            closing: AtomicBool::new(false),
            came: AtomicUsize::new(0),
            inside: AtomicUsize::new(habits.shoppers),
            habits,
        });
        let mut shoppers = JoinSet::new();
        for index in 0..town.habits.shoppers {
            let town = Arc::clone(&town);
            shoppers.spawn(async move {
                let books = shop(&town, index).await;
                town.inside.fetch_sub(1, Ordering::Relaxed);
                books
            });
        }
        Self { town, shoppers, books: Vec::new() }
    }

    /// Changes that this node has acknowledged so far.
    pub(crate) fn acknowledged_by(&self, node: usize) -> u64 {
        self.town.acknowledged[node].load(Ordering::Relaxed)
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        (0..self.town.nodes.len()).map(|node| self.acknowledged_by(node)).sum()
    }

    /// What has been refused so far under a code.
    pub(crate) fn refused(&self, name: &str) -> u64 {
        self.town.tally.lock().refusals.get(name).copied().unwrap_or(0)
    }

    /// Waits until a node has acknowledged so many more changes than `before`. False: nothing came in that time.
    pub(crate) async fn writes_at(&self, node: usize, before: u64, more: u64, within: Duration) -> bool {
        let began = Instant::now();
        while self.acknowledged_by(node) < before + more {
            if began.elapsed() > within {
                return false;
            }
            sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// Checkouts that were begun.
    pub(crate) fn checkouts(&self) -> u64 {
        self.town.tally.lock().checkouts
    }

    /// Checkouts of which their shopper knows how they ended.
    pub(crate) fn settled(&self) -> u64 {
        self.town.tally.lock().settled()
    }

    /// Orders that were acknowledged so far.
    pub(crate) fn orders(&self) -> u64 {
        self.town.tally.lock().orders
    }

    /// Whether everybody who came for the scarce product has gone.
    pub(crate) fn has_left(&self) -> bool {
        self.town.inside.load(Ordering::Relaxed) == 0
    }

    /// Tells them to go. Who has asked for something waits for the answer.
    pub(crate) fn send_home(&self) {
        self.town.closing.store(true, Ordering::Relaxed);
    }

    /// The books of those who have gone.
    pub(crate) fn books(&self) -> &[CartBook] {
        &self.books
    }

    async fn gone(&mut self) -> Result<()> {
        while let Some(left) = self.shoppers.join_next().await {
            self.books.extend(left.context("a shopper")?);
        }
        Ok(())
    }

    /// Whoever has left a checkout without an answer asks again what came of it, as patiently as before. Answers how many did.
    pub(crate) async fn come_back(&mut self) -> Result<usize> {
        self.send_home();
        self.gone().await?;
        let (open, done): (Vec<_>, Vec<_>) = self.books.drain(..).partition(|book| book.open.is_some());
        self.books = done;
        let asked = open.len();
        let town = &self.town;
        let patience = town.habits.patience.unwrap_or(CHECKOUT_MAX);
        let asks = open.into_iter().map(|book| async move {
            let mut shopper = Shopper::back(town, book);
            shopper.ask_for_order(patience, false).await;
            shopper.book
        });
        let books: Vec<_> = stream::iter(asks).buffer_unordered(AT_ONCE).collect().await;
        self.books.extend(books);
        Ok(asked)
    }

    /// Sends them home, and waits until each has the answer to what he has asked.
    pub(crate) async fn close(mut self) -> Result<(Vec<CartBook>, Tally)> {
        self.send_home();
        self.gone().await?;
        let tally = self.town.tally.lock().clone();
        Ok((self.books, tally))
    }
}

async fn shop(town: &Town, index: usize) -> Vec<CartBook> {
    let mut books = Vec::new();
    for visit in 0_u64.. {
        if town.closing.load(Ordering::Relaxed) {
            break;
        }
        if let Some((_, wanted)) = town.habits.scarce
            && town.came.fetch_add(1, Ordering::Relaxed) >= wanted
        {
            break;
        }
        let seed = mix(town.habits.seed, index as u64, visit);
        let at = (index + usize::try_from(visit % 7).unwrap_or(0)) % town.nodes.len();
        let shared = !town.habits.alone && index % 4 == 3 && town.nodes.len() > 1;
        let mut shopper = Shopper {
            town,
            seed,
            at,
            jars: vec![String::new(); town.nodes.len()],
            book: CartBook::default(),
        };
        shopper.visit(shared).await;
        if !shopper.book.cart.is_empty() {
            books.push(shopper.book);
        }
    }
    books
}

struct Shopper<'a> {
    town: &'a Town,
    seed: u64,
    at: usize,
    /// Cookies, by node: the browsers at two nodes know nothing of each other.
    jars: Vec<String>,
    book: CartBook,
}

/// What a shopper knows after a request.
enum Said {
    Done(Answer),
    /// By name: it was not done.
    Refused(Answer),
    /// Nobody was there to take it: it was not done.
    NotSent,
    /// It may have been done.
    Doubtful,
}

impl<'a> Shopper<'a> {
    async fn visit(&mut self, shared: bool) {
        while !self.create().await {
            if self.town.closing.load(Ordering::Relaxed) {
                return;
            }
            sleep(PAUSE).await;
        }
        if let Some((scarce, _)) = self.town.habits.scarce {
            // Stubborn until it is in the cart: the region decides who gets one.
            let began = Instant::now();
            while !self.add(scarce, 1).await {
                if began.elapsed() > CHECKOUT_MAX {
                    return self
                        .town
                        .tally
                        .lock()
                        .strange
                        .add(format!("no {scarce} comes into {}", self.book.cart));
                }
                sleep(PAUSE).await;
            }
            return self.check_out().await;
        }
        let most =
            if self.town.habits.additions_max > 0 { self.town.habits.additions_max } else { ADDITIONS_MAX };
        let additions = 1 + self.seed % most;
        for number in 0..additions {
            if self.town.closing.load(Ordering::Relaxed) {
                return;
            }
            let chance = mix(self.seed, number, 1);
            if shared && chance.is_multiple_of(2) {
                self.at = (self.at + 1) % self.town.nodes.len();
            }
            let product = sku(usize::try_from(chance >> 8).unwrap_or(0) % PRODUCTS);
            let quantity = 1 + u32::try_from((chance >> 40) % 3).unwrap_or(0);
            if !self.add(&product, quantity).await {
                sleep(PAUSE).await;
            }
        }
        if !shared && mix(self.seed, 0, 2) % 100 < self.town.habits.ordered_percent {
            self.check_out().await;
        }
    }

    async fn create(&mut self) -> bool {
        match self.send("/api/carts", &json!({ "country": "GB" }), None).await {
            Said::Done(answer) => {
                self.acknowledge();
                answer.json()["cart"].as_str().unwrap_or_default().clone_into(&mut self.book.cart);
                !self.book.cart.is_empty()
            }
            Said::Refused(_) | Said::NotSent => false,
            Said::Doubtful => {
                self.town.tally.lock().nameless += 1;
                false
            }
        }
    }

    /// Whether it was acknowledged.
    async fn add(&mut self, sku: &str, quantity: u32) -> bool {
        let path = format!("/api/carts/{}/lines", self.book.cart);
        let said = self.send(&path, &json!({ "sku": sku, "quantity": quantity }), None).await;
        let at = self.at;
        match said {
            Said::Done(answer) => {
                self.acknowledge();
                let line = self.book.lines.entry(sku.to_owned()).or_default();
                *line.by_node.entry(at).or_default() += quantity;
                line.acknowledgements += 1;
                self.look(&answer.json());
                true
            }
            Said::Refused(_) | Said::NotSent => false,
            Said::Doubtful => {
                self.book.lines.entry(sku.to_owned()).or_default().doubtful += quantity;
                false
            }
        }
    }

    fn acknowledge(&self) {
        self.town.acknowledged[self.at].fetch_add(1, Ordering::Relaxed);
        self.town.tally.lock().acknowledged += 1;
    }

    /// A node never shows a shopper less than it has acknowledged to him, nor more than anybody asked for.
    fn look(&self, shown: &Value) {
        let quantity = |sku: &str| {
            let lines = shown["lines"].as_array().into_iter().flatten();
            lines.filter(|line| line["sku"] == sku).filter_map(|line| line["quantity"].as_u64()).sum::<u64>()
        };
        for (sku, line) in &self.book.lines {
            let least = u64::from(line.by_node.get(&self.at).copied().unwrap_or(0));
            let there = quantity(sku);
            if there < least || there > u64::from(line.most()) {
                let text = format!(
                    "node {} shows {there} of {sku} in cart {}, it must be from {least} to {}",
                    self.at + 1,
                    self.book.cart,
                    line.most()
                );
                self.town.tally.lock().strange.add(text);
            }
        }
    }

    /// The shopper of a checkout that was left.
    fn back(town: &'a Town, mut book: CartBook) -> Self {
        let mut jars = vec![String::new(); town.nodes.len()];
        let (mut seed, mut at) = (0, 0);
        if let Some(open) = &mut book.open {
            (seed, at) = (open.seed, open.at);
            jars[at] = std::mem::take(&mut open.jar);
        }
        Self { town, seed, at, jars, book }
    }

    async fn check_out(&mut self) {
        self.begin(0);
        self.ask_for_order(self.town.habits.patience.unwrap_or(CHECKOUT_MAX), true).await;
    }

    /// Under a key of its own.
    fn begin(&mut self, asked: u64) {
        self.town.tally.lock().checkouts += 1;
        self.book.bought = Bought::Unknown;
        self.book.open = Some(Open { seed: self.seed, at: self.at, jar: String::new(), asked });
    }

    /// The same question under the same key until there is an answer; and after the bank's no, every second shopper who has time
    /// tries another card under a new key.
    async fn ask_for_order(&mut self, patience: Duration, may_try_again: bool) {
        let began = Instant::now();
        while began.elapsed() < patience {
            let Some(asked) = self.book.open.as_ref().map(|open| open.asked) else { return };
            let key = format!("chaos-{:x}-{}-{asked}", self.seed, self.book.cart);
            let mut wish = json!({ "cart": self.book.cart });
            if !self.town.habits.cards.is_empty() {
                let card = (self.seed + asked) % self.town.habits.cards.len() as u64;
                wish["payment"] = self.town.habits.cards[usize::try_from(card).unwrap_or(0)].into();
            }
            match self.send("/api/checkouts", &wish, Some(&key)).await {
                Said::Done(answer) if answer.status == 201 => return self.ordered(&answer.json()),
                // Held for the payment: the same question says what came of it.
                Said::Done(_) | Said::Doubtful | Said::NotSent => {}
                Said::Refused(answer) => match self.ended(&answer) {
                    Some(true) if may_try_again => self.begin(asked + 1),
                    Some(_) => {
                        self.book.open = None;
                        return;
                    }
                    None if answer.status.is_server_error() => {}
                    None => {
                        let said = format!("{} {}", answer.status, answer.text());
                        let text = format!("checkout of {}: {said}", self.book.cart);
                        return self.town.tally.lock().strange.add(text);
                    }
                },
            }
            sleep(PAUSE * 4).await;
        }
        if let Some(open) = &mut self.book.open {
            open.jar.clone_from(&self.jars[self.at]);
        }
    }

    /// Notes that this key will bring no order, and answers whether another one may. None: the answer is no end.
    fn ended(&mut self, answer: &Answer) -> Option<bool> {
        let asked = self.book.open.as_ref().map_or(0, |open| open.asked);
        let mut tally = self.town.tally.lock();
        let (bought, again) = match (answer.code().as_str(), answer.json()["reason"].as_str()) {
            ("payment_declined", _) => {
                tally.declined += 1;
                (Bought::Declined, asked == 0 && !self.seed.is_multiple_of(2))
            }
            (_, Some("payment_unavailable")) => {
                tally.unavailable += 1;
                (Bought::Declined, asked <= 2)
            }
            ("out_of_stock", _) => {
                tally.sold_out += 1;
                (Bought::SoldOut, false)
            }
            // Nothing of the cart came to be: there is nothing to order.
            ("cart_empty", _) if self.book.lines.values().all(|line| line.acknowledged() == 0) => {
                tally.emptied += 1;
                (Bought::No, false)
            }
            _ => return None,
        };
        self.book.bought = bought;
        Some(again)
    }

    fn ordered(&mut self, order: &Value) {
        self.acknowledge();
        let total = order["quote"]["total"].as_i64().unwrap_or(i64::MIN);
        let id = order["id"].as_str().unwrap_or_default().to_owned();
        let mut sum = 0;
        let mut wrong = Vec::new();
        for line in order["quote"]["lines"].as_array().into_iter().flatten() {
            let (sku, quantity) =
                (line["line"].as_str().unwrap_or_default(), line["quantity"].as_i64().unwrap_or(0));
            sum += price(sku) * quantity;
            let most = self.book.lines.get(sku).map_or(0, |line| line.most());
            if quantity > i64::from(most) {
                wrong.push(format!("{quantity} of {sku}, at most {most} were asked for"));
            }
        }
        for (sku, line) in &self.book.lines {
            let lines = order["quote"]["lines"].as_array().into_iter().flatten();
            let there: i64 =
                lines.filter(|l| l["line"] == sku.as_str()).filter_map(|l| l["quantity"].as_i64()).sum();
            if there < i64::from(line.acknowledged()) {
                wrong.push(format!("{there} of {sku}, {} were acknowledged", line.acknowledged()));
            }
        }
        if sum != total {
            wrong.push(format!("{total} is charged for what costs {sum}"));
        }
        let mut tally = self.town.tally.lock();
        if !wrong.is_empty() {
            tally.strange.add(format!("order {id} of cart {}: {}", self.book.cart, wrong.join("; ")));
        }
        tally.orders += 1;
        self.book.open = None;
        self.book.bought = Bought::Ordered { order: id, total };
    }

    async fn send(&mut self, path: &str, body: &Value, key: Option<&str>) -> Said {
        let mut client = self.town.nodes[self.at].clone();
        if !self.jars[self.at].is_empty() {
            client = client.with("cookie", &self.jars[self.at]);
        }
        if let Some(key) = key {
            client = client.with("idempotency-key", key);
        }
        let answered =
            timeout(ANSWER_MAX, client.send(Method::POST, path, Some(body.to_string().into()))).await;
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.downcast_ref().is_some_and(legacy::Error::is_connect) => {
                *self.town.tally.lock().refusals.entry("no connection".to_owned()).or_default() += 1;
                return Said::NotSent;
            }
            _ => {
                self.town.tally.lock().doubtful += 1;
                return Said::Doubtful;
            }
        };
        self.keep_cookies(&answer);
        if answer.status.is_success() {
            return Said::Done(answer);
        }
        let problem = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or_default().to_owned();
        let reason = problem["reason"].as_str().map(|reason| format!("/{reason}")).unwrap_or_default();
        let mut tally = self.town.tally.lock();
        *tally.refusals.entry(format!("{} {code}{reason}", answer.status.as_u16())).or_default() += 1;
        // Those that say that they do not know, and those that say nothing.
        if matches!(code.as_str(), "" | "outcome_unknown" | "deadline_passed" | "internal") {
            tally.doubtful += 1;
            return Said::Doubtful;
        }
        Said::Refused(answer)
    }

    fn keep_cookies(&mut self, answer: &Answer) {
        let jar = &mut self.jars[self.at];
        for value in answer.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok()) {
            let Some((name, value)) = value.split(';').next().and_then(|pair| pair.split_once('=')) else {
                continue;
            };
            if name == "souk_seen" {
                self.book.note_seen(value);
            }
            let mut others: Vec<_> = jar
                .split("; ")
                .filter(|pair| {
                    !pair.is_empty() && pair.split_once('=').is_none_or(|(other, _)| other != name)
                })
                .map(str::to_owned)
                .collect();
            others.push(format!("{name}={value}"));
            *jar = others.join("; ");
        }
    }
}

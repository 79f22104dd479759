//! After the fault is healed and the last shopper gone: is everything that was acknowledged at the region, once, and the same
//! everywhere? Reads the shoppers' books, and changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use serde_json::Value;
use souk_tests::cluster::Cluster;
use souk_tests::http::{Answer, Client};
use tokio::time::{Instant, sleep};

use crate::books::{Bought, CartBook, Findings, Tally};
use crate::shop::{HOST, SCARCE, SITE, STOCK, price, products};

/// What the nodes hold back is handed over within this; a link that has just healed is dialled first.
const DRAIN_MAX: Duration = Duration::from_secs(120);
const ASK_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const PAGE: usize = 500;
const AT_ONCE: usize = 16;

/// What was looked at, and what was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Acknowledged operations that are not at the region.
    pub(crate) lost: Findings,
    /// More than was asked for.
    pub(crate) surplus: Findings,
    /// Copies at nodes that are not what the region has.
    pub(crate) differing: Findings,
    /// Orders, money and stock that do not add up.
    pub(crate) money: Findings,
    pub(crate) strange: Findings,
    pub(crate) carts: usize,
    pub(crate) copies: usize,
    pub(crate) orders: usize,
    /// Units of the scarce product that were sold.
    pub(crate) scarce_sold: u64,
    pub(crate) drained: Duration,
}

impl Verdict {
    /// What was looked at, in the words of a row.
    pub(crate) fn row(&self, tally: &Tally) -> String {
        let mut row = format!(
            "{} acknowledged ({} orders), {} in doubt, {} refused; at the region {} carts, {} orders, {} copies at nodes; ",
            tally.acknowledged,
            tally.orders,
            tally.doubtful,
            tally.refused(),
            self.carts,
            self.orders,
            self.copies
        );
        let _ = write!(
            row,
            "lost {}, surplus {}, differing {}, money {}, strange {}",
            self.lost.count, self.surplus.count, self.differing.count, self.money.count, self.strange.count
        );
        row
    }

    /// Fails with what was found.
    pub(crate) fn check(&self) -> Result<()> {
        let kinds = [
            ("lost", &self.lost),
            ("surplus", &self.surplus),
            ("differing", &self.differing),
            ("money", &self.money),
            ("strange", &self.strange),
        ];
        let found: Vec<_> = kinds.iter().filter(|(_, findings)| findings.count > 0).collect();
        if found.is_empty() {
            return Ok(());
        }
        let words = found.iter().map(|(kind, f)| format!("{} {kind}:\n  {}", f.count, f.words()));
        bail!("{}", words.collect::<Vec<_>>().join("\n"))
    }
}

/// `scarce`: how many there were of the scarce product.
pub(crate) async fn audit(
    cluster: &Cluster,
    books: &[CartBook],
    tally: &Tally,
    scarce: Option<u64>,
) -> Result<Verdict> {
    let auditor = Auditor { cluster, operator: cluster.operator()? };
    let mut verdict = Verdict { strange: tally.strange.clone(), ..Verdict::default() };
    let began = Instant::now();
    auditor.wait_until_drained().await?;
    verdict.drained = began.elapsed();
    let orders = auditor.orders().await?;
    verdict.orders = orders.len();
    // After the orders: a cart that is sealed by then has its order among them.
    let region = auditor.region_carts().await?;
    verdict.carts = region.len();
    auditor.carts(books, &region, &mut verdict).await?;
    let known: HashSet<&str> = books.iter().map(|book| book.cart.as_str()).collect();
    let unknown = region.keys().filter(|cart| !known.contains(cart.as_str())).count() as u64;
    if unknown > tally.nameless {
        let text =
            format!("{unknown} carts are nobody's, and {} were made without an answer", tally.nameless);
        verdict.surplus.add(text);
    }
    compare_orders(books, &orders, &mut verdict);
    auditor.stock(&orders, scarce, &mut verdict).await?;
    auditor.copies(books, &region, &mut verdict).await?;
    auditor.ledgers(&mut verdict).await?;
    Ok(verdict)
}

struct Auditor<'a> {
    cluster: &'a Cluster,
    operator: Client,
}

/// An order as the region has it.
#[derive(Debug)]
struct Placed {
    id: String,
    cart: String,
    state: String,
    total: i64,
    /// What is in it.
    units: BTreeMap<String, u64>,
}

impl Placed {
    /// Whether its units are gone from the stock.
    fn holds_stock(&self) -> bool {
        !matches!(self.state.as_str(), "cancelled" | "declined")
    }
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_owned()
}

impl Auditor<'_> {
    async fn wait_until_drained(&self) -> Result<()> {
        let began = Instant::now();
        for node in &self.cluster.nodes {
            let admin = Client::new(node.admin()?);
            loop {
                let status = patiently(&admin, "/v1/status").await?.json();
                if status["outbox"]["unacked"] == 0 && status["link"]["connected"] == true {
                    break;
                }
                ensure!(
                    began.elapsed() < DRAIN_MAX,
                    "{} still holds what the region has not acknowledged: outbox {}, link {}\n{}",
                    node.name(),
                    status["outbox"],
                    status["link"],
                    node.last_words()
                );
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    async fn region_carts(&self) -> Result<HashMap<String, String>> {
        let mut carts = HashMap::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/sites/{SITE}/carts?limit={PAGE}{after}");
            let page = rows(&patiently(&self.operator, &path).await?)?;
            let Some(last) = page.last() else { return Ok(carts) };
            after = format!("&after={}", text(last, "cart"));
            carts.extend(page.iter().map(|row| (text(row, "cart"), text(row, "digest"))));
        }
    }

    async fn orders(&self) -> Result<Vec<Placed>> {
        let mut listed = Vec::new();
        let mut after = 0;
        loop {
            let path = format!("/v1/sites/{SITE}/orders?limit={PAGE}&after={after}");
            let page = rows(&patiently(&self.operator, &path).await?)?;
            let Some(last) = page.last() else { break };
            after = last["position"].as_u64().context("an order without a position")?;
            listed.extend(page);
        }
        let reads = listed.iter().map(|row| async move {
            let path = format!("/v1/sites/{SITE}/orders/{}", text(row, "order"));
            let order = patiently(&self.operator, &path).await?.json();
            let lines = order["quote"]["lines"].as_array().into_iter().flatten();
            let units = lines.map(|line| (text(line, "line"), line["quantity"].as_u64().unwrap_or(0)));
            anyhow::Ok(Placed {
                id: text(row, "order"),
                cart: text(row, "cart"),
                state: text(row, "state"),
                total: row["total"].as_i64().context("an order without a total")?,
                units: units.collect(),
            })
        });
        let read: Vec<_> = futures_util::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
        read.into_iter().collect()
    }

    /// The lines of each cart, as the region has them.
    async fn carts(
        &self,
        books: &[CartBook],
        region: &HashMap<String, String>,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let reads = books.iter().filter(|book| region.contains_key(&book.cart)).map(|book| async move {
            let path = format!("/v1/sites/{SITE}/carts/{}", book.cart);
            anyhow::Ok((book, patiently(&self.operator, &path).await?.json()))
        });
        let mut reads = futures_util::stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some(read) = reads.next().await {
            let (book, cart) = read?;
            compare_lines(book, &cart, verdict);
        }
        for book in books.iter().filter(|book| !region.contains_key(&book.cart)) {
            let text = format!("the region has no cart {}", book.cart);
            // Its making was acknowledged too.
            verdict.lost.add_some(1 + book.acknowledgements(), text);
        }
        Ok(())
    }

    /// What is left of each product is what was there, less what was ordered.
    async fn stock(&self, orders: &[Placed], scarce: Option<u64>, verdict: &mut Verdict) -> Result<()> {
        let mut sold: BTreeMap<&str, u64> = BTreeMap::new();
        for order in orders.iter().filter(|order| order.holds_stock()) {
            for (sku, units) in &order.units {
                *sold.entry(sku).or_default() += units;
            }
        }
        verdict.scarce_sold = sold.get(SCARCE).copied().unwrap_or(0);
        for product in products(scarce).as_array().into_iter().flatten() {
            let sku = text(product, "sku");
            let began_with = if sku == SCARCE { scarce.unwrap_or(0) } else { STOCK };
            let path = format!("/v1/sites/{SITE}/products/{sku}");
            let left = patiently(&self.operator, &path).await?.json()["stock"]["available"].as_u64();
            let sold = sold.get(sku.as_str()).copied().unwrap_or(0);
            if sold > began_with || left != Some(began_with - sold) {
                verdict.money.add(format!("{sku}: there were {began_with}, sold {sold}, left {left:?}"));
            }
        }
        Ok(())
    }

    /// Every copy that a node has of a cart. A node is not told what was changed elsewhere: a shopper who has seen it must be
    /// shown it, and then the copy is the region's.
    async fn copies(
        &self,
        books: &[CartBook],
        region: &HashMap<String, String>,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let by_cart: HashMap<_, _> = books.iter().map(|book| (book.cart.as_str(), book)).collect();
        for node in &self.cluster.nodes {
            let (admin, shopper) = (Client::new(node.admin()?), Client::new(node.http()?).with("host", HOST));
            let held = copies(&admin).await?;
            verdict.copies += held.len();
            let differs = |(cart, digest): (&String, &String)| region.get(cart) != Some(digest);
            let old: Vec<_> = held.iter().filter(|&row| differs(row)).map(|(cart, _)| cart.clone()).collect();
            if old.is_empty() {
                continue;
            }
            for book in old.iter().filter_map(|cart| by_cart.get(cart.as_str())) {
                let asks = shopper.with("cookie", &format!("{}; souk_ordered={}", book.cookie(), book.cart));
                patiently(&asks, &format!("/api/carts/{}", book.cart)).await?;
            }
            let held = copies(&admin).await?;
            for (cart, digest) in
                old.iter().filter_map(|cart| held.get_key_value(cart)).filter(|&row| differs(row))
            {
                let known = region.get(cart).map_or("no such cart", String::as_str);
                let text = format!("cart {cart} at {}: {digest}, at the region: {known}", node.name());
                verdict.differing.add(text);
            }
        }
        Ok(())
    }

    /// Nothing was put aside, and the audit log's chain is whole.
    async fn ledgers(&self, verdict: &mut Verdict) -> Result<()> {
        let letters = rows(&patiently(&self.operator, "/v1/dead-letters").await?)?;
        for letter in &letters {
            verdict.lost.add(format!("a dead letter: {letter}"));
        }
        let chain = patiently(&self.operator, "/v1/audit/chain").await?.json();
        if chain["whole"] != true {
            verdict.money.add(format!("the audit log's chain is broken: {chain}"));
        }
        Ok(())
    }
}

async fn copies(admin: &Client) -> Result<BTreeMap<String, String>> {
    let mut carts = BTreeMap::new();
    let mut after = String::new();
    loop {
        let page = patiently(admin, &format!("/v1/carts?limit={PAGE}{after}")).await?.json();
        let held = page["carts"].as_array().context("a page of carts")?;
        carts.extend(held.iter().map(|row| (text(row, "cart"), text(row, "digest"))));
        let Some(next) = page["next"].as_str() else { return Ok(carts) };
        after = format!("&after={next}");
    }
}

/// A server that has just come back, or has much to do, is asked again.
pub(crate) async fn patiently(client: &Client, path: &str) -> Result<Answer> {
    let began = Instant::now();
    loop {
        let said = match client.get(path).await {
            Ok(answer) if answer.status.is_success() => return Ok(answer),
            Ok(answer) if answer.status.is_client_error() && answer.status != 429 => {
                bail!("{path}: {} {}", answer.status, answer.text())
            }
            Ok(answer) => format!("{} {}", answer.status, answer.text()),
            Err(error) => format!("{error:#}"),
        };
        ensure!(began.elapsed() < ASK_MAX, "{path} is not answered: {said}");
        sleep(POLL).await;
    }
}

fn rows(answer: &Answer) -> Result<Vec<Value>> {
    answer.json().as_array().cloned().with_context(|| format!("not a list: {}", answer.text()))
}

fn compare_lines(book: &CartBook, cart: &Value, verdict: &mut Verdict) {
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for line in cart["lines"].as_array().into_iter().flatten() {
        let quantity = line["quantity"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
        *found.entry(text(line, "line")).or_default() += quantity;
    }
    for (sku, line) in &book.lines {
        let there = found.get(sku).copied().unwrap_or(0);
        let (least, most) = (line.acknowledged(), line.most());
        let text = || format!("cart {}: {there} of {sku}, must be from {least} to {most}", book.cart);
        if there < least {
            verdict.lost.add(text());
        } else if there > most {
            verdict.surplus.add(text());
        }
    }
    for (sku, quantity) in found.iter().filter(|(sku, _)| !book.lines.contains_key(*sku)) {
        verdict.surplus.add(format!("cart {}: {quantity} of {sku}, which nobody asked for", book.cart));
    }
}

/// Each acknowledged order is there, once, at its total; and there is none that nobody wanted.
fn compare_orders(books: &[CartBook], orders: &[Placed], verdict: &mut Verdict) {
    let mut by_cart: HashMap<&str, Vec<&Placed>> = HashMap::new();
    for order in orders {
        by_cart.entry(&order.cart).or_default().push(order);
        let sum: i64 =
            order.units.iter().map(|(sku, n)| price(sku) * i64::try_from(*n).unwrap_or(i64::MAX)).sum();
        if sum != order.total {
            verdict.money.add(format!("order {}: {} for what costs {sum}", order.id, order.total));
        }
    }
    for book in books {
        let placed = by_cart.remove(book.cart.as_str()).unwrap_or_default();
        let placed: Vec<_> = placed.into_iter().filter(|order| order.state != "declined").collect();
        let say = |what: String| format!("cart {}: {what}", book.cart);
        match (&book.bought, placed.as_slice()) {
            (Bought::Ordered { order, total }, [one]) if one.id == *order && one.total == *total => {}
            (Bought::Ordered { order, .. }, []) => verdict.lost.add(say(format!("no order {order}"))),
            (Bought::Unknown, [] | [_]) | (Bought::No | Bought::Declined | Bought::SoldOut, []) => {}
            (bought, placed) => verdict.money.add(say(format!("{bought:?}, and the region has {placed:?}"))),
        }
    }
    for cart in by_cart.keys() {
        verdict.surplus.add(format!("an order of cart {cart}, which is nobody's"));
    }
}

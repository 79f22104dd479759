//! After the last order: is everything that was acknowledged really there, once, and the same everywhere?
//!
//! Waits until the nodes have handed all operations to the region, then asks region and nodes through their operators'
//! APIs. Reads the shoppers' books, changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use super::books::{CartBook, Findings};
use super::client::{Answer, Ask, Client};
use super::shopper::own_lines;
use super::{NodeHandle, Stage, rules};

/// An outbox of a whole replay drains in seconds; a node that was just restarted dials first.
const DRAIN_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// A region or a node that restarts is met again within this time.
const ASK_MAX: Duration = Duration::from_secs(30);
/// Asked for at once.
const PAGE: usize = 500;
const AT_ONCE: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) drained_ms: u64,
    /// Acknowledged operations that the region does not have.
    pub(super) lost: Findings,
    /// Lines with more than was asked for, and carts with more than one order.
    pub(super) duplicates: Findings,
    /// Copies at a node that are not what the region has.
    pub(super) differing_carts: Findings,
    pub(super) copies: u64,
    /// Copies of shoppers who had gone elsewhere, brought up to date by one read.
    pub(super) refreshed: u64,
    pub(super) orders: u64,
    /// Of all orders at the region, in minor units.
    pub(super) money: i64,
    /// Of the region's orders, each by its invoice and its total: equal where two runs have sold the same at the same price.
    pub(super) orders_digest: String,
}

/// Digest by cart.
type Digests = HashMap<String, String>;

struct Auditor<'a> {
    client: &'a Client,
    stage: &'a Stage,
}

pub(super) async fn audit(client: &Client, stage: &Stage, books: &[CartBook]) -> anyhow::Result<Verdict> {
    let auditor = Auditor { client, stage };
    let mut verdict = Verdict::default();
    let began = Instant::now();
    auditor.wait_until_drained().await?;
    verdict.drained_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);

    let region = auditor.region_carts().await?;
    let orders = auditor.region_orders().await?;
    verdict.orders = orders.values().map(|o| o.len() as u64).sum();
    verdict.money = orders.values().flatten().map(|(_, total)| total).sum();
    verdict.orders_digest = digest(books, &orders);
    auditor.carts(books, &region, &mut verdict).await?;
    self::orders(books, &orders, &mut verdict);
    for node in &stage.nodes {
        auditor.copies(node, books, &region, &mut verdict).await?;
    }
    Ok(verdict)
}

impl Auditor<'_> {
    async fn wait_until_drained(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        for node in &self.stage.nodes {
            loop {
                let status = self.patiently(node.admin, Ask::get("/v1/status")).await?;
                if status.body["outbox"]["unacked"] == 0 && status.body["link"]["connected"] == true {
                    break;
                }
                anyhow::ensure!(
                    began.elapsed() < DRAIN_MAX,
                    "{} still has operations that the region has not acknowledged: outbox {}, link {}",
                    node.name,
                    status.body["outbox"],
                    status.body["link"]
                );
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// The lines, coupons and order of each cart, as the region has them.
    async fn carts(&self, books: &[CartBook], region: &Digests, verdict: &mut Verdict) -> anyhow::Result<()> {
        let reads = books.iter().map(|book| async move {
            if !region.contains_key(&book.cart) {
                return Ok((book, None));
            }
            let path = format!("/v1/sites/{}/carts/{}", rules::SITE, book.cart);
            self.ask_region(&path).await.map(|answer| (book, Some(answer.body)))
        });
        let mut reads = futures_util::stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some(read) = reads.next().await {
            let (book, cart) = read?;
            match cart {
                Some(cart) => compare(book, &cart, verdict),
                None => {
                    let operations = 1 + book.lines.values().map(|l| l.acknowledged).sum::<u64>();
                    lose(verdict, operations, format!("{}: the region has no such cart", name(book)));
                }
            }
        }
        Ok(())
    }

    /// Every copy that the node has of a cart. A shopper who went elsewhere has left an old copy behind, which is no
    /// error: reading it with the shopper's token must bring it up to date.
    async fn copies(
        &self,
        node: &NodeHandle,
        books: &[CartBook],
        region: &Digests,
        verdict: &mut Verdict,
    ) -> anyhow::Result<()> {
        let differs = |copies: &BTreeMap<String, String>| -> Vec<String> {
            let other = |(cart, digest): (&String, &String)| match region.get(cart) {
                Some(known) if known == digest => None,
                _ => Some(cart.clone()),
            };
            copies.iter().filter_map(other).collect()
        };
        let copies = self.node_carts(node).await?;
        verdict.copies += copies.len() as u64;
        let old = differs(&copies);
        if old.is_empty() {
            return Ok(());
        }
        let by_cart: HashMap<&str, &CartBook> = books.iter().map(|b| (b.cart.as_str(), b)).collect();
        for cart in &old {
            let Some(book) = by_cart.get(cart.as_str()) else { continue };
            let ask = Ask::get(format!("/api/carts/{cart}")).host(rules::HOST);
            self.patiently(node.http, Ask { cookies: Some(book.cookies.clone()), ..ask }).await?;
        }
        let still = differs(&self.node_carts(node).await?);
        verdict.refreshed += (old.len() - still.len()) as u64;
        for cart in still {
            let digest = copies.get(&cart).map_or("none", String::as_str);
            let known = region.get(&cart).map_or("no such cart", String::as_str);
            verdict
                .differing_carts
                .add(format!("cart {cart} at {}: {digest}, at the region: {known}", node.name));
        }
        Ok(())
    }

    async fn region_carts(&self) -> anyhow::Result<Digests> {
        let mut carts = Digests::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/sites/{}/carts?limit={PAGE}{after}", rules::SITE);
            let page = rows(self.ask_region(&path).await?)?;
            let Some(last) = page.last() else { return Ok(carts) };
            after = format!("&after={}", text(last, "cart"));
            for row in &page {
                carts.insert(text(row, "cart"), text(row, "digest"));
            }
        }
    }

    /// Orders by cart: id and total.
    async fn region_orders(&self) -> anyhow::Result<HashMap<String, Vec<(String, i64)>>> {
        let mut orders: HashMap<String, Vec<(String, i64)>> = HashMap::new();
        let mut after = 0;
        loop {
            let path = format!("/v1/sites/{}/orders?limit={PAGE}&after={after}", rules::SITE);
            let page = rows(self.ask_region(&path).await?)?;
            let Some(last) = page.last() else { return Ok(orders) };
            after = last["position"].as_u64().context("an order without a position")?;
            for row in &page {
                let total = row["total"].as_i64().context("an order without a total")?;
                orders.entry(text(row, "cart")).or_default().push((text(row, "order"), total));
            }
        }
    }

    /// Carts of the replay's site at a node, with their digests.
    async fn node_carts(&self, node: &NodeHandle) -> anyhow::Result<BTreeMap<String, String>> {
        let mut carts = BTreeMap::new();
        let mut after = String::new();
        loop {
            let page = self.patiently(node.admin, Ask::get(format!("/v1/carts?limit={PAGE}{after}"))).await?;
            let held = page.body["carts"].as_array().with_context(|| page.summary())?;
            for row in held.iter().filter(|row| row["site"] == rules::SITE) {
                carts.insert(text(row, "cart"), text(row, "digest"));
            }
            let Some(next) = page.body["next"].as_str() else { return Ok(carts) };
            after = format!("&after={next}");
        }
    }

    async fn ask_region(&self, path: &str) -> anyhow::Result<Answer> {
        self.patiently(self.stage.region_control, Ask::get(path).bearer(&self.stage.operator_token)).await
    }

    async fn patiently(&self, to: SocketAddr, ask: Ask<'_>) -> anyhow::Result<Answer> {
        let began = Instant::now();
        loop {
            let said = match self.client.send(to, ask.clone()).await {
                Ok(answer) if !answer.status.is_server_error() => return Ok(answer),
                Ok(answer) => answer.summary(),
                Err(error) => error.to_string(),
            };
            anyhow::ensure!(began.elapsed() < ASK_MAX, "{} of {to} is not answered: {said}", ask.path);
            sleep(POLL).await;
        }
    }
}

fn compare(book: &CartBook, cart: &Value, verdict: &mut Verdict) {
    let found: BTreeMap<String, u32> = own_lines(cart).into_iter().collect();
    for (sku, line) in book.lines.iter().filter(|(_, line)| !line.uncertain) {
        let there = found.get(sku).copied().unwrap_or(0);
        let text =
            || format!("{}, {sku}: {} acknowledged, the region has {there}", name(book), line.quantity);
        if there < line.quantity {
            lose(verdict, line.acknowledged.max(1), text());
        } else if there > line.quantity {
            verdict.duplicates.add(text());
        }
    }
    for (sku, quantity) in found.iter().filter(|(sku, _)| !book.lines.contains_key(*sku)) {
        verdict.duplicates.add(format!("{}, {sku}: never asked for, the region has {quantity}", name(book)));
    }
    let coupons = cart["coupons"].as_array().map_or(&[][..], Vec::as_slice);
    for coupon in book.coupons.iter().filter(|c| !coupons.iter().any(|k| k == c.as_str())) {
        lose(verdict, 1, format!("{}: the region has not the coupon {coupon}", name(book)));
    }
    let sealed = cart["order"].as_str();
    if let Some(order) = &book.order
        && sealed != Some(&order.id)
    {
        lose(verdict, 1, format!("{}: order {} acknowledged, the cart has {sealed:?}", name(book), order.id));
    }
}

/// Each acknowledged order exists, exactly once, with the total that was quoted.
fn orders(books: &[CartBook], orders: &HashMap<String, Vec<(String, i64)>>, verdict: &mut Verdict) {
    for book in books {
        let placed = orders.get(&book.cart).map_or(&[][..], Vec::as_slice);
        if placed.len() > 1 {
            verdict.duplicates.add(format!("{}: {} orders", name(book), placed.len()));
        }
        let Some(order) = &book.order else { continue };
        match placed.iter().find(|(id, _)| *id == order.id) {
            Some((_, total)) if *total == order.total => {}
            Some((_, total)) => {
                let text = format!("{}: ordered at {}, the region has {total}", name(book), order.total);
                lose(verdict, 1, text);
            }
            None => lose(verdict, 1, format!("{}: the region has no order {}", name(book), order.id)),
        }
    }
}

/// SHA-256 of a line `INVOICE TOTAL` for each order at the region, sorted. The orders' own numbers are drawn by lot.
fn digest(books: &[CartBook], orders: &HashMap<String, Vec<(String, i64)>>) -> String {
    let invoices: HashMap<&str, &str> = books.iter().map(|b| (b.cart.as_str(), b.invoice.as_str())).collect();
    let mut lines: Vec<String> = Vec::new();
    for (cart, placed) in orders {
        let invoice = invoices.get(cart.as_str()).copied().unwrap_or("none");
        lines.extend(placed.iter().map(|(_, total)| format!("{invoice} {total}\n")));
    }
    lines.sort_unstable();
    hex::encode(Sha256::digest(lines.concat()))
}

fn lose(verdict: &mut Verdict, operations: u64, text: String) {
    verdict.lost.add(text);
    verdict.lost.count += operations - 1;
}

fn name(book: &CartBook) -> String {
    format!("invoice {}, cart {}", book.invoice, book.cart)
}

fn rows(answer: Answer) -> anyhow::Result<Vec<Value>> {
    anyhow::ensure!(answer.status.is_success(), "{}", answer.summary());
    match answer.body {
        Value::Array(rows) => Ok(rows),
        other => anyhow::bail!(
            "a list was expected, found {}",
            other.to_string().chars().take(200).collect::<String>()
        ),
    }
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::books::{LineBook, OrderBook};
    use super::*;

    fn book() -> CartBook {
        let line = |quantity, acknowledged| LineBook { quantity, acknowledged, uncertain: false };
        CartBook {
            invoice: "1".into(),
            cart: "c".into(),
            lines: [("A".to_owned(), line(3, 2)), ("B".to_owned(), line(0, 2))].into(),
            order: Some(OrderBook { id: "o".into(), total: 100 }),
            ..CartBook::default()
        }
    }

    fn counts(lines: &Value, order: &Value) -> (u64, u64) {
        let mut verdict = Verdict::default();
        compare(&book(), &json!({ "lines": lines, "coupons": [], "order": order }), &mut verdict);
        (verdict.lost.count, verdict.duplicates.count)
    }

    #[test]
    fn less_is_lost_and_more_is_a_duplicate() {
        let line = |line: &str, quantity: u32| json!({ "line": line, "quantity": quantity });
        let order = json!("o");
        assert_eq!(counts(&json!([line("A", 3), line("GIFT~cart", 1)]), &order), (0, 0));
        assert_eq!(
            counts(&json!([line("A", 2)]), &order),
            (2, 0),
            "both operations on the line are in doubt"
        );
        assert_eq!(counts(&json!([line("A", 4)]), &order), (0, 1));
        assert_eq!(counts(&json!([line("A", 3), line("B", 1)]), &order), (0, 1), "a removal that came back");
        assert_eq!(counts(&json!([line("A", 3), line("X", 1)]), &order), (0, 1));
        assert_eq!(counts(&json!([line("A", 3)]), &Value::Null), (1, 0), "the order is not on the cart");
    }

    #[test]
    fn an_order_is_there_once_and_at_its_total() {
        let counts = |placed: &[(&str, i64)]| {
            let placed = placed.iter().map(|(id, total)| ((*id).to_owned(), *total)).collect();
            let mut verdict = Verdict::default();
            orders(&[book()], &[("c".to_owned(), placed)].into(), &mut verdict);
            (verdict.lost.count, verdict.duplicates.count)
        };
        assert_eq!(counts(&[("o", 100)]), (0, 0));
        assert_eq!(counts(&[("o", 99)]), (1, 0));
        assert_eq!(counts(&[]), (1, 0));
        assert_eq!(counts(&[("o", 100), ("p", 100)]), (0, 1));
    }

    #[test]
    fn the_digest_is_of_invoices_and_totals_and_of_nothing_that_is_drawn_by_lot() {
        let of = |cart: &str, order: &str, totals: &[i64]| {
            let placed = totals.iter().map(|total| (order.to_owned(), *total)).collect();
            let book = CartBook { cart: cart.to_owned(), ..book() };
            digest(&[book], &[(cart.to_owned(), placed)].into())
        };
        let once = of("c", "o", &[100]);
        assert_eq!(once, of("other cart", "p", &[100]));
        assert_eq!(once, hex::encode(Sha256::digest("1 100\n")));
        for other in [of("c", "o", &[101]), of("c", "o", &[100, 100]), of("c", "o", &[])] {
            assert_ne!(once, other);
        }
    }
}

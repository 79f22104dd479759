//! Checkouts that are paid for, through nodes, while the region is killed and the provider is as bad as a provider can be: at most
//! one order and one charge per key, and at the end its books are ours.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use souk_tests::cluster::{Plan, Spec};
use souk_tests::http::Client;
use tokio::time::sleep;

use crate::books::{Bought, CartBook};
use crate::fake_provider::{BAD_CARD, FakeProvider, Intent, KEY, Trouble, WEBHOOK_SECRET};
use crate::run::{Row, SERVES_WITHIN, count, is_full, metric, seed};
use crate::seed::mix;
use crate::shop::SITE;
use crate::shoppers::Habits;

/// One in eight is declined.
const CARDS: &[&str] = &[
    "pm_card_visa",
    "pm_card_mastercard",
    "pm_card_amex",
    BAD_CARD,
    "pm_card_visa_debit",
    "pm_card_discover",
    "pm_card_jcb",
    "pm_card_unionpay",
];
/// Of a hundred requests so many go wrong.
const TROUBLE_PERCENT: u64 = 30;
/// What a region that was killed had asked is taken up after a minute. In the full run the provider also fails, and repeats the
/// failure to each repetition: that is known after ten minutes, and the new key of then can meet the same. A payment that waits
/// for an hour is an alarm (`docs/ORDERS.md`), and so it is here.
const SETTLES_WITHIN: Duration = Duration::from_secs(3_600);
/// A shopper who has no answer by then goes, and comes back when all is settled: who waited for the ten minutes would keep the
/// others from coming.
const PATIENCE: Duration = Duration::from_secs(6);
/// Checkouts that are answered between two kills, in the mean.
const LIFE_CHECKOUTS: u64 = 45;
/// However fast the checkouts are.
const KILLS_MIN: u64 = 5;
const POLL: Duration = Duration::from_millis(250);
/// Messages that are delivered before the row looks at its clock again: shoppers order faster than they can be told one by one.
const TOLD_AT_ONCE: usize = 32;

/// The troubles that are over within seconds.
const SHORT: &[Trouble] =
    &[Trouble::LostBefore, Trouble::LostAfter, Trouble::Busy, Trouble::Silent, Trouble::Late, Trouble::Slow];

async fn provider() -> FakeProvider {
    if is_full() {
        return FakeProvider::hostile(seed(), TROUBLE_PERCENT).await;
    }
    let manners = |key: &str, nth: u32| {
        let chance =
            key.bytes().fold(mix(seed(), u64::from(nth), 1), |sum, byte| mix(sum, u64::from(byte), 2));
        if chance % 100 >= TROUBLE_PERCENT {
            return Trouble::Nothing;
        }
        SHORT[usize::try_from(chance >> 32).unwrap_or(0) % SHORT.len()]
    };
    FakeProvider::start(std::sync::Arc::new(manners)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_kill() -> Result<()> {
    let provider = provider().await;
    let payments = json!([{
        "site": SITE, "provider": "stripe", "api": provider.api(),
        "secret_key_file": "shop.key", "webhook_secret_file": "shop.webhook",
    }]);
    let plan = Plan {
        region: Spec { config: vec![("payments", payments)], ..Spec::default() },
        files: vec![("shop.key", KEY.to_owned()), ("shop.webhook", WEBHOOK_SECRET.to_owned())],
        ..Plan::of(2)
    };
    let habits = Habits {
        shoppers: 48,
        additions_max: 3,
        ordered_percent: 100,
        cards: CARDS,
        alone: true,
        patience: Some(PATIENCE),
        seed: seed(),
        ..Habits::default()
    };
    let mut row = Row::open("payments_kill", plan, habits).await?;
    let wanted = count(300, 10_000);
    let mut messages = 0_u64;
    let kills = sell(&provider, &mut row, wanted, &mut messages).await?;
    row.crowd.send_home();
    while !row.crowd.has_left() {
        messages += tell(&provider, &row).await?;
        sleep(POLL).await;
    }
    // Whoever has gone without an answer gets it now, under the key of then. The region may never have heard of it: then it is
    // paid for now, by the same provider.
    let mut came_back = 0;
    let settled = loop {
        let settled = settle(&provider, &row, &mut messages).await?;
        let asked = row.crowd.come_back().await?;
        if asked == 0 {
            break settled;
        }
        came_back += asked;
        ensure!(came_back < 10 * usize::try_from(wanted)?, "some checkout never comes to an end");
    };
    let (begun, ended) = (row.crowd.checkouts(), row.crowd.settled());
    ensure!(begun == ended, "{begun} checkouts were begun, {ended} have an answer");

    let books = provider.books(|books| {
        (books.requests, books.repeated, books.troubles, books.misused, books.intents.clone())
    });
    let (requests, repeated, troubles, misused, intents) = books;
    ensure!(misused == 0, "{misused} keys came with another question");
    let (charged, money) = charged_as_told(row.crowd.books(), &intents)?;
    compare(&row, &intents).await?;
    let what = format!(
        "{begun} checkouts through two nodes, {kills} SIGKILLs of the region, each third with both nodes; the provider met {requests} requests ({repeated} \
         repeated), failed {troubles} of them, sent {messages} messages twice and out of order; {came_back} times a shopper left \
         before his answer and came back for it; its ledger against what shoppers were told: {charged} orders, {charged} charges, {money} \
         minor units on both sides, 0 double; {}; its ledger against ours: compared {}, differing {}",
        held(&intents),
        settled["compared"],
        settled["differing"]
    );
    row.close(&what).await?;
    Ok(())
}

/// Lets so many checkouts begin, and kills the region again and again while they are under way. Answers how often.
async fn sell(provider: &FakeProvider, row: &mut Row, wanted: u64, messages: &mut u64) -> Result<u64> {
    let mut kills = 0;
    while row.crowd.checkouts() < wanted || kills < KILLS_MIN {
        // Each life answers checkouts, some few or many, and ends in the middle of others.
        let lasts = 1 + mix(seed(), kills, 6) % (2 * LIFE_CHECKOUTS);
        let (born, before) = (Instant::now(), row.crowd.settled());
        while row.crowd.settled() < before + lasts {
            let words = || row.cluster.region.last_words();
            ensure!(born.elapsed() < 3 * SERVES_WITHIN, "no checkout comes to an end: {}", words());
            *messages += tell(provider, row).await?;
            sleep(POLL / 5).await;
        }
        row.cluster.region.kill()?;
        kills += 1;
        row.cluster.region.start().await?;
        if kills.is_multiple_of(3) {
            row.restart_nodes().await?;
        }
    }
    Ok(kills)
}

/// Delivers what the provider has to say; a region that is away misses it, and so does one that is told more at once than
/// [`TOLD_AT_ONCE`].
async fn tell(provider: &FakeProvider, row: &Row) -> Result<u64> {
    let region = Client::new(row.cluster.region.admin()?);
    let mut told = 0;
    for (signature, body) in provider.messages().into_iter().take(TOLD_AT_ONCE) {
        let path = format!("/webhooks/payments/{SITE}");
        let sent = region
            .with("stripe-signature", &signature)
            .send(Method::POST, &path, Some(Bytes::from(body)))
            .await;
        told += u64::from(sent.is_ok_and(|answer| answer.status == 200));
    }
    Ok(told)
}

/// Until nothing is waited for any more, and the region finds the provider's books to be its own.
async fn settle(provider: &FakeProvider, row: &Row, messages: &mut u64) -> Result<Value> {
    let operator = row.cluster.operator()?;
    let (began, mut said) = (Instant::now(), Value::Null);
    loop {
        *messages += tell(provider, row).await?;
        let waiting = metric(&operator, "souk_region_payments_waiting").await?;
        ensure!(began.elapsed() < SETTLES_WITHIN, "the books do not agree: {said}, {waiting} are waited for");
        if waiting > 0.0 || provider.is_busy() {
            sleep(POLL * 4).await;
            continue;
        }
        let report = operator.post(&format!("/v1/sites/{SITE}/payments/reconcile"), json!({})).await?;
        if report.status == 200 {
            said = report.json();
            let is_ours = said["is_whole"] == true
                && said["agreed"] == said["compared"]
                && said["differing"] == 0
                && said["moving"] == 0;
            if is_ours {
                return Ok(said);
            }
        }
        sleep(POLL * 4).await;
    }
}

/// The provider's ledger against what shoppers were told, without a word of the region's: each order that somebody was told of is
/// charged once and at its amount, and nothing else is charged. Answers how many charges stand, and their sum.
fn charged_as_told(books: &[CartBook], intents: &[Intent]) -> Result<(usize, i64)> {
    let mut charged: BTreeMap<&str, i64> = BTreeMap::new();
    for intent in intents.iter().filter(|intent| intent.stands()) {
        ensure!(charged.insert(&intent.order, intent.amount).is_none(), "charged twice: {intent:?}");
    }
    let mut told: BTreeMap<&str, i64> = BTreeMap::new();
    for book in books {
        match &book.bought {
            Bought::Ordered { order, total } => {
                ensure!(told.insert(order, *total).is_none(), "two carts became the order {order}");
            }
            Bought::Unknown => bail!("nobody knows what became of the checkout of cart {}", book.cart),
            Bought::No | Bought::Declined | Bought::SoldOut => {}
        }
    }
    for (order, total) in &told {
        ensure!(
            charged.get(order) == Some(total),
            "order {order} of {total} was acknowledged, charged {:?}",
            charged.get(order)
        );
    }
    for (order, amount) in &charged {
        ensure!(
            told.contains_key(order),
            "{amount} were charged for order {order}, of which nobody was told"
        );
    }
    Ok((charged.len(), charged.values().sum()))
}

/// How long holds lived.
fn held(intents: &[Intent]) -> String {
    let longest = |status: &str| {
        let of = |intent: &Intent| Some(intent.held_until_s?.saturating_sub(intent.made_s));
        let lives: Vec<u64> = intents.iter().filter(|i| i.status == status).filter_map(of).collect();
        (lives.len(), lives.into_iter().max().unwrap_or(0))
    };
    let ((taken, took), (given_up, after)) = (longest("succeeded"), longest("canceled"));
    format!(
        "{taken} holds captured, the longest after {took} s, {given_up} given up, the longest after {after} s"
    )
}

/// The provider's ledger against ours, payment by payment.
async fn compare(row: &Row, intents: &[Intent]) -> Result<()> {
    let operator = row.cluster.operator()?;
    let mut by_order: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for intent in intents {
        ensure!(intent.captures <= 1 && intent.refunds <= 1, "charged or refunded twice: {intent:?}");
        by_order.entry(&intent.order).or_default().push(intent);
    }
    for (order, payments) in &by_order {
        ensure!(payments.len() == 1, "one order, several payments: {payments:?}");
        let payment = payments[0];
        let answer = operator.get(&format!("/v1/sites/{SITE}/orders/{order}")).await?;
        ensure!(answer.status == 200, "a payment without an order: {payment:?}");
        let ours = answer.json();
        let is_paid = ours["state"] == "captured";
        ensure!(payment.stands() == is_paid, "{payment:?} at the provider, here {ours}");
        ensure!(
            payment.status != "requires_capture",
            "money is held and nobody wants it: {payment:?}, here {ours}"
        );
        ensure!(ours["quote"]["total"] == payment.amount, "{payment:?} at the provider, here {ours}");
    }
    Ok(())
}

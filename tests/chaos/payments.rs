//! Checkouts that are paid for, through nodes, while the region is killed and the provider is as bad as a provider can be: at most
//! one order and one charge per key, and at the end its books are ours.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use souk_tests::cluster::{Plan, Spec};
use souk_tests::http::Client;
use tokio::time::sleep;

use crate::fake_provider::{BAD_CARD, FakeProvider, KEY, Trouble, WEBHOOK_SECRET};
use crate::run::{Row, SERVES_WITHIN, count, is_full, seed};
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
/// failure to each repetition: that is known after ten minutes.
const SETTLES_WITHIN: Duration = Duration::from_secs(1_200);
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
        shoppers: 32,
        additions_max: 3,
        ordered_percent: 100,
        cards: CARDS,
        alone: true,
        seed: seed(),
        ..Habits::default()
    };
    let mut row = Row::open("payments_kill", plan, habits).await?;
    let wanted = count(400, 10_000);
    let (mut kills, mut messages) = (0_u64, 0_u64);
    let mut quiet = Instant::now();
    let mut seen = 0;
    while row.crowd.settled() < wanted || kills < KILLS_MIN {
        // A life of 0.2 to 1.2 s, full of checkouts.
        let lasts = Duration::from_millis(200 + mix(seed(), kills, 6) % 1_000);
        let born = Instant::now();
        while born.elapsed() < lasts {
            messages += tell(&provider, &row).await?;
            sleep(POLL / 5).await;
        }
        if row.crowd.settled() > seen {
            (seen, quiet) = (row.crowd.settled(), Instant::now());
        }
        ensure!(
            quiet.elapsed() < 3 * SERVES_WITHIN,
            "no checkout comes to an end: {}",
            row.cluster.region.last_words()
        );
        row.cluster.region.kill()?;
        kills += 1;
        row.cluster.region.start().await?;
        if kills.is_multiple_of(3) {
            row.restart_nodes().await?;
        }
    }
    row.crowd.send_home();
    // Each shopper still asks what became of his own checkout.
    while !row.crowd.has_left() {
        messages += tell(&provider, &row).await?;
        sleep(POLL).await;
    }
    let report = settle(&provider, &row, &mut messages).await?;
    let books = provider.books(|books| {
        (books.requests, books.repeated, books.troubles, books.misused, books.intents.clone())
    });
    let (requests, repeated, troubles, misused, intents) = books;
    let charged = compare(&row, &intents).await?;
    ensure!(misused == 0, "{misused} keys came with another question");
    let what = format!(
        "{} checkouts through two nodes, {kills} SIGKILLs of the region, each third with both nodes; the provider met {requests} requests ({repeated} \
         repeated), failed {troubles} of them, sent {messages} messages twice and out of order, charged {charged}; compared {}, \
         differing {}",
        row.crowd.settled(),
        report["compared"],
        report["differing"]
    );
    row.close(&what).await?;
    Ok(())
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
    let began = Instant::now();
    loop {
        *messages += tell(provider, row).await?;
        let page = operator.get("/metrics").await?.text();
        let waiting = page.lines().find_map(|line| line.strip_prefix("souk_region_payments_waiting "));
        let report = operator.post(&format!("/v1/sites/{SITE}/payments/reconcile"), json!({})).await?;
        if report.status == 200 {
            let report = report.json();
            let is_ours = report["is_whole"] == true
                && report["agreed"] == report["compared"]
                && report["differing"] == 0
                && report["moving"] == 0;
            if is_ours && waiting == Some("0") && !provider.is_busy() {
                return Ok(report);
            }
            ensure!(
                began.elapsed() < SETTLES_WITHIN,
                "the books do not agree: {report}, waiting {waiting:?}"
            );
        }
        sleep(POLL * 4).await;
    }
}

/// The provider's ledger against ours, payment by payment. Answers how many charges stand.
async fn compare(row: &Row, intents: &[crate::fake_provider::Intent]) -> Result<usize> {
    let operator = row.cluster.operator()?;
    let mut by_order: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for intent in intents {
        ensure!(intent.captures <= 1 && intent.refunds <= 1, "charged or refunded twice: {intent:?}");
        by_order.entry(&intent.order).or_default().push(intent);
    }
    let mut charged = 0;
    for (order, payments) in &by_order {
        ensure!(payments.len() == 1, "one order, several payments: {payments:?}");
        let payment = payments[0];
        let answer = operator.get(&format!("/v1/sites/{SITE}/orders/{order}")).await?;
        ensure!(answer.status == 200, "a payment without an order: {payment:?}");
        let ours = answer.json();
        let stands = payment.status == "succeeded" && !payment.refunded;
        let is_paid = ours["state"] == "captured";
        ensure!(stands == is_paid, "{payment:?} at the provider, here {ours}");
        ensure!(
            payment.status != "requires_capture",
            "money is held and nobody wants it: {payment:?}, here {ours}"
        );
        ensure!(ours["quote"]["total"] == payment.amount, "{payment:?} at the provider, here {ours}");
        charged += usize::from(stands);
    }
    Ok(charged)
}

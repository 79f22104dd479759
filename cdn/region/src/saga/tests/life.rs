//! What becomes of an order after it was placed: captured, fulfilled, cancelled, refunded.

use super::*;

#[tokio::test]
async fn the_life_of_a_paid_order() {
    let world = World::new(FakeProvider::honest().await, false, 1, 10).await;
    let drafts = world.carts(3).await;
    for draft in &drafts {
        world.reserve(draft.clone(), "pm_card_visa", false).await;
    }
    world.calm().await;
    let [sold, returned, unwanted] = [0, 1, 2].map(|index: usize| drafts[index].order.id);
    assert!(matches!(world.wish(sold, Wish::Fulfil).await, Wished::NotNow(_)), "its money first");
    for order in [sold, returned] {
        assert!(matches!(world.wish(order, Wish::Capture).await, Wished::Noted(_)));
    }
    assert!(matches!(world.wish(unwanted, Wish::Cancel).await, Wished::Noted(_)));
    world.calm().await;
    assert!(matches!(world.wish(sold, Wish::Fulfil).await, Wished::Noted(_)));
    assert!(matches!(world.wish(returned, Wish::Cancel).await, Wished::NotNow(_)), "it is paid");
    for _ in 0..2 {
        assert!(matches!(world.wish(returned, Wish::Refund).await, Wished::Noted(_)));
    }
    world.calm().await;
    let states = [world.standing(sold).await, world.standing(returned).await, world.standing(unwanted).await];
    assert_eq!(states, [OrderState::Fulfilled, OrderState::Refunded, OrderState::Cancelled]);
    assert_eq!(world.check(&drafts).await, 1);
    assert_eq!(world.events(returned).await, ["order.placed", "order.captured", "order.refunded"]);
    assert_eq!(world.events(unwanted).await, ["order.placed", "order.cancelled", "payment.voided"]);
    let elsewhere = world.store.wish_order("rival".parse().unwrap(), sold, Wish::Refund, actor(), 0).await;
    assert!(matches!(elsewhere.unwrap(), Wished::NoOrder), "another shop's order is none");
    let audit = world.store.audit(0, 100).await.unwrap();
    let deeds: Vec<_> =
        audit.iter().map(|row| row.action.as_str()).filter(|a| a.starts_with("order.")).collect();
    let expected = ["order.capture", "order.capture", "order.cancel", "order.fulfil", "order.refund"];
    assert_eq!(deeds, expected, "a row each, and none for what changed nothing");
}

#[tokio::test]
async fn an_invoiced_order_lives_by_what_the_merchant_says() {
    let world = World::new(FakeProvider::honest().await, true, 1, 10).await;
    let drafts = world.carts(2).await;
    for draft in &drafts {
        assert_eq!(world.store.place(draft.clone()).await.unwrap(), Place::Placed);
    }
    let [paid, unwanted] = [drafts[0].order.id, drafts[1].order.id];
    assert!(world.store.checkout_due(&[]).await.unwrap().is_none(), "nobody has anything to do");
    for wish in [Wish::Fulfil, Wish::Capture] {
        let Wished::Noted(detail) = world.wish(paid, wish).await else { panic!("{wish:?}") };
        assert_eq!(detail.order.state, OrderState::Fulfilled);
    }
    let Wished::Noted(detail) = world.wish(unwanted, Wish::Cancel).await else { panic!("it is open") };
    assert_eq!((detail.order.state, detail.payment.by), (OrderState::Cancelled, "invoice"));
    let listed = world.store.orders(site(), 0, 10).await.unwrap();
    assert_eq!([listed[0].state.as_str(), listed[1].state.as_str()], ["fulfilled", "cancelled"]);
    // The first took one unit, the second gave its two back.
    assert_eq!(world.available().await, 9);
    assert_eq!(world.provider.books(|books| books.requests), 0, "nobody was asked for anything");
    while world.store.consume_events().await.unwrap() > 0 {}
    let sales = world.store.sales(site(), 10).await.unwrap();
    let [day] = &sales[..] else { panic!("{sales:?}") };
    assert_eq!(
        (day.orders, day.placed, day.captured, day.cancelled, day.refunded),
        (2, 3_000, 1_000, 2_000, 0)
    );
    assert_eq!(world.store.consume_events().await.unwrap(), 0, "each event is consumed once");
}

#[tokio::test]
async fn units_that_were_not_counted_when_they_were_sold_do_not_come_back() {
    let world = World::new(FakeProvider::honest().await, true, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    world.store.put_stock(site(), sku(0), None, actor()).await.unwrap();
    world.store.place(draft.clone()).await.unwrap();
    world.store.put_stock(site(), sku(0), Some(5), actor()).await.unwrap();
    assert!(matches!(world.wish(draft.order.id, Wish::Cancel).await, Wished::Noted(_)));
    assert_eq!(world.available().await, 5);
}

#[tokio::test]
async fn a_refund_that_is_refused_is_told_once_and_asked_for_ever_more_rarely() {
    const DAYS: u64 = 3;
    let refuses = |key: &str, _| if key.contains(":refund:") { Trouble::Refuses } else { Trouble::Nothing };
    let world = World::new(FakeProvider::start(Arc::new(refuses)).await, true, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    let order = draft.order.id;
    world.reserve(draft, "pm_card_visa", true).await;
    world.calm().await;
    world.wish(order, Wish::Refund).await;
    let wished_ms = world.now_ms();
    let idle = AtomicUsize::new(0);
    while world.now_ms() < wished_ms + DAYS * 86_400_000 {
        if !world.work(|| Luck::Lives, &idle).await {
            let due_ms = world.store.checkout_due(&[]).await.unwrap().expect("it is asked again");
            world.leap(due_ms).await;
        }
    }
    let detail = world.store.order_detail(site(), order).await.unwrap().unwrap();
    let attempts = detail.payment.calls.len() as u64;
    assert!((DAYS * 4..DAYS * 4 + 24).contains(&attempts), "{attempts} attempts");
    assert_eq!(
        world.store.payments_waiting().await.unwrap(),
        (1, Some(wished_ms)),
        "since it was wished for"
    );
    let events = world.events(order).await;
    assert_eq!(events, ["order.placed", "order.captured", "payment.refund_refused"]);
}

//! Orders: stock, seals, repeated keys, and a world that moves.

use super::*;

on_every_engine! {
    an_order_takes_its_stock_seals_its_cart_and_answers_the_same_again,
    an_order_that_lacks_stock_leaves_nothing_behind,
    an_order_is_not_made_of_a_world_that_has_moved,
    the_last_units_are_sold_once,
    a_late_operation_joins_its_cart_but_no_order,
}

async fn an_order_takes_its_stock_seals_its_cart_and_answers_the_same_again(home: Home) {
    let store = shop(&home).await;
    let draft = draft(&store, 1, &[("MUG", 2), ("PEN", 3), ("CAP", 1)], "key-1").await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    assert_eq!(left(&store, "MUG").await, Some(Some(3)));
    assert_eq!(left(&store, "PEN").await, Some(None), "not counted");
    assert_eq!(left(&store, "CAP").await, None, "never counted");

    let again = Draft { order: Order { id: OrderId([9; 16]), ..draft.order.clone() }, ..draft.clone() };
    assert_eq!(
        store.place(again).await.unwrap(),
        Place::Repeated(Standing::Placed(Box::new(draft.order.clone())))
    );
    let other = Draft { request_hash: [8; 32], ..draft.clone() };
    assert_eq!(store.place(other).await.unwrap(), Place::KeyReused);
    let second = Draft { idempotency_key: "key-2".to_owned(), ..draft.clone() };
    assert_eq!(store.place(second).await.unwrap(), Place::CartSealed(draft.order.id));
    assert_eq!(left(&store, "MUG").await, Some(Some(3)), "only the first one took anything");

    assert_eq!(store.order(draft.order.id).await.unwrap(), Some(draft.order.clone()));
    let listed = store.orders(site(), 0, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(store.orders(site(), listed[0].position, 10).await.unwrap().is_empty());
    assert_eq!(store.cart(site(), draft.order.cart).await.unwrap().unwrap().order, Some(draft.order.id));
    // Nodes were told: 5 was few, 3 is fewer.
    let head = store.log_heads().borrow().get(Log::Stock);
    let Run::Changes { records, .. } = store.changes(Log::Stock, head - 1, PAGE).await.unwrap() else {
        panic!()
    };
    assert_eq!(StockChange::from_bytes(&records[0].body).unwrap().hint, StockHint::Low(3));
}

async fn an_order_that_lacks_stock_leaves_nothing_behind(home: Home) {
    let store = shop(&home).await;
    // HAT sorts before MUG, so its stock is taken before MUG is found wanting.
    store.import(site(), vec![row("HAT", 10, Some(Some(50)))], actor()).await.unwrap().unwrap();
    let draft = draft(&store, 1, &[("HAT", 2), ("MUG", 6)], "key-1").await;
    let place = store.place(draft.clone()).await.unwrap();
    assert_eq!(place, Place::OutOfStock { sku: sku("MUG"), available: 5 });
    assert_eq!((left(&store, "HAT").await, left(&store, "MUG").await), (Some(Some(50)), Some(Some(5))));
    assert_eq!(store.counts().await.unwrap().orders, 0);
    assert_eq!(store.cart(site(), draft.order.cart).await.unwrap().unwrap().order, None);
}

async fn an_order_is_not_made_of_a_world_that_has_moved(home: Home) {
    let store = shop(&home).await;
    let draft = draft(&store, 1, &[("MUG", 1)], "key-1").await;
    store.put_price(site(), sku("MUG"), PriceRow::of(Minor(1)), actor()).await.unwrap();
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Moved);
    store.put_price(site(), sku("PEN"), PriceRow::of(Minor(1)), actor()).await.unwrap();
    let mut shopper = Shopper::new(101, 1, 1);
    shopper.add("MUG", 1);
    let fresh = order_of(&store, &shopper, "key-1").await;
    assert_eq!(
        store
            .place(Draft { basis: Basis { site_version: 99, ..fresh.basis.clone() }, ..fresh.clone() })
            .await
            .unwrap(),
        Place::Moved
    );
    assert_eq!(
        store
            .place(Draft { basis: Basis { cart: Digest([0; 32]), ..fresh.basis.clone() }, ..fresh.clone() })
            .await
            .unwrap(),
        Place::Moved
    );
    // PEN is not part of this price: that it changed does not matter.
    assert_eq!(store.place(fresh).await.unwrap(), Place::Placed);
}

async fn the_last_units_are_sold_once(home: Home) {
    let store = shop(&home).await;
    let mut drafts = Vec::new();
    for cart in 1..=20 {
        drafts.push(draft(&store, cart, &[("MUG", 1)], &format!("key-{cart}")).await);
    }
    let placing: Vec<_> = drafts
        .into_iter()
        .map(|draft| {
            tokio::spawn({
                let store = store.clone();
                async move { store.place(draft).await.unwrap() }
            })
        })
        .collect();
    let mut placed = 0;
    for place in placing {
        match place.await.unwrap() {
            Place::Placed => placed += 1,
            Place::OutOfStock { available: 0, .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((placed, left(&store, "MUG").await), (5, Some(Some(0))));
}

async fn a_late_operation_joins_its_cart_but_no_order(home: Home) {
    let store = shop(&home).await;
    let draft = draft(&store, 1, &[("MUG", 1)], "key-1").await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    let mut shopper = Shopper::new(101, 1, 1);
    shopper.add("MUG", 1);
    let late = shopper.add("PEN", 1);
    let outcome = store.apply_batch(101, 1, 2, vec![late]).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 2, applied: 1, late: 1, ..Applied::default() }));
    let cart = store.cart(site(), shopper.cart).await.unwrap().unwrap();
    assert_eq!((cart.digest, cart.order), (shopper.state.digest(), Some(draft.order.id)));
}

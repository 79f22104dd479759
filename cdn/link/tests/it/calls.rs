//! Calls: answers, refusals, deadlines and limits.

use std::time::Duration;

use bytes::Bytes;
use souk_link::{CALL_BYTES_MAX, Call, CallError};

use crate::world::{Authority, PATIENCE, Registry, RunningNode, RunningRegion, Shop, any_port};

fn call(method: u16, body: impl Into<Bytes>) -> Call {
    Call { method, body: body.into() }
}

#[tokio::test]
async fn calls_are_answered_refused_timed_out_and_limited() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    node.until_up().await;
    let link = &node.link;

    let largest = vec![3; CALL_BYTES_MAX];
    let echoed = link.call(call(1, largest.clone()), PATIENCE).await.unwrap();
    assert_eq!(echoed.body, largest);
    assert_eq!(link.call(call(1, Bytes::new()), PATIENCE).await.unwrap().body, Bytes::new());

    let refused = link.call(call(2, "x"), PATIENCE).await;
    let expected = CallError::Remote { code: "cart_sealed".to_owned(), message: "node 7 is late".to_owned() };
    assert_eq!(refused, Err(expected));

    let late = link.call(call(3, "x"), Duration::from_millis(200)).await;
    // Whoever's patience ended first: the caller learns that the outcome is not known.
    assert!(matches!(&late, Err(CallError::Deadline)), "{late:?}");

    let long = link.call(call(1, vec![3; CALL_BYTES_MAX + 1]), PATIENCE).await;
    assert!(matches!(long, Err(CallError::TooLarge { what: "request", .. })), "{long:?}");

    // The region's patience ends while the node still waits.
    let link_of_long = link.call_for_body(call(3, "x"), Duration::from_millis(200), PATIENCE).await;
    assert_eq!(link_of_long, Err(CallError::Deadline));

    let blob = 5 * 1024 * 1024_usize;
    let reply = link.call(call(4, blob.to_le_bytes().to_vec()), PATIENCE).await.unwrap();
    assert_eq!(reply.body.len(), blob);
    let monster = 65 * 1024 * 1024_usize;
    let refused = link.call(call(4, monster.to_le_bytes().to_vec()), PATIENCE).await;
    assert!(matches!(&refused, Err(CallError::AnswerLost(_))), "{refused:?}");

    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn many_calls_at_once_all_come_back() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    node.until_up().await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..500_u32 {
        let link = node.link.clone();
        calls
            .spawn(async move { (n, link.call(call(1, n.to_le_bytes().to_vec()), PATIENCE).await.unwrap()) });
    }
    while let Some(done) = calls.join_next().await {
        let (n, reply) = done.unwrap();
        assert_eq!(reply.body, n.to_le_bytes().to_vec());
    }
    // Calls that were given up leave room for others.
    for _ in 0..200 {
        let late = node.link.call(call(3, "x"), Duration::from_millis(5)).await;
        assert!(late.is_err());
    }
    assert!(node.link.call(call(1, "still there"), PATIENCE).await.is_ok());
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_call_without_a_link_fails_at_once_and_says_why() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    node.until_up().await;
    region.stop().await;
    node.until("down", |status| !status.connected).await;
    let refused = node.link.call(call(1, "x"), PATIENCE).await;
    assert!(matches!(refused, Err(CallError::Unreachable { .. })), "{refused:?}");
    node.stop().await;
}

//! The way up: every accepted operation arrives once and in order, whatever happens to the link.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use souk_link::{EpochNo, LinkStatus, Seq, relay::Relay};

use crate::world::{
    Authority, Registry, RunningNode, RunningRegion, SERVER_NAME, Shop, any_port, eventually,
};

fn accept(shop: &Shop, numbers: std::ops::Range<u32>) {
    for n in numbers {
        shop.accept(format!("operation {n} of a shopper who adds things to a cart"));
    }
}

/// All operations, once, in order, numbered without a gap, in one epoch.
fn check(registry: &Registry, epoch: EpochNo, count: u32) {
    registry.look(|state| {
        let seqs: Vec<Seq> = state.applied.iter().map(|(_, _, seq, _)| *seq).collect();
        assert_eq!(seqs, (1..=u64::from(count)).collect::<Vec<_>>());
        for (n, (_, in_epoch, _, op)) in state.applied.iter().enumerate() {
            assert_eq!(*in_epoch, epoch);
            assert_eq!(*op, format!("operation {n} of a shopper who adds things to a cart").into_bytes());
        }
    });
}

async fn settled(shop: &Arc<Shop>, registry: &Arc<Registry>, count: u32) {
    let (shop, registry) = (shop.clone(), registry.clone());
    eventually("all applied and trimmed", || {
        registry.look(|state| state.applied.len() >= count as usize)
            && shop.look(|state| state.ops.is_empty())
    })
    .await;
}

#[tokio::test]
async fn operations_arrive_once_and_in_order() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    accept(&shop, 0..1_000);
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    node.until_up().await;
    accept(&shop, 1_000..3_000);
    settled(&shop, &registry, 3_000).await;
    check(&registry, 1, 3_000);
    node.until("acknowledged", |status| status.acked == 3_000 && status.unacked == 0).await;
    let nodes = region.link.nodes();
    assert_eq!(
        nodes.iter().map(|n| (n.node, n.epoch, n.hwm, n.pop.as_str())).collect::<Vec<_>>(),
        [(7, 1, 3_000, "par")]
    );
    node.stop().await;
    eventually("the region sees the node go", || region.link.nodes().is_empty()).await;
    region.stop().await;
}

#[tokio::test]
async fn a_restarted_region_resets_the_link_and_goes_on() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let addr = region.addr();
    let node = RunningNode::start(&authority, 7, &shop, addr);
    accept(&shop, 0..500);
    settled(&shop, &registry, 500).await;
    region.stop().await;
    accept(&shop, 500..1_000);
    let region = RunningRegion::start(&authority, &registry, addr);
    settled(&shop, &registry, 1_000).await;
    check(&registry, 1, 1_000);
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_cut_link_recovers_without_loss() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let relay = Relay::start(any_port(), region.addr()).unwrap();
    let node = RunningNode::start(&authority, 7, &shop, relay.local_addr());
    accept(&shop, 0..500);
    settled(&shop, &registry, 500).await;
    relay.cut();
    accept(&shop, 500..700);
    node.until("redialling", |status| status.redials > 0).await;
    accept(&shop, 700..1_000);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.link.status().unacked, 500);
    relay.heal();
    settled(&shop, &registry, 1_000).await;
    check(&registry, 1, 1_000);
    node.stop().await;
    region.stop().await;
}

/// Two processes of a region over one store, the first behind a path that can be cut.
async fn moves_when_its_region_is_silent(pending: std::ops::Range<u32>) {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let first = RunningRegion::start(&authority, &registry, any_port());
    let second = RunningRegion::start(&authority, &registry, any_port());
    let relay = Relay::start(any_port(), first.addr()).unwrap();
    let regions = [relay.local_addr(), second.addr()];
    let node = RunningNode::start_with(authority.node(7), 7, &shop, &regions, SERVER_NAME);
    accept(&shop, 0..500);
    settled(&shop, &registry, 500).await;
    let is_at = |at: SocketAddr| move |status: &LinkStatus| status.address == Some(at.to_string());
    assert!(is_at(relay.local_addr())(&node.link.status()), "the first one is asked first");
    // What a process that was killed leaves: it does not refuse, it is silent.
    relay.cut();
    accept(&shop, pending.clone());
    node.until("at the second", is_at(second.addr())).await;
    let status = node.link.status();
    assert!(status.redials > 0, "it did not wait for the connection to time out: {status:?}");
    accept(&shop, pending.end..1_000);
    settled(&shop, &registry, 1_000).await;
    check(&registry, 1, 1_000);
    assert_eq!(second.link.nodes().len(), 1);
    node.stop().await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn operations_that_a_silent_region_does_not_acknowledge_go_to_the_next() {
    moves_when_its_region_is_silent(500..700).await;
}

/// Nothing is under way that could fail: the silence itself is noticed, so that the next call finds a region.
#[tokio::test]
async fn a_node_that_has_nothing_to_say_leaves_a_silent_region_too() {
    moves_when_its_region_is_silent(500..500).await;
}

#[tokio::test]
async fn a_region_that_says_good_bye_is_left_for_the_next() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let first = RunningRegion::start(&authority, &registry, any_port());
    let second = RunningRegion::start(&authority, &registry, any_port());
    let relay = Relay::start(any_port(), first.addr()).unwrap();
    let at = relay.local_addr();
    // The second one is dialled a moment after the first: on a busy machine it would win.
    let other = Relay::start(any_port(), second.addr()).unwrap();
    other.cut();
    let node = RunningNode::start_with(authority.node(7), 7, &shop, &[at, other.local_addr()], SERVER_NAME);
    accept(&shop, 0..500);
    settled(&shop, &registry, 500).await;
    assert_eq!(node.link.status().address, Some(at.to_string()));
    other.heal();
    // Its next version answers at the same address before the node looks for a region again: a node that came back to it would
    // be sent away by each version in turn.
    let next = RunningRegion::start(&authority, &registry, any_port());
    let stopping = tokio::spawn(first.stop());
    node.until("told to go", |status| !status.connected).await;
    drop(relay);
    let relay = loop {
        match Relay::start(at, next.addr()) {
            Ok(relay) => break relay,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    accept(&shop, 500..1_000);
    settled(&shop, &registry, 1_000).await;
    check(&registry, 1, 1_000);
    assert_eq!(node.link.status().address, Some(other.local_addr().to_string()));
    node.stop().await;
    stopping.await.unwrap();
    drop(relay);
    next.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_busy_store_is_asked_again() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    registry.set(|state| state.busy = 3);
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    accept(&shop, 0..700);
    settled(&shop, &registry, 700).await;
    check(&registry, 1, 700);
    assert_eq!(node.link.status().connects, 1, "the link holds meanwhile");
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_second_connection_of_a_node_ends_the_first() {
    let (authority, registry) = (Authority::new(), Registry::new());
    let (first, second) = (Shop::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let old = RunningNode::start(&authority, 7, &first, region.addr());
    old.until_up().await;
    let stopping = tokio::spawn(async move {
        let fault = old.fault().await;
        old.stop().await;
        fault
    });
    // A wiped disk: the same node without its epoch.
    let new = RunningNode::start(&authority, 7, &second, region.addr());
    new.until_up().await;
    let fault = stopping.await.unwrap();
    assert_eq!((fault.name(), fault.to_string().contains("superseded")), ("rejected", true), "{fault}");
    second.accept("after the wipe");
    eventually("applied in a new epoch", || {
        registry.look(|state| state.applied.iter().any(|(_, epoch, seq, _)| *epoch > 1 && *seq == 1))
    })
    .await;
    new.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn an_outbox_restored_from_a_backup_gets_a_new_epoch() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    accept(&shop, 0..100);
    settled(&shop, &registry, 100).await;
    node.stop().await;
    shop.set(|state| {
        state.last = 40;
        state.ops = [(40, b"again".to_vec())].into();
    });
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    settled(&shop, &registry, 101).await;
    registry.look(|state| assert_eq!(state.applied.last(), Some(&(7, 2, 1, b"again".to_vec()))));
    node.stop().await;
    region.stop().await;
}

/// The numbers join: only what they stand for shows that the disk is an old one.
#[tokio::test]
async fn an_outbox_from_a_backup_that_has_overtaken_the_mark_loses_nothing() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    accept(&shop, 0..60);
    settled(&shop, &registry, 60).await;
    let backup = shop.look(|state| (state.last, state.anchor));
    accept(&shop, 60..100);
    settled(&shop, &registry, 100).await;
    node.stop().await;
    // Put back as it was at 60; then 50 new operations, before anybody is asked: to 110, past the mark at 100.
    shop.set(|state| (state.last, state.anchor) = backup);
    for n in 0..50 {
        shop.accept(format!("after the restore {n}"));
    }
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    settled(&shop, &registry, 150).await;
    registry.look(|state| {
        let after: Vec<_> = state.applied[100..].iter().map(|(_, epoch, seq, _)| (*epoch, *seq)).collect();
        assert_eq!(after, (1..=50).map(|seq| (2, seq)).collect::<Vec<_>>(), "all of them, in a new epoch");
        assert_eq!(state.applied[100].3, b"after the restore 0");
    });
    assert_eq!(node.link.status().fault.map(|fault| fault.name()), Some("diverged"));
    // And the region knows the node again after the next restart.
    accept(&shop, 0..1);
    settled(&shop, &registry, 151).await;
    node.stop().await;
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    node.until_up().await;
    accept(&shop, 1..2);
    settled(&shop, &registry, 152).await;
    registry.look(|state| assert_eq!(state.nodes[&7].epoch, 2));
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn the_next_region_is_tried_when_one_does_not_answer() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let dead = std::net::UdpSocket::bind(any_port()).unwrap();
    let regions = [dead.local_addr().unwrap(), region.addr()];
    let node = RunningNode::start_with(authority.node(7), 7, &shop, &regions, SERVER_NAME);
    node.until_up().await;
    let status = node.link.status();
    assert!(status.fault.is_none(), "nobody waited for the dead one: {status:?}");
    assert_eq!(status.address, Some(region.addr().to_string()));
    node.stop().await;
    region.stop().await;
}

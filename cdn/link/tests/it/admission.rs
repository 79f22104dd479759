//! Who gets in: handshakes have a limit of their own, and connections another.

use souk_link::{LinkFault, RegionLinkConfig, start_region};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::world::{Authority, REGION, Registry, RunningNode, Shop, any_port};

#[tokio::test]
async fn strangers_in_handshake_shut_no_node_out_and_capacity_is_counted_in_nodes() {
    let authority = Authority::new();
    let stop = CancellationToken::new();
    let mut config = RegionLinkConfig::new(any_port(), REGION, authority.region(), vec![9; 32]);
    (config.handshakes_max, config.connections_max) = (4, 1);
    let (region, task) = start_region(config, Registry::new(), stop.clone()).unwrap();

    // Peers that say a first word and then nothing: what a flood of forged addresses looks like.
    let flood = UdpSocket::bind(any_port()).await.unwrap();
    let talker = RunningNode::start(&authority, 9, &Shop::new(), flood.local_addr().unwrap());
    let mut datagram = [0; 2_048];
    let (length, _) = flood.recv_from(&mut datagram).await.unwrap();
    let mut strangers = Vec::new();
    for _ in 0..10 {
        let stranger = UdpSocket::bind(any_port()).await.unwrap();
        stranger.send_to(&datagram[..length], region.local_addr()).await.unwrap();
        strangers.push(stranger);
    }

    let node = RunningNode::start(&authority, 7, &Shop::new(), region.local_addr());
    node.until_up().await;
    let other = RunningNode::start(&authority, 8, &Shop::new(), region.local_addr());
    let fault = other.fault().await;
    assert!(matches!(&fault, LinkFault::Rejected { reason, .. } if reason.name() == "full"), "{fault:?}");
    assert!(node.link.status().connected);

    for node in [talker, other, node] {
        node.stop().await;
    }
    stop.cancel();
    task.await.unwrap();
}

/// A fleet whose region was away: all come at once, are greeted four a second, and nobody has to knock for long.
#[tokio::test]
async fn a_herd_that_comes_back_is_let_in_one_after_the_other() {
    const FLEET: u32 = 16;
    let (authority, registry) = (Authority::new(), Registry::new());
    let stop = CancellationToken::new();
    let mut config = RegionLinkConfig::new(any_port(), REGION, authority.region(), vec![9; 32]);
    config.greetings_per_second = 4;
    let (region, task) = start_region(config, registry.clone(), stop.clone()).unwrap();
    let nodes: Vec<_> = (1..=FLEET)
        .map(|node| RunningNode::start(&authority, node, &Shop::new(), region.local_addr()))
        .collect();
    let mut told_to_come_back = 0;
    for node in &nodes {
        node.until_up().await;
        let fault = node.link.status().fault;
        told_to_come_back += u32::from(fault.is_some_and(|fault| fault.to_string().contains("come back in")));
    }
    assert!(told_to_come_back > 0, "sixteen nodes had no need to wait for each other");
    assert_eq!(registry.look(|state| state.hellos), FLEET, "the store is asked once for each node");
    for node in nodes {
        node.stop().await;
    }
    stop.cancel();
    task.await.unwrap();
}

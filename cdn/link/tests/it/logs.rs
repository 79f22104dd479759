//! The way down: tails and snapshots reach the node, and its cursors only grow.

use souk_link::{Log, relay::Relay};

use crate::world::{Authority, Registry, RunningNode, RunningRegion, Shop, any_port, eventually};

fn rows(shop: &Shop, log: Log) -> Vec<Vec<u8>> {
    shop.look(|state| state.rows.get(&log).cloned().unwrap_or_default())
}

fn published(registry: &Registry, log: Log) -> Vec<Vec<u8>> {
    registry.look(|state| state.logs[&log].iter().map(|record| record.body.clone()).collect())
}

#[tokio::test]
async fn changes_of_all_logs_reach_the_node_in_order() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    for n in 0..2_000 {
        registry.publish(Log::Catalog, vec![n as u8; 1_000]);
    }
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    node.until_up().await;
    for n in 0..100 {
        for log in Log::ALL {
            registry.publish(log, format!("{log} {n}"));
        }
    }
    for log in Log::ALL {
        eventually(log.name(), || rows(&shop, log) == published(&registry, log)).await;
    }
    eventually("the region knows the cursors", || {
        registry.look(|state| state.cursors.get(&(7, Log::Catalog)) == Some(&2_100))
    })
    .await;
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_cursor_behind_the_kept_tail_gets_a_snapshot_in_parts() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    // About 3 MB: a dozen parts, more than the window of tails.
    for n in 0..300_u32 {
        registry.publish(Log::Catalog, vec![n as u8; 10_000]);
    }
    registry.set(|state| {
        state.kept_from.insert(Log::Catalog, 290);
    });
    shop.set(|state| {
        state.rows.insert(Log::Catalog, vec![b"of old".to_vec()]);
        state.cursors.insert(Log::Catalog, 5);
    });
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    eventually("the snapshot is in", || rows(&shop, Log::Catalog) == published(&registry, Log::Catalog))
        .await;
    registry.publish(Log::Catalog, "and a change after it");
    eventually("and the tail", || rows(&shop, Log::Catalog) == published(&registry, Log::Catalog)).await;
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_was_interrupted_goes_on_where_it_stopped() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    for n in 0..300_u32 {
        registry.publish(Log::Catalog, vec![n as u8; 10_000]);
    }
    registry.set(|state| {
        state.kept_from.insert(Log::Catalog, 290);
        state.pages_max = Some(4);
    });
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    eventually("four parts are staged", || {
        shop.look(|state| state.stagings.get(&Log::Catalog).is_some_and(|staging| staging.parts == 4))
    })
    .await;
    // Both go down, and only the disks remain.
    node.stop().await;
    region.stop().await;
    registry.set(|state| state.pages_max = None);
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    eventually("the snapshot is in", || rows(&shop, Log::Catalog) == published(&registry, Log::Catalog))
        .await;
    registry.publish(Log::Catalog, "and a change after it");
    eventually("and the tail", || rows(&shop, Log::Catalog) == published(&registry, Log::Catalog)).await;
    registry.look(|state| {
        assert!(
            state.pages.len() > 8 && state.pages.is_sorted_by(|a, b| a < b),
            "once each: {:?}",
            state.pages
        );
    });
    assert!(shop.look(|state| state.stagings.is_empty()));
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_region_restored_from_a_backup_turns_the_node_back() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    registry.publish(Log::Price, "a price");
    shop.set(|state| {
        state.rows.insert(Log::Price, vec![b"a price that never was".to_vec()]);
        state.cursors.insert(Log::Price, 900);
    });
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    eventually("turned back", || rows(&shop, Log::Price) == published(&registry, Log::Price)).await;
    assert_eq!(shop.look(|state| state.cursors[&Log::Price]), 1);
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_node_of_another_history_is_turned_back_though_its_cursor_would_fit() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    for n in 0..3 {
        registry.publish(Log::Price, format!("price {n}"));
    }
    shop.set(|state| {
        for (log, version) in [(Log::Price, 3), (Log::Stock, 0)] {
            state.rows.insert(log, vec![b"a row that never was".to_vec()]);
            state.cursors.insert(log, version);
            state.histories.insert(log, 77);
        }
    });
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    eventually("turned back", || rows(&shop, Log::Price) == published(&registry, Log::Price)).await;
    assert_eq!(shop.look(|state| (state.cursors[&Log::Price], state.histories[&Log::Price])), (3, 1));
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn logs_go_on_after_a_cut() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let relay = Relay::start(any_port(), region.addr()).unwrap();
    let node = RunningNode::start(&authority, 7, &shop, relay.local_addr());
    node.until_up().await;
    for n in 0..200 {
        registry.publish(Log::Price, format!("price {n}"));
        if n == 50 {
            relay.cut();
            // Unacknowledged work is what makes a node redial.
            shop.accept("during the cut");
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        }
        if n == 150 {
            relay.heal();
        }
    }
    eventually("caught up", || rows(&shop, Log::Price) == published(&registry, Log::Price)).await;
    node.stop().await;
    region.stop().await;
}

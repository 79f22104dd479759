//! Both sides check who the other is, and say by name what is wrong.

use souk_link::{Identity, LinkFault, StartError, start_node};
use tokio_util::sync::CancellationToken;

use crate::world::{
    Authority, REGION, Registry, RunningNode, RunningRegion, SERVER_NAME, Shop, any_port, node_config,
};

#[tokio::test]
async fn a_region_of_another_authority_is_refused() {
    let (ours, theirs, registry, shop) = (Authority::new(), Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&theirs, &registry, any_port());
    let node = RunningNode::start(&ours, 7, &shop, region.addr());
    assert_eq!(node.fault().await, LinkFault::WrongAuthority);
    node.stop().await;
    region.stop().await;
    assert_eq!(registry.look(|state| state.hellos), 0);
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused() {
    let (ours, theirs, registry, shop) = (Authority::new(), Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&ours, &registry, any_port());
    // It trusts our region, and has its own certificate from elsewhere.
    let mut tls = theirs.node(7);
    tls.ca = ours.node(7).ca;
    let node = RunningNode::start_with(tls, 7, &shop, &[region.addr()], SERVER_NAME);
    let fault = node.fault().await;
    assert_eq!(fault.name(), "certificate_refused", "{fault}");
    assert!(fault.to_string().contains("certificate authority"), "{fault}");
    node.stop().await;
    region.stop().await;
    assert_eq!(registry.look(|state| state.hellos), 0);
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let old = authority.issue_until(&format!("spiffe://souk/{REGION}/region"), SERVER_NAME, 2021);
    let region = RunningRegion::start_with(old, &registry, any_port());
    let node = RunningNode::start(&authority, 7, &shop, region.addr());
    assert_eq!(node.fault().await, LinkFault::Expired);
    node.stop().await;
    region.stop().await;

    let region = RunningRegion::start(&authority, &registry, any_port());
    let old = authority.issue_until(&format!("spiffe://souk/{REGION}/edge/7"), "node.souk.test", 2021);
    let node = RunningNode::start_with(old, 7, &shop, &[region.addr()], SERVER_NAME);
    let fault = node.fault().await;
    assert_eq!(fault.name(), "certificate_refused", "{fault}");
    assert!(fault.to_string().contains("validity"), "{fault}");
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_node_that_plays_region_is_refused() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    // A region cannot even be started with it, so an impostor of our authority is one of another region.
    let impostor = authority.issue("spiffe://souk/us-test/region", SERVER_NAME);
    let stop = CancellationToken::new();
    let config = souk_link::RegionLinkConfig::new(any_port(), "us-test", impostor, vec![9; 32]);
    let (link, task) = souk_link::start_region(config, registry, stop.clone()).unwrap();
    let node = RunningNode::start(&authority, 7, &shop, link.local_addr());
    let fault = node.fault().await;
    let expected = LinkFault::WrongIdentity {
        found: "spiffe://souk/us-test/region".to_owned(),
        expected: format!("spiffe://souk/{REGION}/region"),
    };
    assert_eq!(fault, expected);
    node.stop().await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_node_of_another_region_is_refused() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let tls = authority.region();
    let region = RunningRegion::start_with(tls, &registry, any_port());
    // A foreign node that knows our region's name and would shake hands: only its certificate betrays it.
    let foreign = authority.issue("spiffe://souk/us-test/edge/7", "node.souk.test");
    let mut config = node_config(foreign, 7, &[region.addr()], SERVER_NAME);
    config.region = "us-test".to_owned();
    let stop = CancellationToken::new();
    let (link, task) = start_node(config, shop, stop.clone()).unwrap();
    let mut watch = link.watch();
    watch.wait_for(|status| status.fault.is_some()).await.unwrap();
    let fault = link.status().fault.unwrap();
    assert_eq!(fault.name(), "wrong_identity", "{fault}");
    stop.cancel();
    task.await.unwrap();
    region.stop().await;
    assert_eq!(registry.look(|state| state.hellos), 0);
}

#[tokio::test]
async fn a_region_dialled_by_another_name_is_refused() {
    let (authority, registry, shop) = (Authority::new(), Registry::new(), Shop::new());
    let region = RunningRegion::start(&authority, &registry, any_port());
    let node = RunningNode::start_with(authority.node(7), 7, &shop, &[region.addr()], "other.souk.test");
    let fault = node.fault().await;
    assert_eq!(fault.name(), "wrong_identity", "{fault}");
    assert!(fault.to_string().contains("other.souk.test"), "{fault}");
    node.stop().await;
    region.stop().await;
}

#[tokio::test]
async fn a_certificate_for_somebody_else_does_not_even_start() {
    let (authority, shop) = (Authority::new(), Shop::new());
    let config = node_config(authority.node(8), 7, &[any_port()], SERVER_NAME);
    let refused = start_node(config, shop.clone(), CancellationToken::new());
    assert!(matches!(refused, Err(StartError::WrongIdentity { .. })));
    let mut tls = authority.node(7);
    tls.key = souk_link::Pem::Bytes(b"garbage".to_vec());
    let refused = start_node(node_config(tls, 7, &[any_port()], SERVER_NAME), shop, CancellationToken::new());
    assert_eq!(refused.map(|_| ()).unwrap_err().to_string(), "private key (in memory): no items found");
    let mut tls = authority.node(7);
    let own = Identity::Edge { region: REGION.to_owned(), node: 7 };
    tls.check(&own).unwrap();
    tls.key = authority.node(7).key;
    let refused = tls.check(&own).unwrap_err().to_string();
    assert_eq!(refused, "private key (in memory): it is not the key of in memory");
}

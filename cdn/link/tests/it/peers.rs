//! The two regions of a pair: who may be one, and what becomes of whoever is not.

use souk_link::{
    LinkFault, PeerConnection, PeerDialer, PeerError, RegionAddress, RegionLink, RegionLinkConfig,
    StartError, TlsFiles, start_region,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::world::{Authority, PATIENCE, REGION, Registry, RunningNode, SERVER_NAME, Shop, any_port};

/// A region of a pair, and whoever has dialled it as its other half.
struct Half {
    link: RegionLink,
    peers: mpsc::Receiver<PeerConnection>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Half {
    fn start(authority: &Authority, set: impl FnOnce(&mut RegionLinkConfig)) -> Self {
        let (to, peers) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let mut config = RegionLinkConfig::new(any_port(), REGION, authority.region(), vec![9; 32]);
        config.peers = Some(to);
        set(&mut config);
        let (link, task) = start_region(config, Registry::new(), stop.clone()).unwrap();
        Self { link, peers, stop, task }
    }

    fn dialer(&self, name: &str, tls: &TlsFiles) -> Result<PeerDialer, StartError> {
        let addr = self.link.local_addr().to_string();
        PeerDialer::new(name, vec![RegionAddress { addr, server_name: SERVER_NAME.to_owned() }], tls)
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("a region ends").unwrap();
    }
}

/// Why a connection that was made is ended by the other side.
async fn ended(peer: &PeerConnection) -> String {
    timeout(PATIENCE, peer.closed()).await.expect("it is ended");
    PeerDialer::why_closed(peer).expect("it has ended").to_string()
}

#[tokio::test]
async fn a_region_of_the_same_name_is_the_other_half_and_nobody_else() {
    let authority = Authority::new();
    let mut half = Half::start(&authority, |_| {});
    let peer = half.dialer(REGION, &authority.region()).unwrap().dial().await.unwrap();
    let mut stream = peer.open().await.unwrap();
    stream.send(b"who is there").await.unwrap();
    let theirs = timeout(PATIENCE, half.peers.recv()).await.unwrap().expect("it was handed over");
    let mut theirs = theirs.accept().await.unwrap();
    assert_eq!(theirs.receive().await.unwrap(), b"who is there");

    // A node's certificate, or another region's, makes no dialler of this name.
    let of_node = half.dialer(REGION, &authority.node(7));
    assert!(matches!(of_node, Err(StartError::WrongIdentity { .. })));
    let foreign = authority.issue("spiffe://souk/us-test/region", SERVER_NAME);
    assert!(matches!(half.dialer(REGION, &foreign), Err(StartError::WrongIdentity { .. })));
    // Of another name, it does not take ours for its other half, nor do we take it.
    let refused = half.dialer("us-test", &foreign).unwrap().dial().await.unwrap_err();
    assert!(matches!(refused, LinkFault::WrongIdentity { .. }), "{refused}");
    // Of another authority, neither knows the other.
    let other = Authority::new();
    let refused = half.dialer(REGION, &other.region()).unwrap().dial().await.unwrap_err();
    assert_eq!(refused, LinkFault::WrongAuthority);
    assert!(half.peers.try_recv().is_err(), "nobody else was handed over");
    half.stop().await;
}

#[tokio::test]
async fn a_region_that_is_alone_says_that_it_has_no_other_half() {
    let authority = Authority::new();
    let half = Half::start(&authority, |config| config.peers = None);
    let peer = half.dialer(REGION, &authority.region()).unwrap().dial().await.unwrap();
    let why = ended(&peer).await;
    assert!(why.contains("not one of a pair"), "{why}");
    half.stop().await;
}

#[tokio::test]
async fn a_region_that_is_not_home_takes_its_other_half_and_sends_nodes_away() {
    let (authority, shop) = (Authority::new(), Shop::new());
    let mut half = Half::start(&authority, |config| config.closed = Some("the home is elsewhere".to_owned()));
    let node = RunningNode::start(&authority, 7, &shop, half.link.local_addr());
    let fault = node.fault().await;
    assert!(fault.to_string().contains("the home is elsewhere"), "{fault}");
    let peer = half.dialer(REGION, &authority.region()).unwrap().dial().await.unwrap();
    assert!(timeout(PATIENCE, half.peers.recv()).await.unwrap().is_some());
    drop(peer);
    node.stop().await;
    half.stop().await;
}

#[tokio::test]
async fn what_is_no_frame_ends_the_stream_and_nothing_else() {
    let (authority, shop) = (Authority::new(), Shop::new());
    let mut half = Half::start(&authority, |_| {});
    // Bytes of anybody at the port.
    let anybody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [1, 40, 1_200] {
        anybody.send_to(&vec![0xa5; length], half.link.local_addr()).unwrap();
    }
    // A node that begins a stream between regions is a node that breaks the protocol: it is never handed over.
    let node = RunningNode::start(&authority, 7, &shop, half.link.local_addr());
    node.until_up().await;
    // The other half itself, with a frame that is longer than any may be.
    let peer = half.dialer(REGION, &authority.region()).unwrap().dial().await.unwrap();
    let mut stream = peer.open().await.unwrap();
    let too_long = vec![0; souk_link::PEER_FRAME_BYTES_MAX + 1];
    assert!(matches!(stream.send(&too_long).await, Err(PeerError::Protocol(_))));
    drop(stream);
    let theirs = timeout(PATIENCE, half.peers.recv()).await.unwrap().expect("it was handed over");
    let cut = timeout(PATIENCE, async { theirs.accept().await?.receive().await }).await.expect("it ends");
    assert!(cut.is_err(), "a stream without a frame");
    // The connection goes on.
    let mut stream = peer.open().await.unwrap();
    stream.send(b"and now").await.unwrap();
    assert_eq!(theirs.accept().await.unwrap().receive().await.unwrap(), b"and now");
    node.stop().await;
    half.stop().await;
}

//! What a home writes down: of a standby that has everything and does not say so, for it may have died over it; and of a later home.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use souk_link::{Pem, RegionAddress, RegionLinkConfig, TlsFiles, start_region};

use super::*;
use crate::pair::standby::NoNodes;
use crate::store::StoreSettings;
use crate::store::audit::Deed;
use crate::store::backup::{Door, file_in};
use crate::store::pair::sink::Sink;
use crate::store::tests::home::Home;
use crate::store::tests::{actor, furnish};

const REGION: &str = "eu";
const SERVER_NAME: &str = "region.test";
/// For what comes within a second or two, on a busy machine.
pub(in crate::pair) const COMES_WITHIN: Duration = Duration::from_secs(30);

fn tls() -> TlsFiles {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let mut leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
    let uri = format!("spiffe://souk/{REGION}/region");
    leaf.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    let cert = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    let pem = |text: String| Pem::Bytes(text.into_bytes());
    TlsFiles { ca: pem(ca_cert.pem()), cert: pem(cert.pem()), key: pem(key.serialize_pem()) }
}

pub(in crate::pair) fn followed(home: &Home) -> Store {
    home.open_with(StoreSettings { is_followed: true, ..StoreSettings::for_tests(1_000) })
}

/// What was a standby, and is the home in term 2.
async fn taken_over() -> Home {
    let (former, home) = (Home::sqlite(), Home::sqlite());
    let store = furnish(followed(&former)).await;
    let Home::File(dir) = &home else { unreachable!("a file's") };
    let door = Door::sqlite(file_in(dir.path()));
    door.follow(false).unwrap().unwrap();
    let (mut sink, mut source) = (Sink::of_file(dir.path()).unwrap(), store.source().unwrap());
    source.send(None, 1, 7, &mut |frame| sink.take(frame).is_ok()).unwrap();
    drop(sink);
    door.take_over(&serde_json::json!({}), false).unwrap().unwrap();
    store.close();
    home
}

/// A home that is being served from, and a standby that only listens.
pub(in crate::pair) struct Line {
    pub(in crate::pair) end: Arc<HomeEnd>,
    /// How far a standby is that holds everything.
    head: u64,
    store: Store,
    serving: tokio::task::JoinHandle<()>,
    pub(in crate::pair) standby: PeerConnection,
    stream: PeerStream,
    stop: CancellationToken,
    dirs: (Home, tempfile::TempDir),
}

impl Line {
    /// `has_all`: the standby says that it holds everything.
    pub(in crate::pair) async fn of(home: Home, term: Term, has_all: bool) -> Self {
        Self::with(home, term, has_all, FRAME_TAKEN_MAX).await
    }

    async fn with(home: Home, term: Term, has_all: bool, frame_taken_max: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = followed(&home);
        let is_alone = store.is_alone().await.unwrap();
        assert_eq!(is_alone, term > FIRST_TERM);
        let (tls, stop) = (tls(), CancellationToken::new());
        let (to, mut peers) = mpsc::channel(PEERS_WAITING_MAX);
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut config = RegionLinkConfig::new(listen, REGION, tls.clone(), vec![9; 32]);
        config.peers = Some(to);
        let (link, _task) = start_region(config, Arc::new(NoNodes::new()), stop.clone()).unwrap();
        let addr = link.local_addr().to_string();
        let address = RegionAddress { addr, server_name: SERVER_NAME.to_owned() };
        let dialer = PeerDialer::new(REGION, vec![address], &tls).unwrap();
        let standby = dialer.dial().await.unwrap();
        let peer = timeout(COMES_WITHIN, peers.recv()).await.unwrap().expect("it was handed over");
        let stream = store.change_stream().await.unwrap();
        let end = Arc::new(HomeEnd {
            store: store.clone(),
            blobs: Arc::new(Blobs::open(dir.path(), 1 << 20, false).unwrap()),
            held: Arc::new(Held::new(AckLevel::Two, is_alone)),
            fence: Fence::new(),
            rumours: Arc::new(Rumours::new(term, true)),
            term,
            seal_key: "seal".to_owned(),
            stream,
            dialer,
            follower: Mutex::new(None),
            frame_taken_max,
        });
        let serves = Arc::clone(&end);
        let serving = tokio::spawn(async move { serves.serve(&peer).await });
        let head = store.change_head().await.unwrap();
        let all = Holds { stream: ByteArray::from(stream.expect("it is followed")), seq: head };
        let asks = Greeting {
            protocol: PROTOCOL,
            role: "standby".to_owned(),
            term,
            software: String::new(),
            holds: has_all.then_some(all),
            seal_key: None,
            follows: true,
            stream: None,
        };
        let (said, stream) = greet(&standby, &asks).await.unwrap();
        assert_eq!((said.role.as_str(), said.term), ("home", term));
        Self { end, head, store, serving, standby, stream, stop, dirs: (home, dir) }
    }

    /// Where the home's files are.
    pub(in crate::pair) fn dir(&self) -> &std::path::Path {
        self.dirs.1.path()
    }

    async fn next(&mut self) -> Down {
        let frame = timeout(COMES_WITHIN, self.stream.receive()).await.expect("it comes").unwrap();
        decode(&frame).unwrap()
    }

    async fn is_alone(&self) -> bool {
        let in_memory = self.end.held.is_alone();
        assert_eq!(self.store.is_alone().await.unwrap(), in_memory);
        in_memory
    }

    pub(in crate::pair) async fn end(self) {
        self.standby.close("that was all");
        timeout(COMES_WITHIN, self.serving).await.expect("it ends").unwrap();
        self.stop.cancel();
        self.store.close();
    }
}

#[tokio::test]
async fn a_home_counts_alone_no_longer_than_until_it_hands_out_the_end_of_everything() {
    let mut line = Line::of(taken_over().await, 2, false).await;
    assert!(matches!(line.next().await, Down::Begin { whole: true, term: 2, .. }));
    while !matches!(line.next().await, Down::End { .. }) {}
    // From here on the standby can take over.
    assert!(!line.is_alone().await);
    assert_eq!(line.end.held.level(), AckLevel::Two);
    line.end().await;
}

#[tokio::test]
async fn a_home_that_is_started_again_is_not_alone_beside_a_standby_that_lacks_nothing() {
    let mut line = Line::of(taken_over().await, 2, true).await;
    assert!(matches!(line.next().await, Down::Idle { .. }), "there is nothing to be sent");
    assert!(!line.is_alone().await);
    line.end().await;
}

/// Whichever process the standby followed before may have died between the standby's word and the note.
#[tokio::test]
async fn of_several_processes_the_others_learn_what_a_standby_that_lacks_nothing_holds() {
    let Some(home) = Home::postgres() else { return };
    furnish(followed(&home)).await.close();
    let mut line = Line::of(home, FIRST_TERM, true).await;
    assert!(matches!(line.next().await, Down::Idle { .. }), "there is nothing to be sent");
    assert_eq!(line.store.held_by_standby().await.unwrap(), line.head);
    line.end().await;
}

/// A text that no packing makes much shorter.
fn noise(seed: usize, length: usize) -> String {
    let block = |at: usize| hex::encode(Digest::of(&[seed.to_le_bytes(), at.to_le_bytes()].concat()).0);
    (0..length / 64).map(block).collect()
}

/// Its connection lives, and nobody reads from it, or answers: of what fits into a stream's window, and of more.
#[tokio::test]
async fn a_standby_that_takes_in_nothing_is_let_go_and_shows() {
    for rows in [0, 12] {
        let home = Home::sqlite();
        let store = furnish(followed(&home)).await;
        for row in 0..rows {
            let detail = serde_json::Value::String(noise(row, 400 << 10));
            store.record(actor(), Deed { action: "test", subject: String::new(), detail }).await.unwrap();
        }
        store.close();
        drop(store);
        let line = Line::with(home, FIRST_TERM, false, Duration::from_millis(200)).await;
        timeout(COMES_WITHIN, line.standby.closed()).await.expect("it is let go");
        let held = &line.end.held;
        assert_eq!((held.known().is_connected, held.trouble()), (false, Some(HANGS)));
        // It comes again, and is what it was until it has taken something in.
        held.set_trouble(None);
        held.connected(true);
        assert_eq!(held.trouble(), Some(HANGS));
        held.held(line.head, 1, &[], true, Instant::now());
        assert_eq!(held.trouble(), None);
        line.end().await;
    }
}

#[tokio::test]
async fn a_fence_that_cannot_write_ends_with_its_region_and_ends_no_home() {
    let home = Home::sqlite();
    let store = followed(&home);
    let Home::File(dir) = home else { unreachable!("a file's") };
    // Whoever opens the file finds none.
    dir.close().unwrap();
    let (fence, region) = (Fence::new(), CancellationToken::new());
    let fenced = tokio::spawn(fence.clone().run(store.clone(), FIRST_TERM, region.clone()));
    fence.met(2);
    tokio::time::sleep(2 * FENCE_PAUSE).await;
    assert!(!region.is_cancelled() && !fenced.is_finished(), "what is not written down is no word");
    region.cancel();
    timeout(COMES_WITHIN, fenced).await.expect("it ends").unwrap();
    store.close();
}

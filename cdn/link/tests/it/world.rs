//! A region and a node with stores in memory, and the means to break what is between them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use souk_link::{
    Batch, BoxFuture, Call, Cursor, EpochNo, Fold, Heads, Hello, LinkFault, LinkStatus, Log, Mark, Node,
    NodeLink, NodeLinkConfig, NodeState, NodeStore, OutboxPosition, Part, Pem, Record, Refusal,
    RegionAddress, RegionLink, RegionLinkConfig, RegionStore, Reply, Seq, SnapshotPage, Staging, StoreError,
    Tail, TailRead, TlsFiles, start_node, start_region,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Generous: a loaded machine with two cores runs everything at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const REGION: &str = "eu-test";
pub(crate) const SERVER_NAME: &str = "region.souk.test";

/// A certificate authority of a test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Souk test authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate with this URI, valid from 2020 to `until_year`.
    pub(crate) fn issue_until(&self, uri: &str, server_name: &str, until_year: i32) -> TlsFiles {
        let mut params = CertificateParams::new(vec![server_name.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        TlsFiles {
            ca: Pem::Bytes(self.pem.clone()),
            cert: Pem::Bytes(cert.pem().into_bytes()),
            key: Pem::Bytes(key.serialize_pem().into_bytes()),
        }
    }

    pub(crate) fn issue(&self, uri: &str, server_name: &str) -> TlsFiles {
        self.issue_until(uri, server_name, 2090)
    }

    pub(crate) fn region(&self) -> TlsFiles {
        self.issue(&format!("spiffe://souk/{REGION}/region"), SERVER_NAME)
    }

    pub(crate) fn node(&self, node: Node) -> TlsFiles {
        self.issue(&format!("spiffe://souk/{REGION}/edge/{node}"), "node.souk.test")
    }
}

/// A node's store: what survives its process in real life lives in this struct.
pub(crate) struct Shop {
    inner: Mutex<ShopState>,
    changed: watch::Sender<Seq>,
}

#[derive(Default)]
pub(crate) struct ShopState {
    pub(crate) epoch: Option<EpochNo>,
    pub(crate) ops: BTreeMap<Seq, Vec<u8>>,
    pub(crate) last: Seq,
    pub(crate) anchor: Fold,
    pub(crate) cursors: BTreeMap<Log, u64>,
    pub(crate) histories: BTreeMap<Log, u32>,
    pub(crate) rows: BTreeMap<Log, Vec<Vec<u8>>>,
    pub(crate) staged: BTreeMap<Log, Vec<Vec<u8>>>,
    pub(crate) stagings: BTreeMap<Log, Staging>,
}

impl Shop {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: watch::channel(0).0 })
    }

    /// Accepts an operation, as the edge does after its fsync.
    pub(crate) fn accept(&self, op: impl Into<Vec<u8>>) -> Seq {
        let mut state = self.inner.lock().unwrap();
        state.last += 1;
        let last = state.last;
        state.ops.insert(last, op.into());
        drop(state);
        self.changed.send_replace(last);
        last
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&ShopState) -> T) -> T {
        look(&self.inner.lock().unwrap())
    }

    pub(crate) fn set(&self, set: impl FnOnce(&mut ShopState)) {
        set(&mut self.inner.lock().unwrap());
    }
}

impl NodeStore for Shop {
    fn outbox_position(&self) -> OutboxPosition {
        let state = self.inner.lock().unwrap();
        let first = state.ops.first_key_value().map_or(state.last + 1, |(seq, _)| *seq);
        let (anchor, acked) = (Some(state.anchor), Mark { hwm: first - 1, fold: Some(state.anchor) });
        OutboxPosition { epoch: state.epoch, first, last: state.last, anchor, acked }
    }

    fn outbox_changed(&self) -> watch::Receiver<Seq> {
        self.changed.subscribe()
    }

    fn read(&self, from: Seq, ops_max: usize, bytes_max: usize) -> Result<Vec<(Seq, Vec<u8>)>, StoreError> {
        let state = self.inner.lock().unwrap();
        let mut bytes = 0;
        let mut read = Vec::new();
        for (seq, op) in state.ops.range(from..).take(ops_max) {
            bytes += op.len();
            if bytes > bytes_max && !read.is_empty() {
                break;
            }
            read.push((*seq, op.clone()));
        }
        Ok(read)
    }

    fn trim(&self, epoch: EpochNo, to: Seq, fold: Option<Fold>) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut state = self.inner.lock().unwrap();
        if state.epoch == Some(epoch) && state.ops.first_key_value().is_some_and(|(first, _)| *first <= to) {
            state.ops = state.ops.split_off(&(to + 1));
            state.anchor = fold.expect("the region folds");
        }
        Box::pin(async { Ok(()) })
    }

    fn go_back(&self, _: EpochNo, _: Mark) -> BoxFuture<'_, Result<(), StoreError>> {
        panic!("it keeps nothing that is acknowledged")
    }

    fn begin_epoch(&self, epoch: EpochNo) -> BoxFuture<'_, Result<OutboxPosition, StoreError>> {
        {
            let mut state = self.inner.lock().unwrap();
            if state.epoch != Some(epoch) {
                state.epoch = Some(epoch);
                state.ops = (1..).zip(std::mem::take(&mut state.ops).into_values()).collect();
                state.last = state.ops.len() as u64;
                state.anchor = Fold::EMPTY;
            }
        }
        Box::pin(async { Ok(self.outbox_position()) })
    }

    fn cursors(&self) -> Vec<Cursor> {
        self.look(|state| {
            let region_epoch = |log| state.histories.get(log).copied();
            let cursors = state.cursors.iter();
            cursors
                .map(|(log, version)| Cursor {
                    log: *log,
                    version: *version,
                    region_epoch: region_epoch(log),
                })
                .collect()
        })
    }

    fn stagings(&self) -> Vec<Staging> {
        self.look(|state| state.stagings.values().cloned().collect())
    }

    fn apply(&self, tail: Tail, region_epoch: u32) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut guard = self.inner.lock().unwrap();
        let state = &mut *guard;
        let bodies = tail.records.into_iter().map(|record| record.body);
        match tail.part {
            Part::Changes => {
                state.histories.insert(tail.log, region_epoch);
                let cursor = state.cursors.entry(tail.log).or_default();
                assert_eq!(*cursor, tail.from, "a tail must continue the cursor");
                *cursor = tail.to;
                state.rows.entry(tail.log).or_default().extend(bodies);
            }
            Part::Snapshot { index, last } => {
                let staged = state.staged.entry(tail.log).or_default();
                if index == 0 {
                    staged.clear();
                }
                staged.extend(bodies);
                state.stagings.remove(&tail.log);
                if let Some(next) = tail.next {
                    let (log, version, parts) = (tail.log, tail.to, index + 1);
                    state.stagings.insert(log, Staging { log, version, parts, region_epoch, next });
                }
                if last {
                    let whole = std::mem::take(staged);
                    state.histories.insert(tail.log, region_epoch);
                    state.rows.insert(tail.log, whole);
                    state.cursors.insert(tail.log, tail.to);
                }
            }
        }
        Box::pin(async { Ok(()) })
    }
}

/// A region's store.
pub(crate) struct Registry {
    inner: Mutex<RegistryState>,
    heads: watch::Sender<Heads>,
}

#[derive(Default)]
pub(crate) struct RegistryState {
    pub(crate) nodes: BTreeMap<Node, NodeState>,
    /// Everything that was applied, in order.
    pub(crate) applied: Vec<(Node, EpochNo, Seq, Vec<u8>)>,
    pub(crate) logs: BTreeMap<Log, Vec<Record>>,
    /// Changes up to here are not kept.
    pub(crate) kept_from: BTreeMap<Log, u64>,
    pub(crate) busy: u32,
    /// Where each page of a snapshot that was read began, and after how many pages the disk fails.
    pub(crate) pages: Vec<usize>,
    pub(crate) pages_max: Option<usize>,
    pub(crate) hellos: u32,
    pub(crate) cursors: BTreeMap<(Node, Log), u64>,
}

impl Registry {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), heads: watch::channel(Heads::default()).0 })
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&RegistryState) -> T) -> T {
        look(&self.inner.lock().unwrap())
    }

    pub(crate) fn set(&self, set: impl FnOnce(&mut RegistryState)) {
        set(&mut self.inner.lock().unwrap());
    }

    pub(crate) fn publish(&self, log: Log, body: impl Into<Vec<u8>>) -> u64 {
        let mut state = self.inner.lock().unwrap();
        let records = state.logs.entry(log).or_default();
        let version = records.len() as u64 + 1;
        records.push(Record { version, body: body.into() });
        drop(state);
        self.heads.send_modify(|heads| heads.set(log, version));
        version
    }
}

impl RegionStore for Registry {
    fn hello(&self, node: Node, _hello: Hello) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>> {
        let mut state = self.inner.lock().unwrap();
        state.hellos += 1;
        let kept = state.nodes.get(&node).copied();
        Box::pin(async move { Ok(kept) })
    }

    fn begin_epoch(&self, node: Node, epoch: EpochNo) -> BoxFuture<'_, Result<(), StoreError>> {
        self.set(|state| {
            let old = state.nodes.insert(node, NodeState { epoch, hwm: 0, fold: Some(Fold::EMPTY) });
            assert!(old.is_none_or(|old| old.epoch < epoch), "an epoch never comes again");
        });
        Box::pin(async { Ok(()) })
    }

    fn apply(&self, node: Node, batch: Batch) -> BoxFuture<'_, Result<Mark, StoreError>> {
        Box::pin(async move {
            // A commit takes a moment, so that calls for one node would overlap if they could.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut guard = self.inner.lock().unwrap();
            let state = &mut *guard;
            if state.busy > 0 {
                state.busy -= 1;
                return Err(StoreError::Busy("test".to_owned()));
            }
            let known = state.nodes.get_mut(&node).unwrap();
            assert_eq!(known.epoch, batch.epoch, "operations of a sealed epoch");
            assert!(batch.first_seq <= known.hwm + 1, "a gap");
            for (seq, op) in (batch.first_seq..).zip(batch.ops) {
                if seq > known.hwm {
                    known.hwm = seq;
                    known.fold = known.fold.map(|fold| fold.with(&op));
                    state.applied.push((node, batch.epoch, seq, op));
                }
            }
            Ok(Mark { hwm: known.hwm, fold: known.fold })
        })
    }

    fn log_changed(&self) -> watch::Receiver<Heads> {
        self.heads.subscribe()
    }

    fn tail(&self, log: Log, from: u64, bytes_max: usize) -> BoxFuture<'_, Result<TailRead, StoreError>> {
        let read = self.look(|state| {
            if from < state.kept_from.get(&log).copied().unwrap_or(0) {
                return TailRead::Gone;
            }
            let mut records = Vec::new();
            let mut bytes = 0;
            for record in state.logs.get(&log).into_iter().flatten().filter(|record| record.version > from) {
                bytes += record.body.len();
                if bytes > bytes_max && !records.is_empty() {
                    break;
                }
                records.push(record.clone());
            }
            let to = records.last().map_or(from, |record| record.version);
            TailRead::Tail(Tail { log, from, to, part: Part::Changes, records, next: None })
        });
        Box::pin(async move { Ok(read) })
    }

    fn snapshot(
        &self,
        log: Log,
        resume: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<SnapshotPage, StoreError>> {
        let mut guard = self.inner.lock().unwrap();
        let state = &mut *guard;
        if state.pages_max.is_some_and(|most| state.pages.len() >= most) {
            return Box::pin(async { Err(StoreError::Busy("test".to_owned())) });
        }
        let page = {
            let start = resume.map_or(0, |at| usize::from_le_bytes(at.try_into().unwrap()));
            state.pages.push(start);
            let rows = &state.logs[&log];
            let mut bytes = 0;
            let mut records = Vec::new();
            for record in &rows[start..] {
                bytes += record.body.len();
                if bytes > bytes_max && !records.is_empty() {
                    break;
                }
                records.push(record.clone());
            }
            let end = start + records.len();
            let next = (end < rows.len()).then(|| end.to_le_bytes().to_vec());
            SnapshotPage { version: rows.len() as u64, records, next }
        };
        Box::pin(async move { Ok(page) })
    }

    /// Method 1 echoes, 2 refuses, 3 never answers, 4 answers with as many bytes as the request says.
    fn call(&self, node: Node, call: Call) -> BoxFuture<'_, Result<Reply, Refusal>> {
        Box::pin(async move {
            match call.method {
                1 => Ok(Reply { body: call.body }),
                2 => Err(Refusal { code: "cart_sealed".to_owned(), message: format!("node {node} is late") }),
                4 => {
                    let length = usize::from_le_bytes(call.body.as_ref().try_into().unwrap());
                    Ok(Reply { body: Bytes::from(vec![7; length]) })
                }
                _ => std::future::pending().await,
            }
        })
    }

    fn applied(&self, node: Node, log: Log, version: u64) {
        self.set(|state| {
            let before = state.cursors.insert((node, log), version);
            assert!(before.is_none_or(|before| before < version), "a cursor never goes back");
        });
    }
}

/// A running region, to be stopped and started again over the same store.
pub(crate) struct RunningRegion {
    pub(crate) link: RegionLink,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl RunningRegion {
    pub(crate) fn start(authority: &Authority, store: &Arc<Registry>, listen: SocketAddr) -> Self {
        Self::start_with(authority.region(), store, listen)
    }

    pub(crate) fn start_with(tls: TlsFiles, store: &Arc<Registry>, listen: SocketAddr) -> Self {
        let stop = CancellationToken::new();
        let config = RegionLinkConfig::new(listen, REGION, tls, vec![9; 32]);
        let (link, task) = start_region(config, store.clone(), stop.clone()).unwrap();
        Self { link, stop, task }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.link.local_addr()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("a region ends").unwrap();
    }
}

/// A running node.
pub(crate) struct RunningNode {
    pub(crate) link: NodeLink,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl RunningNode {
    pub(crate) fn start(authority: &Authority, node: Node, store: &Arc<Shop>, region: SocketAddr) -> Self {
        Self::start_with(authority.node(node), node, store, &[region], SERVER_NAME)
    }

    pub(crate) fn start_with(
        tls: TlsFiles,
        node: Node,
        store: &Arc<Shop>,
        regions: &[SocketAddr],
        server_name: &str,
    ) -> Self {
        let stop = CancellationToken::new();
        let config = node_config(tls, node, regions, server_name);
        let (link, task) = start_node(config, store.clone(), stop.clone()).unwrap();
        Self { link, stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("a node ends").unwrap();
    }

    pub(crate) async fn until(&self, what: &str, is: impl FnMut(&LinkStatus) -> bool) {
        let mut watch = self.link.watch();
        if timeout(PATIENCE, watch.wait_for(is)).await.is_err() {
            panic!("not {what} in time: {:?}", self.link.status());
        }
    }

    pub(crate) async fn until_up(&self) {
        self.until("up", |status| status.connected).await;
    }

    /// Waits for a fault and gives it back.
    pub(crate) async fn fault(&self) -> LinkFault {
        self.until("in trouble", |status| status.fault.is_some()).await;
        self.link.status().fault.unwrap()
    }
}

pub(crate) fn node_config(
    tls: TlsFiles,
    node: Node,
    regions: &[SocketAddr],
    server_name: &str,
) -> NodeLinkConfig {
    NodeLinkConfig {
        regions: regions
            .iter()
            .map(|addr| RegionAddress { addr: addr.to_string(), server_name: server_name.to_owned() })
            .collect(),
        tls,
        node,
        region: REGION.to_owned(),
        pop: "par".to_owned(),
        software: "test".to_owned(),
        schemas: vec![1],
        congestion: souk_link::Congestion::Cubic,
    }
}

pub(crate) fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Polls what has no watch.
pub(crate) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in time: {what}");
}

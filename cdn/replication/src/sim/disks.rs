//! What survives a crash, on both sides.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Batch, Cursor, EpochNo, Fold, Heads, Log, Mark, NodeState, OutboxPosition, Part, Record, Seq,
    SnapshotPage, Staging, Tail,
    planted::{Bug, planted},
};

use super::stock::{NodeStock, RegionStock};

/// An operation is its number in the order of acceptance, over all epochs.
pub(super) type Op = u64;
/// A replicated table: key -> version that last changed it.
pub(super) type Table = BTreeMap<u8, u64>;
/// On a key in a log: its row is removed.
pub(super) const GONE: u8 = 0x80;

/// Lays changes over a table, in their order.
fn lay(table: &mut Table, rows: impl Iterator<Item = (u8, u64)>) {
    for (key, version) in rows {
        if key & GONE == 0 {
            table.insert(key, version);
        } else {
            table.remove(&(key & !GONE));
        }
    }
}

pub(super) fn op_bytes(op: Op) -> Vec<u8> {
    // Of different lengths, so that batches end at different places.
    let mut bytes = op.to_le_bytes().to_vec();
    bytes.resize(8 + (op % 7) as usize * 150, 0xee);
    bytes
}

fn op_of(bytes: &[u8]) -> Op {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// An operation that no region can apply: it has to be kept aside, and hold up nobody.
pub(super) const fn is_poison(op: Op) -> bool {
    op % 53 == 17
}

#[derive(Debug, Clone, Default)]
pub(super) struct NodeDisk {
    pub(super) epoch: Option<EpochNo>,
    pub(super) ops: BTreeMap<Seq, Op>,
    pub(super) last: Seq,
    /// What the trimmed operations of this epoch fold to, if that was noted.
    pub(super) anchor: Option<Fold>,
    /// The newest acknowledgement.
    pub(super) acked: Mark,
    /// So many acknowledged operations are kept, for a region that comes back from a backup.
    pub(super) keeps: usize,
    pub(super) cursors: Heads,
    /// The history that each cursor counts.
    pub(super) histories: BTreeMap<Log, u32>,
    pub(super) tables: BTreeMap<Log, Table>,
    pub(super) staged: BTreeMap<Log, Table>,
    /// Where each unfinished snapshot goes on.
    pub(super) stagings: BTreeMap<Log, Staging>,
    pub(super) stock: NodeStock,
}

impl NodeDisk {
    pub(super) fn position(&self) -> OutboxPosition {
        let first = self.ops.first_key_value().map_or(self.last + 1, |(seq, _)| *seq);
        OutboxPosition { epoch: self.epoch, first, last: self.last, anchor: self.anchor, acked: self.acked }
    }

    pub(super) fn accept(&mut self, op: Op) {
        self.last += 1;
        self.ops.insert(self.last, op);
    }

    pub(super) fn read(&self, from: Seq, ops_max: usize, bytes_max: usize) -> Vec<Vec<u8>> {
        // Trimmed meanwhile: nothing, rather than others in their place.
        if !self.ops.contains_key(&from) {
            return Vec::new();
        }
        let mut bytes = 0;
        let ops = self.ops.range(from..).take(ops_max).map(|(_, op)| op_bytes(*op));
        ops.enumerate()
            .take_while(|(n, op)| {
                bytes += op.len();
                *n == 0 || bytes <= bytes_max
            })
            .map(|(_, op)| op)
            .collect()
    }

    pub(super) fn trim(&mut self, epoch: EpochNo, to: Seq, fold: Option<Fold>) {
        if self.epoch != Some(epoch) || to <= self.acked.hwm {
            return;
        }
        self.acked = Mark { hwm: to, fold };
        let Some(mut anchor) = self.anchor.filter(|_| fold.is_some()) else {
            // Of a release that did not note what it trimmed: what is kept could not be told from another disk's.
            self.ops = self.ops.split_off(&(to + 1));
            self.anchor = fold;
            return;
        };
        while self.ops.range(..=to).count() > self.keeps {
            let Some((_, op)) = self.ops.pop_first() else { break };
            anchor = anchor.with(&op_bytes(op));
        }
        self.anchor = Some(anchor);
    }

    pub(super) fn go_back(&mut self, epoch: EpochNo, to: Mark) {
        if self.epoch == Some(epoch) && to.hwm < self.acked.hwm {
            self.acked = to;
        }
    }

    /// False: the number is not above the one that it is in, and no store goes back.
    pub(super) fn begin_epoch(&mut self, epoch: EpochNo) -> bool {
        if self.epoch != Some(epoch) {
            if self.epoch.is_some_and(|old| old > epoch) {
                return false;
            }
            self.epoch = Some(epoch);
            self.ops = (1..).zip(std::mem::take(&mut self.ops).into_values()).collect();
            self.last = self.ops.len() as u64;
            self.anchor = Some(Fold::EMPTY);
            self.acked = Mark { hwm: 0, fold: Some(Fold::EMPTY) };
        }
        true
    }

    pub(super) fn cursors(&self) -> Vec<Cursor> {
        let cursors = self.cursors.iter();
        cursors
            .map(|(log, version)| Cursor { log, version, region_epoch: self.histories.get(&log).copied() })
            .collect()
    }

    pub(super) fn apply(&mut self, tail: &Tail, region_epoch: u32) {
        let cursor = self.cursors.get(tail.log);
        let rows = tail.records.iter().map(|record| (record.body[0], record.version));
        match tail.part {
            Part::Changes => {
                assert_eq!(tail.from, cursor, "a run of {} does not continue the cursor", tail.log);
                let history = self.histories.insert(tail.log, region_epoch);
                assert!(
                    cursor == 0 || history == Some(region_epoch),
                    "a change of one history on top of another"
                );
                lay(self.tables.entry(tail.log).or_default(), rows);
                self.cursors.set(tail.log, tail.to);
            }
            Part::Snapshot { index, last } => {
                let staged = self.staged.entry(tail.log).or_default();
                if index == 0 {
                    staged.clear();
                }
                staged.extend(rows);
                self.stagings.remove(&tail.log);
                if let Some(next) = tail.next.clone().filter(|_| !last) {
                    let Tail { log, to: version, .. } = *tail;
                    let staging = Staging { log, version, parts: index + 1, region_epoch, next };
                    self.stagings.insert(log, staging);
                }
                if last {
                    let history = self.histories.insert(tail.log, region_epoch);
                    assert!(
                        tail.to > cursor || history != Some(region_epoch),
                        "a cursor goes back in one history"
                    );
                    let mut whole = std::mem::take(staged);
                    if planted(Bug::SnapshotLaidOver) {
                        let old = self.tables.remove(&tail.log).unwrap_or_default();
                        whole = old.into_iter().chain(whole).collect();
                    }
                    self.tables.insert(tail.log, whole);
                    self.cursors.set(tail.log, tail.to);
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct RegionDisk {
    pub(super) node: Option<NodeState>,
    /// The number of this history of the logs.
    pub(super) history: u32,
    /// Operations in the order of their first application, dead ones too.
    pub(super) applied: Vec<Op>,
    pub(super) known: BTreeSet<Op>,
    /// What could not be applied and is kept.
    pub(super) dead: BTreeSet<Op>,
    /// (epoch, number) of everything that was applied.
    numbers: BTreeSet<(EpochNo, Seq)>,
    pub(super) logs: BTreeMap<Log, Vec<u8>>,
    pub(super) kept_from: BTreeMap<Log, u64>,
    pub(super) stock: RegionStock,
}

impl RegionDisk {
    pub(super) fn new() -> Self {
        Self {
            node: None,
            history: 1,
            applied: Vec::new(),
            known: BTreeSet::new(),
            dead: BTreeSet::new(),
            numbers: BTreeSet::new(),
            logs: BTreeMap::new(),
            kept_from: BTreeMap::new(),
            stock: RegionStock::new(),
        }
    }

    pub(super) fn heads(&self) -> Heads {
        self.logs.iter().map(|(log, keys)| (*log, keys.len() as u64)).collect()
    }

    /// The logs begin a new history at an older version: with nothing, or with a part of what there was.
    pub(super) fn rebuild(&mut self, history: u32, mut kept: impl FnMut(u64) -> u64) {
        self.history = history;
        for keys in self.logs.values_mut() {
            keys.truncate(kept(keys.len() as u64) as usize);
        }
        self.kept_from.clear();
    }

    pub(super) fn begin_epoch(&mut self, epoch: EpochNo) {
        assert!(self.node.is_none_or(|old| old.epoch < epoch), "an epoch comes again");
        self.node = Some(NodeState { epoch, hwm: 0, fold: Some(Fold::EMPTY) });
    }

    /// Commits a batch in one transaction with its mark, as a store does: what is below the mark is skipped, a gap and a sealed
    /// epoch are refused. `partly` stops in the middle, as a store with a smaller transaction limit would; `folds`: its release
    /// does; `promise`: keeps what a new operation promises, in the same transaction.
    pub(super) fn apply(
        &mut self,
        batch: &Batch,
        partly: bool,
        folds: bool,
        mut promise: impl FnMut(&mut RegionStock, Op),
    ) -> Mark {
        let node = self.node.as_mut().unwrap();
        let refused = batch.epoch != node.epoch || batch.first_seq > node.hwm + 1;
        let count = if refused {
            0
        } else if partly {
            batch.ops.len().div_ceil(2)
        } else {
            batch.ops.len()
        };
        for (seq, bytes) in (batch.first_seq..).zip(&batch.ops[..count]) {
            if seq <= node.hwm && !planted(Bug::MarkNotChecked) {
                continue;
            }
            let op = op_of(bytes);
            if is_poison(op) {
                if planted(Bug::DeadLetterStuck) {
                    break;
                }
                self.dead.insert(op);
            }
            assert!(
                self.numbers.insert((node.epoch, seq)),
                "operation {seq} of {} is applied twice",
                node.epoch
            );
            node.hwm = seq;
            node.fold = folds.then(|| node.fold.unwrap_or(Fold::EMPTY).with(bytes));
            // Known already only when it comes again under a new epoch; operations are idempotent for that.
            if self.known.insert(op) {
                self.applied.push(op);
                promise(&mut self.stock, op);
            }
        }
        Mark { hwm: node.hwm, fold: node.fold }
    }

    pub(super) fn table(&self, log: Log) -> Table {
        let mut table = Table::new();
        lay(&mut table, self.logs.get(&log).into_iter().flatten().copied().zip(1..));
        table
    }

    pub(super) fn tail(&self, log: Log, from: u64, records_max: usize) -> Option<Tail> {
        if from < self.kept_from.get(&log).copied().unwrap_or(0) {
            return None;
        }
        let keys = self.logs.get(&log).map_or(&[][..], Vec::as_slice);
        let records: Vec<Record> = (1..)
            .zip(keys)
            .skip(from as usize)
            .take(records_max)
            .map(|(version, key)| Record { version, body: vec![*key] })
            .collect();
        let to = records.last().map_or(from, |record| record.version);
        Some(Tail { log, from, to, part: Part::Changes, records, next: None })
    }

    pub(super) fn page(&self, log: Log, resume: Option<&[u8]>, records_max: usize) -> SnapshotPage {
        let after = resume.map(|at| at[0]);
        let table = self.table(log);
        let mut rows = table.into_iter().filter(|(key, _)| after.is_none_or(|after| *key > after));
        let records: Vec<Record> = rows
            .by_ref()
            .take(records_max)
            .map(|(key, version)| Record { version, body: vec![key] })
            .collect();
        let next = rows.next().and_then(|_| records.last()).map(|record| record.body.clone());
        SnapshotPage { version: self.heads().get(log), records, next }
    }
}

//! What survives a crash, on both sides.

use std::collections::{BTreeMap, BTreeSet};

use souk_replication::{
    Batch, Cursor, EpochNo, Heads, Log, NodeState, OutboxPosition, Part, Record, Seq, SnapshotPage, Tail,
};

/// An operation is its number in the order of acceptance, over all epochs.
pub(crate) type Op = u64;
/// A replicated table: key -> version that last changed it.
pub(crate) type Table = BTreeMap<u8, u64>;

pub(crate) fn op_bytes(op: Op) -> Vec<u8> {
    // Of different lengths, so that batches end at different places.
    let mut bytes = op.to_le_bytes().to_vec();
    bytes.resize(8 + (op % 7) as usize * 300, 0xee);
    bytes
}

pub(crate) fn op_of(bytes: &[u8]) -> Op {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[derive(Debug, Clone, Default)]
pub(crate) struct NodeDisk {
    pub(crate) epoch: Option<EpochNo>,
    pub(crate) ops: BTreeMap<Seq, Op>,
    pub(crate) last: Seq,
    pub(crate) cursors: Heads,
    /// The history that each cursor counts.
    pub(crate) histories: BTreeMap<Log, u32>,
    pub(crate) tables: BTreeMap<Log, Table>,
    pub(crate) staged: BTreeMap<Log, Table>,
}

impl NodeDisk {
    pub(crate) fn position(&self) -> OutboxPosition {
        let first = self.ops.first_key_value().map_or(self.last + 1, |(seq, _)| *seq);
        OutboxPosition { epoch: self.epoch, first, last: self.last }
    }

    pub(crate) fn accept(&mut self, op: Op) {
        self.last += 1;
        self.ops.insert(self.last, op);
    }

    pub(crate) fn read(&self, from: Seq, ops_max: usize, bytes_max: usize) -> Vec<Vec<u8>> {
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

    pub(crate) fn trim(&mut self, epoch: EpochNo, to: Seq) {
        if self.epoch == Some(epoch) {
            self.ops = self.ops.split_off(&(to + 1));
        }
    }

    pub(crate) fn begin_epoch(&mut self, epoch: EpochNo) {
        if self.epoch != Some(epoch) {
            assert!(self.epoch.is_none_or(|old| old < epoch), "epochs only grow");
            self.epoch = Some(epoch);
            self.ops = (1..).zip(std::mem::take(&mut self.ops).into_values()).collect();
            self.last = self.ops.len() as u64;
        }
    }

    pub(crate) fn cursors(&self) -> Vec<Cursor> {
        let cursors = self.cursors.iter();
        cursors
            .map(|(log, version)| Cursor { log, version, region_epoch: self.histories.get(&log).copied() })
            .collect()
    }

    pub(crate) fn apply(&mut self, tail: &Tail, region_epoch: u32) {
        let cursor = self.cursors.get(tail.log);
        let rows = tail.records.iter().map(|record| (record.body[0], record.version));
        match tail.part {
            Part::Changes => {
                assert_eq!(tail.from, cursor, "a tail continues the cursor");
                let history = self.histories.insert(tail.log, region_epoch);
                assert!(
                    cursor == 0 || history == Some(region_epoch),
                    "a change of one history on top of another"
                );
                self.tables.entry(tail.log).or_default().extend(rows);
                self.cursors.set(tail.log, tail.to);
            }
            Part::Snapshot { index, last } => {
                let staged = self.staged.entry(tail.log).or_default();
                if index == 0 {
                    staged.clear();
                }
                staged.extend(rows);
                if last {
                    let history = self.histories.insert(tail.log, region_epoch);
                    assert!(
                        tail.to > cursor || history != Some(region_epoch),
                        "a cursor never goes back in one history"
                    );
                    let whole = std::mem::take(staged);
                    self.tables.insert(tail.log, whole);
                    self.cursors.set(tail.log, tail.to);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct RegionDisk {
    pub(crate) node: Option<NodeState>,
    /// How often the logs were begun anew.
    pub(crate) rebuilt: u32,
    /// Operations in the order of their first application.
    pub(crate) applied: Vec<Op>,
    pub(crate) known: BTreeSet<Op>,
    pub(crate) logs: BTreeMap<Log, Vec<u8>>,
    pub(crate) kept_from: BTreeMap<Log, u64>,
}

impl RegionDisk {
    pub(crate) fn heads(&self) -> Heads {
        self.logs.iter().map(|(log, keys)| (*log, keys.len() as u64)).collect()
    }

    pub(crate) const fn epoch(&self) -> u32 {
        1 + self.rebuilt
    }

    /// The logs begin a new history at an older version: with nothing, or with a part of what there was.
    pub(crate) fn rebuild(&mut self, mut kept: impl FnMut(u64) -> u64) {
        self.rebuilt += 1;
        for keys in self.logs.values_mut() {
            keys.truncate(kept(keys.len() as u64) as usize);
        }
        self.kept_from.clear();
    }

    pub(crate) fn begin_epoch(&mut self, epoch: EpochNo) {
        assert!(self.node.is_none_or(|old| old.epoch < epoch), "an epoch never comes again");
        self.node = Some(NodeState { epoch, hwm: 0 });
    }

    /// Commits a batch; `partly` stops in the middle, as a store with a smaller transaction limit would.
    pub(crate) fn apply(&mut self, batch: &Batch, partly: bool) -> Seq {
        let node = self.node.as_mut().unwrap();
        assert_eq!(batch.epoch, node.epoch, "operations of a sealed epoch");
        assert!(batch.first_seq <= node.hwm + 1, "a gap was let through");
        let count = if partly { batch.ops.len().div_ceil(2) } else { batch.ops.len() };
        for (seq, bytes) in (batch.first_seq..).zip(&batch.ops[..count]) {
            if seq <= node.hwm {
                continue;
            }
            node.hwm = seq;
            let op = op_of(bytes);
            // Known already only when an outbox was restored; operations are idempotent then.
            if self.known.insert(op) {
                self.applied.push(op);
            }
        }
        node.hwm
    }

    pub(crate) fn table(&self, log: Log) -> Table {
        self.logs.get(&log).into_iter().flatten().copied().zip(1..).collect()
    }

    pub(crate) fn tail(&self, log: Log, from: u64, records_max: usize) -> Option<Tail> {
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
        Some(Tail { log, from, to, part: Part::Changes, records })
    }

    pub(crate) fn page(&self, log: Log, resume: Option<&[u8]>, records_max: usize) -> SnapshotPage {
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

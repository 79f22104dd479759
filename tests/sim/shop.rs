//! Who uses a node, and what must have become of it: carts as shoppers were told, operations as they were taken in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use souk_commerce::cart::{Entry, LineKey};
use souk_commerce::id::{CartId, Sku};
use souk_edge::state::{CartKey, ChangeError, CommitError, Facts, Held, State};

use crate::dice::Dice;
use crate::process::Life;
use crate::region::{OpId, RegionDisk, SITE, UNKNOWN_SITE, op_id};
use crate::story::{must, note, tell, violate};

/// Carts of a world; the last is of a site that the region does not know.
const CARTS: u8 = 6;
const OPS_READ_MAX: usize = 100_000;

pub(crate) type Lines = BTreeMap<String, u32>;

pub(crate) fn cart_key(n: u8) -> CartKey {
    let site = if n + 1 == CARTS { UNKNOWN_SITE } else { SITE };
    CartKey { site: site.parse().expect("a site"), cart: CartId([n + 1; 16]) }
}

pub(crate) fn lines(held: Option<&Held>) -> Lines {
    let lines = held.map(|held| held.cart.lines()).unwrap_or_default();
    lines.into_iter().map(|(line, quantity)| (line.sku.to_string(), quantity)).collect()
}

/// What may be in a cart.
#[derive(Debug, Clone, Default)]
struct Known {
    /// What a shopper was told, or has been read after a crash.
    sure: Lines,
    /// What it may be instead: changes of which nobody was told how they ended.
    maybe: Vec<Lines>,
}

#[derive(Debug, Clone, Copy)]
struct Accepted {
    id: OpId,
    told: bool,
}

/// The reference model.
#[derive(Debug, Default)]
pub(crate) struct Shop {
    inner: Mutex<Model>,
}

#[derive(Debug, Default)]
struct Model {
    carts: BTreeMap<u8, Known>,
    /// What is or was on the node's disk and must arrive, in order.
    accepted: Vec<Accepted>,
    /// Where in it an operation with this number is.
    places: BTreeMap<(u32, u64), OpId>,
    told: BTreeSet<OpId>,
    /// Lost with a disk, and no fault. A transaction of the region that was under way may still apply one of them.
    given_up: BTreeSet<OpId>,
    seen: Facts,
    /// The wall clock of the machine.
    wall_ms: u64,
    edits: u64,
    /// Carts of node and region may differ: a disk was put back.
    carts_excused: bool,
    /// Until the next epoch: a region has acknowledged what it has lost since.
    trims_excused: bool,
}

impl Model {
    /// What is neither kept nor applied is lost.
    fn give_up(&mut self, kept: &BTreeSet<OpId>, region: &RegionDisk) {
        let Self { accepted, told, given_up, .. } = self;
        let there = |id: &OpId| kept.contains(id) || region.known.contains(id);
        given_up.extend(accepted.iter().map(|op| op.id).filter(|id| !there(id)));
        accepted.retain(|op| there(&op.id));
        told.retain(there);
    }

    /// What the region has applied of what was not given up.
    fn expected(&self, region: &RegionDisk) -> impl Iterator<Item = OpId> {
        region.applied.iter().copied().filter(|id| !self.given_up.contains(id))
    }
}

impl Shop {
    pub(crate) fn new() -> Arc<Self> {
        let shop = Self::default();
        shop.inner.lock().wall_ms = 1_800_000_000_000;
        Arc::new(shop)
    }

    /// Time passes, or a clock is set.
    pub(crate) fn move_clock(&self, by_ms: i64) {
        let mut model = self.inner.lock();
        model.wall_ms = model.wall_ms.saturating_add_signed(by_ms);
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        self.inner.lock().wall_ms
    }

    pub(crate) fn excuse_carts(&self) {
        self.inner.lock().carts_excused = true;
    }

    pub(crate) fn excuse_trims(&self) {
        self.inner.lock().trims_excused = true;
    }

    /// One shopper changes a cart. Ends with the process.
    pub(crate) async fn edit(self: Arc<Self>, life: Arc<Life>, state: Arc<State>, mut dice: Dice) {
        let n = dice.below(CARTS.into()) as u8;
        let key = cart_key(n);
        if state.epoch().is_none() {
            return;
        }
        let guard = state.lock(key.clone()).await;
        let Ok(found) = state.find(&key) else { return };
        let held = found.map_or_else(Held::default, Arc::unwrap_or_clone);
        let before = lines(Some(&held));
        let entry = Entry::Line(LineKey::of(format!("P{}", dice.below(9)).parse::<Sku>().expect("a sku")));
        let (kind, more) = (dice.below(10), 1 + dice.below(3) as u32);
        let mut after = held.cart.clone();
        let apply = |edit: &mut souk_commerce::cart::Edit<'_>| match kind {
            0 => {
                edit.remove(entry.clone());
                Ok(())
            }
            1 => edit.set(entry.clone(), more),
            _ => edit.add(entry.clone(), more as i32),
        };
        let wall_ms = {
            let mut model = self.inner.lock();
            model.edits += 1;
            let known = model.carts.entry(n).or_default();
            if before != known.sure && !known.maybe.contains(&before) {
                violate(format!("cart {n} holds {before:?}, and its shoppers were told {:?}", known.sure));
            }
            // What it will be, if it is.
            let stamp = souk_commerce::clock::Hlc::at(model.wall_ms);
            let mut draft =
                after.edit(state.node(), state.epoch().unwrap_or(souk_commerce::id::Epoch(1)), stamp);
            if apply(&mut draft).is_err() {
                return;
            }
            let delta = draft.finish();
            after.apply(&delta);
            let after = lines(Some(&Held::with_cart(after)));
            let wall_ms = model.wall_ms;
            model.carts.entry(n).or_default().maybe.push(after);
            wall_ms
        };
        let changed = state.change(guard, held, wall_ms, apply).await;
        if !life.is_alive() {
            return;
        }
        let mut model = self.inner.lock();
        match changed {
            Ok((_, held)) => {
                note("told");
                let last = held.last.map(|position| (position.epoch.0, position.seq));
                let id = last.and_then(|last| model.places.get(&last).copied());
                // An edit that changes nothing names an operation of long ago, which may have been given up since.
                if let Some(op) = model.accepted.iter_mut().rfind(|op| Some(op.id) == id) {
                    op.told = true;
                    let id = op.id;
                    model.told.insert(id);
                }
                tell("shopper", || {
                    format!("is told that cart {n} is safe, as operation {last:?} (epoch, number)")
                });
                let known = model.carts.entry(n).or_default();
                *known = Known { sure: lines(Some(&held)), maybe: Vec::new() };
            }
            Err(ChangeError::Commit(CommitError::OutcomeUnknown | CommitError::Stopped)) => {
                note("outcome_unknown");
                tell("shopper", || format!("is not told what became of cart {n}"));
            }
            Err(refused) => {
                note("refused");
                tell("shopper", || format!("is refused: cart {n}: {refused}"));
                model.carts.entry(n).or_default().maybe.pop();
            }
        }
    }

    /// What the last turn of the committer has put on the disk, and taken from it.
    pub(crate) fn observe(&self, state: &State, region: &RegionDisk) {
        let facts = state.facts();
        let mut model = self.inner.lock();
        if facts == model.seen {
            return;
        }
        let before = model.seen;
        model.seen = facts;
        if facts.epoch == before.epoch && facts.acked > before.acked {
            let epoch = facts.epoch.map_or(0, |epoch| epoch.0);
            let safe = region.node;
            let is_safe = safe.is_some_and(|node| epoch < node.epoch || facts.acked <= node.hwm);
            must(is_safe || model.trims_excused, || {
                format!(
                    "epoch {epoch} is forgotten up to {}, and the region has committed {safe:?}",
                    facts.acked
                )
            });
            note("trim");
            if model.trims_excused
                && let Ok(ops) = state.operations(0, OPS_READ_MAX, usize::MAX)
            {
                let kept: BTreeSet<OpId> = ops.iter().map(|(_, bytes)| op_id(bytes)).collect();
                model.give_up(&kept, region);
            }
        }
        model.trims_excused &= facts.epoch == before.epoch;
        let from = if facts.epoch == before.epoch { before.last() + 1 } else { 1 };
        let Ok(ops) = state.operations(from, OPS_READ_MAX, usize::MAX) else { return };
        let epoch = facts.epoch.map_or(0, |epoch| epoch.0);
        for (seq, bytes) in ops {
            let id = op_id(&bytes);
            if facts.epoch == before.epoch || !model.accepted.iter().any(|op| op.id == id) {
                model.accepted.push(Accepted { id, told: false });
            }
            model.places.insert((epoch, seq), id);
        }
    }

    /// The node has started again: what is on its disk, against what it has told.
    pub(crate) fn restarted(&self, state: &State, region: &RegionDisk) {
        let facts = state.facts();
        let Ok(ops) = state.operations(0, OPS_READ_MAX, usize::MAX) else {
            return violate("the outbox cannot be read after a restart");
        };
        let kept: BTreeSet<OpId> = ops.iter().map(|(_, bytes)| op_id(bytes)).collect();
        let mut model = self.inner.lock();
        let lost = model
            .accepted
            .iter()
            .filter(|op| op.told && !kept.contains(&op.id) && !region.known.contains(&op.id));
        let lost = lost.count();
        must(lost == 0, || {
            format!("{lost} operations whose shoppers were told are not on the disk after a restart")
        });
        // Of what nobody was told, some is there and some is not.
        model.give_up(&kept, region);
        let epoch = facts.epoch.map_or(0, |epoch| epoch.0);
        for (seq, bytes) in &ops {
            let id = op_id(bytes);
            if !model.accepted.iter().any(|op| op.id == id) {
                note("kept_untold");
                model.accepted.push(Accepted { id, told: false });
            }
            model.places.insert((epoch, *seq), id);
        }
        model.seen = facts;
        for n in 0..CARTS {
            let Ok(held) = state.find(&cart_key(n)) else {
                return violate("a cart cannot be read after a restart");
            };
            let read = lines(held.as_deref());
            let known = model.carts.entry(n).or_default();
            must(read == known.sure || known.maybe.contains(&read), || {
                format!(
                    "after a restart cart {n} holds {read:?}, and its shoppers were told {:?}",
                    known.sure
                )
            });
            *known = Known { sure: read, maybe: Vec::new() };
        }
    }

    /// The node's or the region's disk is an older one: what only the lost one held is lost with it, and that is no fault.
    /// `is_node`: whose.
    pub(crate) fn restored(&self, is_node: bool, state: &State, region: &RegionDisk) {
        let Ok(ops) = state.operations(0, OPS_READ_MAX, usize::MAX) else {
            return violate("the outbox of a backup cannot be read");
        };
        let kept: BTreeSet<OpId> = ops.iter().map(|(_, bytes)| op_id(bytes)).collect();
        let mut model = self.inner.lock();
        model.give_up(&kept, region);
        model.carts_excused = true;
        if !is_node {
            return;
        }
        model.seen = state.facts();
        for n in 0..CARTS {
            let read = lines(state.find(&cart_key(n)).ok().flatten().as_deref());
            model.carts.insert(n, Known { sure: read, maybe: Vec::new() });
        }
    }

    /// What is applied is a beginning of what was accepted.
    pub(crate) fn check_order(&self, region: &RegionDisk) {
        let model = self.inner.lock();
        for (n, id) in model.expected(region).enumerate() {
            if model.accepted.get(n).map(|op| op.id) != Some(id) {
                return violate(format!("at place {n} of what was accepted another operation is applied"));
            }
        }
    }

    /// At the end, when both sides are content.
    pub(crate) fn check_end(&self, state: &State, region: &RegionDisk) {
        self.check_order(region);
        let model = self.inner.lock();
        let applied = model.expected(region).count();
        must(applied == model.accepted.len(), || {
            format!("{} operations were accepted, and {applied} are applied", model.accepted.len())
        });
        let lost = model.told.difference(&region.known).count();
        must(lost == 0, || format!("{lost} operations whose shoppers were told are lost"));
        for n in 0..CARTS {
            let key = cart_key(n);
            let here = lines(state.find(&key).ok().flatten().as_deref());
            let known = model.carts.get(&n).cloned().unwrap_or_default();
            must(here == known.sure || known.maybe.contains(&here), || {
                format!("cart {n} holds {here:?}, and its shoppers were told {:?}", known.sure)
            });
            if key.site.as_str() == SITE && !model.carts_excused {
                let there = region.carts.get(&key.cart);
                let there = there.map(|cart| lines(Some(&Held::with_cart(cart.clone())))).unwrap_or_default();
                must(here == there, || {
                    format!("cart {n} holds {here:?} at the node and {there:?} at the region")
                });
            }
        }
    }

    /// Operations that are on the node's disk and not at the region.
    pub(crate) fn waiting(&self, region: &RegionDisk) -> usize {
        let model = self.inner.lock();
        model.accepted.len().saturating_sub(model.expected(region).count())
    }
}

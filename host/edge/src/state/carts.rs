//! A cart as the node holds it, and the right to change one.
//!
//! Owns the stored form of a cart (CRDT state, last operation, what is known of other nodes' writes, the order that
//! sealed it) and the locks that make hook review and commit of one cart a single step, while other carts go on.
//! Knows no HTTP and no disk; called by the API (through [`super::State`]) and by the committer.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use minicbor::{Decode, Encode};
use parking_lot::Mutex;
use souk_commerce::cart::Cart;
use souk_commerce::id::{CartId, Epoch, HoldId, NodeId, OrderId, SiteId, Sku};
use tokio::sync::OwnedMutexGuard;

/// Places of other nodes' outboxes that one cart remembers to contain. A shopper who meets more PoPs than this in
/// the life of one cart costs the node another fetch, not correctness.
pub const SEEN_MAX: usize = 8;

/// Which cart: two sites never share one, whatever its number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CartKey {
    pub site: SiteId,
    pub cart: CartId,
}

/// A place in this node's outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Position {
    #[n(0)]
    pub epoch: Epoch,
    #[n(1)]
    pub seq: u64,
}

/// A place in some node's outbox: the read-your-writes token that a shopper carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Seen {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub at: Position,
}

/// Units that a cart was promised, by this node or by the region through it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hold {
    #[n(0)]
    pub id: HoldId,
    #[n(1)]
    pub sku: Sku,
    #[n(2)]
    pub units: u64,
    /// On the node's wall clock, as the shopper was told.
    #[n(3)]
    pub until_ms: u64,
}

/// A cart and what the node knows about it.
#[derive(Debug, Clone, Default)]
pub struct Held {
    pub cart: Cart,
    /// This node's last operation on it: a checkout must not overtake it.
    pub last: Option<Position>,
    /// Other nodes' writes that are already in `cart`.
    pub seen: Vec<Seen>,
    /// The order that sealed it.
    pub order: Option<OrderId>,
    /// When a checkout was asked of the region whose outcome is not known: it may be sealed.
    pub unresolved_ms: Option<u64>,
    /// When it was changed or fetched last: what nobody has touched for long is forgotten.
    pub touched_ms: Option<u64>,
    /// What it was promised, as far as this node knows.
    pub holds: Vec<Hold>,
}

impl Held {
    /// Forgets what it is not promised any more.
    pub fn drop_lapsed(&mut self, now_ms: u64) {
        self.holds.retain(|hold| hold.until_ms > now_ms);
    }

    /// Whether the writes that `token` speaks of may be missing from the cart, at a node whose outbox is at `own`.
    pub fn lacks(&self, token: Seen, node: NodeId, own: Option<Position>) -> bool {
        if self.contains(token) {
            return false;
        }
        if token.node != node {
            return true;
        }
        // What this life of the node has written is here. What it wrote before it was restored from a backup may be
        // at the region only, and so may what it is said to have written beyond the end of its outbox.
        let written_here = own.is_some_and(|own| token.at.epoch == own.epoch && token.at.seq <= own.seq);
        let held = self.last.is_some_and(|last| last.epoch == token.at.epoch && last.seq >= token.at.seq);
        !written_here && !held
    }

    /// Whether the writes that `token` speaks of are known to be in the cart.
    pub fn contains(&self, token: Seen) -> bool {
        self.seen.iter().any(|s| s.node == token.node && s.at >= token.at)
    }

    /// Remembers that the writes up to `token` are in the cart.
    pub fn note_seen(&mut self, token: Seen) {
        match self.seen.iter_mut().find(|s| s.node == token.node) {
            Some(known) => known.at = known.at.max(token.at),
            None => {
                if self.seen.len() >= SEEN_MAX {
                    self.seen.remove(0);
                }
                self.seen.push(token);
            }
        }
    }

    pub(super) fn to_row(&self) -> CartRow {
        CartRow {
            state: self.cart.to_bytes(),
            last: self.last,
            seen: self.seen.clone(),
            order: self.order,
            unresolved_ms: self.unresolved_ms,
            touched_ms: self.touched_ms,
            holds: self.holds.clone(),
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let row: CartRow = minicbor::decode(bytes).map_err(|e| e.to_string())?;
        let cart = Cart::from_bytes(&row.state).map_err(|e| e.to_string())?;
        let CartRow { last, seen, order, unresolved_ms, touched_ms, holds, .. } = row;
        Ok(Self { cart, last, seen, order, unresolved_ms, touched_ms, holds })
    }
}

/// [`Held`] in its stored form. The state is encoded by the request's task, not by the committer, of which there is
/// only one.
#[derive(Debug, Clone, Encode, Decode)]
pub(super) struct CartRow {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub(super) state: Vec<u8>,
    #[n(1)]
    pub(super) last: Option<Position>,
    #[n(2)]
    pub(super) seen: Vec<Seen>,
    #[n(3)]
    pub(super) order: Option<OrderId>,
    #[n(4)]
    pub(super) unresolved_ms: Option<u64>,
    #[n(5)]
    pub(super) touched_ms: Option<u64>,
    #[n(6)]
    #[cbor(default)]
    pub(super) holds: Vec<Hold>,
}

impl CartRow {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing into a Vec cannot fail, and no field refuses to be encoded")
    }
}

/// Enough that two tasks rarely meet at the same short map lock.
const SHARDS: usize = 64;

type Shard = Mutex<HashMap<CartKey, Arc<tokio::sync::Mutex<()>>>>;

/// One lock per cart in use. The map holds as many entries as requests are under way, no more.
#[derive(Debug)]
pub struct CartLocks {
    shards: Vec<Shard>,
    hasher: RandomState,
}

impl Default for CartLocks {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), hasher: RandomState::new() }
    }
}

impl CartLocks {
    fn shard(&self, key: &CartKey) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The right to change a cart, in the order of asking. Cancel safe: a waiter that goes away leaves the queue.
    pub async fn lock(self: &Arc<Self>, key: CartKey) -> CartGuard {
        let mutex = self.shard(&key).lock().entry(key.clone()).or_default().clone();
        // Made before the wait, so that a cancelled wait cleans up as well.
        let mut guard = CartGuard { key, locks: self.clone(), held: None };
        guard.held = Some(mutex.lock_owned().await);
        guard
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
}

/// The right to change one cart. Whoever commits must hand it over, so that a request that is dropped half-way
/// cannot let another one build on a state that is about to change.
#[derive(Debug)]
pub struct CartGuard {
    key: CartKey,
    locks: Arc<CartLocks>,
    held: Option<OwnedMutexGuard<()>>,
}

impl CartGuard {
    pub fn key(&self) -> &CartKey {
        &self.key
    }
}

impl Drop for CartGuard {
    fn drop(&mut self) {
        let mut shard = self.locks.shard(&self.key).lock();
        self.held = None;
        // Only the map knows it: nobody holds it and nobody waits. (Waiters clone under the shard's lock.)
        if shard.get(&self.key).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            shard.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> CartKey {
        CartKey { site: "shop".parse().expect("a site"), cart: CartId([n; 16]) }
    }

    #[tokio::test]
    async fn one_cart_is_serial_and_two_are_not() {
        let locks = Arc::new(CartLocks::default());
        let first = locks.lock(key(1)).await;
        let other = locks.lock(key(2)).await;
        let waiter = tokio::spawn({
            let locks = locks.clone();
            async move { locks.lock(key(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(first);
        drop(waiter.await.expect("the lock"));
        drop(other);
        assert_eq!(locks.len(), 0, "nothing is kept for carts that nobody uses");
    }

    #[tokio::test]
    async fn a_cancelled_waiter_leaves_nothing_behind() {
        let locks = Arc::new(CartLocks::default());
        let first = locks.lock(key(1)).await;
        {
            let mut waiting = Box::pin(locks.lock(key(1)));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            drop(first);
        }
        assert_eq!(locks.len(), 0);
    }

    #[test]
    fn what_is_seen_of_other_nodes_is_bounded() {
        let token = |node, seq| Seen { node: NodeId(node), at: Position { epoch: Epoch(1), seq } };
        let mut held = Held::default();
        held.note_seen(token(2, 5));
        assert!(held.contains(token(2, 5)) && held.contains(token(2, 1)));
        assert!(!held.contains(token(2, 6)) && !held.contains(token(3, 1)));
        for node in 3..30 {
            held.note_seen(token(node, 1));
        }
        assert_eq!(held.seen.len(), SEEN_MAX);
        held.unresolved_ms = Some(17);
        let back = Held::from_bytes(&held.to_row().to_bytes()).expect("readable");
        assert_eq!((back.seen, back.unresolved_ms), (held.seen, Some(17)));
    }

    #[test]
    fn a_row_of_the_release_before_has_no_promises() {
        let held = Held { unresolved_ms: Some(17), touched_ms: Some(18), ..Held::default() };
        let row = held.to_row();
        let mut older = minicbor::Encoder::new(Vec::new());
        let written = older.array(6).and_then(|e| e.bytes(&row.state)).and_then(|e| e.null());
        let written = written.and_then(|e| e.array(0)).and_then(|e| e.null());
        written.and_then(|e| e.u64(17)).and_then(|e| e.u64(18)).expect("memory");
        let back = Held::from_bytes(&older.into_writer()).expect("readable");
        assert_eq!((back.unresolved_ms, back.touched_ms, back.holds), (Some(17), Some(18), vec![]));
    }

    #[test]
    fn a_restored_node_knows_that_it_lacks_what_it_wrote_before() {
        let at = |epoch, seq| Position { epoch: Epoch(epoch), seq };
        let token = |epoch, seq| Seen { node: NodeId(1), at: at(epoch, seq) };
        let lacks = |held: &Held, token, own| held.lacks(token, NodeId(1), Some(own));
        let held = Held { last: Some(at(1, 40)), ..Held::default() };
        assert!(!lacks(&held, token(1, 50), at(1, 60)), "written since, about another cart");
        assert!(lacks(&held, token(1, 50), at(1, 45)), "beyond the end: the disk is older than the cookie");
        assert!(lacks(&held, token(1, 50), at(2, 60)), "what the life before wrote is at the region");
        assert!(!lacks(&held, token(1, 40), at(2, 60)));
        let renumbered = Held { last: Some(at(2, 3)), ..Held::default() };
        assert!(lacks(&renumbered, token(1, 50), at(2, 3)), "a greater epoch is no proof");
        let mut fetched = renumbered;
        fetched.note_seen(token(1, 50));
        assert!(!lacks(&fetched, token(1, 50), at(2, 3)));
        assert!(held.lacks(token(1, 50), NodeId(1), None));
        assert!(held.lacks(token(1, 1), NodeId(2), Some(at(1, 60))), "another node's");
    }
}

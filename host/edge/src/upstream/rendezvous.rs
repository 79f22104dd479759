//! Which of several nodes is a key's home: rendezvous hashing with bounded load. Pure.
//!
//! Every node ranks all nodes by a hash of node and key, and all of them come to the same order without talking. A node
//! that is taken away moves only its own keys, each to the next of its order. A home that has too much to do already is
//! passed over in the same order, so that one hot key does not make one hot node.

/// A node may have this many times the mean of what is in flight: the bound of "consistent hashing with bounded loads".
const LOAD_MAX: f64 = 1.25;
/// In flight at one node before its load counts. Below, passing over a home would only split fills that could be shared:
/// with three requests in flight, any of them is above the mean.
const LOAD_FREE: usize = 16;

/// The order in which `nodes` are asked for `key`, the home first. Both are hashes, spread evenly.
pub(super) fn order(key: u64, nodes: &[u64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    // No two nodes have the same score but by chance; then their place among the nodes decides, everywhere alike.
    order.sort_by_key(|index| (std::cmp::Reverse(mix(key ^ mix(nodes[*index]))), nodes[*index]));
    order
}

/// Whether a node with `load` requests in flight takes one more, of `all` at `nodes` nodes.
pub(super) fn has_room(load: usize, all: usize, nodes: usize) -> bool {
    let share = LOAD_MAX * (all + 1) as f64 / nodes.max(1) as f64;
    load < LOAD_FREE.max(share.ceil() as usize)
}

/// The finaliser of SplitMix64: each bit of the outcome depends on each of the input.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const KEYS: usize = 20_000;

    fn world(nodes: usize) -> (Vec<u64>, Vec<u64>) {
        let mut random = StdRng::seed_from_u64(11);
        let nodes = (0..nodes).map(|_| random.random()).collect();
        (nodes, (0..KEYS).map(|_| random.random()).collect())
    }

    #[test]
    fn keys_are_spread_evenly() {
        let (nodes, keys) = world(5);
        let mut homes = [0; 5];
        for key in &keys {
            homes[order(*key, &nodes)[0]] += 1;
        }
        assert!(homes.iter().all(|count| (3_700..4_300).contains(count)), "{homes:?}");
    }

    #[test]
    fn a_node_that_goes_moves_its_own_keys_only_and_to_the_next_in_their_order() {
        let (nodes, keys) = world(5);
        let fewer: Vec<u64> = nodes.iter().copied().filter(|node| *node != nodes[2]).collect();
        for key in &keys {
            let before: Vec<u64> = order(*key, &nodes).iter().map(|index| nodes[*index]).collect();
            let after: Vec<u64> = order(*key, &fewer).iter().map(|index| fewer[*index]).collect();
            let without: Vec<u64> = before.into_iter().filter(|node| *node != nodes[2]).collect();
            assert_eq!(without, after);
        }
    }

    #[test]
    fn every_node_comes_to_the_same_order_however_it_lists_them() {
        let (nodes, keys) = world(4);
        let mut shuffled = nodes.clone();
        shuffled.reverse();
        for key in keys.iter().take(1_000) {
            let one: Vec<u64> = order(*key, &nodes).iter().map(|index| nodes[*index]).collect();
            let other: Vec<u64> = order(*key, &shuffled).iter().map(|index| shuffled[*index]).collect();
            assert_eq!(one, other);
        }
    }

    #[test]
    fn no_node_gets_more_than_its_bound() {
        let (nodes, keys) = world(4);
        let mut loads = [0_usize; 4];
        for (all, key) in keys.iter().take(4_000).enumerate() {
            // A tenth of the requests are for one key, and none of them ends.
            let key = if all % 10 == 0 { 42 } else { *key };
            let taken = order(key, &nodes).into_iter().find(|node| has_room(loads[*node], all, nodes.len()));
            loads[taken.expect("somebody is below the mean")] += 1;
        }
        let bound = (4_000.0 * LOAD_MAX / 4.0).ceil() as usize;
        assert!(loads.iter().all(|load| *load <= bound), "{loads:?} above {bound}");
    }

    #[test]
    fn few_requests_are_not_bounded() {
        assert!((0..LOAD_FREE).all(|load| has_room(load, load, 3)));
        assert!(!has_room(LOAD_FREE, LOAD_FREE, 3));
    }
}

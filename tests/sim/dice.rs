//! Misfortune from a seed, and how much of it a world has.

use std::time::Duration;

/// SplitMix64, as in the simulation of the core: small, seeded, good enough to choose misfortunes.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Dice of their own for another part of the same world: what happens in one part moves no other.
    pub(crate) fn of(seed: u64, part: u64) -> Self {
        Self(seed ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93)).stirred()
    }

    fn stirred(mut self) -> Self {
        self.0 = self.roll();
        self
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// A pause below this.
    pub(crate) fn ms(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.below(below))
    }
}

/// How bad a world is; chances are per thousand.
#[derive(Debug, Clone)]
pub(crate) struct Climate {
    /// One way.
    pub(crate) delay_ms: u64,
    pub(crate) loss: u64,
    pub(crate) repeat: u64,
    /// Of being overtaken, and by how much.
    pub(crate) late: u64,
    pub(crate) late_ms: u64,
    /// Of one flipped bit.
    pub(crate) garbled: u64,
    pub(crate) bytes_per_s: u64,
    /// Longer datagrams do not pass.
    pub(crate) datagram_max: usize,
    pub(crate) store_failure: u64,
    pub(crate) slow_store: u64,
    pub(crate) misfortune_every_ms: u64,
    /// Between two operations.
    pub(crate) op_every_ms: u64,
    pub(crate) bursts: bool,
    pub(crate) node_restores: bool,
    pub(crate) region_restores: bool,
    /// Syncs of the node's disk fail.
    pub(crate) sync_failures: bool,
    pub(crate) congestion: souk_link::Congestion,
}

impl Climate {
    /// Nothing is lost, and nothing happens by itself.
    pub(crate) const fn calm() -> Self {
        Self {
            delay_ms: 40,
            loss: 0,
            repeat: 0,
            late: 0,
            late_ms: 0,
            garbled: 0,
            bytes_per_s: 10_000_000,
            datagram_max: 1_500,
            store_failure: 0,
            slow_store: 0,
            misfortune_every_ms: u64::MAX,
            op_every_ms: 80,
            bursts: false,
            node_restores: false,
            region_restores: false,
            sync_failures: false,
            congestion: souk_link::Congestion::Cubic,
        }
    }

    pub(crate) fn roll(dice: &mut Dice) -> Self {
        let mut harsh = |max: u64| if dice.chance(400) { 0 } else { dice.below(max) };
        Self {
            delay_ms: 2 + harsh(100),
            loss: harsh(60),
            repeat: harsh(40),
            late: harsh(40),
            late_ms: 5 + harsh(120),
            garbled: harsh(10),
            bytes_per_s: if harsh(4) == 1 { 300_000 } else { 10_000_000 },
            datagram_max: if harsh(4) == 1 { 1_280 } else { 1_500 },
            store_failure: harsh(120),
            slow_store: harsh(200),
            misfortune_every_ms: 600 + harsh(4_000),
            op_every_ms: 80 + harsh(500),
            bursts: harsh(3) == 1,
            node_restores: harsh(3) == 1,
            region_restores: harsh(4) == 1,
            sync_failures: harsh(4) == 1,
            congestion: if harsh(4) == 1 { souk_link::Congestion::Bbr } else { souk_link::Congestion::Cubic },
        }
    }
}

//! Misfortune from a seed: the same seed is the same world, on every machine.

/// SplitMix64: small, seeded, good enough to choose misfortunes.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }
}

/// How bad a world is; chances are per thousand.
#[derive(Debug)]
pub(super) struct Climate {
    /// Of each batch, which has a stream of its own.
    pub(super) batch_loss: u64,
    pub(super) repeat: u64,
    /// Of each frame on an ordered stream: harsher than QUIC, which loses none on a connection that lives.
    pub(super) stream_loss: u64,
    /// What a packet may take on top of 20 ms.
    pub(super) latency_ms: u64,
    pub(super) store_failure: u64,
    pub(super) slow_store: u64,
    pub(super) misfortune_every_ms: u64,
    /// Now and then hundreds of operations at once.
    pub(super) bursts: bool,
    /// Whether node and region are of the release before this one; each is upgraded when it crashes, or never.
    pub(super) older: [bool; 2],
    /// Whether disks are put back from backups, and whose.
    pub(super) node_restores: bool,
    pub(super) region_restores: bool,
    /// Whether the region's logs begin a new history with its operations kept.
    pub(super) rebuilds: bool,
    /// Acknowledged operations that the node keeps, for a region that comes back from a backup.
    pub(super) keeps: usize,
}

impl Climate {
    pub(super) fn roll(dice: &mut Dice, keeps: usize) -> Self {
        let older = [dice.chance(120), dice.chance(120)];
        let mut harsh = |max: u64| if dice.chance(400) { 0 } else { dice.below(max) };
        Self {
            batch_loss: harsh(300),
            repeat: harsh(200),
            stream_loss: harsh(100),
            latency_ms: 30 + harsh(200),
            store_failure: harsh(150),
            slow_store: harsh(200),
            misfortune_every_ms: 700 + harsh(6_000),
            bursts: harsh(3) == 1,
            older,
            // The release before does not see every node disk that was put back.
            node_restores: older == [false; 2] && harsh(3) == 1,
            region_restores: harsh(4) == 1,
            rebuilds: harsh(4) == 1,
            keeps,
        }
    }
}

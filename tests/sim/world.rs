//! One seeded world: a node and a region as processes of one thread, what is between them, and what befalls them.
//!
//! This file owns the two processes and what must be true; the parts keep their own ([`crate::net`], [`crate::platter`],
//! [`crate::region`], [`crate::shop`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use souk_link::{Log, RegionLinkConfig, start_region_on};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::dice::{Climate, Dice};
use crate::identity::{Papers, REGION, papers};
use crate::net::Net;
use crate::node::{Node, Opened, Place, open};
use crate::platter::Platter;
use crate::process::{Life, WorldGround};
use crate::region::{Entry, LOGS, LivingRegion, Region, RegionDisk};
use crate::shop::Shop;
use crate::story::{is_violated, must, note, tell, violate};

/// How long a world is hostile.
const HOSTILE: Duration = Duration::from_secs(12);
/// How long a healed world may take to agree: a pause of a link that was refused, and a feed's patience.
const HEAL_MAX: Duration = Duration::from_secs(40);
/// How long an operation may wait while nothing is wrong but the climate: a dial, a redial, and a store's pauses.
const WAIT_MAX: Duration = Duration::from_secs(12);
/// Longest cut that heals by itself in a hostile world.
const CUT_MS_MAX: u64 = 5_000;
const FULL_MS_MAX: u64 = 3_000;
/// A process that has died is back after this.
const DOWN_MS_MAX: u64 = 800;
const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// A step of a world: between two looks at what must be true.
const STEP_MS_MAX: u64 = 100;

pub(crate) struct World {
    seed: u64,
    pub(crate) climate: Climate,
    pub(crate) net: Arc<Net>,
    pub(crate) region: Arc<Region>,
    region_addr: SocketAddr,
    region_life: Arc<Life>,
    pub(crate) shop: Arc<Shop>,
    outbox: Platter,
    logs: Platter,
    /// How far each machine's clock is ahead, node and region.
    ahead_ms: [Arc<AtomicU64>; 2],
    fell: Arc<Notify>,
    papers: &'static Papers,
    pub(crate) node: Option<Node>,
    dice: Dice,
    lives: u64,
    histories: u32,
    node_backup: Option<(Vec<u8>, Vec<u8>)>,
    region_backup: RegionDisk,
    /// Until when something is wrong that will pass.
    wrong_until: Instant,
    full_until: Option<Instant>,
    /// Since when an operation has been waiting for the region, and how many were applied then.
    waiting: Option<(Instant, usize)>,
}

impl World {
    pub(crate) fn new(seed: u64, climate: Climate) -> Self {
        let region_addr = SocketAddr::from(([10, 0, 0, 1], 4_433));
        let region = Region::new(climate.clone(), Dice::of(seed, 2));
        let region_backup = region.disk.lock().clone();
        let mut world = Self {
            seed,
            net: Net::new(region_addr, climate.clone(), Dice::of(seed, 1)),
            region_backup,
            region,
            region_addr,
            region_life: Life::begin(),
            shop: Shop::new(),
            outbox: Platter::new(Dice::of(seed, 3)),
            logs: Platter::new(Dice::of(seed, 4)),
            ahead_ms: Default::default(),
            fell: Arc::new(Notify::new()),
            papers: papers(),
            node: None,
            dice: Dice::of(seed, 5),
            lives: 0,
            histories: 1,
            node_backup: None,
            wrong_until: Instant::now(),
            full_until: None,
            waiting: None,
            climate,
        };
        world.start_region();
        if let Some(opened) = world.open_node() {
            world.start_node(opened);
        }
        world
    }

    // ---- the processes

    fn place(&self) -> Place<'_> {
        Place {
            net: &self.net,
            region: &self.region,
            region_addr: self.region_addr,
            shop: &self.shop,
            outbox: &self.outbox,
            logs: &self.logs,
            ahead_ms: &self.ahead_ms[0],
            fell: &self.fell,
            climate: &self.climate,
            papers: self.papers,
        }
    }

    fn life_dice(&mut self) -> Dice {
        self.lives += 1;
        Dice::of(self.seed, 1_000 + self.lives)
    }

    fn open_node(&self) -> Option<Opened> {
        open(&self.place())
    }

    fn start_node(&mut self, opened: Opened) {
        let dice = self.life_dice();
        self.node = Some(Node::start(&self.place(), opened, dice));
        tell("node", || "starts".to_owned());
    }

    /// Nothing of the process is left, and nothing of what it had not synced unless the disks were spared.
    async fn end_node(&mut self, power: bool) {
        let Some(node) = self.node.take() else { return };
        node.life.end();
        for platter in [&self.outbox, &self.logs] {
            if power { platter.cut_power() } else { platter.close_by_force() }
        }
        drop(node);
        // The tasks that were ended let go of what they hold.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    async fn crash_node(&mut self, power: bool) {
        note(if power { "power_cut" } else { "node_killed" });
        tell("MISFORTUNE", || format!("the node dies{}", if power { ", and its power with it" } else { "" }));
        self.end_node(power).await;
        self.rest().await;
        // A full disk would stop it from starting, and that is told by name; here it has been seen to.
        self.empty();
        let Some(opened) = self.open_node() else { return };
        self.shop.restarted(&opened.state, &self.region.disk.lock());
        self.check_cursors(&opened);
        self.start_node(opened);
    }

    /// What the node has said is applied is on its disk.
    fn check_cursors(&self, opened: &Opened) {
        let history = self.region.disk.lock().history;
        let world = opened.replica.world();
        for (log, noted) in self.region.noted.lock().iter() {
            if world.histories.get(&log.code()) == Some(&history) {
                let is = world.cursors.get(*log);
                must(is >= *noted, || {
                    format!("{log} was said to be applied up to {noted}, and the disk is at {is}")
                });
            }
        }
    }

    fn start_region(&mut self) {
        self.region.restart();
        let life = Life::begin();
        let dice = self.life_dice();
        let ground = WorldGround::new(&self.net, &life, self.region_addr, dice, &self.ahead_ms[1]);
        let key = if crate::is_planted(crate::Planted::ResetKeyLost) { self.lives as u8 } else { 9 };
        let mut config =
            RegionLinkConfig::new(self.region_addr, REGION, self.papers.region.clone(), vec![key; 32]);
        config.region_epoch = self.region.disk.lock().history;
        config.schemas = vec![1];
        let store = Arc::new(LivingRegion { region: self.region.clone(), life: life.clone() });
        let (_, task) = start_region_on(ground, config, store, CancellationToken::new())
            .expect("certificates of this world are good");
        life.adopt(task.abort_handle());
        self.region_life = life;
        tell("region", || format!("starts, in history {}", self.histories));
    }

    pub(crate) async fn crash_region(&mut self, restored: bool) {
        note(if restored { "region_restored" } else { "region_killed" });
        tell("MISFORTUNE", || {
            format!("the region dies{}", if restored { " and comes back from a backup" } else { "" })
        });
        self.region_life.end();
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        if restored {
            self.histories += 1;
            self.region.restore(&self.region_backup, self.histories);
            // What the lost disk has acknowledged may not be forgotten yet, and will be.
            self.shop.excuse_trims();
            if let Some(node) = &self.node {
                self.shop.restored(false, &node.state, &self.region.disk.lock());
            }
            // An older image of the node would bring back what was just given up.
            self.node_backup = None;
        }
        self.rest().await;
        self.start_region();
    }

    /// The node's disks are replaced by older images, and it goes on at once.
    async fn restore_node(&mut self) {
        let Some((outbox, logs)) = self.node_backup.clone() else { return };
        note("node_restored");
        tell("MISFORTUNE", || "the node's disks are put back from a backup".to_owned());
        self.end_node(true).await;
        self.outbox.replace(&outbox);
        self.logs.replace(&logs);
        self.rest().await;
        self.region.noted.lock().clear();
        self.empty();
        let Some(opened) = self.open_node() else { return };
        self.shop.restored(true, &opened.state, &self.region.disk.lock());
        self.start_node(opened);
    }

    async fn rest(&mut self) {
        let down = self.dice.ms(DOWN_MS_MAX);
        sleep(down).await;
        self.is_wrong_for(Duration::ZERO);
    }

    fn is_wrong_for(&mut self, time: Duration) {
        self.wrong_until = self.wrong_until.max(Instant::now() + time);
    }

    // ---- what people do

    pub(crate) fn edit(&mut self) {
        let Some(node) = &self.node else { return };
        let (shop, life, state) = (self.shop.clone(), node.life.clone(), node.state.clone());
        let dice = Dice::new(self.dice.roll());
        node.life.spawn(shop.edit(life, state, dice));
    }

    pub(crate) fn publish(&mut self) {
        let log = LOGS[self.dice.below(LOGS.len() as u64) as usize];
        for _ in 0..=self.dice.below(4) {
            let entry = Entry {
                key: self.dice.below(20) as u8,
                gone: log != Log::Stock && self.dice.chance(150),
                filler: self.dice.below(500) as u16,
            };
            self.region.publish(log, entry);
        }
        if self.dice.chance(150) {
            note("tail_cut");
            let kept = self.dice.below(5);
            self.region.cut_tail(log, kept);
        }
        tell("region", || format!("publishes {log} up to {}", self.region.disk.lock().heads().get(log)));
    }

    // ---- what goes wrong

    async fn misfortune(&mut self) {
        match self.dice.below(12) {
            0..=2 => self.cut(),
            3 => self.jump(),
            4 => self.fill(),
            5 => {
                let power = self.dice.chance(600);
                self.crash_node(power).await;
            }
            6 | 7 => self.light_fuse(),
            8 => self.crash_region(false).await,
            9 if self.climate.sync_failures => self.fail_syncs(),
            9 | 10 => {
                if self.climate.node_restores && self.dice.chance(500) {
                    self.restore_node().await;
                } else {
                    self.node_backup = Some((self.outbox.image(), self.logs.image()));
                }
            }
            _ => {
                if self.climate.region_restores && self.dice.chance(400) {
                    self.crash_region(true).await;
                } else {
                    self.region_backup = self.region.disk.lock().clone();
                }
            }
        }
    }

    fn cut(&mut self) {
        let ways = [[true, true], [true, false], [false, true]][self.dice.below(3) as usize];
        let for_good = self.dice.chance(40);
        let lasts = if for_good { Duration::from_secs(3_600) } else { self.dice.ms(CUT_MS_MAX) };
        note(match (for_good, ways) {
            (true, _) => "cut_for_good",
            (_, [true, true]) => "cut",
            _ => "cut_one_way",
        });
        tell("MISFORTUNE", || format!("cut (up, down) {ways:?} for {} ms", lasts.as_millis()));
        self.net.cut(ways, Instant::now() + lasts);
        self.is_wrong_for(lasts);
    }

    /// A machine's clock jumps ahead, or its wall clock is set.
    fn jump(&mut self) {
        note("clock_jump");
        let most = if self.dice.chance(200) { DAY_MS } else { 10_000 };
        let by = self.dice.below(most);
        match self.dice.below(3) {
            2 => {
                let by = if self.dice.chance(500) { by as i64 } else { -(by as i64) };
                tell("MISFORTUNE", || format!("the node's wall clock is set by {by} ms"));
                self.shop.move_clock(by);
            }
            side => {
                tell("MISFORTUNE", || format!("clock {side} (node, region) jumps ahead by {by} ms"));
                self.ahead_ms[side as usize].fetch_add(by, Ordering::Relaxed);
            }
        }
        self.is_wrong_for(Duration::ZERO);
    }

    fn fill(&mut self) {
        note("disk_full");
        let lasts = self.dice.ms(FULL_MS_MAX);
        let which = self.dice.below(3);
        tell("MISFORTUNE", || {
            format!("disk {which} (outbox, replica, region) is full for {} ms", lasts.as_millis())
        });
        match which {
            0 => self.outbox.set_full(true),
            1 => self.logs.set_full(true),
            _ => *self.region.full_until.lock() = Instant::now() + lasts,
        }
        self.full_until = Some(Instant::now() + lasts);
        self.is_wrong_for(lasts);
    }

    fn fail_syncs(&mut self) {
        note("sync_failure");
        let lasts = self.dice.ms(FULL_MS_MAX);
        tell("MISFORTUNE", || format!("syncs of the outbox fail for {} ms", lasts.as_millis()));
        self.outbox.set_sync_fails(true);
        // What is read after a failed sync may be gone after a power cut, and have reached the region before that.
        self.shop.excuse_carts();
        self.full_until = Some(Instant::now() + lasts);
        self.is_wrong_for(lasts);
    }

    /// The power will go in the middle of a transaction.
    fn light_fuse(&mut self) {
        let after = 1 + self.dice.below(40);
        let which = self.dice.below(2);
        tell("MISFORTUNE", || {
            format!("the power will go {after} writes from here, of disk {which} (outbox, replica)")
        });
        if which == 0 { self.outbox.light_fuse(after) } else { self.logs.light_fuse(after) }
    }

    fn empty(&mut self) {
        self.full_until = None;
        self.outbox.set_full(false);
        self.logs.set_full(false);
        self.outbox.set_sync_fails(false);
    }

    // ---- what must be true

    fn check(&mut self) {
        let region = self.region.disk.lock();
        self.shop.check_order(&region);
        let now = Instant::now();
        let (waiting, applied) = (self.shop.waiting(&region), region.applied.len());
        drop(region);
        self.waiting = match self.waiting {
            _ if waiting == 0 || self.wrong_until > now => None,
            Some((since, then)) if then == applied => Some((since, then)),
            _ => Some((now, applied)),
        };
        if let Some((since, _)) = self.waiting.filter(|(since, _)| now - *since > WAIT_MAX) {
            let status = self.node.as_ref().map(|node| node.link.status());
            violate(format!(
                "{waiting} operations have been waiting for {} s on a path that is well; the link: {status:?}",
                (now - since).as_secs()
            ));
        }
    }

    fn agreed(&self) -> Result<(), String> {
        let Some(node) = self.node.as_ref().filter(|node| node.life.is_alive()) else {
            return Err("the node is down".to_owned());
        };
        let facts = node.state.facts();
        if facts.epoch.is_some() && facts.first != facts.next_seq {
            return Err(format!("the outbox keeps {}..{}", facts.first, facts.next_seq));
        }
        if self.shop.waiting(&self.region.disk.lock()) > 0 {
            return Err("operations are missing at the region".to_owned());
        }
        node.shows(&self.region)
    }

    /// Until then the world goes its way.
    pub(crate) async fn pass(&mut self, until: Instant) {
        let mut edit_at = Instant::now();
        let mut publish_at = Instant::now() + self.dice.ms(400);
        let mut misfortune_at = Instant::now() + self.dice.ms(self.climate.misfortune_every_ms);
        while Instant::now() < until && !is_violated() {
            let step = Duration::from_millis(1 + self.dice.below(STEP_MS_MAX));
            let fell = self.fell.clone();
            tokio::select! {
                biased;
                () = fell.notified() => {
                    note("fuse");
                    self.crash_node(true).await;
                }
                () = sleep(step) => self.shop.move_clock(step.as_millis() as i64),
            }
            let now = Instant::now();
            if self.full_until.is_some_and(|until| until <= now) {
                self.empty();
            }
            if edit_at <= now {
                let count = if self.climate.bursts && self.dice.chance(20) { self.dice.below(60) } else { 1 };
                (0..count).for_each(|_| self.edit());
                edit_at = now + self.dice.ms(2 * self.climate.op_every_ms);
            }
            if publish_at <= now {
                self.publish();
                publish_at = now + self.dice.ms(1_500);
            }
            if misfortune_at <= now {
                self.misfortune().await;
                misfortune_at = Instant::now() + self.dice.ms(self.climate.misfortune_every_ms);
            }
            self.check();
        }
    }

    /// A hostile time, then peace, in which both sides have to come to agree.
    pub(crate) async fn live(mut self) {
        tell("world", || format!("{:?}", self.climate));
        self.pass(Instant::now() + HOSTILE).await;
        let well = Climate { congestion: self.climate.congestion, ..Climate::calm() };
        tell("world", || "all is well from here on".to_owned());
        self.net.heal(well.clone());
        self.region.heal(well);
        self.empty();
        let until = Instant::now() + HEAL_MAX;
        while !is_violated() {
            let Err(why) = self.agreed() else { break };
            if Instant::now() > until {
                let status = self.node.as_ref().map(|node| node.link.status());
                violate(format!("no agreement: {why}; the link: {status:?}"));
            }
            let fell = self.fell.clone();
            tokio::select! {
                biased;
                () = fell.notified() => self.crash_node(true).await,
                () = sleep(Duration::from_millis(50)) => self.shop.move_clock(50),
            }
        }
        if let Some(node) = self.node.as_ref().filter(|_| !is_violated()) {
            self.shop.check_end(&node.state, &self.region.disk.lock());
            let dead = self.region.disk.lock().dead.len();
            tell("world", || {
                format!("both sides agree; {dead} dead letters, {} packets", self.net.packets())
            });
        }
        self.end().await;
    }

    pub(crate) async fn end(mut self) {
        self.region_life.end();
        self.end_node(false).await;
    }
}

//! One log on its way to one node: what is sent, what is applied, and whether it is a tail or a snapshot.

use std::collections::VecDeque;

use crate::{
    Applied, Cursor, Heads, Log, Part, RegionFault, SnapshotPage, Staging, Tail,
    limits::{
        FEED_PATIENCE_MS, RECORD_BYTES_MAX, RESUME_BYTES_MAX, RETRY_MS_MAX, RETRY_MS_MIN, TAIL_BYTES_TARGET,
        TAIL_RECORDS_MAX, TAIL_WIRE_BYTES_MAX, TAILS_IN_FLIGHT_MAX,
    },
    planted::{Bug, planted},
};

/// A read of the region's store that a feed wants. The ticket comes back with the answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Want {
    Tail { ticket: u32, from: u64 },
    Snapshot { ticket: u32, resume: Option<Vec<u8>> },
}

/// A snapshot half-way.
#[derive(Debug)]
struct Snapshot {
    /// Sets it apart from an earlier reading of the same version, whose pages may have ended elsewhere. 0: one that an
    /// earlier connection began.
    attempt: u64,
    /// Fixed by the first page.
    version: Option<u64>,
    index: u32,
    resume: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Feed {
    log: Log,
    /// The history that the region's versions count.
    region_epoch: u32,
    /// Newest version at the region.
    head: u64,
    /// The node's cursor, as it told.
    applied: u64,
    /// The node's cursor when it has applied everything in flight.
    sent: u64,
    /// Sent and not applied: (version, part of a snapshot).
    in_flight: VecDeque<(u64, Part)>,
    snapshot: Option<Snapshot>,
    /// What the node has of a snapshot of this history that an earlier connection began.
    staged: Option<Staging>,
    /// Snapshots begun on this connection.
    attempts: u64,
    /// The node has another history, or knows a future that a restore has undone: it must take our state whole, whatever the
    /// head is by then.
    reset: bool,
    /// A read is under way.
    reading: bool,
    /// Counts the rewinds: a read from before a rewind is out of date.
    ticket: u32,
    progress_ms: u64,
    retry_ms: u64,
    retry_at_ms: Option<u64>,
}

impl Feed {
    pub(super) fn new(
        cursor: &Cursor,
        staged: Option<Staging>,
        region_epoch: u32,
        heads: &Heads,
        now_ms: u64,
    ) -> Self {
        let Cursor { log, version, .. } = *cursor;
        let head = heads.get(log);
        let reset = version > head || cursor.is_of_another(region_epoch);
        // Of another history, of a future that a restore has undone, or overtaken by the tail: not to be gone on with.
        let staged = staged.filter(|staged| {
            staged.region_epoch == region_epoch
                && staged.version <= head
                && (reset || staged.version > version)
                && staged.parts > 0
        });
        let mut feed = Self {
            log,
            region_epoch,
            head,
            applied: version,
            sent: version,
            in_flight: VecDeque::new(),
            snapshot: None,
            staged,
            attempts: 0,
            reset,
            reading: false,
            ticket: 0,
            progress_ms: now_ms,
            retry_ms: RETRY_MS_MIN,
            retry_at_ms: None,
        };
        if feed.reset {
            feed.begin_snapshot();
        }
        feed
    }

    fn begin_snapshot(&mut self) {
        self.snapshot = Some(match self.staged.take() {
            Some(Staging { version, parts, next, .. }) => {
                Snapshot { attempt: 0, version: Some(version), index: parts, resume: Some(next) }
            }
            None => {
                self.attempts += 1;
                Snapshot { attempt: self.attempts, version: None, index: 0, resume: None }
            }
        });
    }

    /// Whether a snapshot has to turn the node back.
    pub(super) const fn turns_back(&self) -> bool {
        self.reset
    }

    pub(super) const fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) fn on_head(&mut self, head: u64) {
        self.head = self.head.max(head);
    }

    pub(super) fn next_read(&mut self, now_ms: u64) -> Option<Want> {
        if self.reading
            || self.in_flight.len() >= TAILS_IN_FLIGHT_MAX
            || self.retry_at_ms.is_some_and(|at| at > now_ms)
        {
            return None;
        }
        let ticket = self.ticket;
        let want = match &self.snapshot {
            Some(snapshot) => Want::Snapshot { ticket, resume: snapshot.resume.clone() },
            None if self.head > self.sent => Want::Tail { ticket, from: self.sent },
            None => return None,
        };
        self.retry_at_ms = None;
        self.reading = true;
        Some(want)
    }

    pub(super) fn on_tail(
        &mut self,
        ticket: u32,
        tail: Tail,
        now_ms: u64,
    ) -> Result<Option<Tail>, RegionFault> {
        if !self.take_ticket(ticket) {
            return Ok(None);
        }
        if tail.log != self.log || tail.from != self.sent || tail.part != Part::Changes || tail.to < tail.from
        {
            return Err(RegionFault::Store("a tail that was not asked for"));
        }
        if tail.to == tail.from {
            // Nothing there yet: wait for the head to move rather than ask again and again.
            self.head = self.sent;
            return Ok(None);
        }
        self.send(tail, now_ms).map(Some)
    }

    /// The tail is not kept that far back.
    pub(super) fn on_gone(&mut self, ticket: u32) {
        if self.take_ticket(ticket) {
            self.begin_snapshot();
        }
    }

    pub(super) fn on_page(
        &mut self,
        ticket: u32,
        page: SnapshotPage,
        now_ms: u64,
    ) -> Result<Option<Tail>, RegionFault> {
        if !self.take_ticket(ticket) {
            return Ok(None);
        }
        let Some(snapshot) = &mut self.snapshot else {
            return Ok(None);
        };
        let read_at = if planted(Bug::SeamSkipped) { page.version.max(self.head) } else { page.version };
        let version = *snapshot.version.get_or_insert(read_at);
        let (index, attempt) = (snapshot.index, snapshot.attempt);
        let part = Part::Snapshot { index, last: page.next.is_none() };
        snapshot.index = snapshot.index.saturating_add(1);
        snapshot.resume = page.next;
        let next = snapshot.resume.clone().filter(|next| next.len() <= RESUME_BYTES_MAX);
        if snapshot.resume.is_none() {
            self.snapshot = None;
        }
        let records = page.records;
        self.send(Tail { log: self.log, from: attempt, to: version, part, records, next }, now_ms).map(Some)
    }

    fn take_ticket(&mut self, ticket: u32) -> bool {
        let current = self.reading && ticket == self.ticket;
        if current {
            self.reading = false;
            self.retry_ms = RETRY_MS_MIN;
        }
        current
    }

    fn send(&mut self, tail: Tail, now_ms: u64) -> Result<Tail, RegionFault> {
        if tail.records.len() > TAIL_RECORDS_MAX
            || tail.bytes() > TAIL_BYTES_TARGET + RECORD_BYTES_MAX
            || tail.records.iter().any(|record| record.body.len() > RECORD_BYTES_MAX)
        {
            return Err(RegionFault::Store("a tail or a page beyond its limits"));
        }
        const { assert!(TAIL_WIRE_BYTES_MAX > TAIL_BYTES_TARGET + RECORD_BYTES_MAX + 16 * TAIL_RECORDS_MAX) };
        if self.in_flight.is_empty() {
            self.progress_ms = now_ms;
        }
        self.in_flight.push_back((tail.to, tail.part));
        if !matches!(tail.part, Part::Snapshot { last: false, .. }) {
            self.sent = tail.to;
        }
        Ok(tail)
    }

    pub(super) fn on_read_failed(&mut self, ticket: u32, now_ms: u64) {
        if self.take_ticket(ticket) {
            self.retry_at_ms = Some(now_ms + self.retry_ms);
            self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
        }
    }

    /// The node tells how far it is. Returns whether its cursor moved.
    pub(super) fn on_applied(&mut self, told: Applied, now_ms: u64) -> bool {
        let mut turned_back = false;
        // A version of the history that the node is to give up can be equal to one of ours, and says nothing.
        let of_ours = told.region_epoch.is_none_or(|epoch| epoch == self.region_epoch);
        while let Some(&(version, part)) = self.in_flight.front() {
            let staged = match (told.staged, part) {
                (Some(staged), Part::Snapshot { index, .. }) => {
                    staged.version == version && staged.parts > index
                }
                _ => false,
            };
            // A snapshot that turns a log back is applied when the cursor is at it, not above it.
            let whole =
                of_ours && (told.version == version || (told.version > version && version > self.applied));
            if !staged && !whole {
                break;
            }
            if whole && self.reset && matches!(part, Part::Snapshot { last: true, .. }) {
                self.reset = false;
                turned_back = true;
            }
            self.in_flight.pop_front();
            self.progress_ms = now_ms;
        }
        let moved = turned_back || (of_ours && told.version > self.applied);
        if moved {
            self.applied = told.version;
        }
        moved
    }

    /// The node misses something: send from its cursor again.
    pub(super) fn on_rewind(&mut self, cursor: u64, now_ms: u64) {
        self.sent = cursor.max(self.applied);
        self.in_flight.clear();
        self.snapshot = None;
        if self.reset {
            self.begin_snapshot();
        }
        self.reading = false;
        self.ticket = self.ticket.wrapping_add(1);
        self.progress_ms = now_ms;
    }

    /// Gives up waiting for what is in flight, if it is time.
    pub(super) fn on_tick(&mut self, now_ms: u64) {
        if self.patience_ends().is_some_and(|at| at <= now_ms) {
            self.on_rewind(self.applied, now_ms);
        }
    }

    fn patience_ends(&self) -> Option<u64> {
        (!self.in_flight.is_empty()).then_some(self.progress_ms + FEED_PATIENCE_MS)
    }

    /// Tails on their way, for the simulation to bound.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        [self.patience_ends(), self.retry_at_ms].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Record, wire::Staged};

    fn heads(version: u64) -> Heads {
        Heads::from_iter([(Log::Price, version)])
    }

    fn feed(cursor: u64, head: u64) -> Feed {
        feed_of(cursor, Some(3), head)
    }

    fn feed_of(version: u64, region_epoch: Option<u32>, head: u64) -> Feed {
        Feed::new(&Cursor { log: Log::Price, version, region_epoch }, None, 3, &heads(head), 0)
    }

    fn changes(from: u64, to: u64) -> Tail {
        Tail { log: Log::Price, from, to, part: Part::Changes, records: Vec::new(), next: None }
    }

    fn page(version: u64, next: Option<&[u8]>) -> SnapshotPage {
        SnapshotPage {
            version,
            records: vec![Record { version: 1, body: vec![1] }],
            next: next.map(<[u8]>::to_vec),
        }
    }

    fn told(version: u64, staged: Option<(u64, u32)>) -> Applied {
        let staged = staged.map(|(version, parts)| Staged { version, parts });
        Applied { log: Log::Price.code(), version, staged, region_epoch: Some(3) }
    }

    #[test]
    fn reads_ahead_of_the_node_by_a_window_only() {
        let mut feed = feed(0, 100);
        for to in 1..=TAILS_IN_FLIGHT_MAX as u64 {
            assert_eq!(feed.next_read(0), Some(Want::Tail { ticket: 0, from: to - 1 }));
            assert_eq!(feed.next_read(0), None, "one read at a time");
            assert!(feed.on_tail(0, changes(to - 1, to), 0).expect("a good tail").is_some());
        }
        assert_eq!(feed.next_read(0), None);
        assert!(feed.on_applied(told(1, None), 0));
        assert!(feed.next_read(0).is_some());
    }

    #[test]
    fn an_empty_read_does_not_spin() {
        let mut feed = feed(5, 6);
        feed.next_read(0).expect("a read");
        assert_eq!(feed.on_tail(0, changes(5, 5), 0), Ok(None));
        assert_eq!(feed.next_read(0), None);
        feed.on_head(7);
        assert!(feed.next_read(0).is_some());
    }

    #[test]
    fn a_cursor_behind_the_kept_tail_gets_a_snapshot_and_then_the_tail() {
        let mut feed = feed(5, 100);
        feed.next_read(0).expect("a read");
        feed.on_gone(0);
        assert_eq!(feed.next_read(0), Some(Want::Snapshot { ticket: 0, resume: None }));
        feed.on_page(0, page(100, Some(b"m")), 0).expect("a good page").expect("a part");
        assert_eq!(feed.next_read(0), Some(Want::Snapshot { ticket: 0, resume: Some(b"m".to_vec()) }));
        let last = feed.on_page(0, page(103, None), 0).expect("a good page").expect("a part");
        assert_eq!(
            (last.to, last.part),
            (100, Part::Snapshot { index: 1, last: true }),
            "the first page fixes the version"
        );
        assert!(!feed.on_applied(told(5, Some((100, 1))), 0));
        assert!(feed.on_applied(told(100, None), 0));
        feed.on_head(103);
        assert_eq!(feed.next_read(0), Some(Want::Tail { ticket: 0, from: 100 }));
    }

    #[test]
    fn an_interrupted_snapshot_goes_on_where_it_stopped_if_it_still_can() {
        let staged = |version, region_epoch| Staging {
            log: Log::Price,
            version,
            parts: 3,
            region_epoch,
            next: b"m".to_vec(),
        };
        let of = |staged, cursor| {
            let cursor = Cursor { log: Log::Price, version: cursor, region_epoch: Some(3) };
            let mut feed = Feed::new(&cursor, Some(staged), 3, &heads(100), 0);
            feed.next_read(0).expect("a read");
            feed.on_gone(0);
            (feed.next_read(0), feed)
        };
        let (read, mut feed) = of(staged(90, 3), 5);
        assert_eq!(read, Some(Want::Snapshot { ticket: 0, resume: Some(b"m".to_vec()) }));
        let part = feed.on_page(0, page(100, None), 0).expect("a good page").expect("a part");
        assert_eq!((part.from, part.to, part.part), (0, 90, Part::Snapshot { index: 3, last: true }));
        assert!(feed.on_applied(told(90, None), 0));
        assert_eq!(feed.next_read(0), Some(Want::Tail { ticket: 0, from: 90 }), "and what came since");
        for (staged, cursor) in [(staged(90, 2), 5), (staged(101, 3), 5), (staged(90, 3), 90)] {
            let (read, _) = of(staged, cursor);
            assert_eq!(read, Some(Want::Snapshot { ticket: 0, resume: None }), "from the beginning");
        }
    }

    #[test]
    fn a_node_ahead_of_a_restored_region_takes_its_state_whole() {
        let mut feed = feed(500, 300);
        feed.on_head(600);
        feed.on_rewind(500, 0);
        assert_eq!(feed.next_read(0), Some(Want::Snapshot { ticket: 1, resume: None }));
        feed.on_page(1, page(600, None), 0).expect("a good page").expect("a part");
        assert!(feed.on_applied(told(600, None), 0));
        assert_eq!(feed.applied(), 600);
        assert_eq!(feed.next_read(0), None);
    }

    #[test]
    fn a_node_of_another_history_takes_our_state_whole_though_its_cursor_would_fit() {
        for (cursor, region_epoch, whole) in [
            (100, Some(2), true),
            (7, Some(2), true),
            (0, Some(2), false),
            (100, Some(3), false),
            // A node of a release that did not note it.
            (100, None, false),
        ] {
            let feed = feed_of(cursor, region_epoch, 100);
            assert_eq!(feed.turns_back(), whole, "{cursor} of {region_epoch:?}");
        }
        let mut feed = feed_of(100, Some(2), 100);
        let of_old = |staged| Applied { region_epoch: Some(2), ..told(100, staged) };
        feed.next_read(0).expect("a read");
        feed.on_page(0, page(100, Some(b"m")), 0).expect("a good page").expect("a part");
        feed.next_read(0).expect("a read");
        feed.on_page(0, page(100, None), 0).expect("a good page").expect("a part");
        assert!(!feed.on_applied(of_old(Some((100, 1))), 0), "the same number, but of the old history");
        assert!(feed.turns_back());
        assert!(feed.on_applied(told(100, None), 0));
        assert!(!feed.turns_back() && feed.next_read(0).is_none());
    }

    #[test]
    fn silence_and_failure_lead_to_another_try() {
        let mut feed = feed(0, 9);
        feed.next_read(0).expect("a read");
        feed.on_read_failed(0, 0);
        assert_eq!(feed.next_read(RETRY_MS_MIN - 1), None);
        feed.next_read(RETRY_MS_MIN).expect("a read");
        feed.on_tail(0, changes(0, 9), 200).expect("a good tail");
        assert_eq!(feed.next_deadline(), Some(200 + FEED_PATIENCE_MS));
        feed.on_tick(200 + FEED_PATIENCE_MS);
        assert_eq!(feed.next_read(40_000), Some(Want::Tail { ticket: 1, from: 0 }));
    }
}

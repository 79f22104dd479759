//! Which events of a batch may be on their way at once. Pure.
//!
//! Of each order one at a time: the next goes when the broker holds the one before, so that nothing that is lost, late or
//! sent again can make the events of an order arrive in another order than that in which they happened. Different orders
//! do not wait for each other.

use std::collections::HashSet;

use souk_commerce::id::OrderId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waits,
    OnItsWay,
    Held,
}

#[derive(Debug)]
struct Item {
    seq: u64,
    order: OrderId,
    state: State,
}

#[derive(Debug)]
pub(super) struct Batch {
    items: Vec<Item>,
    /// Orders of which an event is on its way.
    busy: HashSet<OrderId>,
    /// Nothing before it waits.
    from: usize,
}

impl Batch {
    /// Events by number and order, oldest first.
    pub(super) fn new(events: impl Iterator<Item = (u64, OrderId)>) -> Self {
        let items = events.map(|(seq, order)| Item { seq, order, state: State::Waits }).collect();
        Self { items, busy: HashSet::new(), from: 0 }
    }

    /// Marks the next event that may go as on its way, and says which. None: nothing may go before something is
    /// acknowledged.
    pub(super) fn send_next(&mut self, unacknowledged_max: usize) -> Option<usize> {
        if self.busy.len() >= unacknowledged_max {
            return None;
        }
        let waits = |item: &Item| item.state == State::Waits;
        self.from += self.items[self.from..].iter().take_while(|item| !waits(item)).count();
        let may_go = |item: &Item| waits(item) && !self.busy.contains(&item.order);
        let index = self.from + self.items[self.from..].iter().position(may_go)?;
        let item = &mut self.items[index];
        item.state = State::OnItsWay;
        self.busy.insert(item.order);
        Some(index)
    }

    /// The broker holds it.
    pub(super) fn held(&mut self, index: usize) {
        self.arrived(index, State::Held);
    }

    /// As far as we know the broker does not hold it.
    pub(super) fn failed(&mut self, index: usize) {
        self.arrived(index, State::Waits);
        self.from = self.from.min(index);
    }

    fn arrived(&mut self, index: usize, state: State) {
        let item = &mut self.items[index];
        assert_eq!(item.state, State::OnItsWay, "an event comes back once for each time that it was sent");
        item.state = state;
        self.busy.remove(&item.order);
    }

    /// The number of the last event of those from the beginning that the broker holds without a gap.
    pub(super) fn whole(&self) -> Option<u64> {
        self.items.iter().take_while(|item| item.state == State::Held).last().map(|item| item.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(orders: &[u8]) -> Batch {
        Batch::new((10..).zip(orders).map(|(seq, order)| (seq, OrderId([*order; 16]))))
    }

    /// Everything that may go now.
    fn go(batch: &mut Batch, max: usize) -> Vec<usize> {
        std::iter::from_fn(|| batch.send_next(max)).collect()
    }

    #[test]
    fn an_event_goes_when_the_one_before_of_its_order_is_held_and_others_do_not_wait() {
        let mut batch = batch(&[1, 1, 2, 1, 3]);
        assert_eq!(go(&mut batch, 9), [0, 2, 4]);
        batch.held(2);
        assert_eq!(
            go(&mut batch, 9),
            Vec::<usize>::new(),
            "order 2 has no other, and order 1 waits for its first"
        );
        batch.failed(0);
        batch.held(4);
        assert_eq!(batch.whole(), None, "two are held, and the first is not");
        assert_eq!(go(&mut batch, 9), [0], "the first of order 1 again, and not its second");
        batch.held(0);
        assert_eq!(batch.whole(), Some(10));
        assert_eq!(go(&mut batch, 9), [1]);
        batch.held(1);
        assert_eq!((batch.whole(), go(&mut batch, 9)), (Some(12), vec![3]));
        batch.held(3);
        assert_eq!(batch.whole(), Some(14), "the last number of all");
    }

    #[test]
    fn no_more_are_on_their_way_than_may_be() {
        let mut batch = batch(&[1, 2, 3, 4]);
        assert_eq!(go(&mut batch, 2), [0, 1]);
        batch.held(1);
        assert_eq!(go(&mut batch, 2), [2]);
    }
}

//! The laws of the cart, on histories that several replicas make at once, and the behaviour that shoppers see.

use proptest::collection::vec;
use proptest::prelude::*;

use super::state::Cart;
use super::*;

fn line(sku: &str) -> Entry {
    Entry::Line(LineKey::of(sku.parse().expect("a sku")))
}

fn dot(node: u32, n: u32) -> Dot {
    Dot { node: NodeId(node), epoch: Epoch(1), n }
}

/// A replica with the node that edits it.
struct Replica {
    node: NodeId,
    cart: Cart,
    now: u64,
}

impl Replica {
    fn new(node: u32) -> Self {
        Self { node: NodeId(node), cart: Cart::new(), now: 1_000 }
    }

    /// One delta: made, applied here, and returned for the others.
    fn edit(&mut self, change: impl FnOnce(&mut Edit<'_>)) -> Delta {
        self.now += 1;
        let mut edit = self.cart.edit(self.node, Epoch(1), Hlc::at(self.now));
        change(&mut edit);
        let delta = edit.finish();
        self.cart.apply(&delta);
        delta
    }

    fn add(&mut self, sku: &str, more: i32) -> Delta {
        self.edit(|e| e.add(line(sku), more).expect("room"))
    }

    fn set(&mut self, sku: &str, to: u32) -> Delta {
        self.edit(|e| e.set(line(sku), to).expect("room"))
    }

    fn remove(&mut self, sku: &str) -> Delta {
        self.edit(|e| e.remove(line(sku)))
    }

    fn quantity(&self, sku: &str) -> u32 {
        self.cart.quantity(&line(sku))
    }
}

fn both(a: &mut Replica, b: &mut Replica) {
    a.cart.merge(&b.cart);
    b.cart.merge(&a.cart);
    assert_eq!(a.cart, b.cart);
    assert_eq!(a.cart.digest(), b.cart.digest());
}

#[test]
fn concurrent_additions_add_up() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.add("MUG", 1);
    b.add("MUG", 1);
    both(&mut a, &mut b);
    assert_eq!(a.quantity("MUG"), 2);
}

#[test]
fn a_removal_beats_what_it_saw_and_an_unseen_addition_survives() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.add("MUG", 3);
    both(&mut a, &mut b);
    b.remove("MUG");
    a.add("MUG", 2);
    both(&mut a, &mut b);
    assert_eq!(a.quantity("MUG"), 2);
    b.remove("MUG");
    both(&mut a, &mut b);
    assert_eq!(a.quantity("MUG"), 0);
    assert!(a.cart.lines().is_empty());
}

#[test]
fn of_two_concurrent_settings_the_newer_wins_and_a_later_addition_is_on_top() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    b.now += 10;
    a.set("MUG", 5);
    b.set("MUG", 7);
    both(&mut a, &mut b);
    assert_eq!(a.quantity("MUG"), 7);
    a.add("MUG", 1);
    both(&mut a, &mut b);
    assert_eq!(b.quantity("MUG"), 8);
    // Having seen the other's setting beats any stamp.
    a.set("MUG", 2);
    both(&mut a, &mut b);
    assert_eq!(b.quantity("MUG"), 2);
}

#[test]
fn a_delta_that_comes_late_or_twice_changes_nothing() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let added = a.add("MUG", 3);
    let removed = a.remove("MUG");
    b.cart.apply(&removed);
    b.cart.apply(&added);
    b.cart.apply(&added);
    assert_eq!(b.quantity("MUG"), 0);
    assert_eq!(a.cart, b.cart);
}

#[test]
fn lines_stay_in_the_order_in_which_they_were_first_added() {
    let mut a = Replica::new(1);
    for sku in ["ZEBRA", "MUG", "APPLE"] {
        a.add(sku, 1);
    }
    a.set("ZEBRA", 4);
    a.edit(|e| e.add(Entry::Coupon("TEN".parse().expect("a coupon")), 1).expect("room"));
    a.edit(|e| {
        e.add(line("YAK"), 1).expect("room");
        e.add(line("BEE"), 1).expect("room");
    });
    let lines: Vec<String> = a.cart.lines().iter().map(|(key, n)| format!("{key}={n}")).collect();
    assert_eq!(lines, ["ZEBRA=4", "MUG=1", "APPLE=1", "YAK=1", "BEE=1"]);
    assert_eq!(a.cart.coupons().len(), 1);
}

#[test]
fn later_calls_of_one_edit_see_the_earlier_ones() {
    let mut a = Replica::new(1);
    a.add("MUG", 5);
    let delta = a.edit(|e| {
        e.add(line("MUG"), 9).expect("room");
        e.set(line("MUG"), 10).expect("room");
        e.add(line("CUP"), 2).expect("room");
        e.remove(line("CUP"));
        e.add(line("CUP"), 1).expect("room");
        e.add(line("JUG"), 1).expect("room");
        e.remove(line("JUG"));
    });
    assert_eq!((a.quantity("MUG"), a.quantity("CUP"), a.quantity("JUG")), (10, 1, 0));
    // No number is skipped: a gap would be remembered for ever.
    let given: Vec<u32> = delta.changes.iter().filter_map(|c| c.put.map(|(dot, _)| dot.n)).collect();
    assert_eq!(given, [2, 3]);
    assert!(delta.is_by(NodeId(1), Epoch(1)));
    assert!(delta.is_by(NodeId(1), Epoch(2)), "sent again under a new number");
    assert!(!delta.is_by(NodeId(1), Epoch(0)) && !delta.is_by(NodeId(2), Epoch(1)));
    assert!(a.edit(|_| ()).is_empty());
    assert!(a.remove("NOTHING").is_empty());
}

#[test]
fn drops_can_be_taken_out_of_a_delta_and_the_rest_stays() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    b.cart.apply(&a.add("MUG", 1));
    let unknown = dot(3, 1);
    let mut delta = b.edit(|e| e.set(line("MUG"), 4).expect("room"));
    delta.changes[0].drops.push(unknown);
    assert_eq!(delta.retain_drops(|dot| a.cart.has_seen(dot)), 1);
    assert_eq!(delta.changes[0].drops, [dot(1, 1)]);
    a.cart.apply(&delta);
    assert_eq!((a.quantity("MUG"), a.cart.has_seen(&unknown)), (4, false));
}

#[test]
fn many_additions_fold_without_losing_or_doubling_concurrent_ones() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    for _ in 0..40 {
        a.add("MUG", 1);
        b.add("MUG", 1);
    }
    both(&mut a, &mut b);
    // Both fold at the same time.
    a.add("MUG", 1);
    b.add("MUG", 1);
    both(&mut a, &mut b);
    assert_eq!(a.quantity("MUG"), 82);
    for n in 0..10 * DOTS_PER_ENTRY_MAX {
        let bytes = a.cart.to_bytes().len();
        a.add("MUG", 1);
        assert!(
            a.cart.to_bytes().len() < bytes + 30 && bytes < 30 * (DOTS_PER_ENTRY_MAX + 2),
            "{n}: {bytes}"
        );
    }
    assert_eq!(a.quantity("MUG"), 82 + 640);
}

#[test]
fn a_cart_is_full_at_its_bound_and_can_still_be_changed() {
    let mut a = Replica::new(1);
    a.edit(|e| {
        for n in 0..ENTRIES_MAX {
            e.add(line(&format!("S{n}")), 1).expect("room");
        }
        assert_eq!(e.add(line("ONE-MORE"), 1), Err(CartFull));
    });
    assert!(!a.cart.has_room_for(&line("ONE-MORE")));
    assert!(a.cart.has_room_for(&line("S0")));
    a.set("S0", 2);
    assert_eq!(a.cart.lines().len(), ENTRIES_MAX);
    let emptied = a.edit(|e| (0..ENTRIES_MAX).for_each(|n| e.remove(line(&format!("S{n}")))));
    for part in emptied.split() {
        let site = "shop".parse().expect("a site");
        let op = crate::op::Operation::Cart { site, cart: crate::id::CartId([7; 16]), at_ms: 1, delta: part };
        let bytes = op.to_bytes();
        assert!(bytes.len() <= OPERATION_BYTES_MAX, "{}", bytes.len());
        assert_eq!(crate::op::Operation::from_bytes(&bytes), Ok(op));
    }
    assert!(a.cart.lines().is_empty());
}

#[test]
fn quantities_are_clamped_whatever_the_dots_say() {
    let mut cart = Cart::new();
    for (n, effect) in
        [(1, Effect::Set(u32::MAX, Hlc(1))), (2, Effect::Add(i32::MAX)), (3, Effect::Add(i32::MAX))]
    {
        let put = Some((dot(9, n), Put { effect, rank: u32::MAX }));
        cart.apply(&Delta {
            country: None,
            changes: vec![Change { entry: line("MUG"), drops: vec![], put }],
        });
    }
    assert_eq!(cart.quantity(&line("MUG")), QUANTITY_MAX);
    let put = Some((dot(9, 4), Put { effect: Effect::Set(0, Hlc(2)), rank: 0 }));
    let drops = vec![dot(9, 1), dot(9, 2), dot(9, 3)];
    cart.apply(&Delta { country: None, changes: vec![Change { entry: line("MUG"), drops, put }] });
    for n in 5..9 {
        let put = Some((dot(9, n), Put { effect: Effect::Add(i32::MIN), rank: 0 }));
        cart.apply(&Delta {
            country: None,
            changes: vec![Change { entry: line("MUG"), drops: vec![], put }],
        });
    }
    assert_eq!(cart.quantity(&line("MUG")), 0);
    // The highest rank there is leaves no higher one for a new line, and that is no reason to fail.
    let delta = cart.edit(NodeId(1), Epoch(1), Hlc(5));
    assert!(delta.finish().is_empty());
}

#[test]
fn the_newer_country_wins_everywhere() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.edit(|e| e.country("FR".parse().expect("a country")));
    b.edit(|e| e.country("DE".parse().expect("a country")));
    // Equal stamps: the letters decide, and both agree.
    both(&mut a, &mut b);
    assert_eq!(a.cart.country().map(Country::as_str), Some("FR"));
    b.edit(|e| e.country("DE".parse().expect("a country")));
    both(&mut a, &mut b);
    assert_eq!(a.cart.country().map(Country::as_str), Some("DE"));
    // A clock that is behind does not make a choice vain.
    a.now = 1;
    a.edit(|e| e.country("IT".parse().expect("a country")));
    both(&mut a, &mut b);
    assert_eq!(b.cart.country().map(Country::as_str), Some("IT"));
}

#[test]
fn a_line_is_named_on_the_api_by_its_sku_and_plugin() {
    for text in ["MUG", "SET 2 TEA TOWELS", "MUG~cart"] {
        assert_eq!(text.parse::<LineKey>().map(|key| key.to_string()), Ok(text.to_owned()));
    }
    for text in ["", "~cart", "MUG~", "MUG~Cart", "MUG~a~b", "a/b"] {
        assert!(text.parse::<LineKey>().is_err(), "{text:?}");
    }
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Add(usize, u8, i32),
    Set(usize, u8, u32),
    Remove(usize, u8),
    Country(usize, bool),
    /// The second learns everything that the first knows.
    Merge(usize, usize),
    /// The second applies a delta that was made earlier, by anyone.
    Deliver(usize, prop::sample::Index),
    Clock(usize, u8),
}

const NODES: usize = 4;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..NODES;
    let entry = 0..3u8;
    vec(
        prop_oneof![
            4 => (node.clone(), entry.clone(), -3..9i32).prop_map(|(i, e, n)| Step::Add(i, e, n)),
            3 => (node.clone(), entry.clone(), 0..9u32).prop_map(|(i, e, n)| Step::Set(i, e, n)),
            2 => (node.clone(), entry).prop_map(|(i, e)| Step::Remove(i, e)),
            1 => (node.clone(), any::<bool>()).prop_map(|(i, c)| Step::Country(i, c)),
            2 => (node.clone(), node.clone()).prop_map(|(i, j)| Step::Merge(i, j)),
            3 => (node.clone(), any::<prop::sample::Index>()).prop_map(|(i, at)| Step::Deliver(i, at)),
            1 => (node, any::<u8>()).prop_map(|(i, ms)| Step::Clock(i, ms)),
        ],
        1..60,
    )
}

fn entry(e: u8) -> Entry {
    match e {
        0 => line("MUG"),
        1 => Entry::Line("MUG~cart".parse().expect("a line")),
        _ => Entry::Coupon("TEN".parse().expect("a coupon")),
    }
}

/// Replicas after a history, and every delta that was made on the way.
fn history(steps: Vec<Step>) -> (Vec<Replica>, Vec<Delta>) {
    let mut replicas: Vec<_> = (0..NODES).map(|i| Replica::new(u32::try_from(i).expect("few") + 1)).collect();
    let mut deltas = Vec::new();
    for step in steps {
        match step {
            Step::Add(i, e, n) => deltas.push(replicas[i].edit(|edit| edit.add(entry(e), n).expect("room"))),
            Step::Set(i, e, n) => deltas.push(replicas[i].edit(|edit| edit.set(entry(e), n).expect("room"))),
            Step::Remove(i, e) => deltas.push(replicas[i].edit(|edit| edit.remove(entry(e)))),
            Step::Country(i, fr) => {
                let country = if fr { "FR" } else { "DE" }.parse().expect("a country");
                deltas.push(replicas[i].edit(|edit| edit.country(country)));
            }
            Step::Merge(i, j) => {
                let from = replicas[i].cart.clone();
                replicas[j].cart.merge(&from);
            }
            Step::Deliver(i, at) if !deltas.is_empty() => replicas[i].cart.apply(at.get(&deltas)),
            Step::Deliver(..) => {}
            Step::Clock(i, ms) => replicas[i].now += u64::from(ms),
        }
    }
    (replicas, deltas)
}

fn merged(a: &Cart, b: &Cart) -> Cart {
    let mut c = a.clone();
    c.merge(b);
    c
}

proptest! {
    #[test]
    fn merge_is_associative_commutative_and_idempotent(steps in steps()) {
        let (replicas, _) = history(steps);
        let [a, b, c] = [&replicas[0].cart, &replicas[1].cart, &replicas[2].cart];
        prop_assert_eq!(merged(a, b), merged(b, a));
        prop_assert_eq!(merged(&merged(a, b), c), merged(a, &merged(b, c)));
        prop_assert_eq!(&merged(a, a), a);
        prop_assert_eq!(merged(&merged(a, b), b), merged(a, b));
    }

    #[test]
    fn deltas_in_any_order_and_number_equal_the_merge_of_states(
        steps in steps(),
        order in vec(any::<prop::sample::Index>(), 0..80),
    ) {
        let (replicas, deltas) = history(steps);
        let states = replicas.iter().fold(Cart::new(), |all, r| merged(&all, &r.cart));
        let mut shuffled = Cart::new();
        if !deltas.is_empty() {
            order.iter().for_each(|at| shuffled.apply(at.get(&deltas)));
        }
        deltas.iter().rev().for_each(|delta| shuffled.apply(delta));
        prop_assert_eq!(&shuffled, &states);
        prop_assert_eq!(shuffled.to_bytes(), states.to_bytes());
        prop_assert_eq!(shuffled.lines(), states.lines());
    }

    #[test]
    fn a_replica_that_knows_more_is_not_changed_by_one_that_knows_less(steps in steps()) {
        let (replicas, _) = history(steps);
        let all = replicas.iter().fold(Cart::new(), |all, r| merged(&all, &r.cart));
        for replica in &replicas {
            prop_assert_eq!(&merged(&all, &replica.cart), &all);
        }
    }

    #[test]
    fn carts_and_deltas_survive_their_codec(steps in steps()) {
        let (replicas, deltas) = history(steps);
        for replica in &replicas {
            let bytes = replica.cart.to_bytes();
            prop_assert_eq!(Cart::from_bytes(&bytes), Ok(replica.cart.clone()));
        }
        for delta in deltas {
            let bytes = codec::to_bytes(&delta);
            prop_assert_eq!(codec::from_bytes::<Delta>("a delta", &bytes, OPERATION_BYTES_MAX), Ok(delta));
        }
    }

    #[test]
    fn garbage_is_refused_or_becomes_a_cart_that_works(
        steps in steps(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        noise in vec(any::<u8>(), 0..200),
    ) {
        let _ = Cart::from_bytes(&noise);
        let (replicas, _) = history(steps);
        let mut bytes = replicas[0].cart.to_bytes();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(mut cart) = Cart::from_bytes(&bytes) {
            // One representation: what is read is what is written from then on.
            prop_assert_eq!(Cart::from_bytes(&cart.to_bytes()), Ok(cart.clone()));
            cart.merge(&replicas[1].cart);
            let mut edit = cart.edit(NodeId(1), Epoch(1), Hlc::at(9));
            edit.add(line("MUG"), 1).expect("room");
            edit.set(line("CUP"), 1).expect("room");
            let delta = edit.finish();
            cart.apply(&delta);
            prop_assert!(cart.quantity(&line("CUP")) > 0);
            let _ = (cart.lines(), cart.coupons(), cart.digest(), cart.newest());
        }
    }
}

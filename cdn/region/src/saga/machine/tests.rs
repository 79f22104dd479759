//! The machine against a bank that keeps its promises about keys and no other: whatever is lost, repeated, late or said
//! to have failed, and wherever the driver dies.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::call::ANSWERED_DEAD_MS;
use super::*;

/// What a bank does with a request, apart from what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The driver dies before it has sent.
    CrashBefore,
    /// The request is carried out and the driver dies before it hears of it.
    CrashAfter,
    /// The request never arrives.
    Lost,
    /// The answer never arrives.
    AnswerLost,
    /// The bank fails before it does anything, and says the same to every repetition.
    FailsFirst,
    /// It fails after it has done it, and says the same to every repetition.
    FailsLast,
    /// It takes nothing now, and says so.
    NotNow,
    /// The answer is given twice, the second one to whoever holds the row next.
    Twice,
    /// A second driver, long given up, sends the same once more.
    Ghost,
}

const FAULTS: [Fault; 10] = [
    Fault::None,
    Fault::CrashBefore,
    Fault::CrashAfter,
    Fault::Lost,
    Fault::AnswerLost,
    Fault::FailsFirst,
    Fault::FailsLast,
    Fault::NotNow,
    Fault::Twice,
    Fault::Ghost,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paid {
    Declined,
    Authorized,
    Captured,
    Voided,
    Refunded,
}

/// One shopper's payments at a bank.
#[derive(Debug, Default)]
struct Bank {
    refuses_card: bool,
    /// What each key was answered.
    said: BTreeMap<(&'static str, u32), Outcome>,
    payments: Vec<Paid>,
    captures: u32,
    refunds: u32,
}

impl Bank {
    fn ask(&mut self, op: Op, attempt: u32, fault: Fault) -> Outcome {
        if let Some(said) = self.said.get(&(op.name(), attempt)) {
            return said.clone();
        }
        let failed = Outcome::Unknown { answered: true };
        let outcome = match fault {
            Fault::NotNow => return Outcome::NotNow,
            Fault::FailsFirst => failed,
            Fault::FailsLast => {
                self.carry_out(op);
                failed
            }
            _ => self.carry_out(op),
        };
        self.said.insert((op.name(), attempt), outcome.clone());
        outcome
    }

    fn carry_out(&mut self, op: Op) -> Outcome {
        let refused = || Outcome::Refused { code: "unexpected_state".to_owned() };
        let done = || Outcome::Done { reference: Some("pi".to_owned()) };
        if op == Op::Authorize {
            if self.refuses_card {
                self.payments.push(Paid::Declined);
                return Outcome::Declined { code: "card_declined".to_owned() };
            }
            self.payments.push(Paid::Authorized);
            return done();
        }
        let Some(paid) = self.payments.last_mut() else { return refused() };
        match (op, *paid) {
            (Op::Capture, Paid::Authorized) => {
                *paid = Paid::Captured;
                self.captures += 1;
            }
            (Op::Void, Paid::Authorized) => *paid = Paid::Voided,
            (Op::Refund, Paid::Captured) => {
                *paid = Paid::Refunded;
                self.refunds += 1;
            }
            _ => return refused(),
        }
        done()
    }

    fn found(&self) -> Found {
        let reference = "pi".to_owned();
        match self.payments.last() {
            None => Found::Absent,
            Some(Paid::Declined) => Found::Declined,
            Some(Paid::Authorized) => Found::Authorized { reference },
            Some(Paid::Captured) => Found::Captured { reference },
            Some(Paid::Voided) => Found::Voided { reference },
            Some(Paid::Refunded) => Found::Refunded { reference },
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Move {
    /// The next step, with what goes wrong in it.
    Work(Fault),
    Wait(u64),
    Wish(Wish),
    Hint,
}

/// The row, its driver's clock, and what its effects have come to.
struct World {
    saga: Saga,
    bank: Bank,
    now_ms: u64,
    placed: u32,
    released: u32,
    opened: u32,
    told: Vec<Event>,
}

impl World {
    fn new(capture: bool, refuses_card: bool) -> Self {
        let bank = Bank { refuses_card, ..Bank::default() };
        let saga = Saga::reserved(capture, 0);
        Self { saga, bank, now_ms: 0, placed: 0, released: 0, opened: 0, told: Vec::new() }
    }

    fn note(&mut self, effects: Effects) {
        for effect in effects {
            match effect {
                Effect::Place => self.placed += 1,
                Effect::Release => self.released += 1,
                Effect::OpenCart => self.opened += 1,
                Effect::Tell(event) => self.told.push(event),
            }
        }
    }

    /// One driver: takes the row up, does one step, and puts it down.
    fn work(&mut self, fault: Fault) {
        self.saga.resume();
        match self.saga.step(self.now_ms) {
            Step::Rest => {}
            Step::LookUp => match fault {
                Fault::CrashBefore | Fault::CrashAfter => {}
                Fault::Lost | Fault::AnswerLost | Fault::NotNow => self.saga.found_nothing_out(),
                _ => {
                    let found = self.bank.found();
                    let effects = self.saga.found(&found, self.now_ms);
                    self.note(effects);
                    // What the look-up left open is sent again by the same driver.
                    if let Step::Send { op, attempt } = self.saga.step(self.now_ms) {
                        self.send(op, attempt, fault);
                    }
                }
            },
            Step::Send { op, attempt } => self.send(op, attempt, fault),
        }
    }

    fn send(&mut self, op: Op, attempt: u32, fault: Fault) {
        let outcome = match fault {
            Fault::CrashBefore => return,
            Fault::CrashAfter => {
                self.bank.ask(op, attempt, fault);
                return;
            }
            Fault::Lost => Outcome::Unknown { answered: false },
            Fault::AnswerLost => {
                self.bank.ask(op, attempt, fault);
                Outcome::Unknown { answered: false }
            }
            _ => self.bank.ask(op, attempt, fault),
        };
        let effects = self.saga.outcome(op, attempt, outcome.clone(), self.now_ms);
        self.note(effects);
        match fault {
            Fault::Twice => {
                let effects = self.saga.outcome(op, attempt, outcome, self.now_ms);
                assert!(effects.is_empty(), "an answer counted twice: {effects:?}");
            }
            Fault::Ghost => drop(self.bank.ask(op, attempt, Fault::None)),
            _ => {}
        }
    }

    /// Nothing goes wrong any more.
    fn calm(&mut self) {
        for _ in 0..200 {
            self.saga.resume();
            let Some(wait_ms) = self.saga.due_in_ms() else { return };
            self.now_ms += wait_ms.max(60_000);
            self.work(Fault::None);
        }
        panic!("it does not come to rest: {:?}", self.saga);
    }

    fn check(&self) {
        let saga = &self.saga;
        assert!(self.bank.payments.len() <= 1, "more than one authorisation: {:?}", self.bank.payments);
        assert!(self.bank.captures <= 1 && self.bank.refunds <= 1, "{:?}", self.bank);
        assert!(self.placed <= 1 && self.released <= 1 && self.opened <= 1);
        assert_eq!(self.placed == 1, saga.placed);
        assert_eq!(self.released == 1, saga.goods == Goods::Released);
        assert!(!(self.opened == 1 && saga.placed), "the cart of an order was opened");
    }

    fn check_at_rest(&self) {
        self.check();
        let state = self.saga.order_state();
        let money = match self.saga.money {
            Money::Authorized => Some(Paid::Authorized),
            Money::Captured => Some(Paid::Captured),
            Money::Refunded => Some(Paid::Refunded),
            Money::Void => None,
            other => panic!("at rest in {other:?}"),
        };
        let kept = self.bank.payments.last().copied();
        let kept = kept.filter(|paid| !matches!(paid, Paid::Declined | Paid::Voided));
        assert_eq!(kept, money, "the books differ: {:?}", self.saga);
        let free = match state {
            OrderState::Declined | OrderState::Cancelled => true,
            OrderState::Refunded => self.saga.goods != Goods::Gone,
            _ => false,
        };
        assert_eq!(free, self.saga.goods == Goods::Released, "{state:?}: {:?}", self.saga);
        assert_eq!(self.opened == 1, state == OrderState::Declined);
        let charged = self.bank.captures > self.bank.refunds;
        assert!(!charged || matches!(state, OrderState::Captured | OrderState::Fulfilled), "{state:?}");
    }
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        8 => (0..FAULTS.len()).prop_map(|index| Move::Work(FAULTS[index])),
        2 => prop_oneof![Just(1_000), Just(LOOK_UP_AFTER_MS), Just(ANSWERED_DEAD_MS), Just(KEY_TRUSTED_MS)]
            .prop_map(Move::Wait),
        2 => (0..Wish::ALL.len()).prop_map(|index| Move::Wish(Wish::ALL[index])),
        1 => Just(Move::Hint),
    ];
    proptest::collection::vec(one, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    /// The promise of the whole house: at most one charge, and units that are either sold or back.
    #[test]
    fn whatever_goes_wrong_nobody_pays_twice_and_no_unit_is_lost(
        moves in moves(), capture in any::<bool>(), refuses_card in prop::bool::weighted(0.1),
    ) {
        let mut world = World::new(capture, refuses_card);
        for step in moves {
            match step {
                Move::Work(fault) => world.work(fault),
                Move::Wait(ms) => world.now_ms += ms,
                Move::Wish(wish) => {
                    let now_ms = world.now_ms;
                    if let Ok(effects) = world.saga.wish(wish, now_ms) {
                        world.note(effects);
                    }
                }
                Move::Hint => world.saga.hint(),
            }
            world.check();
        }
        world.calm();
        world.check_at_rest();
    }
}

fn walk(capture: bool) -> World {
    let mut world = World::new(capture, false);
    world.calm();
    world.check_at_rest();
    world
}

#[test]
fn an_order_that_nothing_happens_to_is_paid_once() {
    let world = walk(true);
    assert_eq!(world.saga.order_state(), OrderState::Captured);
    assert_eq!(world.told, [Event::Placed, Event::Captured]);
    assert_eq!(walk(false).saga.order_state(), OrderState::Placed, "the merchant takes the money later");
}

#[test]
fn a_refused_card_ends_the_checkout_and_opens_the_cart() {
    let mut world = World::new(true, true);
    world.calm();
    world.check_at_rest();
    assert_eq!(
        (world.saga.order_state(), world.saga.why.as_deref()),
        (OrderState::Declined, Some("card_declined"))
    );
    assert_eq!(world.told, [Event::Declined]);
}

#[test]
fn a_stored_failure_is_looked_up_and_never_tried_under_another_key() {
    for (fault, state) in
        [(Fault::FailsLast, OrderState::Captured), (Fault::FailsFirst, OrderState::Declined)]
    {
        let mut world = World::new(true, false);
        world.work(fault);
        assert_eq!(world.saga.order_state(), OrderState::Pending);
        world.calm();
        world.check_at_rest();
        assert_eq!((world.saga.order_state(), world.saga.attempts[Op::Authorize as usize]), (state, 1));
    }
}

/// Sends the authorisation, loses its answer, and has the repetition refused.
fn refused_after_a_lost_answer() -> Saga {
    let mut saga = Saga::reserved(true, 0);
    for outcome in [Outcome::Unknown { answered: false }, Outcome::Refused { code: "idempotency".to_owned() }]
    {
        saga.resume();
        let Step::Send { op, attempt } = saga.step(1_000) else { panic!("it asks for the money") };
        assert_eq!(saga.outcome(op, attempt, outcome, 1_000), []);
    }
    assert_eq!(saga.step(1_000), Step::LookUp);
    assert_eq!(saga.found(&Found::Absent, 1_000), [], "the search cannot know yet");
    assert_eq!((saga.step(1_000), saga.money), (Step::Rest, Money::Authorizing));
    saga
}

#[test]
fn a_refused_repetition_is_not_believed_before_the_search_can_know() {
    let found_at = |found: &Found| {
        let mut saga = refused_after_a_lost_answer();
        let mut now_ms = 1_000;
        let mut looks = 0;
        while now_ms < 1_000 + LOOK_UP_AFTER_MS {
            now_ms += saga.due_in_ms().expect("it is looked up again");
            saga.resume();
            assert_eq!(saga.step(now_ms), Step::LookUp);
            looks += 1;
            if now_ms < 1_000 + LOOK_UP_AFTER_MS {
                assert_eq!(saga.found(&Found::Absent, now_ms), []);
                saga.step(now_ms);
            }
        }
        assert!(looks < 16, "{looks} look-ups");
        let effects = saga.found(found, now_ms);
        (saga.order_state(), effects)
    };
    let reference = "pi".to_owned();
    let (state, effects) = found_at(&Found::Authorized { reference });
    assert_eq!((state, effects), (OrderState::Placed, vec![Effect::Place, Effect::Tell(Event::Placed)]));
    assert_eq!(found_at(&Found::Absent).0, OrderState::Declined);
}

#[test]
fn a_payment_in_the_middle_of_its_confirmation_is_not_declined() {
    let unconfirmed = Found::Unconfirmed { reference: "pi".to_owned() };
    let mut saga = Saga::reserved(true, 0);
    let Step::Send { op, attempt } = saga.step(0) else { panic!("it asks for the money") };
    // A message has named it, and the call takes longer than we wait.
    saga.outcome(op, attempt, Outcome::Unknown { answered: true }, 20_000);
    saga.hint();
    assert_eq!(saga.step(20_000), Step::LookUp);
    assert_eq!((saga.found(&unconfirmed, 20_000), saga.order_state()), (vec![], OrderState::Pending));
    assert_eq!(saga.reference.as_deref(), Some("pi"));
    // It failed over it, and nobody is about it any more.
    saga.resume();
    assert_eq!(saga.step(ANSWERED_DEAD_MS), Step::LookUp);
    saga.found(&unconfirmed, ANSWERED_DEAD_MS);
    assert_eq!(saga.order_state(), OrderState::Declined);
}

#[test]
fn a_checkout_that_nobody_came_to_in_time_is_looked_up_and_not_charged() {
    let mut world = World::new(true, false);
    world.now_ms = ASK_WITHIN_MS;
    world.calm();
    world.check_at_rest();
    assert_eq!((world.saga.order_state(), world.bank.payments.len()), (OrderState::Declined, 0));
    // As after a restore: what the lost database had asked for is found.
    let mut world = World::new(true, false);
    world.bank.ask(Op::Authorize, 1, Fault::None);
    world.now_ms = ASK_WITHIN_MS;
    world.calm();
    world.check_at_rest();
    assert_eq!(world.saga.order_state(), OrderState::Captured);
}

#[test]
fn an_answer_that_is_given_twice_counts_once() {
    let mut saga = Saga::reserved(true, 0);
    let Step::Send { op, attempt } = saga.step(0) else { panic!("it asks for the money") };
    let done = Outcome::Done { reference: Some("pi".to_owned()) };
    assert_eq!(saga.outcome(op, attempt, done.clone(), 1), [Effect::Place, Effect::Tell(Event::Placed)]);
    assert_eq!(saga.outcome(op, attempt, done, 2), []);
}

#[test]
fn what_a_merchant_may_do_is_said_by_the_state() {
    let mut world = walk(true);
    let refused = world.saga.wish(Wish::Cancel, 0).unwrap_err();
    assert_eq!((refused.state, refused.remedy), (OrderState::Captured, "refund it"));
    let effects = world.saga.wish(Wish::Fulfil, 0).unwrap();
    world.note(effects);
    assert_eq!(world.saga.order_state(), OrderState::Fulfilled);
    let effects = world.saga.wish(Wish::Refund, 0).unwrap();
    assert_eq!(effects, [], "the goods are gone: nothing goes back to the shelf");
    world.calm();
    world.check_at_rest();
    assert_eq!(world.saga.order_state(), OrderState::Refunded);
    assert!(
        world.saga.wish(Wish::Capture, 0).is_err() && world.saga.wish(Wish::Refund, 0).unwrap().is_empty()
    );

    let mut world = walk(false);
    assert!(world.saga.wish(Wish::Fulfil, 0).is_err(), "nothing is sent before its money is taken");
    let effects = world.saga.wish(Wish::Cancel, 0).unwrap();
    world.note(effects);
    assert_eq!(world.saga.order_state(), OrderState::Cancelled);
    world.calm();
    world.check_at_rest();
    assert_eq!(world.told, [Event::Placed, Event::Cancelled, Event::Voided]);
}

#[test]
fn an_invoice_is_what_the_merchant_says() {
    let mut saga = Saga::invoiced();
    assert_eq!((saga.order_state(), saga.due_in_ms(), saga.step(0)), (OrderState::Placed, None, Step::Rest));
    assert_eq!(saga.wish(Wish::Fulfil, 0).unwrap(), [Effect::Tell(Event::Fulfilled)]);
    assert!(saga.wish(Wish::Cancel, 0).is_err(), "the goods are on their way");
    assert_eq!(saga.wish(Wish::Capture, 0).unwrap(), [Effect::Tell(Event::Captured)]);
    assert_eq!(saga.wish(Wish::Refund, 0).unwrap(), [Effect::Tell(Event::Refunded)]);
    assert_eq!((saga.goods, saga.due_in_ms()), (Goods::Gone, None));
    let mut saga = Saga::invoiced();
    assert_eq!(saga.wish(Wish::Cancel, 0).unwrap(), [Effect::Release, Effect::Tell(Event::Cancelled)]);
}

#[test]
fn names_are_read_back() {
    for money in Money::ALL {
        assert_eq!(Money::by_name(money.name()), Some(*money));
    }
    assert_eq!((Op::by_name("void"), Goods::by_name("x")), (Some(Op::Void), None));
}

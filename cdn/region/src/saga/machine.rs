//! The life of an order and of its money: what may follow what, whatever is lost, repeated or late.
//!
//! Pure: no clock, no chance, no I/O. Whoever drives it keeps it in a row, and writes the row before it asks the provider
//! for anything ([`Saga::step`]) and after it has heard ([`Saga::outcome`], [`Saga::found`]); a driver that dies in
//! between loses nothing but time ([`Saga::resume`]).
//!
//! ```text
//!   Unasked ─▶ Authorizing ─▶ Authorized ─▶ Capturing ─▶ Captured ─▶ Refunding ─▶ Refunded
//!                  │ no            │ cancel       │ cannot
//!                  ▼               ▼              │
//!                 Void ◀──────── Voiding ◀────────┘
//! ```
//!
//! Three rules keep the shopper's money safe. There is one authorisation per order, under one key, for ever: everything
//! else is asked of the payment that it made. A key is sent again, unchanged, until its outcome is known. A second
//! attempt of another step has another key, and is made only when the provider, asked, shows that the first has done
//! nothing and can do nothing any more.

mod call;
mod words;

use souk_commerce::order::OrderState;

pub(crate) use self::call::{Call, KEY_TRUSTED_MS};
use self::call::{LOOK_UP_AFTER_MS, PAUSE_MAX_MS};
pub(crate) use self::words::{By, Event, Goods, Money, Op, Wish};

/// A checkout that nobody has come to ask the money for until then (the region was down, or comes from a backup) is not
/// charged any more: its shopper has gone, and its key may be forgotten where it was used.
pub(crate) const ASK_WITHIN_MS: u64 = 10 * 60_000;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is done; the provider's name of the payment, if it told one.
    Done { reference: Option<String> },
    /// Whoever holds the shopper's money says no.
    Declined { code: String },
    /// The provider refuses the call itself. Nothing was done by it.
    Refused { code: String },
    /// Nothing was done this time, because the provider could not be reached, or takes no more or nothing from us now.
    NotNow,
    /// It may have been done.
    Unknown {
        /// The provider has said so itself, so that this request is not under way any more.
        answered: bool,
    },
}

/// What the provider has of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Absent,
    /// It does not know itself yet.
    Processing,
    Declined,
    /// It is there and holds nothing yet: whoever was asked to confirm it may still be about it.
    Unconfirmed {
        reference: String,
    },
    Authorized {
        reference: String,
    },
    Captured {
        reference: String,
    },
    Voided {
        reference: String,
    },
    Refunded {
        reference: String,
    },
}

impl Found {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Processing => "processing",
            Self::Declined => "declined",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::Authorized { .. } => "authorized",
            Self::Captured { .. } => "captured",
            Self::Voided { .. } => "voided",
            Self::Refunded { .. } => "refunded",
        }
    }

    fn reference(&self) -> Option<&String> {
        match self {
            Self::Absent | Self::Processing | Self::Declined => None,
            Self::Unconfirmed { reference }
            | Self::Authorized { reference }
            | Self::Captured { reference }
            | Self::Voided { reference }
            | Self::Refunded { reference } => Some(reference),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until somebody wants something or its time has come.
    Rest,
    Send {
        op: Op,
        attempt: u32,
    },
    LookUp,
}

/// What must happen in the transaction that writes the state down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The order begins to exist.
    Place,
    /// Its units are available again.
    Release,
    /// The shopper may change the cart again.
    OpenCart,
    /// Into the outbox.
    Tell(Event),
}

/// The order is in a state in which that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an order that is {} cannot be changed by {:?}: {remedy}", .state.name(), .wish.name())]
pub(crate) struct NotNow {
    pub(crate) wish: Wish,
    pub(crate) state: OrderState,
    pub(crate) remedy: &'static str,
}

type Effects = Vec<Effect>;

/// An order's state, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Saga {
    pub(crate) by: By,
    pub(crate) money: Money,
    pub(crate) goods: Goods,
    /// It has become an order.
    pub(crate) placed: bool,
    /// The money is wanted.
    pub(crate) capture: bool,
    /// It is to end, as soon as it is known where the money is.
    pub(crate) cancel: bool,
    /// Something says that the provider knows more.
    pub(crate) look: bool,
    /// That was tried since it was resumed, without a result. Not stored.
    pub(super) look_pausing: bool,
    /// The provider's name of the payment.
    pub(crate) reference: Option<String>,
    /// Why it did not become an order, or did not stay one.
    pub(crate) why: Option<String>,
    pub(crate) call: Option<Call>,
    /// Calls made so far, by [`Op`].
    pub(crate) attempts: [u32; 4],
    /// When the stock was taken.
    pub(crate) since_ms: u64,
}

impl Saga {
    /// A checkout whose stock has been taken and whose payment a provider is to assure.
    pub(crate) fn reserved(capture: bool, since_ms: u64) -> Self {
        Self {
            by: By::Provider,
            money: Money::Unasked,
            goods: Goods::Held,
            placed: false,
            capture,
            cancel: false,
            look: false,
            look_pausing: false,
            reference: None,
            why: None,
            call: None,
            attempts: [0; 4],
            since_ms,
        }
    }

    /// An order that is paid outside of Souk: placed by the transaction that takes its stock.
    pub(crate) fn invoiced() -> Self {
        Self { by: By::Invoice, money: Money::Authorized, placed: true, ..Self::reserved(false, 0) }
    }

    /// How the order is called in a word.
    pub(crate) fn order_state(&self) -> OrderState {
        match (self.placed, self.money, self.goods) {
            (false, Money::Voiding | Money::Void | Money::Refunding | Money::Refunded, _) => {
                OrderState::Declined
            }
            (false, ..) => OrderState::Pending,
            (true, Money::Refunded, _) => OrderState::Refunded,
            (true, Money::Voiding | Money::Void, _) => OrderState::Cancelled,
            (true, _, Goods::Gone) => OrderState::Fulfilled,
            (true, Money::Captured | Money::Refunding, _) => OrderState::Captured,
            (true, ..) => OrderState::Placed,
        }
    }

    /// Whoever takes it up again begins here: a call that somebody was sending may have been carried out.
    pub(crate) fn resume(&mut self) {
        self.look_pausing = false;
        if let Some(call) = &mut self.call {
            call.maybe |= call.sent;
            call.sent = false;
            call.looked = false;
            call.pausing = false;
        }
    }

    /// What to do now. A call that it names has to be written down before it is made.
    pub(crate) fn step(&mut self, now_ms: u64) -> Step {
        if self.look_pausing {
            return Step::Rest;
        }
        if self.look {
            if self.call.is_some() || self.reference.is_some() {
                return Step::LookUp;
            }
            self.look = false;
        }
        if self.call.is_none() {
            match self.money {
                Money::Unasked if now_ms.saturating_sub(self.since_ms) >= ASK_WITHIN_MS => {
                    return Step::LookUp;
                }
                Money::Unasked => self.open(Op::Authorize, now_ms),
                Money::Authorized if self.capture && self.by == By::Provider => {
                    self.open(Op::Capture, now_ms);
                }
                _ => return Step::Rest,
            }
        }
        let Some(call) = &mut self.call else { return Step::Rest };
        let age_ms = now_ms.saturating_sub(call.first_ms);
        let wants_look = call.refused || (call.maybe && age_ms >= LOOK_UP_AFTER_MS);
        if call.pausing {
            Step::Rest
        } else if wants_look && !call.looked {
            Step::LookUp
        } else if call.refused || (call.maybe && age_ms >= KEY_TRUSTED_MS) {
            call.pausing = true;
            Step::Rest
        } else {
            call.sent = true;
            Step::Send { op: call.op, attempt: call.attempt }
        }
    }

    /// When to take it up again; none: at rest.
    pub(crate) fn due_in_ms(&self) -> Option<u64> {
        match &self.call {
            Some(call) if call.pausing => Some(call.pause_ms()),
            Some(_) => Some(0),
            None if self.look_pausing => Some(PAUSE_MAX_MS),
            None if self.look || self.money == Money::Unasked => Some(0),
            None if self.by == By::Provider && self.money == Money::Authorized && self.capture => Some(0),
            None => None,
        }
    }

    /// A call has ended. An outcome of another call than the one that is waited for changes nothing.
    pub(crate) fn outcome(&mut self, op: Op, attempt: u32, outcome: Outcome, now_ms: u64) -> Effects {
        let Some(call) = self.call.as_mut().filter(|call| (call.op, call.attempt) == (op, attempt)) else {
            return Effects::new();
        };
        call.sent = false;
        call.tries = call.tries.saturating_add(1);
        match outcome {
            Outcome::Done { reference } => {
                self.reference = self.reference.take().or(reference);
                self.done(now_ms)
            }
            Outcome::Unknown { answered } => {
                call.maybe = true;
                call.answered |= answered;
                call.pausing = true;
                Effects::new()
            }
            Outcome::NotNow if op == Op::Authorize && !call.maybe => self.decline(UNAVAILABLE.to_owned()),
            Outcome::NotNow => {
                call.pausing = true;
                Effects::new()
            }
            Outcome::Declined { code } if op == Op::Authorize => self.decline(code),
            Outcome::Refused { .. } if op == Op::Authorize && !call.maybe => {
                self.decline(UNAVAILABLE.to_owned())
            }
            // Perhaps because it is done already, or cannot be done any more: the look-up says which.
            Outcome::Declined { code } | Outcome::Refused { code } => {
                call.refused = true;
                self.why = Some(code);
                Effects::new()
            }
        }
    }

    /// A look-up could not be made: the same again later.
    pub(crate) fn found_nothing_out(&mut self) {
        match &mut self.call {
            Some(call) => {
                self.look = false;
                call.tries = call.tries.saturating_add(1);
                call.pausing = true;
            }
            None => self.look_pausing = true,
        }
    }

    /// The provider was asked what it has of this order. It must have been asked by whoever holds the row now.
    pub(crate) fn found(&mut self, found: &Found, now_ms: u64) -> Effects {
        self.look = false;
        if let Some(reference) = found.reference() {
            self.reference.get_or_insert_with(|| reference.clone());
        }
        match (self.money, found) {
            (Money::Unasked | Money::Authorizing, Found::Authorized { .. }) => self.done(now_ms),
            (Money::Unasked | Money::Authorizing, Found::Captured { .. }) => {
                // Not by us; but it is there, and this is what it is for.
                let mut effects = self.place();
                effects.extend(self.captured(now_ms));
                effects
            }
            (
                Money::Unasked | Money::Authorizing,
                Found::Declined | Found::Voided { .. } | Found::Refunded { .. },
            ) => self.decline("declined".to_owned()),
            (Money::Unasked, Found::Absent | Found::Unconfirmed { .. }) => {
                self.decline(UNAVAILABLE.to_owned())
            }
            (Money::Unasked, Found::Processing) => {
                self.look_pausing = true;
                Effects::new()
            }
            (Money::Authorizing, Found::Absent | Found::Unconfirmed { .. }) if self.is_dead(now_ms) => {
                self.decline(UNAVAILABLE.to_owned())
            }

            (Money::Capturing | Money::Authorized, Found::Captured { .. }) => self.captured(now_ms),
            (Money::Capturing | Money::Authorized, Found::Voided { .. } | Found::Declined) => {
                self.call = None;
                self.money = Money::Void;
                self.why.get_or_insert_with(|| "voided_at_provider".to_owned());
                let mut effects = self.release();
                effects.push(Effect::Tell(Event::Cancelled));
                effects
            }
            (Money::Capturing, Found::Authorized { .. }) if self.is_refused() => {
                let mut effects = vec![Effect::Tell(Event::CaptureFailed)];
                effects.extend(self.start_void(now_ms));
                effects
            }
            (Money::Capturing, Found::Authorized { .. }) if self.cancel && self.is_dead(now_ms) => {
                self.start_void(now_ms)
            }

            (Money::Voiding, Found::Voided { .. } | Found::Absent | Found::Declined) => self.done(now_ms),
            (Money::Voiding, Found::Captured { .. }) => self.start_refund(now_ms),
            (Money::Refunding, Found::Voided { .. }) => self.done(now_ms),
            (
                Money::Capturing | Money::Authorized | Money::Captured | Money::Voiding | Money::Refunding,
                Found::Refunded { .. },
            ) => {
                self.money = Money::Refunding;
                let mut effects = self.release();
                effects.extend(self.done(now_ms));
                effects
            }

            // Money that nobody should hold: a call that was taken for dead was not.
            (Money::Void, Found::Authorized { .. }) => {
                self.open(Op::Void, now_ms);
                Effects::new()
            }
            (Money::Void, Found::Captured { .. }) => {
                self.open(Op::Refund, now_ms);
                Effects::new()
            }

            (Money::Capturing | Money::Voiding | Money::Refunding, found)
                if *found != Found::Processing && self.is_dead(now_ms) =>
            {
                let is_first = |call: &Call| call.refused && (call.attempt == 1 || call.tries == 1);
                let told = self.money == Money::Refunding && self.call.as_ref().is_some_and(is_first);
                self.try_anew(now_ms);
                if told { vec![Effect::Tell(Event::RefundRefused)] } else { Effects::new() }
            }
            _ => {
                if let Some(call) = &mut self.call {
                    call.looked = true;
                    if call.refused {
                        // Nothing is sent any more, so that only this makes the pause longer.
                        call.tries = call.tries.saturating_add(1);
                    }
                }
                Effects::new()
            }
        }
    }

    /// What a merchant wants. Wanted twice, it is done once.
    pub(crate) fn wish(&mut self, wish: Wish, now_ms: u64) -> Result<Effects, NotNow> {
        let invoice = self.by == By::Invoice;
        let state = self.order_state();
        let no = |remedy| Err(NotNow { wish, state, remedy });
        match (wish, self.money) {
            _ if !self.placed && wish != Wish::Cancel => no("wait until its payment is known"),

            (Wish::Cancel, Money::Unasked) => Ok(self.decline("cancelled_by_shop".to_owned())),
            // Written down and never sent: nothing was taken.
            (Wish::Cancel, Money::Capturing) if self.call.as_ref().is_none_or(|c| !c.maybe && !c.sent) => {
                Ok(self.start_void(now_ms))
            }
            (Wish::Cancel, Money::Authorizing | Money::Capturing) => {
                self.cancel = true;
                Ok(Effects::new())
            }
            (Wish::Cancel, Money::Authorized) if self.goods == Goods::Gone => {
                no("the goods are on their way; agree on their return first")
            }
            (Wish::Cancel, Money::Authorized) if invoice => {
                self.money = Money::Void;
                let mut effects = self.release();
                effects.push(Effect::Tell(Event::Cancelled));
                Ok(effects)
            }
            (Wish::Cancel, Money::Authorized) => Ok(self.start_void(now_ms)),
            (Wish::Cancel, Money::Voiding | Money::Void) => Ok(Effects::new()),
            (Wish::Cancel, Money::Refunding | Money::Refunded) if !self.placed => Ok(Effects::new()),
            (Wish::Cancel, Money::Captured | Money::Refunding | Money::Refunded) => no("refund it"),

            (Wish::Capture, Money::Authorized) if invoice => Ok(self.captured(now_ms)),
            (Wish::Capture, Money::Authorized) => {
                self.capture = true;
                Ok(Effects::new())
            }
            (Wish::Capture, Money::Capturing | Money::Captured) => Ok(Effects::new()),

            (Wish::Refund, Money::Captured) if invoice => {
                self.money = Money::Refunded;
                let mut effects = self.release();
                effects.push(Effect::Tell(Event::Refunded));
                Ok(effects)
            }
            (Wish::Refund, Money::Captured) => Ok(self.start_refund(now_ms)),
            (Wish::Refund, Money::Refunding | Money::Refunded) => Ok(Effects::new()),
            (Wish::Refund, Money::Authorized | Money::Capturing) => no("cancel it: nothing was taken yet"),

            (Wish::Fulfil, _) if self.goods == Goods::Gone => Ok(Effects::new()),
            (Wish::Fulfil, Money::Captured) => Ok(self.fulfil()),
            (Wish::Fulfil, Money::Authorized) if invoice => Ok(self.fulfil()),
            (Wish::Fulfil, Money::Authorized | Money::Capturing) => no("capture its money first"),

            _ => no("nothing can be done with it any more"),
        }
    }

    /// Something from outside says that the provider knows more than we do.
    pub(crate) fn hint(&mut self) {
        self.look = self.by == By::Provider && (self.call.is_some() || self.reference.is_some());
    }

    fn open(&mut self, op: Op, now_ms: u64) {
        let attempts = &mut self.attempts[op as usize];
        *attempts += 1;
        self.call = Some(Call::stored(op, *attempts, now_ms));
        self.money = match op {
            Op::Authorize => Money::Authorizing,
            Op::Capture => Money::Capturing,
            Op::Void => Money::Voiding,
            Op::Refund => Money::Refunding,
        };
    }

    /// The call that is waited for is done.
    fn done(&mut self, now_ms: u64) -> Effects {
        self.call = None;
        match self.money {
            Money::Unasked | Money::Authorizing if self.cancel => self.start_void(now_ms),
            Money::Unasked | Money::Authorizing => self.place(),
            Money::Capturing => self.captured(now_ms),
            Money::Voiding => {
                self.money = Money::Void;
                vec![Effect::Tell(Event::Voided)]
            }
            Money::Refunding => {
                self.money = Money::Refunded;
                vec![Effect::Tell(Event::Refunded)]
            }
            _ => Effects::new(),
        }
    }

    fn place(&mut self) -> Effects {
        self.call = None;
        self.money = Money::Authorized;
        self.placed = true;
        vec![Effect::Place, Effect::Tell(Event::Placed)]
    }

    fn captured(&mut self, now_ms: u64) -> Effects {
        self.call = None;
        self.money = Money::Captured;
        let mut effects = vec![Effect::Tell(Event::Captured)];
        if self.cancel {
            effects.extend(self.start_refund(now_ms));
        }
        effects
    }

    fn fulfil(&mut self) -> Effects {
        self.goods = Goods::Gone;
        vec![Effect::Tell(Event::Fulfilled)]
    }

    /// It never was an order, and never will be.
    fn decline(&mut self, why: String) -> Effects {
        self.call = None;
        self.money = Money::Void;
        self.why = Some(why);
        let mut effects = self.release();
        effects.extend([Effect::OpenCart, Effect::Tell(Event::Declined)]);
        effects
    }

    /// The goods are free again as soon as it is decided, whatever the provider says and when.
    fn start_void(&mut self, now_ms: u64) -> Effects {
        let mut effects = self.release();
        if self.placed {
            effects.push(Effect::Tell(Event::Cancelled));
        } else {
            self.why.get_or_insert_with(|| "cancelled_by_shop".to_owned());
            effects.extend([Effect::OpenCart, Effect::Tell(Event::Declined)]);
        }
        self.open(Op::Void, now_ms);
        effects
    }

    fn start_refund(&mut self, now_ms: u64) -> Effects {
        let effects = self.release();
        self.open(Op::Refund, now_ms);
        effects
    }

    fn release(&mut self) -> Effects {
        if self.goods != Goods::Held {
            return Effects::new();
        }
        self.goods = Goods::Released;
        vec![Effect::Release]
    }

    /// The same step under another key. What was refused waits, so that a provider that keeps refusing is not hammered.
    fn try_anew(&mut self, now_ms: u64) {
        let Some(old) = self.call.take() else { return };
        self.open(old.op, now_ms);
        if let Some(call) = &mut self.call {
            call.tries = if old.refused { old.tries } else { 0 };
            call.pausing = old.refused;
        }
    }

    fn is_dead(&self, now_ms: u64) -> bool {
        self.call.as_ref().is_some_and(|call| call.is_dead(now_ms))
    }

    fn is_refused(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.refused)
    }
}

/// Why a checkout ended without the bank having said anything.
pub(crate) const UNAVAILABLE: &str = "payment_unavailable";

#[cfg(test)]
mod tests;

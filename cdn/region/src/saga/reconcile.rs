//! Compares a provider's books with ours, and has every payment about which they differ looked at.
//!
//! Nothing is repaired from a list: a list is of the past when it has been read. A difference makes the order's row due,
//! whoever takes it up asks the provider about this one payment, and the state machine does what is to be done (an
//! authorisation that nobody should hold is given up, a charge is refunded, a capture that we missed is noted). What has no
//! row of ours, or has two payments, is reported to people and left alone.

use std::collections::BTreeMap;

use serde::Serialize;
use souk_commerce::id::OrderId;

use super::machine::{Found, Money};
use super::provider::Listed;

/// Differences that one report names; the rest is counted.
const NAMED_MAX: usize = 1_000;
/// How far the provider's clock may lie from ours: at the far end of the list, a payment may be just outside of it.
const CLOCKS_APART_MS: u64 = 5 * 60_000;

/// What was read of both sides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope {
    /// Their payments since then were asked for.
    pub(crate) since_ms: u64,
    /// When the first page of theirs was asked for. What has changed here since is compared the next time: a list is of
    /// the past when it has been read.
    pub(crate) asked_ms: u64,
    /// Theirs was read to its end.
    pub(crate) all_listed: bool,
    /// Ours was.
    pub(crate) all_read: bool,
}

/// An order of ours, as the comparison needs it.
#[derive(Debug, Clone)]
pub(crate) struct Ours {
    pub(crate) order: OrderId,
    pub(crate) money: Money,
    pub(crate) amount: i64,
    pub(crate) reference: Option<String>,
    pub(crate) created_ms: u64,
    pub(crate) changed_ms: u64,
    /// A call is out or about to be made: it will be known soon enough.
    pub(crate) is_moving: bool,
}

/// What a comparison came to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) at_ms: u64,
    pub(crate) since_ms: u64,
    /// Payments at the provider that bear an order's number of ours.
    pub(crate) compared: u64,
    pub(crate) agreed: u64,
    /// Not known yet, and being asked for.
    pub(crate) moving: u64,
    /// Payments that were not made by us.
    pub(crate) foreign: u64,
    /// Both lists were read to their ends.
    pub(crate) is_whole: bool,
    pub(crate) differing: u64,
    pub(crate) differences: Vec<Difference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    pub(crate) order: OrderId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    pub(crate) what: What,
    pub(crate) ours: &'static str,
    pub(crate) theirs: &'static str,
    /// The provider is asked about it again, and what it says is acted upon.
    pub(crate) is_followed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// The money is elsewhere than we think.
    MoneyDiffers,
    AmountDiffers,
    /// A payment that bears an order's number which we do not have: after a restore from a backup, or it is old.
    NoOrder,
    /// A second payment of one order.
    SecondPayment,
    /// We know of a payment that the provider does not list.
    NotListed,
}

impl What {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MoneyDiffers => "money_differs",
            Self::AmountDiffers => "amount_differs",
            Self::NoOrder => "no_order",
            Self::SecondPayment => "second_payment",
            Self::NotListed => "not_listed",
        }
    }
}

fn agree(money: Money, found: &Found) -> bool {
    matches!(
        (money, found),
        (Money::Authorized, Found::Authorized { .. })
            | (Money::Captured, Found::Captured { .. })
            | (
                Money::Void,
                Found::Voided { .. } | Found::Declined | Found::Absent | Found::Unconfirmed { .. }
            )
            | (Money::Refunded, Found::Refunded { .. })
    )
}

/// Money that was given back and is there again: a refund that failed later. Another one might fail likewise, so that is for
/// people.
fn came_back(money: Money, found: &Found) -> bool {
    matches!((money, found), (Money::Refunded, Found::Captured { .. }))
}

/// Pure. `ours` may begin earlier than `scope.since_ms`: a payment can be made hours after its order was written down.
pub(crate) fn compare(scope: Scope, ours: &[Ours], theirs: &[Listed]) -> Report {
    let Scope { since_ms, asked_ms, all_listed, all_read } = scope;
    let is_moving = |ours: &Ours| ours.is_moving || ours.changed_ms > asked_ms;
    let by_order: BTreeMap<OrderId, &Ours> = ours.iter().map(|ours| (ours.order, ours)).collect();
    let mut report =
        Report { at_ms: asked_ms, since_ms, is_whole: all_listed && all_read, ..Report::default() };
    let mut seen: BTreeMap<OrderId, u32> = BTreeMap::new();
    for listed in theirs {
        let Some(order) = listed.order else {
            report.foreign += 1;
            continue;
        };
        report.compared += 1;
        let times = seen.entry(order).or_default();
        *times += 1;
        let differs = |what, ours: &'static str, is_followed| Difference {
            order,
            reference: Some(listed.reference.clone()),
            what,
            ours,
            theirs: listed.found.name(),
            is_followed,
        };
        let Some(ours) = by_order.get(&order) else {
            if all_read {
                report.note(differs(What::NoOrder, "none", false));
            }
            continue;
        };
        let money = ours.money.name();
        let is_other = ours.reference.as_ref().is_some_and(|reference| *reference != listed.reference);
        if is_other || *times > 1 {
            report.note(differs(What::SecondPayment, money, false));
        } else if listed.amount != Some(ours.amount) {
            report.note(differs(What::AmountDiffers, money, false));
        } else if is_moving(ours) {
            report.moving += 1;
        } else if agree(ours.money, &listed.found) {
            report.agreed += 1;
        } else {
            report.note(differs(What::MoneyDiffers, money, !came_back(ours.money, &listed.found)));
        }
    }
    if !all_listed {
        // What is not on the part that was read may be on the other.
        return report;
    }
    let listed_from_ms = since_ms.saturating_add(CLOCKS_APART_MS);
    for ours in ours.iter().filter(|ours| ours.created_ms >= listed_from_ms && !is_moving(ours)) {
        let has_money = matches!(ours.money, Money::Authorized | Money::Captured | Money::Refunded);
        if has_money && !seen.contains_key(&ours.order) {
            report.note(Difference {
                order: ours.order,
                reference: ours.reference.clone(),
                what: What::NotListed,
                ours: ours.money.name(),
                theirs: "none",
                is_followed: true,
            });
        }
    }
    report
}

impl Report {
    fn note(&mut self, difference: Difference) {
        self.differing += 1;
        if self.differences.len() < NAMED_MAX {
            self.differences.push(difference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE_MS: u64 = 500;
    const MADE_MS: u64 = SINCE_MS + CLOCKS_APART_MS;
    const ASKED_MS: u64 = MADE_MS + 1_000;
    const WHOLE: Scope = Scope { since_ms: SINCE_MS, asked_ms: ASKED_MS, all_listed: true, all_read: true };

    fn ours(number: u8, money: Money) -> Ours {
        Ours {
            order: OrderId([number; 16]),
            money,
            amount: 100,
            reference: Some(format!("pi_{number}")),
            created_ms: MADE_MS,
            changed_ms: MADE_MS,
            is_moving: false,
        }
    }

    fn theirs(number: u8, found: fn(String) -> Found) -> Listed {
        let reference = format!("pi_{number}");
        Listed {
            found: found(reference.clone()),
            reference,
            order: Some(OrderId([number; 16])),
            amount: Some(100),
        }
    }

    fn captured(reference: String) -> Found {
        Found::Captured { reference }
    }

    fn authorized(reference: String) -> Found {
        Found::Authorized { reference }
    }

    #[test]
    fn each_difference_has_a_name() {
        let books = [
            ours(1, Money::Captured),
            ours(2, Money::Authorized),
            ours(3, Money::Void),
            ours(4, Money::Captured),
            ours(5, Money::Captured),
            Ours { is_moving: true, ..ours(6, Money::Capturing) },
            Ours { created_ms: MADE_MS - 1, ..ours(7, Money::Captured) },
            ours(10, Money::Refunded),
        ];
        let list = [
            theirs(1, captured),
            theirs(2, captured),
            theirs(3, authorized),
            Listed { amount: Some(99), ..theirs(4, captured) },
            Listed { reference: "pi_other".to_owned(), ..theirs(1, authorized) },
            theirs(6, captured),
            theirs(9, captured),
            Listed { order: None, ..theirs(8, captured) },
            theirs(10, captured),
        ];
        let report = compare(WHOLE, &books, &list);
        let found: Vec<_> =
            report.differences.iter().map(|d| (d.order.0[0], d.what, d.is_followed)).collect();
        let expected = [
            (2, What::MoneyDiffers, true),
            (3, What::MoneyDiffers, true),
            (4, What::AmountDiffers, false),
            (1, What::SecondPayment, false),
            (9, What::NoOrder, false),
            (10, What::MoneyDiffers, false),
            (5, What::NotListed, true),
        ];
        assert_eq!(found, expected);
        assert_eq!((report.compared, report.agreed, report.moving, report.foreign), (8, 1, 1, 1));
        assert_eq!(report.differing, 7);
    }

    #[test]
    fn what_changes_while_their_list_is_read_is_no_difference() {
        let meanwhile = |number, money| Ours { changed_ms: ASKED_MS + 1, ..ours(number, money) };
        // One was captured after it had been listed, one was made after that.
        let books = [meanwhile(1, Money::Captured), meanwhile(2, Money::Authorized)];
        let report = compare(WHOLE, &books, &[theirs(1, authorized)]);
        assert_eq!((report.moving, report.differing), (1, 0), "{report:?}");
        let asked_ms = ASKED_MS + 1;
        let report = compare(Scope { asked_ms, ..WHOLE }, &books, &[theirs(1, authorized)]);
        assert_eq!(report.differing, 2, "the next time they are: {report:?}");
    }

    #[test]
    fn a_list_that_was_cut_off_shows_nothing_missing() {
        let books = [ours(1, Money::Captured), ours(2, Money::Captured)];
        let list = [theirs(1, captured), theirs(3, captured)];
        let of = |all_listed, all_read| compare(Scope { all_listed, all_read, ..WHOLE }, &books, &list);
        let found = |report: Report| report.differences.iter().map(|d| d.what).collect::<Vec<_>>();
        assert_eq!(found(of(true, true)), [What::NoOrder, What::NotListed]);
        assert_eq!(found(of(false, true)), [What::NoOrder]);
        assert_eq!(found(of(true, false)), [What::NotListed]);
        assert!(!of(true, false).is_whole && !of(false, true).is_whole);
    }
}

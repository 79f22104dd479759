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

/// An order of ours, as the comparison needs it.
#[derive(Debug, Clone)]
pub(crate) struct Ours {
    pub(crate) order: OrderId,
    pub(crate) money: Money,
    pub(crate) amount: i64,
    pub(crate) reference: Option<String>,
    pub(crate) created_ms: u64,
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
            | (Money::Void, Found::Voided { .. } | Found::Declined | Found::Absent)
            | (Money::Refunded, Found::Refunded { .. })
    )
}

/// Pure. `ours` may begin earlier than `since_ms`: a payment can be made hours after its order was written down.
pub(crate) fn compare(since_ms: u64, ours: &[Ours], theirs: &[Listed]) -> Report {
    let by_order: BTreeMap<OrderId, &Ours> = ours.iter().map(|ours| (ours.order, ours)).collect();
    let mut report = Report { since_ms, is_whole: true, ..Report::default() };
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
            report.note(differs(What::NoOrder, "none", false));
            continue;
        };
        let money = ours.money.name();
        let is_other = ours.reference.as_ref().is_some_and(|reference| *reference != listed.reference);
        if is_other || *times > 1 {
            report.note(differs(What::SecondPayment, money, false));
        } else if listed.amount != ours.amount {
            report.note(differs(What::AmountDiffers, money, false));
        } else if ours.is_moving {
            report.moving += 1;
        } else if agree(ours.money, &listed.found) {
            report.agreed += 1;
        } else {
            report.note(differs(What::MoneyDiffers, money, true));
        }
    }
    for ours in ours.iter().filter(|ours| ours.created_ms >= since_ms && !ours.is_moving) {
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

    fn ours(number: u8, money: Money) -> Ours {
        Ours {
            order: OrderId([number; 16]),
            money,
            amount: 100,
            reference: Some(format!("pi_{number}")),
            created_ms: 1_000,
            is_moving: false,
        }
    }

    fn theirs(number: u8, found: fn(String) -> Found) -> Listed {
        let reference = format!("pi_{number}");
        Listed { found: found(reference.clone()), reference, order: Some(OrderId([number; 16])), amount: 100 }
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
            Ours { created_ms: 1, ..ours(7, Money::Captured) },
        ];
        let list = [
            theirs(1, captured),
            theirs(2, captured),
            theirs(3, authorized),
            Listed { amount: 99, ..theirs(4, captured) },
            Listed { reference: "pi_other".to_owned(), ..theirs(1, authorized) },
            theirs(6, captured),
            theirs(9, captured),
            Listed { order: None, ..theirs(8, captured) },
        ];
        let report = compare(500, &books, &list);
        let found: Vec<_> =
            report.differences.iter().map(|d| (d.order.0[0], d.what, d.is_followed)).collect();
        let expected = [
            (2, What::MoneyDiffers, true),
            (3, What::MoneyDiffers, true),
            (4, What::AmountDiffers, false),
            (1, What::SecondPayment, false),
            (9, What::NoOrder, false),
            (5, What::NotListed, true),
        ];
        assert_eq!(found, expected);
        assert_eq!((report.compared, report.agreed, report.moving, report.foreign), (7, 1, 1, 1));
        assert_eq!(report.differing, 6);
    }
}

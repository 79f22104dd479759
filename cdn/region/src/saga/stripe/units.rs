//! What an amount is called at Stripe. Its units are those of ISO 4217 for nearly every currency; for the others the same
//! number is a hundred times as much money, or as little.

use souk_commerce::money::Minor;

/// How a currency's amounts differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Iso,
    /// No decimals in ISO 4217, and two there, which must be 0: "an ISK amount of 100 represents 1 króna".
    Hundredths,
    /// Two decimals in ISO 4217, and none there.
    Whole,
    /// Three decimals, of which the last must be 0.
    Tens,
}

fn unit(currency: &str) -> Unit {
    match currency.to_ascii_uppercase().as_str() {
        "ISK" | "UGX" => Unit::Hundredths,
        "MGA" => Unit::Whole,
        "BHD" | "JOD" | "KWD" | "OMR" | "TND" => Unit::Tens,
        _ => Unit::Iso,
    }
}

/// An amount of ours in theirs. None: there is no such amount there.
pub(super) fn to_stripe(currency: &str, Minor(amount): Minor) -> Option<i64> {
    match unit(currency) {
        Unit::Iso => Some(amount),
        Unit::Hundredths => amount.checked_mul(100),
        Unit::Whole => (amount % 100 == 0).then_some(amount / 100),
        Unit::Tens => (amount % 10 == 0).then_some(amount),
    }
}

/// An amount of theirs in ours. None: there is no such amount here.
pub(super) fn from_stripe(currency: &str, amount: i64) -> Option<i64> {
    match unit(currency) {
        Unit::Iso | Unit::Tens => Some(amount),
        Unit::Hundredths => (amount % 100 == 0).then_some(amount / 100),
        Unit::Whole => amount.checked_mul(100),
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::money::Currency;

    use super::*;

    #[test]
    fn a_price_is_the_same_money_on_both_sides() {
        for (currency, price, expected) in [
            ("GBP", "12.40", Some(1_240)),
            ("JPY", "500", Some(500)),
            ("ISK", "1500", Some(150_000)),
            ("UGX", "5", Some(500)),
            ("MGA", "1000.00", Some(1_000)),
            ("MGA", "10.50", None),
            ("KWD", "5.120", Some(5_120)),
            ("KWD", "5.124", None),
        ] {
            let minor = currency.parse::<Currency>().unwrap().parse_decimal(price).unwrap();
            assert_eq!(to_stripe(currency, minor), expected, "{price} {currency}");
            if let Some(amount) = expected {
                let lower = currency.to_ascii_lowercase();
                assert_eq!(from_stripe(&lower, amount), Some(minor.0), "{price} {currency}");
            }
        }
        assert_eq!((from_stripe("isk", 150), to_stripe("ISK", Minor(i64::MAX))), (None, None));
    }
}

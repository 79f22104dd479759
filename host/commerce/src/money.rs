//! Money: integer minor units of one currency. Nothing here can lose or make a penny.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most that one amount may be: 10^13 minor units. Times the greatest quantity it still fits an `i64`.
pub const MINOR_MAX: i64 = 10_000_000_000_000;

/// An amount in minor units (pence, cents, yen). Negative amounts are reductions.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[serde(transparent)]
#[cbor(transparent)]
pub struct Minor(#[n(0)] pub i64);

/// The result of an amount's arithmetic lies outside ±[`MINOR_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the amount is greater than {MINOR_MAX} minor units")]
pub struct AmountOverflow;

impl Minor {
    pub const ZERO: Self = Self(0);

    fn bounded(value: Option<i64>) -> Result<Self, AmountOverflow> {
        match value {
            Some(v) if v.unsigned_abs() <= MINOR_MAX.unsigned_abs() => Ok(Self(v)),
            _ => Err(AmountOverflow),
        }
    }

    pub fn plus(self, other: Self) -> Result<Self, AmountOverflow> {
        Self::bounded(self.0.checked_add(other.0))
    }

    pub fn minus(self, other: Self) -> Result<Self, AmountOverflow> {
        Self::bounded(self.0.checked_sub(other.0))
    }

    pub fn times(self, quantity: u32) -> Result<Self, AmountOverflow> {
        Self::bounded(self.0.checked_mul(i64::from(quantity)))
    }

    /// `basis_points` of this amount, rounded half away from zero: the one rounding rule of the platform.
    pub fn basis_points(self, basis_points: i32) -> Result<Self, AmountOverflow> {
        let exact = i128::from(self.0) * i128::from(basis_points);
        let half = 5_000 * exact.signum();
        Self::bounded(i64::try_from((exact + half) / 10_000).ok())
    }

    pub fn is_negative(self) -> bool {
        self.0 < 0
    }
}

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An ISO 4217 code with the number of decimals of its minor unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency {
    code: [u8; 3],
    decimals: u8,
}

/// Why a currency or a decimal amount was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    #[error("currency {0:?} is not an ISO 4217 code of three upper-case letters")]
    Currency(String),
    #[error("{0:?} is not a decimal amount such as 2.55")]
    Decimal(String),
    #[error("{text:?} has more than the {decimals} decimals of {code}, and rounding would change the price")]
    Precision { text: String, decimals: u8, code: String },
    #[error(transparent)]
    Overflow(#[from] AmountOverflow),
}

impl Currency {
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.code)
            .expect("a currency code is three ASCII letters, checked when it was parsed")
    }

    pub fn decimals(&self) -> u8 {
        self.decimals
    }

    /// Reads a decimal such as `2.55` exactly. Trailing zeros beyond the currency's decimals are accepted,
    /// other digits there are refused: an importer must never round a price.
    pub fn parse_decimal(&self, text: &str) -> Result<Minor, MoneyError> {
        let malformed = || MoneyError::Decimal(text.chars().take(40).collect());
        let (negative, digits) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            _ => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let digits_only = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits_only(whole) || !digits_only(fraction) || digits.ends_with('.') {
            return Err(malformed());
        }
        let decimals = usize::from(self.decimals);
        let (kept, beyond) = fraction.split_at(fraction.len().min(decimals));
        if beyond.bytes().any(|b| b != b'0') {
            return Err(MoneyError::Precision {
                text: text.chars().take(40).collect(),
                decimals: self.decimals,
                code: self.code().to_owned(),
            });
        }
        // At most 14 digits can be within MINOR_MAX, so a longer number is an overflow whatever it says.
        let digits = format!("{whole}{kept:0<decimals$}");
        let significant = digits.trim_start_matches('0');
        if significant.len() > 14 {
            return Err(AmountOverflow.into());
        }
        let value: i64 =
            if significant.is_empty() { 0 } else { significant.parse().map_err(|_| malformed())? };
        Ok(Minor::bounded(Some(if negative { -value } else { value }))?)
    }

    /// `1240` as `12.40`.
    pub fn format(&self, amount: Minor) -> String {
        let decimals = usize::from(self.decimals);
        let sign = if amount.is_negative() { "-" } else { "" };
        let digits = format!("{:0>width$}", amount.0.unsigned_abs(), width = decimals + 1);
        let (whole, fraction) = digits.split_at(digits.len() - decimals);
        if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let code: [u8; 3] =
            text.as_bytes().try_into().map_err(|_| MoneyError::Currency(text.chars().take(40).collect()))?;
        if !code.iter().all(u8::is_ascii_uppercase) {
            return Err(MoneyError::Currency(text.to_owned()));
        }
        // ISO 4217, the codes whose minor unit is not a hundredth.
        let decimals = match text {
            "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF" | "UGX" | "UYI"
            | "VND" | "VUV" | "XAF" | "XOF" | "XPF" => 0,
            "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
            "CLF" | "UYW" => 4,
            _ => 2,
        };
        Ok(Self { code, decimals })
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gbp() -> Currency {
        "GBP".parse().expect("GBP is a currency")
    }

    #[test]
    fn decimals_are_read_exactly_or_not_at_all() {
        for (text, minor) in
            [("2.55", 255), ("0.1", 10), ("12", 1200), ("-3.10", -310), ("4.9500", 495), ("0", 0)]
        {
            assert_eq!(gbp().parse_decimal(text), Ok(Minor(minor)), "{text}");
        }
        for text in ["", ".", "1.", ".5", "1,20", "1e3", "£2", "--1", "+1", "1.2.3", " 1", "NaN"] {
            assert!(matches!(gbp().parse_decimal(text), Err(MoneyError::Decimal(_))), "{text}");
        }
        assert!(matches!(gbp().parse_decimal("1.005"), Err(MoneyError::Precision { .. })));
        assert!(matches!(gbp().parse_decimal("99999999999999999999"), Err(MoneyError::Overflow(_))));
    }

    #[test]
    fn formatting_is_the_inverse_of_parsing() {
        for (code, minor, text) in
            [("GBP", 1240, "12.40"), ("GBP", -5, "-0.05"), ("JPY", 500, "500"), ("KWD", 1, "0.001")]
        {
            let currency: Currency = code.parse().expect("a known code");
            assert_eq!(currency.format(Minor(minor)), text);
            assert_eq!(currency.parse_decimal(text), Ok(Minor(minor)));
        }
    }

    #[test]
    fn amounts_beyond_the_limit_are_errors_whatever_they_come_from() {
        let (least, most) = (Minor(i64::MIN), Minor(i64::MAX));
        for result in [
            least.plus(Minor::ZERO),
            most.plus(Minor(1)),
            least.minus(Minor(1)),
            Minor(MINOR_MAX).plus(Minor(1)),
            Minor(MINOR_MAX).times(2),
            most.times(u32::MAX),
            least.basis_points(i32::MIN),
            Minor(MINOR_MAX).basis_points(10_001),
        ] {
            assert_eq!(result, Err(AmountOverflow));
        }
        assert_eq!(Minor(MINOR_MAX).times(1), Ok(Minor(MINOR_MAX)));
        assert_eq!(Minor(-MINOR_MAX).basis_points(10_000), Ok(Minor(-MINOR_MAX)));
    }

    #[test]
    fn percentages_round_half_away_from_zero() {
        for (amount, basis_points, result) in
            [(5, 5_000, 3), (-5, 5_000, -3), (1, 4_999, 0), (333, -1_000, -33), (335, -1_000, -34)]
        {
            assert_eq!(
                Minor(amount).basis_points(basis_points),
                Ok(Minor(result)),
                "{amount} x {basis_points}"
            );
        }
    }
}

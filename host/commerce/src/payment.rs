//! By what an order is paid, as far as it travels: a name that the payment provider gave the shopper's browser.

use std::fmt;
use std::str::FromStr;

use crate::id::InvalidName;

/// Longest name of a payment method. Stripe's have 27 characters; other providers' tokens are a few hundred at most.
pub const PAYMENT_METHOD_BYTES_MAX: usize = 255;

/// The shopper's card as the provider calls it. Whoever has it and the shop's key can charge it: it is in no log, no
/// answer and no audit row, and its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PaymentMethod(String);

impl PaymentMethod {
    /// For the one request that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for PaymentMethod {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let valid = (1..=PAYMENT_METHOD_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            // Not echoed: it may be a card number that somebody sent in its place.
            let rule = "1 to 255 characters of a-z, A-Z, 0-9, '_', '-' and '.'";
            Err(InvalidName { kind: "payment method", text: String::new(), rule })
        }
    }
}

impl fmt::Debug for PaymentMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentMethod(…)")
    }
}

impl<C> minicbor::Encode<C> for PaymentMethod {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for PaymentMethod {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        d.str()?.parse().map_err(|e: InvalidName| minicbor::decode::Error::message(e.to_string()).at(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_method_is_never_shown() {
        let method: PaymentMethod = "pm_card_visa".parse().unwrap();
        assert_eq!(method.reveal(), "pm_card_visa");
        assert!(!format!("{method:?}").contains("visa"));
        for wrong in ["", "4242 4242 4242 4242", "a\nb", &"x".repeat(256)] {
            let error = wrong.parse::<PaymentMethod>().unwrap_err().to_string();
            assert!(!error.contains("4242"), "{error}");
        }
    }
}

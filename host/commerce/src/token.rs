//! A merchant's token for a region's control API: `souk_<id>_<secret>_<check>`.
//!
//! The prefix is for scanners that look for secrets in repositories, the id finds the row, the secret is 32 random
//! bytes, and the check (CRC-32C over all before it) tells a token that was cut off or mistyped from one that is wrong.
//! A region keeps the SHA-256 of the whole text and never the text: 256 random bits need no slow hash.
//!
//! Pure: whoever mints one brings the randomness.

use std::fmt;

use sha2::Digest as _;

/// Random bytes of a token: 8 of its id, 32 of its secret.
pub const RANDOM_BYTES: usize = ID_BYTES + SECRET_BYTES;
/// Hexadecimal digits of an id.
pub const ID_DIGITS: usize = 2 * ID_BYTES;

const PREFIX: &str = "souk";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
const CHECK_DIGITS: usize = 8;

/// A whole token. Its `Debug` shows the id only.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
}

/// Why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    #[error("not of the form souk_<id>_<secret>_<check>")]
    Form,
    #[error("its last eight digits do not fit the others: it was cut off or mistyped")]
    Check,
}

impl Token {
    /// A new token from the operating system's randomness.
    pub fn mint(random: &[u8; RANDOM_BYTES]) -> Self {
        let (id, secret) = random.split_at(ID_BYTES);
        let body = format!("{PREFIX}_{}_{}", hex::encode(id), hex::encode(secret));
        let check = crc32c::crc32c(body.as_bytes());
        Self { text: format!("{body}_{check:08x}") }
    }

    pub fn parse(text: &str) -> Result<Self, NoToken> {
        let mut parts = text.split('_');
        let mut next = || parts.next().ok_or(NoToken::Form);
        let (prefix, id, secret, check) = (next()?, next()?, next()?, next()?);
        let digits = |part: &str, count: usize| {
            part.len() == count && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let formed = prefix == PREFIX
            && parts.next().is_none()
            && digits(id, ID_DIGITS)
            && digits(secret, 2 * SECRET_BYTES)
            && digits(check, CHECK_DIGITS);
        if !formed {
            return Err(NoToken::Form);
        }
        let body = &text[..text.len() - CHECK_DIGITS - 1];
        if format!("{:08x}", crc32c::crc32c(body.as_bytes())) != check {
            return Err(NoToken::Check);
        }
        Ok(Self { text: text.to_owned() })
    }

    /// Finds the row. Not secret.
    pub fn id(&self) -> &str {
        &self.text[PREFIX.len() + 1..][..ID_DIGITS]
    }

    /// What a region keeps, and compares in constant time.
    pub fn sha256(&self) -> [u8; 32] {
        sha2::Sha256::digest(self.text.as_bytes()).into()
    }

    /// The whole of it: to be shown once.
    pub fn secret(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}…)", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_minted_and_shows_its_id_only() {
        let random = std::array::from_fn(|i| i as u8);
        let token = Token::mint(&random);
        assert_eq!(token.id(), "0001020304050607");
        assert_eq!(Token::parse(token.secret()), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "Token(0001020304050607…)");
        assert_ne!(token.sha256(), Token::mint(&[1; RANDOM_BYTES]).sha256());
    }

    #[test]
    fn a_token_that_was_damaged_on_the_way_is_told_from_one_of_another_form() {
        let good = Token::mint(&[7; RANDOM_BYTES]);
        let good = good.secret();
        for at in 5..good.len() {
            let mut bad = good.to_owned().into_bytes();
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            let bad = String::from_utf8(bad).expect("ASCII");
            assert!(Token::parse(&bad).is_err(), "{bad}");
        }
        assert_eq!(Token::parse(&good.replacen('7', "8", 1)), Err(NoToken::Check));
        for bad in
            ["", "souk", "souk_op_abc", &good[1..], &format!("{good}_"), &good.to_uppercase(), "é_é_é_é"]
        {
            assert_eq!(Token::parse(bad), Err(NoToken::Form), "{bad}");
        }
    }
}

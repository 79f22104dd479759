//! The signature of a provider's message: `t=<seconds>,v1=<hex>,…`, an HMAC-SHA256 of `<seconds>.<body>`.
//!
//! The time is part of what is signed, so that nobody can play an old message back for ever. Several signatures stand
//! beside each other while a secret is being changed; one that fits is enough.

use aws_lc_rs::hmac;

use super::provider::{MessageRefused, Secret};

/// How far the time of a message may lie from ours: the provider's own libraries allow as much.
pub(crate) const TOLERANCE_S: u64 = 300;
/// Signatures looked at in one header: two secrets, in two schemes.
const SIGNATURES_MAX: usize = 4;
/// Bytes of an HMAC-SHA256.
const TAG_BYTES: usize = 32;

pub(crate) struct Verifier(hmac::Key);

impl Verifier {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes()))
    }

    /// Compares in constant time.
    pub(crate) fn check(&self, header: Option<&str>, body: &[u8], now_ms: u64) -> Result<(), MessageRefused> {
        let header = header.ok_or(MessageRefused::Unsigned)?;
        let (mut time, mut tags) = (None, Vec::new());
        for part in header.split(',') {
            match part.trim().split_once('=') {
                Some(("t", text)) if time.is_none() => time = Some(text),
                Some(("v1", text)) if tags.len() < SIGNATURES_MAX => {
                    let mut tag = [0; TAG_BYTES];
                    if hex::decode_to_slice(text, &mut tag).is_ok() {
                        tags.push(tag);
                    }
                }
                _ => {}
            }
        }
        let time = time.filter(|text| !tags.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
        let time = time.ok_or(MessageRefused::Unsigned)?;
        let signed_s: u64 = time.parse().map_err(|_| MessageRefused::Unsigned)?;
        let signed = [time.as_bytes(), b".", body].concat();
        if !tags.iter().any(|tag| hmac::verify(&self.0, &signed, tag).is_ok()) {
            return Err(MessageRefused::Forged);
        }
        // After the signature: who has no secret learns nothing of our clock.
        if signed_s.abs_diff(now_ms / 1_000) > TOLERANCE_S {
            return Err(MessageRefused::OutOfTime);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn sign(secret: &str, time_s: u64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let tag = hmac::sign(&key, &[time_s.to_string().as_bytes(), b".", body].concat());
        format!("t={time_s},v1={}", hex::encode(tag))
    }

    #[test]
    fn the_signature_is_the_one_that_is_documented() {
        // By `printf '1700000000.{}' | openssl dgst -sha256 -hmac whsec_test`.
        let expected = "t=1700000000,v1=35495024f4ef3f94e5a93e22221544c4b75e9a42300cd965ab81cb85cd994e91";
        assert_eq!(sign("whsec_test", 1_700_000_000, b"{}"), expected);
    }

    #[test]
    fn whoever_has_no_secret_or_an_old_message_is_refused() {
        let verifier = Verifier::new(&Secret::new("new"));
        let now_s = NOW_MS / 1_000;
        let check = |header: &str, body: &[u8]| verifier.check(Some(header), body, NOW_MS);
        let good = sign("new", now_s, b"{}");
        assert_eq!(check(&good, b"{}"), Ok(()));
        assert_eq!(check(&good, b"{ }"), Err(MessageRefused::Forged));
        assert_eq!(check(&sign("old", now_s, b"{}"), b"{}"), Err(MessageRefused::Forged));
        // While the secret is changed, both stand there.
        let (_, old) =
            sign("old", now_s, b"{}").split_once(',').map(|(t, v)| (t.to_owned(), v.to_owned())).unwrap();
        let (time, new) = good.split_once(',').unwrap();
        assert_eq!(check(&format!("{time},{old},{new}"), b"{}"), Ok(()));
        for late_s in [now_s - TOLERANCE_S - 1, now_s + TOLERANCE_S + 1] {
            assert_eq!(check(&sign("new", late_s, b"{}"), b"{}"), Err(MessageRefused::OutOfTime));
        }
        assert_eq!(check(&sign("new", now_s - TOLERANCE_S, b"{}"), b"{}"), Ok(()));
        // Another time than the one that was signed.
        assert_eq!(
            check(&good.replace(&now_s.to_string(), &(now_s + 1).to_string()), b"{}"),
            Err(MessageRefused::Forged)
        );
        assert_eq!(verifier.check(None, b"{}", NOW_MS), Err(MessageRefused::Unsigned));
        for wrong in
            ["", "t=1", "v1=00", "t=x,v1=00", &format!("t=-1,{new}"), "t=1700000000,v1=zz", "garbage"]
        {
            assert_eq!(check(wrong, b"{}"), Err(MessageRefused::Unsigned), "{wrong}");
        }
    }
}

//! The one way in which this crate's types become bytes: CBOR with numbered fields, so that a newer node may add a
//! field that an older one skips.
//!
//! Decoding is bounded by the bytes it is given and by the limit of the type: nothing is allocated for a length
//! that the bytes only claim, and what follows the value is an error.

use minicbor::{Decode, Decoder, Encode, Encoder};

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{bytes} bytes are more than the {bytes_max} that {what} may have")]
    TooLong { what: &'static str, bytes: usize, bytes_max: usize },
    #[error("not {what}: {reason}")]
    Malformed { what: &'static str, reason: String },
}

pub(crate) fn to_bytes<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing into a Vec cannot fail, and no type here refuses to be encoded")
}

pub(crate) fn from_bytes<'b, T: Decode<'b, ()>>(
    what: &'static str,
    bytes: &'b [u8],
    bytes_max: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > bytes_max {
        return Err(DecodeError::TooLong { what, bytes: bytes.len(), bytes_max });
    }
    let malformed = |reason: String| DecodeError::Malformed { what, reason };
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode().map_err(|e| malformed(e.to_string()))?;
    let rest = bytes.len() - decoder.position();
    if rest > 0 {
        return Err(malformed(format!("{rest} bytes follow it")));
    }
    Ok(value)
}

/// `#[cbor(with = "crate::codec::json")]`: a value whose readers want JSON travels as the bytes of its JSON.
pub(crate) mod json {
    use super::{Decoder, Encoder};

    pub(crate) fn encode<C, T: serde::Serialize, W: minicbor::encode::Write>(
        value: &T,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let json = serde_json::to_vec(value).map_err(minicbor::encode::Error::message)?;
        e.bytes(&json)?.ok()
    }

    pub(crate) fn decode<C, T: serde::de::DeserializeOwned>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<T, minicbor::decode::Error> {
        let at = d.position();
        serde_json::from_slice(d.bytes()?).map_err(|e| minicbor::decode::Error::message(e.to_string()).at(at))
    }
}

//! A stored response as it is written down, and read back.
//!
//! ```text
//!   header (32 bytes)   magic, kind, lengths of what follows, a CRC-32C of each part and one of the header itself
//!   meta   (CBOR)       the key whole, status, fields, freshness, variant
//!   body                as it is sent
//! ```
//!
//! The meta is a map by number: a reader skips the numbers that it does not know, so what is added later needs no new
//! format. Pure: bytes in, bytes out.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use minicbor::{Decode, Encode};
use thiserror::Error;

use crate::entry::{Chunks, Entry, StoredBody};
use crate::freshness::Freshness;
use crate::key::{Key, Scheme};
use crate::prepared::Prepared;
use crate::purge::Step;
use crate::tags::Birth;
use crate::vary::Variant;

pub(super) const HEADER_BYTES: usize = 32;
/// Longest meta. Heads that listeners and upstreams of a node take are 64 KiB; keys and variants are a few KiB.
pub(super) const META_BYTES_MAX: usize = 256 * 1024;
const MAGIC: u32 = u32::from_le_bytes(*b"SkR1");
/// Pieces in which a body is sent: what a slow client keeps from being freed is the whole in any case.
const PIECE_BYTES: usize = 64 * 1024;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A response.
    Response = 1,
    /// What was written before for this key does not hold any more.
    Removal = 2,
    /// The list of all records of the segment in front of it.
    List = 3,
    /// Names of what was written before do not hold any more, whatever bears them.
    Purge = 4,
}

/// What stands in front of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) meta_bytes: u32,
    pub(super) body_bytes: u64,
    pub(super) meta_crc: u32,
    pub(super) body_crc: u32,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum Corrupt {
    #[error("a header that is none")]
    Header,
    #[error("a checksum that does not fit")]
    Checksum,
    #[error("a head that cannot be read")]
    Meta,
}

impl Header {
    pub(super) fn of(kind: Kind, meta: &[u8], body: &[Bytes]) -> Self {
        let body_crc = body.iter().fold(0, |crc, chunk| crc32c::crc32c_append(crc, chunk));
        Self {
            kind,
            meta_bytes: u32::try_from(meta.len()).expect("metas and lists are far below 4 GiB"),
            body_bytes: body.iter().map(|chunk| chunk.len() as u64).sum(),
            meta_crc: crc32c::crc32c(meta),
            body_crc,
        }
    }

    /// The length of the record, this header included.
    pub(super) fn record_bytes(&self) -> u64 {
        (HEADER_BYTES as u64 + u64::from(self.meta_bytes)).saturating_add(self.body_bytes)
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&(self.kind as u32).to_le_bytes());
        out[8..12].copy_from_slice(&self.meta_bytes.to_le_bytes());
        out[12..20].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.meta_crc.to_le_bytes());
        out[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        let own_crc = crc32c::crc32c(&out[..28]);
        out[28..].copy_from_slice(&own_crc.to_le_bytes());
        out
    }

    pub(super) fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Corrupt> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if number(0) != MAGIC || number(28) != crc32c::crc32c(&bytes[..28]) {
            return Err(Corrupt::Header);
        }
        let kind = match number(4) {
            1 => Kind::Response,
            2 => Kind::Removal,
            3 => Kind::List,
            4 => Kind::Purge,
            _ => return Err(Corrupt::Header),
        };
        let body_bytes = u64::from_le_bytes(bytes[12..20].try_into().expect("eight bytes"));
        Ok(Self { kind, meta_bytes: number(8), body_bytes, meta_crc: number(20), body_crc: number(24) })
    }

    pub(super) fn check_meta(&self, meta: &[u8]) -> Result<(), Corrupt> {
        (crc32c::crc32c(meta) == self.meta_crc).then_some(()).ok_or(Corrupt::Checksum)
    }

    pub(super) fn check_body(&self, body: &[u8]) -> Result<(), Corrupt> {
        (crc32c::crc32c(body) == self.body_crc).then_some(()).ok_or(Corrupt::Checksum)
    }
}

/// A key, whole.
#[derive(Clone, Debug, Encode, Decode)]
pub(super) struct KeyRecord {
    #[n(0)]
    site: Box<str>,
    #[n(1)]
    is_https: bool,
    #[n(2)]
    authority: Box<str>,
    #[n(3)]
    target: Box<str>,
}

impl KeyRecord {
    pub(super) fn of(key: &Key) -> Self {
        Self {
            site: key.site().into(),
            is_https: key.scheme() == Scheme::Https,
            authority: key.authority().into(),
            target: key.recorded_target(),
        }
    }

    /// Read as a request's would be: what a request cannot ask for is no key.
    pub(super) fn key(&self) -> Result<Key, Corrupt> {
        let scheme = if self.is_https { Scheme::Https } else { Scheme::Http };
        Key::of_record(&self.site, scheme, &self.authority, &self.target).map_err(|_| Corrupt::Meta)
    }
}

/// The head of a stored response. The numbers from 16 on are for what an entry carries beside it;
/// each is to be optional, for records without it stay readable.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Meta {
    #[n(0)]
    key: KeyRecord,
    #[n(1)]
    status: u16,
    #[n(2)]
    fields: Vec<Field>,
    #[n(3)]
    freshness: Freshness,
    #[n(4)]
    variant: Vec<Varied>,
    /// Whether languages are compared by weight.
    #[n(5)]
    negotiates: bool,
    /// The language that a negotiation ended in.
    #[n(6)]
    language: Option<Box<str>>,
    /// Of [`Birth`]: the number of the last purge when its request began, as the log counts them, and the tags.
    #[n(16)]
    born: Option<u64>,
    #[n(17)]
    tags: Option<Vec<u64>>,
}

/// The meta of a removal.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct RemovalMeta {
    #[n(0)]
    key: KeyRecord,
}

#[derive(Debug, Encode, Decode)]
struct Field {
    #[n(0)]
    name: Box<str>,
    #[cbor(n(1), with = "minicbor::bytes")]
    value: Vec<u8>,
}

/// One field that a response varies by, and what was asked for in it.
#[derive(Debug, Encode, Decode)]
struct Varied {
    #[n(0)]
    name: Box<str>,
    #[n(1)]
    value: Option<Box<str>>,
}

/// The meta of an entry that is whole. `born`: the number of its birth, as the log counts.
pub(super) fn meta_of(key: &Key, entry: &Entry, born: u64) -> Vec<u8> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| Field {
        name: name.as_str().into(),
        value: value.as_bytes().to_vec(),
    };
    let (varied, negotiated) = entry.variant.parts();
    // What was softened is in the freshness.
    let (_, _, tags) = entry.birth.to_parts();
    encoded(&Meta {
        key: KeyRecord::of(key),
        status: entry.status.as_u16(),
        fields: entry.headers.iter().map(field).collect(),
        freshness: entry.freshness,
        variant: varied
            .map(|(name, value)| Varied { name: name.as_str().into(), value: value.map(Into::into) })
            .collect(),
        negotiates: negotiated.is_some(),
        language: negotiated.flatten().map(Into::into),
        born: Some(born),
        tags: Some(tags),
    })
}

/// The meta of a removal.
pub(super) fn removal_of(key: &Key) -> Vec<u8> {
    encoded(&RemovalMeta { key: KeyRecord::of(key) })
}

/// The step of the meta of a purge.
pub(super) fn step_of(meta: &[u8]) -> Result<Step, Corrupt> {
    minicbor::decode(meta).map_err(|_| Corrupt::Meta)
}

/// The key that the metas of a response and of a removal begin with.
pub(super) fn key_of(meta: &[u8]) -> Result<Key, Corrupt> {
    // What follows in the meta of a response is unknown here, and skipped.
    minicbor::decode::<RemovalMeta>(meta).map_err(|_| Corrupt::Meta)?.key.key()
}

/// The number that tells the variants of one key apart, in every process the same.
pub(super) fn variant_of(entry: &Entry) -> u32 {
    let (varied, _) = entry.variant.parts();
    varied.fold(0, |crc, (name, value)| {
        let crc = crc32c::crc32c_append(crc, name.as_str().as_bytes());
        match value {
            Some(value) => crc32c::crc32c_append(crc32c::crc32c_append(crc, b"="), value.as_bytes()),
            None => crc32c::crc32c_append(crc, b"\n"),
        }
    })
}

/// The key and the entry of a record whose checksums hold.
pub(super) fn entry_of(meta: &[u8], body: Bytes) -> Result<(Key, Entry), Corrupt> {
    let meta: Meta = minicbor::decode(meta).map_err(|_| Corrupt::Meta)?;
    let name_of = |text: &str| HeaderName::from_bytes(text.as_bytes()).map_err(|_| Corrupt::Meta);
    let mut headers = HeaderMap::with_capacity(meta.fields.len());
    for field in &meta.fields {
        let value = HeaderValue::from_bytes(&field.value).map_err(|_| Corrupt::Meta)?;
        headers.append(name_of(&field.name)?, value);
    }
    let mut varied = Vec::with_capacity(meta.variant.len());
    for Varied { name, value } in meta.variant {
        varied.push((name_of(&name)?, value));
    }
    let variant = Variant::from_parts(varied, meta.negotiates.then_some(meta.language));
    let status = StatusCode::from_u16(meta.status).map_err(|_| Corrupt::Meta)?;
    let pieces = (0..body.len()).step_by(PIECE_BYTES);
    let pieces = pieces.map(|at| body.slice(at..body.len().min(at + PIECE_BYTES))).collect();
    let body = StoredBody::Whole(Chunks::new(pieces)).under(status, &headers);
    let born = meta.born.unwrap_or_default();
    let birth = Birth::from_parts(born, born, meta.tags.unwrap_or_default());
    let prepared = Prepared::default();
    let entry =
        Entry { status, headers, freshness: meta.freshness, variant, body, span: None, birth, prepared };
    Ok((meta.key.key()?, entry))
}

pub(super) fn encoded<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("a vector takes everything")
}

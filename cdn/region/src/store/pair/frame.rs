//! What two regions of a pair say to each other, as bytes. A field that a later release adds is optional here.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

/// The name of a home's stream of changes: random, another one whenever numbers begin to mean something else.
pub(crate) type StreamId = [u8; 16];

/// Of the frames in this file. A region that is spoken to in another one says so and ends it.
pub(crate) const PROTOCOL: u32 = 1;

/// What a region says first, whoever dialled. `protocol`, `role` and `term` keep their numbers in every protocol: by them a home
/// learns that it was replaced, whatever the other one speaks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Greeting {
    #[n(0)]
    pub(crate) protocol: u32,
    /// [`super::standing::Standing::name`].
    #[n(1)]
    pub(crate) role: String,
    /// The term that it is home in, or has met.
    #[n(2)]
    pub(crate) term: u64,
    #[n(3)]
    pub(crate) software: String,
    /// Of a standby: what it holds, and wants what follows. None: everything.
    #[n(4)]
    pub(crate) holds: Option<Holds>,
    /// Of a home: the key that vouches for its releases, by its name. A standby needs the same.
    #[n(5)]
    pub(crate) seal_key: Option<String>,
    /// The dialler wants to follow, and not only to know.
    #[n(6)]
    #[cbor(default)]
    pub(crate) follows: bool,
    /// Of a home: the stream that it notes its changes in. Only processes of one store have the same: whoever hears its own has
    /// dialled itself.
    #[n(7)]
    pub(crate) stream: Option<ByteArray<16>>,
}

/// Up to where a standby has everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Holds {
    #[n(0)]
    pub(crate) stream: ByteArray<16>,
    #[n(1)]
    pub(crate) seq: u64,
}

/// Of a home, to its standby. `Begin`, rows, `End`: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Down {
    /// What follows is of one moment: every row (`whole`), or those that changed since the standby's last.
    #[n(0)]
    Begin {
        #[n(0)]
        stream: ByteArray<16>,
        #[n(1)]
        whole: bool,
        /// Where the standby has to be, unless `whole`.
        #[n(2)]
        after: u64,
        #[n(3)]
        term: u64,
    },
    /// Rows of a table that are not there any more, by their keys.
    #[n(1)]
    Gone {
        #[n(0)]
        table: String,
        #[n(1)]
        keys: Vec<String>,
    },
    /// Rows of a table as they are: CBOR arrays one after the other, in the order of `columns`.
    #[n(2)]
    Rows {
        #[n(0)]
        table: String,
        #[n(1)]
        columns: Vec<String>,
        #[n(2)]
        count: u32,
        #[n(3)]
        rows: ByteVec,
    },
    /// That was all: the home stood here.
    #[n(3)]
    End {
        #[n(0)]
        seq: u64,
        #[n(1)]
        at_ms: u64,
    },
    /// Nothing has changed since.
    #[n(4)]
    Idle {
        #[n(0)]
        at_ms: u64,
    },
}

/// Of a standby, to its home: this is on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Held {
    #[n(0)]
    pub(crate) seq: u64,
}

/// A file that a row refers to, by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct WantBlob {
    #[n(0)]
    pub(crate) digest: ByteArray<32>,
}

/// A part of a file, or that it is not there. An empty part is its end.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct BlobPart {
    /// None: the home does not have it.
    #[n(0)]
    pub(crate) bytes: Option<ByteVec>,
}

/// How a stream begins: what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Opening {
    #[n(0)]
    Greeting(#[n(0)] Greeting),
    #[n(1)]
    WantBlob(#[n(0)] WantBlob),
}

pub(crate) fn encode<T: Encode<()>>(frame: &T) -> Vec<u8> {
    minicbor::to_vec(frame).expect("writing into a Vec cannot fail")
}

pub(crate) fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, String> {
    minicbor::decode(bytes).map_err(|e| format!("a frame that is not understood: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever has the region's certificate and another program: no frame of his is understood, and none is the end of this one.
    #[test]
    fn what_is_cut_off_or_changed_is_an_error_or_another_frame() {
        let rows = Down::Rows {
            table: "site".to_owned(),
            columns: vec!["site".to_owned(), "settings".to_owned()],
            count: 3,
            rows: vec![7; 40].into(),
        };
        let gone = Down::Gone { table: "site".to_owned(), keys: vec!["[\"shop\"]".to_owned(); 3] };
        for whole in [encode(&rows), encode(&gone), encode(&Down::End { seq: 9, at_ms: 1 })] {
            for length in 0..whole.len() {
                assert!(decode::<Down>(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
            }
            for at in 0..whole.len() {
                for bit in 0..8 {
                    let mut changed = whole.clone();
                    changed[at] ^= 1 << bit;
                    let _understood_or_not = decode::<Down>(&changed);
                }
            }
        }
        // A length that nobody has bytes for.
        assert!(
            decode::<Down>(&[0x82, 0x01, 0x82, 0x60, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
                .is_err()
        );
    }
}

//! The names in a field section as its bytes go by (RFC 9204): which pseudo-headers a request says, where, and how often.
//!
//! The h3 crate takes the last of two, and takes those that follow fields or stand in trailers; somebody else may take the
//! first. RFC 9114 section 4.3 calls each of these malformed. Decided here, below h3, on the raw bytes. Pure: bytes in,
//! verdicts out. Reads names, and of those only as many bytes as a pseudo-header has; what refers to QPACK's dynamic table,
//! which has no room here, and what is no field section is left to h3, which refuses it.

/// `:authority`, and one more byte to tell it from what is longer.
const NAME_BYTES_MAX: usize = 11;

/// Of a request. `:protocol` belongs to a CONNECT that is not offered (RFC 9220), `:status` to answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pseudo {
    Method = 1,
    Scheme = 2,
    Authority = 4,
    Path = 8,
}

/// Why a request is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SectionFault {
    #[error("a pseudo-header is said twice")]
    Twice,
    #[error("a pseudo-header follows a field")]
    Late,
    #[error("trailers have a pseudo-header")]
    InTrailers,
    #[error("a pseudo-header is none of a request")]
    Unknown,
}

/// Follows one field section.
#[derive(Debug)]
pub(super) struct FieldSection {
    at: At,
    is_trailers: bool,
    /// The pseudo-headers that were there.
    said: u8,
    /// A field was there.
    has_field: bool,
    name: [u8; NAME_BYTES_MAX],
    name_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum At {
    InsertCount,
    Base,
    /// Before a field line.
    Line,
    Number {
        of: Of,
        value: u64,
        shift: u32,
    },
    Name {
        left: u64,
        huffman: bool,
    },
    /// Before a value.
    Value,
    ValueBytes(u64),
    /// h3's to judge.
    Elsewhere,
}

/// What a number counts.
#[derive(Debug, Clone, Copy)]
enum Of {
    InsertCount,
    Base,
    /// A line of the static table, or else of the dynamic one.
    Line {
        is_static: bool,
    },
    /// The same for its name alone.
    Named {
        is_static: bool,
    },
    NameBytes {
        huffman: bool,
    },
    ValueBytes,
}

impl FieldSection {
    pub(super) const fn new(is_trailers: bool) -> Self {
        Self {
            at: At::InsertCount,
            is_trailers,
            said: 0,
            has_field: false,
            name: [0; NAME_BYTES_MAX],
            name_bytes: 0,
        }
    }

    /// Looks at the next bytes.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> Result<(), SectionFault> {
        while let Some((&first, rest)) = bytes.split_first() {
            match self.at {
                At::Elsewhere => return Ok(()),
                At::ValueBytes(left) => {
                    let seen = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    let left = left - seen as u64;
                    self.at = if left == 0 { At::Line } else { At::ValueBytes(left) };
                    bytes = bytes.get(seen..).unwrap_or_default();
                    continue;
                }
                At::Name { left, huffman } => {
                    if let Some(room) = self.name.get_mut(self.name_bytes) {
                        *room = first;
                        self.name_bytes += 1;
                    }
                    self.at = At::Name { left: left - 1, huffman };
                    if left == 1 {
                        self.name(huffman)?;
                        self.at = At::Value;
                    }
                }
                At::InsertCount => self.number(Of::InsertCount, first, 8)?,
                At::Base => self.number(Of::Base, first, 7)?,
                At::Value => self.number(Of::ValueBytes, first, 7)?,
                At::Line => self.line(first)?,
                At::Number { of, value, shift } => self.more(of, value, shift, first)?,
            }
            bytes = rest;
        }
        Ok(())
    }

    /// RFC 9204 section 4.5.
    fn line(&mut self, first: u8) -> Result<(), SectionFault> {
        let bit = |bit: u8| first & bit != 0;
        if bit(0x80) {
            self.number(Of::Line { is_static: bit(0x40) }, first, 6)
        } else if bit(0x40) {
            self.number(Of::Named { is_static: bit(0x10) }, first, 4)
        } else if bit(0x20) {
            self.number(Of::NameBytes { huffman: bit(0x08) }, first, 3)
        } else {
            self.at = At::Elsewhere;
            Ok(())
        }
    }

    /// The first byte of a number, which has its last `bits` (RFC 7541 section 5.1).
    fn number(&mut self, of: Of, first: u8, bits: u32) -> Result<(), SectionFault> {
        let most = (1_u64 << bits) - 1;
        let value = u64::from(first) & most;
        if value < most {
            return self.counted(of, value);
        }
        self.at = At::Number { of, value, shift: 0 };
        Ok(())
    }

    fn more(&mut self, of: Of, value: u64, shift: u32, byte: u8) -> Result<(), SectionFault> {
        // No frame that is let through is as long as four of these bytes can say.
        if shift > 28 {
            self.at = At::Elsewhere;
            return Ok(());
        }
        let value = value + (u64::from(byte & 0x7f) << shift);
        if byte & 0x80 == 0 {
            return self.counted(of, value);
        }
        self.at = At::Number { of, value, shift: shift + 7 };
        Ok(())
    }

    fn counted(&mut self, of: Of, value: u64) -> Result<(), SectionFault> {
        self.at = match of {
            Of::InsertCount => At::Base,
            Of::Base => At::Line,
            Of::Line { is_static: false } | Of::Named { is_static: false } => At::Elsewhere,
            Of::Line { is_static: true } => {
                self.known(value)?;
                At::Line
            }
            Of::Named { is_static: true } => {
                self.known(value)?;
                At::Value
            }
            Of::NameBytes { huffman } => {
                self.name_bytes = 0;
                if value == 0 { At::Value } else { At::Name { left: value, huffman } }
            }
            Of::ValueBytes if value == 0 => At::Line,
            Of::ValueBytes => At::ValueBytes(value),
        };
        Ok(())
    }

    /// A name by its number in the static table (RFC 9204, appendix A).
    fn known(&mut self, number: u64) -> Result<(), SectionFault> {
        match number {
            0 => self.pseudo(Pseudo::Authority),
            1 => self.pseudo(Pseudo::Path),
            15..=21 => self.pseudo(Pseudo::Method),
            22 | 23 => self.pseudo(Pseudo::Scheme),
            // `:status`
            24..=28 | 63..=71 => Err(SectionFault::Unknown),
            _ => {
                self.has_field = true;
                Ok(())
            }
        }
    }

    /// A name in letters. Huffman's code begins that of a colon with seven bits of its own.
    fn name(&mut self, huffman: bool) -> Result<(), SectionFault> {
        let name = self.name.get(..self.name_bytes).unwrap_or_default();
        let begins = match name.first() {
            Some(first) if huffman => first >> 1 == 0x5c,
            first => first == Some(&b':'),
        };
        if !begins {
            self.has_field = true;
            return Ok(());
        }
        let pseudo = match (huffman, name) {
            (false, b":method") | (true, [0xb9, 0x49, 0x53, 0x39, 0xe4]) => Pseudo::Method,
            (false, b":scheme") | (true, [0xb8, 0x82, 0x4e, 0x5a, 0x4b]) => Pseudo::Scheme,
            (false, b":authority") | (true, [0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f]) => {
                Pseudo::Authority
            }
            (false, b":path") | (true, [0xb9, 0x58, 0xd3, 0x3f]) => Pseudo::Path,
            // Also one that is padded otherwise than Huffman's code is.
            _ => return Err(SectionFault::Unknown),
        };
        self.pseudo(pseudo)
    }

    fn pseudo(&mut self, pseudo: Pseudo) -> Result<(), SectionFault> {
        if self.is_trailers {
            return Err(SectionFault::InTrailers);
        }
        if self.said & pseudo as u8 != 0 {
            return Err(SectionFault::Twice);
        }
        if self.has_field {
            return Err(SectionFault::Late);
        }
        self.said |= pseudo as u8;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `GET https://localhost/`, by the static table.
    const HEAD: &[u8] =
        &[0, 0, 0xd1, 0xd7, 0xc1, 0x50, 9, b'l', b'o', b'c', b'a', b'l', b'h', b'o', b's', b't'];
    /// `accept: */*`, from the static table.
    const FIELD: &[u8] = &[0xdd];

    fn literal(name: &[u8], huffman: bool) -> Vec<u8> {
        let flags = if huffman { 0x28 } else { 0x20 };
        // A length that three bits have no room for.
        let length = match u8::try_from(name.len()).expect("short") {
            length @ 0..7 => vec![flags | length],
            length => vec![flags | 7, length - 7],
        };
        [length.as_slice(), name, &[1, b'x']].concat()
    }

    /// The verdict, which is the same wherever the bytes are cut.
    fn see(section: &[&[u8]], is_trailers: bool) -> Result<(), SectionFault> {
        let bytes = section.concat();
        let whole = FieldSection::new(is_trailers).see(&bytes);
        for size in 1..bytes.len() {
            let mut follows = FieldSection::new(is_trailers);
            let cut = bytes.chunks(size).try_for_each(|piece| follows.see(piece));
            assert_eq!(cut, whole, "{bytes:?} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn heads_and_trailers_as_they_should_be_pass() {
        assert_eq!(see(&[HEAD], false), Ok(()));
        assert_eq!(see(&[HEAD, FIELD, &literal(b"x-long-name-of-a-field", false)], false), Ok(()));
        assert_eq!(see(&[&[0, 0], FIELD, &literal(b"sum", false)], true), Ok(()));
        // By letters, plain and in Huffman's code.
        let names: [(&[u8], bool); 4] = [
            (b":method", false),
            (&[0xb8, 0x82, 0x4e, 0x5a, 0x4b], true),
            (&[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f], true),
            (b":path", false),
        ];
        let named = names.map(|(name, huffman)| literal(name, huffman)).concat();
        assert_eq!(see(&[&[0, 0], &named, FIELD], false), Ok(()));
    }

    #[test]
    fn a_pseudo_header_is_said_once_and_first() {
        let path = [0x51, 2, b'/', b'x'];
        let by_letters: [(&[u8], bool); 6] = [
            (b":method", false),
            (&[0xb9, 0x49, 0x53, 0x39, 0xe4], true),
            (b":scheme", false),
            (b":authority", false),
            (b":path", false),
            (&[0xb9, 0x58, 0xd3, 0x3f], true),
        ];
        for again in
            by_letters.map(|(name, huffman)| literal(name, huffman)).iter().map(Vec::as_slice).chain([
                &path[..],
                // `:method POST`, `:scheme http`, `:authority` with a value
                &[0xd4],
                &[0xd6],
                &[0x50, 1, b'b'],
            ])
        {
            assert_eq!(see(&[HEAD, again], false), Err(SectionFault::Twice), "{again:?}");
        }
        assert_eq!(see(&[&[0, 0, 0xd1, 0xd7], FIELD, &path], false), Err(SectionFault::Late));
        assert_eq!(see(&[&[0, 0], FIELD, &path], true), Err(SectionFault::InTrailers));
    }

    #[test]
    fn what_is_no_pseudo_header_of_a_request_is_refused() {
        for other in [
            literal(b":protocol", false),
            literal(b":status", false),
            literal(b":", false),
            literal(b":pathology", false),
            // `:path` with a byte of padding too many
            literal(&[0xb9, 0x58, 0xd3, 0x3f, 0xff], true),
            // `:status 200`
            vec![0xd9],
        ] {
            assert_eq!(see(&[HEAD, &other], false), Err(SectionFault::Unknown), "{other:?}");
        }
    }

    #[test]
    fn what_is_h3s_to_judge_is_left_to_it() {
        let path = [0x51, 2, b'/', b'x'];
        for elsewhere in
            [&[0x81][..], &[0x41, 1, b'x'], &[0x10], &[0x01, 0], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]
        {
            assert_eq!(see(&[HEAD, elsewhere, &path], false), Ok(()), "{elsewhere:?}");
        }
    }
}

//! Where a chunked body ends (RFC 9112 §7.1), read as strictly as it is written.
//!
//! Owns the limits of what surrounds the data: digits of a size, extensions, trailer fields. Keeps no byte, and knows
//! neither the request nor the socket; called by [`super::requests`].

use super::fault::Fault;
use super::head::is_token;

/// Digits of one chunk's size, leading zeros included: 2^64 has sixteen.
const SIZE_DIGITS_MAX: u8 = 16;
/// Extensions of one body. Nobody sends any; hyper would read 16 KiB.
const EXTENSION_BYTES_MAX: u32 = 1024;
/// Trailer fields of one body: some checksums and signatures. hyper would read 16 KiB and 100 fields.
const TRAILER_BYTES_MAX: u32 = 8 * 1024;
const TRAILERS_MAX: u32 = 64;

/// The position in one chunked body.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    at: At,
    /// Bytes of the current chunk that are still to come; its size while that is read.
    left: u64,
    digits: u8,
    extension_bytes: u32,
    trailer_bytes: u32,
    trailers: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    /// White space that §7.1.1 has us accept before a semicolon.
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The first byte of a trailer field, or of the end.
    Line,
    Name,
    Value,
    ValueLf,
    EndLf,
    Done,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self { at: At::Size, left: 0, digits: 0, extension_bytes: 0, trailer_bytes: 0, trailers: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Follows the body as far as it goes in `bytes`: how many of them are its own, or where it breaks and why.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<usize, (usize, Fault)> {
        let mut taken = 0;
        while let (Some(&byte), false) = (bytes.get(taken), self.is_done()) {
            if self.at == At::Data {
                let here = bytes.len() - taken;
                let step = usize::try_from(self.left).unwrap_or(usize::MAX).min(here);
                taken += step;
                self.left -= step as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            self.at = self.step(byte).map_err(|fault| (taken, fault))?;
            taken += 1;
        }
        Ok(taken)
    }

    fn step(&mut self, byte: u8) -> Result<At, Fault> {
        match (self.at, byte) {
            (At::Size, byte) if byte.is_ascii_hexdigit() => self.digit(byte),
            (At::Size, _) if self.digits == 0 => Err(Fault::BadChunk),
            (At::Size | At::Space, b';') => Ok(At::Extension),
            (At::Size | At::Space, b' ' | b'\t') => self.extension(At::Space),
            (At::Size, b'\r') => Ok(At::SizeLf),
            (At::Extension, b'\r') => Ok(At::SizeLf),
            (At::Extension, byte) if is_text(byte) => self.extension(At::Extension),
            (At::SizeLf, b'\n') => {
                self.digits = 0;
                Ok(if self.left == 0 { At::Line } else { At::Data })
            }
            (At::DataCr, b'\r') => Ok(At::DataLf),
            (At::DataLf, b'\n') => Ok(At::Size),
            (At::Line, b'\r') => Ok(At::EndLf),
            (At::EndLf, b'\n') => Ok(At::Done),
            (At::Line, byte) if is_token(byte) => {
                self.trailers += 1;
                if self.trailers > TRAILERS_MAX {
                    return Err(Fault::TrailersTooLarge);
                }
                self.trailer(At::Name)
            }
            (At::Name, b':') => self.trailer(At::Value),
            (At::Name, byte) if is_token(byte) => self.trailer(At::Name),
            (At::Value, b'\r') => self.trailer(At::ValueLf),
            (At::Value, byte) if is_text(byte) => self.trailer(At::Value),
            (At::ValueLf, b'\n') => self.trailer(At::Line),
            (At::Line | At::Name | At::Value | At::ValueLf | At::EndLf, _) => Err(Fault::BadTrailer),
            _ => Err(Fault::BadChunk),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<At, Fault> {
        let digit = (byte as char).to_digit(16).ok_or(Fault::BadChunk)?;
        self.digits += 1;
        if self.digits > SIZE_DIGITS_MAX {
            return Err(Fault::BadChunk);
        }
        // Sixteen digits fit.
        self.left = (self.left << 4) | u64::from(digit);
        Ok(At::Size)
    }

    fn extension(&mut self, next: At) -> Result<At, Fault> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(Fault::ChunkExtensionsTooLong);
        }
        Ok(next)
    }

    fn trailer(&mut self, next: At) -> Result<At, Fault> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(Fault::TrailersTooLarge);
        }
        Ok(next)
    }
}

/// What may stand in a field's value or a chunk's extension: no control character but tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(text: &str) -> Result<usize, (usize, Fault)> {
        let mut chunks = Chunks::new();
        let taken = chunks.follow(text.as_bytes())?;
        assert!(chunks.is_done() || taken == text.len(), "{text:?}");
        Ok(if chunks.is_done() { taken } else { usize::MAX })
    }

    #[test]
    fn bodies_end_where_they_end() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "05\r\nhello\r\n000\r\n\r\n",
            "5;a=b\r\nhello\r\n0;c=\"d;e\"\r\n\r\n",
            "5 \t;a\r\nhello\r\n0\r\n\r\n",
            "1\r\n\n\r\n1\r\n\r\r\n0\r\nX: y\r\nZ:\r\n\r\n",
        ] {
            assert_eq!(follow(&format!("{body}GET /")), Ok(body.len()), "{body:?}");
        }
        let whole = "a\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(follow(&whole[..cut]), Ok(usize::MAX), "{cut}");
        }
    }

    #[test]
    fn what_others_may_read_otherwise_breaks_where_it_stands() {
        for (body, at) in [
            ("g", 0),
            ("-1", 0),
            ("\r\n", 0),
            (" 5", 0),
            (";x", 0),
            ("0x5", 1),
            ("5 5", 2),
            ("5 \r\n", 2),
            ("5\nhello", 1),
            ("5\rhello", 2),
            ("5;a\nb", 3),
            ("5;a\0", 3),
            ("5\r\nhello0", 8),
            ("5\r\nhello\n0", 8),
            ("5\r\nhello\r0", 9),
            ("00000000000000005", 16),
        ] {
            assert_eq!(follow(body), Err((at, Fault::BadChunk)), "{body:?}");
        }
        for trailer in [": x", " X: y", "X : y", "X: y\n", "X\r\n", "X: y\r\n folded", "X: a\0"] {
            let broken = follow(&format!("0\r\n{trailer}\r\n\r\n"));
            assert!(matches!(broken, Err((_, Fault::BadTrailer))), "{trailer:?} {broken:?}");
        }
    }

    #[test]
    fn what_surrounds_the_data_is_bounded() {
        let long = follow(&format!("5;{}\r\n", "x".repeat(64 << 10)));
        assert!(matches!(long, Err((at, Fault::ChunkExtensionsTooLong)) if at < 2 << 10), "{long:?}");
        // Over all chunks together.
        let many = follow(&"1;xxxxxxxxx\r\n.\r\n".repeat(200));
        assert!(matches!(many, Err((_, Fault::ChunkExtensionsTooLong))), "{many:?}");
        for trailers in ["X: y\r\n".repeat(65), format!("X: {}", "y".repeat(9 << 10))] {
            let large = follow(&format!("0\r\n{trailers}"));
            assert!(matches!(large, Err((_, Fault::TrailersTooLarge))), "{large:?}");
        }
    }
}

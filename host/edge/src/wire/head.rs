//! One head of HTTP/1.1, read as strictly as RFC 9112 has it written.
//!
//! hyper reads it again and mends what it may: it takes a line feed alone for a line's end, drops a length beside a
//! transfer coding and makes one of equal lengths. Each is allowed, and each is a difference to somebody who reads
//! otherwise, in front of us or behind. Here such a head is refused before hyper has it.
//!
//! `httparse` does the parsing, as in hyper, so that there is no third opinion on what a token is. Pure: bytes in,
//! verdict out, nothing allocated.

use std::mem::MaybeUninit;

use memchr::memchr_iter;

use super::fault::Fault;

/// Fields of one head. Browsers send some thirty.
pub const FIELDS_MAX: usize = 100;
/// Digits of a length: 10^19 is more than any disk.
const LENGTH_DIGITS_MAX: usize = 19;

/// How the body of a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// Where the head at the start of `bytes` ends, if it is all there; an error if no head may have such lines.
/// `scanned`: bytes that an earlier call has seen and found nothing in.
pub(super) fn end(bytes: &[u8], scanned: usize) -> Result<Option<usize>, Fault> {
    let start = match bytes {
        [b'\r', b'\n', rest @ ..] => match rest {
            [b'\r' | b'\n', ..] => return Err(Fault::EmptyLines),
            _ => 2,
        },
        [b'\n', ..] => return Err(Fault::EmptyLines),
        _ => 0,
    };
    let from = scanned.max(start);
    for offset in memchr_iter(b'\n', bytes.get(from..).unwrap_or_default()) {
        let at = from + offset;
        let line = &bytes[start..at];
        match line {
            // The carriage return that ends the empty line.
            [.., b'\n', b'\r'] => return Ok(Some(at + 1)),
            [.., b'\r'] => {}
            _ => return Err(Fault::BareLineFeed),
        }
    }
    Ok(None)
}

/// Whether no head begins like this, whatever follows.
pub(super) fn is_hopeless(bytes: &[u8]) -> Option<Fault> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(bytes, &mut fields);
    parsed.err().map(fault_of)
}

/// Reads a head that is all there.
pub(super) fn read(head: &[u8]) -> Result<Framing, Fault> {
    read_with(head, |_, framing| framing)
}

/// The same, for somebody who wants to see it.
pub(super) fn read_with<T>(
    head: &[u8],
    see: impl FnOnce(&httparse::Request<'_, '_>, Framing) -> T,
) -> Result<T, Fault> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        // It ends elsewhere than by our own reading.
        Ok(_) => return Err(Fault::BadHead),
        Err(error) => return Err(fault_of(error)),
    }
    if request.path.is_some_and(|target| target.as_bytes().contains(&b'#')) {
        return Err(Fault::Fragment);
    }
    let (mut lengths, mut length) = (0, 0);
    let mut coded = false;
    for field in request.headers.iter() {
        // Most names differ in their length already.
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                length = parse_length(field.value)?;
                lengths += 1;
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if coded || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::BadCoding);
                }
                coded = true;
            }
            _ => {}
        }
    }
    let framing = match (coded, lengths) {
        (true, _) if request.version == Some(0) => return Err(Fault::CodingInHttp10),
        (true, 0) => Framing::Chunked,
        (true, _) => return Err(Fault::LengthBesideCoding),
        (false, 0) => Framing::None,
        (false, 1) => Framing::Length(length),
        (false, _) => return Err(Fault::LengthTwice),
    };
    Ok(see(&request, framing))
}

fn parse_length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || value.len() > LENGTH_DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::BadLength);
    }
    // Nineteen digits fit.
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

fn fault_of(error: httparse::Error) -> Fault {
    match error {
        httparse::Error::TooManyHeaders => Fault::TooManyFields,
        _ => Fault::BadHead,
    }
}

/// A byte of a token (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Result<Framing, Fault> {
        let end = end(text.as_bytes(), 0)?.unwrap_or_else(|| panic!("no end: {text:?}"));
        assert_eq!(end, text.len());
        read(&text.as_bytes()[..end])
    }

    #[test]
    fn proper_heads_say_how_their_bodies_end() {
        for (head, framing) in [
            ("GET / HTTP/1.1\r\n\r\n", Framing::None),
            ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", Framing::None),
            ("\r\nGET /a?b HTTP/1.1\r\nhost: a\r\n\r\n", Framing::None),
            ("OPTIONS * HTTP/1.1\r\nHost:a\r\nX: \t y z \r\nY:\r\n\r\n", Framing::None),
            ("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", Framing::Length(0)),
            ("POST / HTTP/1.1\r\nCONTENT-length:007 \r\n\r\n", Framing::Length(7)),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
        ] {
            assert_eq!(verdict(head), Ok(framing), "{head:?}");
        }
    }

    #[test]
    fn what_hyper_would_mend_is_refused_by_name() {
        let post = |lines: &str| verdict(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"));
        assert_eq!(post("Content-Length: 5\r\nContent-Length: 5"), Err(Fault::LengthTwice));
        assert_eq!(post("Content-Length: 5\r\nTransfer-Encoding: chunked"), Err(Fault::LengthBesideCoding));
        assert_eq!(post("Transfer-Encoding: chunked\r\nContent-Length: 0"), Err(Fault::LengthBesideCoding));
        assert_eq!(post("Transfer-Encoding: chunked\r\ntransfer-encoding: chunked"), Err(Fault::BadCoding));
        for coding in ["", "gzip", "gzip, chunked", "chunked, chunked", "chunked;q=1", "xchunked"] {
            assert_eq!(post(&format!("Transfer-Encoding: {coding}")), Err(Fault::BadCoding), "{coding}");
        }
        for length in ["", "+5", "-5", "5,5", "0x5", "5 5", "99999999999999999999", "\u{0665}"] {
            assert_eq!(post(&format!("Content-Length: {length}")), Err(Fault::BadLength), "{length}");
        }
        assert_eq!(
            verdict("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(Fault::CodingInHttp10)
        );
        assert_eq!(verdict("GET /a#b HTTP/1.1\r\n\r\n"), Err(Fault::Fragment));
        for lines in
            ["GET / HTTP/1.1\n\n", "GET / HTTP/1.1\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\n"]
        {
            assert_eq!(verdict(lines), Err(Fault::BareLineFeed), "{lines:?}");
        }
        for lines in ["\n", "\r\n\r\n", "\r\n\n", "\r\n\r"] {
            assert_eq!(end(lines.as_bytes(), 0), Err(Fault::EmptyLines), "{lines:?}");
        }
    }

    #[test]
    fn bytes_out_of_place_are_refused() {
        for head in [
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/1.1 \r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "G(T / HTTP/1.1\r\n\r\n",
            "GET /\0 HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nX : y\r\n\r\n",
            "GET / HTTP/1.1\r\nX: y\r\n z\r\n\r\n",
            "GET / HTTP/1.1\r\n X: y\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\n: y\r\n\r\n",
            "GET / HTTP/1.1\r\nX\r\n\r\n",
        ] {
            assert_eq!(verdict(head), Err(Fault::BadHead), "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(FIELDS_MAX + 1));
        assert_eq!(verdict(&many), Err(Fault::TooManyFields));
        assert_eq!(is_hopeless(b"GET / HTTP/1.1\rHost: a\r\r"), Some(Fault::BadHead));
        assert_eq!(is_hopeless(b"GET / HTTP/1.1\r\nHos"), None);
    }
}

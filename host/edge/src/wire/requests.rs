//! Where one request of HTTP/1.1 ends and the next begins, on a connection that may carry many.
//!
//! Follows the bytes that a client sends as hyper will read them, and refuses what could be read in two ways. Pure: it
//! keeps a position and no bytes. Whoever calls it keeps a head that is not all there yet, and gives it again with what
//! came since.

use super::chunks::Chunks;
use super::fault::Fault;
use super::head::{self, Framing};

/// The position in the requests of one connection.
#[derive(Debug)]
pub(super) struct Requests {
    at: At,
    /// Heads that were whole and proper.
    heads: u64,
    /// Bytes of the head being read that hold no end of it.
    scanned: usize,
    /// Length of the head being read when it was last parsed: again at twice that, so that a head in single bytes costs
    /// no more than a head.
    parsed: usize,
    head_bytes_max: usize,
}

#[derive(Debug)]
enum At {
    Head,
    Length(u64),
    Chunked(Chunks),
}

/// How far some bytes may go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Followed {
    /// So many may pass.
    pub(super) pass: usize,
    pub(super) rest: Rest,
}

/// What is with those that may not.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// There are none.
    None,
    /// They begin a head, and are to be given again with what comes.
    Kept,
    /// Nothing passes any more. `head`: it is the head after [`Requests::heads`] that is wrong, and not the body of that one.
    Refused { fault: Fault, head: bool },
}

impl Requests {
    pub(super) fn new(head_bytes_max: usize) -> Self {
        Self { at: At::Head, heads: 0, scanned: 0, parsed: 0, head_bytes_max }
    }

    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether what comes next is a body's.
    pub(super) fn is_in_body(&self) -> bool {
        !matches!(self.at, At::Head)
    }

    pub(super) fn follow(&mut self, bytes: &[u8]) -> Followed {
        let mut pass = 0;
        while pass < bytes.len() {
            let here = &bytes[pass..];
            match &mut self.at {
                At::Head => match self.head(here) {
                    Ok(Some(length)) => pass += length,
                    Ok(None) => return Followed { pass, rest: Rest::Kept },
                    Err(fault) => return Followed { pass, rest: Rest::Refused { fault, head: true } },
                },
                At::Length(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(here.len());
                    *left -= step as u64;
                    pass += step;
                    if *left == 0 {
                        self.at = At::Head;
                    }
                }
                At::Chunked(chunks) => match chunks.follow(here) {
                    Ok(step) => {
                        pass += step;
                        if chunks.is_done() {
                            self.at = At::Head;
                        }
                    }
                    Err((step, fault)) => {
                        let rest = Rest::Refused { fault, head: false };
                        return Followed { pass: pass + step, rest };
                    }
                },
            }
        }
        Followed { pass, rest: Rest::None }
    }

    /// What `ask` has for the request that these bytes are, if they are one proper head and nothing else, of a request
    /// without a body: then it is behind us. Nothing leaves everything as it was.
    pub(super) fn alone<T>(
        &mut self,
        bytes: &[u8],
        ask: impl FnOnce(&httparse::Request<'_, '_>) -> Option<T>,
    ) -> Option<T> {
        let begins = matches!(self.at, At::Head) && self.scanned == 0 && self.parsed == 0;
        let looks_so = bytes.starts_with(b"GET /") && bytes.ends_with(b"\r\n\r\n");
        if !begins || !looks_so || bytes.len() >= self.head_bytes_max {
            return None;
        }
        if head::end(bytes, 0) != Ok(Some(bytes.len())) {
            return None;
        }
        let see = |request: &httparse::Request<'_, '_>, framing| {
            if framing == Framing::None { ask(request) } else { None }
        };
        let answer = head::read_with(bytes, see).ok().flatten()?;
        self.heads += 1;
        Some(answer)
    }

    /// The client has nothing more to say. `kept`: what it was told to give again.
    pub(super) fn finish(&self, kept: &[u8]) -> Option<Fault> {
        head::is_hopeless(kept).filter(|_| !kept.is_empty())
    }

    /// The length of the head at the start of these bytes, if it is whole and proper.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let Some(length) = head::end(bytes, self.scanned)? else {
            self.scanned = bytes.len();
            if bytes.len() >= self.parsed.saturating_mul(2) {
                self.parsed = bytes.len();
                if let Some(fault) = head::is_hopeless(bytes) {
                    return Err(fault);
                }
            }
            // hyper has no room for the last byte of its buffer.
            return if bytes.len() >= self.head_bytes_max { Err(Fault::HeadTooLarge) } else { Ok(None) };
        };
        if length >= self.head_bytes_max {
            return Err(Fault::HeadTooLarge);
        }
        self.at = match head::read(&bytes[..length])? {
            Framing::None | Framing::Length(0) => At::Head,
            Framing::Length(length) => At::Length(length),
            Framing::Chunked => At::Chunked(Chunks::new()),
        };
        (self.scanned, self.parsed) = (0, 0);
        self.heads += 1;
        Ok(Some(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD_BYTES_MAX: usize = 8 * 1024;

    /// What a connection came to: proper heads, bytes that passed, and whether the rest was refused, in which part.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Verdict {
        heads: u64,
        passed: usize,
        refused: Option<bool>,
    }

    /// As the socket may bring them: in these pieces.
    fn follow(pieces: &[&[u8]]) -> Verdict {
        let mut requests = Requests::new(HEAD_BYTES_MAX);
        let (mut kept, mut passed) = (Vec::new(), 0);
        for piece in pieces {
            kept.extend_from_slice(piece);
            let followed = requests.follow(&kept);
            passed += followed.pass;
            kept.drain(..followed.pass);
            if let Rest::Refused { head, .. } = followed.rest {
                return Verdict { heads: requests.heads(), passed, refused: Some(head) };
            }
            assert_eq!(followed.rest == Rest::Kept, !kept.is_empty());
        }
        let refused = requests.finish(&kept).map(|_| true);
        Verdict { heads: requests.heads(), passed, refused }
    }

    /// The same by a reader that has no cleverness: everything at once, line by line, byte by byte.
    fn naive(bytes: &[u8]) -> Verdict {
        let mut verdict = Verdict { heads: 0, passed: 0, refused: None };
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some((head, body)) = naive_head(rest) else {
                verdict.refused = Some(true);
                return verdict;
            };
            let Some(head) = head else { return verdict };
            (verdict.heads, verdict.passed) = (verdict.heads + 1, verdict.passed + head);
            rest = &rest[head..];
            let taken = match body {
                NaiveBody::Length(length) => length.min(rest.len()),
                NaiveBody::Chunked => match naive_chunks(rest) {
                    (taken, true) => taken,
                    (taken, false) => {
                        (verdict.passed, verdict.refused) = (verdict.passed + taken, Some(false));
                        return verdict;
                    }
                },
            };
            verdict.passed += taken;
            rest = &rest[taken..];
        }
        verdict
    }

    enum NaiveBody {
        Length(usize),
        Chunked,
    }

    /// Lines with their ends, or nothing if one has a wrong end. The last may have none.
    fn naive_lines(bytes: &[u8]) -> Option<Vec<&[u8]>> {
        let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        lines.iter().all(|line| !line.ends_with(b"\n") || line.ends_with(b"\r\n")).then_some(lines)
    }

    /// Nothing for a head that is wrong; no length for one that is not all there.
    fn naive_head(bytes: &[u8]) -> Option<(Option<usize>, NaiveBody)> {
        let unfinished = Some((None, NaiveBody::Length(0)));
        let (skip, bytes) = bytes.strip_prefix(b"\r\n").map_or((0, bytes), |bytes| (2, bytes));
        if bytes.starts_with(b"\r") || bytes.starts_with(b"\n") {
            return (bytes == b"\r" && skip == 0).then_some((None, NaiveBody::Length(0)));
        }
        let end = (1..=bytes.len()).find(|end| bytes[..*end].ends_with(b"\n\r\n"));
        let until = end.unwrap_or(bytes.len());
        // A line that ends wrongly counts if it does so before the head has ended.
        let lines = naive_lines(&bytes[..until])?;
        let mut parsed = [httparse::EMPTY_HEADER; head::FIELDS_MAX];
        let mut request = httparse::Request::new(&mut parsed);
        request.parse(&bytes[..until]).ok()?;
        let Some(end) = end else { return unfinished };
        let target = lines[0].split(|byte| *byte == b' ').nth(1)?;
        let (mut length, mut coded) = (None, false);
        for line in &lines[1..lines.len() - 1] {
            let line = std::str::from_utf8(line).unwrap_or("x:");
            let (name, value) = line.split_once(':')?;
            let value = value.trim_matches(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                    let parsed = value.parse().ok().filter(|_| digits && length.is_none())?;
                    length = Some(parsed);
                }
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") && !coded => coded = true,
                "transfer-encoding" => return None,
                _ => {}
            }
        }
        let old = lines[0].ends_with(b"HTTP/1.0\r\n");
        if target.contains(&b'#') || (coded && (length.is_some() || old)) {
            return None;
        }
        let body = if coded { NaiveBody::Chunked } else { NaiveBody::Length(length.unwrap_or(0)) };
        Some((Some(skip + end), body))
    }

    /// How many bytes are proper, and whether that is all there is to say against them.
    fn naive_chunks(bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        loop {
            let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            if digits > 16 {
                return (at + 16, false);
            }
            if at + digits == bytes.len() {
                return (bytes.len(), true);
            }
            if digits == 0 {
                return (at, false);
            }
            let text = std::str::from_utf8(&bytes[at..at + digits]).expect("digits");
            let size = u64::from_str_radix(text, 16).expect("sixteen digits");
            at += digits;
            let spaces = bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
            if spaces > 0 {
                // Only before a semicolon, and the strategies below write none.
                return (at + spaces, at + spaces == bytes.len());
            }
            match naive_expect(bytes, at, b"\r\n") {
                Ok(end) => at = end,
                Err(stop) => return stop,
            }
            if size == 0 {
                // The strategies below write no trailers but this one.
                if bytes[at..].starts_with(b"X: y\r\n") {
                    at += 6;
                } else if b"X: y\r\n".starts_with(&bytes[at..]) {
                    return (bytes.len(), true);
                }
                return match naive_expect(bytes, at, b"\r\n") {
                    Ok(end) => (end, true),
                    Err(stop) => stop,
                };
            }
            let data = usize::try_from(size).unwrap_or(usize::MAX);
            if data >= bytes.len() - at {
                return (bytes.len(), true);
            }
            at += data;
            match naive_expect(bytes, at, b"\r\n") {
                Ok(end) => at = end,
                Err(stop) => return stop,
            }
        }
    }

    fn naive_expect(bytes: &[u8], at: usize, what: &[u8]) -> Result<usize, (usize, bool)> {
        for (offset, want) in what.iter().enumerate() {
            match bytes.get(at + offset) {
                None => return Err((bytes.len(), true)),
                Some(byte) if byte != want => return Err((at + offset, false)),
                Some(_) => {}
            }
        }
        Ok(at + what.len())
    }

    /// Pieces of requests, right and wrong, that make something of each other.
    fn connection() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => Just("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            4 => Just("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
            4 => Just("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            2 => Just("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: y\r\n\r\n"),
            1 => Just("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => Just("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            1 => Just("POST / HTTP/1.1\r\n"),
            1 => Just("Content-Length: 7\r\n"),
            1 => Just("Transfer-Encoding: chunked\r\n"),
            1 => Just("Transfer-Encoding: gzip\r\n"),
            2 => Just("\r\n"),
            1 => Just("\n"),
            1 => Just("\r"),
            1 => Just("0\r\n\r\n"),
            1 => Just("5\r\nhello\r\n"),
            1 => Just(" folded\r\n"),
            1 => Just("\0"),
            1 => Just("ffffffffffffffff"),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn a_naive_reader_agrees(bytes in connection()) {
            prop_assert_eq!(follow(&[&bytes]), naive(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn wherever_the_bytes_are_cut_the_verdict_is_the_same(bytes in connection(), byte in any::<u8>(), at in 0.0..1.0) {
            let mut bytes = bytes;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                reason = "a position within a few hundred bytes")]
            let at = (bytes.len() as f64 * at) as usize;
            if let Some(changed) = bytes.get_mut(at) {
                *changed = byte;
            }
            let whole = follow(&[&bytes]);
            for cut in 0..bytes.len() {
                let (one, two) = bytes.split_at(cut);
                prop_assert_eq!(follow(&[one, two]), whole, "{} of {:?}", cut, String::from_utf8_lossy(&bytes));
            }
            let single: Vec<_> = bytes.chunks(1).collect();
            prop_assert_eq!(follow(&single), whole, "{:?}", String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn no_bytes_at_all_make_it_panic_or_pass_more_than_there_is(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(follow(&[&bytes]).passed <= bytes.len());
        }
    }

    #[test]
    fn requests_follow_one_another() {
        let text =
            b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /POST / HTTP/1.1\r\n\
            Transfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        assert_eq!(follow(&[text]), Verdict { heads: 4, passed: text.len(), refused: None });
    }

    #[test]
    fn a_head_is_bounded_however_it_comes() {
        let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
        let single: Vec<_> = large.as_bytes().chunks(1).collect();
        for pieces in [vec![large.as_bytes()], single] {
            let verdict = follow(&pieces);
            assert_eq!(verdict, Verdict { heads: 0, passed: 0, refused: Some(true) });
        }
        let mut requests = Requests::new(HEAD_BYTES_MAX);
        let followed = requests.follow(large.as_bytes());
        assert_eq!(followed.rest, Rest::Refused { fault: Fault::HeadTooLarge, head: true });
    }
}

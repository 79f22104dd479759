//! Why a connection's bytes go no further, by name.
//!
//! Two kinds, because they end in two ways: a [`Fault`] is of one HTTP/1.1 request, which is answered; an [`End`] is of
//! the whole connection, which is closed. Both names are labels of metrics; a fault's is also in its answer.

use crate::rescue::{Problem, Refusal};

macro_rules! names {
    ($(#[$outer:meta])* $kind:ident: $($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $kind { $($(#[$doc])* $name,)* }

        impl $kind {
            /// Every one there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Stable: operators count by it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

names! {
    /// What is wrong with a request of HTTP/1.1 before anybody has read what it asks for.
    Fault:
    /// A line feed without the carriage return before it (RFC 9112 §2.2 lets a recipient take it for a line's end, and
    /// not all do).
    BareLineFeed = "bare_line_feed";
    /// More than the one empty line that §2.2 has us ignore before a request.
    EmptyLines = "empty_lines";
    /// A byte that does not belong where it stands: in a method, a target, a version, a name or a value; white space
    /// before a colon; a folded line.
    BadHead = "bad_head";
    /// A fragment is for the client alone (RFC 9110 §4.2.5); some cut it off, and others take it for the path.
    Fragment = "fragment_in_target";
    TooManyFields = "too_many_fields";
    HeadTooLarge = "head_too_large";
    BadLength = "bad_content_length";
    /// Also of equal lengths: a list of equal ones may be mended (RFC 9112 §6.3), and not all mend it.
    LengthTwice = "content_length_twice";
    LengthBesideCoding = "content_length_beside_transfer_encoding";
    /// Anything but `chunked`, once.
    BadCoding = "bad_transfer_encoding";
    CodingInHttp10 = "transfer_encoding_in_http_1_0";
    BadChunk = "bad_chunk";
    ChunkExtensionsTooLong = "chunk_extensions_too_long";
    BadTrailer = "bad_trailer";
    TrailersTooLarge = "trailers_too_large";
    /// The head was begun and not finished in time.
    HeadTooSlow = "head_too_slow";
    /// The body came more slowly than [`super::rate::BYTES_PER_S_MIN`].
    BodyTooSlow = "body_too_slow";
}

impl Fault {
    fn refusal(self) -> Refusal {
        match self {
            Self::LengthTwice | Self::LengthBesideCoding | Self::BadCoding | Self::CodingInHttp10 => {
                Refusal::BadFraming
            }
            Self::TooManyFields | Self::HeadTooLarge | Self::TrailersTooLarge => Refusal::HeadTooLarge,
            Self::HeadTooSlow => Refusal::HeadTooSlow,
            Self::BodyTooSlow => Refusal::BodyTooSlow,
            _ => Refusal::MalformedRequest,
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Self::BareLineFeed => "end each line with a carriage return and a line feed",
            Self::EmptyLines => "there are empty lines before the request line",
            Self::BadHead => {
                "the request line or a field has a byte that must not be there, or a line is folded"
            }
            Self::Fragment => "leave the fragment, from '#' on, out of the target",
            Self::TooManyFields => "send fewer header fields",
            Self::HeadTooLarge => "send a shorter head",
            Self::BadLength => "Content-Length is not a decimal number",
            Self::LengthTwice => "send one Content-Length",
            Self::LengthBesideCoding => "send either Content-Length or Transfer-Encoding",
            Self::BadCoding => "the only Transfer-Encoding understood is chunked, once",
            Self::CodingInHttp10 => "HTTP/1.0 has no Transfer-Encoding",
            Self::BadChunk => "a chunk of the body is not framed as RFC 9112 section 7.1 has it",
            Self::ChunkExtensionsTooLong => "send fewer or shorter chunk extensions",
            Self::BadTrailer => "a trailer field is malformed",
            Self::TrailersTooLarge => "send fewer or shorter trailer fields",
            Self::HeadTooSlow => "the head of the request was not complete in time",
            Self::BodyTooSlow => "the body of the request came too slowly",
        }
    }

    /// The answer. It closes the connection: where the next request begins is in doubt.
    pub fn problem(self) -> Problem {
        Problem::new(self.refusal(), self.detail()).with("fault", self.name())
    }
}

names! {
    /// Why a connection was closed by us.
    End:
    /// No request for as long as an idle connection is kept, or none at all.
    Idle = "idle";
    /// It was the longest idle one when another needed its place.
    Shed = "shed";
    /// A request was refused by its framing, and answered.
    Refused = "refused";
    /// The peer takes our bytes more slowly than [`super::rate::BYTES_PER_S_MIN`], or not at all.
    ReadsTooSlowly = "reads_too_slowly";
    /// HTTP/2: the peer gives a stream no window, or too little of it for too long.
    StreamStalled = "stream_stalled";
    /// HTTP/2: a request body comes too slowly.
    UploadTooSlow = "upload_too_slow";
    /// HTTP/2: frames that ask for nothing, beyond their budget.
    ControlFlood = "control_flood";
    /// HTTP/2: more streams cancelled than shoppers cancel.
    ResetFlood = "reset_flood";
    /// HTTP/2: streams opened faster than they are answered, whatever the limit says.
    StreamFlood = "stream_flood";
    /// HTTP/2: beyond a bound that hyper keeps: streams cancelled before they were looked at, streams that it was made to
    /// cancel, a head without end. Which of two bounds is met first depends on how the bytes come.
    Calmed = "enhance_your_calm";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_answered_with_its_name_and_closes() {
        for &fault in Fault::ALL {
            let response = fault.problem().into_response();
            assert!(response.status().is_client_error(), "{fault:?}");
            assert_eq!(response.headers()["connection"], "close", "{fault:?}");
        }
        let mut names: Vec<_> = Fault::ALL
            .iter()
            .map(|fault| fault.name())
            .chain(End::ALL.iter().map(|end| end.name()))
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a name means one thing");
    }
}

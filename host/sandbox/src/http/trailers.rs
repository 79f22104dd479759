//! Trailers, in all four directions: which fields may follow a body.
//!
//! A recipient may put trailers to the fields of the head (RFC 9110, section 6.5.1), and frameworks do. Whatever stands
//! there has passed nobody who looks at heads: not the node, not a firewall. So a field that says how a message is
//! framed, where it goes, who sends it or how it is to be processed is dropped, and with it what `Connection` named in the
//! head. What is left (checksums, timings, a status of gRPC) passes.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, TRAILER};
use http_body::Frame;

use super::{HttpLimits, head};

/// What a head alone may say, beside the fields that are forbidden in heads too. RFC 9110 names the classes, RFC 7230
/// (section 4.1.2) the fields.
const OF_THE_HEAD: [&str; 24] = [
    // Framing, and the form of the content.
    "content-length",
    "content-encoding",
    "content-type",
    "content-range",
    "trailer",
    // Routing.
    "max-forwards",
    "via",
    "cdn-loop",
    // Modifiers of a request.
    "cache-control",
    "pragma",
    "expect",
    "range",
    "origin",
    // Authentication.
    "authorization",
    "www-authenticate",
    "cookie",
    "set-cookie",
    // Control of a response.
    "age",
    "date",
    "expires",
    "location",
    "retry-after",
    "vary",
    "warning",
];
/// The same, by family: conditions, and what is between a client and its proxy.
const FAMILIES_OF_THE_HEAD: [&str; 2] = ["if-", "proxy-"];

/// Fields that `Connection` names: for this hop alone, wherever in the message they stand.
pub(super) type Nominated = Vec<HeaderName>;

fn may_follow(name: &HeaderName, nominated: &[HeaderName]) -> bool {
    let text = name.as_str();
    !(head::is_forbidden(name)
        || OF_THE_HEAD.contains(&text)
        || FAMILIES_OF_THE_HEAD.iter().any(|family| text.starts_with(family))
        || nominated.contains(name))
}

/// A frame of a body, if it holds trailers with only those that may be there.
pub(super) fn cleaned(frame: Frame<Bytes>, nominated: &[HeaderName]) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut fields) => {
            clean(&mut fields, nominated);
            Frame::trailers(fields)
        }
        Err(frame) => frame,
    }
}

fn clean(fields: &mut HeaderMap, nominated: &[HeaderName]) {
    let gone: Vec<HeaderName> = fields.keys().filter(|name| !may_follow(name, nominated)).cloned().collect();
    for name in gone {
        fields.remove(name);
    }
}

/// A guest's trailers as they may go out; none if they are too many, too large, or not plain.
pub(super) fn outgoing(mut fields: HeaderMap, limits: &HttpLimits) -> Option<HeaderMap> {
    head::check(&fields, limits).ok()?;
    clean(&mut fields, &[]);
    Some(fields)
}

/// `Trailer` says which fields follow the body, and hyper sends no others: only names that may be there.
pub(super) fn rebuild_announcement(fields: &mut HeaderMap, nominated: &[HeaderName]) {
    if !fields.contains_key(TRAILER) {
        return;
    }
    let names: Vec<HeaderName> = head::names_in(fields, &TRAILER);
    fields.remove(TRAILER);
    for name in names.into_iter().filter(|name| may_follow(name, nominated)) {
        fields.append(TRAILER, HeaderValue::from_name(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(names: &[&'static str]) -> HeaderMap {
        names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1"))).collect()
    }

    fn kept(names: &[&'static str], nominated: &[HeaderName]) -> Vec<String> {
        let frame = cleaned(Frame::trailers(fields(names)), nominated);
        let mut kept: Vec<_> =
            frame.into_trailers().expect("trailers").keys().map(ToString::to_string).collect();
        kept.sort();
        kept
    }

    #[test]
    fn what_only_a_head_may_say_does_not_follow_a_body() {
        assert_eq!(kept(&OF_THE_HEAD, &[]), [""; 0]);
        #[rustfmt::skip]
        let others = [
            "transfer-encoding", "host", "te", "connection", "keep-alive", "proxy-connection", "upgrade", "http2-settings",
            "forwarded", "x-souk-node", "proxy-authorization", "proxy-authenticate", "if-match", "if-none-match",
            "if-modified-since", "if-unmodified-since", "if-range",
        ];
        assert_eq!(kept(&others, &[]), [""; 0]);
        let good = ["digest", "etag", "grpc-status", "server-timing", "x-sum"];
        assert_eq!(kept(&good, &[]), good);
        assert_eq!(kept(&good, &[HeaderName::from_static("x-sum")]), good[..4]);
    }

    #[test]
    fn data_passes_and_a_field_of_many_lines_goes_whole() {
        let data = cleaned(Frame::data(Bytes::from_static(b"hello")), &[]);
        assert_eq!(data.into_data().expect("data"), "hello");
        let mut twice = fields(&["x-sum", "cookie"]);
        twice.append("cookie", HeaderValue::from_static("2"));
        let frame = cleaned(Frame::trailers(twice), &[]);
        assert_eq!(frame.into_trailers().expect("trailers"), fields(&["x-sum"]));
    }

    #[test]
    fn an_announcement_names_only_what_may_come() {
        let mut head = HeaderMap::new();
        head.append(TRAILER, HeaderValue::from_static("X-Sum, Content-Length,, x hop"));
        head.append(TRAILER, HeaderValue::from_static("cookie, x-hop, ETag"));
        rebuild_announcement(&mut head, &[HeaderName::from_static("x-hop")]);
        assert_eq!(head.get_all(TRAILER).iter().collect::<Vec<_>>(), ["x-sum", "etag"]);
    }
}

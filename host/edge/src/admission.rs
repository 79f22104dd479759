//! What is a request at all: the one function that every head passes before anything of it is believed.
//!
//! Owns, in this order, the method, the framing, the target and the authority, whatever version of HTTP they came by. What a
//! reader of bytes can see is [`crate::wire`]'s and the HTTP libraries'; what is here holds of a head that they could read.
//! Refuses to know what the path means. Called by every door that is not an operator's: shops, `souk proxy`, `souk serve`.

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, TE, TRANSFER_ENCODING};
use http::uri::Scheme;
use http::{Method, Uri, Version, request};

use crate::http::OF_A_CONNECTION;
use crate::rescue::{Problem, Refusal};

/// Path and query together. Eight times what a browser's longest everyday link has.
pub const URI_BYTES_MAX: usize = 8 * 1024;
/// The longest method that is registered has 17 letters (UPDATEREDIRECTREF).
const METHOD_BYTES_MAX: usize = 32;
/// What a refused method is answered with. There are others that pass: an upstream's own business.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// No tunnel begins here, nobody is told what was added on the way (TRACK is TRACE by another server's name), and PRI is the
/// beginning of a connection.
const REFUSED: [&str; 4] = ["CONNECT", "TRACE", "TRACK", "PRI"];

/// Whether a request is one, and the host that it is for: lower case, without the port.
pub fn admit(head: &request::Parts) -> Result<String, Problem> {
    check_method(&head.method)?;
    check_framing(head)?;
    authority(head.version, &head.uri, &head.headers)
}

/// Methods are case-sensitive (RFC 9110 section 9.1), and not every server knows: `get` would be one of unknown meaning here, and
/// perhaps a GET behind. All that are registered have capitals and hyphens.
fn check_method(method: &Method) -> Result<(), Problem> {
    let name = method.as_str();
    let refuse = |why: String| {
        let mut problem = Problem::method(METHODS);
        problem.detail = why;
        Err(problem)
    };
    if REFUSED.contains(&name) {
        return refuse(format!("{name} is not for servers like this one"));
    }
    if name.len() > METHOD_BYTES_MAX {
        return refuse(format!("a method has at most {METHOD_BYTES_MAX} letters"));
    }
    let is_plain =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if !name.starts_with(|first: char| first.is_ascii_uppercase()) || !name.bytes().all(is_plain) {
        return refuse("methods are case-sensitive: write them in capitals".to_owned());
    }
    Ok(())
}

/// Which host a request is for: lower case, without the port.
///
/// One authority, said once or twice in the same words. Two readers who disagree about it are how a request for one
/// shop gets the answer of another.
pub(crate) fn authority(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<String, Problem> {
    let refuse = |why: &str| Problem::new(Refusal::BadAuthority, why);
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(refuse("the request has more than one Host"));
    }
    let host = host.map(|h| h.to_str().map_err(|_| refuse("Host is not text"))).transpose()?;
    let said = uri.authority().map(http::uri::Authority::as_str);
    let text = match (said, host) {
        (Some(said), Some(host)) if !said.eq_ignore_ascii_case(host) => {
            return Err(refuse("the target and Host name different hosts"));
        }
        (Some(said), _) => said,
        (None, Some(host)) => host,
        (None, None) if version >= Version::HTTP_2 => return Err(refuse(":authority is missing")),
        (None, None) => return Err(refuse("Host is missing")),
    };
    if text.contains('@') {
        return Err(refuse("user information does not belong into a host"));
    }
    let authority: http::uri::Authority = text.parse().map_err(|_| refuse("the host is not valid"))?;
    let host = authority.host();
    // `Authority::port` is silent about a port that is none, so what follows the host is read here. Digits alone:
    // Rust's numbers may have a sign, and ports may not.
    let port = text.get(host.len()..).unwrap_or(":");
    let is_port = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok();
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return Err(refuse("the port is not valid"));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let valid = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= 253 && host.bytes().all(plain),
    };
    if !valid {
        return Err(refuse("the host is not valid"));
    }
    Ok(host.to_ascii_lowercase())
}

/// Refuses what hyper reads and another hop might read otherwise: a length said in two ways, a target that is no path.
fn check_framing(head: &request::Parts) -> Result<(), Problem> {
    let refuse = |why: &str| Problem::new(Refusal::BadFraming, why);
    let encodings = head.headers.get_all(TRANSFER_ENCODING).iter().count();
    if encodings > 0 {
        if head.version < Version::HTTP_11 {
            return Err(refuse("HTTP/1.0 has no Transfer-Encoding"));
        }
        if head.headers.contains_key(CONTENT_LENGTH) {
            return Err(refuse("both Transfer-Encoding and Content-Length are present"));
        }
        let exact = head
            .headers
            .get(TRANSFER_ENCODING)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if encodings > 1 || !exact {
            return Err(refuse("the only Transfer-Encoding understood is chunked, once"));
        }
    }
    if head.headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(refuse("more than one Content-Length is present"));
    }
    if let Some(length) = head.headers.get(CONTENT_LENGTH)
        && !length.to_str().is_ok_and(is_length)
    {
        return Err(refuse("Content-Length is not a number of bytes"));
    }
    if head.version >= Version::HTTP_2 {
        check_streams(&head.headers)?;
    }
    let target = |why: &str| Err(Problem::new(Refusal::BadPath, why));
    if head.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return target("the target's scheme is neither http nor https");
    }
    if head.uri.path() == "*" && head.method != Method::OPTIONS {
        return target("only OPTIONS asks about the whole server");
    }
    let whole = head.uri.path_and_query().map_or(0, |p| p.as_str().len());
    if whole > URI_BYTES_MAX {
        return Err(Problem::new(Refusal::UriTooLong, format!("at most {URI_BYTES_MAX} bytes are read")));
    }
    Ok(())
}

/// Digits alone: Rust's numbers may have a sign.
fn is_length(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok()
}

/// Where streams have a framing of their own, nothing of a connection's belongs into a message (RFC 9113 section 8.2.2,
/// RFC 9114 section 4.2): behind a hop that speaks HTTP/1.1 it would mean something.
fn check_streams(headers: &HeaderMap) -> Result<(), Problem> {
    if let Some(name) = OF_A_CONNECTION.iter().find(|name| headers.contains_key(*name)) {
        return Err(Problem::new(Refusal::BadFraming, format!("{name} speaks of a connection")));
    }
    if headers.get_all(TE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        return Err(Problem::new(Refusal::BadFraming, "TE may say trailers, and nothing else"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::header::HeaderValue;

    use super::*;

    #[test]
    fn methods_that_nobody_here_answers_are_refused_whatever_else_is_said() {
        let judged = |method: &str| {
            let request = Request::builder().method(method).uri("/a").header(HOST, "shop.example");
            admit(&request.body(()).expect("a request").into_parts().0)
        };
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "M-SEARCH", "PURGE", "X_1"]
        {
            assert_eq!(judged(method).expect(method), "shop.example");
        }
        let long = "A".repeat(METHOD_BYTES_MAX + 1);
        for method in
            ["CONNECT", "TRACE", "TRACK", "PRI", "get", "Post", "patch", "TRACe", "G'ET", "1GET", "-", &long]
        {
            let problem = judged(method).expect_err(method);
            assert_eq!(problem.refusal, Refusal::BadMethod, "{method}");
            assert_eq!(problem.into_response().headers()["allow"], METHODS);
        }
        judged(&long[1..]).expect("no longer than may be");
        // Where there is no target and no scheme either, as HTTP/2 says it.
        let tunnel = Request::builder().method("CONNECT").version(Version::HTTP_2).uri("shop.example:443");
        let problem = admit(&tunnel.body(()).expect("a request").into_parts().0).expect_err("a tunnel");
        assert_eq!(problem.refusal, Refusal::BadMethod);
    }

    fn ask(uri: &str, hosts: &[&str]) -> Result<String, Problem> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_str(host).expect("a header value"));
        }
        authority(Version::HTTP_11, &uri.parse().expect("a URI"), &headers)
    }

    #[test]
    fn one_authority_said_once() {
        assert_eq!(ask("/", &["Shop.Example:8080"]).expect("valid"), "shop.example");
        assert_eq!(ask("http://shop.example/", &["shop.example"]).expect("the same twice"), "shop.example");
        assert_eq!(ask("/", &["[::1]:80"]).expect("valid"), "[::1]");
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a", "a"]),
            ("/", &[""]),
            ("/", &["a@b"]),
            ("/", &["a:99999"]),
            ("/", &["a:"]),
            ("/", &["a b"]),
            ("/", &["a/b"]),
            ("/", &["a%2eb"]),
            ("/", &["[::g]"]),
            ("http://shop.example/", &["other.example"]),
        ] {
            let problem = ask(uri, hosts).expect_err(&format!("{uri} {hosts:?}"));
            assert_eq!(problem.refusal, Refusal::BadAuthority);
        }
    }

    #[test]
    fn ports_out_of_range_or_with_a_sign_are_refused() {
        for port in ["0", "80", "65535", "00080"] {
            assert_eq!(ask("/", &[&format!("a:{port}")]).expect(port), "a");
            assert_eq!(ask("/", &[&format!("[::1]:{port}")]).expect(port), "[::1]");
        }
        for port in ["65536", "99999", "4294967376", "+80", "-1", "", "8o", "0x50", "80:80"] {
            for host in ["a", "[::1]"] {
                let text = format!("{host}:{port}");
                assert_eq!(ask("/", &[&text]).expect_err(&text).refusal, Refusal::BadAuthority);
            }
        }
        // The same in the target, as HTTP/2 says it.
        let uri: Uri = "http://a:99999/".parse().expect("a URI to this parser");
        assert!(authority(Version::HTTP_2, &uri, &HeaderMap::new()).is_err());
    }

    fn check(version: Version, headers: &[(&str, &str)]) -> Result<(), Problem> {
        let mut request = Request::builder().version(version).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check_framing(&request.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn framing_in_two_ways_is_refused() {
        assert!(check(Version::HTTP_11, &[("transfer-encoding", "chunked")]).is_ok());
        assert!(check(Version::HTTP_11, &[("content-length", "3")]).is_ok());
        for headers in [
            &[("transfer-encoding", "chunked"), ("content-length", "3")][..],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("content-length", "3"), ("content-length", "3")],
        ] {
            assert_eq!(check(Version::HTTP_11, headers).expect_err("refused").refusal, Refusal::BadFraming);
        }
        assert!(check(Version::HTTP_10, &[("transfer-encoding", "chunked")]).is_err());
        for length in ["+3", "-3", "0x3", "3,3", "", "99999999999999999999"] {
            assert!(check(Version::HTTP_11, &[("content-length", length)]).is_err(), "{length}");
        }
    }

    #[test]
    fn streams_carry_nothing_of_a_connection() {
        for version in [Version::HTTP_2, Version::HTTP_3] {
            for field in
                [("connection", "x"), ("transfer-encoding", "chunked"), ("upgrade", "x"), ("te", "gzip")]
            {
                let problem = check(version, &[field]).expect_err("refused");
                assert_eq!(problem.refusal, Refusal::BadFraming, "{field:?}");
            }
            check(version, &[("te", "trailers")]).expect("allowed");
        }
    }
}

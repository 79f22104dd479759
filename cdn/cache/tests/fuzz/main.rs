//! Every parser of a field against what is plain: a naive model where there is one, and otherwise what must hold whatever comes.
//!
//! With `cargo test` each target reads its seeds (`corpus/`, committed) and some thousands of inputs made from them.
//! `SOUK_FUZZ_INPUTS=50000000` makes as many, for as long as one wants, and `SOUK_FUZZ_SEED=7` others. No clock and no chance: the
//! same numbers make the same inputs. On stable Rust there is no coverage to follow, so what is followed is what comes out: an
//! input that comes out in a way that none before it did is changed further ([`harness`]). Each target is a function of bytes,
//! and so one line away from libFuzzer or AFL for whoever has a nightly compiler.

mod dates;
mod directives;
mod harness;
mod lists;
mod message;
mod places;
mod ranges;
mod variants;

use self::harness::Target;

macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident: $check:path, $words:expr;)*) => { $(
        $(#[$doc])*
        #[test]
        fn $name() {
            harness::run(&Target {
                name: stringify!($name),
                seeds: include_str!(concat!("corpus/", stringify!($name), ".txt")),
                words: &$words,
                check: $check,
            });
        }
    )* };
}

targets! {
    /// `Cache-Control` and `CDN-Cache-Control` of responses.
    cache_control: directives::of_response, [
        "cache-control: ", "cdn-cache-control: ", "\n", "max-age=", "s-maxage=", "no-store", "no-cache=\"", "private=\"",
        "must-revalidate", "stale-if-error=", "stale-while-revalidate=", "public", ",", ", ", "=", "\"", "\\\"", "4294967296", "?0", "-1",
    ];
    /// `Cache-Control` and `Pragma` of requests.
    cache_control_of_requests: directives::of_request, [
        "cache-control: ", "pragma: ", "\n", "no-cache", "no-store", "only-if-cached", "max-age=", "min-fresh=", "max-stale",
        "max-stale=", ",", "=", "\"", "4294967295",
    ];
    /// `Age`, `Date`, `Expires`, and what comes of them.
    lifetime: directives::lifetime, [
        "age: ", "date: ", "expires: ", "last-modified: ", "cache-control: max-age=", "\n", ",", "2147483648", "-1",
        "Fri, 15 Jan 2027 08:00:00 GMT", "0",
    ];
    /// HTTP dates.
    date: dates::of_text, [
        "Sun", "Sunday", ", ", "06", "-", "Nov", " 1994 ", "94", "08:49:37", " GMT", " ", "29 Feb", "00", "31", "9999",
    ];
    /// `Range` and `If-Range`.
    range: ranges::of_client, [
        "range: ", "if-range: ", "etag: ", "last-modified: ", "\n", "bytes=", "-", ",", " ", "=", "18446744073709551616", "\"a\"", "W/",
        "Sun, 06 Nov 1994 08:49:37 GMT",
    ];
    /// `Content-Range` and `Content-Length`.
    content_range: ranges::of_upstream, [
        "content-range: ", "content-length: ", "content-type: multipart/byteranges", "\n", "bytes ", "-", "/", "*", " ", "+",
        "18446744073709551615",
    ];
    /// The head of what is kept in slices, and of one of them.
    slices: ranges::of_slices, [
        "etag: ", "accept-ranges: bytes", "content-length: ", "content-range: bytes ", "content-encoding: ", "transfer-encoding: chunked",
        "\n", "\"a\"", "W/\"a\"", "0-7/21", "8-15/21", "9007199254740993", "206 ", "200 ",
    ];
    /// `If-None-Match` and `If-Modified-Since`.
    conditions: lists::conditions, [
        "if-none-match: ", "if-modified-since: ", "etag: ", "last-modified: ", "date: ", "\n", "\"a\"", "W/\"", "W/", "\"", ",", "*", " ",
        "Sun, 06 Nov 1994 08:49:37 GMT",
    ];
    /// `Surrogate-Key`, `Cache-Tag`, `Cache-Groups` and their invalidation.
    tags: lists::tags, [
        "surrogate-key: ", "cache-tag: ", "cache-groups: ", "\n", "red", " ", ",", "\"red\"", "(", ")", ";a=1", "\t",
    ];
    /// `Connection` and what it takes along.
    connection: lists::hop_by_hop, [
        "connection: ", "keep-alive: x", "te: trailers", "upgrade: h2c", "\n", ",", "close", "x-one", "x-one: 1", "proxy-authorization: x",
    ];
    /// `Cache-Status` under another name.
    cache_status: lists::cache_status, ["cache-status: ", "\n", "Souk; hit", "Souk/", "Other; fwd=miss", ",", ";", "\"", "[::1]", "lon/2"];
    /// `Vary` with `Accept-Encoding` and `Accept-Language`.
    vary: variants::of_both, [
        "vary: ", "accept-encoding: ", "accept-language: ", "x: ", "content-language: ", "\n", "gzip", "x-gzip", "br", "zstd", "*", "identity",
        ";q=0", ";q=0.001", ";q=1", ",", "accept-encoding", "accept-language", "cookie", "de", "en-GB",
    ];
    /// Authorities and targets, of requests and of purges.
    places: places::of_text, [
        "shop.example", ":80", ":443", ":", "[::1]", "@", "/", "?", "#", "%74", "%2f", "%2F", "%00", "%", "..", "//", " ", "http://", "\\",
    ];
}

//! What of a request is forwarded, and what of a response comes back.
//!
//! Whatever a client could say to steer the upstream without being part of the cache key is taken out here; what the
//! upstream needs to know of the client is said by the node. Pure: messages in, messages out.
//!
//! A field with an underscore in its name never travels, as behind nginx: CGI, WSGI, Rack and PHP hand fields to a
//! program as `HTTP_X_FORWARDED_HOST`, in which `X_Forwarded_Host` and `X-Forwarded-Host` are one, so that the client's
//! spelling would take the place of the node's own word, or of any field that is removed here. A shop that needs such
//! a field gives it a hyphen.

use std::borrow::Cow;

use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_LOCATION, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, VIA,
};
use http::uri::Scheme;
use http::{Method, Request, Version};
use souk_cache::{Asked, Key, conditional, vary};
use souk_config::UpstreamHost;
use url::Url;

use super::client::Upstream;
use super::forwarded::Sender;

pub(super) const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// Members of `CDN-Loop` after which a request has been on the road for too long, whoever wrote them.
const LOOP_HOPS_MAX: usize = 16;

/// How this proxy signs `Via` (RFC 9110 section 7.6.3): with the version in which it got the message.
pub(super) fn via(received: Version) -> HeaderValue {
    HeaderValue::from_static(match received {
        Version::HTTP_09 | Version::HTTP_10 => "1.0 souk",
        Version::HTTP_2 => "2 souk",
        Version::HTTP_3 => "3 souk",
        _ => "1.1 souk",
    })
}

/// Fields by which frameworks let a request pretend to be another one. None of them is in the cache key.
const UNKEYED: [&str; 18] = [
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-host",
    "x-http-host-override",
    "x-rewrite-url",
    "x-override-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-http-destinationurl",
    "x-proxy-url",
    "x-scheme",
    "x-url-scheme",
    "front-end-https",
];
/// The same, by family.
const UNKEYED_PREFIXES: [&str; 3] = ["x-forwarded", "x-original-", "x-souk-"];

/// Whether a client's field stays at the node.
pub(super) fn is_unkeyed(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.contains('_')
        || name == FORWARDED.as_str()
        || UNKEYED.contains(&name)
        || UNKEYED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Removes every unkeyed field.
pub(crate) fn remove_unkeyed(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| is_unkeyed(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Whether the request has been at this node before (RFC 8586), or on the road for too long.
pub(crate) fn loops(headers: &HeaderMap, own_id: &str) -> bool {
    let mut hops = 0;
    for line in headers.get_all(CDN_LOOP) {
        for member in line.as_bytes().split(|byte| *byte == b',') {
            hops += 1;
            let id = member.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            if id == own_id.as_bytes() || hops > LOOP_HOPS_MAX {
                return true;
            }
        }
    }
    false
}

/// Path and query as they are forwarded: with the upstream's own path in front.
pub(super) fn target<'a>(key: &'a Key, upstream: &Upstream) -> Cow<'a, str> {
    match upstream.prefix() {
        "" => Cow::Borrowed(key.target()),
        prefix => Cow::Owned(format!("{prefix}{}", key.target())),
    }
}

/// What the node says of itself and of the client.
pub(super) struct Signature<'a> {
    pub(super) own_id: &'a str,
    pub(super) sender: &'a Sender,
    /// The version in which the request came.
    pub(super) version: Version,
    pub(super) host: UpstreamHost,
}

/// The request that fetches a response to store: with what the cache asks for in the place of the client's own conditions
/// and range.
pub(super) fn fill(asked: &Asked, conditions: &HeaderMap, by: &Signature<'_>) -> Request<()> {
    let mut headers = asked.headers.clone();
    for name in conditional::OF_THE_CLIENT {
        headers.remove(name);
    }
    // The spelling that variants are compared in: otherwise the upstream could answer six spellings in six ways.
    match vary::accept_encoding(&asked.headers) {
        Some(codings) => headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(codings)),
        None => headers.remove(ACCEPT_ENCODING),
    };
    headers.extend(conditions.iter().map(|(name, value)| (name.clone(), value.clone())));
    sign(&mut headers, asked, by);
    request(Method::GET, headers)
}

/// The request as the client sent it, for an answer that is not stored.
pub(super) fn pass(asked: &Asked, by: &Signature<'_>) -> Request<()> {
    let mut headers = asked.headers.clone();
    sign(&mut headers, asked, by);
    request(asked.method.clone(), headers)
}

fn request(method: Method, headers: HeaderMap) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    request
}

fn sign(headers: &mut HeaderMap, asked: &Asked, by: &Signature<'_>) {
    // hyper answers `Expect` itself by reading the body.
    headers.remove(EXPECT);
    let authority = asked.key.authority();
    match by.host {
        // Each server sees its own, which is put there when one is chosen.
        UpstreamHost::Upstream => headers.remove(HOST),
        UpstreamHost::Preserve => headers.insert(HOST, text(authority)),
    };
    headers.append(VIA, via(by.version));
    headers.append(CDN_LOOP, text(by.own_id));
    headers.insert("x-forwarded-for", text(&by.sender.field()));
    headers.insert("x-forwarded-host", text(authority));
    headers.insert("x-forwarded-proto", HeaderValue::from_static(asked.key.scheme().as_str()));
}

/// Host names, addresses and ids are visible ASCII by their own syntax.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("a parsed authority, an address or an id is visible ASCII")
}

/// Whether a GET or HEAD announces a body. `Content-Length: 0` announces none.
pub(crate) fn announces_body(headers: &HeaderMap) -> bool {
    headers.contains_key(http::header::TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|value| value.as_bytes() != b"0")
}

/// Makes a redirect to the upstream's own address one to the address that the client knows: it becomes relative, and
/// loses the path that the node puts before every target.
pub(super) fn rewrite_location(headers: &mut HeaderMap, upstream: &Upstream) {
    let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else { return };
    let own = upstream.authorities().find_map(|(scheme, authority)| {
        let own = format!("{scheme}://{authority}");
        location.get(..own.len()).filter(|start| start.eq_ignore_ascii_case(&own)).map(str::len)
    });
    let path = match own {
        Some(length) => &location[length..],
        // A path of the upstream is a path of the node, but for the prefix.
        None if location.starts_with('/') && !location.starts_with("//") && !upstream.prefix().is_empty() => {
            location
        }
        None => return,
    };
    let public = match path.strip_prefix(upstream.prefix()) {
        Some("") => "/".to_owned(),
        Some(rest) if rest.starts_with('/') => rest.to_owned(),
        Some(rest) if rest.starts_with(['?', '#']) => format!("/{rest}"),
        _ => return,
    };
    // "//x" would name another host.
    if public.starts_with("//") {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(&public) {
        headers.insert(LOCATION, value);
    }
}

/// Whether the response to a POST says that it is what its own target holds now: `Content-Location` is that target, on
/// the address of the node or of the upstream (RFC 9110 section 9.3.3).
pub(super) fn is_at_its_target(response: &HeaderMap, asked: &Asked, upstream: &Upstream) -> bool {
    let mut lines = response.get_all(CONTENT_LOCATION).iter();
    let (Some(only), None) = (lines.next(), lines.next()) else { return false };
    asked.method == Method::POST
        && only.to_str().is_ok_and(|text| {
            target_of(text, asked, upstream).is_some_and(|at| at == target(&asked.key, upstream))
        })
}

/// The target of a reference in a response, as the upstream knows it, if it leads to the node or to its upstream.
fn target_of(reference: &str, asked: &Asked, upstream: &Upstream) -> Option<String> {
    let (key, target) = (&asked.key, target(&asked.key, upstream));
    let base = format!("{}://{}{target}", key.scheme().as_str(), key.authority());
    let base = Url::parse(&base).ok()?;
    let url = base.join(reference).ok()?;
    let is_own = |(scheme, authority): (&Scheme, &str)| {
        Url::parse(&format!("{scheme}://{authority}/")).is_ok_and(|own| own.origin() == url.origin())
    };
    if url.origin() != base.origin() && !upstream.authorities().any(is_own) {
        return None;
    }
    Some(match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    })
}

/// The targets on the same authority that a successful change may have changed too: `Location` and
/// `Content-Location` (RFC 9111 section 4.4).
pub(super) fn changed_targets(response: &HeaderMap, asked: &Asked, upstream: &Upstream) -> Vec<String> {
    [LOCATION, CONTENT_LOCATION]
        .iter()
        .filter_map(|name| target_of(response.get(name)?.to_str().ok()?, asked, upstream))
        .map(|target| public(&target, upstream.prefix()))
        .collect()
}

/// A target of the upstream's as clients write it. One that is not under the upstream's path is what it is.
fn public(target: &str, prefix: &str) -> String {
    match target.strip_prefix(prefix) {
        Some(rest) if rest.starts_with('/') => rest.to_owned(),
        Some(rest) if rest.is_empty() || rest.starts_with('?') => format!("/{rest}"),
        _ => target.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_of_the_upstream_is_one_of_the_node() {
        for (target, is) in
            [("/base/a?b", "/a?b"), ("/base", "/"), ("/base?x", "/?x"), ("/basement", "/basement")]
        {
            assert_eq!(public(target, "/base"), is);
        }
        assert_eq!(public("/a", ""), "/a");
    }

    #[test]
    fn underscore_spellings_stay_at_the_node() {
        for name in ["X_Forwarded_Host", "x-forwarded_host", "X_Real_IP", "Content_Length", "_", "shop_field"]
        {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name to the parser");
            assert!(is_unkeyed(&name), "{name}");
        }
        for name in ["cookie", "shop-field", "content-length", "x-requested-with"] {
            assert!(!is_unkeyed(&HeaderName::from_static(name)), "{name}");
        }
    }
}

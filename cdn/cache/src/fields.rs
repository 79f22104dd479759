//! Fields that belong to one connection and never travel further (RFC 9110 section 7.6.1).

use http::header::{CONNECTION, HeaderMap, HeaderName};

/// Connection options read of one message. A message with more is abusing the field; the first ones are removed.
const OPTIONS_MAX: usize = 32;

const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authentication-info",
    "http2-settings",
];

/// Removes what is named by `Connection` and what is always hop-by-hop. `Trailer` goes too: trailers are not stored.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none of them, and looking at each name once is cheaper than looking each of them up.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .take(OPTIONS_MAX)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str())
}

/// Bytes that a header map holds, as memory is counted.
pub(crate) fn header_bytes(headers: &HeaderMap) -> usize {
    // 32 a field is what HTTP/2 counts, and close to what the map spends.
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_connection_take_their_fields_along() {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-One"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "x"),
            ("trailer", "x"),
        ] {
            map.append(name, value.parse().expect("test header"));
        }
        remove_hop_by_hop(&mut map);
        let left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-three"]);
    }
}

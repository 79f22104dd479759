//! What makes two requests ask for the same thing.
//!
//! Owns the key and the one function that reads an authority. A key holds everything that is forwarded and is compared
//! whole on a hit: a hash never decides. It refuses to know headers; those that a response varies by are in
//! [`crate::vary`].

use std::fmt;
use std::net::Ipv6Addr;

use http::Method;
use http::uri::Authority;
use thiserror::Error;

/// Longest target that is served. The same as most upstreams take: a looser limit here would let a client make the
/// upstream answer 414 for a page that others ask for.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// The longest name of a host (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Site, scheme, authority and exact forwarded target. The method class is always "retrieval": GET and HEAD share one
/// entry and no other method has any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    site: Box<str>,
    scheme: Scheme,
    authority: Box<str>,
    target: Box<str>,
    /// Which piece of what stands there ([`crate::slices`]); empty for what a request asks for.
    piece: Box<str>,
}

/// Between target and piece where a key is written down. No target holds it.
const PIECE_MARK: char = '\u{1f}';

/// A key in borrowed words: for a look-up, which need not own them. Its hash is that of the [`Key`] in the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyRef<'a> {
    site: &'a str,
    scheme: Scheme,
    authority: &'a str,
    target: &'a str,
    piece: &'a str,
}

impl<'a> KeyRef<'a> {
    /// The key that [`Key::new`] makes of these, where the authority is written as it is kept. None where it is not, or where
    /// there is no key.
    pub fn plain(site: &'a str, scheme: Scheme, authority: &'a str, target: &'a str) -> Option<Self> {
        let plain = is_normal(scheme, authority) && check_target(target).is_ok();
        plain.then_some(Self { site, scheme, authority, target, piece: "" })
    }

    pub fn to_key(self) -> Key {
        let Self { site, scheme, authority, target, piece } = self;
        let (authority, target) = (authority.into(), target.into());
        Key { site: site.into(), scheme, authority, target, piece: piece.into() }
    }
}

/// Why a request has no key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("the authority is not a host with an optional port")]
    Authority,
    #[error("the target does not start with '/'")]
    TargetForm,
    #[error("the target is longer than {TARGET_BYTES_MAX} bytes")]
    TargetTooLong,
    #[error(
        "the path holds a NUL, a control character, a backslash or a percent sign without two hexadecimal digits"
    )]
    TargetPath,
}

impl KeyError {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authority => "bad_authority",
            Self::TargetForm => "bad_target_form",
            Self::TargetTooLong => "target_too_long",
            Self::TargetPath => "bad_path",
        }
    }
}

impl Key {
    /// `target` is the path and query exactly as they are forwarded.
    pub fn new(site: &str, scheme: Scheme, authority: &str, target: &str) -> Result<Self, KeyError> {
        let authority = normalise_authority(scheme, authority)?;
        check_target(target)?;
        Ok(Self { site: site.into(), scheme, authority, target: target.into(), piece: Box::default() })
    }

    /// The key of another target on the same site, scheme and authority: what an unsafe request invalidates beside its
    /// own target.
    pub fn sibling(&self, target: &str) -> Result<Self, KeyError> {
        check_target(target)?;
        Ok(Self { target: target.into(), piece: Box::default(), ..self.clone() })
    }

    /// The key of a piece of what stands here. It is purged with it, for it has its target, and no request has it.
    pub fn piece(&self, name: &str) -> Self {
        Self { piece: name.into(), ..self.clone() }
    }

    /// The target as it is written down, with the piece. Whoever knows no pieces reads it as a target that nobody can ask
    /// for, and never takes a piece for the whole.
    pub(crate) fn recorded_target(&self) -> Box<str> {
        if self.piece.is_empty() {
            self.target.clone()
        } else {
            format!("{}{PIECE_MARK}{}", self.target, self.piece).into()
        }
    }

    /// The key that was written down.
    pub(crate) fn of_record(
        site: &str,
        scheme: Scheme,
        authority: &str,
        recorded: &str,
    ) -> Result<Self, KeyError> {
        match recorded.split_once(PIECE_MARK) {
            None => Self::new(site, scheme, authority, recorded),
            Some((target, piece)) => Self::new(site, scheme, authority, target).map(|key| key.piece(piece)),
        }
    }

    pub fn borrowed(&self) -> KeyRef<'_> {
        let Self { site, scheme, authority, target, piece } = self;
        KeyRef { site, scheme: *scheme, authority, target, piece }
    }

    pub fn site(&self) -> &str {
        &self.site
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Lower case, without the default port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub fn target(&self) -> &str {
        &self.target
    }

    /// What it occupies.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.site.len() + self.authority.len() + self.target.len() + self.piece.len()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority, self.target)
    }
}

/// Whether an authority is what [`normalise_authority`] makes of it, as nearly all are: a name in lower case, and a port
/// in plain digits that is not the scheme's own.
fn is_normal(scheme: Scheme, text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_name = !host.is_empty()
        && host.len() <= HOST_BYTES_MAX
        && host.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    let is_port = |text: &str| {
        !text.starts_with('0')
            && text.len() <= 5
            && text.bytes().all(|b| b.is_ascii_digit())
            && text.parse().is_ok_and(|port: u16| port != scheme.default_port())
    };
    is_name && port.is_none_or(is_port)
}

/// Lower case, port in range, the scheme's own port left out, no user information.
pub fn normalise_authority(scheme: Scheme, text: &str) -> Result<Box<str>, KeyError> {
    if is_normal(scheme, text) {
        return Ok(text.into());
    }
    let authority: Authority = text.parse().map_err(|_| KeyError::Authority)?;
    let host = authority.host();
    let rest = text.strip_prefix(host).ok_or(KeyError::Authority)?;
    // `http` looks at the letters between the brackets, and at nothing else.
    let is_six = |inside: &str| inside.strip_suffix(']').is_some_and(|text| text.parse::<Ipv6Addr>().is_ok());
    if host.is_empty()
        || host.len() > HOST_BYTES_MAX
        || host.strip_prefix('[').is_some_and(|inside| !is_six(inside))
    {
        return Err(KeyError::Authority);
    }
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            let port: u16 = digits.parse().map_err(|_| KeyError::Authority)?;
            Some(port).filter(|port| *port != scheme.default_port())
        }
        _ => return Err(KeyError::Authority),
    };
    let host = host.to_ascii_lowercase();
    Ok(match port {
        None => host.into(),
        Some(port) => format!("{host}:{port}").into(),
    })
}

/// A target is never decoded, so that what is looked up and what is forwarded are the same bytes; what upstreams are
/// known to read in different ways is refused.
fn check_target(target: &str) -> Result<(), KeyError> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(KeyError::TargetTooLong);
    }
    if !target.starts_with('/') {
        return Err(KeyError::TargetForm);
    }
    if target.contains(PIECE_MARK) {
        return Err(KeyError::TargetPath);
    }
    let path = target.split('?').next().unwrap_or(target).as_bytes();
    for (at, byte) in path.iter().enumerate() {
        let bad = match byte {
            b'%' => match path.get(at + 1..at + 3) {
                Some(digits) => {
                    !digits.iter().all(u8::is_ascii_hexdigit)
                        || (digits[0] < b'2')
                        || digits.eq_ignore_ascii_case(b"7f")
                }
                None => true,
            },
            b'\\' | 0..=0x20 | 0x7f => true,
            _ => false,
        };
        if bad {
            return Err(KeyError::TargetPath);
        }
    }
    Ok(())
}

/// What RFC 9110 says of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodClass {
    /// GET and HEAD: answered from the cache.
    Retrieval,
    /// OPTIONS and TRACE: passed, and nothing changes.
    Safe,
    /// Everything else, the unknown too: passed, and what it may have changed is dropped.
    Unsafe,
}

impl MethodClass {
    pub fn of(method: &Method) -> Self {
        match *method {
            Method::GET | Method::HEAD => Self::Retrieval,
            Method::OPTIONS | Method::TRACE => Self::Safe,
            _ => Self::Unsafe,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use super::*;

    fn key(authority: &str, target: &str) -> Result<Key, KeyError> {
        Key::new("shop", Scheme::Http, authority, target)
    }

    #[test]
    fn spellings_of_one_authority_are_one_key() {
        for text in ["Shop.Example", "shop.example:80", "SHOP.EXAMPLE:080"] {
            assert_eq!(key(text, "/").as_ref().map(Key::authority), Ok("shop.example"), "{text}");
        }
        assert_eq!(key("shop.example:8080", "/").as_ref().map(Key::authority), Ok("shop.example:8080"));
        assert_eq!(key("[::1]:80", "/").as_ref().map(Key::authority), Ok("[::1]"));
        for text in [
            "",
            "[]:3",
            "[1]",
            "[::1",
            "a@shop.example",
            "shop.example:99999",
            "shop.example:",
            "shop.example:+80",
            "a b",
            ":80",
        ] {
            assert_eq!(key(text, "/"), Err(KeyError::Authority), "{text}");
        }
    }

    #[test]
    fn what_is_plain_is_kept_as_it_is_written() {
        let plain = |scheme, authority| KeyRef::plain("shop", scheme, authority, "/x");
        for text in ["shop.example", "a", "127.0.0.1:8080", "x-y.example:1", "shop.example:65535"] {
            let key = Key::new("shop", Scheme::Http, text, "/x").expect("valid");
            let found = plain(Scheme::Http, text).expect(text);
            assert_eq!(
                (key.authority(), found.to_key(), key.borrowed()),
                (text, key.clone(), found),
                "{text}"
            );
        }
        for text in [
            "Shop.example",
            "",
            "a:",
            "a:080",
            "a:80",
            "a:65536",
            "a:+1",
            "a:1:2",
            "[::1]",
            "a_b",
            "x@a",
            "a b",
            ":1",
        ] {
            assert_eq!(plain(Scheme::Http, text), None, "{text}");
        }
        assert_eq!(plain(Scheme::Https, "a:443"), None);
        assert!(plain(Scheme::Https, "a:80").is_some());
        for target in ["*", "x", "/a%", "/a\\b"] {
            assert_eq!(KeyRef::plain("shop", Scheme::Http, "a", target), None, "{target}");
        }
        let hasher = std::hash::RandomState::new();
        let key = key("shop.example", "/x?y").expect("valid");
        assert_eq!(hasher.hash_one(&key), hasher.hash_one(key.borrowed()));
    }

    #[test]
    fn everything_that_is_forwarded_is_in_the_key() {
        let one = key("a.example", "/x?q=1").expect("valid");
        for other in [
            Key::new("other", Scheme::Http, "a.example", "/x?q=1"),
            Key::new("shop", Scheme::Https, "a.example", "/x?q=1"),
            Key::new("shop", Scheme::Http, "b.example", "/x?q=1"),
            Key::new("shop", Scheme::Http, "a.example", "/x?q=2"),
            Key::new("shop", Scheme::Http, "a.example", "/X?q=1"),
            Key::new("shop", Scheme::Http, "a.example", "/%78?q=1"),
        ] {
            assert_ne!(Ok(&one), other.as_ref());
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for target in ["/a%00", "/a%0a", "/a%7F", "/a%2", "/a%zz", "/a\\b", "/a\u{7f}", "/%"] {
            assert_eq!(key("a", target), Err(KeyError::TargetPath), "{target}");
        }
        assert_eq!(key("a", "*"), Err(KeyError::TargetForm));
        assert_eq!(key("a", &format!("/{}", "a".repeat(TARGET_BYTES_MAX))), Err(KeyError::TargetTooLong));
        for target in ["/a%2Fb", "/caf%C3%A9", "/?q=100%", "//x", "/a;b=c"] {
            assert!(key("a", target).is_ok(), "{target}");
        }
    }

    #[test]
    fn a_piece_is_a_key_of_its_own_that_no_request_has() {
        let whole = key("a.example", "/film?q=1").expect("valid");
        let piece = whole.piece("1.x");
        assert_ne!(whole, piece);
        assert_eq!(piece.target(), "/film?q=1", "it is purged by where it stands");
        let recorded = piece.recorded_target();
        assert_eq!(key("a.example", &recorded), Err(KeyError::TargetPath));
        let read = |text: &str| Key::of_record("shop", Scheme::Http, "a.example", text);
        assert_eq!(read(&recorded).as_ref(), Ok(&piece));
        assert_eq!(read(&whole.recorded_target()).as_ref(), Ok(&whole));
        assert_eq!(piece.sibling("/film?q=1").as_ref(), Ok(&whole));
    }

    #[test]
    fn unknown_methods_are_unsafe() {
        assert_eq!(MethodClass::of(&Method::from_bytes(b"M-SEARCH").expect("token")), MethodClass::Unsafe);
        assert_eq!(MethodClass::of(&Method::HEAD), MethodClass::Retrieval);
        assert_eq!(MethodClass::of(&Method::OPTIONS), MethodClass::Safe);
    }
}

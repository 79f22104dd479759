//! Which versions of a site's files follow one another, so that a new one can be sent as what it differs in from an old one
//! (RFC 9842).
//!
//! Pure: a path and a digest in, a line out. The region keeps the former versions of each line beside the current one
//! ([`crate::feed::Asset::former`]); nodes make the differences, and tell browsers by the line's pattern for which paths to
//! offer what they have. Knows no codec and no header.

use crate::feed::Asset;
use crate::id::Digest;

/// Former versions that are kept of a line: a shopper who comes back after three pushes still has one. Each costs 40 bytes
/// in the manifest of every node, and at most two encodings when somebody comes with it.
pub const FORMER_MAX: usize = 3;
/// Below this a difference saves no packet.
pub const BYTES_MIN: u64 = 1_024;
/// Two files of this size fit into the window of 8 MiB that every client must have (RFC 9842 section 5), and take seconds
/// to compare.
pub const BYTES_MAX: u64 = 4 << 20;
/// Digits of the digest that a path must hold to be taken for a name of its content; bundlers write eight.
pub const NAMED_DIGITS: usize = 8;

/// Where a file stands among its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line<'p> {
    /// One path, whose content changes.
    Fixed(&'p str),
    /// A path for each content, such as `/app-1a2b3c4d.js`: what stands around the digest's digits.
    Named { before: &'p str, after: &'p str },
}

impl<'p> Line<'p> {
    pub fn of(path: &'p str, digest: &Digest) -> Self {
        let digits = digest.to_string();
        let Some(at) = path.find(&digits[..NAMED_DIGITS]) else { return Self::Fixed(path) };
        let (before, rest) = path.split_at(at);
        let named = digits.bytes().zip(rest.bytes()).take_while(|(digit, byte)| digit == byte).count();
        let after = &rest[named..];
        // `/js/1a2b3c4d.js` says nothing of what it is a version of: every script of the folder would be in its line.
        let name = before.rsplit('/').next().unwrap_or_default();
        let more = after.rsplit_once('.').map_or(after, |(more, _)| more);
        let says_what = name.chars().chain(more.chars()).any(char::is_alphanumeric);
        if says_what && !after.contains('/') { Self::Named { before, after } } else { Self::Fixed(path) }
    }

    /// A URL pattern that exactly the paths of this line match, for `Use-As-Dictionary`. None where a path has characters
    /// that a pattern, a URL or a structured field reads or writes in ways of its own.
    pub fn pattern(&self) -> Option<String> {
        let plain = |text: &str| {
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'.' | b'_' | b'~'))
        };
        match *self {
            Self::Fixed(path) => plain(path).then(|| path.to_owned()),
            Self::Named { before, after } => {
                (plain(before) && plain(after)).then(|| format!("{before}*{after}"))
            }
        }
    }
}

/// Whether versions of such a file are worth being told from each other: text, or what compresses like text.
pub fn is_worth_telling(asset: &Asset) -> bool {
    (BYTES_MIN..=BYTES_MAX).contains(&asset.bytes) && is_text(&asset.content_type)
}

/// Whether a media type is one that compresses.
pub fn is_text(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || essence.ends_with("+json")
        || essence.ends_with("+xml")
        || matches!(
            essence.as_str(),
            "application/javascript" | "application/json" | "application/xml" | "application/wasm"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_the_line_of_its_name() {
        let digest = Digest::of(b"content");
        let digits = digest.to_string();
        let (eight, all) = (&digits[..8], &digits);
        for (path, pattern) in [
            ("/app.js".to_owned(), Some("/app.js".to_owned())),
            ("/index.html".to_owned(), Some("/index.html".to_owned())),
            (format!("/js/app-{eight}.js"), Some("/js/app-*.js".to_owned())),
            (format!("/js/app.{all}.min.js"), Some("/js/app.*.min.js".to_owned())),
            (format!("/js/{eight}.vendor.js"), Some("/js/*.vendor.js".to_owned())),
            // Nothing says what it is a version of.
            (format!("/js/{eight}.js"), Some(format!("/js/{eight}.js"))),
            (format!("/js/-{eight}.js"), Some(format!("/js/-{eight}.js"))),
            // A folder for each version: another one of it is another set of files.
            (format!("/v-{eight}/app.js"), Some(format!("/v-{eight}/app.js"))),
            // Not the digest's first digits.
            (format!("/app-{}.js", &digits[8..16]), Some(format!("/app-{}.js", &digits[8..16]))),
            // What a pattern would read as its own.
            ("/a(b).js".to_owned(), None),
            ("/a*.js".to_owned(), None),
            ("/a:b.js".to_owned(), None),
            ("/größe.css".to_owned(), None),
            ("/a b.css".to_owned(), None),
            ("/a\"b.css".to_owned(), None),
        ] {
            assert_eq!(Line::of(&path, &digest).pattern(), pattern, "{path}");
        }
    }

    #[test]
    fn two_contents_of_one_name_are_one_line_and_of_two_names_two() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let name = |stem: &str, digest: &Digest| format!("/{stem}-{}.css", &digest.to_string()[..8]);
        let paths = [name("a", &one), name("a", &two), name("b", &two)];
        assert_eq!(Line::of(&paths[0], &one), Line::of(&paths[1], &two));
        assert_ne!(Line::of(&paths[1], &two), Line::of(&paths[2], &two));
        assert_ne!(Line::of("/a.css", &one), Line::of("/b.css", &one));
        // A star that somebody wrote is none of ours.
        assert_ne!(Line::of("/a-*.css", &one), Line::of(&paths[0], &one));
    }
}

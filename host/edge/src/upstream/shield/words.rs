//! What peers say to each other beside HTTP: fields that no client's request can bring, and no client's answer shows. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use souk_cache::Tag;

use super::obeyed::PurgeMark;

/// What one node asks of another.
const ASKS: HeaderName = HeaderName::from_static("x-souk-asks");
/// On everything that a node says to a peer itself: how many questions of peers it is about. What lacks it was said by
/// something in between, or before the request was read.
const ANSWERS: HeaderName = HeaderName::from_static("x-souk-answers");
/// What the answer was made from, for the asking node to take it back by.
const TAGS: HeaderName = HeaderName::from_static("x-souk-tags");
/// The asking node is to ask the upstream itself, and why.
const DECLINED: HeaderName = HeaderName::from_static("x-souk-declined");
/// The node refuses the question itself, with this code: the upstream has said nothing of it.
const REFUSED: HeaderName = HeaderName::from_static("x-souk-refused");
/// Bytes of one tag.
const TAG_BYTES: usize = size_of::<u64>();

/// A node's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Is anybody there?
    Alive,
    /// What the rest of the request says, for a site, no older than what the node has heard that it must forget.
    Page { site: String, heard: PurgeMark },
}

/// Why a peer does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decline {
    /// It has not obeyed every purge that the asking node has heard of.
    Behind,
    /// It has no upstream of this site on this path.
    Elsewhere,
    /// The answer is kept in slices, which each node fetches for itself.
    Sliced,
    /// It cannot reach the upstream, which may be its own trouble. To try that once more costs the upstream nothing.
    Unreachable,
}

impl Decline {
    const ALL: [Self; 4] = [Self::Behind, Self::Elsewhere, Self::Sliced, Self::Unreachable];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Behind => "behind",
            Self::Elsewhere => "elsewhere",
            Self::Sliced => "sliced",
            Self::Unreachable => "unreachable",
        }
    }

    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let said = headers.get(DECLINED)?;
        Self::ALL.into_iter().find(|decline| said == decline.name())
    }

    pub(super) fn write(self, headers: &mut HeaderMap) {
        headers.insert(DECLINED, HeaderValue::from_static(self.name()));
    }
}

impl Question {
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let said = headers.get(ASKS)?.to_str().ok()?;
        if said == "alive" {
            return Some(Self::Alive);
        }
        let (site, heard) = said.strip_prefix("page;")?.split_once(';')?;
        Some(Self::Page { site: site.to_owned(), heard: heard.parse().ok()? })
    }

    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let said = match self {
            Self::Alive => "alive".to_owned(),
            Self::Page { site, heard } => format!("page;{site};{heard}"),
        };
        headers.insert(ASKS, HeaderValue::from_str(&said).expect("a name of a site, and numbers"));
    }
}

/// Signs an answer: this is a node's own word, and so many questions it is about.
pub(super) fn sign(headers: &mut HeaderMap, load: usize) {
    headers.insert(ANSWERS, HeaderValue::from(load));
}

/// How much a peer is about, from an answer that is a peer's.
pub(super) fn load(headers: &HeaderMap) -> Option<usize> {
    headers.get(ANSWERS)?.to_str().ok()?.parse().ok()
}

pub(super) fn write_tags(headers: &mut HeaderMap, tags: &[Tag]) {
    let bytes: Vec<u8> = tags.iter().flat_map(|tag| tag.to_u64().to_be_bytes()).collect();
    let text = HeaderValue::from_str(&STANDARD_NO_PAD.encode(bytes));
    headers.insert(TAGS, text.expect("base64 is visible ASCII"));
}

/// What an answer says that it was made from. None for one that cannot be read: then nothing can take it back.
pub(super) fn read_tags(headers: &HeaderMap) -> Option<Vec<Tag>> {
    let Some(text) = headers.get(TAGS) else { return Some(Vec::new()) };
    let bytes = STANDARD_NO_PAD.decode(text.as_bytes()).ok()?;
    let (tags, rest) = bytes.as_chunks::<TAG_BYTES>();
    rest.is_empty().then(|| tags.iter().map(|tag| Tag::from_u64(u64::from_be_bytes(*tag))).collect())
}

/// Says that this answer is a refusal of the node's own.
pub(super) fn refuse(headers: &mut HeaderMap, code: &'static str) {
    headers.insert(REFUSED, HeaderValue::from_static(code));
}

/// Whether a peer's answer is a refusal of its own, and not what the upstream has said.
pub(super) fn is_refusal(headers: &HeaderMap) -> bool {
    headers.contains_key(REFUSED)
}

/// Takes out what was between peers; and, of what an upstream says, what could be taken for a peer's word.
pub(in crate::upstream) fn remove_from(headers: &mut HeaderMap) {
    for name in [ASKS, ANSWERS, TAGS, DECLINED, REFUSED] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let mut headers = HeaderMap::new();
        assert_eq!(Question::read(&headers), None);
        for history in [None, Some(7)] {
            let heard = PurgeMark { history, version: u64::MAX };
            for question in [Question::Alive, Question::Page { site: "shop".to_owned(), heard }] {
                question.write(&mut headers);
                assert_eq!(Question::read(&headers), Some(question));
            }
        }
        for decline in Decline::ALL {
            decline.write(&mut headers);
            assert_eq!(Decline::read(&headers), Some(decline));
        }
        assert_eq!(read_tags(&headers), Some(Vec::new()));
        let tags = ["red", "green"].map(|text| Tag::named("shop", text));
        write_tags(&mut headers, &tags);
        assert_eq!(read_tags(&headers), Some(tags.to_vec()));
        sign(&mut headers, 12);
        assert_eq!(load(&headers), Some(12));
        assert!(!is_refusal(&headers));
        refuse(&mut headers, "overloaded");
        assert!(is_refusal(&headers));
        remove_from(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn what_no_node_says_is_no_word() {
        let mut headers = HeaderMap::new();
        for text in [
            "",
            "page",
            "page;shop",
            "page;shop;",
            "page;shop;7",
            "page;shop;x.1",
            "page;shop;7.-1",
            "alive ",
        ] {
            headers.insert(ASKS, HeaderValue::from_str(text).expect("a value"));
            assert_eq!(Question::read(&headers), None, "{text:?}");
        }
        for text in ["x", "AAAAAAAAAA", "====", "\u{e9}"] {
            headers.insert(TAGS, HeaderValue::from_bytes(text.as_bytes()).expect("a value"));
            assert_eq!(read_tags(&headers), None, "{text:?}");
        }
    }
}

//! Heads that were made of a stored response, as they are sent.
//!
//! Of all that a head says of a hit, only `Age` and the `ttl` of `Cache-Status` change, and both once a second: so a head
//! that was made for one client is kept for the next ones of the same second. Owns the memory of that, a head for each
//! coding that the response is sent in. Refuses to know how a head is made.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::HeaderMap;

use crate::coding::Coding;

/// The heads of one entry. Another entry, be it a copy with one thing changed, makes its own.
#[derive(Default)]
pub(crate) struct Prepared([ArcSwapOption<Head>; 1 + Coding::ALL.len()]);

/// The head of a hit.
#[derive(Debug)]
pub(crate) struct Head {
    age_s: u32,
    pub(crate) fields: HeaderMap,
    /// The same written down, if it can be sent so.
    pub(crate) bytes: Option<Bytes>,
}

impl Head {
    pub(crate) fn new(age_s: u32, fields: HeaderMap, bytes: Option<Bytes>) -> Self {
        Self { age_s, fields, bytes }
    }
}

impl Prepared {
    /// The head with this age, if it is the last one that was made.
    pub(crate) fn get(&self, coding: Option<Coding>, age_s: u32) -> Option<Arc<Head>> {
        let held = self.slot(coding).load();
        held.as_ref().filter(|head| head.age_s == age_s).map(Arc::clone)
    }

    pub(crate) fn put(&self, coding: Option<Coding>, head: Arc<Head>) {
        self.slot(coding).store(Some(head));
    }

    fn slot(&self, coding: Option<Coding>) -> &ArcSwapOption<Head> {
        &self.0[coding.map_or(0, |coding| 1 + coding.place())]
    }
}

impl Clone for Prepared {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_of_one_coding_and_one_second() {
        let prepared = Prepared::default();
        let put = |coding, age_s, text: &'static str| {
            prepared.put(coding, Arc::new(Head::new(age_s, HeaderMap::new(), Some(text.into()))));
        };
        let said = |coding, age_s| prepared.get(coding, age_s).and_then(|head| head.bytes.clone());
        put(None, 7, "plain");
        put(Some(Coding::Gzip), 7, "gzip");
        assert_eq!(said(None, 7).as_deref(), Some(&b"plain"[..]));
        assert_eq!(said(Some(Coding::Gzip), 7).as_deref(), Some(&b"gzip"[..]));
        assert_eq!(said(Some(Coding::Br), 7), None);
        assert_eq!((said(None, 6), said(None, 8)), (None, None));
        put(None, 8, "later");
        assert_eq!(said(None, 7), None);
        assert!(prepared.clone().get(None, 8).is_none(), "a copy is another entry");
    }
}

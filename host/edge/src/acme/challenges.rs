//! What an authority finds when it looks whether a name leads here (HTTP-01, RFC 8555 section 8.3).
//!
//! Asked by [`crate::listen`] before anybody else hears of a request, and only at doors in clear text. A token that is none
//! of ours goes on: the shop's own server may get certificates too.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use parking_lot::Mutex;

use crate::http::{Body, full};

const PATH: &str = "/.well-known/acme-challenge/";
/// Tokens at once. There is one order at a time for one name, which has one.
const TOKENS_MAX: usize = 16;

/// Tokens and what is said to whoever knows one. Clones have the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Challenges(Arc<Mutex<HashMap<String, String>>>);

/// A token that is answered until this is dropped.
#[derive(Debug)]
pub(super) struct Posted {
    challenges: Challenges,
    token: String,
}

impl Challenges {
    /// None if there are too many.
    pub(super) fn post(&self, token: &str, answer: &str) -> Option<Posted> {
        let mut tokens = self.0.lock();
        if tokens.len() >= TOKENS_MAX {
            return None;
        }
        tokens.insert(token.to_owned(), answer.to_owned());
        Some(Posted { challenges: self.clone(), token: token.to_owned() })
    }

    /// Whether a request for this target may know a token.
    pub(crate) fn may_be_asked_at(target: &str) -> bool {
        target.starts_with(PATH)
    }

    /// The answer to a request that knows a token.
    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let token = request.uri().path().strip_prefix(PATH)?;
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return None;
        }
        let answer = self.0.lock().get(token).cloned()?;
        let mut response = Response::new(full(answer));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        self.challenges.0.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_a_token_is_answered_and_all_others_go_on() {
        let challenges = Challenges::default();
        let ask = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).expect("a request");
            challenges.answer(&request).is_some()
        };
        let posted = challenges.post("abc", "abc.thumb").expect("room");
        assert!(
            ask("GET", "/.well-known/acme-challenge/abc") && ask("HEAD", "/.well-known/acme-challenge/abc")
        );
        for (method, path) in [
            ("POST", "/.well-known/acme-challenge/abc"),
            ("GET", "/.well-known/acme-challenge/"),
            ("GET", "/.well-known/acme-challenge/abcd"),
            ("GET", "/.well-known/acme-challenge/abc/"),
            ("GET", "/abc"),
        ] {
            assert!(!ask(method, path), "{method} {path}");
        }
        drop(posted);
        assert!(!ask("GET", "/.well-known/acme-challenge/abc"), "an order that has ended is forgotten");
        let all: Vec<_> = (0..).map_while(|n| challenges.post(&n.to_string(), "x")).collect();
        assert_eq!(all.len(), TOKENS_MAX);
    }
}

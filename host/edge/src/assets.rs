//! A site's static files: found in its manifest, fetched on first use, served with strong validators.
//!
//! Small files live in memory by their digest, large ones are streamed from the disk. The digest is the ETag, so a
//! file that is pushed again unchanged stays fresh in every browser. Knows nothing of carts or plugins; called by
//! [`crate::serve`].

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use souk_commerce::feed::Asset;
use souk_commerce::id::Digest;
use tokio_util::io::ReaderStream;

use crate::blobs::{BlobError, Blobs};
use crate::http::{Body, BodyError, empty, full};
use crate::rescue::{Problem, Refusal};
use crate::state::Site;

/// Larger files are streamed: a few of them would push a whole shop out of the memory.
const IN_MEMORY_BYTES_MAX: u64 = 1 << 20;
/// A page must show a push at once; a browser may keep what the page names for a minute without asking.
const SHORT: &str = "public, max-age=60";
const PAGE: &str = "no-cache";
/// For a path that holds its content's digest, which can never mean another content.
const FOREVER: &str = "public, max-age=31536000, immutable";
/// Digits of the digest that a path must hold to be taken for such a name; bundlers write eight.
const NAMED_DIGITS: usize = 8;
/// Scripts, styles and pictures from the shop itself only.
const CSP: &str = "default-src 'self'; img-src 'self' data: https:; object-src 'none'; base-uri 'none'; \
                   form-action 'self'; frame-ancestors 'none'";

/// The node's static files.
#[derive(Debug, Clone)]
pub struct Assets {
    blobs: Blobs,
    memory: moka::future::Cache<Digest, Bytes>,
}

impl Assets {
    pub fn new(blobs: Blobs, memory_bytes_max: u64) -> Self {
        let memory = moka::future::Cache::builder()
            .max_capacity(memory_bytes_max)
            .weigher(|_, bytes: &Bytes| 128 + u32::try_from(bytes.len()).unwrap_or(u32::MAX / 2))
            .build();
        Self { blobs, memory }
    }

    pub async fn answer(
        &self,
        site: &Site,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Problem> {
        let asset = find(site, path)
            .ok_or_else(|| Problem::new(Refusal::NoAsset, "the shop has no file at this path"))?;
        let etag = format!("\"{}\"", asset.digest);
        let mut response = if matches(headers, &etag) {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            let mut response = Response::new(self.body(&asset).await?);
            response.headers_mut().insert(CONTENT_LENGTH, asset.bytes.into());
            response
        };
        describe(response.headers_mut(), path, &asset, &etag);
        Ok(response)
    }

    async fn body(&self, asset: &Asset) -> Result<Body, Problem> {
        if asset.bytes > IN_MEMORY_BYTES_MAX {
            return self.stream(asset).await;
        }
        let loaded = self.memory.try_get_with(asset.digest, self.blobs.load(asset.digest)).await;
        let bytes = loaded.map_err(|e: Arc<BlobError>| refused(&e))?;
        if bytes.len() as u64 != asset.bytes {
            return Err(Problem::internal("the manifest states another length than the blob has"));
        }
        Ok(full(bytes))
    }

    async fn stream(&self, asset: &Asset) -> Result<Body, Problem> {
        let (mut file, mut length) = self.blobs.open_file(asset.digest).await.map_err(|e| refused(&e))?;
        if length != asset.bytes {
            // Cut short on the disk, or stated wrongly: only its content can say, and a rotten one is fetched again.
            self.blobs.load(asset.digest).await.map_err(|e| refused(&e))?;
            (file, length) = self.blobs.open_file(asset.digest).await.map_err(|e| refused(&e))?;
        }
        if length != asset.bytes {
            return Err(Problem::internal("the manifest states another length than the blob has"));
        }
        let frames = ReaderStream::new(file).map_ok(Frame::data).map_err(|e| Box::new(e) as BodyError);
        Ok(StreamBody::new(frames).boxed_unsync())
    }
}

/// Whether the site has a file at this path.
pub(crate) fn has(site: &Site, path: &str) -> bool {
    find(site, path).is_some()
}

/// The manifest entry of a path; a directory shows its `index.html`.
fn find(site: &Site, path: &str) -> Option<Arc<Asset>> {
    if path.ends_with('/') { site.asset(&format!("{path}index.html")) } else { site.asset(path) }
}

fn describe(headers: &mut HeaderMap, path: &str, asset: &Asset, etag: &str) {
    let html =
        asset.content_type.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("text/html"));
    let digits = &asset.digest.to_string()[..NAMED_DIGITS];
    let freshness = if html {
        PAGE
    } else if path.contains(digits) {
        FOREVER
    } else {
        SHORT
    };
    let kind = HeaderValue::from_str(&asset.content_type)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(freshness));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    if html {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    }
}

/// Whether the browser has this very content (RFC 9110: weak comparison, `*` matches anything that exists).
fn matches(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim())
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn refused(error: &BlobError) -> Problem {
    match error {
        BlobError::Ask(error) => Problem::from(error.clone()),
        other => Problem::internal(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_large_file_that_was_cut_short_is_fetched_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let blobs =
            Blobs::open(dir.path(), crate::blobs::tests::nowhere(dir.path()), 1 << 30).expect("opens");
        let content = vec![7; 2 << 20];
        let asset = Asset {
            digest: Digest::of(&content),
            bytes: content.len() as u64,
            content_type: "video/mp4".to_owned(),
        };
        let path = blobs.path(&asset.digest);
        let assets = Assets::new(blobs, 1 << 20);
        std::fs::write(&path, &content[..9]).expect("written");
        let refused = assets.body(&asset).await.map(drop).expect_err("cut short, and the region is away");
        assert_eq!(refused.refusal, Refusal::RegionUnreachable, "{}", refused.detail);
        assert!(!path.exists(), "what is rotten does not stay");
        std::fs::write(&path, &content).expect("written");
        let body = assets.body(&asset).await.expect("whole again");
        assert_eq!(body.collect().await.expect("readable").to_bytes().len(), content.len());
    }

    #[test]
    fn validators_and_freshness() {
        let digest = Digest::of(b"x");
        let etag = format!("\"{digest}\"");
        let mut headers = HeaderMap::new();
        for (sent, same) in [
            (etag.clone(), true),
            (format!("\"other\", W/{etag}"), true),
            ("*".to_owned(), true),
            ("\"other\"".to_owned(), false),
            (digest.to_string(), false),
        ] {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_str(&sent).expect("a header value"));
            assert_eq!(matches(&headers, &etag), same, "{sent}");
        }
        let described = |path: &str, kind: &str| {
            let mut headers = HeaderMap::new();
            describe(&mut headers, path, &Asset { digest, bytes: 1, content_type: kind.to_owned() }, &etag);
            (headers[CACHE_CONTROL].clone(), headers.contains_key(CONTENT_SECURITY_POLICY))
        };
        assert_eq!(
            described("/index.html", "text/html; charset=utf-8"),
            (HeaderValue::from_static(PAGE), true)
        );
        assert_eq!(described("/shop.js", "text/javascript"), (HeaderValue::from_static(SHORT), false));
        let named = format!("/shop-{}.js", &digest.to_string()[..8]);
        assert_eq!(described(&named, "text/javascript"), (HeaderValue::from_static(FOREVER), false));
    }
}

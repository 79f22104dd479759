//! A site's static files: found in its manifest, fetched on first use, served with strong validators.
//!
//! Small files live in memory by their digest, large ones are streamed from the disk. The digest is the ETag, so a
//! file that is pushed again unchanged stays fresh in every browser. Text is sent encoded, and to a browser that has a former
//! version as what has changed since then ([`choice`] says who gets what, [`variants`] has it made, [`codec`] makes it). Who asks
//! for a part of a file gets that part of it as it is: so films are sought in.
//! Knows nothing of carts or plugins; called by [`crate::serve`].

mod choice;
mod codec;
mod variants;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, REFERRER_POLICY,
    VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Response, StatusCode, Uri, request};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use souk_cache::range::{self, Part};
use souk_commerce::feed::Asset;
use souk_commerce::id::Digest;
use souk_commerce::lineage::{NAMED_DIGITS, is_worth_telling};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::blobs::{BlobError, Blobs};
use crate::http::{Body, BodyError, empty, full};
use crate::rescue::{Problem, Refusal};
use crate::state::Site;

use choice::{Coding, ID_DIGITS, USE_AS_DICTIONARY, Wishes, as_dictionary};
use variants::Variants;
pub use variants::{AssetMetrics, Bench};

/// Larger files are streamed: a few of them would push a whole shop out of the memory.
const IN_MEMORY_BYTES_MAX: u64 = 1 << 20;
/// A page must show a push at once; a browser may keep what the page names for a minute without asking.
const SHORT: &str = "public, max-age=60";
const PAGE: &str = "no-cache";
/// For a path that holds its content's digest, which can never mean another content.
const FOREVER: &str = "public, max-age=31536000, immutable";
/// The part of the memory that encoded forms have: a script and its forms in three codings are 1.8 times the script.
const FORMS_SHARE: u64 = 3;
/// What an answer depends on beside its path. A difference is for who has the version that it begins with (RFC 9842
/// section 6.2).
const BY_CODING: &str = "accept-encoding";
const BY_DICTIONARY: &str = "accept-encoding, available-dictionary";
/// Scripts, styles and pictures from the shop itself only.
const CSP: &str = "default-src 'self'; img-src 'self' data: https:; object-src 'none'; base-uri 'none'; \
                   form-action 'self'; frame-ancestors 'none'";

/// The node's static files.
#[derive(Debug, Clone)]
pub struct Assets {
    blobs: Blobs,
    memory: moka::future::Cache<Digest, Bytes>,
    variants: Variants,
}

impl Assets {
    /// With the bench that makes forms of them while it runs.
    pub fn new(blobs: Blobs, memory_bytes_max: u64, metrics: AssetMetrics) -> io::Result<(Self, Bench)> {
        let forms_bytes_max = memory_bytes_max / FORMS_SHARE;
        let memory = moka::future::Cache::builder()
            .max_capacity(memory_bytes_max - forms_bytes_max)
            .weigher(|_, bytes: &Bytes| 128 + u32::try_from(bytes.len()).unwrap_or(u32::MAX / 2))
            .build();
        let (variants, bench) = variants::open(blobs.clone(), forms_bytes_max, metrics)?;
        Ok((Self { blobs, memory, variants }, bench))
    }

    /// `secure`: the connection is TLS, and nobody before this node can read along.
    pub async fn answer(
        &self,
        site: &Site,
        path: &str,
        head: &request::Parts,
        secure: bool,
    ) -> Result<Response<Body>, Problem> {
        let Some(asset) = find(site, path) else {
            return to_folder(site, path, &head.uri)
                .ok_or_else(|| Problem::new(Refusal::NoAsset, "the shop has no file at this path"));
        };
        let headers = &head.headers;
        let wishes = Wishes::of(headers, &asset, secure);
        let part = part(head, &asset);
        // A part is of the file as it is, whose bytes are the same tomorrow.
        let form = match part {
            Part::Whole => self.variants.choose(&site.id, &asset, &wishes),
            _ => None,
        };
        let coding = form.as_ref().map(|(coding, _)| *coding);
        let own = tag(&asset.digest, coding, wishes.dictionary);
        let held = held(headers, &asset.digest, &own);
        let mut response = if held.is_some() {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            match &part {
                Part::Whole => {
                    self.variants.metrics.sent(coding.map_or("identity", Coding::name));
                    self.whole(&asset, form).await?
                }
                &Part::Slice { first, last } => {
                    self.variants.metrics.sent("identity");
                    self.slice(&asset, first, last).await?
                }
                Part::Unsatisfiable => return Ok(unsatisfiable(&asset)),
            }
        };
        let tag = held.unwrap_or(own);
        let is_whole = matches!(part, Part::Whole);
        let about = About { path, asset: &asset, tag: &tag, request: headers, secure, is_whole };
        describe(response.headers_mut(), &about);
        Ok(response)
    }

    async fn whole(&self, asset: &Asset, form: Option<(Coding, Bytes)>) -> Result<Response<Body>, Problem> {
        let Some((coding, bytes)) = form else {
            let mut response = Response::new(self.body(asset, 0, asset.bytes).await?);
            response.headers_mut().insert(CONTENT_LENGTH, asset.bytes.into());
            return Ok(response);
        };
        let length = bytes.len();
        let mut response = Response::new(full(bytes));
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        Ok(response)
    }

    /// From `first` to `last`, both included and both there.
    async fn slice(&self, asset: &Asset, first: u64, last: u64) -> Result<Response<Body>, Problem> {
        let length = last - first + 1;
        let mut response = Response::new(self.body(asset, first, length).await?);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, length.into());
        headers.insert(CONTENT_RANGE, content_range(&format!("{first}-{last}"), asset));
        Ok(response)
    }

    /// `length` bytes from `first` on.
    async fn body(&self, asset: &Asset, first: u64, length: u64) -> Result<Body, Problem> {
        if asset.bytes > IN_MEMORY_BYTES_MAX {
            return self.stream(asset, first, length).await;
        }
        let loaded = self.memory.try_get_with(asset.digest, self.blobs.load(asset.digest)).await;
        let bytes = loaded.map_err(|e: Arc<BlobError>| refused(&e))?;
        if bytes.len() as u64 != asset.bytes {
            return Err(Problem::internal("the manifest states another length than the blob has"));
        }
        let place = |at: u64| usize::try_from(at).expect("it lies within what is in memory");
        Ok(full(bytes.slice(place(first)..place(first + length))))
    }

    async fn stream(&self, asset: &Asset, first: u64, length: u64) -> Result<Body, Problem> {
        let (mut file, mut whole) = self.blobs.open_file(asset.digest).await.map_err(|e| refused(&e))?;
        if whole != asset.bytes {
            // Cut short on the disk, or stated wrongly: only its content can say, and a rotten one is fetched again.
            self.blobs.load(asset.digest).await.map_err(|e| refused(&e))?;
            (file, whole) = self.blobs.open_file(asset.digest).await.map_err(|e| refused(&e))?;
        }
        if whole != asset.bytes {
            return Err(Problem::internal("the manifest states another length than the blob has"));
        }
        if first > 0 {
            file.seek(io::SeekFrom::Start(first)).await.map_err(Problem::internal)?;
        }
        let part = ReaderStream::new(file.take(length));
        let frames = part.map_ok(Frame::data).map_err(|e| Box::new(e) as BodyError);
        Ok(StreamBody::new(frames).boxed_unsync())
    }
}

/// Which part of a file is asked for. Only a GET has parts, and one for a version that this is not is for the whole (RFC 9110
/// sections 13.1.5 and 14.2).
fn part(head: &request::Parts, asset: &Asset) -> Part {
    let mut ranges = head.headers.get_all(RANGE).iter();
    let (Some(value), None) = (ranges.next(), ranges.next()) else { return Part::Whole };
    let own = tag(&asset.digest, None, None);
    let holds = head.headers.get(IF_RANGE).is_none_or(|held| held.as_bytes().trim_ascii() == own.as_bytes());
    if head.method == Method::GET && holds { range::part(value.as_bytes(), asset.bytes) } else { Part::Whole }
}

fn unsatisfiable(asset: &Asset) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    let headers = response.headers_mut();
    headers.insert(CONTENT_RANGE, content_range("*", asset));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // A cache that kept it could take it for the file: no field tells the two apart.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn content_range(part: &str, asset: &Asset) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes {part}/{}", asset.bytes)).expect("digits and a few signs")
}

/// Sends whoever left out the slash to the folder: a link on its page that is relative leads elsewhere without it.
fn to_folder(site: &Site, path: &str, uri: &Uri) -> Option<Response<Body>> {
    // To a browser two slashes begin a host name.
    let is_folder = !uri.path().starts_with("//") && !path.ends_with('/') && has(site, &format!("{path}/"));
    let target = match uri.query() {
        Some(query) => format!("{}/?{query}", uri.path()),
        None => format!("{}/", uri.path()),
    };
    let location = HeaderValue::from_str(&target).ok().filter(|_| is_folder)?;
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    // As a page: a push may put a file there.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(PAGE));
    Some(response)
}

/// Whether the site has a file at this path.
pub(crate) fn has(site: &Site, path: &str) -> bool {
    find(site, path).is_some()
}

/// The manifest entry of a path; a directory shows its `index.html`.
fn find(site: &Site, path: &str) -> Option<Arc<Asset>> {
    if path.ends_with('/') { site.asset(&format!("{path}index.html")) } else { site.asset(path) }
}

/// What an answer's head is made from.
struct About<'a> {
    path: &'a str,
    asset: &'a Asset,
    tag: &'a str,
    request: &'a HeaderMap,
    secure: bool,
    is_whole: bool,
}

fn describe(headers: &mut HeaderMap, about: &About<'_>) {
    let &About { path, asset, tag, request, secure, is_whole } = about;
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
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    if is_worth_telling(asset) {
        let fields = if secure { BY_DICTIONARY } else { BY_CODING };
        headers.insert(VARY, HeaderValue::from_static(fields));
    }
    // A part is no dictionary.
    if let Some(value) = as_dictionary(request, path, asset, secure, !html).filter(|_| is_whole) {
        headers.insert(USE_AS_DICTIONARY, value);
    }
    if html {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    }
}

/// The tag of a form of a file: strong, for each form has one sequence of bytes while it is kept, and each leads to the
/// same file.
fn tag(digest: &Digest, coding: Option<Coding>, from: Option<Digest>) -> String {
    match coding {
        None => format!("\"{digest}\""),
        Some(coding) => match from.filter(|_| coding.is_difference()) {
            Some(from) => format!("\"{digest}-{}-{}\"", coding.name(), &from.to_string()[..ID_DIGITS]),
            None => format!("\"{digest}-{}\"", coding.name()),
        },
    }
}

/// The tag under which the client has this very file, if it does: in whatever form, for all lead to the same (RFC 9110
/// section 13.1.2: weak comparison, `*` matches anything that exists).
fn held(headers: &HeaderMap, digest: &Digest, own: &str) -> Option<String> {
    let digest = digest.to_string();
    let is_ours = |tag: &str| {
        let inner = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
        let form = inner.strip_prefix(digest.as_str())?;
        let known = form.is_empty()
            || form.starts_with('-') && form.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        known.then(|| tag.to_owned())
    };
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .find_map(|tag| if tag == "*" { Some(own.to_owned()) } else { is_ours(tag) })
}

fn refused(error: &BlobError) -> Problem {
    match error {
        BlobError::Ask(error) => Problem::from(error.clone()),
        other => Problem::internal(other),
    }
}

#[cfg(test)]
mod tests;

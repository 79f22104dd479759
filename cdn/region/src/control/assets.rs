//! `/v1/sites/{site}/assets`: the manifest of a site's static files, always whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use souk_commerce::feed::Asset;
use souk_commerce::id::{Digest, SiteId};

use super::blobs::{finish, still_here};
use super::problem::Problem;
use super::{Answer, Body, Shared, Site};
use crate::blobs::Blobs;
use crate::store::Store;
use crate::store::asset::{ASSETS_MAX, AssetsPut};
use crate::store::audit::Actor;

/// Longest path of an asset.
const PATH_BYTES_MAX: usize = 1_024;
/// Longest content type. `application/vnd.openxmlformats-officedocument.presentationml.presentation` has 73.
const CONTENT_TYPE_BYTES_MAX: usize = 128;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    assets: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    path: String,
    digest: Digest,
    bytes: u64,
    content_type: String,
}

#[derive(Serialize)]
pub(super) struct Outcome {
    created: u64,
    updated: u64,
    removed: u64,
    unchanged: u64,
}

/// A path that means the same file to every reader: absolute, no empty, `.` or `..` segments, no query, nothing encoded.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Err("longer than 1024 bytes");
    }
    let Some(rest) = path.strip_prefix('/') else { return Err("not absolute") };
    if rest.is_empty() || rest.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err("with an empty, '.' or '..' segment");
    }
    if path.chars().any(|c| c.is_control() || matches!(c, '?' | '#' | '\\' | '%')) {
        return Err("with one of ?, #, \\, % or a control character");
    }
    Ok(())
}

fn is_content_type(text: &str) -> bool {
    text.len() <= CONTENT_TYPE_BYTES_MAX
        && text.split_once('/').is_some_and(|(kind, subtype)| !kind.is_empty() && !subtype.is_empty())
        && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

pub(super) async fn put(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Body(Manifest { assets }): Body<Manifest>,
) -> Answer<Outcome> {
    if assets.len() > ASSETS_MAX {
        return Err(Problem::invalid(
            "assets",
            format!("{} assets are more than {ASSETS_MAX}", assets.len()),
        ));
    }
    replace(Arc::clone(&control.blobs), control.store.clone(), actor, site, assets).await.map(Json)
}

/// Makes `assets` the whole manifest. What it names is relied on from the look at it until its rows are written, also when
/// the one who asked has gone.
async fn replace(
    blobs: Arc<Blobs>,
    store: Store,
    actor: Actor,
    site: SiteId,
    assets: Vec<Row>,
) -> Result<Outcome, Problem> {
    finish(async move {
        let _relied_on = blobs.relied_on().await;
        let manifest = check(&blobs, assets).await?;
        let files: Vec<_> = manifest.values().map(|asset| asset.digest).collect();
        let put = store.put_assets(site.clone(), manifest, actor).await?;
        let AssetsPut { created, updated, removed, unchanged } =
            put.ok_or_else(|| Problem::no_site(&site))?;
        // A look at each file once more, where somebody else may take files away.
        if store.is_shared() {
            still_here(&blobs, files).await?;
        }
        Ok(Outcome { created, updated, removed, unchanged })
    })
    .await
}

async fn check(blobs: &Blobs, assets: Vec<Row>) -> Result<BTreeMap<String, Asset>, Problem> {
    let mut manifest = BTreeMap::new();
    for (index, Row { path, digest, bytes, content_type }) in assets.into_iter().enumerate() {
        let field = |name| format!("assets[{index}].{name}");
        check_path(&path)
            .map_err(|why| Problem::invalid(field("path"), format!("{path:?} is a path {why}")))?;
        if !is_content_type(&content_type) {
            let detail = format!("{content_type:?} is not a content type such as text/html; charset=utf-8");
            return Err(Problem::invalid(field("content_type"), detail));
        }
        // A node that was told of a file must find it: the bytes come first, the manifest after.
        match blobs.size(digest).await? {
            Some(stored) if stored == bytes => {}
            Some(stored) => {
                let detail = format!("blob {digest} has {stored} bytes, not {bytes}");
                return Err(Problem::invalid(field("bytes"), detail));
            }
            None => {
                return Err(Problem::invalid(field("digest"), format!("there is no blob {digest}"))
                    .remedy(format!("Upload it first: PUT /v1/blobs/{digest}")));
            }
        }
        if manifest.insert(path.clone(), Asset::new(digest, bytes, content_type)).is_some() {
            return Err(Problem::invalid(field("path"), format!("{path:?} is listed twice")));
        }
    }
    Ok(manifest)
}

pub(super) async fn get(State(control): State<Shared>, Site(site): Site) -> Answer<Manifest> {
    let assets = control.store.assets(site).await?;
    let row = |(path, asset): (String, Asset)| Row {
        path,
        digest: asset.digest,
        bytes: asset.bytes,
        content_type: asset.content_type,
    };
    Ok(Json(Manifest { assets: assets.into_iter().map(row).collect() }))
}

#[cfg(test)]
mod tests {
    use souk_commerce::site::SiteSettings;

    use super::*;
    use crate::store::StoreSettings;
    use crate::store::site::By;

    #[tokio::test]
    async fn what_a_queued_row_is_about_to_name_is_relied_on_also_when_its_caller_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreSettings::for_tests(1_000)).unwrap();
        let blobs = Arc::new(Blobs::open(dir.path(), 1 << 20, false).unwrap());
        let site: SiteId = "shop".parse().unwrap();
        let actor = Actor { name: "test".to_owned(), peer: String::new() };
        let settings = SiteSettings::new(site.clone(), "GBP".parse().unwrap());
        store.put_site(settings, By::Operator, actor.clone()).await.unwrap();
        let digest = Digest::of(b"file");
        let mut upload = blobs.begin().await.unwrap();
        upload.write(b"file").await.unwrap();
        upload.finish(digest).await.unwrap();

        // The writer waits for somebody else's transaction.
        let other = rusqlite::Connection::open(dir.path().join("region.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let row = Row { path: "/file".to_owned(), digest, bytes: 4, content_type: "text/plain".to_owned() };
        let put = replace(Arc::clone(&blobs), store.clone(), actor, site.clone(), vec![row]);
        let request = tokio::spawn(put);
        while blobs.nobody_relies().is_some() {
            tokio::task::yield_now().await;
        }
        request.abort();
        assert!(request.await.is_err_and(|error| error.is_cancelled()));
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(blobs.nobody_relies().is_none(), "the row is on its way");
        }
        other.execute_batch("ROLLBACK").unwrap();
        while blobs.nobody_relies().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.assets(site).await.unwrap().len(), 1, "nobody relies on it when it is named");
        store.close();
    }

    #[test]
    fn a_path_means_one_file() {
        for good in ["/index.html", "/a/b/c.js", "/bilder/größe 1.png", "/.well-known/x"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/",
            "index.html",
            "/a//b",
            "/a/../b",
            "/./a",
            "/a/",
            "/a?b",
            "/a#b",
            "/a%2fb",
            "/a\\b",
            "/a\nb",
        ] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}

//! Tables `asset` and `asset_former`: which blob each path of a site shows, and which it showed before. Changed by whole
//! manifests, told by single paths.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use souk_commerce::feed::{Asset, AssetChange, Former};
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::lineage::{FORMER_MAX, Line, is_worth_telling};
use souk_replication::{Log, Record};

use super::audit::{self, Actor, Deed};
use super::engine::{Session, params};
use super::log::{self, PageMax};
use super::{Decision, Store, StoreError, Tx};

/// Paths of one site. A shop with 5,000 pictures is a big one.
pub(crate) const ASSETS_MAX: usize = 20_000;

/// What a new manifest did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AssetsPut {
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) removed: u64,
    pub(crate) unchanged: u64,
}

/// A file as it is in the table: with its past, and the version of the log that wrote it.
struct Stored {
    asset: Asset,
    version: u64,
}

fn load(conn: &dyn Session, site: &SiteId) -> Result<BTreeMap<String, Stored>, StoreError> {
    let sql =
        "SELECT path, digest, bytes, content_type, version FROM asset WHERE site = ?1 AND digest IS NOT NULL";
    let mut all: BTreeMap<String, Stored> = conn.list(sql, params![site.as_str()], |row| {
        let asset = Asset::new(Digest(row.get(1)?), row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, Stored { asset, version: row.get(4)? }))
    })?;
    let sql = "SELECT path, digest, bytes FROM asset_former WHERE site = ?1 ORDER BY path, place";
    let formers: Vec<_> = conn.list(sql, params![site.as_str()], |row| {
        Ok((row.get::<String>(0)?, Former { digest: Digest(row.get(1)?), bytes: row.get(2)? }))
    })?;
    for (path, former) in formers {
        if let Some(stored) = all.get_mut(&path) {
            stored.asset.former.push(former);
        }
    }
    Ok(all)
}

fn former(conn: &dyn Session, site: &str, path: &str) -> Result<Vec<Former>, StoreError> {
    let sql = "SELECT digest, bytes FROM asset_former WHERE site = ?1 AND path = ?2 ORDER BY place";
    conn.list(sql, params![site, path], |row| Ok(Former { digest: Digest(row.get(0)?), bytes: row.get(1)? }))
}

fn write(tx: &Tx<'_>, site: &SiteId, path: &str, asset: Option<&Asset>) -> Result<(), StoreError> {
    let change = AssetChange { site: site.clone(), path: path.to_owned(), asset: asset.cloned() };
    let version = log::append(tx, Log::Asset, &change.to_bytes())?;
    let sql = "INSERT INTO asset (site, path, digest, bytes, content_type, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (site, path) DO UPDATE SET digest = ?3, bytes = ?4, content_type = ?5, version = ?6";
    tx.sql.execute(
        sql,
        params![
            site.as_str(),
            path,
            asset.map(|asset| asset.digest.0),
            asset.map_or(0, |asset| asset.bytes),
            asset.map_or("", |asset| asset.content_type.as_str()),
            version
        ],
    )?;
    let sql = "DELETE FROM asset_former WHERE site = ?1 AND path = ?2";
    tx.sql.execute(sql, params![site.as_str(), path])?;
    let sql = "INSERT INTO asset_former (site, path, place, digest, bytes) VALUES (?1, ?2, ?3, ?4, ?5)";
    for (place, former) in asset.iter().flat_map(|asset| &asset.former).enumerate() {
        tx.sql.execute(sql, params![site.as_str(), path, place, former.digest.0, former.bytes])?;
    }
    Ok(())
}

/// What stands in each line, the newest first.
fn lines(before: &BTreeMap<String, Stored>) -> BTreeMap<Line<'_>, Vec<&Stored>> {
    let mut lines = BTreeMap::<_, Vec<_>>::new();
    for (path, stored) in before.iter().filter(|(_, stored)| is_worth_telling(&stored.asset)) {
        lines.entry(Line::of(path, &stored.asset.digest)).or_default().push(stored);
    }
    for line in lines.values_mut() {
        line.sort_by_key(|stored| Reverse(stored.version));
    }
    lines
}

/// The past of a new version: first what was current in its line, then what was former of that.
fn past(line: &[&Stored], asset: &Asset) -> Vec<Former> {
    let current = line.iter().map(|s| Former { digest: s.asset.digest, bytes: s.asset.bytes });
    let former = line.iter().flat_map(|s| s.asset.former.iter().copied());
    let mut past = Vec::with_capacity(FORMER_MAX);
    for version in current.chain(former) {
        let known = version.digest == asset.digest || past.contains(&version);
        if !known && past.len() < FORMER_MAX {
            past.push(version);
        }
    }
    past
}

fn put(
    tx: &Tx<'_>,
    site: &SiteId,
    manifest: &BTreeMap<String, Asset>,
    actor: &Actor,
) -> Result<Option<AssetsPut>, StoreError> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(None);
    }
    let before = load(tx.sql, site)?;
    let lines = lines(&before);
    let mut counts = AssetsPut::default();
    for (path, asset) in manifest {
        match before.get(path) {
            Some(same) if same.asset.shows_the_same(asset) => {
                counts.unchanged += 1;
                continue;
            }
            Some(_) => counts.updated += 1,
            None => counts.created += 1,
        }
        let line = lines.get(&Line::of(path, &asset.digest)).filter(|_| is_worth_telling(asset));
        let former = line.map(|line| past(line, asset)).unwrap_or_default();
        write(tx, site, path, Some(&Asset { former, ..asset.clone() }))?;
    }
    for path in before.keys().filter(|path| !manifest.contains_key(*path)) {
        write(tx, site, path, None)?;
        counts.removed += 1;
    }
    if counts.created + counts.updated + counts.removed > 0 {
        let AssetsPut { created, updated, removed, .. } = counts;
        let detail = serde_json::json!({ "created": created, "updated": updated, "removed": removed });
        audit::record(tx, actor, &Deed { action: "assets.put", subject: site.to_string(), detail })?;
    }
    Ok(Some(counts))
}

/// The paths that changed after `from`, oldest change first.
pub(super) fn changed(
    conn: &dyn Session,
    from: u64,
    page: PageMax,
) -> Result<(Vec<Record>, bool), StoreError> {
    let sql = "SELECT version, site, path, digest, bytes, content_type FROM asset
               WHERE version > ?1 AND digest IS NOT NULL ORDER BY version LIMIT ?2";
    page.read(conn, sql, &[], from, |row| {
        let (site, path): (String, String) = (row.get(1)?, row.get(2)?);
        let asset = Asset::new(Digest(row.get(3)?), row.get(4)?, row.get(5)?);
        let asset = Asset { former: former(conn, &site, &path)?, ..asset };
        let site = site.parse().map_err(|e| StoreError::corrupt("asset", e))?;
        let change = AssetChange { site, path, asset: Some(asset) };
        Ok(Record { version: row.get(0)?, body: change.to_bytes() })
    })
}

impl Store {
    /// Makes `manifest` the whole of the site's assets, in one transaction. None: there is no such site.
    pub(crate) async fn put_assets(
        &self,
        site: SiteId,
        manifest: BTreeMap<String, Asset>,
        actor: Actor,
    ) -> Result<Option<AssetsPut>, StoreError> {
        self.write(move |tx| put(tx, &site, &manifest, &actor).map(Decision::Keep)).await
    }

    pub(crate) async fn assets(&self, site: SiteId) -> Result<BTreeMap<String, Asset>, StoreError> {
        let all = self.read(move |conn| load(conn, &site)).await?;
        Ok(all.into_iter().map(|(path, stored)| (path, stored.asset)).collect())
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::site::SiteSettings;

    use super::*;
    use crate::store::site::By;
    use crate::store::tests::home::{Home, on_every_engine};

    on_every_engine! {
        a_path_remembers_its_last_versions_and_no_more,
        names_that_hold_their_digest_follow_one_another_by_what_is_around_it,
        no_site_has_the_past_of_another,
        pictures_and_small_files_have_no_past,
    }

    fn actor() -> Actor {
        Actor { name: "test".to_owned(), peer: String::new() }
    }

    fn name(text: &str) -> SiteId {
        text.parse().unwrap()
    }

    fn file(text: &str) -> Asset {
        Asset::new(Digest::of(text.as_bytes()), 2_000, "text/javascript".to_owned())
    }

    /// A name that holds its content's digest.
    fn named(stem: &str, text: &str) -> (String, Asset) {
        let asset = file(text);
        (format!("/{stem}-{}.js", &asset.digest.to_string()[..8]), asset)
    }

    struct World {
        _home: Home,
        store: Store,
    }

    impl World {
        async fn new(home: Home) -> Self {
            let store = home.open();
            for site in ["shop", "other"] {
                let settings = SiteSettings::new(name(site), "GBP".parse().unwrap());
                store.put_site(settings, By::Operator, actor()).await.unwrap();
            }
            Self { _home: home, store }
        }

        async fn push(&self, site: &str, files: impl IntoIterator<Item = (String, Asset)>) {
            self.store.put_assets(name(site), files.into_iter().collect(), actor()).await.unwrap().unwrap();
        }

        /// What the file at a path may be told from.
        async fn past(&self, site: &str, path: &str) -> Vec<Digest> {
            let assets = self.store.assets(name(site)).await.unwrap();
            assets[path].former.iter().map(|former| former.digest).collect()
        }
    }

    fn digests<const N: usize>(texts: [&str; N]) -> Vec<Digest> {
        texts.iter().map(|text| Digest::of(text.as_bytes())).collect()
    }

    async fn a_path_remembers_its_last_versions_and_no_more(home: Home) {
        let world = World::new(home).await;
        let push = async |text: &str| world.push("shop", [("/app.js".to_owned(), file(text))]).await;
        push("1").await;
        assert_eq!(world.past("shop", "/app.js").await, []);
        push("2").await;
        push("2").await;
        assert_eq!(world.past("shop", "/app.js").await, digests(["1"]), "the same again is no version");
        for text in ["3", "4", "5"] {
            push(text).await;
        }
        assert_eq!(world.past("shop", "/app.js").await, digests(["4", "3", "2"]));
        // Back to an old one: it does not follow itself.
        push("3").await;
        assert_eq!(world.past("shop", "/app.js").await, digests(["5", "4", "2"]));
        // What the past names is kept, and what it names no more may go.
        for (text, needed) in [("3", true), ("5", true), ("4", true), ("2", true), ("1", false)] {
            let digest = Digest::of(text.as_bytes());
            assert_eq!(world.store.is_blob_needed(digest).await.unwrap(), needed, "{text}");
        }
        world.push("shop", []).await;
        assert!(
            !world.store.is_blob_needed(Digest::of(b"5")).await.unwrap(),
            "a file that is gone has no past"
        );
    }

    async fn names_that_hold_their_digest_follow_one_another_by_what_is_around_it(home: Home) {
        let world = World::new(home).await;
        let [one, two, three] = ["1", "2", "3"].map(|text| named("app", text));
        world.push("shop", [one.clone(), named("vendor", "v")]).await;
        // The old file stays for pages that are open.
        world.push("shop", [one.clone(), two.clone(), named("vendor", "v")]).await;
        assert_eq!(world.past("shop", &two.0).await, digests(["1"]));
        assert_eq!(world.past("shop", &one.0).await, []);
        world.push("shop", [two.clone(), three.clone()]).await;
        assert_eq!(
            world.past("shop", &three.0).await,
            digests(["2", "1"]),
            "the newest first, nothing of vendor"
        );
    }

    async fn no_site_has_the_past_of_another(home: Home) {
        let world = World::new(home).await;
        world.push("shop", [("/app.js".to_owned(), file("theirs"))]).await;
        world.push("other", [("/app.js".to_owned(), file("1"))]).await;
        world.push("other", [("/app.js".to_owned(), file("2"))]).await;
        assert_eq!(world.past("other", "/app.js").await, digests(["1"]));
        assert_eq!(world.past("shop", "/app.js").await, []);
    }

    async fn pictures_and_small_files_have_no_past(home: Home) {
        let world = World::new(home).await;
        let picture = |text: &str| Asset { content_type: "image/webp".to_owned(), ..file(text) };
        let small = |text: &str| Asset { bytes: 100, ..file(text) };
        for text in ["1", "2"] {
            let files = [("/a.webp".to_owned(), picture(text)), ("/b.js".to_owned(), small(text))];
            world.push("shop", files).await;
        }
        assert_eq!(world.past("shop", "/a.webp").await, []);
        assert_eq!(world.past("shop", "/b.js").await, []);
    }
}

//! The sample shop that the program carries, and how it is put into a region.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::Deserialize;
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::site::{OnFault, SiteSettings};
use tokio::time::Instant;

use super::identity::ShopperKey;
use crate::args::ToolchainChoice;
use crate::control::{self, RegionClient, ReleaseRow};
use crate::failure::Usage;
use crate::import::{self, Plan, Rules};
use crate::plugin::{self, Built};
use crate::replay::NodeHandle;
use crate::site::push_assets;
use crate::terminal::{self, Step};

/// The folders below `plugins/`, in the order of the chain.
const PLUGINS: [&str; 3] = ["catalog", "pricing", "cart"];
/// From the last change at the region until both nodes run it: milliseconds for the logs, seconds for compiling the
/// plugins in a debug build.
const CAUGHT_UP_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

include!(concat!(env!("OUT_DIR"), "/sample_shop.rs"));

fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(path, _)| *path == name).map(|(_, bytes)| *bytes)
}

/// A first-party plugin that was built, and what the sample shop sets for it.
#[derive(Debug)]
pub(crate) struct ShopPlugin {
    pub(crate) name: &'static str,
    pub(crate) built: Built,
    settings: serde_json::Value,
}

/// Where the sources of the first-party plugins lie.
pub(crate) fn find_sources(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let complete = |dir: &Path| PLUGINS.iter().all(|name| dir.join(name).join("Cargo.toml").is_file());
    if let Some(dir) = asked {
        if complete(dir) {
            return Ok(dir.to_owned());
        }
        return Err(Usage(format!("{} holds no {}", dir.display(), PLUGINS.join(", "))).into());
    }
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
    let here = PathBuf::from("plugins");
    [built_from, here].into_iter().find(|dir| complete(dir)).ok_or_else(|| {
        Usage(
            "the demo builds the first-party plugins, and their sources are not here; run it in the source tree, or \
             name the folder with --plugins DIR"
                .to_owned(),
        )
        .into()
    })
}

/// Builds the plugins, one after the other: cargo uses every core for one already.
pub(crate) fn build_plugins(sources: &Path, choice: ToolchainChoice) -> anyhow::Result<Vec<ShopPlugin>> {
    let step = Step::start("Building the plugins");
    let note = |text: String| step.note(text);
    let toolchain = plugin::find_toolchain(choice, sources, &note)?;
    let mut plugins = Vec::new();
    for name in PLUGINS {
        let built = plugin::build(&sources.join(name), &toolchain, &note)?;
        let settings = match file(&format!("{name}.json")) {
            Some(json) => {
                serde_json::from_slice(json).with_context(|| format!("read the sample shop's {name}.json"))?
            }
            None => serde_json::json!({}),
        };
        plugins.push(ShopPlugin { name, built, settings });
    }
    let bytes: u64 = plugins.iter().map(|p| p.built.bytes).sum();
    step.done(&format!("{}: {}, {toolchain}", PLUGINS.join(", "), terminal::size(bytes)));
    Ok(plugins)
}

/// Puts settings, catalogue, page and plugins into the region; answers the site's settings.
pub(crate) async fn seed(
    region: &RegionClient,
    plugins: &[ShopPlugin],
    shopper_key: &ShopperKey,
) -> anyhow::Result<SiteSettings> {
    let json = file("site.json").context("find the sample shop's site.json")?;
    let mut settings: SiteSettings =
        serde_json::from_slice(json).context("read the sample shop's site.json")?;
    settings.shopper_key = Some(shopper_key.public_pem.clone());
    region.put_site(&settings).await?;
    import_products(region, &settings).await?;
    push_page(region, &settings.site).await?;
    release(region, &settings.site, plugins).await?;
    Ok(settings)
}

async fn import_products(region: &RegionClient, settings: &SiteSettings) -> anyhow::Result<()> {
    let csv = file("products.csv").context("find the sample shop's products.csv")?;
    let plan =
        Plan { choices: &[], rules: Rules { currency: settings.currency, allow_free: true }, refused: None };
    let (products, mut report) = import::read(csv, &plan).context("read the sample shop's products")?;
    let step = Step::counted("Importing the sample shop", products.len() as u64);
    import::send(region, &settings.site, &products, None, &mut report, &step).await?;
    if let Some(row) = report.refused.first() {
        bail!("the sample shop has a wrong row: line {}: {}", row.line, row.detail);
    }
    step.done(&format!("{} products", report.products));
    Ok(())
}

async fn push_page(region: &RegionClient, site: &SiteId) -> anyhow::Result<()> {
    let page = FILES
        .iter()
        .filter_map(|(path, bytes)| Some((path.strip_prefix("www")?.to_owned(), Bytes::from_static(bytes))));
    let page: Vec<_> = page.collect();
    let step = Step::counted("Pushing its page", page.len() as u64);
    let pushed = push_assets(region, site, page, &step).await?;
    step.done(&format!("{} files, {}", pushed.files, terminal::size(pushed.bytes)));
    Ok(())
}

async fn release(region: &RegionClient, site: &SiteId, plugins: &[ShopPlugin]) -> anyhow::Result<()> {
    if plugins.is_empty() {
        // `souk plugin dev`: the one plugin of its shop comes later, by the merchant's way.
        return Ok(());
    }
    let step = Step::counted("Releasing the plugins", plugins.len() as u64);
    let mut releases = Vec::with_capacity(plugins.len());
    for plugin in plugins {
        let bytes = std::fs::read(&plugin.built.file)
            .with_context(|| format!("read {}", plugin.built.file.display()))?;
        let (component, _): (Digest, bool) = region.put_blob(bytes.into()).await?;
        releases.push(ReleaseRow {
            plugin: plugin.name.parse().context("name a plugin")?,
            component,
            settings: plugin.settings.clone(),
            on_fault: OnFault::Open,
            record_bp: 0,
        });
        step.advance(1);
    }
    region.put_releases(site, &releases).await?;
    step.done("the chain is catalog, pricing, cart");
    Ok(())
}

/// The part of the region's status that says how long its logs are.
#[derive(Debug, Deserialize)]
struct RegionStatus {
    logs: BTreeMap<String, u64>,
}

/// The part of a node's status that says what it holds.
#[derive(Debug, Deserialize)]
struct NodeStatus {
    logs: BTreeMap<String, NodeLog>,
    /// Sites whose newest chain of plugins is still being fetched or compiled.
    chains_pending: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct NodeLog {
    cursor: u64,
}

/// Waits until every node holds each version that the region has now, and has its plugins ready to run.
pub(crate) async fn until_caught_up(region: &RegionClient, nodes: &[NodeHandle]) -> anyhow::Result<()> {
    let give_up = Instant::now() + CAUGHT_UP_DEADLINE;
    let wanted = region.status::<RegionStatus>().await?.logs;
    for node in nodes {
        while let Err(lacking) = holds(node, &wanted).await {
            if Instant::now() > give_up {
                bail!("{} is not ready after {} s: {lacking}", node.name, CAUGHT_UP_DEADLINE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// What the node still lacks, if anything.
async fn holds(node: &NodeHandle, wanted: &BTreeMap<String, u64>) -> Result<(), String> {
    let status: NodeStatus = control::look(node.admin, "/v1/status").await?;
    for (log, version) in wanted {
        let held = status.logs.get(log).map_or(0, |log| log.cursor);
        if held < *version {
            return Err(format!("it holds version {held} of the log {log}, and the region {version}"));
        }
    }
    match status.chains_pending.first() {
        Some(pending) => Err(format!("its plugins are not loaded: {pending}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_shop_is_in_the_program_and_every_row_of_it_is_right() {
        let settings: SiteSettings =
            serde_json::from_slice(file("site.json").expect("settings")).expect("valid settings");
        let plan = Plan {
            choices: &[],
            rules: Rules { currency: settings.currency, allow_free: true },
            refused: None,
        };
        let (products, report) =
            import::read(file("products.csv").expect("a catalogue"), &plan).expect("valid rows");
        assert_eq!(report.rows_refused, 0, "{:?}", report.refused);
        assert_eq!(products.len() as u64, report.rows_read, "no SKU occurs twice");
        assert!(file("www/index.html").is_some());
        for plugin in PLUGINS {
            if let Some(json) = file(&format!("{plugin}.json")) {
                serde_json::from_slice::<serde_json::Value>(json).expect("settings are JSON");
            }
        }
    }
}

//! Raises the replay's shop at the region and waits until every node sells it.
//!
//! Imports the invoices' stock codes as the catalogue through the same code as `souk site import`, releases the
//! first-party plugins with the replay's rules, and hands the oracle what the file says, which [`prices`] reads without
//! the import. Where the nodes then sell at another price, the import is wrong: a finding, before the first shopper.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use souk_commerce::money::{Currency, Minor};
use souk_commerce::site::{OnFault, RECORD_BP_MAX};
use tokio::time::{Instant, sleep};

use super::books::Findings;
use super::client::{Ask, Client};
use super::oracle::Oracle;
use super::prices::{self, Prices};
use super::{NodeHandle, ReplayOptions, Stage, rules};
use crate::control::{RegionClient, ReleaseRow};
use crate::import::{self, ProductRow, Rules};
use crate::terminal::Step;

/// Three thousand products reach a node in well under a second; a node that has just started compiles plugins first.
const READY_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Products asked for at once.
const PAGE: usize = 100;

/// The shop as it was raised.
pub(super) struct Shop {
    pub(super) oracle: Oracle,
    pub(super) import: import::Report,
    /// Prices of the catalogue, as the nodes sell it, that are not those of the file.
    pub(super) differing_prices: Findings,
}

pub(super) async fn raise(options: &ReplayOptions, stage: &Stage, client: &Client) -> anyhow::Result<Shop> {
    let control =
        format!("http://{}", stage.region_control).parse().context("the region's control address")?;
    let region = RegionClient::new(&control, &stage.operator_token).map_err(anyhow::Error::msg)?;
    let site = rules::site();
    let settings =
        serde_json::from_value(rules::settings(&stage.shopper_key)).context("the replay's settings")?;
    region.put_site(&settings).await.context("create the replay's site")?;

    let (mut rows, mut report) = {
        let currency: Currency = settings.currency;
        let plan = import::Plan { choices: &[], rules: Rules { currency, allow_free: false }, refused: None };
        import::read(import::open(&options.file)?, &plan).context("read the catalogue from the invoices")?
    };
    rows.push(gift());
    for row in &mut rows {
        row.stock = Some(rules::STOCK);
    }
    let step = Step::counted("Import the catalogue", rows.len() as u64);
    import::send(&region, &site, &rows, None, &mut report, &step).await.context("import the catalogue")?;
    step.done(&format!("{} products", rows.len()));

    let released =
        region.put_releases(&site, &releases(options, stage)?).await.context("release the plugins")?;
    let version = released["version"].as_u64().context("a release without a version")?;
    let step = Step::start("Wait for the nodes");
    let mut catalogues = Vec::new();
    for node in &stage.nodes {
        catalogues.push(ready(client, node, &rows, version).await?);
    }
    anyhow::ensure!(
        catalogues.windows(2).all(|pair| pair[0] == pair[1]),
        "the nodes sell at different prices"
    );
    step.done(&format!("{} nodes sell {} products", stage.nodes.len(), rows.len()));
    let mut file = prices::read(&options.file)?;
    file.insert(rules::GIFT.to_owned(), rules::GIFT_PRICE);
    let differing_prices = prices::differences(&file, &catalogues.pop().context("the stage has no node")?);
    let oracle = Oracle {
        catalogue: prices::catalogue(&file),
        pricing: rules::pricing(),
        cart: rules::cart(),
        cart_plugin: "cart".to_owned(),
    };
    Ok(Shop { oracle, import: report, differing_prices })
}

fn gift() -> ProductRow {
    ProductRow {
        sku: rules::GIFT.parse().expect("the gift's SKU is a constant that is valid"),
        title: "A small present".to_owned(),
        description: String::new(),
        tags: Vec::new(),
        attributes: Vec::new(),
        image: None,
        price: Minor(rules::GIFT_PRICE),
        compare_at: None,
        floor: None,
        stock: None,
        line: 0,
    }
}

/// The chain: what may enter a cart, then what it costs. `catalog` has nothing to say here and is left out.
fn releases(options: &ReplayOptions, stage: &Stage) -> anyhow::Result<Vec<ReleaseRow>> {
    let release = |name: &str, settings: Value| {
        let staged = stage.plugins.iter().find(|p| p.name == name);
        let staged = staged.with_context(|| format!("the demo has not built the plugin {name}"))?;
        anyhow::Ok(ReleaseRow {
            plugin: name.parse()?,
            component: staged.component.parse()?,
            settings,
            on_fault: OnFault::Closed,
            record_bp: if options.record { RECORD_BP_MAX } else { 0 },
        })
    };
    Ok(vec![release("cart", rules::cart())?, release("pricing", rules::pricing())?])
}

/// Waits until the node sells exactly what was imported and has loaded the plugins of `version`. Whether that is right is
/// not asked here: only that no change is still on its way.
async fn ready(
    client: &Client,
    node: &NodeHandle,
    rows: &[ProductRow],
    version: u64,
) -> anyhow::Result<Prices> {
    let began = Instant::now();
    let wanted: BTreeMap<&str, i64> = rows.iter().map(|r| (r.sku.as_str(), r.price.0)).collect();
    loop {
        let said = match catalogue(client, node).await {
            Ok(found) => {
                let same = wanted.len() == found.len()
                    && wanted.iter().all(|(sku, price)| found.get(*sku) == Some(price));
                if same && plugins_run(client, node, version).await {
                    return Ok(found);
                }
                format!("{} of {} products", found.len(), wanted.len())
            }
            Err(error) => format!("{error:#}"),
        };
        anyhow::ensure!(began.elapsed() < READY_MAX, "{} does not sell the catalogue: {said}", node.name);
        sleep(POLL).await;
    }
}

async fn catalogue(client: &Client, node: &NodeHandle) -> anyhow::Result<Prices> {
    let mut found = Prices::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/products?limit={PAGE}{cursor}");
        let answer = client.send(node.http, Ask::get(path).host(rules::HOST)).await?;
        anyhow::ensure!(answer.status.is_success(), "{}", answer.summary());
        for product in answer.body["products"].as_array().context("a page without products")? {
            let sku = product["sku"].as_str().context("a product without a SKU")?;
            let price = product["price"].as_i64().context("a product without a price")?;
            found.insert(sku.to_owned(), price);
        }
        let Some(next) = answer.body["next"].as_str() else { return Ok(found) };
        let next = percent_encoding::utf8_percent_encode(next, percent_encoding::NON_ALPHANUMERIC);
        cursor = format!("&cursor={next}");
    }
}

/// Whether the node runs the releases of `version`. A site that is new has an empty set of them, which it runs before.
async fn plugins_run(client: &Client, node: &NodeHandle, version: u64) -> bool {
    let Ok(status) = client.send(node.admin, Ask::get("/v1/status")).await else { return false };
    let sites = status.body["sites"].as_array().map_or(&[][..], Vec::as_slice);
    sites
        .iter()
        .any(|s| s["site"] == rules::SITE && s["chain"].as_u64().is_some_and(|chain| chain >= version))
}

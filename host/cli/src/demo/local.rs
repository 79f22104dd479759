//! A shop on this machine with one node, for `souk plugin dev`: the same processes as a demo, without its first-party
//! plugins, and with the merchant's own shop if there is one.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use souk_commerce::id::SiteId;
use souk_commerce::site::SiteSettings;
use url::Url;

use super::identity::{Authority, OperatorToken, ShopperKey};
use super::stage::{self, Processes};
use super::{Ended, Folder, shop};
use crate::control::RegionClient;
use crate::failure::Usage;
use crate::import::{self, Plan, Rules};
use crate::replay::NodeHandle;
use crate::site::push_assets;
use crate::terminal::Step;

/// Where the one node pretends to stand.
const POPS: [&str; 1] = ["dev"];
/// A page of a shop is a few hundred files; a folder with more is probably not one.
const PAGE_FILES_MAX: usize = 2_000;

/// A running shop. [`LocalShop::end`] ends it in order; dropping it ends it without ceremony.
pub(crate) struct LocalShop {
    processes: Arc<Processes>,
    ended: Ended,
    pub(crate) door: Door,
    /// Removed last.
    folder: Folder,
}

/// How the shop is changed and looked at.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) region: RegionClient,
    pub(crate) site: SiteId,
    pub(crate) nodes: Vec<NodeHandle>,
}

impl Door {
    /// Until every node holds what the region has now, compiled and in use.
    pub(crate) async fn until_live(&self) -> anyhow::Result<()> {
        shop::until_caught_up(&self.region, &self.nodes).await
    }
}

impl LocalShop {
    /// `own` is a folder with `site.json`, `products.csv` and, if wanted, `www/`; without it the sample shop is sold.
    pub(crate) async fn raise(own: Option<&Path>, http_base: Option<u16>) -> anyhow::Result<Self> {
        let ended = Ended::listen()?;
        let folder = Folder::create(None, false)?;
        let authority = Authority::create(&folder.path.join("identity"))?;
        let token = OperatorToken::mint();
        let plan = stage::Plan {
            folder: &folder.path,
            authority: &authority,
            token: &token,
            pops: &POPS,
            http_base,
            regions: 1,
            store: None,
            with_relay: false,
            log: "info",
            node_settings: &toml::Table::new(),
            region_settings: &toml::Table::new(),
        };
        let step = Step::start("Raising a region and a node");
        let processes = Arc::new(Processes::raise(&plan).await?);
        step.done(&folder.path.display().to_string());
        let control =
            Url::parse(&format!("http://{}", processes.control)).context("write the control address")?;
        let region = RegionClient::new(&control, token.secret()).map_err(anyhow::Error::msg)?;
        let settings = match own {
            Some(own) => fill(&region, own).await?,
            None => shop::seed(&region, &[], &ShopperKey::mint()?).await?,
        };
        let door = Door { region, site: settings.site, nodes: processes.handles() };
        door.until_live().await?;
        Ok(Self { processes, ended, door, folder })
    }

    /// Where everything of it lies until it ends.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// Until Ctrl-C (`Ok`), or until a process ends that nobody ended.
    pub(crate) async fn until_over(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            () = self.ended.wait() => Ok(()),
            words = self.processes.until_one_fails() => Err(anyhow::anyhow!(words)),
        }
    }

    pub(crate) async fn end(self) {
        self.processes.end().await;
    }
}

/// Puts a merchant's own shop into the region.
async fn fill(region: &RegionClient, own: &Path) -> anyhow::Result<SiteSettings> {
    let read = |name: &str| {
        let file = own.join(name);
        std::fs::read(&file).map_err(|e| Usage(format!("{}: {e}", file.display())))
    };
    let mut settings: SiteSettings = serde_json::from_slice(&read("site.json")?)
        .map_err(|e| Usage(format!("{}: {e}", own.join("site.json").display())))?;
    // The shop is looked at from this machine, whatever its real names are.
    for host in ["localhost", "127.0.0.1"] {
        if !settings.hosts.iter().any(|h| h == host) {
            settings.hosts.push(host.to_owned());
        }
    }
    region.put_site(&settings).await?;
    let plan =
        Plan { choices: &[], rules: Rules { currency: settings.currency, allow_free: true }, refused: None };
    let (products, mut report) =
        import::read(read("products.csv")?.as_slice(), &plan).context("read products.csv")?;
    let step = Step::counted("Importing the shop", products.len() as u64);
    import::send(region, &settings.site, &products, None, &mut report, &step).await?;
    step.done(&format!("{} products, {} rows refused", report.products, report.rows_refused));
    let www = own.join("www");
    if www.is_dir() {
        let mut page = Vec::new();
        walk(&www, &www, &mut page)?;
        let step = Step::counted("Pushing its page", page.len() as u64);
        push_assets(region, &settings.site, page, &step).await?;
        step.done("");
    }
    Ok(settings)
}

fn walk(root: &Path, folder: &Path, page: &mut Vec<(String, Bytes)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(root, &path, page)?;
            continue;
        }
        anyhow::ensure!(
            page.len() < PAGE_FILES_MAX,
            "{} holds more than {PAGE_FILES_MAX} files",
            root.display()
        );
        let name = path.strip_prefix(root).context("it was found there")?.to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        page.push((name, bytes.into()));
    }
    Ok(())
}

//! The replay client: real invoices become shoppers who fill carts over HTTP and check out, while nodes die and
//! links are cut, and at the end every acknowledged operation is looked for at the region.
//!
//! It owns the shoppers, their books (what was acknowledged) and the verdict. It refuses to know how a node or a
//! region works inside: it speaks the shopper API and the operators' APIs only, and its [`oracle`] recomputes
//! every price from the written rules without a line of the platform's pricing or importing code. `demo` calls [`run`].
//!
//! Reading order: [`invoices`] and [`country`] (the file), [`rules`] and [`setup`] (the shop), [`plan`] and
//! [`shopper`] (one visit), [`crowd`] (all of them, and the faults), [`prices`] and [`oracle`] (what it must cost),
//! [`books`], [`audit`], [`report`].

mod audit;
mod books;
mod client;
mod country;
mod crowd;
mod invoices;
mod oracle;
mod pace;
mod plan;
mod prices;
mod report;
mod rules;
mod setup;
mod shopper;
mod token;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::future::BoxFuture;

use self::books::Books;
use self::client::Client;
use self::crowd::Crowd;
use self::invoices::Invoices;
use self::pace::Pace;
use self::report::Evidence;
pub(crate) use self::report::Report;
pub(crate) use self::rules::site;
use self::shopper::Town;
use self::token::Signer;
use crate::import;
use crate::terminal::Step;

/// How many operations a second all shoppers together may start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// As fast as the nodes answer.
    Max,
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<f64>() {
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Self::PerSecond(rate)),
            _ => Err(format!("{text:?} is neither `max` nor a number of operations a second greater than 0")),
        }
    }
}

/// What the user asked for on the command line.
#[derive(Debug, Clone)]
pub(crate) struct ReplayOptions {
    /// Invoices, CSV or CSV.gz.
    pub(crate) file: PathBuf,
    /// At most this many invoices become carts.
    pub(crate) carts: Option<usize>,
    pub(crate) rate: Rate,
    /// SIGKILL and restart one node every few seconds.
    pub(crate) kill_edge: bool,
    /// SIGKILL one process of the region in the middle.
    pub(crate) kill_region: bool,
    /// Cut the link between the nodes and the region for ten seconds in the middle.
    pub(crate) cut_region: bool,
    /// Where to list every refused row.
    pub(crate) refused: Option<PathBuf>,
    /// Decides who does what; the same seed makes the same shoppers.
    pub(crate) seed: u64,
    /// Whether every call of a plugin is recorded.
    pub(crate) record: bool,
}

/// One node that shoppers may visit.
#[derive(Debug, Clone)]
pub(crate) struct NodeHandle {
    pub(crate) name: String,
    pub(crate) pop: String,
    /// Stays the same when the node is restarted.
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A component that the demo has already put into the region's blob store.
#[derive(Debug, Clone)]
pub(crate) struct StagedPlugin {
    /// `catalog`, `pricing` or `cart`.
    pub(crate) name: String,
    /// SHA-256 of the component, hexadecimal.
    pub(crate) component: String,
}

/// What the demo can do to its own processes and links.
pub(crate) trait Faults: Send + Sync {
    /// SIGKILL, then start the node again on the same ports and directory; returns when it listens.
    fn kill_and_restart<'a>(&'a self, node: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
    /// SIGKILL a process of the region. If it is the only one it is started again on the same ports and directory, and this
    /// returns when it listens.
    fn kill_region(&self) -> BoxFuture<'_, anyhow::Result<()>>;
    /// From now on no packet passes between nodes and region.
    fn cut(&self) -> BoxFuture<'_, anyhow::Result<()>>;
    fn heal(&self) -> BoxFuture<'_, anyhow::Result<()>>;
}

/// The running demo, as far as the replay needs it.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) nodes: Vec<NodeHandle>,
    pub(crate) region_control: SocketAddr,
    pub(crate) operator_token: String,
    /// Ed25519, PKCS#8 PEM: signs shopper tokens. Its public half goes into the site's settings as `shopper_key`.
    pub(crate) shopper_signing_key: String,
    /// Ed25519 public key, PEM.
    pub(crate) shopper_key: String,
    pub(crate) plugins: Vec<StagedPlugin>,
    pub(crate) faults: Arc<dyn Faults>,
}

/// Whether a file has what a replay needs, as far as its headings say.
pub(crate) fn check(file: &Path) -> anyhow::Result<()> {
    invoices::check(file)?;
    // The catalogue comes out of the same file.
    import::check(file)
}

/// Replays the file on the stage. The caller prints the report and ends with [`Report::exit_code`].
pub(crate) async fn run(options: &ReplayOptions, stage: &Stage) -> anyhow::Result<Report> {
    anyhow::ensure!(!stage.nodes.is_empty(), "the stage has no node");
    let client = Client::new();
    let shop = setup::raise(options, stage, &client).await?;
    let mut invoices = invoices::read(&options.file, |sku| shop.oracle.catalogue.contains_key(sku.as_str()))?;
    if let Some(path) = &options.refused {
        list_refused(path, &invoices)
            .with_context(|| format!("list the refused rows in {}", path.display()))?;
    }
    let mut chosen = std::mem::take(&mut invoices.invoices);
    let usable = chosen.len();
    let beyond = chosen.split_off(options.carts.unwrap_or(usable).min(usable));
    let left_out = beyond.iter().map(|invoice| invoice.lines.len() as u64).sum();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();

    let town = Arc::new(Town {
        client: client.clone(),
        nodes: stage.nodes.clone(),
        host: rules::HOST.to_owned(),
        oracle: shop.oracle,
        books: Books::new(),
        pace: Pace::new(options.rate),
        seed: options.seed,
    });
    let signer = Signer::new(&stage.shopper_signing_key, now_s)?;
    let wanted = chosen.len();
    let crowd = Crowd { town: Arc::clone(&town), stage, options, signer, cut: crowd::CUT };
    let (books, took) = crowd.run(chosen).await?;

    let step = Step::start("Audit");
    let verdict = audit::audit(&client, stage, &books).await?;
    step.done(&format!("{} carts at the region, {} copies at the nodes", books.len(), verdict.copies));
    let evidence = Evidence {
        import: &shop.import,
        invoices: &invoices,
        usable,
        left_out,
        wanted,
        options,
        differing_prices: &shop.differing_prices,
        carts: books.len() as u64,
        orders: books.iter().filter(|book| book.order.is_some()).count() as u64,
        took,
    };
    Ok(Report::new(&evidence, &town.books.tally(), &verdict))
}

fn list_refused(path: &Path, invoices: &Invoices) -> anyhow::Result<()> {
    let mut file = csv::Writer::from_path(path)?;
    file.write_record(["line", "invoice", "sku", "reason", "detail"])?;
    for row in &invoices.refused {
        let line = row.line.to_string();
        file.write_record([line.as_str(), &row.invoice, &row.sku, row.reason.name(), row.reason.sentence()])?;
    }
    Ok(file.flush()?)
}

//! The replay client: real invoices become shoppers who fill carts over HTTP and check out, while nodes die and
//! links are cut, and at the end every acknowledged operation is looked for at the region.
//!
//! It owns the shoppers, their books (what was acknowledged) and the verdict. It refuses to know how a node or a
//! region works inside: it speaks the shopper API and the operators' APIs only, and its [`oracle`] recomputes
//! every price from the written rules without a line of the platform's pricing code. `demo` calls [`run`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::BoxFuture;

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
    /// Cut the link between the nodes and the region for ten seconds in the middle.
    pub(crate) cut_region: bool,
    /// Where to list every refused row.
    pub(crate) refused: Option<PathBuf>,
    /// Decides who does what; the same seed makes the same shoppers.
    pub(crate) seed: u64,
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

/// Replays the file on the stage. The caller prints the report and ends with [`Report::exit_code`].
pub(crate) async fn run(options: &ReplayOptions, stage: &Stage) -> anyhow::Result<Report> {
    let _ = (options, stage);
    anyhow::bail!("the replay is being written")
}

/// What came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Report {}

impl Report {
    /// A table for people.
    pub(crate) fn table(&self) -> String {
        String::new()
    }

    /// 0 when nothing was lost and nothing differs, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        1
    }
}

//! What the rows share: how much of a fault there is, that only one row runs at a time, and how a run ends.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use souk_tests::cluster::{Cluster, Plan};
use souk_tests::http::Client;
use souk_tests::say;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use crate::audit::{Verdict, audit};
use crate::shop::{HOST, SITE, products};
use crate::shoppers::{Crowd, Habits};

/// The first start builds the binary, and rows are about machines that are whole: two at once would only slow each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// A fault that met no writer proves nothing: a row fails where nobody is served for so long.
pub(crate) const SERVES_WITHIN: Duration = Duration::from_secs(60);

/// Whether `SOUK_CHAOS=full` asks for the long run.
pub(crate) fn is_full() -> bool {
    static FULL: OnceLock<bool> = OnceLock::new();
    *FULL.get_or_init(|| std::env::var("SOUK_CHAOS").is_ok_and(|word| word == "full"))
}

/// How often a fault comes: `few` in each `cargo test`, `many` in the full run; `SOUK_CHAOS_COUNT` says another number.
pub(crate) fn count(few: u64, many: u64) -> u64 {
    let asked = std::env::var("SOUK_CHAOS_COUNT").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or_else(|| if is_full() { many } else { few })
}

/// What decides everything that is left to chance; `SOUK_CHAOS_SEED` says another.
pub(crate) fn seed() -> u64 {
    std::env::var("SOUK_CHAOS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The sum over all that has this name on a page of metrics.
pub(crate) async fn metric(admin: &Client, name: &str) -> Result<f64> {
    let page = admin.get("/metrics").await?.text();
    let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        (key.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
    });
    Ok(values.sum())
}

/// One row after the other, also those that raise something else than a [`Row`].
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A cluster with an open shop, and shoppers in it.
pub(crate) struct Row {
    name: &'static str,
    pub(crate) cluster: Cluster,
    pub(crate) crowd: Crowd,
    scarce: Option<u64>,
    began: Instant,
    _turn: MutexGuard<'static, ()>,
}

impl Row {
    pub(crate) async fn open(name: &'static str, plan: Plan, habits: Habits) -> Result<Self> {
        Self::open_with(name, plan, habits, None).await
    }

    /// The same with so many of the scarce product.
    pub(crate) async fn open_with(
        name: &'static str,
        plan: Plan,
        habits: Habits,
        scarce: Option<u64>,
    ) -> Result<Self> {
        let turn = turn().await;
        let cluster = Cluster::raise(plan).await?;
        cluster.open_shop(SITE, HOST, &products(scarce)).await?;
        let nodes = cluster.nodes.iter().map(|node| node.http()).collect::<Result<Vec<SocketAddr>>>()?;
        let crowd = Crowd::gather(&nodes, habits);
        Ok(Self { name, cluster, crowd, scarce, began: Instant::now(), _turn: turn })
    }

    /// Waits until the region has committed something that a node has sent it from now on.
    pub(crate) async fn region_commits(&self) -> Result<()> {
        let admins = self.cluster.nodes.iter().map(|node| Ok(Client::new(node.admin()?)));
        let admins = admins.collect::<Result<Vec<_>>>()?;
        let acked = async || {
            let mut all = Vec::new();
            for admin in &admins {
                all.push(admin.get("/v1/status").await?.json()["outbox"]["acked"].as_u64());
            }
            anyhow::Ok(all)
        };
        let (before, began) = (acked().await?, Instant::now());
        // A new epoch counts from the beginning, which is a commit too.
        while acked().await? == before {
            let words = self.cluster.region.last_words();
            ensure!(began.elapsed() < SERVES_WITHIN, "the region commits nothing: {words}");
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// The nodes are killed too. A link that has held less than five seconds is dialled after a pause that doubles up to half a
    /// minute, so a region that is killed every second would soon be met by nobody; nodes that have just started dial at once.
    pub(crate) async fn restart_nodes(&mut self) -> Result<()> {
        for node in &mut self.cluster.nodes {
            node.kill()?;
            node.start().await?;
        }
        Ok(())
    }

    /// Sends the shoppers home, compares, and says the row's line: `what` was done, then what came of it.
    pub(crate) async fn close(self, what: &str) -> Result<Verdict> {
        self.close_with(what, async |_| Ok(String::new())).await
    }

    /// The same, and then the row looks at the cluster itself; what it found is a part of its line.
    pub(crate) async fn close_with(
        self,
        what: &str,
        last: impl AsyncFnOnce(&Cluster) -> Result<String>,
    ) -> Result<Verdict> {
        let Self { name, cluster, crowd, scarce, began, .. } = self;
        let (books, tally) = crowd.close().await?;
        let took = began.elapsed().as_secs_f64();
        let verdict =
            audit(&cluster, &books, &tally, scarce).await.with_context(|| format!("{name}: {what}"))?;
        let found = last(&cluster).await.with_context(|| {
            let words = cluster.region.last_words();
            format!("{name}: {what}; the region's last words:\n{words}")
        })?;
        say(&format!("chaos {name}: {what} in {took:.0} s; {found}{}", verdict.row(&tally)));
        if tally.refused() > 0 {
            say(&format!("chaos {name}: refused by name: {}", tally.reasons()));
        }
        let checked = verdict.check().with_context(|| format!("{name}: {what}"));
        if checked.is_err() {
            // What is needed to find out why.
            for server in std::iter::once(&cluster.region).chain(&cluster.nodes) {
                say(&format!("the last words of {}:\n{}", server.name(), server.last_words()));
            }
            say(&format!("all of them are kept in {}", cluster.keep().display()));
        }
        checked.map(|()| verdict)
    }
}

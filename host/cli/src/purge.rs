//! `souk purge`: every node forgets what it has stored of a site, by tag, address, path or altogether.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use souk_commerce::purge::Forget;

use crate::failure::Usage;
use crate::plugin::release::{ROLLOUT_WAIT, Shop, ShopArgs};
use crate::terminal::{self, DIM, WARN};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk purge --site sample --tag home --tag banners --wait\n  \
                        souk purge --site sample --url '/tea?size=2' --url https://shop.example/\n  \
                        souk purge --site sample --prefix /blog --soft\n\n\
                        Tags are what responses say in Surrogate-Key or Cache-Tag. What a node made from the shop's own products,\n\
                        prices, stock, settings and releases it forgets by itself when those change.\n\
                        With --wait it ends when every connected node has obeyed, and names each node's time; exit code 1 if one\n\
                        has not in time. A node that is away forgets when it is back, before it applies anything else.")]
pub(crate) struct PurgeArgs {
    /// Everything with this tag
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Every variant of a path (on all hosts of the site) or of an address
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// Everything under a path or address: /blog takes /blog, /blog/x and /blog?x
    #[arg(long = "prefix", value_name = "URL")]
    prefixes: Vec<String>,
    /// All of the site
    #[arg(long)]
    everything: bool,
    /// Make it stale instead of gone: it is asked for again, and may stand in where its upstream allowed that
    #[arg(long)]
    soft: bool,
    /// Wait until every connected node has obeyed, and name each node's time
    #[arg(long)]
    wait: bool,
    /// How long to wait for them, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "wait", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    timeout: u64,
    #[command(flatten)]
    shop: ShopArgs,
}

#[derive(Deserialize)]
struct Told {
    version: u64,
}

/// What the region says of a purge.
#[derive(Deserialize, Serialize)]
pub(crate) struct Obeyed {
    pub(crate) done: bool,
    nodes: Vec<NodeObeys>,
}

#[derive(Deserialize, Serialize)]
struct NodeObeys {
    node: u32,
    pop: String,
    obeyed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ms: Option<f64>,
}

pub(crate) async fn command(args: PurgeArgs) -> anyhow::Result<ExitCode> {
    let PurgeArgs { tags, urls, prefixes, everything, soft, wait, timeout, shop } = args;
    let forget = Forget { tags, urls, prefixes, everything, soft };
    forget.check().map_err(|bad| Usage(format!("{}: {bad}", bad.field())))?;
    let shop = shop.open()?;
    let Told { version } = shop.region.purge(&shop.site, &forget).await?;
    let obeyed = match wait {
        true => Some(until_all_obey(&shop, Of::Purges, version, Duration::from_secs(timeout)).await?),
        false => None,
    };
    let all = obeyed.as_ref().is_none_or(|obeyed| obeyed.done);
    if shop.json {
        terminal::json(&json!({ "site": shop.site, "version": version, "obeyed": obeyed }));
    } else {
        anstream::println!("{} is told to forget (purge {version})", shop.site);
        if let Some(obeyed) = &obeyed {
            print(obeyed);
        }
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What nodes are told by the log of purges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Purges,
    /// Of shoppers.
    Erasures,
}

impl Of {
    /// As a path names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Purges => "purges",
            Self::Erasures => "erasures",
        }
    }
}

pub(crate) async fn until_all_obey(
    shop: &Shop,
    of: Of,
    version: u64,
    give_up: Duration,
) -> anyhow::Result<Obeyed> {
    let began = Instant::now();
    loop {
        let left = give_up.saturating_sub(began.elapsed());
        let obeyed: Obeyed = shop.region.obeyed(&shop.site, of, version, left.min(ROLLOUT_WAIT)).await?;
        if obeyed.done || began.elapsed() >= give_up {
            return Ok(obeyed);
        }
    }
}

pub(crate) fn print(obeyed: &Obeyed) {
    for NodeObeys { node, pop, obeyed, after_ms } in &obeyed.nodes {
        if *obeyed {
            let after = after_ms.map_or(String::new(), |ms| format!(" after {ms:.1} ms"));
            anstream::println!("  {pop}/{node}  {DIM}obeyed{DIM:#}{after}");
        } else {
            anstream::println!("  {pop}/{node}  {WARN}has not obeyed yet{WARN:#}");
        }
    }
    if obeyed.nodes.is_empty() {
        anstream::println!("  {WARN}no node is connected{WARN:#}: each forgets when it is back");
    }
}

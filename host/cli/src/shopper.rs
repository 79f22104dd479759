//! `souk shopper`: gives a shopper everything that a shop keeps of him, and erases it.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use souk_commerce::id::CartId;

use crate::plugin::release::{Shop, ShopArgs};
use crate::purge;
use crate::terminal::{self, BOLD, DIM, WARN};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk shopper export c-17 --site sample > c-17.jsonl\n  \
                        souk shopper erase c-17 --site sample --wait\n  \
                        souk shopper erase --cart 0123456789abcdef0123456789abcdef --site sample\n  \
                        souk shopper erasures --site sample\n\n\
                        CUSTOMER is the `sub` of the tokens that the shop gives its shoppers. Orders stay in the books, without the\n\
                        person; the key that older copies were sealed by is destroyed. The token needs the verb `shoppers`.")]
pub(crate) struct ShopperArgs {
    #[command(subcommand)]
    command: ShopperCommand,
    #[command(flatten)]
    shop: ShopArgs,
}

#[derive(Debug, Subcommand)]
enum ShopperCommand {
    /// Write all that is kept of a shopper, one JSON object a line; the last one says that it is whole
    #[command(after_help = "Example:\n  souk shopper export c-17 --site sample > c-17.jsonl")]
    Export {
        #[arg(value_name = "CUSTOMER")]
        customer: String,
    },
    /// Erase a shopper: region, nodes, and the key of every older copy
    #[command(after_help = "Example:\n  souk shopper erase c-17 --site sample --wait")]
    Erase {
        #[arg(value_name = "CUSTOMER", required_unless_present = "carts")]
        customer: Option<String>,
        /// A cart of his that was never ordered, or a guest's: the number that his browser has
        #[arg(long = "cart", value_name = "CART")]
        carts: Vec<CartId>,
        /// Wait until every connected node has obeyed, and name each node's time; exit code 1 if one has not
        #[arg(long)]
        wait: bool,
        /// How long to wait for them, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait", value_parser = clap::value_parser!(u64).range(1..=3_600))]
        timeout: u64,
    },
    /// The shop's erasures, the newest first
    #[command(after_help = "Example:\n  souk shopper erasures --site sample")]
    Erasures,
}

pub(crate) async fn command(args: ShopperArgs) -> anyhow::Result<ExitCode> {
    let ShopperArgs { command, shop } = args;
    let shop = shop.open()?;
    match command {
        ShopperCommand::Export { customer } => {
            let mut out = std::io::stdout().lock();
            let orders = shop.region.export_shopper(&shop.site, &customer, &mut out).await?;
            anstream::eprintln!("{DIM}{orders} orders and checkouts{DIM:#}");
            Ok(ExitCode::SUCCESS)
        }
        ShopperCommand::Erase { customer, carts, wait, timeout } => {
            let patience = wait.then(|| Duration::from_secs(timeout));
            erase(&shop, customer.as_deref(), &carts, patience).await
        }
        ShopperCommand::Erasures => {
            let list: Value = shop.region.erasures(&shop.site).await?;
            if shop.json {
                terminal::json(&list);
            } else {
                list.as_array().into_iter().flatten().for_each(print);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn erase(
    shop: &Shop,
    customer: Option<&str>,
    carts: &[CartId],
    patience: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    let told: Value = shop.region.erase_shopper(&shop.site, customer, carts).await?;
    let obeyed = match (told["version"].as_u64(), patience) {
        (Some(version), Some(patience)) => {
            Some(purge::until_all_obey(shop, purge::Of::Erasures, version, patience).await?)
        }
        _ => None,
    };
    let all = obeyed.as_ref().is_none_or(|obeyed| obeyed.done);
    if shop.json {
        terminal::json(&json!({ "erased": told, "obeyed": obeyed }));
    } else {
        match (told["erasure"].is_string(), told["before"] == true) {
            (false, _) => anstream::println!("nothing is kept of this shopper"),
            (true, true) => anstream::println!("erased before; nothing has come since"),
            (true, false) => anstream::println!("erased"),
        }
        if told["erasure"].is_string() {
            print(&told);
        }
        if let Some(obeyed) = &obeyed {
            purge::print(obeyed);
        }
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(erasure: &Value) {
    let text = |name: &str| erasure[name].as_str().unwrap_or("-").to_owned();
    anstream::println!(
        "{BOLD}{}{BOLD:#}  {} orders stay without the person, {} checkouts and {} carts went",
        text("erasure"),
        erasure["orders"],
        erasure["checkouts"],
        erasure["carts"],
    );
    anstream::println!("  {DIM}in the audit log as {}{DIM:#}", text("named"));
    if erasure["ended_ms"].is_null() {
        anstream::println!(
            "  {WARN}the key is not destroyed yet{WARN:#}: the region does it at its next start, or erase again"
        );
    }
}

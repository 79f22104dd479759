//! `souk order`: the life of a shop's orders, at the region.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;
use souk_commerce::id::OrderId;

use crate::plugin::release::{Shop, ShopArgs};
use crate::terminal::{self, BOLD, DIM, GOOD, WARN};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk order capture 0123456789abcdef0123456789abcdef --site sample\n  \
                        souk order events --after 120 --site sample --json\n  \
                        souk order reconcile --site sample\n\n\
                        Each change may be repeated: wanted twice, it is done once. What the payment provider has to be asked for\n\
                        is done by the region, whatever happens to this program; `show` says how far it is.")]
pub(crate) struct OrderArgs {
    #[command(subcommand)]
    command: OrderCommand,
    #[command(flatten)]
    shop: ShopArgs,
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// How an order and its money stand
    #[command(after_help = "Example:\n  souk order show 0123456789abcdef0123456789abcdef --site sample")]
    Show {
        #[arg(value_name = "ORDER")]
        order: OrderId,
    },
    /// Take the money that was made sure of; of an invoice: it is paid
    #[command(after_help = "Example:\n  souk order capture 0123456789abcdef0123456789abcdef --site sample")]
    Capture {
        #[arg(value_name = "ORDER")]
        order: OrderId,
    },
    /// The goods are on their way
    #[command(after_help = "Example:\n  souk order fulfil 0123456789abcdef0123456789abcdef --site sample")]
    Fulfil {
        #[arg(value_name = "ORDER")]
        order: OrderId,
    },
    /// Before the money was taken: give it up, and the units back
    #[command(after_help = "Example:\n  souk order cancel 0123456789abcdef0123456789abcdef --site sample")]
    Cancel {
        #[arg(value_name = "ORDER")]
        order: OrderId,
    },
    /// Give the whole amount back
    #[command(after_help = "Example:\n  souk order refund 0123456789abcdef0123456789abcdef --site sample")]
    Refund {
        #[arg(value_name = "ORDER")]
        order: OrderId,
    },
    /// What has happened to the shop's orders, oldest first
    #[command(after_help = "Example:\n  souk order events --after 120 --site sample --json")]
    Events {
        /// The last event that was dealt with
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
    },
    /// What was sold, by day
    #[command(after_help = "Example:\n  souk order sales --days 7 --site sample")]
    Sales {
        /// How many days at most
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        days: u32,
    },
    /// Compare the shop's books with its payment provider's; exit code 1 if they differ
    #[command(after_help = "Example:\n  souk order reconcile --site sample")]
    Reconcile,
}

pub(crate) async fn command(args: OrderArgs) -> anyhow::Result<ExitCode> {
    let OrderArgs { command, shop } = args;
    let Shop { region, site, json } = shop.open()?;
    let wished = |order, wish| {
        let (region, site) = (region.clone(), site.clone());
        async move { region.wish_order(&site, order, wish).await }
    };
    let (answer, print): (Value, fn(&Value)) = match command {
        OrderCommand::Show { order } => (region.order(&site, order).await?, print_order),
        OrderCommand::Capture { order } => (wished(order, "capture").await?, print_order),
        OrderCommand::Fulfil { order } => (wished(order, "fulfil").await?, print_order),
        OrderCommand::Cancel { order } => (wished(order, "cancel").await?, print_order),
        OrderCommand::Refund { order } => (wished(order, "refund").await?, print_order),
        OrderCommand::Events { after, limit } => (region.events(&site, after, limit).await?, print_events),
        OrderCommand::Sales { days } => (region.sales(&site, days).await?, print_sales),
        OrderCommand::Reconcile => {
            let report = region.reconcile(&site).await?;
            let differ = report["differing"].as_u64() != Some(0);
            if json {
                terminal::json(&report)
            } else {
                print_report(&report)
            }
            return Ok(if differ { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    };
    if json {
        terminal::json(&answer)
    } else {
        print(&answer)
    }
    Ok(ExitCode::SUCCESS)
}

fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("-")
}

fn print_order(order: &Value) {
    let payment = &order["payment"];
    anstream::println!(
        "{BOLD}{}{BOLD:#}  {GOOD}{}{GOOD:#}  {} {}",
        word(order, "id"),
        word(order, "state"),
        order["quote"]["total"],
        word(&order["quote"], "currency")
    );
    let waits = if payment["is_waiting"] == true { ", waiting for the provider" } else { "" };
    anstream::println!("  {DIM}by {}, money {}{waits}{DIM:#}", word(payment, "by"), word(payment, "money"));
    if let Some(why) = payment["why"].as_str() {
        anstream::println!("  {WARN}{why}{WARN:#}");
    }
    for call in payment["calls"].as_array().into_iter().flatten() {
        anstream::println!(
            "  {DIM}{} {}: {} ({} tries){DIM:#}",
            word(call, "op"),
            call["attempt"],
            call["outcome"].as_str().unwrap_or("not known yet"),
            call["tries"]
        );
    }
}

fn print_events(events: &Value) {
    for event in events.as_array().into_iter().flatten() {
        anstream::println!("{}  {}  {}", event["seq"], word(event, "order"), word(event, "kind"));
    }
}

fn print_sales(days: &Value) {
    for day in days.as_array().into_iter().flatten() {
        anstream::println!(
            "day {}  {} orders  {} {}  {DIM}captured {}, cancelled {}, refunded {}{DIM:#}",
            day["day"],
            day["orders"],
            day["placed"],
            word(day, "currency"),
            day["captured"],
            day["cancelled"],
            day["refunded"]
        );
    }
}

fn print_report(report: &Value) {
    anstream::println!("{} payments compared, {} differ", report["compared"], report["differing"]);
    for difference in report["differences"].as_array().into_iter().flatten() {
        let followed =
            if difference["is_followed"] == true { "being looked at" } else { "look at it yourself" };
        anstream::println!(
            "  {WARN}{}{WARN:#}  {}: here {}, there {} {DIM}({followed}){DIM:#}",
            word(difference, "order"),
            word(difference, "what"),
            word(difference, "ours"),
            word(difference, "theirs")
        );
    }
}

//! `souk audit`: who changed what at a region, and whether the account of it is whole.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;
use url::Url;

use crate::control::RegionClient;
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD, WARN};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk audit list --after 120\n  souk audit list --action shopper. --json\n  \
                        souk audit verify\n\n\
                        Each row is bound to the one before by a hash: `verify` follows them all, and names the first that was\n\
                        changed, dropped or put in afterwards. Keep the hash of the last row somewhere else, too: whoever has the\n\
                        database can write all of it anew."
)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
    /// The region's control address, such as http://127.0.0.1:7080
    #[arg(long, global = true, value_name = "URL", env = "SOUK_REGION")]
    region: Option<Url>,
    /// The operator's token
    #[arg(long, global = true, value_name = "TOKEN", env = "SOUK_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// What has happened, oldest first
    #[command(after_help = "Example:\n  souk audit list --action shopper. --json")]
    List {
        /// The last row that was read
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
        /// How many rows at most are looked at
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// Only actions that begin so: `shopper.` for exports and erasures
        #[arg(long, value_name = "PREFIX", default_value = "")]
        action: String,
    },
    /// Follow the chain of hashes; exit code 1 if it is broken
    #[command(after_help = "Example:\n  souk audit verify")]
    Verify,
}

pub(crate) async fn command(args: AuditArgs) -> anyhow::Result<ExitCode> {
    let AuditArgs { command, region, token, json } = args;
    let missing = |what: &str| Usage(what.to_owned());
    let url = region.ok_or_else(|| missing("say where the region is with --region or SOUK_REGION"))?;
    let token = token.ok_or_else(|| missing("give the operator's token with SOUK_TOKEN or --token"))?;
    let region = RegionClient::new(&url, &token).map_err(Usage)?;
    match command {
        AuditCommand::List { after, limit, action } => {
            let rows: Vec<Value> = region.audit(after, limit).await?;
            let is_wanted = |row: &Value| row["action"].as_str().is_some_and(|it| it.starts_with(&action));
            let rows: Vec<_> = rows.into_iter().filter(is_wanted).collect();
            if json {
                terminal::json(&rows)
            } else {
                rows.iter().for_each(print)
            }
            Ok(ExitCode::SUCCESS)
        }
        AuditCommand::Verify => {
            let chain: Value = region.audit_chain().await?;
            let is_whole = chain["whole"] == true;
            match (json, is_whole) {
                (true, _) => terminal::json(&chain),
                (false, true) => anstream::println!("{GOOD}whole{GOOD:#}: {} rows", chain["row"]),
                (false, false) => {
                    anstream::println!(
                        "{WARN}broken{WARN:#} at row {}: from there on nothing is proved",
                        chain["row"]
                    );
                }
            }
            Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn print(row: &Value) {
    let text = |name: &str| row[name].as_str().unwrap_or("-");
    anstream::println!(
        "{}  {BOLD}{}{BOLD:#}  {}  {}",
        row["seq"],
        text("action"),
        text("subject"),
        row["detail"]
    );
    anstream::println!(
        "  {DIM}at {} ms, by {} {}, {}{DIM:#}",
        row["at_ms"],
        text("actor"),
        text("peer"),
        text("hash")
    );
}

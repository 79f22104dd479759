//! `souk region follow`, `takeover` and `status`: a region and its standby.
//!
//! The first is about files and for a region that does not run; the others ask one that does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;
use souk_config::RegionConfig;
use url::Url;

use crate::control::RegionClient;
use crate::failure::Usage;
use crate::plugin::release::ago;
use crate::terminal::{self, BOLD, DIM, GOOD, WARN};

#[derive(Debug, Subcommand)]
pub(crate) enum PairCommand {
    /// Make a region that does not run the standby of its pair: started, it follows the home
    Follow(FollowArgs),
    /// Make a standby the home, now; the former one is refused from then on
    Takeover(TakeoverArgs),
    /// Which of the pair a region is, and how far the standby is
    #[command(after_help = "Example:\n  souk region status --region http://127.0.0.1:7080")]
    Status(AskArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk region follow --config /etc/souk/region.toml\n  \
                        souk region follow --config /etc/souk/region.toml --discard")]
pub(crate) struct FollowArgs {
    /// The region's settings (TOML), with a table [pair]
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Although there are rows in its store: they are replaced by the home's. A file is kept as region.former.db; back a server up
    #[arg(long)]
    discard: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The region's control address, such as http://127.0.0.1:7080
    #[arg(long, value_name = "URL", env = "SOUK_REGION")]
    region: Option<Url>,
    /// The operator's token
    #[arg(long, value_name = "TOKEN", env = "SOUK_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk region takeover --region http://127.0.0.1:7080\n\n\
                  The home is asked for nothing: it may be gone. If it is not, stop it first, or see docs/REGIONS.md for what \
                  protects meanwhile.")]
pub(crate) struct TakeoverArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Make a region the home that another one has replaced: only if that one is gone for good
    #[arg(long)]
    force: bool,
}

pub(crate) async fn command(command: PairCommand) -> anyhow::Result<ExitCode> {
    match command {
        PairCommand::Follow(FollowArgs { config, discard }) => {
            let config = RegionConfig::load(&config)?;
            if config.pair.is_none() {
                let why = "the region's settings name no other region to follow: add a table [pair] with `addrs` and `server_name`";
                return Err(Usage(why.to_owned()).into());
            }
            let name = config.region.name.clone();
            tokio::task::spawn_blocking(move || souk_region::pair::follow(&config, discard)).await??;
            anstream::println!(
                "{GOOD}{name}{GOOD:#} is a standby: start it, and it takes every row of the home"
            );
            Ok(ExitCode::SUCCESS)
        }
        PairCommand::Takeover(TakeoverArgs { ask, force }) => take_over(&ask, force).await,
        PairCommand::Status(ask) => status(&ask).await,
    }
}

fn client(ask: &AskArgs) -> anyhow::Result<RegionClient> {
    let missing = |what: &str| Usage(what.to_owned());
    let url =
        ask.region.as_ref().ok_or_else(|| missing("say where the region is with --region or SOUK_REGION"))?;
    let token =
        ask.token.as_ref().ok_or_else(|| missing("give the operator's token with SOUK_TOKEN or --token"))?;
    Ok(RegionClient::new(url, token).map_err(Usage)?)
}

async fn take_over(ask: &AskArgs, force: bool) -> anyhow::Result<ExitCode> {
    let taken: Value = client(ask)?.take_over(force).await?;
    if ask.json {
        terminal::json(&taken);
        return Ok(ExitCode::SUCCESS);
    }
    anstream::println!("{GOOD}home{GOOD:#} in term {}", taken["term"]);
    if let Some(at) = taken["as_of_ms"].as_u64() {
        anstream::println!("it goes on from what the former home had {DIM}{}{DIM:#}", ago(at));
    }
    anstream::println!(
        "Nodes come by themselves, take every log whole and send again what it lacks. Compare the shops' payments, and look at\n\
         souk_region_operations_gone. The former home says `replaced` when it comes back: back it up, then souk region follow --discard."
    );
    Ok(ExitCode::SUCCESS)
}

async fn status(ask: &AskArgs) -> anyhow::Result<ExitCode> {
    let status: Value = client(ask)?.pair().await?;
    if ask.json {
        terminal::json(&status);
        return Ok(ExitCode::SUCCESS);
    }
    let role = status["role"].as_str().unwrap_or("-");
    anstream::println!(
        "{BOLD}{}{BOLD:#}: {role}, term {}",
        status["region"].as_str().unwrap_or("-"),
        status["term"]
    );
    if let Some(level) = status["ack_level"].as_u64() {
        anstream::println!(
            "what counts as committed is in {level} region{}",
            if level == 1 { "" } else { "s" }
        );
    }
    match (status["connected"] == true, status["trouble"].as_str()) {
        (true, None) => anstream::println!("{GOOD}connected{GOOD:#}"),
        (_, Some(trouble)) => anstream::println!("{WARN}{trouble}{WARN:#}"),
        (false, None) => {}
    }
    if let Some(rows) = status["lag_rows"].as_u64() {
        anstream::println!("the standby lacks {rows} changes");
    }
    if let Some(lag) = status["lag_ms"].as_u64() {
        anstream::println!("behind for {:.1} s", Duration::from_millis(lag).as_secs_f64());
    }
    if let Some(at) = status["as_of_ms"].as_u64() {
        anstream::println!("it would go on from {}", ago(at));
    }
    if let Some(files @ 1..) = status["files_missing"].as_u64() {
        anstream::println!("{WARN}{files} files{WARN:#} are missing");
    }
    Ok(ExitCode::SUCCESS)
}

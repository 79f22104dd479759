//! `souk site token`: who else may. A token is minted here and shown once; the region learns its hash only.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use souk_commerce::id::SiteId;
use souk_commerce::token::Token;

use crate::control::RegionClient;
use crate::plugin::release::ago;
use crate::terminal::{self, BOLD, DIM, GOOD};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Mint a token; it is shown once and stored nowhere
    Create(CreateArgs),
    /// Who has access, and who had
    #[command(after_help = "Example:\n  souk site token list --site sample")]
    List,
    /// End a token at once
    #[command(after_help = "Example:\n  souk site token revoke 3f2a91c07be4d815 --site sample")]
    Revoke {
        /// As `list` shows it: the digits after `souk_`
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk site token create --name 'Ada' --allow read,push,deploy,logs\n  \
                        souk site token create --name ci --allow push,deploy --days 30\n\n\
                        To change a token: create the new one, put it where the old one is, revoke the old one.")]
pub(crate) struct CreateArgs {
    /// What it is for
    #[arg(long, value_name = "NAME", default_value = "")]
    name: String,
    /// What it allows at this site; admin allows everything else too
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    allow: Vec<Verb>,
    /// How long it lives
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=366))]
    days: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verb {
    /// Look at settings, catalogue, releases, orders
    Read,
    /// Bring components
    Push,
    /// Change which releases run
    Deploy,
    /// Read what plugins said and did
    Logs,
    /// Have the nodes' caches forget
    Purge,
    /// Act on orders: take their money, give it back, say that the goods are on their way
    Orders,
    /// Give shoppers what is kept of them, and erase it
    Shoppers,
    /// Change the shop itself
    Admin,
}

/// What the region is told of a token.
#[derive(Debug, Serialize)]
struct Told<'a> {
    sha256: String,
    name: &'a str,
    verbs: &'a [Verb],
    expires_ms: u64,
}

pub(crate) async fn command(
    region: &RegionClient,
    site: &SiteId,
    json: bool,
    command: &TokenCommand,
) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(args) => {
            let token = create(region, site, &args.name, &args.allow, args.days).await?;
            if json {
                terminal::json(
                    &serde_json::json!({ "id": token.id(), "token": token.secret(), "site": site }),
                );
            } else {
                anstream::println!("{GOOD}{}{GOOD:#} {DIM}(shown once){DIM:#}", token.secret());
                anstream::println!("{DIM}revoke it with: souk site token revoke {}{DIM:#}", token.id());
            }
        }
        TokenCommand::List => {
            let tokens: Value = region.tokens(site).await?;
            if json { terminal::json(&tokens) } else { print(&tokens) }
        }
        TokenCommand::Revoke { id } => {
            region.revoke_token(site, id).await?;
            if json {
                terminal::json(&serde_json::json!({ "revoked": id }));
            } else {
                anstream::println!("{BOLD}{id}{BOLD:#} opens nothing any more");
            }
        }
    }
    Ok(())
}

/// Mints a token and tells the region of it. What is lost on the way may be sent again: the region knows it by its id.
pub(crate) async fn create(
    region: &RegionClient,
    site: &SiteId,
    name: &str,
    verbs: &[Verb],
    days: u32,
) -> anyhow::Result<Token> {
    let token = Token::mint(&rand::random());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read a clock that is set before 1970")?;
    let expires = now + DAY * days;
    let expires_ms = u64::try_from(expires.as_millis()).context("a date within the next centuries")?;
    let told = Told { sha256: hex::encode(token.sha256()), name, verbs, expires_ms };
    region.put_token(site, token.id(), &told).await?;
    Ok(token)
}

fn print(tokens: &Value) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["id", "name", "allows", "made", "used", "state"]);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    for token in tokens["tokens"].as_array().into_iter().flatten() {
        let text = |name: &str| token[name].as_str().unwrap_or_default().to_owned();
        let verbs: Vec<_> =
            token["verbs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let expires_ms = token["expires_ms"].as_u64().unwrap_or_default();
        let state = if !token["revoked_ms"].is_null() {
            "revoked".to_owned()
        } else if u128::from(expires_ms) <= now_ms {
            "expired".to_owned()
        } else {
            let days = (u128::from(expires_ms) - now_ms) / DAY.as_millis();
            format!("good for {days} days")
        };
        table.add_row([
            text("id"),
            text("name"),
            verbs.join(", "),
            token["created_ms"].as_u64().map_or(String::new(), ago),
            token["last_used_ms"].as_u64().map_or_else(|| "never".to_owned(), ago),
            state,
        ]);
    }
    anstream::println!("{table}");
}

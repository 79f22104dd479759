//! `souk plugin logs`: what a shop's plugins said and did, on every node, as it happens.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::journal::{CallId, Entry, Event, Level, Outcome};
use url::Url;

use crate::control::{ControlError, RegionClient};
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, WARN};

/// Lines that are shown of what has happened before.
const LINES_DEFAULT: usize = 50;
/// The region's own limit of a page.
const PAGE_MAX: usize = 1_000;
/// How long the region is asked to wait for news; it has a limit of its own, which is not shorter.
const WAIT_MS: u64 = 20_000;
/// Before an absent region is asked again.
const AWAY_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk plugin logs -f\n  souk plugin logs tea-week --kind fault\n  \
                        souk plugin logs -f --level warn --json | jq .\n\n\
                        A line is there about 0.1 s after its call, successes too. A shop that writes more than 500 lines a second, or\n\
                        while the region is away more than a node can hold, has holes in its log; each says how much is missing.\n\
                        The customer's number is struck out of everything. A call that was recorded can be run again with\n\
                        `souk plugin replay CALL`.")]
pub(crate) struct LogsArgs {
    /// Only of this plugin
    #[arg(value_name = "PLUGIN")]
    pub(crate) plugin: Option<PluginName>,
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many of the lines before
    #[arg(long, short = 'n', value_name = "N", default_value_t = LINES_DEFAULT)]
    pub(crate) lines: usize,
    /// Only of this release
    #[arg(long, value_name = "NUMBER")]
    pub(crate) release: Option<u32>,
    /// Only of this hook
    #[arg(long, value_name = "HOOK", value_parser = ["catalog", "pricing", "cart", "checkout"])]
    pub(crate) hook: Option<String>,
    /// Only of this call
    #[arg(long, value_name = "CALL")]
    pub(crate) call: Option<CallId>,
    /// Only log lines that are at least so loud; calls and faults stay
    #[arg(long, value_enum)]
    pub(crate) level: Option<LevelChoice>,
    /// Only what is of this kind
    #[arg(long, value_enum)]
    pub(crate) kind: Option<KindChoice>,
    /// Print one JSON object per line instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// The region's control address, such as http://127.0.0.1:7080
    #[arg(long, value_name = "URL", env = "SOUK_REGION")]
    pub(crate) region: Option<Url>,
    /// A token that may read the site's logs
    #[arg(long, value_name = "TOKEN", env = "SOUK_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The shop
    #[arg(long, value_name = "SITE", env = "SOUK_SITE")]
    pub(crate) site: Option<SiteId>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LevelChoice {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum KindChoice {
    Log,
    Fault,
    Call,
    Recorded,
}

/// A page of the region's answer.
#[derive(Debug, Deserialize)]
struct Page {
    entries: Vec<serde_json::Value>,
    after: u64,
    oldest: u64,
}

pub(crate) async fn command(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let missing = |what: &str| Usage(what.to_owned());
    let site = args.site.as_ref().ok_or_else(|| missing("say which shop with --site or SOUK_SITE"))?;
    let url = args
        .region
        .as_ref()
        .ok_or_else(|| missing("say where the region is with --region or SOUK_REGION"))?;
    let token = args.token.as_ref().ok_or_else(|| missing("give a token with SOUK_TOKEN or --token"))?;
    let region = RegionClient::new(url, token).map_err(Usage)?;
    match tail(&region, site, &args).await {
        // Whoever reads us has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        ended => ended.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

async fn tail(region: &RegionClient, site: &SiteId, args: &LogsArgs) -> anyhow::Result<()> {
    let filter = filter(args);
    let limit = args.lines.clamp(1, PAGE_MAX);
    let newest: Page = region.logs(site, &format!("limit={limit}{filter}")).await?;
    if args.lines > 0 {
        print(&newest, args.json)?;
    }
    let mut after = newest.after;
    let mut away = false;
    if !args.follow {
        return Ok(());
    }
    loop {
        let query = format!("after={after}&limit={PAGE_MAX}&wait_ms={WAIT_MS}{filter}");
        let page: Page = match region.logs(site, &query).await {
            Ok(page) => page,
            Err(ControlError::Unreachable { reason, .. } | ControlError::NotNow { reason, .. }) => {
                // The log goes on where it was: what happens meanwhile is kept at the nodes.
                if !away {
                    terminal::warn(&format!("the region is away ({reason}); waiting for it"));
                }
                away = true;
                tokio::time::sleep(AWAY_PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        away = false;
        if page.oldest > after + 1 {
            let gone = page.oldest - after - 1;
            terminal::warn(&format!("{gone} lines went from the region's log before they were read"));
        }
        print(&page, args.json)?;
        after = page.after;
    }
}

/// The filters as a query, each after an ampersand. Every value is of a kind that needs no escape.
fn filter(args: &LogsArgs) -> String {
    let mut query = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={value}"));
        }
    };
    add("plugin", args.plugin.as_ref().map(ToString::to_string));
    add("release", args.release.map(|n| n.to_string()));
    add("hook", args.hook.clone());
    add("call", args.call.map(|call| call.to_string()));
    let level = args.level.map(|level| match level {
        LevelChoice::Debug => Level::Debug,
        LevelChoice::Info => Level::Info,
        LevelChoice::Warn => Level::Warn,
        LevelChoice::Error => Level::Error,
    });
    add("level", level.map(|level| level.name().to_owned()));
    let kind = args.kind.map(|kind| match kind {
        KindChoice::Log => "log",
        KindChoice::Fault => "fault",
        KindChoice::Call => "call",
        KindChoice::Recorded => "recorded",
    });
    add("kind", kind.map(str::to_owned));
    query
}

fn print(page: &Page, json: bool) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    for value in &page.entries {
        // A kind of entry that only a newer region knows is shown as it came.
        let entry = if json { None } else { Entry::deserialize(value).ok() };
        match entry {
            Some(entry) => writeln!(out, "{}", line(&entry))?,
            None => writeln!(out, "{value}")?,
        }
    }
    out.flush()?;
    Ok(())
}

const BAD: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));

/// One entry for a person.
fn line(entry: &Entry) -> String {
    let at = time_of_day(entry.at_ms);
    let place = entry.node.map_or_else(|| "region".to_owned(), |node| format!("node {node}"));
    let source = entry.source.as_ref().map_or_else(String::new, |source| {
        let hook = source.hook.map_or("http", souk_commerce::site::Hook::name);
        format!(" {BOLD}{}{BOLD:#} {DIM}#{} {hook}{DIM:#}", source.plugin, source.release)
    });
    let call = entry.call.map_or_else(String::new, |call| format!(" {DIM}{call}{DIM:#}"));
    let what = match &entry.event {
        Event::Log { level, text } => {
            let style = match level {
                Level::Debug => DIM,
                Level::Info => Style::new(),
                Level::Warn => WARN,
                Level::Error => BAD,
            };
            format!("{style}{:<5}{style:#} {}{call}", level.name(), shown(text))
        }
        Event::Fault { fault, detail } => {
            format!("{BAD}fault{BAD:#} {}: {}{call}", shown(fault), shown(detail))
        }
        Event::Call { duration_us, outcome } => {
            let outcome = match outcome {
                Outcome::Ok => "ok".to_owned(),
                Outcome::Refused { code, message } => {
                    format!("{WARN}refused{WARN:#} {}: {}", shown(code), shown(message))
                }
                Outcome::Failed { fault } => format!("{BAD}failed{BAD:#} {}", shown(fault)),
            };
            format!("{DIM}call {DIM:#} {outcome} {DIM}in {duration_us} us{DIM:#}{call}")
        }
        Event::Dropped { count } => format!("{WARN}{count} entries are missing here{WARN:#}"),
        Event::Recorded { bytes } => format!("{DIM}recorded ({bytes} bytes){DIM:#}{call}"),
    };
    format!("{DIM}{at} {place:<7}{DIM:#}{source} {what}")
}

/// The node has replaced what a terminal would obey; a line that came another way must not reach it either.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// UTC, because nodes stand in many zones. The day is left out: logs are read on the day.
fn time_of_day(at_ms: u64) -> String {
    let (seconds, ms) = (at_ms / 1_000, at_ms % 1_000);
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{ms:03}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use souk_commerce::id::NodeId;
    use souk_commerce::journal::Source;
    use souk_commerce::site::Hook;

    use super::*;

    fn plain(entry: &Entry) -> String {
        anstream::adapter::strip_str(&line(entry)).to_string()
    }

    fn entry(event: Event) -> Entry {
        let plugin = "tea-week".parse().unwrap();
        Entry {
            site: "shop".parse().unwrap(),
            at_ms: 1_900_000_000_123,
            node: Some(NodeId(2)),
            source: Some(Source { plugin, release: 3, hook: Some(Hook::Pricing) }),
            call: None,
            event,
        }
    }

    #[test]
    fn each_kind_of_entry_reads_as_a_sentence() {
        let log = Event::Log { level: Level::Warn, text: "tea\u{1b}[2J is out".to_owned() };
        assert_eq!(
            plain(&entry(log)),
            "17:46:40.123 node 2  tea-week #3 pricing warn  tea\u{fffd}[2J is out"
        );
        let outcome = Outcome::Refused { code: "no".to_owned(), message: "Not today.".to_owned() };
        let refused = Event::Call { duration_us: 54, outcome };
        assert!(plain(&entry(refused)).ends_with("call  refused no: Not today. in 54 us"));
        let fault = Event::Fault { fault: "trap".to_owned(), detail: "unreachable".to_owned() };
        assert!(plain(&entry(fault)).ends_with("fault trap: unreachable"));
        let hole = Entry { source: None, node: None, ..entry(Event::Dropped { count: 12 }) };
        assert_eq!(plain(&hole), "17:46:40.123 region  12 entries are missing here");
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        logs: LogsArgs,
    }

    #[test]
    fn filters_become_a_query() {
        let asked = |words: &[&str]| {
            let words = ["logs", "--site", "shop"].iter().chain(words);
            filter(&Line::try_parse_from(words).unwrap().logs)
        };
        assert_eq!(asked(&[]), "");
        assert_eq!(
            asked(&["tea-week", "--release", "3", "--hook", "cart", "--level", "warn", "--kind", "fault"]),
            "&plugin=tea-week&release=3&hook=cart&level=warn&kind=fault"
        );
        assert!(Line::try_parse_from(["logs", "--hook", "x&y=z"]).is_err());
    }
}

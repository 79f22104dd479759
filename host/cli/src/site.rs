//! `souk site`: a merchant's settings, catalogue, files, prices and plugins, at the region.

mod settings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::money::{Currency, Minor};
use souk_commerce::site::OnFault;

use crate::args::{ImportArgs, PushArgs, ReleasesCommand, SetPriceArgs, SiteArgs, SiteCommand};
use crate::control::{AssetRow, RegionClient, ReleaseRow};
use crate::failure::Usage;
use crate::import::{self, Plan, REFUSALS_SHOWN_MAX, Rules};
use crate::terminal::{self, DIM, Step, WARN, counted};
use crate::token;

/// Files in one push.
const ASSETS_MAX: usize = 20_000;
/// One file: the region's limit for a blob, said here before it is sent.
const ASSET_BYTES_MAX: u64 = 32 << 20;
/// What `--compare-at` is told to have nothing struck through.
const NO_COMPARE_AT: &str = "none";
/// A settings or release file of this size was not written by hand.
const JSON_FILE_BYTES_MAX: u64 = 4 << 20;

/// Where a command goes, and how it answers.
struct Target {
    region: RegionClient,
    site: SiteId,
    json: bool,
}

pub(crate) async fn command(args: SiteArgs) -> anyhow::Result<ExitCode> {
    let target = |args: &SiteArgs| -> anyhow::Result<Target> {
        let site =
            args.site.clone().ok_or_else(|| Usage("say which site with --site or SOUK_SITE".to_owned()))?;
        Ok(Target { region: client(args)?, site, json: args.json })
    };
    match &args.command {
        SiteCommand::Put(put) => put_settings(&args, &put.file).await?,
        SiteCommand::Import(import) => return import_catalogue(&target(&args)?, import).await,
        SiteCommand::Push(push) => push_folder(&target(&args)?, push).await?,
        SiteCommand::SetPrice(price) => set_price(&target(&args)?, price).await?,
        SiteCommand::Token(command) => {
            let Target { region, site, json } = target(&args)?;
            token::command(&region, &site, json, command).await?;
        }
        SiteCommand::Releases(ReleasesCommand::Show) => show_releases(&target(&args)?).await?,
        SiteCommand::Releases(ReleasesCommand::Set { file }) => set_releases(&target(&args)?, file).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn client(args: &SiteArgs) -> anyhow::Result<RegionClient> {
    let url = args
        .region
        .as_ref()
        .ok_or_else(|| Usage("say where the region is with --region or SOUK_REGION".to_owned()))?;
    let token = args
        .token
        .as_ref()
        .ok_or_else(|| Usage("give the operator's token with SOUK_TOKEN or --token".to_owned()))?;
    RegionClient::new(url, token).map_err(|e| Usage(e).into())
}

async fn put_settings(args: &SiteArgs, file: &Path) -> anyhow::Result<()> {
    let region = client(args)?;
    let settings = settings::read(file)?;
    if let Some(asked) = args.site.as_ref().filter(|asked| **asked != settings.site) {
        let theirs = format!("{} is for the site {}", file.display(), settings.site);
        let remedy = "leave that out, or change the file";
        return Err(Usage(format!("{theirs}, and --site or SOUK_SITE says {asked}: {remedy}")).into());
    }
    region.put_site(&settings).await?;
    if args.json {
        terminal::json(&settings);
    } else {
        anstream::println!("{} answers to {}", settings.site, settings.hosts.join(", "));
    }
    Ok(())
}

async fn import_catalogue(target: &Target, args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let currency = target.region.site(&target.site).await?.currency;
    let plan = Plan {
        choices: &args.map,
        rules: Rules { currency, allow_free: args.allow_free },
        refused: args.refused.as_deref(),
    };
    let step = Step::start(format!("Reading {}", args.file.display()));
    let (products, mut report) = import::read(import::open(&args.file)?, &plan)?;
    let read = (counted(report.rows_read, "row"), counted(report.products, "product"));
    step.done(&format!("{}, {}", read.0, read.1));
    if !args.dry_run {
        let step = Step::counted("Importing", products.len() as u64);
        import::send(&target.region, &target.site, &products, plan.refused, &mut report, &step).await?;
        step.done(&format!(
            "{} created, {} updated, {} unchanged",
            report.created, report.updated, report.unchanged
        ));
    }
    if target.json {
        terminal::json(&report);
    } else {
        print_import(&report, args);
    }
    Ok(if args.strict && report.rows_refused > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_import(report: &import::Report, args: &ImportArgs) {
    for row in &report.refused {
        let sku = if row.sku.is_empty() { String::new() } else { format!(" {}", terminal::tame(&row.sku)) };
        anstream::println!(
            "{WARN}line {}{WARN:#}{sku}: {} {DIM}({}){DIM:#}",
            row.line,
            terminal::tame(&row.detail),
            row.reason
        );
    }
    let shown = report.refused.len() as u64;
    if report.rows_refused > shown {
        let more = report.rows_refused - shown;
        let hint = if args.refused.is_some() { "" } else { "; --refused FILE lists all" };
        anstream::println!("{DIM}… and {more} more of {} refused rows{hint}{DIM:#}", report.rows_refused);
    }
    debug_assert!(report.refused.len() <= REFUSALS_SHOWN_MAX);
    if report.rows_windows_1252 > 0 {
        let rows = report.rows_windows_1252;
        let rows = counted(rows, "row");
        anstream::println!("{DIM}read as Windows-1252, not being UTF-8: {rows}{DIM:#}");
    }
    let sent = if args.dry_run {
        "nothing sent".to_owned()
    } else {
        format!("{} created, {} updated, {} unchanged", report.created, report.updated, report.unchanged)
    };
    anstream::println!(
        "{}: {} ({sent}), {} refused",
        counted(report.rows_read, "row"),
        counted(report.products, "product"),
        counted(report.rows_refused, "row")
    );
}

async fn push_folder(target: &Target, args: &PushArgs) -> anyhow::Result<()> {
    let Listed { files, hidden, links } = list_folder(&args.dir)?;
    if hidden + links > 0 {
        let (hidden, links) = (counted(hidden, "hidden file"), counted(links, "link"));
        terminal::warn(&format!(
            "left out: {hidden}, {links}; files whose names begin with a dot stay at home"
        ));
    }
    let step = Step::counted("Pushing", files.len() as u64);
    let mut files_read = Vec::with_capacity(files.len());
    for (path, file) in files {
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        files_read.push((path, Bytes::from(bytes)));
    }
    let pushed = push_assets(&target.region, &target.site, files_read, &step).await?;
    step.done(&format!("{} files, {} new, {}", pushed.files, pushed.sent, terminal::size(pushed.bytes)));
    if target.json {
        terminal::json(&pushed);
    } else {
        let files = counted(pushed.files as u64, "file");
        anstream::println!("the site has {files}: {} new", pushed.sent);
    }
    Ok(())
}

/// What a push did.
#[derive(Debug, Serialize)]
pub(crate) struct Pushed {
    pub(crate) files: usize,
    pub(crate) sent: usize,
    pub(crate) bytes: u64,
}

/// Blobs first, the manifest last and whole: a shopper sees the old files or the new ones, never half of each.
pub(crate) async fn push_assets(
    region: &RegionClient,
    site: &SiteId,
    files: Vec<(String, Bytes)>,
    step: &Step,
) -> anyhow::Result<Pushed> {
    let mut pushed = Pushed { files: files.len(), sent: 0, bytes: 0 };
    let mut assets = Vec::with_capacity(files.len());
    for (path, bytes) in files {
        let content_type = content_type(&path);
        let length = bytes.len() as u64;
        let (digest, sent) = region.put_blob(bytes).await.with_context(|| format!("push {path}"))?;
        pushed.sent += usize::from(sent);
        pushed.bytes += length;
        assets.push(AssetRow { path, digest, bytes: length, content_type });
        step.advance(1);
    }
    region.put_assets(site, &assets).await?;
    Ok(pushed)
}

/// Text is UTF-8: without the charset, browsers guess.
fn content_type(path: &str) -> String {
    let mime = mime_guess::from_path(path).first_or_octet_stream();
    let text = mime.type_() == "text" || matches!(mime.essence_str(), "application/json" | "image/svg+xml");
    if text { format!("{}; charset=utf-8", mime.essence_str()) } else { mime.essence_str().to_owned() }
}

/// What lies in a folder that is pushed.
struct Listed {
    /// Each as the path it will be served under.
    files: Vec<(String, PathBuf)>,
    /// Files and folders that were left out, and what is in those folders is not counted.
    hidden: u64,
    links: u64,
}

/// Every regular file below. Hidden files stay at home, and a link is not followed: it could lead out of the folder.
fn list_folder(dir: &Path) -> anyhow::Result<Listed> {
    if !dir.is_dir() {
        return Err(Usage(format!("{} is not a folder", dir.display())).into());
    }
    let mut files = Vec::new();
    let (mut hidden, mut links) = (0, 0);
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", folder.display()))?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if entry.file_name().to_string_lossy().starts_with('.') {
                hidden += 1;
                continue;
            }
            links += u64::from(kind.is_symlink());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let size = entry.metadata()?.len();
                anyhow::ensure!(
                    size <= ASSET_BYTES_MAX,
                    "{} has {size} bytes; a file may have {ASSET_BYTES_MAX}",
                    path.display()
                );
                let name = path.strip_prefix(dir).context("a listed file lies below its folder")?;
                let name =
                    name.to_str().with_context(|| format!("the name {} is not UTF-8", path.display()))?;
                files.push((format!("/{name}"), path));
                anyhow::ensure!(
                    files.len() <= ASSETS_MAX,
                    "{} has more than {ASSETS_MAX} files",
                    dir.display()
                );
            }
        }
    }
    anyhow::ensure!(
        !files.is_empty(),
        "{} has no files; pushing nothing would take the site's page down",
        dir.display()
    );
    files.sort();
    Ok(Listed { files, hidden, links })
}

async fn set_price(target: &Target, args: &SetPriceArgs) -> anyhow::Result<()> {
    let currency = target.region.site(&target.site).await?.currency;
    let read = |text: &str| amount(currency, text);
    let price = read(&args.price)?;
    let chosen = match args.compare_at.as_deref() {
        Some(NO_COMPARE_AT) => Some(None),
        Some(text) => Some(Some(read(text)?)),
        None => None,
    };
    // Only what was named is to change: the floor that the merchant set stays, and so does the price struck through.
    let product = target.region.product(&target.site, &args.sku).await?;
    let (floor, compare_at) = kept(&product, chosen);
    if let Some(floor) = floor.filter(|floor| *floor > price) {
        let (floor, price) = (currency.format(floor), currency.format(price));
        let remedy = "import the product with another floor first";
        return Err(
            Usage(format!("the price {price} {currency} is below the floor {floor}; {remedy}")).into()
        );
    }
    let version = target.region.put_price(&target.site, &args.sku, price, compare_at, floor).await?;
    if target.json {
        terminal::json(
            &serde_json::json!({ "sku": args.sku, "price": price, "currency": currency, "version": version }),
        );
    } else {
        anstream::println!(
            "{} now costs {} {currency} (price version {version})",
            args.sku,
            currency.format(price)
        );
    }
    Ok(())
}

/// Floor and compare-at price of the product as it is, the latter unless another was `chosen`.
fn kept(product: &serde_json::Value, chosen: Option<Option<Minor>>) -> (Option<Minor>, Option<Minor>) {
    let said = |field: &str| product["price"][field].as_i64().map(Minor);
    (said("floor"), chosen.unwrap_or_else(|| said("compare_at")))
}

fn amount(currency: Currency, text: &str) -> anyhow::Result<Minor> {
    let amount = currency.parse_decimal(text).map_err(|e| Usage(e.to_string()))?;
    if amount.is_negative() {
        return Err(Usage(format!("the price {text} is negative")).into());
    }
    Ok(amount)
}

async fn show_releases(target: &Target) -> anyhow::Result<()> {
    let releases = target.region.releases(&target.site).await?;
    if target.json {
        terminal::json(&releases);
    } else {
        anstream::println!("{}", serde_json::to_string_pretty(&releases).context("print the releases")?);
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseFileRow {
    plugin: PluginName,
    component: PathBuf,
    #[serde(default)]
    settings: serde_json::Value,
    #[serde(default = "fail_open")]
    on_fault: OnFault,
}

fn fail_open() -> OnFault {
    OnFault::Open
}

async fn set_releases(target: &Target, file: &Path) -> anyhow::Result<()> {
    let rows: Vec<ReleaseFileRow> = read_json(file)?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    let mut releases = Vec::with_capacity(rows.len());
    for row in rows {
        let path = folder.join(&row.component);
        let bytes = std::fs::read(&path)
            .map_err(|e| Usage(format!("component of {}: {}: {e}", row.plugin, path.display())))?;
        let (component, _) = target.region.put_blob(bytes.into()).await?;
        let settings = match row.settings {
            serde_json::Value::String(path) => read_json(&folder.join(path))?,
            settings => settings,
        };
        releases.push(ReleaseRow {
            plugin: row.plugin,
            component,
            settings,
            on_fault: row.on_fault,
            record_bp: 0,
        });
    }
    let answer = target.region.put_releases(&target.site, &releases).await?;
    if target.json {
        terminal::json(&answer);
    } else {
        let names: Vec<_> = releases.iter().map(|r| r.plugin.as_str()).collect();
        anstream::println!(
            "{} now runs {}",
            target.site,
            if names.is_empty() { "no plugin".to_owned() } else { names.join(" → ") }
        );
    }
    Ok(())
}

/// A file that a person wrote: what is wrong in it is named with its line.
fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> anyhow::Result<T> {
    let wrong = |e: &dyn std::fmt::Display| Usage(format!("{}: {e}", file.display()));
    let size = std::fs::metadata(file).map_err(|e| wrong(&e))?.len();
    if size > JSON_FILE_BYTES_MAX {
        return Err(wrong(&format_args!("{size} bytes are more than a settings file has")).into());
    }
    let text = std::fs::read_to_string(file).map_err(|e| wrong(&e))?;
    serde_json::from_str(&text).map_err(|e| wrong(&e).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_listed_without_hidden_files_and_links() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("img")).expect("a folder");
        for file in ["index.html", "img/a b.svg", ".secret"] {
            std::fs::write(dir.path().join(file), "x").expect("a file");
        }
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("passwd")).expect("a link");
        let listed = list_folder(dir.path()).expect("a list");
        let paths: Vec<_> = listed.files.into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["/img/a b.svg", "/index.html"]);
        assert_eq!((listed.hidden, listed.links), (1, 1), "and it is said");
        let empty = tempfile::tempdir().expect("a folder");
        assert!(
            list_folder(empty.path())
                .is_err_and(|e| e.to_string().contains("would take the site's page down"))
        );
    }

    #[test]
    fn a_change_of_price_keeps_what_it_does_not_name() {
        let product = serde_json::json!({ "price": { "price": 1000, "compare_at": 1500, "floor": 800 } });
        let (floor, compare_at) = (Some(Minor(800)), Some(Minor(1_500)));
        assert_eq!(kept(&product, None), (floor, compare_at));
        assert_eq!(kept(&product, Some(Some(Minor(1_200)))), (floor, Some(Minor(1_200))));
        assert_eq!(kept(&product, Some(None)), (floor, None));
        assert_eq!(kept(&serde_json::json!({ "price": null }), None), (None, None));
    }

    #[test]
    fn text_has_a_charset() {
        assert_eq!(content_type("/index.html"), "text/html; charset=utf-8");
        assert_eq!(content_type("/a.svg"), "image/svg+xml; charset=utf-8");
        assert_eq!(content_type("/a.png"), "image/png");
        assert_eq!(content_type("/a.unknown-kind"), "application/octet-stream");
    }
}

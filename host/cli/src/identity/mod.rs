//! `souk identity`: who is who between nodes and their region, without a demo: an authority of the operator's own, and a
//! certificate for each process.
//!
//! What a certificate must say is the link's to know (`souk_link::Identity`); [`mint`] makes it, for the demo too. Nothing here
//! revokes: a certificate ends by its date, and an authority that is not trusted any more by another `ca.pem` everywhere.

pub(crate) mod mint;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use souk_config::value::{parse_place, parse_server_name};
use souk_link::Identity;

use self::mint::{Authority, CA_FILE, CA_KEY_FILE, Files};
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// What the region's public key is called, there and here.
const SEAL_FILE: &str = "seal.pub";

#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Make an authority, which signs the certificates of regions and nodes
    Authority(AuthorityArgs),
    /// Make a region's certificate and key
    Region(RegionArgs),
    /// Make a node's certificate and key
    Node(NodeArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk identity authority ca\n\n\
                        Whoever has ca.key can be any node and any region: keep the folder away from both.")]
pub(crate) struct AuthorityArgs {
    /// The folder to put ca.pem and ca.key into
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// How long it is good
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=7300))]
    days: u32,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    souk identity region --authority ca --region eu-west --host region.example.net --out region/link")]
pub(crate) struct RegionArgs {
    #[command(flatten)]
    common: Common,
    /// The DNS name by which nodes know it (`server_name` in their files), or an IPv4 address; may be given several times
    #[arg(long, value_name = "HOST", required = true, value_parser = parse_server_name)]
    host: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    souk identity node --authority ca --region eu-west --node 1 --seal region/data/seal.pub --out edge/link\n\n\
    The region makes seal.pub in its data_dir at its first start: nodes run only plugins that it vouches for.")]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    common: Common,
    /// Its number (`node.id` in its file)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
    /// The region's public key, to be copied beside the certificate
    #[arg(long, value_name = "FILE")]
    seal: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Common {
    /// The folder of `souk identity authority`
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,
    /// The region's name (`region.name` in its file, `node.region` in those of its nodes)
    #[arg(long, value_name = "NAME", value_parser = parse_place)]
    region: String,
    /// The folder to put the certificate, its key and a copy of ca.pem into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the certificate is good, at most as long as the authority
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    identity: String,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    /// Seconds since 1970.
    good_until: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<PathBuf>,
}

pub(crate) fn command(command: &IdentityCommand) -> anyhow::Result<ExitCode> {
    match command {
        IdentityCommand::Authority(args) => authority(args)?,
        IdentityCommand::Region(args) => region(args)?,
        IdentityCommand::Node(args) => node(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn authority(args: &AuthorityArgs) -> anyhow::Result<()> {
    let folder = folder(&args.dir)?;
    refuse_to_replace(&[folder.join(CA_FILE), folder.join(CA_KEY_FILE)])?;
    Authority::mint("Souk authority", DAY * args.days)?.write(&folder)?;
    let (ca, key) = (folder.join(CA_FILE), folder.join(CA_KEY_FILE));
    if args.json {
        terminal::json(&serde_json::json!({ "ca": ca, "key": key }));
    } else {
        anstream::println!(
            "{GOOD}✓{GOOD:#} {BOLD}{}{BOLD:#} {DIM}good for {} days{DIM:#}",
            ca.display(),
            args.days
        );
        anstream::println!(
            "{DIM}Whoever has ca.key beside it can be any node and any region: keep it here.{DIM:#}"
        );
    }
    Ok(())
}

fn region(args: &RegionArgs) -> anyhow::Result<()> {
    let name = &args.common.region;
    let made = make(&args.common, "region", &Identity::Region { region: name.clone() }, &args.host, None)?;
    if args.common.json {
        terminal::json(&made);
        return Ok(());
    }
    made.print()?;
    anstream::println!("\nIn the region's file {DIM}(all of it: edge-config/examples/region.toml){DIM:#}\n");
    anstream::println!("[region]\nname = {}\n\n{}", toml_text(name), made.link());
    anstream::println!("\nand in the file of each of its nodes, where the region's listen.link is:");
    for host in &args.host {
        let addr = toml_text(&format!("{host}:7443"));
        anstream::println!("\n[[link.regions]]\naddr = {addr}\nserver_name = {}", toml_text(host));
    }
    Ok(())
}

fn node(args: &NodeArgs) -> anyhow::Result<()> {
    let (name, number) = (&args.common.region, args.node);
    let identity = Identity::Edge { region: name.clone(), node: number };
    let made = make(&args.common, &format!("edge-{number}"), &identity, &[], args.seal.as_deref())?;
    if args.common.json {
        terminal::json(&made);
        return Ok(());
    }
    made.print()?;
    anstream::println!("\nIn the node's file {DIM}(all of it: edge-config/examples/edge.toml){DIM:#}\n");
    anstream::println!("[node]\nid = {number}\nregion = {}\n\n{}", toml_text(name), made.link());
    match &made.seal {
        Some(seal) => anstream::println!("seal_keys = [{}]", toml_text(&seal.to_string_lossy())),
        None => anstream::println!("seal_keys = [\"seal.pub\"]  # copy it from the region's data_dir"),
    }
    Ok(())
}

/// All or nothing is made: what could be refused is refused before the first file.
fn make(
    common: &Common,
    name: &str,
    identity: &Identity,
    hosts: &[String],
    seal: Option<&Path>,
) -> anyhow::Result<Made> {
    let authority = Authority::open(&common.authority)?;
    let seal = seal.map(read_seal).transpose()?;
    let folder = folder(&common.out)?;
    let files = Files::in_folder(&folder, name);
    refuse_to_replace(&[files.cert.clone(), files.key.clone()])?;
    let copies =
        [Some((files.ca.clone(), &authority.pem)), seal.as_ref().map(|pem| (folder.join(SEAL_FILE), pem))];
    let mut missing = Vec::new();
    for (path, text) in copies.into_iter().flatten() {
        match std::fs::read_to_string(&path) {
            Ok(there) if there == *text => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing.push((path, text)),
            _ => return Err(in_the_way(&path).into()),
        }
    }
    for (path, text) in missing {
        mint::write_new(&path, text, 0o644)?;
    }
    let good_until = authority.issue(&files, identity, hosts, DAY * common.days)?;
    let Files { ca, cert, key } = files;
    let seal = seal.map(|_| folder.join(SEAL_FILE));
    Ok(Made { identity: identity.to_string(), ca, cert, key, good_until, seal })
}

fn folder(asked: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(asked).map_err(|e| Usage(format!("cannot create {}: {e}", asked.display())))?;
    asked.canonicalize().with_context(|| format!("open {}", asked.display()))
}

fn read_seal(file: &Path) -> Result<String, Usage> {
    let wrong = |why: String| {
        let make = "the region makes seal.pub in its data_dir when it starts";
        Usage(format!("--seal {}: {why}; {make}", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    if !text.starts_with("-----BEGIN PUBLIC KEY-----") {
        return Err(wrong("this is not a public key (PEM)".to_owned()));
    }
    Ok(text)
}

fn refuse_to_replace(files: &[PathBuf]) -> Result<(), Usage> {
    match files.iter().find(|file| file.exists()) {
        Some(file) => Err(in_the_way(file)),
        None => Ok(()),
    }
}

fn in_the_way(file: &Path) -> Usage {
    Usage(format!(
        "{} is there already and is not replaced: name another folder, or move it away",
        file.display()
    ))
}

impl Made {
    fn print(&self) -> anyhow::Result<()> {
        let now = i64::try_from(mint::since_1970()?.as_secs()).context("a date within the next centuries")?;
        let day = i64::try_from(DAY.as_secs()).context("a day is short")?;
        // The last day may have begun.
        let days = (self.good_until - now + day - 1) / day;
        anstream::println!(
            "{GOOD}✓{GOOD:#} {BOLD}{}{BOLD:#} in {} {DIM}good for {days} days{DIM:#}",
            self.identity,
            self.cert.display()
        );
        Ok(())
    }

    /// The table of either's configuration.
    fn link(&self) -> String {
        let line = |key: &str, path: &Path| format!("{key} = {}", toml_text(&path.to_string_lossy()));
        let lines = [line("ca", &self.ca), line("cert", &self.cert), line("key", &self.key)];
        format!("[link]\n{}", lines.join("\n"))
    }
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests;

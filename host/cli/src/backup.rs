//! `souk region backup`, `verify` and `restore`: what an operator asks of the region's backups, and what is answered.
//!
//! The work is [`souk_region::backup`]'s; here are words, a bar and an exit code.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use souk_config::RegionConfig;
use souk_region::backup::{self, Checked, Progress, Sizes, Waived};

use crate::terminal::{self, Step};

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Back a region up while it runs: its rows at one moment, and the files that they refer to
    Backup(MakeArgs),
    /// Read a backup again, all of it; or, with --config, check what a region has now
    Verify(VerifyArgs),
    /// Put a backup into an empty place; the region begins a new history when it starts
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example, from cron:\n  souk region backup --config /etc/souk/region.toml --json /var/backups/souk"
)]
pub(crate) struct MakeArgs {
    /// The region's settings (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where backups are kept: this one is put beside those that are there, and copies only files that they do not have
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Take the oldest backups away after this one, so that so many are left, and the files that only they had
    #[arg(long, value_name = "N")]
    keep: Option<NonZeroUsize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk region verify /var/backups/souk\n  souk region verify --config /etc/souk/region.toml\n\n\
                        Exit codes: 0 all is as it must be, 1 something is not (it is listed)."
)]
pub(crate) struct VerifyArgs {
    /// A backup, or a folder of backups, of which the newest is read
    #[arg(value_name = "DIR", required_unless_present = "config", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// Check the region of these settings instead: what must hold between its rows, and the files that they refer to
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where there is room for the backup's rows once more [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk region restore --config /etc/souk/region.toml /var/backups/souk")]
pub(crate) struct RestoreArgs {
    /// The settings (TOML) of the region to come: SQLite or PostgreSQL, whatever the backup was made of
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A backup, or a folder of backups, of which the newest is taken
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Restore although the key that seals releases is another one, or none, now
    #[arg(long)]
    other_seal_key: bool,
    /// Restore although what opens the names and notes of the backup's orders (vault.key, the keyring) is not there: nobody reads
    /// them then
    #[arg(long)]
    without_keyring: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn command(command: BackupCommand) -> anyhow::Result<ExitCode> {
    match command {
        BackupCommand::Backup(args) => make(&args),
        BackupCommand::Verify(args) => verify(&args),
        BackupCommand::Restore(args) => restore(&args),
    }
}

/// Shows how far it is.
fn shown(step: &Step) -> impl FnMut(Progress<'_>) + '_ {
    |Progress { what, done, of }: Progress<'_>| {
        step.note(match of {
            Some(of) if of > 0 => format!("{what} {done}/{of}"),
            _ if done > 0 => format!("{what} {done}"),
            _ => what.to_owned(),
        });
    }
}

fn told(sizes: &Sizes) -> String {
    let Sizes { rows, orders, carts, blobs, blob_bytes } = sizes;
    format!("{rows} rows ({orders} orders, {carts} carts), {blobs} files of {}", terminal::size(*blob_bytes))
}

fn make(args: &MakeArgs) -> anyhow::Result<ExitCode> {
    let config = RegionConfig::load(&args.config)?;
    let step = Step::start(format!("back up {}", config.region.name));
    let made = backup::back_up(&config, &args.dir, args.keep, &mut shown(&step))?;
    step.done(&format!("{}; {} new", told(&made.sizes), made.new_blobs));
    for digest in &made.absent {
        terminal::warn(&format!(
            "rows refer to file {digest}, and the region does not have it, or other bytes"
        ));
    }
    print(&made, args.json, &made.path);
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let (step, checked) = match (&args.config, &args.dir) {
        (Some(config), _) => {
            let config = RegionConfig::load(config)?;
            let step = Step::start(format!("check {}", config.region.name));
            let checked = backup::verify_running(&config, &mut shown(&step))?;
            (step, checked)
        }
        (None, dir) => {
            let dir = dir.as_deref().unwrap_or_else(|| Path::new("."));
            let scratch = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
            let step = Step::start(format!("read {}", dir.display()));
            let checked = backup::verify(dir, &scratch, &mut shown(&step))?;
            (step, checked)
        }
    };
    let Checked { faults, sizes, path, .. } = &checked;
    if args.json {
        terminal::json(&checked);
    }
    if faults.is_empty() {
        step.done(&told(sizes));
        if !args.json {
            let what =
                path.as_ref().map_or_else(|| checked.region.clone(), |path| path.display().to_string());
            anstream::println!("{what}: all is as it must be");
        }
        return Ok(ExitCode::SUCCESS);
    }
    drop(step);
    if !args.json {
        for fault in faults {
            anstream::println!("{fault}");
        }
    }
    anyhow::bail!("{} faults", faults.len())
}

fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let config = RegionConfig::load(&args.config)?;
    let step = Step::start(format!("restore {}", config.region.name));
    let waived = Waived { seal_key: args.other_seal_key, keyring: args.without_keyring };
    let restored = backup::restore(&config, &args.dir, waived, &mut shown(&step))?;
    step.done(&told(&restored.sizes));
    for digest in &restored.absent {
        terminal::warn(&format!(
            "rows refer to file {digest}, and the backup does not have it: upload it again"
        ));
    }
    print(&restored, args.json, &restored.from);
    if !args.json {
        anstream::eprintln!(
            "Start the region: it begins a new history, every node takes every log whole and sends again what it has kept.\n\
             Then look at souk_region_operations_gone and compare the shops' payments (docs/BACKUP.md)."
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn print(result: &impl Serialize, json: bool, path: &Path) {
    if json {
        terminal::json(result);
    } else {
        anstream::println!("{}", path.display());
    }
}

//! `souk`: one binary for everything that a person or a machine starts.
//!
//! It owns the command line, the terminal, the exit codes, the log's set-up, the building of plugins and the demo. It
//! refuses to know how a node serves or how a region stores: those are `souk_edge` and `souk_region`, and this crate
//! hands them a validated configuration and a shutdown token.
//!
//! Reading order: [`args`] (what can be asked), [`beforehand`] and [`process`] (`edge`, `region`, `proxy`, `serve`), [`plugin`] (from a
//! crate to a component), [`control`] (talking to a region), [`cache`] (to a proxy), [`identity`] (who is who), [`site`] and [`import`] (a merchant's data), [`demo`] and
//! [`replay`] (all of it at once), [`terminal`], [`telemetry`], [`failure`]. [`compile`] is what a node runs as its child.

mod args;
mod audit;
mod backup;
mod beforehand;
mod cache;
mod compile;
mod control;
mod demo;
mod failure;
mod identity;
mod import;
mod order;
mod pair;
mod plugin;
mod process;
mod purge;
mod replay;
mod shopper;
mod site;
mod telemetry;
mod terminal;
mod token;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use souk_config::LogConfig;

use crate::args::{Command, RegionArgs, RegionCommand, Souk};

/// Nodes keep millions of small objects for weeks: jemalloc returns memory that the system's allocator would keep in
/// fragments.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run(Souk::parse().command) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        // Before anything else begins: this process is about to give up all that it does not need.
        Command::Compile(args) => Ok(souk_sandbox::loader::compile(&args.order)),
        Command::Edge(args) => {
            let config = beforehand::edge(&args.config)?;
            let _log = telemetry::init(&config.log)?;
            block_on(process::edge(config, args.lifetime))
        }
        Command::Region(RegionArgs { command: Some(command), .. }) => {
            let _log = telemetry::init(&quiet())?;
            match command {
                RegionCommand::Backup(command) => backup::command(command),
                RegionCommand::Pair(command) => block_on(pair::command(command)),
            }
        }
        Command::Region(args) => {
            let config = beforehand::region(&args.config.unwrap_or_default())?;
            let _log = telemetry::init(&config.log)?;
            block_on(process::region(config, args.lifetime))
        }
        Command::Proxy(args) => {
            let _log = telemetry::init(&args.log.config())?;
            block_on_looking(process::proxy(*args), None)
        }
        Command::Cache(command) => {
            let _log = telemetry::init(&quiet())?;
            block_on(cache::command(command))
        }
        Command::Serve(args) => {
            let _log = telemetry::init(&args.log.config())?;
            block_on(process::serve(args))
        }
        Command::Plugin(command) => {
            let _log = telemetry::init(&quiet())?;
            plugin::command(command)
        }
        Command::Site(args) => {
            let _log = telemetry::init(&quiet())?;
            block_on(site::command(args))
        }
        Command::Purge(args) => {
            let _log = telemetry::init(&quiet())?;
            block_on(purge::command(args))
        }
        Command::Order(args) => {
            let _log = telemetry::init(&quiet())?;
            block_on(order::command(args))
        }
        Command::Shopper(args) => {
            let _log = telemetry::init(&quiet())?;
            block_on(shopper::command(args))
        }
        Command::Audit(args) => {
            let _log = telemetry::init(&quiet())?;
            block_on(audit::command(args))
        }
        Command::Identity(command) => {
            let _log = telemetry::init(&quiet())?;
            identity::command(&command)
        }
        Command::Demo(args) => {
            let _log = telemetry::init(&quiet())?;
            block_on(demo::command(args))
        }
    }
}

/// A tool for people speaks through its terminal; its log is for what should not have happened.
fn quiet() -> LogConfig {
    LogConfig { filter: "warn".to_owned(), ..LogConfig::default() }
}

/// Where guests run: polls of tasks between two looks at what has come from outside, at most. A guest keeps a thread for up to 4 ms at a
/// time, and with tokio's 61 whoever asks beside a queue of guests would wait for 61 of them. A look takes about a
/// microsecond, and a worker with nothing left to do looks anyway.
const POLLS_BETWEEN_LOOKS: u32 = 4;

/// Runs a command to its end. Work on blocking threads (a build that Ctrl-C has overtaken) is not waited for.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    block_on_looking(command, Some(POLLS_BETWEEN_LOOKS))
}

/// The same, looking outside after so many polls. None is tokio's own number, for whoever runs no guests: a poll takes some
/// microseconds there, and a look would be a fifth of each.
fn block_on_looking(
    command: impl Future<Output = anyhow::Result<ExitCode>>,
    polls: Option<u32>,
) -> anyhow::Result<ExitCode> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(polls) = polls {
        builder.event_interval(polls);
    }
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let done = runtime.block_on(command);
    runtime.shutdown_background();
    done
}

//! `souk plugin …`: the merchant's day, from an empty folder to a release that runs on every node.
//!
//! Reading order: [`project`] (what lies in a merchant's folder), [`new`] (how it comes about), [`build`] (how it becomes
//! a component: [`cargo`], [`javascript`], [`python`], [`c`], then [`component`]), [`dev`] (all of it again at each change of
//! a file, on a node of this machine).

pub(crate) mod bench;
pub(crate) mod build;
mod c;
mod cargo;
mod component;
mod debian;
pub(crate) mod dev;
mod exchange;
pub(crate) mod inspect;
mod javascript;
pub(crate) mod logs;
pub(crate) mod new;
pub(crate) mod project;
pub(crate) mod push;
mod python;
pub(crate) mod release;
pub(crate) mod replay;
pub(crate) mod test;
mod toolchain;
mod trial;
mod unchanged;

use std::process::ExitCode;

use crate::args::PluginCommand;

pub(crate) use self::build::{Built, build, find_toolchain};

/// The only target of Rust plugins: a plugin that imports no system interface is the ideal sandbox.
const TARGET: &str = "wasm32-unknown-unknown";

/// Chooses among the commands; each of them owns its terminal and its exit code.
pub(crate) fn command(command: PluginCommand) -> anyhow::Result<ExitCode> {
    match command {
        PluginCommand::Test(args) => test::command(&args),
        PluginCommand::Bench(args) => bench::command(&args),
        PluginCommand::Inspect(args) => inspect::command(&args),
        PluginCommand::Replay(args) => crate::block_on(replay::command(args)),
        PluginCommand::New(args) => new::command(&args),
        PluginCommand::Build(args) => build::command(&args),
        PluginCommand::Dev(args) => dev::command(args),
        PluginCommand::Push(args) => crate::block_on(push::push(args)),
        PluginCommand::Deploy(args) => crate::block_on(release::deploy(args)),
        PluginCommand::Releases(args) => crate::block_on(release::releases(args)),
        PluginCommand::Rollback(args) => crate::block_on(release::roll_back(args)),
        PluginCommand::Remove(args) => crate::block_on(release::remove(args)),
        PluginCommand::Logs(args) => crate::block_on(logs::command(args)),
    }
}

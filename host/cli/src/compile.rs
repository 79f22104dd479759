//! `souk compile`, which no person types: the child process in which a node or a region compiles one component.
//!
//! The work, and what the process denies itself before it begins, are the sandbox's.

use clap::Args;
use souk_sandbox::loader::Order;

/// How the command is called; [`crate::process`] calls it so.
pub(crate) const COMMAND: &str = "compile";

#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// What the parent wants
    #[arg(value_name = "ORDER")]
    pub(crate) order: Order,
}

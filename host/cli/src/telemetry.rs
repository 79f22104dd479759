//! Sets the process's log up, once: standard error, text or JSON.

use std::io::IsTerminal as _;

use anyhow::anyhow;
use souk_config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;

use crate::failure::Usage;

/// `SOUK_LOG` wins over the configuration, so that a node can be made talkative without touching its file.
pub(crate) fn init(config: &LogConfig) -> anyhow::Result<()> {
    let filter = std::env::var("SOUK_LOG").unwrap_or_else(|_| config.filter.clone());
    let filter =
        EnvFilter::try_new(&filter).map_err(|e| Usage(format!("log filter {filter:?} is not valid: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|e| anyhow!("set up the log: {e}"))
}

//! What edge and region files have in common: checks of names and addresses, the link's identity, the log.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Problem;

/// The files with which one end of the link proves who it is, and the authority it trusts. PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl LinkTls {
    pub(crate) fn named_files(&self) -> Vec<NamedFile<'_>> {
        [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)]
            .map(|(key, path)| NamedFile::new(format!("link.{key}"), path))
            .into()
    }
}

/// A file that a configuration names and that must be there before the process starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile<'a> {
    /// The key that names it.
    pub key: String,
    pub path: &'a Path,
}

impl<'a> NamedFile<'a> {
    pub(crate) fn new(key: impl Into<String>, path: &'a Path) -> Self {
        Self { key: key.into(), path }
    }

    /// The same for a key that may be left out.
    pub(crate) fn maybe(key: impl Into<String>, path: Option<&'a PathBuf>) -> Option<Self> {
        path.map(|path| Self::new(key, path))
    }
}

/// How the program tells what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub format: LogFormat,
    /// In the syntax of `tracing`: `info`, `souk_link=debug,info`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For a terminal.
    Text,
    /// One object a line, for a collector.
    Json,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLog {
    format: Option<RawLogFormat>,
    filter: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawLogFormat {
    Text,
    Json,
}

impl RawLog {
    pub(crate) fn validate(self) -> LogConfig {
        let default = LogConfig::default();
        LogConfig {
            format: match self.format {
                Some(RawLogFormat::Text) => LogFormat::Text,
                Some(RawLogFormat::Json) => LogFormat::Json,
                None => default.format,
            },
            filter: self.filter.unwrap_or(default.filter),
        }
    }
}

/// What holds the process that compiles merchants' components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompilerConfig {
    pub seccomp: Seccomp,
}

/// What to do on a kernel that cannot refuse system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// Compile nothing.
    #[default]
    Required,
    /// Compile, with a warning each time.
    BestEffort,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCompiler {
    seccomp: Option<RawSeccomp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawSeccomp {
    Required,
    BestEffort,
}

impl RawCompiler {
    pub(crate) fn validate(self) -> CompilerConfig {
        CompilerConfig {
            seccomp: match self.seccomp {
                Some(RawSeccomp::Required) | None => Seccomp::Required,
                Some(RawSeccomp::BestEffort) => Seccomp::BestEffort,
            },
        }
    }
}

/// Where relative paths of a file begin: the folder that the file lies in, not the one the program was started in.
pub(crate) struct Base<'a>(pub(crate) &'a Path);

impl Base<'_> {
    pub(crate) fn path(&self, key: &str, raw: &Path) -> Result<PathBuf, Problem> {
        if raw.as_os_str().is_empty() {
            return Err(Problem::new(
                key,
                "the path is empty",
                "write a path, relative to this file or absolute",
            ));
        }
        Ok(self.0.join(raw))
    }
}

/// A socket to listen on. A host name is refused: it can name several addresses, and which one is then a matter of luck.
pub(crate) fn socket(key: &str, text: &str) -> Result<SocketAddr, Problem> {
    text.parse().map_err(|_| {
        Problem::new(
            key,
            format!("{text:?} is not an address to listen on"),
            "write an IP address and a port, such as \"127.0.0.1:8080\", \"[::]:8080\" or, for any free port, \"127.0.0.1:0\"",
        )
    })
}

/// A place name that becomes a segment of a SPIFFE id and a label of metrics: `lon`, `eu-west`.
pub(crate) fn place(key: &str, text: String) -> Result<String, Problem> {
    const PLACE_BYTES_MAX: usize = 32;
    let valid = (1..=PLACE_BYTES_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if valid {
        return Ok(text);
    }
    Err(Problem::new(
        key,
        format!("{text:?} is not a place name"),
        "write 1 to 32 characters of a-z, 0-9 and '-', beginning with a letter, such as \"lon\"",
    ))
}

/// `host:port` to dial. The host may be a name: it is resolved again at each dial.
pub(crate) fn host_and_port(key: &str, text: String) -> Result<String, Problem> {
    let valid = text.parse::<SocketAddr>().is_ok_and(|addr| addr.port() != 0)
        || text
            .rsplit_once(':')
            .is_some_and(|(host, port)| is_dns_name(host) && port.parse::<u16>().is_ok_and(|port| port != 0));
    if valid {
        return Ok(text);
    }
    Err(Problem::new(
        key,
        format!("{text:?} is not a host and a port"),
        "write for example \"region.example.net:7443\" or \"10.0.0.5:7443\"",
    ))
}

/// The name that the peer's certificate must carry.
pub(crate) fn server_name(key: &str, text: String) -> Result<String, Problem> {
    if is_dns_name(&text) {
        return Ok(text);
    }
    Err(Problem::new(
        key,
        format!("{text:?} is not a DNS name"),
        "write the DNS name in the region's certificate, such as \"region.example.net\"",
    ))
}

pub(crate) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

//! The loads: `wrk` for HTTP/1.1 and `h2load` for HTTP/2, and what they say of it.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{CONNECTIONS, Spoken};

/// What a load has seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Requests a second.
    pub(crate) rate: f64,
    pub(crate) requests: u64,
    /// None where the tool does not tell.
    pub(crate) p50: Option<Duration>,
    pub(crate) p99: Option<Duration>,
}

/// A tool that is installed.
#[derive(Clone)]
pub(crate) struct Load {
    spoken: Spoken,
    /// Where it runs, if not where this process does.
    cores: Vec<usize>,
}

impl Load {
    pub(crate) fn tool(spoken: Spoken) -> &'static str {
        match spoken {
            Spoken::Clear | Spoken::Tls => "wrk",
            Spoken::Http2(_) => "h2load",
        }
    }

    /// None where its tool is not there.
    pub(crate) fn of(spoken: Spoken) -> Option<Self> {
        let asked = Command::new(Self::tool(spoken)).arg("--version").stdin(Stdio::null()).output();
        // wrk ends with an error after it has said its version.
        asked.is_ok().then_some(Self { spoken, cores: Vec::new() })
    }

    /// The same on these cores, with a thread on each.
    pub(crate) fn on(self, cores: &[usize]) -> Self {
        Self { cores: cores.to_vec(), ..self }
    }

    pub(crate) fn run(&self, url: &str, seconds: u64) -> Result<Sample> {
        let threads = self.cores.len().max(1);
        let mut command = if self.cores.is_empty() {
            Command::new(Self::tool(self.spoken))
        } else {
            let cores: Vec<String> = self.cores.iter().map(ToString::to_string).collect();
            let mut command = Command::new("taskset");
            command.args(["-c", &cores.join(","), Self::tool(self.spoken)]);
            command
        };
        command.arg(format!("-t{threads}")).arg(format!("-c{CONNECTIONS}"));
        match self.spoken {
            Spoken::Clear | Spoken::Tls => command.arg("--latency").arg(format!("-d{seconds}s")),
            Spoken::Http2(streams) => command.arg(format!("-m{streams}")).arg(format!("-D{seconds}")),
        };
        let done = command.arg(url).stdin(Stdio::null()).output().context("start the load")?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(done.status.success(), "{url}: {said}{}", String::from_utf8_lossy(&done.stderr));
        match self.spoken {
            Spoken::Clear | Spoken::Tls => of_wrk(&said),
            Spoken::Http2(_) => of_h2load(&said),
        }
        .with_context(|| format!("{url}: {said}"))
    }
}

fn of_wrk(said: &str) -> Result<Sample> {
    let bad = said.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    ensure!(bad.is_none(), "not every answer was one: {bad:?}");
    let after = |label: &str| {
        said.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim).context("no such line")
    };
    let requests = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("no count of requests")?
        .0;
    Ok(Sample {
        rate: after("Requests/sec:")?.parse()?,
        requests: requests.parse()?,
        p50: duration(after("50%")?),
        p99: duration(after("99%")?),
    })
}

fn of_h2load(said: &str) -> Result<Sample> {
    let rate = said
        .lines()
        .find_map(|line| line.strip_prefix("finished in "))
        .and_then(|line| line.split(", ").nth(1))
        .and_then(|text| text.strip_suffix(" req/s"))
        .context("no rate")?;
    let counts = said.lines().find_map(|line| line.strip_prefix("requests: ")).context("no counts")?;
    let count = |label: &str| {
        counts
            .split(", ")
            .find_map(|part| part.strip_suffix(label))
            .context("no such count")?
            .trim()
            .parse::<u64>()
            .context("a number")
    };
    ensure!(count(" failed")? == 0 && count(" errored")? == 0, "not every answer was one: {counts}");
    let requests = count(" succeeded")?;
    let good = said.lines().find_map(|line| line.strip_prefix("status codes: ")).context("no statuses")?;
    let good: u64 = good.split(" 2xx").next().unwrap_or_default().trim().parse()?;
    ensure!(good >= requests, "other statuses than 2xx: {said}");
    Ok(Sample { rate: rate.parse()?, requests, p50: None, p99: None })
}

/// `635.00us`, `1.06ms`, `2.00s`.
fn duration(text: &str) -> Option<Duration> {
    let (number, scale) = if let Some(number) = text.strip_suffix("us") {
        (number, 1e-6)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1e-3)
    } else {
        (text.strip_suffix('s')?, 1.0)
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * scale))
}

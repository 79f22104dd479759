//! What processes have cost, by the kernel's books, and who else was on the machine meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// USER_HZ is 100 on every Linux that runs this.
const TICK: Duration = Duration::from_millis(10);

/// Processor time that a process has used, in all its threads.
pub(crate) fn processor_of(process: u32) -> Result<Duration> {
    let fields = stat_of(process)?;
    let of = |at: usize| fields.get(at).context("a field of /proc")?.parse::<u32>().context("a number");
    Ok(TICK * (of(11)? + of(12)?))
}

/// The processes that a process has started.
pub(crate) fn children_of(process: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(other) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Gone meanwhile: then it is nobody's child.
        let Ok(fields) = stat_of(other) else { continue };
        if fields.get(1).is_some_and(|parent| *parent == process.to_string()) {
            found.push(other);
        }
    }
    Ok(found)
}

/// What follows the name: the state, the parent and so on.
fn stat_of(process: u32) -> Result<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// The machine from one moment on.
pub(crate) struct Machine {
    began: Books,
}

/// Ticks of all processors together.
#[derive(Clone, Copy)]
struct Books {
    all: u64,
    idle: u64,
    stolen: u64,
    /// Of this process and of those of its children that have ended.
    own: u64,
}

impl Books {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("an empty /proc/stat")?;
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let of = |at: usize| ticks.get(at).copied().unwrap_or(0);
        let fields = stat_of(std::process::id())?;
        let own = fields.get(11..15).context("times of this process")?;
        let own = own.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
        // What guests have used is in user time already.
        Ok(Self { all: (0..8).map(of).sum(), idle: of(3) + of(4), stolen: of(7), own })
    }
}

impl Machine {
    pub(crate) fn watch() -> Result<Self> {
        Ok(Self { began: Books::read()? })
    }

    /// Whether the figures are worth their digits. When all children of this process have ended.
    pub(crate) fn verdict(&self) -> Result<String> {
        let now = Books::read()?;
        let all = now.all.saturating_sub(self.began.all).max(1) as f64;
        let stolen = now.stolen.saturating_sub(self.began.stolen) as f64;
        let busy = all - now.idle.saturating_sub(self.began.idle) as f64 - stolen;
        let others = (busy - now.own.saturating_sub(self.began.own) as f64).max(0.0);
        let percent = |ticks: f64| ticks / all * 100.0;
        let verdict = if percent(others) > 5.0 { "a **busy machine**" } else { "a quiet machine" };
        Ok(format!(
            "\n{verdict}: other programs used {:.1} % of it, its hypervisor took {:.1} %",
            percent(others),
            percent(stolen)
        ))
    }
}

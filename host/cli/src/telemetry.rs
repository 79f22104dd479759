//! Sets the process's log up, once: standard error, text or JSON.
//!
//! A thread of its own writes it. Standard error may be a full pipe, or a file on a disk that is busy with what shoppers
//! put into their carts: a request never waits for it. What the log cannot take is dropped, and the next line that it
//! takes says how much that was.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, OnceLock};

use anyhow::anyhow;
use souk_config::{LogConfig, LogFormat};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::failure::Usage;

/// Lines that wait to be written: a second or two of a busy node. A line is some 200 bytes, and up to 10 KiB with a target as long
/// as any may be: 40 MiB at the very most.
const LINES_MAX: usize = 4 << 10;

/// Keeps the log open; what was said is written when it is dropped.
#[must_use = "without it nothing is written"]
pub(crate) struct Log {
    _writes: WorkerGuard,
}

/// `SOUK_LOG` wins over the configuration, so that a node can be made talkative without touching its file.
pub(crate) fn init(config: &LogConfig) -> anyhow::Result<Log> {
    let filter = std::env::var("SOUK_LOG").unwrap_or_else(|_| config.filter.clone());
    let filter =
        EnvFilter::try_new(&filter).map_err(|e| Usage(format!("log filter {filter:?} is not valid: {e}")))?;
    let (queue, guard) = queue(io::stderr(), LINES_MAX, config.format);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue);
    match config.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|e| anyhow!("set up the log: {e}"))?;
    Ok(Log { _writes: guard })
}

/// A bounded queue before a thread that writes to `out`.
fn queue(
    out: impl Write + Send + 'static,
    lines_max: usize,
    format: LogFormat,
) -> (NonBlocking, WorkerGuard) {
    let dropped = Arc::default();
    let out = Accountable { out, format, dropped: Arc::clone(&dropped), failed: 0, told: 0 };
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(lines_max);
    let (queue, guard) = builder.thread_name("souk-log").finish(out);
    // Once: nobody else has it.
    let _ = dropped.set(queue.error_counter());
    (queue, guard)
}

/// The writing end: before each line, how many were dropped since the last one.
struct Accountable<W> {
    out: W,
    format: LogFormat,
    dropped: Arc<OnceLock<ErrorCounter>>,
    /// Lines that could not be written.
    failed: usize,
    told: usize,
}

impl<W: Write> Write for Accountable<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let dropped = self.dropped.get().map_or(0, ErrorCounter::dropped_lines) + self.failed;
        if dropped > self.told
            && self.out.write_all(notice(self.format, dropped - self.told).as_bytes()).is_ok()
        {
            self.told = dropped;
        }
        // Whole, or a notice might come into the middle of it. A disk that is full loses lines too.
        if self.out.write_all(line).is_err() {
            self.failed += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn notice(format: LogFormat, count: usize) -> String {
    let message = "lines were dropped: the log was too slow for them";
    match format {
        LogFormat::Text => format!("WARN souk::log: {message} count={count}\n"),
        LogFormat::Json => {
            let fields = serde_json::json!({"level": "WARN", "target": "souk::log", "message": message, "count": count});
            format!("{fields}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A disk that takes a line when it is told to.
    struct Slow {
        may: mpsc::Receiver<()>,
        written: mpsc::SyncSender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.may.recv();
            let _ = self.written.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whoever_logs_waits_for_no_disk_and_the_log_says_what_it_lacks() {
        let (go, may) = mpsc::sync_channel(1);
        let (written, lines) = mpsc::sync_channel(1_000);
        let (mut log, guard) = queue(Slow { may, written }, 4, LogFormat::Text);
        for line in 0..100 {
            log.write_all(format!("{line}\n").as_bytes()).expect("never fails");
        }
        // From now on the disk is quick.
        drop(go);
        let mut all = String::new();
        while !all.contains("last") {
            // There may be no room yet; then this is counted, too.
            log.write_all(b"last\n").expect("never fails");
            all.extend(lines.recv());
        }
        drop((log, guard));
        all.extend(lines.iter());
        let counts = all.lines().filter_map(|line| line.split_once("count=")?.1.parse::<usize>().ok());
        let told: usize = counts.sum();
        let numbers = all.lines().filter(|line| line.parse::<u32>().is_ok()).count();
        assert!(numbers < 20 && numbers + told >= 100, "{numbers} written, {told} told of: {all}");
    }
}

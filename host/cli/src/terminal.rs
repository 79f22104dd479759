//! What a person sees: steps with a spinner, bars for long work, results. Standard output carries results only, so
//! that it can be piped; progress goes to standard error, and its moving parts only to a terminal.

use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub(crate) const GOOD: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
pub(crate) const WARN: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const BOLD: Style = Style::new().bold();

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// One piece of work that takes a while: a spinner (or a bar) while it runs, one line when it is done.
pub(crate) struct Step {
    title: String,
    bar: ProgressBar,
    since: Instant,
}

impl Step {
    pub(crate) fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = ProgressBar::new_spinner();
        bar.set_style(style("{spinner:.green} {prefix} {wide_msg:.dim} {elapsed:.dim}"));
        Self::with(title, bar)
    }

    /// The same with a known amount of work.
    pub(crate) fn counted(title: impl Into<String>, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        bar.set_style(style(
            "{spinner:.green} {prefix} [{bar:30.green/dim}] {human_pos}/{human_len} {msg:.dim} {eta:.dim}",
        ));
        Self::with(title.into(), bar)
    }

    fn with(title: String, bar: ProgressBar) -> Self {
        bar.set_prefix(title.clone());
        bar.enable_steady_tick(TICK);
        Self { title, bar, since: Instant::now() }
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    pub(crate) fn advance(&self, by: u64) {
        self.bar.inc(by);
    }

    pub(crate) fn done(self, result: &str) {
        self.bar.finish_and_clear();
        let seconds = self.since.elapsed().as_secs_f64();
        anstream::eprintln!("{GOOD}✓{GOOD:#} {} {DIM}{result} ({seconds:.1} s){DIM:#}", self.title);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // A step that is dropped before it is done has failed: the error that follows says why.
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates of this file are well-formed")
        .progress_chars("━╸─")
}

/// A line for a person beside the result.
pub(crate) fn warn(text: &str) {
    anstream::eprintln!("{WARN}warning{WARN:#}: {text}");
}

/// A text that somebody else wrote, fit for a terminal: what would steer it is shown instead. Lines stay lines.
pub(crate) fn tame(text: &str) -> String {
    let mut tamed = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' { tamed.extend(c.escape_unicode()) } else { tamed.push(c) }
    }
    tamed
}

/// `1 row`, `2 rows`, with the number as people write it.
pub(crate) fn counted(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// A result as one line of JSON, for a script.
pub(crate) fn json(value: &impl Serialize) {
    let line = serde_json::to_string(value).expect("results are plain structs with string keys");
    anstream::println!("{line}");
}

/// `18 kB`, for a person.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

//! What happened in a world, and whether it was as it must be. One world lives on one thread, and so do its notes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use tokio::time::Instant;

pub(crate) type Seen = BTreeMap<&'static str, u64>;

#[derive(Default)]
struct Notes {
    began: Option<Instant>,
    /// The story, if somebody listens.
    lines: Option<Vec<String>>,
    seen: Seen,
    violation: Option<String>,
}

thread_local! {
    static NOTES: RefCell<Notes> = RefCell::default();
}

/// What a world has left behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lived {
    pub(crate) seen: Seen,
    pub(crate) violation: Option<String>,
    pub(crate) story: Vec<String>,
}

/// A world begins. To be called in its runtime, whose clock is the story's.
pub(crate) fn begin(listen: bool) {
    let notes = Notes { began: Some(Instant::now()), lines: listen.then(Vec::new), ..Notes::default() };
    NOTES.set(notes);
}

pub(crate) fn end() -> Lived {
    let Notes { lines, seen, violation, .. } = NOTES.take();
    Lived { seen, violation, story: lines.unwrap_or_default() }
}

/// One line: building it costs more than living it, so only if somebody listens.
pub(crate) fn tell(who: &str, what: impl FnOnce() -> String) {
    NOTES.with_borrow_mut(|notes| {
        if let (Some(began), Some(lines)) = (notes.began, &mut notes.lines) {
            let ms = began.elapsed().as_millis();
            lines.push(format!("{:>4}.{:03} s  {who:<12} {}", ms / 1_000, ms % 1_000, what()));
        }
    });
}

/// Something was reached.
pub(crate) fn note(what: &'static str) {
    NOTES.with_borrow_mut(|notes| *notes.seen.entry(what).or_default() += 1);
}

/// Something is not as it must be. The first word counts: what follows may follow from it.
pub(crate) fn violate(what: impl Into<String>) {
    let what = what.into();
    tell("VIOLATION", || what.clone());
    NOTES.with_borrow_mut(|notes| {
        notes.violation.get_or_insert(what);
    });
}

pub(crate) fn must(holds: bool, what: impl FnOnce() -> String) {
    if !holds {
        violate(what());
    }
}

pub(crate) fn is_violated() -> bool {
    NOTES.with_borrow(|notes| notes.violation.is_some())
}

/// What the product logs, as lines of the story.
pub(crate) struct Log;

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        tell("log", || text.trim_end().to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

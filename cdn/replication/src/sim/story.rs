//! What happened in a world, for a person who has to find out why it went wrong.

use std::cell::RefCell;

use crate::{Batch, Control, Part, Tail};

use super::disks::Op;

thread_local! {
    static STORY: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// From here on this thread takes down what happens.
pub(super) fn begin() {
    STORY.set(Some(Vec::new()));
}

/// What has happened since.
pub(super) fn end() -> Vec<String> {
    STORY.take().unwrap_or_default()
}

/// One line, if somebody listens: building it costs more than living it.
pub(super) fn tell(now_ms: u64, who: &str, what: impl FnOnce() -> String) {
    STORY.with_borrow_mut(|story| {
        if let Some(lines) = story {
            lines.push(format!("{:>4}.{:03} s  {who:<16} {}", now_ms / 1_000, now_ms % 1_000, what()));
        }
    });
}

pub(super) fn control(frame: &Control) -> String {
    match frame {
        Control::Hello(hello) => {
            let cursors: Vec<_> = hello
                .cursors
                .iter()
                .filter(|cursor| cursor.version > 0)
                .map(|cursor| (cursor.log, cursor.version, cursor.region_epoch.unwrap_or(0)))
                .collect();
            format!(
                "Hello: epoch {:?}, keeps {}..={}{}, cursors (log, version, history) {cursors:?}",
                hello.epoch,
                hello.min_retained_seq,
                hello.last_seq,
                if hello.diverged { ", DIVERGED" } else { "" }
            )
        }
        Control::Welcome(welcome) => format!(
            "Welcome: history {}, epoch {}, mark {} of {:x?}, turns back {:?}",
            welcome.region_epoch,
            welcome.epoch,
            welcome.hwm,
            welcome.fold.map(crate::Fold::number),
            welcome.resets
        ),
        other => format!("{other:?}"),
    }
}

pub(super) fn batch(batch: &Batch) -> String {
    format!("batch of epoch {}: {}..={}", batch.epoch, batch.first_seq, batch.last_seq())
}

pub(super) fn tail(tail: &Tail) -> String {
    let count = tail.records.len();
    match tail.part {
        Part::Changes => format!("{} changes ({}, {}]: {count} records", tail.log, tail.from, tail.to),
        Part::Snapshot { index, last } => format!(
            "{} snapshot at {}, reading {}, part {index}{}: {count} records",
            tail.log,
            tail.to,
            tail.from,
            if last { " (last)" } else { "" }
        ),
    }
}

/// A run of operations.
pub(super) fn ops(ops: &[Op]) -> String {
    match ops {
        [] => "no operation".to_owned(),
        [one] => format!("operation {one}"),
        [first, .., last] => format!("operations {first}..={last}"),
    }
}

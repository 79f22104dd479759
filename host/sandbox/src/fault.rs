//! Every way in which a guest can fail, by name. The names reach logs, metrics, quotes and headers.

use std::fmt;

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

/// How one call of a hook ended, when not well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The plugin said no, on purpose. Not a failure of the plugin.
    #[error("refused: {message} ({code})")]
    Refused { code: String, message: String },
    /// The guest's own code trapped: a panic, a division by zero, an access out of bounds.
    #[error("trapped: {0}")]
    Trap(String),
    /// The call used up its processor time.
    #[error("ran out of time")]
    Deadline,
    /// The guest wanted more memory or table space than it may have.
    #[error("ran out of memory")]
    Memory,
    /// The guest's calls nested too deeply.
    #[error("ran out of stack")]
    Stack,
    /// The guest called the host too often.
    #[error("called the host too often")]
    HostCalls,
    /// The guest logged too much.
    #[error("logged too much")]
    LogBytes,
    /// The guest's answer breaks the contract: too long, not UTF-8, naming what is not there.
    #[error("gave a bad value: {0}")]
    BadValue(String),
    /// The host had no room for the call: no free instance, no memory or no processor for it. Nothing is known about
    /// the plugin.
    #[error("the machine is too busy")]
    Busy,
    /// The host failed, not the guest.
    #[error("the host failed: {0}")]
    Internal(String),
}

impl Fault {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Trap(_) => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Stack => "stack",
            Self::HostCalls => "host_calls",
            Self::LogBytes => "log_bytes",
            Self::BadValue(_) => "bad_value",
            Self::Busy => "busy",
            Self::Internal(_) => "internal",
        }
    }

    /// Whether the fault says something about the plugin's health. A refusal is an answer, and a full or failing
    /// host would fail for any plugin.
    pub(crate) fn is_the_plugins(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Busy | Self::Internal(_))
    }
}

/// Why a host function ended a call. Travels through wasmtime as the error of that host function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    #[error("host-call budget used up")]
    HostCalls,
    #[error("log budget used up")]
    LogBytes,
    #[error("asked for memory beyond its limit too often")]
    Memory,
    /// Not the guest's doing: the machine gave its thread no processor.
    #[error("got no processor time")]
    Starved,
    /// Nor this: all that there is for its site, or for all sites, is taken.
    #[error("no memory is left for it")]
    NoRoom,
}

/// Longest text of a trap that is kept: a message and a few frames.
const TRAP_BYTES_MAX: usize = 1 << 10;

/// Tells the ways to fail apart. `memory_refused`: the guest was refused memory before it failed; a language's
/// runtime answers that with an abort, and the abort alone would hide the cause.
pub(crate) fn classify(error: &wasmtime::Error, memory_refused: bool) -> Fault {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return match stop {
            Stop::HostCalls => Fault::HostCalls,
            Stop::LogBytes => Fault::LogBytes,
            Stop::Memory => Fault::Memory,
            Stop::Starved | Stop::NoRoom => Fault::Busy,
        };
    }
    if error.downcast_ref::<PoolConcurrencyLimitError>().is_some() {
        return Fault::Busy;
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Fault::Deadline,
        Some(Trap::StackOverflow) => Fault::Stack,
        Some(Trap::AllocationTooLarge) => Fault::Memory,
        // These are raised by the canonical ABI while the host reads a value, not by an instruction of the guest.
        Some(
            trap @ (Trap::StringOutOfBounds
            | Trap::ListOutOfBounds
            | Trap::InvalidDiscriminant
            | Trap::InvalidChar
            | Trap::UnalignedPointer),
        ) => Fault::BadValue(trap.to_string()),
        Some(_) if memory_refused => Fault::Memory,
        Some(trap) => Fault::Trap(describe(trap, error)),
        None if memory_refused => Fault::Memory,
        // Neither a trap nor ours: the canonical ABI refused what the guest passed or returned.
        None => Fault::BadValue(bounded(&error.root_cause().to_string(), TRAP_BYTES_MAX)),
    }
}

/// The trap and the innermost frames: what a merchant needs to find the line.
fn describe(trap: &Trap, error: &wasmtime::Error) -> String {
    const FRAMES_MAX: usize = 6;
    let mut text = trap.to_string();
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let names: Vec<String> = backtrace
            .frames()
            .iter()
            .take(FRAMES_MAX)
            .map(|frame| frame.func_name().map_or_else(|| format!("#{}", frame.func_index()), str::to_owned))
            .collect();
        if !names.is_empty() {
            text = format!("{text}, in {}", names.join(" < "));
        }
    }
    bounded(&text, TRAP_BYTES_MAX)
}

/// One line of at most `bytes_max` bytes: the beginning of `text`, with everything that a terminal or a reader of
/// logs could obey replaced. A guest's text goes to logs and quotes through here, and a line break in it would let
/// the guest write log lines of its own.
pub(crate) fn bounded(text: &str, bytes_max: usize) -> String {
    let beginning = |text: &str| text[..text.floor_char_boundary(bytes_max)].to_owned();
    let cut = beginning(text);
    if !cut.chars().any(is_obeyed) {
        return cut;
    }
    // The replacement may be longer than what it replaces.
    beginning(
        &cut.chars().map(|c| if is_obeyed(c) { char::REPLACEMENT_CHARACTER } else { c }).collect::<String>(),
    )
}

/// Control characters (line breaks, tabs and terminal escapes among them) and Unicode's own line breaks.
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Longest detail of a complaint: it may quote a name that the component gives.
const DETAIL_BYTES_MAX: usize = 1 << 10;

/// One thing that is wrong with a component. `detail` is one bounded line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Stable, for machines: `too_many_functions`, `unknown_import`, …
    pub code: &'static str,
    pub detail: String,
}

impl Complaint {
    /// The detail may come from wasmtime, whose messages have several lines and quote the component.
    pub(crate) fn new(code: &'static str, detail: &str) -> Self {
        Self { code, detail: bounded(detail, DETAIL_BYTES_MAX) }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)
    }
}

/// Why a component was not loaded: everything that is wrong with it, so that its author need not ask twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub complaints: Vec<Complaint>,
}

impl Refused {
    pub(crate) fn because(code: &'static str, detail: impl Into<String>) -> Self {
        Self { complaints: vec![Complaint::new(code, &detail.into())] }
    }

    pub fn has(&self, code: &str) -> bool {
        self.complaints.iter().any(|complaint| complaint.code == code)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("component refused: ")?;
        for (i, complaint) in self.complaints.iter().enumerate() {
            write!(f, "{}{complaint}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// The engine itself could not be made: an unsuitable machine or limits that contradict each other.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot set up the WebAssembly engine: {0}")]
    Setup(String),
    #[error("cannot start the engine's clock thread: {0}")]
    Ticker(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_text_is_one_line_and_within_its_bounds() {
        let forged = "fine\nERROR souk: all is lost\r\n\tat x\u{1b}[31m\u{85}\u{2028}end";
        let shown = bounded(forged, 200);
        assert!(!shown.chars().any(is_obeyed), "{shown:?}");
        assert!(shown.starts_with("fine\u{fffd}ERROR") && shown.ends_with("end"), "{shown:?}");
        // The replacements are longer than what they replace.
        assert_eq!(bounded(&"\n".repeat(100), 100).len(), 99);
        assert_eq!(bounded("\u{e9}\u{e9}", 3), "\u{e9}");
        assert_eq!(Refused::because("x", "a\nb").to_string(), "component refused: a\u{fffd}b (x)");
    }
}

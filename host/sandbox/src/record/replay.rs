//! The same call again, and how two runs of it differ.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use souk_commerce::id::Digest;

use super::recording::{HostCall, Limits, Outcome, RECORDING_BYTES_MAX, Recording, RecordingError};
use super::reel::{Playback, Reel};
use super::subject::Subject;
use crate::admit::CONTRACT;
use crate::fault::{Fault, bounded};
use crate::hook::{Allowance, HookPlugin, Invocation, SiteData};
use crate::limits::HookLimits;

/// Processor time of a replay. The recorded deadline is that of a machine that served shoppers; here a slow machine,
/// or an engine that counts instructions, must not change the outcome. Only a loop without end reaches it.
pub const REPLAY_DEADLINE: Duration = Duration::from_secs(20);

/// One run of a recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    pub component: Digest,
    pub host_calls: Vec<HostCall>,
    pub outcome: Outcome,
    /// Questions that the recorded run did not ask, so that there is no answer: they were told "none".
    pub unrecorded: Vec<String>,
    /// Counted where the plugin was loaded into a metered engine.
    pub instructions: Option<u64>,
}

/// Why a recording could not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Recording(#[from] RecordingError),
    #[error("the component has no {0} hook")]
    NoHook(souk_commerce::site::Hook),
    #[error("this machine could not run the call: {0}")]
    Host(Fault),
}

/// In what a run is not the recorded one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Difference {
    /// Another component was run: the rest may follow from that.
    Component {
        recorded: Digest,
        replayed: Digest,
    },
    /// The recording was made with another version of the contract.
    Contract {
        recorded: String,
        replayed: String,
    },
    /// The first host call that is not the same. None: there was no further call.
    HostCall {
        index: usize,
        recorded: Option<String>,
        replayed: Option<String>,
    },
    Outcome {
        recorded: String,
        replayed: String,
    },
    /// The recorded call ran out of its processor time, which no other machine has exactly: it has nothing that a
    /// replay could be held against.
    NotTimed {
        replayed: String,
    },
}

impl HookLimits {
    /// Those of a recorded call, with time enough for any machine.
    pub fn for_replay(recorded: &Limits) -> Self {
        let size = |bytes: u64, ceiling: usize| usize::try_from(bytes).unwrap_or(usize::MAX).min(ceiling);
        let own = Self::default();
        Self {
            // A recording is a file from somewhere: it may ask for more than the platform gives, not for the machine.
            memory_bytes_max: size(recorded.memory_bytes, own.memory_bytes_max * 16),
            table_elements_max: size(recorded.table_elements, own.table_elements_max * 16),
            stack_bytes_max: size(recorded.stack_bytes, own.stack_bytes_max).max(64 << 10),
            host_calls_max: recorded.host_calls,
            log_bytes_max: size(recorded.log_bytes, own.log_bytes_max * 16),
            lifted_bytes_max: size(recorded.lifted_bytes, own.lifted_bytes_max * 16),
            deadline: REPLAY_DEADLINE,
            wall_max: REPLAY_DEADLINE * 3,
            ..own
        }
    }
}

impl Limits {
    pub(crate) fn of(limits: &HookLimits, allowance: Allowance) -> Self {
        Self {
            memory_bytes: limits.memory_bytes_max as u64,
            table_elements: limits.table_elements_max as u64,
            stack_bytes: limits.stack_bytes_max as u64,
            host_calls: allowance.host_calls,
            log_bytes: limits.log_bytes_max as u64,
            lifted_bytes: limits.lifted_bytes_max as u64,
            deadline_us: u64::try_from(allowance.deadline.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Whether one engine serves both: all but what is given per call.
    pub fn same_engine(&self, other: &Self) -> bool {
        let engine = |limits: &Self| {
            (
                limits.memory_bytes,
                limits.table_elements,
                limits.stack_bytes,
                limits.log_bytes,
                limits.lifted_bytes,
            )
        };
        engine(self) == engine(other)
    }
}

/// Runs a recorded call on `plugin`, whose engine should have [`HookLimits::for_replay`] of this recording.
pub fn replay(plugin: &HookPlugin, recording: &Recording) -> Result<Replayed, ReplayError> {
    if let Some(bytes) = recording.omitted_bytes {
        return Err(RecordingError::Omitted(bytes).into());
    }
    if !plugin.hooks().contains(&recording.hook) {
        return Err(ReplayError::NoHook(recording.hook));
    }
    let playback = Playback::of(&recording.host_calls);
    let reel = Reel::over(Arc::clone(&playback) as Arc<dyn SiteData>);
    let data = Arc::clone(&reel) as Arc<dyn SiteData>;
    let call = recording.context.call(&data);
    let allowance = Allowance { deadline: REPLAY_DEADLINE, host_calls: recording.limits.host_calls };
    let invocation = Invocation::new(&call, &recording.plugin, &recording.context.settings, allowance);
    let outcome = Subject::from(&recording.input).ask(plugin, &invocation).map_err(ReplayError::Host)?;
    let taken = reel.take();
    Ok(Replayed {
        component: plugin.digest(),
        host_calls: taken.calls,
        outcome,
        unrecorded: playback.unrecorded(),
        instructions: invocation.instructions.get(),
    })
}

/// Everything in which the run is not the recorded one; nothing where they are the same, bit for bit.
pub fn compare(recording: &Recording, replayed: &Replayed) -> Vec<Difference> {
    let mut differences = Vec::new();
    if recording.component != replayed.component {
        differences
            .push(Difference::Component { recorded: recording.component, replayed: replayed.component });
    }
    if recording.contract != CONTRACT {
        differences.push(Difference::Contract {
            recorded: recording.contract.clone(),
            replayed: CONTRACT.to_owned(),
        });
    }
    if matches!(&recording.outcome, Outcome::Failed { fault, .. } if *fault == Fault::Deadline.name())
        && recording.outcome != replayed.outcome
    {
        differences.push(Difference::NotTimed { replayed: shown(&replayed.outcome) });
        return differences;
    }
    // Compared as their canonical encodings, because that is what "bit for bit" is about.
    let (ours, theirs) = (&recording.host_calls, &replayed.host_calls);
    let first = (0..ours.len().max(theirs.len())).find(|&i| ours.get(i).map(text) != theirs.get(i).map(text));
    if let Some(index) = first {
        differences.push(Difference::HostCall {
            index,
            recorded: ours.get(index).map(shown),
            replayed: theirs.get(index).map(shown),
        });
    }
    if text(&recording.outcome) != text(&replayed.outcome) {
        differences.push(Difference::Outcome {
            recorded: shown(&recording.outcome),
            replayed: shown(&replayed.outcome),
        });
    }
    differences
}

/// Enough of a value to see what it is.
const SHOWN_BYTES_MAX: usize = 400;

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("these types have string keys only and no failing serialiser")
}

fn shown<T: Serialize>(value: &T) -> String {
    bounded(&text(value), SHOWN_BYTES_MAX)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = |call: &Option<String>| call.clone().unwrap_or_else(|| "no further call".to_owned());
        match self {
            Self::Component { recorded, replayed } => {
                write!(f, "another component: {recorded} was recorded, {replayed} was run")
            }
            Self::Contract { recorded, replayed } => {
                write!(f, "recorded with souk:plugin {recorded}, run with {replayed}")
            }
            Self::HostCall { index, recorded, replayed } => write!(
                f,
                "host call {index} differs: {} was recorded, {} was made",
                call(recorded),
                call(replayed)
            ),
            Self::Outcome { recorded, replayed } => {
                write!(f, "the outcome differs: {recorded} was recorded, {replayed} came out")
            }
            Self::NotTimed { replayed } => {
                write!(f, "the recorded call ran out of time; here it ended: {replayed}")
            }
        }
    }
}

impl Recording {
    /// Gives up the call's substance, because it has more bytes than a recording may.
    pub(crate) fn omit(&mut self, bytes: usize) {
        self.omitted_bytes = Some(bytes.max(RECORDING_BYTES_MAX + 1) as u64);
        self.input = self.input.emptied();
        self.host_calls = Vec::new();
        self.outcome = self.outcome.emptied();
    }
}

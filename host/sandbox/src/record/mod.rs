//! Recording a call of a hook, and running it again.
//!
//! ```text
//! live call ──(its release is sampled)──▶ studio's queue ─▶ second run, shopper hashed ─▶ Recorder::take
//!                                                            │ every host call and its answer
//!                                                            ▼
//!                        Recording (JSON, at most 256 KiB) ─▶ replay, anywhere, bit for bit
//! ```
//!
//! A hook plugin has no clock, no chance and no files: its arguments and the host's answers are all that it can
//! know. So a call is recorded at exactly that border, and a replay that differs in one bit means that the
//! component, the contract or the engine differs.
//!
//! **No shopper data.** What is recorded is not the live call but a second run of it, whose context names the shopper
//! by a keyed hash ([`redact`]). So the recording is whole (it replays, because the guest never saw more) and holds
//! nothing of the shopper, not even in what the guest logged. A plugin whose answer depends on who the shopper is may
//! answer otherwise then: such a recording says so ([`Live::Differs`]).
//!
//! * [`recording`]: what a recording holds, and its encoding. [`subject`]: what a call is about, in the host's values.
//! * [`studio`]: the queue, the thread of second runs, and what a [`crate::Chain`] is given.
//! * [`fixture`]: a recording as a test that people read and write.
//! * [`replay`]: the same call again, and how two runs differ. [`money`]: what that does to each line's price.
//!
//! What this module refuses to know: where recordings are kept and who may read them. A node gives it a [`Recorder`].

mod fixture;
mod money;
mod recording;
mod redact;
mod reel;
mod replay;
mod studio;
mod subject;

use souk_commerce::journal::CallId;

pub use fixture::{FIXTURE_BYTES_MAX, FIXTURE_VERSION, Fixture, FixtureContext, FixtureError};
pub use money::{LineChange, MoneyChange, money_change};
pub use recording::{
    Context, Good, HostCall, Input, Limits, Line, Live, Note, Outcome, RECORDING_BYTES_MAX, Recording,
    RecordingError, VERSION, Value,
};
pub use reel::Playback;
pub use replay::{Difference, REPLAY_DEADLINE, ReplayError, Replayed, compare, replay};
pub(crate) use studio::Tape;
pub use studio::{Studio, StudioMetrics};
pub(crate) use subject::Answer;
pub use subject::{LineOf, Subject};

/// Keeps the recordings.
pub trait Recorder: Send + Sync {
    /// Takes a finished recording; `id` is the name of the live call. Called on the studio's own thread: calls that
    /// are to be recorded wait in its queue meanwhile, and go unrecorded when that is full.
    fn take(&self, id: CallId, recording: Recording);
}

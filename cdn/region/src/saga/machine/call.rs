//! A call of the provider whose outcome is not known: how long its key is trusted, when it is dead, and when it is tried again.

use super::Op;

/// From when on the provider is asked what it has, and not only told the same again. A provider's search may be a minute
/// behind its own books.
pub(super) const LOOK_UP_AFTER_MS: u64 = 2 * 60_000;
/// A call that the provider has answered with a failure of its own, and that a look-up does not find so long after, has
/// done nothing: no request that was answered is still under way.
pub(super) const ANSWERED_DEAD_MS: u64 = 10 * 60_000;
/// Providers remember a key for 24 hours at least. After this it is not sent any more, because it might be taken for a new
/// one; what a look-up does not find is dead.
pub(crate) const KEY_TRUSTED_MS: u64 = 20 * 3_600_000;
/// Before the first repetition; it doubles from there.
const PAUSE_MIN_MS: u64 = 200;
/// A provider that is down for an hour is asked again within five minutes of its return.
pub(super) const PAUSE_MAX_MS: u64 = 5 * 60_000;
/// What a provider has refused is asked for again, because what it was refused for may pass (an empty balance), and each time
/// under a key and in a row of its own: four a day, until somebody sees to it.
const REFUSED_PAUSE_MAX_MS: u64 = 6 * 3_600_000;
/// The longest pause is reached before.
const PAUSE_DOUBLINGS_MAX: u32 = 20;

/// A call whose outcome is not known. It was written down before it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) attempt: u32,
    /// When it was written down.
    pub(crate) first_ms: u64,
    /// Sendings that have ended, with whatever answer.
    pub(crate) tries: u32,
    /// Somebody is sending it, or has died over it.
    pub(crate) sent: bool,
    /// It may have been carried out.
    pub(crate) maybe: bool,
    /// The provider has answered that it failed by itself.
    pub(crate) answered: bool,
    /// The provider has refused it for good.
    pub(crate) refused: bool,
    /// Looked up since it was resumed, without a result. Not stored.
    pub(super) looked: bool,
    /// Tried since it was resumed, without a result. Not stored.
    pub(super) pausing: bool,
}

impl Call {
    /// As read from its row.
    pub(crate) fn stored(op: Op, attempt: u32, first_ms: u64) -> Self {
        Self {
            op,
            attempt,
            first_ms,
            tries: 0,
            sent: false,
            maybe: false,
            answered: false,
            refused: false,
            looked: false,
            pausing: false,
        }
    }

    pub(super) fn is_dead(&self, now_ms: u64) -> bool {
        let age_ms = now_ms.saturating_sub(self.first_ms);
        // An authorisation is searched for, and a search lags; what is asked of a payment is read from that payment.
        let refused = self.refused && (self.op != Op::Authorize || age_ms >= LOOK_UP_AFTER_MS);
        refused || age_ms >= KEY_TRUSTED_MS || (self.answered && age_ms >= ANSWERED_DEAD_MS)
    }

    /// Before it is tried again.
    pub(super) fn pause_ms(&self) -> u64 {
        // An attempt that stands where another one was refused, and that was not let in either.
        let is_refused_anew = self.attempt > 1 && !self.maybe;
        let most_ms = if is_refused_anew { REFUSED_PAUSE_MAX_MS } else { PAUSE_MAX_MS };
        PAUSE_MIN_MS.saturating_mul(1 << self.tries.min(PAUSE_DOUBLINGS_MAX)).min(most_ms)
    }
}

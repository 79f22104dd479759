//! When to ask for a certificate. Pure: the time and the dice are arguments.

use std::time::Duration;

use crate::tls::Validity;

/// After a failure that costs the authority nothing to speak of: it was not reached, or said that it has trouble itself. An
/// hour at most, of the thirty days that a renewal has.
const FREE: Pause = Pause { first: Duration::from_secs(1), most: Duration::from_secs(3_600) };
/// After one that it counts: it looked at a name, and did not like what it saw. The best-known authority lets five of these
/// happen in an hour for a name; at 5, 10, 20 and 40 minutes it sees four in the first.
const COUNTED: Pause = Pause { first: Duration::from_secs(300), most: Duration::from_secs(12 * 3_600) };
/// After the word that one has asked too often, which is for an hour at least.
const LIMITED: Pause = Pause { first: Duration::from_secs(3_600), most: Duration::from_secs(24 * 3_600) };

/// What a failure costs the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Costs {
    Nothing,
    ALook,
    ItsPatience,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    first: Duration,
    most: Duration,
}

/// After two thirds of its life, or up to a thirtieth of it sooner: of 90 days, the 58th to the 60th. Nodes that got theirs
/// together do not come together again.
pub(super) fn renewal_ms(validity: Validity, dice: u32) -> u64 {
    let life_ms = validity.until_ms.saturating_sub(validity.from_ms);
    let sooner_ms = share(life_ms / 30, dice);
    validity.from_ms.saturating_add(life_ms / 3 * 2).saturating_sub(sooner_ms)
}

/// The same for one that has just come, and not before a tenth of its life: an authority that hands out old certificates, and
/// a clock that is wrong, must not make a node ask without end.
pub(super) fn first_renewal_ms(validity: Validity, now_ms: u64, dice: u32) -> u64 {
    let life_ms = validity.until_ms.saturating_sub(validity.from_ms);
    renewal_ms(validity, dice).max(now_ms.saturating_add((life_ms / 10).max(1_000)))
}

/// How long to wait after so many failures in a row: twice as long each time, less up to a quarter of it.
pub(super) fn pause(costs: Costs, failures: u32, dice: u32) -> Duration {
    let Pause { first, most } = match costs {
        Costs::Nothing => FREE,
        Costs::ALook => COUNTED,
        Costs::ItsPatience => LIMITED,
    };
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    let whole = first.saturating_mul(doubled).min(most);
    let whole_ms = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(whole_ms - share(whole_ms / 4, dice))
}

/// The part of `whole` that the dice say.
fn share(whole: u64, dice: u32) -> u64 {
    let share = u128::from(whole) * u128::from(dice) / u128::from(u32::MAX);
    u64::try_from(share).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 3_600 * 1_000;
    const FROM_MS: u64 = 1_800_000_000_000;

    #[test]
    fn a_certificate_of_ninety_days_is_renewed_between_its_57th_and_60th() {
        let validity = Validity { from_ms: FROM_MS, until_ms: FROM_MS + 90 * DAY_MS };
        assert_eq!(renewal_ms(validity, 0), FROM_MS + 60 * DAY_MS);
        assert_eq!(renewal_ms(validity, u32::MAX), FROM_MS + 57 * DAY_MS);
        let some: Vec<_> = (0..100).map(|n| renewal_ms(validity, n * (u32::MAX / 100))).collect();
        assert!(some.is_sorted_by(|a, b| a > b), "spread, and not in a few heaps: {some:?}");
    }

    #[test]
    fn nobody_is_asked_without_end() {
        // Two thirds of its life have passed when it comes, as with a clock that is wrong.
        let validity = Validity { from_ms: FROM_MS, until_ms: FROM_MS + 10 * DAY_MS };
        let now_ms = FROM_MS + 9 * DAY_MS;
        assert_eq!(first_renewal_ms(validity, now_ms, 0), now_ms + DAY_MS);
        let fresh = first_renewal_ms(validity, FROM_MS, 0);
        assert_eq!(fresh, renewal_ms(validity, 0));
        for odd in [
            Validity { from_ms: FROM_MS, until_ms: FROM_MS },
            Validity { from_ms: FROM_MS, until_ms: 0 },
            Validity { from_ms: 0, until_ms: u64::MAX },
        ] {
            assert!(first_renewal_ms(odd, now_ms, u32::MAX) > now_ms, "{odd:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_their_limit_and_are_never_alike() {
        let pauses = |costs, dice| (1..=20).map(move |failures| pause(costs, failures, dice).as_secs());
        let free: Vec<_> = pauses(Costs::Nothing, 0).collect();
        assert_eq!(free[..5], [1, 2, 4, 8, 16]);
        assert_eq!(free[19], 3_600);
        let counted: Vec<_> = pauses(Costs::ALook, 0).collect();
        assert_eq!(counted[..4], [300, 600, 1_200, 2_400]);
        assert_eq!(counted[19], 12 * 3_600);
        assert_eq!(pauses(Costs::ItsPatience, 0).next(), Some(3_600));
        assert_eq!(pause(Costs::ALook, 1, u32::MAX), Duration::from_secs(225));
        assert!(pause(Costs::Nothing, 1, u32::MAX) > Duration::ZERO);
        assert_eq!(pause(Costs::Nothing, u32::MAX, 0), FREE.most);
    }
}

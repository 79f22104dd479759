//! Which epoch a node sends in. Pure: what the node says, what the region keeps, and the rule.

use crate::{EpochNo, Hello, NodeState};

/// What to do about a node's epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochDecision {
    /// Go on in the epoch that both know.
    Keep(NodeState),
    /// Seal what was, start this one.
    Mint(EpochNo),
    /// There is no number left.
    Exhausted,
}

/// Decides the epoch of a node that says hello.
///
/// An epoch goes on only when the numbers of the region's mark and of the operations that the node keeps join without a gap.
/// In every other case a new number is the only way to be sure that (node, epoch, seq) names one operation: a new or wiped
/// node; a node disk restored to before the mark; a region restored to before what the node has trimmed.
///
/// Only numbers are compared, not what they name, so one case is not seen: a node disk restored to before the mark that
/// accepts operations *past the mark* before its first contact with the region. Its numbers then join, but those up to the
/// mark name other operations than the region has, and these are skipped as known: they are lost. Until the mark is bound to
/// the content before it, a restored node disk must not be put into service; see `docs/RESTORE.md`.
#[must_use]
pub fn decide_epoch(hello: &Hello, kept: Option<NodeState>) -> EpochDecision {
    if let (Some(state), Some(epoch)) = (kept, hello.epoch)
        && state.epoch == epoch
        && hello.last_seq >= state.hwm
        && hello.min_retained_seq <= state.hwm.saturating_add(1)
    {
        return EpochDecision::Keep(state);
    }
    let newest = hello.epoch.unwrap_or(0).max(kept.map_or(0, |state| state.epoch));
    newest.checked_add(1).map_or(EpochDecision::Exhausted, EpochDecision::Mint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(epoch: Option<u32>, (first, last): (u64, u64), state: Option<(u32, u64)>) -> EpochDecision {
        let hello = Hello { epoch, min_retained_seq: first, last_seq: last, ..Hello::default() };
        decide_epoch(&hello, state.map(|(epoch, hwm)| NodeState { epoch, hwm }))
    }

    #[test]
    fn an_epoch_goes_on_while_the_outbox_joins_the_mark() {
        let keep = |epoch, hwm| EpochDecision::Keep(NodeState { epoch, hwm });
        assert_eq!(decide(Some(3), (41, 90), Some((3, 40))), keep(3, 40));
        assert_eq!(decide(Some(3), (20, 90), Some((3, 40))), keep(3, 40));
        assert_eq!(decide(Some(3), (41, 40), Some((3, 40))), keep(3, 40));
    }

    #[test]
    fn numbers_alone_do_not_show_a_restored_disk_that_has_overtaken_its_mark() {
        // Restored to 35 of 40, and 10 accepted since: 36 to 40 name other operations here than at the region. When the mark
        // is bound to content this has to become a new number.
        let kept = EpochDecision::Keep(NodeState { epoch: 3, hwm: 40 });
        assert_eq!(decide(Some(3), (20, 45), Some((3, 40))), kept);
    }

    #[test]
    fn everything_else_gets_a_new_number() {
        use EpochDecision::Mint;
        assert_eq!(decide(None, (1, 0), None), Mint(1), "a new node");
        assert_eq!(decide(None, (1, 0), Some((3, 40))), Mint(4), "a wiped node");
        assert_eq!(decide(Some(3), (20, 39), Some((3, 40))), Mint(4), "an outbox restored from a backup");
        assert_eq!(decide(Some(3), (42, 90), Some((3, 40))), Mint(4), "a region restored from a backup");
        assert_eq!(
            decide(Some(2), (1, 90), Some((3, 0))),
            Mint(4),
            "a node that fell before it began its epoch"
        );
        assert_eq!(decide(Some(5), (1, 90), Some((3, 40))), Mint(6), "a region behind its own epochs");
        assert_eq!(decide(Some(5), (1, 90), None), Mint(6), "a region that never saw this node");
        assert_eq!(decide(Some(u32::MAX), (1, 90), None), EpochDecision::Exhausted);
    }
}

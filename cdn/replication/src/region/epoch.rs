//! Which epoch a node sends in. Pure: what the node says, what the region keeps, and the rule.

use crate::{
    EpochNo, Hello, NodeState, Seq,
    planted::{Bug, planted},
};

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
/// Numbers alone do not show a node disk restored to before the mark that accepts operations *past the mark* before its first
/// contact with the region: those up to the mark name other operations than the region has. So Welcome tells what the mark
/// stands for ([`crate::Fold`]), the node compares, and comes back with `diverged` in Hello when it is not the same.
#[must_use]
pub fn decide_epoch(hello: &Hello, kept: Option<NodeState>) -> EpochDecision {
    if let (Some(state), Some(epoch)) = (kept, hello.epoch)
        && state.epoch == epoch
        && !hello.diverged
        && (hello.last_seq >= state.hwm || planted(Bug::EpochKept))
        && hello.min_retained_seq <= state.hwm.saturating_add(1)
    {
        return EpochDecision::Keep(state);
    }
    let newest = hello.epoch.unwrap_or(0).max(kept.map_or(0, |state| state.epoch));
    newest.checked_add(1).map_or(EpochDecision::Exhausted, EpochDecision::Mint)
}

/// Operations that a node has accepted, that the region lacks, and that the node has not kept: told by number, since nobody can
/// bring them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Of this epoch.
    pub epoch: EpochNo,
    /// From this one on
    pub first: Seq,
    /// up to this one. `None`: how many there were, or whether there were any, is not known to either side.
    pub last: Option<Seq>,
}

/// What is lost when this node meets a region that knows it in this state: nothing, unless the region was restored from a
/// backup that is older than what the node keeps.
#[must_use]
pub fn reckon(hello: &Hello, kept: Option<NodeState>) -> Vec<Gone> {
    let Some(epoch) = hello.epoch else { return Vec::new() };
    let hwm = kept.filter(|state| state.epoch == epoch).map_or(0, |state| state.hwm);
    let mut gone = Vec::new();
    match kept {
        // The node has missed the beginning of its epoch: it is behind, not the region.
        Some(state) if state.epoch > epoch => return gone,
        // The node has moved what it kept of this epoch into a later one, and does not know how far back that reached.
        Some(state) if state.epoch < epoch => {
            gone.push(Gone { epoch: state.epoch, first: state.hwm.saturating_add(1), last: None });
        }
        _ => {}
    }
    let last = hello.min_retained_seq.saturating_sub(1);
    if last > hwm {
        gone.push(Gone { epoch, first: hwm + 1, last: Some(last) });
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_of(epoch: u32, hwm: u64) -> NodeState {
        NodeState { epoch, hwm, fold: None }
    }

    fn decide(epoch: Option<u32>, (first, last): (u64, u64), state: Option<(u32, u64)>) -> EpochDecision {
        let hello = Hello { epoch, min_retained_seq: first, last_seq: last, ..Hello::default() };
        decide_epoch(&hello, state.map(|(epoch, hwm)| state_of(epoch, hwm)))
    }

    #[test]
    fn an_epoch_goes_on_while_the_outbox_joins_the_mark() {
        let keep = |epoch, hwm| EpochDecision::Keep(state_of(epoch, hwm));
        assert_eq!(decide(Some(3), (41, 90), Some((3, 40))), keep(3, 40));
        assert_eq!(decide(Some(3), (20, 90), Some((3, 40))), keep(3, 40));
        assert_eq!(decide(Some(3), (41, 40), Some((3, 40))), keep(3, 40));
    }

    #[test]
    fn a_node_that_has_found_other_operations_below_the_mark_gets_a_new_number() {
        // Restored to 35 of 40, and 10 accepted since: 36 to 40 name other operations here than at the region.
        let hello =
            Hello { epoch: Some(3), min_retained_seq: 20, last_seq: 45, diverged: true, ..Hello::default() };
        assert_eq!(decide_epoch(&hello, Some(state_of(3, 40))), EpochDecision::Mint(4));
        let overtaken = Hello { epoch: Some(5), ..hello };
        assert_eq!(decide_epoch(&overtaken, Some(state_of(3, 40))), EpochDecision::Mint(6));
    }

    #[test]
    fn what_is_gone_is_told_by_number() {
        let of = |epoch, (first, last), state: Option<(u32, u64)>| {
            let hello = Hello { epoch, min_retained_seq: first, last_seq: last, ..Hello::default() };
            let gone = reckon(&hello, state.map(|(epoch, hwm)| state_of(epoch, hwm)));
            gone.into_iter().map(|Gone { epoch, first, last }| (epoch, first, last)).collect::<Vec<_>>()
        };
        assert_eq!(of(Some(3), (41, 90), Some((3, 40))), [], "nothing was restored");
        assert_eq!(of(Some(3), (20, 90), Some((3, 40))), [], "the node has kept enough");
        assert_eq!(of(Some(3), (841, 900), Some((3, 811))), [(3, 812, Some(840))]);
        assert_eq!(of(Some(3), (91, 90), Some((3, 40))), [(3, 41, Some(90))], "it has kept nothing");
        assert_eq!(of(Some(1), (5, 9), None), [(1, 1, Some(4))], "a backup from before the node");
        assert_eq!(of(Some(4), (7, 9), Some((3, 40))), [(3, 41, None), (4, 1, Some(6))]);
        assert_eq!(of(Some(4), (1, 9), Some((3, 40))), [(3, 41, None)], "what came before is not known");
        assert_eq!(of(Some(2), (30, 90), Some((3, 0))), [], "the node is behind");
        assert_eq!(of(None, (1, 0), Some((3, 40))), [], "a wiped node");
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

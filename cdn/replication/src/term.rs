//! Terms: how many homes a region has had. Pure: two numbers, and who is refused.
//!
//! A region has one home, and perhaps a standby elsewhere that can be made its home. The first home is of term 1; each that
//! takes over is of the next. A node keeps the greatest that it has met and says it; whoever is of a lower one has been
//! replaced, whatever it believes of itself.

/// The number of a home of a region.
pub type Term = u64;

/// The term of a region that has never been taken over, and of one of a release that does not say.
pub const FIRST_TERM: Term = 1;

/// Whether a home of term `own` has been replaced, as far as somebody who has met `met` can know. 0 is [`FIRST_TERM`]: of a
/// release that does not say.
#[must_use]
pub fn is_replaced(own: Term, met: Term) -> bool {
    own.max(FIRST_TERM) < met.max(FIRST_TERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_replaced_by_a_later_one_only() {
        assert!(is_replaced(1, 2));
        assert!(is_replaced(0, 2), "a release that does not say has never taken over");
        assert!(!is_replaced(2, 2));
        assert!(!is_replaced(3, 2), "the node is behind, not the region");
        assert!(!is_replaced(0, 1) && !is_replaced(1, 0), "neither of two releases refuses the other");
    }
}

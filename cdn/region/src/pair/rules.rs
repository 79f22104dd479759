//! What a region makes of the other one of its pair when they meet. Pure: two words about who is who, and what follows.

use souk_replication::{Term, is_replaced};

use crate::store::pair::frame::{Greeting, PROTOCOL, StreamId};
use crate::store::pair::standing::Standing;

/// What a region has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The other one is our standby, and wants our rows.
    Serve,
    /// The other one is our home.
    Follow,
    /// There is, or was, a later home than we are: we have been replaced.
    Yield { to: Term },
    /// Nothing; why, for people.
    Stay(&'static str),
    /// Both are home in one term. No takeover makes that: two were set up apart, or a backup was restored.
    Twins,
    /// It is a process of this region's own store.
    Itself,
}

/// What an operator is told of [`Verdict::Twins`].
pub(crate) const TWINS: &str = "the other region is home in the same term: stop one of the two now, and make it the standby \
                                (souk region follow)";
/// And of [`Verdict::Itself`].
pub(crate) const ITSELF: &str =
    "[pair] addrs names this region's own link: name where the other region listens";

/// A region of such a standing, whose changes are noted in this stream, meets one that says so.
pub(crate) fn meet(own: Standing, stream: Option<StreamId>, other: &Greeting) -> Verdict {
    if stream.is_some() && stream == other.stream.map(|stream| *stream) {
        return Verdict::Itself;
    }
    // Whoever has met a later home is believed, whatever he is and speaks: a release that cannot be followed can have taken over.
    if let Standing::Home { term } = own
        && is_replaced(term, other.term)
    {
        return Verdict::Yield { to: other.term };
    }
    if other.protocol != PROTOCOL {
        return Verdict::Stay("the other region speaks another protocol: bring both to one release");
    }
    match (own, other.role.as_str()) {
        (Standing::Home { term }, "home") if term == other.term => Verdict::Twins,
        (Standing::Home { .. }, "home") => {
            Verdict::Stay("the other region believes to be home, and learns that it is not")
        }
        (Standing::Home { .. }, "standby") if other.follows => Verdict::Serve,
        (Standing::Home { .. }, _) => Verdict::Stay("the other region is not home, and does not follow"),
        (Standing::Standby { met, .. }, "home") if is_replaced(other.term, met) => {
            Verdict::Stay("the other region is a home that was replaced, and learns it")
        }
        (Standing::Standby { .. }, "home") => Verdict::Follow,
        (Standing::Standby { .. }, _) => Verdict::Stay("neither region is home: one has to take over"),
        (Standing::Replaced { .. }, _) => {
            Verdict::Stay("this region was replaced: make it the standby (souk region follow)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::pair::standing::Followed;

    fn says(role: &str, term: Term) -> Greeting {
        Greeting {
            protocol: PROTOCOL,
            role: role.to_owned(),
            term,
            software: String::new(),
            holds: None,
            seal_key: None,
            follows: role == "standby",
            stream: None,
        }
    }

    fn standby(met: Term) -> Standing {
        let followed = Followed { stream: [1; 16], seq: 9, term: met, at_ms: 0 };
        Standing::Standby { followed: Some(followed), met }
    }

    #[test]
    fn a_home_gives_way_to_whoever_has_met_a_later_one() {
        let home = |term| Standing::Home { term };
        for role in ["home", "standby", "replaced", "of a later release"] {
            assert_eq!(meet(home(1), None, &says(role, 2)), Verdict::Yield { to: 2 }, "{role}");
        }
        assert_eq!(meet(home(2), None, &says("home", 2)), Verdict::Twins);
        assert!(matches!(meet(home(3), None, &says("home", 2)), Verdict::Stay(_)), "it learns it from us");
        assert_eq!(meet(home(2), None, &says("standby", 2)), Verdict::Serve);
        assert_eq!(meet(home(2), None, &says("standby", 1)), Verdict::Serve, "it has met nobody since");
        let stream = Some([7; 16].into());
        let sister = Greeting { stream, ..says("home", 2) };
        assert_eq!(meet(home(2), Some([7; 16]), &sister), Verdict::Itself);
        assert_eq!(meet(home(2), Some([8; 16]), &sister), Verdict::Twins);
        let only_asks = Greeting { follows: false, ..says("standby", 2) };
        assert!(matches!(meet(home(2), None, &only_asks), Verdict::Stay(_)));
    }

    #[test]
    fn a_standby_follows_no_home_that_was_replaced() {
        assert_eq!(meet(standby(2), None, &says("home", 2)), Verdict::Follow);
        assert_eq!(meet(standby(2), None, &says("home", 3)), Verdict::Follow);
        assert!(matches!(meet(standby(2), None, &says("home", 1)), Verdict::Stay(_)));
        assert!(matches!(meet(standby(2), None, &says("standby", 2)), Verdict::Stay(_)));
        let empty = Standing::Standby { followed: None, met: 1 };
        assert_eq!(meet(empty, None, &says("home", 1)), Verdict::Follow);
        let replaced = Standing::Replaced { term: 1, by: 2 };
        assert!(matches!(meet(replaced, None, &says("home", 2)), Verdict::Stay(_)), "an operator decides");
    }

    #[test]
    fn another_protocol_is_not_guessed_at() {
        let other = |role, term| Greeting { protocol: PROTOCOL + 1, ..says(role, term) };
        for role in ["home", "standby"] {
            assert!(matches!(meet(Standing::Home { term: 1 }, None, &other(role, 1)), Verdict::Stay(_)));
            assert!(matches!(meet(standby(1), None, &other(role, 9)), Verdict::Stay(_)));
        }
    }

    #[test]
    fn a_home_gives_way_to_a_later_one_of_another_protocol() {
        for role in ["home", "standby", "of a later release"] {
            let other = Greeting { protocol: PROTOCOL + 1, ..says(role, 9) };
            assert_eq!(meet(Standing::Home { term: 1 }, None, &other), Verdict::Yield { to: 9 }, "{role}");
        }
    }
}

//! Who may do what: one table for every request of the control API.
//!
//! A site comes from the token, never from the path alone. Whatever lies at another site does not exist for the bearer
//! of a token, whether it exists or not.

use std::collections::BTreeSet;

use souk_commerce::id::SiteId;

use crate::store::token::Verb;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Principal {
    /// Whoever runs the region.
    Operator,
    /// The bearer of one of a site's tokens.
    Merchant { site: SiteId, verbs: BTreeSet<Verb> },
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// What a token may allow.
    Site(Verb),
    /// What only the operator may: make sites and tokens, look at the whole region.
    Operate,
}

/// Of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource<'a> {
    Site(&'a SiteId),
    /// The region as a whole, or something in it that names no site.
    Region,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// As if there were nothing.
    Hidden,
    /// The token lacks this verb; none: no token has it.
    NotPermitted(Option<Verb>),
}

pub(super) fn authorize(principal: &Principal, action: Action, resource: Resource<'_>) -> Result<(), Denied> {
    let Principal::Merchant { site, verbs } = principal else { return Ok(()) };
    match (resource, action) {
        // First of all: what is said of another site must not depend on what is asked of it.
        (Resource::Site(asked), _) if asked != site => Err(Denied::Hidden),
        (Resource::Region, _) | (_, Action::Operate) => Err(Denied::NotPermitted(None)),
        (Resource::Site(_), Action::Site(verb)) => {
            if verbs.contains(&verb) || verbs.contains(&Verb::Admin) {
                Ok(())
            } else {
                Err(Denied::NotPermitted(Some(verb)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBS: [Verb; 8] = [
        Verb::Read,
        Verb::Push,
        Verb::Deploy,
        Verb::Logs,
        Verb::Purge,
        Verb::Orders,
        Verb::Shoppers,
        Verb::Admin,
    ];

    #[test]
    fn a_token_opens_its_own_site_for_its_own_verbs_and_nothing_else() {
        let (own, other): (SiteId, SiteId) = ("own".parse().unwrap(), "other".parse().unwrap());
        for held in VERBS {
            let bearer = Principal::Merchant { site: own.clone(), verbs: [held].into() };
            for asked in VERBS {
                let allowed = held == asked || held == Verb::Admin;
                let expected = if allowed { Ok(()) } else { Err(Denied::NotPermitted(Some(asked))) };
                let action = Action::Site(asked);
                assert_eq!(authorize(&bearer, action, Resource::Site(&own)), expected, "{held} asks {asked}");
                assert_eq!(authorize(&bearer, action, Resource::Site(&other)), Err(Denied::Hidden));
                let region = authorize(&bearer, action, Resource::Region);
                assert_eq!(region, Err(Denied::NotPermitted(None)));
            }
            assert_eq!(authorize(&bearer, Action::Operate, Resource::Site(&other)), Err(Denied::Hidden));
            let own = authorize(&bearer, Action::Operate, Resource::Site(&own));
            assert_eq!(own, Err(Denied::NotPermitted(None)));
        }
        assert_eq!(authorize(&Principal::Operator, Action::Operate, Resource::Site(&other)), Ok(()));
    }
}

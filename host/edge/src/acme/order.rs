//! One order: account, authorization, challenge, certificate. And what its failures mean.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder,
    Order, OrderStatus, Problem, RetryPolicy,
};
use souk_config::{AcmeChallenge, AcmeConfig};

use super::challenges::{Challenges, Posted};
use super::http::Post;
use super::schedule::Costs;
use super::store::Store;

/// How long an authority may look at a name, and as long again for the certificate: at first four times a second, then ever
/// less often.
const POLLED_FOR: Duration = Duration::from_secs(60);
const POLLS: RetryPolicy = RetryPolicy::new().timeout(POLLED_FOR);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the authority cannot be asked: {0}")]
    Away(String),
    /// It looked, and did not see what it should.
    #[error("the authority does not find the name here: {0}")]
    Challenge(String),
    #[error("the authority says no: {0}")]
    Refused(String),
    #[error("the authority has been asked too often: {0}")]
    Limited(String),
    /// It was put to work, and what came of it is not known: it may have issued.
    #[error("the authority takes too long: {0}")]
    Slow(String),
    #[error("the certificate that came cannot be used: {0}")]
    Unusable(String),
}

impl Failure {
    /// The label of the metric.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Away(_) => "away",
            Self::Challenge(_) => "challenge",
            Self::Refused(_) => "refused",
            Self::Limited(_) => "limited",
            Self::Slow(_) => "slow",
            Self::Unusable(_) => "unusable",
        }
    }

    pub(super) fn costs(&self) -> Costs {
        match self {
            Self::Away(_) => Costs::Nothing,
            Self::Challenge(_) | Self::Refused(_) | Self::Unusable(_) | Self::Slow(_) => Costs::ALook,
            Self::Limited(_) => Costs::ItsPatience,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => of(&problem),
            // Polled for as long as anybody polls, or told to come back after that.
            late @ Error::Timeout(_) => Self::Slow(late.to_string()),
            // Neither reached nor understood: what answers in its place is not the authority.
            other => Self::Away(other.to_string()),
        }
    }
}

fn of(problem: &Problem) -> Failure {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or_default();
    match (kind, problem.status) {
        ("rateLimited", _) => Failure::Limited(problem.to_string()),
        ("serverInternal", _) | (_, Some(500..)) => Failure::Away(problem.to_string()),
        _ => Failure::Refused(problem.to_string()),
    }
}

/// What failed after the authority was told to issue: whether it has, nobody knows, and to ask again at once may be to get a
/// second one.
fn when_issuing(error: Error) -> Failure {
    match Failure::from(error) {
        Failure::Away(why) => Failure::Slow(why),
        other => other,
    }
}

fn is_unknown_account(error: &Error) -> bool {
    let Error::Api(problem) = error else { return false };
    problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
}

/// Asks one authority.
pub(super) struct Orders {
    directory: String,
    contacts: Vec<String>,
    post: Post,
    store: Arc<Store>,
    looks_by: AcmeChallenge,
    challenges: Challenges,
}

impl Orders {
    pub(super) fn new(config: &AcmeConfig, post: Post, store: Arc<Store>, challenges: Challenges) -> Self {
        let (directory, contacts) = (config.directory.as_str().to_owned(), config.contacts.clone());
        Self { directory, contacts, post, store, looks_by: config.challenge, challenges }
    }

    pub(super) fn challenges(&self) -> Challenges {
        self.challenges.clone()
    }

    /// A certificate for one name: its chain and a key of its own, in PEM.
    ///
    /// Cancel safe: a token that was posted is answered no longer.
    pub(super) async fn order(&self, domain: &str) -> Result<String, Failure> {
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(domain.to_owned())];
        let mut order = match account.new_order(&NewOrder::new(&identifiers)).await {
            Ok(order) => order,
            Err(error) => {
                if is_unknown_account(&error) {
                    self.forget_account();
                }
                return Err(error.into());
            }
        };
        let _posted = self.show(&mut order, domain).await?;
        match order.poll_ready(&POLLS).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(Failure::Challenge(what_it_saw(&mut order).await)),
            // Some authorities look again and again, and say meanwhile what they have seen.
            Err(Error::Timeout(_)) => return Err(Failure::Slow(what_it_saw(&mut order).await)),
            Err(error) => return Err(error.into()),
        }
        let key = order.finalize().await.map_err(when_issuing)?;
        let chain = order.poll_certificate(&POLLS).await.map_err(when_issuing)?;
        Ok(format!("{chain}\n{key}"))
    }

    /// Posts what the authority shall find, and tells it to look.
    async fn show(&self, order: &mut Order, domain: &str) -> Result<Vec<Posted>, Failure> {
        let mut posted = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                // It has looked not long ago.
                AuthorizationStatus::Valid => continue,
                other => return Err(Failure::Refused(format!("the authorization is {other:?}"))),
            }
            let (kind, name) = match self.looks_by {
                AcmeChallenge::Http01 => (ChallengeType::Http01, "over HTTP (http-01)"),
                AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "over TLS (tls-alpn-01)"),
            };
            let Some(mut challenge) = authorization.challenge(kind) else {
                return Err(Failure::Refused(format!("it does not look {name}")));
            };
            let answer = challenge.key_authorization();
            posted.push(match self.looks_by {
                AcmeChallenge::Http01 => {
                    let token = self.challenges.post(&challenge.token, answer.as_str());
                    token.ok_or_else(|| Failure::Refused("it asks for too many tokens".to_owned()))?
                }
                AcmeChallenge::TlsAlpn01 => {
                    let proof = self.challenges.prove(domain, answer.digest().as_ref());
                    proof.map_err(|error| Failure::Refused(error.to_string()))?
                }
            });
            challenge.set_ready().await?;
        }
        Ok(posted)
    }

    async fn account(&self) -> Result<Account, Failure> {
        let kept = self.store.account().and_then(|json| serde_json::from_slice(&json).ok());
        if let Some(credentials) = kept {
            let builder = Account::builder_with_http(Box::new(self.post.clone()));
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contacts: Vec<&str> = self.contacts.iter().map(String::as_str).collect();
        let new =
            NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(Box::new(self.post.clone()));
        let (account, credentials) = builder.create(&new, self.directory.clone(), None).await?;
        self.keep(&credentials).await;
        tracing::info!(account = account.id(), "an account was made at the authority for certificates");
        Ok(account)
    }

    /// An account that cannot be kept is used all the same; the next order makes another.
    async fn keep(&self, credentials: &AccountCredentials) {
        let trouble = |error: &dyn Display| {
            tracing::error!(%error, "the account at the authority cannot be kept: the next order makes another");
        };
        let json = match serde_json::to_vec(credentials) {
            Ok(json) => json,
            Err(error) => return trouble(&error),
        };
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || store.keep_account(&json)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => trouble(&error),
            Err(error) => trouble(&error),
        }
    }

    fn forget_account(&self) {
        match self.store.forget_account() {
            Ok(()) => tracing::warn!("the authority does not know our account: another one is made"),
            Err(error) => {
                tracing::error!(%error, "the authority does not know our account, which cannot be forgotten")
            }
        }
    }
}

/// In its own words.
async fn what_it_saw(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        let error = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        if let Some(error) = error {
            return error.to_string();
        }
    }
    "it gives no reason".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_what_they_cost() {
        let problem = |kind: &str, status| Problem {
            r#type: Some(format!("urn:ietf:params:acme:error:{kind}")),
            detail: None,
            status: Some(status),
            subproblems: Vec::new(),
        };
        for (kind, status, name, costs) in [
            ("rateLimited", 429, "limited", Costs::ItsPatience),
            ("serverInternal", 500, "away", Costs::Nothing),
            ("whatever", 503, "away", Costs::Nothing),
            ("rejectedIdentifier", 403, "refused", Costs::ALook),
        ] {
            let failure = Failure::from(Error::Api(problem(kind, status)));
            assert_eq!((failure.name(), failure.costs()), (name, costs), "{kind}");
        }
        assert_eq!(Failure::from(Error::Str("x")).costs(), Costs::Nothing);
        // It may have issued, and five for one name are what it issues in a week.
        let late = Failure::from(Error::Timeout(None));
        assert_eq!((late.name(), late.costs()), ("slow", Costs::ALook));
        assert_eq!(when_issuing(Error::Api(problem("serverInternal", 500))).name(), "slow");
        assert_eq!(when_issuing(Error::Api(problem("rateLimited", 429))).name(), "limited");
        assert!(is_unknown_account(&Error::Api(problem("accountDoesNotExist", 400))));
    }
}

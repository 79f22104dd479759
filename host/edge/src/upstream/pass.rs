//! A request on behalf of one client: forwarded as it came, and not stored. An unsafe one takes back what it may have
//! changed.

use http::{HeaderMap, Response};
use souk_cache::key::MethodClass;
use souk_cache::{Asked, PassReason, Stored, Tag, tags};

use super::forward;
use super::proxy::{Arrival, Proxy};
use super::sliced;
use crate::http::{Body, RequestBody};
use crate::interim::Interims;
use crate::rescue::Problem;

impl Proxy {
    /// Asks the upstream for one client.
    pub(super) async fn pass(
        &self,
        asked: Asked,
        body: RequestBody,
        from: Arrival,
        reason: PassReason,
        interims: Option<Interims>,
    ) -> Result<Response<Body>, Problem> {
        let class = MethodClass::of(&asked.method);
        let request = forward::pass(&asked, &self.signature(&from));
        let body =
            (class != MethodClass::Retrieval && !http_body::Body::is_end_stream(&body)).then_some(body);
        let cache = self.0.kept.cache();
        let began = cache.begin();
        let (when, answered) = self.ask(&asked.key, request, body, interims, &from.tries).await;
        let mut response = answered.map_err(|error| error.problem())?;
        if class == MethodClass::Unsafe
            && (response.status().is_success() || response.status().is_redirection())
        {
            self.invalidate(&asked, response.headers());
            cache.invalidate_groups(when.answered_ms, &asked, response.headers());
            if let Some(shield) = &self.0.shield {
                shield.took_back(tags::changed_groups(response.headers(), &asked.key));
            }
            // The answer says that it is done: no restart may undo it. Where the disk cannot promise that, it has been
            // counted and told, and whoever changed something is not held for it.
            self.0.kept.is_durable().await;
        }
        let answers_itself = forward::is_at_its_target(response.headers(), &asked, &self.0.upstream);
        forward::rewrite_location(response.headers_mut(), &self.0.upstream);
        let (head, body) = response.into_parts();
        if asked.is_head() {
            cache.freshen(&asked, &head, when);
        }
        let permit = answers_itself.then(|| cache.permit_for_post(&asked, &head, when, began)).flatten();
        match permit.map(|permit| permit.store(&head, &asked, when)) {
            Some(Stored::Filling(hit, writer)) => {
                let (proxy, key) = (self.clone(), asked.key.clone());
                tokio::spawn(async move { proxy.pump(body, writer, &key).await });
                Ok(self.send(hit, &asked, &from, when.answered_ms))
            }
            _ => Ok(self.send_uncached(Response::from_parts(head, body), &asked, &from, reason)),
        }
    }

    /// An unsafe request succeeded: what it may have changed is fetched anew (RFC 9111 section 4.4).
    fn invalidate(&self, asked: &Asked, response: &HeaderMap) {
        let targets = forward::changed_targets(response, asked, &self.0.upstream);
        let others =
            targets.iter().filter_map(|target| asked.key.sibling(&self.config().query.settle(target)).ok());
        for key in std::iter::once(asked.key.clone()).chain(others) {
            self.0.kept.cache().invalidate(&key);
            self.0.kept.cache().invalidate(&sliced::head_key(&key));
            if let Some(shield) = &self.0.shield {
                shield.took_back([Tag::of_key(&key)]);
            }
        }
    }
}

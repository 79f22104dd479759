//! A site's HTTP releases on their routes: which one a path belongs to, and the way of a request into it.
//!
//! Owns what the component is told of the request beside what its client said. Refuses to know how a component is
//! loaded ([`crate::chain`]) and what it may do (`souk_sandbox::http`). Called by [`crate::serve`], which has checked
//! the request's framing and authority.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response, request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use souk_sandbox::http::{Body as GuestBody, HttpFault};

use crate::chain::{Chains, SiteChain};
use crate::component::{absolute, refused};
use crate::http::{Body, BodyError, RequestBody};
use crate::journal::Prints;
use crate::rescue::{Problem, Refusal};
use crate::route::Route;
use crate::state::Site;
use crate::upstream::forward;

/// How requests of guests sign themselves: see the sandbox's outbound requests.
const GUEST: &str = "souk-guest";

/// The chain whose HTTP release answers this path, and the decoded path; none if the path is the shop's own.
pub(crate) async fn find(
    chains: &Arc<Chains>,
    site: &Site,
    head: &request::Parts,
) -> Result<Option<(Arc<SiteChain>, String)>, Problem> {
    if !chains.has_mounts(site) {
        return Ok(None);
    }
    // Read as any path of the shop, so that no spelling of a route passes by its component.
    let Route::Asset(path) = Route::find(&Method::GET, head.uri.path())? else { return Ok(None) };
    let Some(chain) = chains.of(site).await else {
        return Err(Problem::new(Refusal::ChainNotReady, "the shop's plugins are being fetched"));
    };
    Ok(chain.mount_of(&path).is_some().then_some((chain, path)))
}

/// Puts a request to the component on its route.
pub(crate) async fn answer(
    (chain, path): (Arc<SiteChain>, String),
    head: &request::Parts,
    host: &str,
    tls: bool,
    body: RequestBody,
) -> Result<Response<Body>, Problem> {
    let Some(mount) = chain.mount_of(&path) else { return Err(Problem::internal("a mount went away")) };
    if forward::loops(&head.headers, GUEST) {
        let why = "a component's own request leads to a component again";
        return Err(Problem::new(Refusal::LoopDetected, why));
    }
    let mut head = head.clone();
    // What a client could say to pretend to be somebody else.
    forward::remove_unkeyed(&mut head.headers);
    if tls {
        head.uri = absolute(&head.uri, "https", host)?;
    }
    // Nor what it could say so behind the body.
    let body = body.map_frame(|frame| match frame.into_trailers() {
        Ok(mut fields) => {
            forward::remove_unkeyed(&mut fields);
            Frame::trailers(fields)
        }
        Err(frame) => frame,
    });
    let began = Instant::now();
    let answered = mount.service.handle(Request::from_parts(head, body)).await;
    mount.prints.answered(began.elapsed(), answered.as_ref().err());
    let response = answered.map_err(|fault| told(&fault))?;
    let prints = Arc::clone(&mount.prints);
    Ok(response.map(|inner| UnsyncBoxBody::new(Noted { inner, prints })))
}

/// What a shopper reads of a fault: its name. The words are the merchant's, and in the journal: a trap names functions
/// of the component, and an error holds whatever the component put there.
fn told(fault: &HttpFault) -> Problem {
    let detail = match fault {
        HttpFault::BadRequest(why) => why.clone(),
        _ => "the shop's plugin for this path did not answer".to_owned(),
    };
    refused(fault, detail)
}

/// A component's body; if it breaks off, its merchant reads of it.
struct Noted {
    inner: GuestBody,
    prints: Arc<Prints>,
}

impl http_body::Body for Noted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        frame.map(|frame| {
            frame.map(|frame| {
                frame.map_err(|fault| {
                    self.prints.broke_off(&fault);
                    Box::new(fault) as BodyError
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shopper_reads_the_name_of_a_fault_and_none_of_its_words() {
        for fault in [
            HttpFault::Trap("unreachable, in secret_rule".to_owned()),
            HttpFault::Guest("InternalError(Some(\"secret_rule\"))".to_owned()),
            HttpFault::Internal("secret_rule".to_owned()),
        ] {
            let text = format!("{:?}", told(&fault));
            assert!(text.contains(fault.name()) && !text.contains("secret_rule"), "{text}");
        }
    }
}

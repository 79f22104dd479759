//! One request of HTTP/1.1 or HTTP/2 between the server of its protocol and whoever answers it: its admission before, and
//! what a door adds to every answer after.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use http::header::{ALT_SVC, CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, Response, Version};
use tokio_util::sync::CancellationToken;

use super::{Answer, Peer};
use crate::acme::Challenges;
use crate::gate::{Tie, Work, Worked};
use crate::http::{Body, RequestBody, may_have_length};
use crate::http3::AltSvc;
use crate::rescue::Problem;

/// What the requests of one connection share. Cloned for each of them as a whole: a token takes a lock for that, and every
/// clone an atomic of its own.
pub(crate) struct Desk {
    pub(crate) answer: Arc<dyn Answer>,
    pub(crate) tie: Arc<Tie>,
    pub(crate) peer: Peer,
    pub(crate) alt_svc: Option<AltSvc>,
    pub(crate) challenges: Option<Challenges>,
    pub(crate) draining: CancellationToken,
}

impl Desk {
    /// Whether somebody may want to say interim responses to its requests.
    pub(crate) fn passes_interims(&self) -> bool {
        self.answer.passes_interims()
    }

    /// Whether a request is best looked at before it gets a task.
    pub(crate) fn is_brief(&self) -> bool {
        self.answer.is_brief()
    }

    pub(crate) fn ask(self: &Arc<Self>, request: Request<RequestBody>) -> Asked {
        let (to_head, version) = (request.method() == Method::HEAD, request.version());
        let (work, refused) = match self.tie.begin() {
            Ok(work) => {
                let refused = work.refusal();
                (Some(work), refused)
            }
            Err(problem) => (None, Some(problem)),
        };
        let instead = match refused {
            Some(problem) => Some(problem.into_response()),
            None => self.challenges.as_ref().and_then(|challenges| challenges.answer(&request)),
        };
        let answered: BoxFuture<'static, _> = match instead {
            Some(response) => Box::pin(std::future::ready(response)),
            None => Arc::clone(&self.answer).answer(request, self.peer),
        };
        Asked { desk: Arc::clone(self), work, to_head, version, answered }
    }

    fn finish(&self, response: &mut Response<Body>, version: Version) {
        // An upstream's own would lead shoppers past the node.
        match self.alt_svc.as_ref().and_then(AltSvc::value) {
            Some(said) => drop(response.headers_mut().insert(ALT_SVC, said.clone())),
            None => drop(response.headers_mut().remove(ALT_SVC)),
        }
        if version > Version::HTTP_11 {
            // HTTP/2 has no such field.
            response.headers_mut().remove(CONNECTION);
        } else if self.draining.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// A request that is being answered. Dropped before its end, its work ends too.
pub(crate) struct Asked {
    desk: Arc<Desk>,
    work: Option<Work>,
    to_head: bool,
    version: Version,
    answered: BoxFuture<'static, Response<Body>>,
}

impl Asked {
    /// Whether it is a HEAD.
    pub(crate) fn is_to_head(&self) -> bool {
        self.to_head
    }
}

impl Future for Asked {
    type Output = Response<Worked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Worked>> {
        let this = &mut *self;
        let response = ready!(this.answered.as_mut().poll(cx));
        // A body may have turned out to be malformed while it was read.
        let refused = this.work.as_ref().and_then(Work::refusal);
        let mut response = refused.map_or(response, Problem::into_response);
        this.desk.finish(&mut response, this.version);
        let response = if this.to_head { without_body(response) } else { response };
        let work = this.work.take();
        Poll::Ready(response.map(|body| match work {
            Some(work) => work.until_sent(body),
            None => Worked::free(body),
        }))
    }
}

/// The answer to a HEAD: the head of the GET, length included. hyper does this for HTTP/1.1; over HTTP/2 and HTTP/3 a body
/// after all is an error of the protocol.
pub(crate) fn without_body(mut response: Response<Body>) -> Response<Body> {
    let length = http_body::Body::size_hint(response.body()).exact();
    let may_say = may_have_length(response.status()) && !response.headers().contains_key(CONTENT_LENGTH);
    if let Some(length) = length.filter(|_| may_say) {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_| crate::http::empty())
}

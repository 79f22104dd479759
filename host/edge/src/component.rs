//! `souk serve`: any `wasi:http` component behind the node's listener and the sandbox's limits.
//!
//! The guest's faults become answers here; what a guest may do is decided by `souk_sandbox::http`.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use souk_sandbox::http::{HttpEngine, HttpFault, HttpLimits, HttpPlugin};
use tokio_util::sync::CancellationToken;

use crate::http::{Body, BodyError, authority, check_framing};
use crate::listen::{Answer, ListenLimits, Listener, Peer};
use crate::rescue::{Problem, Refusal};
use crate::running::{RunError, Running};

/// What `souk serve` is told.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    pub listen: SocketAddr,
    pub limits: HttpLimits,
}

struct ComponentDoor(Arc<HttpPlugin>);

impl Answer for ComponentDoor {
    fn answer(self: Arc<Self>, request: Request<Incoming>, _: Peer) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move { self.exchange(request).await.unwrap_or_else(Problem::into_response) })
    }
}

impl ComponentDoor {
    async fn exchange(&self, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let (mut head, body) = request.into_parts();
        check_framing(&head)?;
        let host = authority(head.version, &head.uri, &head.headers)?;
        head.uri = absolute(&head.uri, head.headers.get(http::header::HOST), &host)?;
        let answered =
            self.0.handle(Request::from_parts(head, body)).await.map_err(|fault| refused(&fault))?;
        Ok(answered.map(|body| body.map_err(|fault| Box::new(fault) as BodyError).boxed_unsync()))
    }
}

/// Guests are told the whole address, as in HTTP/2; HTTP/1.1 clients say it in two places.
fn absolute(uri: &Uri, host: Option<&http::HeaderValue>, checked: &str) -> Result<Uri, Problem> {
    if uri.authority().is_some() && uri.scheme().is_some() {
        return Ok(uri.clone());
    }
    let authority =
        uri.authority().map(|a| a.as_str()).or_else(|| host.and_then(|h| h.to_str().ok())).unwrap_or(checked);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|e| Problem::new(Refusal::BadAuthority, e.to_string()))
}

fn refused(fault: &HttpFault) -> Problem {
    tracing::warn!(fault = fault.name(), detail = %fault, "the component did not answer");
    let refusal = match fault {
        HttpFault::Timeout | HttpFault::Deadline => Refusal::DeadlinePassed,
        HttpFault::Busy => Refusal::Overloaded,
        HttpFault::BadRequest(_) => Refusal::BadPath,
        _ => Refusal::ComponentFailed,
    };
    Problem::new(refusal, fault.to_string()).with("fault", Value::from(fault.name()))
}

/// Loads the component and serves it. Returns when it listens.
pub async fn run_serve(
    config: ServeConfig,
    component: Vec<u8>,
    shutdown: CancellationToken,
) -> Result<Running, RunError> {
    let listener = Listener::bind(config.listen).await?;
    let engine = HttpEngine::new(config.limits).map_err(|e| RunError::Sandbox(e.to_string()))?;
    let loaded = tokio::task::spawn_blocking(move || engine.load(&component)).await;
    let plugin = loaded
        .map_err(|e| RunError::Component(e.to_string()))?
        .map_err(|refused| RunError::Component(refused.to_string()))?;
    let http = listener.addr();
    let door = Arc::new(ComponentDoor(plugin));
    let done = tokio::spawn(listener.serve(None, ListenLimits::default(), door, shutdown));
    Ok(Running { http: Some(http), https: None, admin: None, done })
}

//! `souk serve`: any `wasi:http` component behind the node's listener and the sandbox's limits. And what a site's HTTP
//! releases have in common with it.
//!
//! The guest's faults become answers here; what a guest may do is decided by `souk_sandbox::http`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use prometheus_client::registry::Registry;
use serde_json::Value;
use souk_commerce::id::Digest;
use souk_sandbox::http::{
    Grant, HttpEngine, HttpFault, HttpLimits, HttpMetrics, HttpService, Outbound, OutboundLimits, Reach,
    Terms,
};
use souk_sandbox::{CompileLimits, Compiler, Confinement, Loader, LoaderMetrics, LoaderSettings};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::admit;
use crate::http::{Body, BodyError, RequestBody};
use crate::listen::{Answer, ListenLimits, Listener, Peer};
use crate::pages::Pages;
use crate::rescue::{Problem, Refusal};
use crate::running::{Listening, RunError, Running};

/// What `souk serve` is told.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    pub listen: SocketAddr,
    /// Where health and metrics are read, if anywhere.
    pub admin: Option<SocketAddr>,
    pub limits: HttpLimits,
    /// What the component may send requests to.
    pub hosts: Vec<Grant>,
    /// Lets it reach addresses that are not public, if their names are granted.
    pub allow_private: bool,
    pub env: Vec<(String, String)>,
    pub config: Vec<(String, String)>,
    /// Requests that one instance serves; 0 and 1 both mean a fresh instance for each.
    pub reuse: u32,
}

struct ComponentDoor(HttpService);

impl Answer for ComponentDoor {
    fn answer(self: Arc<Self>, request: Request<RequestBody>, _: Peer) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move { self.answer_checked(request).await.unwrap_or_else(Problem::into_response) })
    }
}

impl ComponentDoor {
    async fn answer_checked(&self, request: Request<RequestBody>) -> Result<Response<Body>, Problem> {
        let (head, body) = request.into_parts();
        // The host is of no use here: the component reads the same fields.
        admit(&head)?;
        let answered = self.0.handle(Request::from_parts(head, body)).await.map_err(|fault| {
            tracing::warn!(fault = fault.name(), detail = %fault, "the component did not answer");
            // Whoever runs `souk serve` is the component's author, as a rule.
            refused(&fault, fault.to_string())
        })?;
        Ok(answered.map(|body| UnsyncBoxBody::new(Answered::new(body, broke_off))))
    }
}

fn broke_off(fault: &HttpFault) {
    tracing::warn!(fault = fault.name(), detail = %fault, "the component's answer broke off");
}

/// The whole address, as a guest behind TLS is told it: HTTP/1.1 clients say neither scheme nor host in the target.
pub(crate) fn absolute(uri: &Uri, scheme: &str, checked: &str) -> Result<Uri, Problem> {
    let authority = uri.authority().map_or(checked, |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|error| Problem::new(Refusal::BadAuthority, error.to_string()))
}

/// A component's body with the node's error type, and who hears of what it breaks off by. Its client only sees that the
/// connection, or the stream, is reset.
pub(crate) struct Answered {
    body: souk_sandbox::http::Body,
    hears: Box<dyn Fn(&HttpFault) + Send>,
}

impl Answered {
    pub(crate) fn new(body: souk_sandbox::http::Body, hears: impl Fn(&HttpFault) + Send + 'static) -> Self {
        Self { body, hears: Box::new(hears) }
    }
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map(|frame| {
            frame.map(|frame| {
                frame.map_err(|fault| {
                    (self.hears)(&fault);
                    Box::new(fault) as BodyError
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A fault as an answer. `detail` is what its client may read of it.
pub(crate) fn refused(fault: &HttpFault, detail: String) -> Problem {
    let refusal = match fault {
        HttpFault::Timeout | HttpFault::Deadline => Refusal::DeadlinePassed,
        HttpFault::Busy => Refusal::Overloaded,
        HttpFault::SiteFull | HttpFault::Crowded(_) => Refusal::PluginsCrowded,
        HttpFault::BadRequest(_) => Refusal::BadPath,
        _ => Refusal::ComponentFailed,
    };
    Problem::new(refusal, detail).with("fault", Value::from(fault.name()))
}

/// Has the component compiled by a child of this process, as a node does, and serves it. Returns when it listens, which
/// it does as soon as it can answer.
pub fn run_serve(
    config: ServeConfig,
    compiler: Compiler,
    component: Bytes,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<Running, RunError>> {
    // Compiled with this crate: see `run_node`.
    Box::pin(start(config, compiler, component, shutdown))
}

async fn start(
    config: ServeConfig,
    compiler: Compiler,
    component: Bytes,
    shutdown: CancellationToken,
) -> Result<Running, RunError> {
    let ServeConfig { listen, admin, limits, hosts, allow_private, env, config, reuse } = config;
    let reach = if allow_private {
        tracing::warn!(
            "--allow-private: the component may reach private addresses, this machine's among them"
        );
        Reach::Everywhere
    } else {
        Reach::Public
    };
    let mut registry = Registry::default();
    let metrics = HttpMetrics::register(&mut registry);
    let sandbox = |error: &dyn std::fmt::Display| RunError::Sandbox(error.to_string());
    let outbound = Outbound::new(OutboundLimits::default(), reach, [], metrics.clone())
        .map_err(|error| sandbox(&error))?;
    let engine = HttpEngine::with(limits, outbound, metrics).map_err(|error| sandbox(&error))?;
    let settings = LoaderSettings {
        compiler,
        limits: CompileLimits::default(),
        // Whoever starts this trusts the component more than a node trusts a merchant's.
        confinement: Confinement::BestEffort,
        artefacts: None,
    };
    let loader =
        Loader::open(settings, LoaderMetrics::register(&mut registry)).map_err(|error| sandbox(&error))?;
    let digest = Digest::of(&component);
    let plugin = loader
        .http(&engine, digest, async { Ok::<_, std::convert::Infallible>(component) })
        .await
        .map_err(|error| RunError::Component(error.to_string()))?;
    let door = Arc::new(ComponentDoor(HttpService::new(
        plugin,
        Terms { hosts, env, config, reuse, ..Terms::default() },
    )));
    let listener = Listener::bind(listen).await?;
    let admin = match admin {
        Some(addr) => Some(Listener::bind(addr).await?),
        None => None,
    };
    let listening = Listening {
        http: Some(listener.addr()),
        admin: admin.as_ref().map(Listener::addr),
        ..Listening::default()
    };
    let doors = TaskTracker::new();
    let limits = ListenLimits::default();
    let gate = limits.gate();
    gate.register(&mut registry);
    doors.spawn(listener.through(gate).serve(None, limits.clone(), door, shutdown.clone()));
    if let Some(admin) = admin {
        let pages = Arc::new(Pages::new(registry, || ()));
        doors.spawn(admin.serve(None, limits.for_operators(), pages, shutdown));
    }
    doors.close();
    let done = tokio::spawn(async move { doors.wait().await });
    Ok(Running { listening, done })
}

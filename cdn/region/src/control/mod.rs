//! The control API: what operators and merchants may ask of a region, as JSON over HTTP.
//!
//! Everything under `/v1` needs the operator's token; health, readiness and metrics do not. Each request that changes
//! something changes it in one transaction with its row of the audit log. The same request twice in a row changes nothing
//! the second time; one that is repeated after others have written sets back what they wrote. For a price that is the
//! caller's own affair; a stock is also written by every order, so a caller who may have to repeat says what it `expected`.
//! It speaks plain HTTP; beyond one machine a TLS terminator belongs before it.
//!
//! Reading order: [`serve`] (connections), [`access`] (who may), [`problem`] (how "no" is said), then the resources.

mod access;
mod assets;
mod blobs;
mod goods;
mod problem;
mod reads;
mod releases;
mod serve;
mod sites;
mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request};
use axum::middleware;
use axum::routing::{get, put};
use http::request::Parts;
use serde::de::DeserializeOwned;
use souk_commerce::id::SiteId;
use souk_link::RegionLink;
use tokio::sync::Semaphore;

use crate::blobs::Blobs;
use crate::chains::Chains;
use crate::store::Store;
use crate::telemetry::Telemetry;
use problem::Problem;
pub(crate) use serve::serve;

/// One request from its header to its last byte: the greatest upload at 300 KB/s.
const REQUEST_DEADLINE: Duration = Duration::from_secs(120);
/// Requests with a body that are worked on at once. A body in memory grows up to sixteenfold when it is parsed; more would
/// not be faster either, because there is one writer.
const BODIES_AT_ONCE_MAX: usize = 4;

/// What the handlers share.
pub(crate) struct Control {
    pub(crate) region: String,
    pub(crate) store: Store,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) chains: Arc<Chains>,
    pub(crate) link: RegionLink,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) operator_token_sha256: [u8; 32],
    pub(crate) body_bytes_max: u64,
    bodies: Semaphore,
}

type Shared = Arc<Control>;
type Answer<T> = Result<axum::Json<T>, Problem>;

/// The parts of a [`Control`], named.
pub(crate) struct ControlParts {
    pub(crate) region: String,
    pub(crate) store: Store,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) chains: Arc<Chains>,
    pub(crate) link: RegionLink,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) operator_token_sha256: [u8; 32],
    pub(crate) body_bytes_max: u64,
}

pub(crate) fn router(parts: ControlParts) -> Router {
    let ControlParts { region, store, blobs, chains, link, telemetry, operator_token_sha256, body_bytes_max } =
        parts;
    let bodies = Semaphore::new(BODIES_AT_ONCE_MAX);
    let control = Arc::new(Control {
        region,
        store,
        blobs,
        chains,
        link,
        telemetry,
        operator_token_sha256,
        body_bytes_max,
        bodies,
    });
    let body_bytes_max = usize::try_from(control.body_bytes_max).unwrap_or(usize::MAX);
    let v1 = Router::new()
        .route("/status", get(status::status))
        .route("/sites", get(sites::list))
        .route("/sites/{site}", put(sites::put).get(sites::get))
        .route("/sites/{site}/products", axum::routing::post(goods::import))
        .route("/sites/{site}/products/{sku}", get(goods::get))
        .route("/sites/{site}/prices/{sku}", put(goods::put_price))
        .route("/sites/{site}/stock/{sku}", put(goods::put_stock))
        .route("/sites/{site}/assets", put(assets::put).get(assets::get))
        .route("/sites/{site}/releases", put(releases::put).get(releases::get))
        .route("/sites/{site}/carts", get(reads::carts))
        .route("/sites/{site}/carts/{cart}", get(reads::cart))
        .route("/sites/{site}/orders", get(reads::orders))
        .route("/orders/{order}", get(reads::order))
        .route("/audit", get(reads::audit))
        .route("/audit/chain", get(reads::audit_chain))
        // Blobs are streamed to the disk, and bounded there.
        .route("/blobs/{digest}", put(blobs::put).head(blobs::head).layer(DefaultBodyLimit::disable()))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(middleware::from_fn_with_state(Arc::clone(&control), access::guard));
    Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(status::health))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&control), access::count))
        .with_state(control)
}

async fn no_such_path() -> Problem {
    Problem::not_found("such path").remedy("The paths begin with /v1; see the README.")
}

async fn no_such_method() -> Problem {
    Problem::method_not_allowed()
}

/// A JSON body, refused with a problem that names the field.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let axum::Json(value) = axum::Json::from_request(request, state).await?;
        Ok(Self(value))
    }
}

/// A query, refused with a problem.
struct Query<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::invalid("query", rejection.body_text())),
        }
    }
}

/// The site of a path.
struct Site(SiteId);

impl<S: Send + Sync> FromRequestParts<S> for Site {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        #[derive(serde::Deserialize)]
        struct InPath {
            site: String,
        }
        let Ok(Path(InPath { site })) = Path::from_request_parts(parts, state).await else {
            return Err(Problem::not_found("site in this path"));
        };
        site.parse().map(Self).map_err(|error| Problem::name("site", &error))
    }
}

/// Parses a name of a path.
fn named<T>(field: &'static str, text: &str) -> Result<T, Problem>
where
    T: std::str::FromStr<Err = souk_commerce::id::InvalidName>,
{
    text.parse().map_err(|error| Problem::name(field, &error))
}

//! The control API: what operators and merchants may ask of a region, as JSON over HTTP.
//!
//! Everything under `/v1` needs a token, the operator's or one of a site's; health, readiness and metrics do not. Each request that changes
//! something changes it in one transaction with its row of the audit log. The same request twice in a row changes nothing
//! the second time; one that is repeated after others have written sets back what they wrote. For a price that is the
//! caller's own affair; a stock is also written by every order, so a caller who may have to repeat says what it `expected`.
//! It speaks plain HTTP; beyond one machine a TLS terminator belongs before it.
//!
//! Reading order: [`serve`] (connections), [`access`] (who is it), [`authority`] (who may
//! what), [`turns`] (how many at once), [`throttle`] (how often one may be wrong), [`problem`] (how "no" is said), then the
//! resources.

mod access;
mod assets;
mod authority;
mod blobs;
mod components;
mod dead_letters;
mod goods;
mod journal;
mod orders;
mod pair;
mod plugins;
mod problem;
mod purges;
mod readiness;
mod reads;
mod releases;
mod search;
mod serve;
mod shoppers;
mod sites;
mod status;
mod throttle;
mod tokens;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request};
use axum::middleware;
use axum::routing::{MethodRouter, delete, get, post, put};
use http::request::Parts;
use serde::de::DeserializeOwned;
use souk_commerce::id::SiteId;
use souk_link::RegionLink;

use crate::blobs::Blobs;
use crate::chains::Chains;
use crate::digests::Digests;
use crate::journal::Journal;
use crate::obeyed::Obeyed;
use crate::presence::Presence;
use crate::rollout::Rollout;
use crate::saga::worker::{MESSAGE_BYTES_MAX, Payments};
use crate::store::Store;
use crate::store::token::Verb;
use crate::telemetry::Telemetry;
use authority::Action;
pub(crate) use pair::HomeStatus;
use problem::Problem;
pub(crate) use problem::problem_of_standby;
pub(crate) use serve::serve;

/// One request from its header to its last byte: the greatest upload at 300 KB/s.
const REQUEST_DEADLINE: Duration = Duration::from_secs(120);

/// What the handlers share.
pub(crate) struct Control {
    pub(crate) region: String,
    pub(crate) pair: HomeStatus,
    pub(crate) store: Store,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) chains: Arc<Chains>,
    pub(crate) link: RegionLink,
    pub(crate) journal: Journal,
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) obeyed: Arc<Obeyed>,
    pub(crate) digests: Digests,
    pub(crate) presence: Arc<Presence>,
    pub(crate) payments: Payments,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) operator_token_sha256: [u8; 32],
    pub(crate) body_bytes_max: u64,
    turns: turns::Turns,
    throttle: throttle::Throttle,
}

type Shared = Arc<Control>;
type Answer<T> = Result<axum::Json<T>, Problem>;

/// The parts of a [`Control`], named.
pub(crate) struct ControlParts {
    pub(crate) region: String,
    pub(crate) pair: HomeStatus,
    pub(crate) store: Store,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) chains: Arc<Chains>,
    pub(crate) link: RegionLink,
    pub(crate) journal: Journal,
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) obeyed: Arc<Obeyed>,
    pub(crate) digests: Digests,
    pub(crate) presence: Arc<Presence>,
    pub(crate) payments: Payments,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) operator_token_sha256: [u8; 32],
    pub(crate) body_bytes_max: u64,
}

pub(crate) fn router(parts: ControlParts) -> Router {
    let ControlParts {
        region,
        pair,
        store,
        blobs,
        chains,
        link,
        journal,
        rollout,
        obeyed,
        digests,
        presence,
        payments,
        telemetry,
        operator_token_sha256,
        body_bytes_max,
    } = parts;
    let control = Arc::new(Control {
        region,
        pair,
        store,
        blobs,
        chains,
        link,
        journal,
        rollout,
        obeyed,
        digests,
        presence,
        payments,
        telemetry,
        operator_token_sha256,
        body_bytes_max,
        turns: turns::Turns::new(),
        throttle: throttle::Throttle::default(),
    });
    let body_bytes_max = usize::try_from(control.body_bytes_max).unwrap_or(usize::MAX);
    let v1 = resources()
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(middleware::from_fn_with_state(Arc::clone(&control), access::guard));
    Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(status::health))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        // A provider has no token of ours: it signs what it says, and is believed no more than that.
        .route(
            "/webhooks/payments/{site}",
            post(orders::message).layer(DefaultBodyLimit::max(MESSAGE_BYTES_MAX)),
        )
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&control), access::count))
        .with_state(control)
}

/// Every resource, and who may do what with it.
fn resources() -> Router<Shared> {
    use Action::{Operate, Site};
    use Verb::{Admin, Deploy, Logs, Orders, Purge, Push, Read, Shoppers};
    let resources = Resources(Router::new())
        .on("/status", may(Operate, get(status::status)))
        .on("/pair", may(Operate, get(pair::get)))
        .on("/takeover", may(Operate, post(pair::take_over)))
        .on("/sites", may(Operate, get(sites::list)))
        .on("/sites/{site}", may(Site(Admin), put(sites::put)))
        .on("/sites/{site}", may(Site(Read), get(sites::get)))
        .on("/sites/{site}/products", may(Site(Admin), post(goods::import)))
        .on("/sites/{site}/products/{sku}", may(Site(Read), get(goods::get)))
        .on("/sites/{site}/search", may(Site(Read), get(search::get)))
        .on("/sites/{site}/prices/{sku}", may(Site(Admin), put(goods::put_price)))
        .on("/sites/{site}/stock/{sku}", may(Site(Admin), put(goods::put_stock)))
        .on("/sites/{site}/stock/{sku}", may(Site(Read), get(goods::get_stock)))
        // A manifest names blobs of the whole region.
        .on("/sites/{site}/assets", may(Operate, put(assets::put)))
        .on("/sites/{site}/assets", may(Site(Read), get(assets::get)))
        // So does a chain that is put whole.
        .on("/sites/{site}/releases", may(Operate, put(releases::put)))
        .on("/sites/{site}/releases", may(Site(Read), get(releases::get)))
        .on("/sites/{site}/rollout", may(Site(Read), get(readiness::rollout)))
        .on("/sites/{site}/plugins", may(Site(Read), get(plugins::list)))
        .on("/sites/{site}/plugins/{plugin}", may(Site(Read), get(plugins::releases)))
        .on("/sites/{site}/plugins/{plugin}", may(Site(Deploy), delete(plugins::remove)))
        .on(
            "/sites/{site}/plugins/{plugin}/components/{digest}",
            // Read and bounded by the handler.
            may(Site(Push), put(plugins::push).layer(DefaultBodyLimit::disable())),
        )
        .on("/sites/{site}/plugins/{plugin}/components/{digest}", may(Site(Read), get(components::get)))
        .on(
            "/sites/{site}/plugins/{plugin}/components/{digest}/nodes",
            // Whoever brings a component waits for the nodes to be ready for it.
            may(Site(Push), get(readiness::ready)),
        )
        .on("/sites/{site}/plugins/{plugin}/deploy", may(Site(Deploy), post(plugins::deploy)))
        .on("/sites/{site}/plugins/{plugin}/rollback", may(Site(Deploy), post(plugins::roll_back)))
        .on("/sites/{site}/purges", may(Site(Purge), post(purges::post)))
        .on("/sites/{site}/purges/{version}", may(Site(Purge), get(purges::get)))
        .on("/sites/{site}/shoppers/export", may(Site(Shoppers), post(shoppers::export)))
        .on("/sites/{site}/shoppers/erase", may(Site(Shoppers), post(shoppers::erase)))
        .on("/sites/{site}/erasures", may(Site(Shoppers), get(shoppers::list)))
        // Nodes are told by the log of purges.
        .on("/sites/{site}/erasures/{version}", may(Site(Shoppers), get(purges::get)))
        .on("/sites/{site}/tokens", may(Operate, get(tokens::list)))
        .on("/sites/{site}/tokens/{id}", may(Operate, put(tokens::put).delete(tokens::revoke)))
        .on("/sites/{site}/logs", may(Site(Logs), get(journal::logs)))
        .on("/sites/{site}/calls", may(Site(Logs), get(journal::calls)))
        .on("/sites/{site}/calls/{call}", may(Site(Logs), get(journal::call)))
        .on("/sites/{site}/carts", may(Site(Read), get(reads::carts)))
        .on("/sites/{site}/carts/{cart}", may(Site(Read), get(reads::cart)))
        .on("/sites/{site}/orders", may(Site(Read), get(reads::orders)))
        .on("/sites/{site}/orders/{order}", may(Site(Read), get(orders::get)))
        .on("/sites/{site}/orders/{order}/{wish}", may(Site(Orders), post(orders::wish)))
        .on("/sites/{site}/payments/report", may(Site(Read), get(orders::report)))
        .on("/sites/{site}/payments/reconcile", may(Site(Orders), post(orders::reconcile)))
        .on("/sites/{site}/events", may(Site(Read), get(orders::events)))
        .on("/sites/{site}/sales", may(Site(Read), get(orders::sales)))
        .on("/orders/{order}", may(Operate, get(reads::order)))
        .on("/dead-letters", may(Operate, get(dead_letters::list)))
        .on("/dead-letters/{id}", may(Operate, delete(dead_letters::discard)))
        .on("/dead-letters/{id}/retry", may(Operate, post(dead_letters::retry)))
        .on("/digests", may(Operate, get(reads::digests)))
        .on("/operations-gone", may(Operate, get(dead_letters::gone).delete(dead_letters::gone_is_read)))
        .on("/audit", may(Operate, get(reads::audit)))
        .on("/audit/chain", may(Operate, get(reads::audit_chain)))
        // Streamed to the disk, and bounded there.
        .on(
            "/blobs/{digest}",
            may(Operate, put(blobs::put).head(blobs::head).layer(DefaultBodyLimit::disable())),
        );
    resources.0
}

/// Methods of a resource behind the question whether the caller may. Only [`may`] makes one, so that no resource can be
/// added without it.
struct Guarded(MethodRouter<Shared>);

fn may(action: Action, methods: MethodRouter<Shared>) -> Guarded {
    Guarded(methods.route_layer(middleware::from_fn_with_state(action, access::demand)))
}

struct Resources(Router<Shared>);

impl Resources {
    fn on(self, path: &str, methods: Guarded) -> Self {
        Self(self.0.route(path, methods.0))
    }
}

async fn no_such_path() -> Problem {
    Problem::not_found("such path").remedy("The paths begin with /v1: docs/API.md lists them.")
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

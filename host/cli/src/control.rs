//! A small client of a region's control API.
//!
//! Every call that it offers may be repeated without harm (they put, they never append; a roll-back says from where), so it repeats by itself while
//! a region starts or restarts: refused connections and 502 to 504 are tried again with growing pauses. What the region
//! refuses for a reason is an error with that reason, at once.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use souk_commerce::id::{CartId, Digest, OrderId, PluginName, SiteId, Sku};
use souk_commerce::journal::CallId;
use souk_commerce::money::Minor;
use souk_commerce::purge::Forget;
use souk_commerce::site::SiteSettings;
use tokio::time::Instant;
use url::Url;

use crate::import::ProductRow;
use crate::purge::Of;

/// Between two attempts: at first so short that a region on this machine is met as soon as it listens.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long an absent region is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// One attempt. A call of a hundred rows takes well under a second; a 32 MiB blob over a slow line is the measure.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(60);
/// A look at a node of this machine.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// The greatest answer: a component.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the region at {base} cannot be reached: {reason}; is it running, and is the address right?")]
    Unreachable { base: String, reason: String },
    /// It lives, and says why it does not.
    #[error("the region at {base} does not do it now: {reason}")]
    NotNow { base: String, reason: String },
    #[error("the region at {base} refused the token: {detail} Set SOUK_TOKEN or --token to one that is good")]
    Unauthorized { base: String, detail: String },
    #[error("the region refused {what}: {detail} ({code})")]
    Refused { what: String, status: StatusCode, code: String, detail: String, complaints: Vec<Complaint> },
    #[error(
        "the region's answer to {what} cannot be understood: {reason}; is it the same version as this program?"
    )]
    Answer { what: String, reason: String },
}

impl ControlError {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// A handle on one region's control API; cheap to clone.
#[derive(Clone)]
pub(crate) struct RegionClient {
    base: String,
    token: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// What a bulk import answered.
#[derive(Debug, Deserialize)]
pub(crate) struct ProductsAnswer {
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) unchanged: u64,
    #[serde(default)]
    pub(crate) refused: Vec<RefusedProduct>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RefusedProduct {
    pub(crate) index: usize,
    pub(crate) reason: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct AssetRow {
    pub(crate) path: String,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) content_type: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ReleaseRow {
    pub(crate) plugin: PluginName,
    pub(crate) component: Digest,
    pub(crate) settings: serde_json::Value,
    pub(crate) on_fault: souk_commerce::site::OnFault,
    /// How many of 10,000 calls are recorded.
    pub(crate) record_bp: u16,
}

#[derive(Debug, Serialize)]
struct PriceBody {
    price: Minor,
    #[serde(skip_serializing_if = "Option::is_none")]
    compare_at: Option<Minor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<Minor>,
}

/// One thing that is wrong with a component.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Complaint {
    pub(crate) code: String,
    pub(crate) detail: String,
}

#[derive(Debug, Default, Deserialize)]
struct Problem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    remedy: String,
    #[serde(default)]
    complaints: Vec<Complaint>,
}

impl Problem {
    /// What is wrong and what to do about it.
    fn whole(&self) -> String {
        let what = if self.detail.is_empty() { &self.title } else { &self.detail };
        if self.remedy.is_empty() {
            return what.clone();
        }
        let end = if what.ends_with(['.', '!', '?']) { "" } else { "." };
        format!("{what}{end} {}", self.remedy)
    }
}

impl RegionClient {
    /// `url` is the control address, without a path.
    pub(crate) fn new(url: &Url, token: &str) -> Result<Self, String> {
        if url.scheme() != "http" {
            return Err(format!(
                "{url} is not an http:// address; a region speaks plain HTTP to its own machine: reach a distant one \
                 through a tunnel (ssh -L 7080:127.0.0.1:7080 …)"
            ));
        }
        if url.host_str().is_none() || url.path() != "/" || url.query().is_some() {
            return Err(format!("{url} must be an address without a path, such as http://127.0.0.1:7080"));
        }
        Ok(Self {
            base: url.as_str().trim_end_matches('/').to_owned(),
            token: token.to_owned(),
            http: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
        })
    }

    pub(crate) async fn status<T: DeserializeOwned>(&self) -> Result<T, ControlError> {
        self.json(Method::GET, "/v1/status", None).await
    }

    pub(crate) async fn site(&self, site: &SiteId) -> Result<SiteSettings, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}"), None).await
    }

    pub(crate) async fn put_site(&self, settings: &SiteSettings) -> Result<(), ControlError> {
        let path = format!("/v1/sites/{}", settings.site);
        self.call(Method::PUT, &path, Some(to_json(settings))).await.map(drop)
    }

    /// Creates and changes products; those that are as they should be are counted and left alone.
    pub(crate) async fn put_products(
        &self,
        site: &SiteId,
        rows: &[ProductRow],
    ) -> Result<ProductsAnswer, ControlError> {
        let body = to_json(&serde_json::json!({ "products": rows }));
        self.json(Method::POST, &format!("/v1/sites/{site}/products"), Some(body)).await
    }

    /// A product as the region has it: a change of price alone must lose neither its floor nor its compare-at price.
    pub(crate) async fn product(&self, site: &SiteId, sku: &Sku) -> Result<serde_json::Value, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/products/{}", segment(sku.as_str())), None).await
    }

    pub(crate) async fn put_price(
        &self,
        site: &SiteId,
        sku: &Sku,
        price: Minor,
        compare_at: Option<Minor>,
        floor: Option<Minor>,
    ) -> Result<u64, ControlError> {
        #[derive(Deserialize)]
        struct Answer {
            version: u64,
        }
        let path = format!("/v1/sites/{site}/prices/{}", segment(sku.as_str()));
        let body = to_json(&PriceBody { price, compare_at, floor });
        self.json::<Answer>(Method::PUT, &path, Some(body)).await.map(|answer| answer.version)
    }

    /// Puts a blob unless the region has it. Answers whether it had to be sent.
    pub(crate) async fn put_blob(&self, bytes: Bytes) -> Result<(Digest, bool), ControlError> {
        let digest = Digest::of(&bytes);
        let path = format!("/v1/blobs/{digest}");
        match self.call(Method::HEAD, &path, None).await {
            Ok(_) => return Ok((digest, false)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        self.call(Method::PUT, &path, Some((bytes, "application/octet-stream"))).await?;
        Ok((digest, true))
    }

    /// Replaces the site's whole manifest of static files.
    pub(crate) async fn put_assets(&self, site: &SiteId, assets: &[AssetRow]) -> Result<(), ControlError> {
        let body = to_json(&serde_json::json!({ "assets": assets }));
        self.call(Method::PUT, &format!("/v1/sites/{site}/assets"), Some(body)).await.map(drop)
    }

    pub(crate) async fn releases(&self, site: &SiteId) -> Result<serde_json::Value, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/releases"), None).await
    }

    /// Replaces the whole chain of plugins.
    pub(crate) async fn put_releases(
        &self,
        site: &SiteId,
        releases: &[ReleaseRow],
    ) -> Result<serde_json::Value, ControlError> {
        let body = to_json(&serde_json::json!({ "releases": releases }));
        self.json(Method::PUT, &format!("/v1/sites/{site}/releases"), Some(body)).await
    }

    /// A page of what the site's plugins did; `query` is a query without its mark.
    pub(crate) async fn logs<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        query: &str,
    ) -> Result<T, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/logs?{query}"), None).await
    }

    /// A page of the site's recorded calls, the newest first.
    pub(crate) async fn calls<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        query: &str,
    ) -> Result<T, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/calls?{query}"), None).await
    }

    /// A recorded call, as it was recorded.
    pub(crate) async fn recording(&self, site: &SiteId, call: CallId) -> Result<Bytes, ControlError> {
        self.call(Method::GET, &format!("/v1/sites/{site}/calls/{call}"), None).await
    }

    /// Brings a component to a plugin of the site: judged, compiled and kept, but not run.
    pub(crate) async fn push_component(
        &self,
        site: &SiteId,
        plugin: &PluginName,
        component: Bytes,
    ) -> Result<serde_json::Value, ControlError> {
        let path = format!("/v1/sites/{site}/plugins/{plugin}/components/{}", Digest::of(&component));
        self.json(Method::PUT, &path, Some((component, "application/wasm"))).await
    }

    /// The component of one of the plugin's releases.
    pub(crate) async fn component(
        &self,
        site: &SiteId,
        plugin: &PluginName,
        component: Digest,
    ) -> Result<Bytes, ControlError> {
        let path = format!("/v1/sites/{site}/plugins/{plugin}/components/{component}");
        self.call(Method::GET, &path, None).await
    }

    /// Which nodes have compiled a component that was pushed; the region waits for them as long as `wait`.
    pub(crate) async fn ready<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        plugin: &PluginName,
        component: Digest,
        wait: Duration,
    ) -> Result<T, ControlError> {
        let path = format!(
            "/v1/sites/{site}/plugins/{plugin}/components/{component}/nodes?wait_ms={}",
            wait.as_millis()
        );
        self.json(Method::GET, &path, None).await
    }

    /// Changes one plugin of the chain: `deploy` or `rollback`.
    pub(crate) async fn change_plugin<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        plugin: &PluginName,
        change: &'static str,
        body: &serde_json::Value,
    ) -> Result<T, ControlError> {
        let path = format!("/v1/sites/{site}/plugins/{plugin}/{change}");
        self.json(Method::POST, &path, Some(to_json(body))).await
    }

    /// Takes a plugin out of the chain.
    pub(crate) async fn remove_plugin<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        plugin: &PluginName,
    ) -> Result<T, ControlError> {
        self.json(Method::DELETE, &format!("/v1/sites/{site}/plugins/{plugin}"), None).await
    }

    /// The site's plugins.
    pub(crate) async fn plugins(&self, site: &SiteId) -> Result<serde_json::Value, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/plugins"), None).await
    }

    /// One plugin's releases.
    pub(crate) async fn plugin<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        plugin: &PluginName,
    ) -> Result<T, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/plugins/{plugin}"), None).await
    }

    /// Which nodes run a version of the site's release set; the region waits for them as long as `wait`.
    pub(crate) async fn rollout<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        version: u64,
        wait: Duration,
    ) -> Result<T, ControlError> {
        let path = format!("/v1/sites/{site}/rollout?version={version}&wait_ms={}", wait.as_millis());
        self.json(Method::GET, &path, None).await
    }

    /// Has the nodes forget.
    pub(crate) async fn purge<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        forget: &Forget,
    ) -> Result<T, ControlError> {
        self.json(Method::POST, &format!("/v1/sites/{site}/purges"), Some(to_json(forget))).await
    }

    /// Which nodes have obeyed a purge; the region waits for them as long as `wait`.
    pub(crate) async fn obeyed<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        of: Of,
        version: u64,
        wait: Duration,
    ) -> Result<T, ControlError> {
        let (of, wait_ms) = (of.name(), wait.as_millis());
        self.json(Method::GET, &format!("/v1/sites/{site}/{of}/{version}?wait_ms={wait_ms}"), None).await
    }

    /// Erases a shopper; wanted twice, it is done once.
    pub(crate) async fn erase_shopper<T: DeserializeOwned>(
        &self,
        site: &SiteId,
        customer: Option<&str>,
        carts: &[CartId],
    ) -> Result<T, ControlError> {
        let body = to_json(&serde_json::json!({ "customer": customer, "carts": carts }));
        self.json(Method::POST, &format!("/v1/sites/{site}/shoppers/erase"), Some(body)).await
    }

    /// Rows of the audit log after `after`. The operator's.
    pub(crate) async fn audit<T: DeserializeOwned>(&self, after: u64, limit: u32) -> Result<T, ControlError> {
        self.json(Method::GET, &format!("/v1/audit?after={after}&limit={limit}"), None).await
    }

    pub(crate) async fn audit_chain<T: DeserializeOwned>(&self) -> Result<T, ControlError> {
        self.json(Method::GET, "/v1/audit/chain", None).await
    }

    pub(crate) async fn erasures<T: DeserializeOwned>(&self, site: &SiteId) -> Result<T, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/erasures"), None).await
    }

    /// Writes a shopper's export out as it comes, and answers how many orders are in it. One that broke off is an error,
    /// whatever was written of it.
    pub(crate) async fn export_shopper(
        &self,
        site: &SiteId,
        customer: &str,
        out: &mut dyn std::io::Write,
    ) -> Result<u64, ControlError> {
        #[derive(Deserialize)]
        struct End {
            kind: String,
            orders: Option<u64>,
        }
        let path = format!("/v1/sites/{site}/shoppers/export");
        let broken = |reason: String| ControlError::Answer { what: format!("POST {path}"), reason };
        let (body, kind) = to_json(&serde_json::json!({ "customer": customer }));
        let request = Request::post(format!("{}{path}", self.base))
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, kind)
            .body(Full::new(body.clone()))
            .map_err(|e| broken(e.to_string()))?;
        let response = self
            .http
            .request(request)
            .await
            .map_err(|e| ControlError::Unreachable { base: self.base.clone(), reason: causes(&e) })?;
        if !response.status().is_success() {
            // A refusal is small, and the same again: told as every other.
            let again = self.call(Method::POST, &path, Some((body, kind))).await;
            return again.and_then(|_| Err(broken("it was refused at first and not again".to_owned())));
        }
        let mut parts = response.into_body();
        // Of the line that is not whole yet: an order at its greatest is 8 MiB.
        let mut last: Vec<u8> = Vec::new();
        let mut end = None;
        while let Some(part) = parts.frame().await {
            let part = part.map_err(|e| broken(format!("it broke off: {}", causes(&e))))?;
            let Ok(part) = part.into_data() else { continue };
            out.write_all(&part).map_err(|e| broken(format!("it cannot be written: {e}")))?;
            last.extend_from_slice(&part);
            if let Some(at) = last.iter().rposition(|byte| *byte == b'\n') {
                let line = last[..at].rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
                end = serde_json::from_slice::<End>(line).ok().filter(|end| end.kind == "end");
                last.drain(..=at);
            }
        }
        out.flush().map_err(|e| broken(format!("it cannot be written: {e}")))?;
        end.and_then(|end| end.orders).ok_or_else(|| broken("it ended before its last record".to_owned()))
    }

    /// An order with its money.
    pub(crate) async fn order(
        &self,
        site: &SiteId,
        order: OrderId,
    ) -> Result<serde_json::Value, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/orders/{order}"), None).await
    }

    /// What a merchant wants of an order; wanted twice, it is done once.
    pub(crate) async fn wish_order(
        &self,
        site: &SiteId,
        order: OrderId,
        wish: &str,
    ) -> Result<serde_json::Value, ControlError> {
        self.json(Method::POST, &format!("/v1/sites/{site}/orders/{order}/{wish}"), None).await
    }

    pub(crate) async fn events(
        &self,
        site: &SiteId,
        after: u64,
        limit: u32,
    ) -> Result<serde_json::Value, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/events?after={after}&limit={limit}"), None).await
    }

    pub(crate) async fn sales(&self, site: &SiteId, days: u32) -> Result<serde_json::Value, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/sales?limit={days}"), None).await
    }

    /// Compares the shop's books with its payment provider's.
    pub(crate) async fn reconcile(&self, site: &SiteId) -> Result<serde_json::Value, ControlError> {
        self.json(Method::POST, &format!("/v1/sites/{site}/payments/reconcile"), None).await
    }

    pub(crate) async fn put_token(
        &self,
        site: &SiteId,
        id: &str,
        told: &impl Serialize,
    ) -> Result<(), ControlError> {
        let path = format!("/v1/sites/{site}/tokens/{id}");
        self.call(Method::PUT, &path, Some(to_json(told))).await.map(drop)
    }

    pub(crate) async fn tokens(&self, site: &SiteId) -> Result<serde_json::Value, ControlError> {
        self.json(Method::GET, &format!("/v1/sites/{site}/tokens"), None).await
    }

    pub(crate) async fn revoke_token(&self, site: &SiteId, id: &str) -> Result<(), ControlError> {
        let path = format!("/v1/sites/{site}/tokens/{}", segment(id));
        self.call(Method::DELETE, &path, None).await.map(drop)
    }

    /// Which of its pair the region is.
    pub(crate) async fn pair<T: DeserializeOwned>(&self) -> Result<T, ControlError> {
        self.json(Method::GET, "/v1/pair", None).await
    }

    /// Makes a standby the home. Done twice, the second is refused as "home already".
    pub(crate) async fn take_over<T: DeserializeOwned>(&self, force: bool) -> Result<T, ControlError> {
        let body = to_json(&serde_json::json!({ "force": force }));
        self.json(Method::POST, "/v1/takeover", Some(body)).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(Bytes, &'static str)>,
    ) -> Result<T, ControlError> {
        let what = format!("{method} {path}");
        let answer = self.call(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|e| ControlError::Answer { what, reason: e.to_string() })
    }

    /// One call with its repetitions.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(Bytes, &'static str)>,
    ) -> Result<Bytes, ControlError> {
        let give_up = Instant::now() + PATIENCE;
        let mut pause = PAUSE_FIRST;
        loop {
            let base = self.base.clone();
            let error = match self.attempt(&method, path, body.as_ref()).await? {
                Attempt::Answered(answer) => return Ok(answer),
                Attempt::Absent(reason) => ControlError::Unreachable { base, reason },
                Attempt::NotNow(reason) => ControlError::NotNow { base, reason },
            };
            if Instant::now() + pause > give_up {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        body: Option<&(Bytes, &'static str)>,
    ) -> Result<Attempt, ControlError> {
        let what = || format!("{method} {path}");
        let unintelligible = |reason: String| ControlError::Answer { what: what(), reason };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(AUTHORIZATION, format!("Bearer {}", self.token));
        if let Some((_, content_type)) = body {
            request = request.header(CONTENT_TYPE, *content_type);
        }
        let bytes = body.map(|(bytes, _)| bytes.clone()).unwrap_or_default();
        let request = request.body(Full::new(bytes)).map_err(|e| unintelligible(e.to_string()))?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|e| causes(&e))?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok::<_, String>((status, answer.map_err(|e| e.to_string())?.to_bytes()))
        };
        let (status, answer) = match tokio::time::timeout(ATTEMPT_DEADLINE, exchange).await {
            Ok(Ok(done)) => done,
            Ok(Err(reason)) => return Ok(Attempt::Absent(reason)),
            Err(_) => {
                return Ok(Attempt::Absent(format!("no answer within {} s", ATTEMPT_DEADLINE.as_secs())));
            }
        };
        match status {
            _ if status.is_success() => Ok(Attempt::Answered(answer)),
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                let why = serde_json::from_slice::<Problem>(&answer).unwrap_or_default().whole();
                Ok(Attempt::NotNow(format!("it answered {status} {why}").trim_end().to_owned()))
            }
            StatusCode::UNAUTHORIZED => {
                let problem = serde_json::from_slice::<Problem>(&answer).unwrap_or_default();
                Err(ControlError::Unauthorized { base: self.base.clone(), detail: problem.detail })
            }
            _ => {
                // A HEAD has no body, and a proxy in between may answer in HTML: then the status says it all.
                let problem = serde_json::from_slice::<Problem>(&answer).ok();
                let (code, detail, complaints) = problem.map_or_else(
                    || {
                        (
                            status.as_str().to_owned(),
                            status.canonical_reason().unwrap_or("no reason given").to_owned(),
                            Vec::new(),
                        )
                    },
                    |p| (p.code.clone(), p.whole(), p.complaints),
                );
                Err(ControlError::Refused { what: what(), status, code, detail, complaints })
            }
        }
    }
}

/// A document of a node's admin listener, which needs no token. One attempt.
pub(crate) async fn look<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> Result<T, String> {
    let request =
        Request::get(format!("http://{admin}{path}")).body(Full::default()).map_err(|e| e.to_string())?;
    let (_, answer) = exchange_with_admin(request).await?;
    serde_json::from_slice(&answer).map_err(|e| e.to_string())
}

/// Asks an admin listener something that takes a body. One attempt; the answer is whatever it says.
pub(crate) async fn ask_admin(
    admin: SocketAddr,
    path: &str,
    question: &impl Serialize,
    accept: &'static str,
) -> Result<(StatusCode, Bytes), String> {
    let (body, kind) = to_json(question);
    let request = Request::post(format!("http://{admin}{path}"))
        .header(CONTENT_TYPE, kind)
        .header(ACCEPT, accept)
        .body(Full::new(body))
        .map_err(|e| e.to_string())?;
    exchange_with_admin(request).await
}

async fn exchange_with_admin(request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
    let http: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let exchange = async {
        let response = http.request(request).await.map_err(|e| causes(&e))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, answer.map_err(|e| e.to_string())?.to_bytes()))
    };
    tokio::time::timeout(LOOK_DEADLINE, exchange)
        .await
        .unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

/// What a problem says, or the text as it is where it is none.
pub(crate) fn told(answer: &str) -> String {
    serde_json::from_str::<Problem>(answer).map_or_else(|_| answer.to_owned(), |problem| problem.whole())
}

enum Attempt {
    Answered(Bytes),
    /// Nobody there, or not yet: worth another attempt.
    Absent(String),
    /// Somebody there who cannot, and says why: worth one too.
    NotNow(String),
}

fn to_json(value: &impl Serialize) -> (Bytes, &'static str) {
    let bytes = serde_json::to_vec(value).expect("bodies are plain structs with string keys");
    (bytes.into(), "application/json")
}

/// A SKU may hold spaces, `?` and `#`.
fn segment(text: &str) -> impl std::fmt::Display + '_ {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}

/// "connection refused" hides two causes deep in the client's error.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_remedy() {
        let whole = |text: &str| serde_json::from_str::<Problem>(text).unwrap_or_default().whole();
        assert_eq!(whole(r#"{"detail":"no room","remedy":"Ask.","title":"Full"}"#), "no room. Ask.");
        assert_eq!(whole(r#"{"detail":"No room.","remedy":"Ask."}"#), "No room. Ask.");
        assert_eq!(whole(r#"{"title":"Full"}"#), "Full");
        assert_eq!(whole("<html>"), "");
    }
}

//! `/explain` of the operators' listener: what a cache would do with a request, and why, without doing it.
//!
//! Owns the reading of the question and the two forms of the answer, text and JSON. The request goes through the same
//! reading as a shopper's; what would become of it is the cache's to say, of upstreams' responses here, of a node's own
//! answers by `mount` and `page_cache::catalogue`. Never served on the public port: it tells what is stored to whoever asks.

use std::fmt;

use http::header::{ACCEPT, AGE, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, request};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use souk_cache::freshness::Use;
use souk_cache::freshness::arithmetic::Arithmetic;
use souk_cache::status::CACHE_STATUS;
use souk_cache::{Explanation, Outcome, date};
use souk_config::CachePolicy;

use super::Proxy;
use super::sliced::InSlices;
use crate::http::{Body, RequestBody, full, json, read_json};
use crate::listen::Peer;
use crate::rescue::{Problem, Refusal};

/// A head as large as a shopper may send, and JSON around it.
const QUESTION_BYTES_MAX: usize = 128 * 1024;

/// The request that is asked about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    url: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
}

/// What is asked about, read.
pub(crate) struct Asking {
    question: Question,
    head: request::Parts,
    as_json: bool,
}

impl Asking {
    /// Reads `GET /explain?url=…` (`&method=`), and `POST /explain` with `{"url", "method", "headers": [["Name", "value"]]}`.
    pub(crate) async fn read(request: Request<RequestBody>) -> Result<Self, Problem> {
        let as_json = wants_json(request.headers());
        let question = read(request).await?;
        let head = head_of(&question)?;
        Ok(Self { question, head, as_json })
    }

    /// The head of the request that is asked about.
    pub(crate) fn head(&self) -> &request::Parts {
        &self.head
    }

    /// Whoever asks, as if he came by the URL's own scheme, which is part of the key.
    pub(crate) fn client(&self, peer: Peer) -> Peer {
        let tls = self.question.url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        Peer { tls, ..peer }
    }

    /// The answer to it.
    pub(crate) fn answer(&self, told: &Told) -> Result<Response<Body>, Problem> {
        let Self { question, head, as_json } = self;
        let about = format!("{} {}", head.method, question.url);
        let Told { explained, slices, of, policy, by, homes } = told;
        if *as_json {
            let mut object = Map::new();
            object.insert("about".into(), about.into());
            object.insert("of".into(), (*of).into());
            object.insert("policy".into(), json!({"name": policy, "route": by.route()}));
            match explained {
                Ok(explanation) => {
                    object.extend(members(explanation));
                    let slices = slices.as_ref().map(|slices| match slices {
                        InSlices::Head(head) => json!({"head": members(head)}),
                        InSlices::Gone => json!({"head": null}),
                    });
                    object.insert("slices".into(), slices.into());
                    let home = |(node, state): &(String, &str)| json!({"node": node, "state": state});
                    let homes: Option<Vec<Value>> =
                        homes.as_ref().map(|homes| homes.iter().map(home).collect());
                    object.insert("homes".into(), homes.into());
                }
                Err(problem) => object.extend(members_of_refusal(problem)),
            }
            return json(StatusCode::OK, &object);
        }
        let text = match explained {
            Ok(explanation) => {
                let home = homes.as_deref().map(home).unwrap_or_default();
                let slices = slices.as_ref().map(in_slices).unwrap_or_default();
                format!("{about}\nof          {of}\npolicy      {policy}, {by}\n{explanation}{slices}{home}")
            }
            Err(problem) => {
                let Problem { refusal, detail, .. } = problem;
                let (code, status) = (refusal.code(), refusal.status().as_u16());
                format!("{about}\noutcome     refused ({code}), {status}: {detail}\n")
            }
        };
        let mut response = Response::new(full(text));
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        Ok(response)
    }
}

/// What would become of a request.
pub(crate) struct Told {
    pub(crate) explained: Result<Explanation, Problem>,
    /// Of what is kept in slices.
    slices: Option<InSlices>,
    /// Whose answers they are: `upstream`, `plugin` or `api`.
    pub(crate) of: &'static str,
    /// How far the cache goes.
    pub(crate) policy: &'static str,
    pub(crate) by: By,
    /// The nodes of this place that are asked for it.
    homes: Option<Vec<(String, &'static str)>>,
}

/// Why the cache goes as far as it goes.
pub(crate) enum By {
    /// By a route of the settings, or by none.
    Route(Option<String>),
    /// By what answers there.
    Nature(String),
}

impl By {
    fn route(&self) -> Option<&str> {
        match self {
            Self::Route(route) => route.as_deref(),
            Self::Nature(_) => None,
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(Some(route)) => write!(f, "by route {route}"),
            Self::Route(None) => f.write_str("no route says otherwise"),
            Self::Nature(why) => f.write_str(why),
        }
    }
}

impl Told {
    /// Of an answer of the node's own.
    pub(crate) fn own(explained: Result<Explanation, Problem>, of: &'static str, why: String) -> Self {
        let policy = CachePolicy::Safe.name();
        Self { explained, slices: None, of, policy, by: By::Nature(why), homes: None }
    }
}

/// What a proxy would do with it.
pub(crate) async fn of_proxy(proxy: &Proxy, asking: &Asking, peer: Peer, now_ms: u64) -> Told {
    let (policy, route) = proxy.config().ruling(asking.head.uri.path());
    let by = By::Route(route.map(ToString::to_string));
    let (explained, slices) = match proxy.explain(&asking.head, asking.client(peer), now_ms).await {
        Ok((explanation, slices)) => (Ok(explanation), slices),
        Err(problem) => (Err(problem), None),
    };
    let homes = explained.as_ref().ok().and_then(|explanation| proxy.homes(&explanation.key));
    let owned = |(node, state): (&str, &'static str)| (node.to_owned(), state);
    let homes = homes.map(|homes| homes.into_iter().map(owned).collect());
    Told { explained, slices, of: "upstream", policy: policy.name(), by, homes }
}

/// The head of what is kept in slices, under it what would become of a question for that.
fn in_slices(slices: &InSlices) -> String {
    match slices {
        InSlices::Head(head) => {
            let head: String = head.to_string().lines().map(|line| format!("  {line}\n")).collect();
            format!(
                "slices      put together under the head that follows; each slice is found or fetched by itself\n{head}"
            )
        }
        InSlices::Gone => {
            "slices      the head is stored no more: it is asked for as if nothing were known of it\n"
                .to_owned()
        }
    }
}

/// Which node fetches this for the place, and which ones are asked in its place.
fn home(nodes: &[(String, &'static str)]) -> String {
    let nodes: Vec<_> = nodes.iter().map(|(node, state)| format!("{node} ({state})")).collect();
    format!("home        {}\n", nodes.join(", then "))
}

fn wants_json(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"application/json"))
}

async fn read(request: Request<RequestBody>) -> Result<Question, Problem> {
    let (head, body) = request.into_parts();
    match head.method {
        Method::GET => {
            let query = head.uri.query().unwrap_or_default();
            let mut question = Question { url: String::new(), method: None, headers: Vec::new() };
            for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
                match &*name {
                    "url" => question.url = value.into_owned(),
                    "method" => question.method = Some(value.into_owned()),
                    _ => return Err(Problem::new(Refusal::BadQuery, "only url and method are known")),
                }
            }
            Ok(question)
        }
        Method::POST => read_json(&head.headers, body, QUESTION_BYTES_MAX).await,
        _ => Err(Problem::method("GET, POST")),
    }
}

/// The head that a client would send for this URL. The path stays as it is written: a normalised one is another key.
fn head_of(question: &Question) -> Result<request::Parts, Problem> {
    let bad = |why: String| Problem::new(Refusal::BadQuery, why);
    let whole = |why: &str| {
        bad(format!("url {:?} {why}: write it whole, like http://shop.example/tea", question.url))
    };
    let url: Uri = question.url.parse().map_err(|_| whole("is none"))?;
    let (Some(_), Some(authority)) = (url.scheme(), url.authority()) else {
        return Err(whole("lacks scheme or host"));
    };
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    let method = question.method.as_deref().unwrap_or("GET");
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in &question.headers {
        let name = HeaderName::try_from(name).map_err(|e| bad(format!("header {name:?}: {e}")))?;
        let value = HeaderValue::try_from(value).map_err(|e| bad(format!("header {name}: {e}")))?;
        request = request.header(name, value);
    }
    // Like a client that connects to the URL and says another Host.
    if !request.headers_ref().is_some_and(|headers| headers.contains_key(HOST)) {
        request = request.header(HOST, authority.as_str());
    }
    Ok(request.body(()).map_err(|e| bad(e.to_string()))?.into_parts().0)
}

fn members_of_refusal(problem: &Problem) -> [(String, Value); 2] {
    let Problem { refusal, detail, .. } = problem;
    let refused = json!({"code": refusal.code(), "status": refusal.status().as_u16(), "detail": detail});
    [("outcome".to_owned(), "refused".into()), ("refusal".to_owned(), refused)]
}

fn members(explanation: &Explanation) -> Map<String, Value> {
    let Explanation { key, outcome, answer, variant, variants, stored, fetches, remembered, tier, .. } =
        explanation;
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let answer = answer.as_ref().map(|(status, headers)| {
        json!({
            "status": status.as_u16(),
            "age": headers.get(AGE).map(text),
            "cache_status": headers.get_all(CACHE_STATUS).iter().map(text).collect::<Vec<_>>(),
        })
    });
    let stored = stored.as_ref().map(|stored| {
        json!({
            "status": stored.status.as_u16(),
            "fields": stored.fields.iter().map(|(name, value)| (name.as_str(), value)).collect::<Vec<_>>(),
            "cookies": stored.cookies,
            "bytes": stored.length,
            "whole": stored.whole,
            "encodings": stored.encodings,
            "part": stored.span.map(|span| json!({"first": span.first, "end": span.end, "complete": span.complete})),
            "freshness": freshness(&stored.arithmetic),
        })
    });
    let object = json!({
        "outcome": outcome.name(),
        "sentence": outcome.to_string(),
        "reason": reason(outcome),
        "upstream_is_asked_with": match outcome {
            Outcome::Fetches { with, .. } => with.iter().map(|(name, value)| (name.as_str(), text(value))).collect(),
            _ => Vec::new(),
        },
        "answer": answer,
        "key": {
            "site": key.site(),
            "scheme": key.scheme().as_str(),
            "authority": key.authority(),
            "target": key.target(),
        },
        "switches": explanation.policy.switches().collect::<Vec<_>>(),
        "variant": variant.iter().map(|(name, value)| (name.as_str(), value)).collect::<Vec<_>>(),
        "variants": variants,
        "fetches": fetches,
        "remembered": remembered.map(|(reason, left_ms)| json!({"reason": reason.name(), "left_ms": left_ms})),
        "tier": tier.name(),
        "stored": stored,
    });
    match object {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn reason(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Hit | Outcome::Stale { .. } | Outcome::OnlyIfCached => None,
        Outcome::Joins(why) | Outcome::Waits(why) | Outcome::Fetches { why, .. } => Some(why.as_str()),
        Outcome::Passes(reason) => Some(reason.name()),
    }
}

fn freshness(sums: &Arithmetic) -> Value {
    json!({
        "response_time": date::format(sums.response_time_ms),
        "date_value": sums.date_value_s.map(|seconds| date::format(seconds.saturating_mul(1_000))),
        "apparent_age_s": sums.apparent_age_s,
        "age_value_s": sums.reckoned.age_value_s,
        "response_delay_s": sums.reckoned.response_delay_s,
        "corrected_initial_age_s": sums.corrected_initial_age_s,
        "resident_time_s": sums.resident_time_s,
        "current_age_s": sums.current_age_s,
        "freshness_lifetime_s": sums.lifetime_s,
        "freshness_lifetime_from": sums.reckoned.lifetime.rule(),
        "targeted": sums.reckoned.targeted,
        "ttl_s": sums.ttl_s,
        "stale_while_revalidate_s": sums.while_revalidate_s,
        "stale_if_error_s": sums.if_error_s,
        "never_stale": sums.never_stale,
        "always_ask": sums.always_ask,
        "usable": match sums.usable {
            Use::Fresh => "fresh",
            Use::WhileRevalidating => "while_revalidating",
            Use::Ask => "ask",
        },
        "usable_on_error": sums.usable_on_error,
    })
}

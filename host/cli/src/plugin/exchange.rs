//! A test of an HTTP plugin, as a file: one request to a fresh instance, and what must come back.
//!
//! ```json
//! {
//!   "souk_exchange": 1,
//!   "name": "GET is answered with the path",
//!   "env": { "LANG": "en" },
//!   "config": { "theme": "dark" },
//!   "request": { "path": "/hello?a=1", "headers": { "accept": "application/json" } },
//!   "expect": { "status": 200, "headers": { "content-type": "application/json" }, "json": { "path": "/hello" } }
//! }
//! ```
//!
//! What is left out of a request is a GET without a body to `shop.example`. What is left out of the expectation is not
//! looked at; a header that is expected must be there, others may be. A body is expected as text (`body`) or as JSON
//! (`json`, where order and spaces say nothing); `{"fault": "trap"}` expects the guest to fail. Nothing is granted, so
//! outgoing requests are refused.
//!
//! Run by [`super::test`], which owns the verdicts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::Value;
use souk_sandbox::http::{Body, HttpEngine, HttpFault, HttpLimits, HttpPlugin, HttpService, Terms};

use super::trial;
use crate::failure::Usage;

/// Of the form of the file.
const VERSION: u32 = 1;
/// Largest file that is read as an exchange, and largest body that is compared.
const BYTES_MAX: usize = 2 << 20;
/// How much of a body is shown that is not as expected.
const SHOWN_CHARS_MAX: usize = 500;
const HOST: &str = "shop.example";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exchange {
    #[serde(rename = "souk_exchange")]
    version: u32,
    /// What it shows, in a sentence.
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    config: BTreeMap<String, String>,
    request: Asked,
    expect: Expected,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default = "get")]
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
}

fn get() -> String {
    "GET".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    json: Option<Value>,
    /// The name of the failure, instead of all that.
    fault: Option<String>,
}

impl Exchange {
    pub(super) fn decode(text: &[u8]) -> Result<Self, String> {
        let exchange: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if exchange.version != VERSION {
            return Err(format!("souk_exchange is {}, and this program reads {VERSION}", exchange.version));
        }
        let Expected { status, headers, body, json, fault } = &exchange.expect;
        match (status, fault) {
            (None, None) => return Err("expect needs a status, or a fault".to_owned()),
            (Some(_), None) => {}
            (_, Some(_)) if headers.is_empty() && status.is_none() && body.is_none() && json.is_none() => {}
            (_, Some(_)) => return Err("a fault has no status, no headers and no body".to_owned()),
        }
        if body.is_some() && json.is_some() {
            return Err("expect a body or json, not both".to_owned());
        }
        exchange.asked()?;
        Ok(exchange)
    }

    fn asked(&self) -> Result<Request<Full<Bytes>>, String> {
        let Asked { method, path, headers, body } = &self.request;
        if !path.starts_with('/') {
            return Err(format!("path {path:?} must begin with '/'"));
        }
        let mut request = Request::builder().method(method.as_str()).uri(format!("http://{HOST}{path}"));
        if !headers.keys().any(|name| name.eq_ignore_ascii_case("host")) {
            request = request.header(header::HOST, HOST);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        request.body(body).map_err(|error| format!("the request is not valid: {error}"))
    }

    /// What is wrong with the component's answer, in sentences; nothing if it is as expected.
    pub(super) async fn wrong(&self, plugin: &Arc<HttpPlugin>) -> anyhow::Result<Vec<String>> {
        let pairs = |map: &BTreeMap<String, String>| {
            map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let terms = Terms { env: pairs(&self.env), config: pairs(&self.config), ..Terms::default() };
        let request = self.asked().map_err(anyhow::Error::msg)?;
        let answered = match HttpService::new(Arc::clone(plugin), terms).handle(request).await {
            Ok(response) => whole(response).await?,
            Err(fault) => Err(fault),
        };
        Ok(match (answered, &self.expect.fault) {
            (Err(fault), Some(expected)) if fault.name() == expected => Vec::new(),
            (Err(fault), Some(expected)) => {
                vec![format!("expected the fault {expected}"), format!("came out {}: {fault}", fault.name())]
            }
            (Err(fault), None) => vec![format!("failed ({}): {fault}", fault.name())],
            (Ok(answer), Some(expected)) => {
                vec![
                    format!("expected the fault {expected}"),
                    format!("came out an answer, {}", answer.status),
                ]
            }
            (Ok(answer), None) => self.expect.differences(&answer),
        })
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

/// Reads the body to its end, where a guest may still fail.
async fn whole(response: Response<Body>) -> anyhow::Result<Result<Answer, HttpFault>> {
    let (head, body) = response.into_parts();
    let body = match Limited::new(body, BYTES_MAX).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            anyhow::bail!("the answer's body is larger than {BYTES_MAX} bytes, too large for a fixture")
        }
        Err(error) => match error.downcast::<HttpFault>() {
            Ok(fault) => return Ok(Err(*fault)),
            Err(error) => return Err(anyhow::Error::from_boxed(error)).context("read the answer's body"),
        },
    };
    Ok(Ok(Answer { status: head.status.as_u16(), headers: head.headers, body }))
}

impl Expected {
    fn differences(&self, answer: &Answer) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(status) = self.status.filter(|status| *status != answer.status) {
            wrong.push(format!("expected the status {status}, came out {}", answer.status));
        }
        for (name, value) in &self.headers {
            let all: Vec<_> = answer
                .headers
                .get_all(name)
                .iter()
                .map(|seen| String::from_utf8_lossy(seen.as_bytes()))
                .collect();
            let seen = all.join(", ");
            if all.is_empty() {
                wrong.push(format!("expected {name}: {value}, came out none"));
            } else if seen != *value {
                wrong.push(format!("expected {name}: {value}, came out {seen}"));
            }
        }
        let text = String::from_utf8_lossy(&answer.body);
        if let Some(body) = self.body.as_ref().filter(|body| body.as_bytes() != answer.body) {
            wrong.push(format!("expected the body {}", shown(body)));
            wrong.push(format!("came out {}", shown(&text)));
        }
        if let Some(json) = &self.json {
            match serde_json::from_slice::<Value>(&answer.body) {
                Ok(seen) if seen == *json => {}
                Ok(seen) => {
                    wrong.push(format!("expected {}", shown(&json.to_string())));
                    wrong.push(format!("came out {}", shown(&seen.to_string())));
                }
                Err(error) => wrong.push(format!("expected JSON, came out {}: {error}", shown(&text))),
            }
        }
        wrong
    }
}

/// On one line, without what could steer a terminal.
fn shown(text: &str) -> String {
    let mut quoted = format!("{:?}", text.chars().take(SHOWN_CHARS_MAX).collect::<String>());
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        quoted.push('…');
    }
    quoted
}

/// All exchanges of a folder by their file names, in that order.
pub(super) fn exchanges(folder: &Path) -> anyhow::Result<Vec<(String, Exchange)>> {
    let files = trial::json_files(folder)?.into_iter();
    files
        .map(|file| {
            let text = trial::read_bounded(&file, BYTES_MAX)?;
            let exchange =
                Exchange::decode(&text).map_err(|why| Usage(format!("{}: {why}", file.display())))?;
            Ok((file.file_stem().unwrap_or_default().to_string_lossy().into_owned(), exchange))
        })
        .collect()
}

/// Compiles the component and puts each exchange to it.
pub(super) fn judge(component: &[u8], exchanges: &[(String, Exchange)]) -> anyhow::Result<Vec<Vec<String>>> {
    let engine = HttpEngine::new(HttpLimits::default())?;
    let plugin = engine.load(component)?;
    // Guests run on tasks of their own, and time out by this clock.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut verdicts = Vec::with_capacity(exchanges.len());
        for (file, exchange) in exchanges {
            verdicts.push(exchange.wrong(&plugin).await.with_context(|| file.clone())?);
        }
        Ok(verdicts)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(request: &str, expect: &str) -> Result<Exchange, String> {
        let text = format!(r#"{{"souk_exchange": 1, "request": {request}, "expect": {expect}}}"#);
        Exchange::decode(text.as_bytes())
    }

    #[test]
    fn what_could_not_pass_or_could_not_fail_is_refused_by_name() {
        let path = r#"{"path": "/"}"#;
        for (request, expect, said) in [
            (path, "{}", "needs a status"),
            (path, r#"{"status": 200, "fault": "trap"}"#, "a fault has no status"),
            (path, r#"{"status": 200, "body": "", "json": 1}"#, "not both"),
            (path, r#"{"status": 200, "bodyy": ""}"#, "unknown field"),
            (r#"{"path": "hello"}"#, r#"{"status": 200}"#, "must begin with '/'"),
            (r#"{"path": "/", "method": "G T"}"#, r#"{"status": 200}"#, "not valid"),
            (r#"{"path": "/", "headers": {"a b": ""}}"#, r#"{"status": 200}"#, "not valid"),
        ] {
            let error = decoded(request, expect).expect_err(expect);
            assert!(error.contains(said), "{request} {expect}: {error}");
        }
        let newer = br#"{"souk_exchange": 2, "request": {"path": "/"}, "expect": {"status": 200}}"#;
        assert!(Exchange::decode(newer).expect_err("newer").contains("reads 1"));
    }

    #[test]
    fn each_difference_is_said() {
        let exchange = decoded(
            r#"{"path": "/"}"#,
            r#"{"status": 200, "headers": {"content-type": "text/plain", "vary": "accept"}, "json": {"a": 1}}"#,
        )
        .expect("an exchange");
        let answer = |status, kind: &'static str, body: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", http::HeaderValue::from_static(kind));
            headers.insert("vary", http::HeaderValue::from_static("accept"));
            exchange.expect.differences(&Answer {
                status,
                headers,
                body: Bytes::from_static(body.as_bytes()),
            })
        };
        assert_eq!(answer(200, "text/plain", r#" { "a" : 1 } "#), Vec::<String>::new());
        let wrong = answer(404, "text/html", "\u{1b}[2J");
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong.iter().all(|line| !line.contains('\u{1b}')), "{wrong:?}");
    }
}

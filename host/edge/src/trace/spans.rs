//! What OTLP says of one request: up to three spans, in the JSON of OTLP/HTTP (opentelemetry-proto 1.x).
//!
//! Names of attributes are those of OpenTelemetry's semantic conventions; `souk.*` is ours. Neither queries nor addresses
//! nor any field of a shopper is among them.

use std::time::Duration;

use http::{Method, StatusCode, Version};
use serde_json::{Value, json};

use super::{Place, Spans};

const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
/// `STATUS_CODE_ERROR`.
const FAILED: u8 = 2;
/// A path that is longer says nothing more to whoever looks at a trace.
pub(crate) const PATH_BYTES_MAX: usize = 512;

/// A request that was traced, from its head to the head of its answer.
#[derive(Clone, Debug)]
pub(crate) struct Traced {
    pub(crate) place: Place,
    pub(crate) at_ms: u64,
    pub(crate) spans: Spans,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) version: Version,
    pub(crate) status: StatusCode,
    /// `hit`, `fill`, `pass` and so on.
    pub(crate) outcome: &'static str,
    pub(crate) reason: Option<&'static str>,
}

/// The body of one export.
pub(super) fn export(node: &str, batch: &[Traced]) -> Vec<u8> {
    let spans: Vec<Value> = batch.iter().flat_map(spans).collect();
    let resource = [text("service.name", "souk"), text("service.instance.id", node)];
    let scope = json!({"name": "souk", "version": env!("CARGO_PKG_VERSION")});
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]})
    .to_string()
    .into_bytes()
}

fn spans(traced: &Traced) -> Vec<Value> {
    let Traced { place, at_ms, spans, .. } = traced;
    let began = Duration::from_millis(*at_ms);
    let span = |id: u64, parent: Option<u64>, name: &str, kind: u8, from: Duration, spent: Duration| {
        let mut span = json!({
            "traceId": place.id(),
            "spanId": format!("{id:016x}"),
            "name": name,
            "kind": kind,
            // 64-bit numbers are strings in the JSON of protobuf.
            "startTimeUnixNano": (began + from).as_nanos().to_string(),
            "endTimeUnixNano": (began + from + spent).as_nanos().to_string(),
        });
        if let Some(parent) = parent {
            span["parentSpanId"] = format!("{parent:016x}").into();
        }
        span
    };
    let own = Some(place.request);
    let mut request =
        span(place.request, place.parent, traced.method.as_str(), SERVER, Duration::ZERO, spans.total);
    request["attributes"] = attributes(traced);
    if traced.status.is_server_error() {
        request["status"] = json!({"code": FAILED});
    }
    let mut out = vec![request];
    if let Some(spent) = spans.in_cache {
        // Its name depends on nothing else: the last of the ids that the request has.
        out.push(span(place.request ^ place.upstream, own, "cache", INTERNAL, Duration::ZERO, spent));
    }
    if let Some(spent) = spans.at_upstream {
        let from = spans.in_cache.unwrap_or_default();
        out.push(span(place.upstream, own, "upstream", CLIENT, from, spent));
    }
    out
}

fn attributes(traced: &Traced) -> Value {
    let version = match traced.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    let mut out = vec![
        text("http.request.method", traced.method.as_str()),
        json!({"key": "http.response.status_code", "value": {"intValue": traced.status.as_u16().to_string()}}),
        text("url.path", &traced.path),
        text("server.address", &traced.host),
        text("network.protocol.version", version),
        text("souk.cache", traced.outcome),
    ];
    out.extend(traced.reason.map(|reason| text("souk.reason", reason)));
    out.into()
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_is_three_spans_of_one_trace() {
        let traced = Traced {
            place: Place { trace: 0xabc, parent: Some(0x1), request: 0x2, upstream: 0x5, sampled: true },
            at_ms: 1_800_000_000_000,
            spans: Spans {
                total: Duration::from_micros(1_500),
                in_cache: Some(Duration::from_micros(200)),
                at_upstream: Some(Duration::from_micros(1_000)),
            },
            method: Method::GET,
            path: "/tea".to_owned(),
            host: "shop.example".to_owned(),
            version: Version::HTTP_11,
            status: StatusCode::BAD_GATEWAY,
            outcome: "refused",
            reason: Some("upstream_broke"),
        };
        let body: Value = serde_json::from_slice(&export("node", &[traced])).expect("JSON");
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone();
        let told: Vec<_> = spans
            .iter()
            .map(|span| {
                let text = |name: &str| span[name].as_str().unwrap_or("-").to_owned();
                let (from, to) = (text("startTimeUnixNano"), text("endTimeUnixNano"));
                format!(
                    "{} {} {} {} {from} {to}",
                    text("name"),
                    span["kind"],
                    text("spanId"),
                    text("parentSpanId")
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                "GET 2 0000000000000002 0000000000000001 1800000000000000000 1800000000001500000",
                "cache 1 0000000000000007 0000000000000002 1800000000000000000 1800000000000200000",
                "upstream 3 0000000000000005 0000000000000002 1800000000000200000 1800000000001200000",
            ]
        );
        assert!(spans.iter().all(|span| span["traceId"] == format!("{:032x}", 0xabc)));
        assert_eq!(spans[0]["status"]["code"], 2);
    }
}

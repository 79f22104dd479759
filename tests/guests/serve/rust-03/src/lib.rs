//! The tour of `souk serve` (`../README.md`), in Rust with the public crate `wasip3`: `wasi:http` 0.3.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use wasip3::http::client;
use wasip3::http::types::{self, ErrorCode};
use wasip3::http_compat::{
    IncomingRequestBody, http_from_wasi_request, http_from_wasi_response, http_into_wasi_request,
    http_into_wasi_response,
};

const CHUNK: usize = 4096;
const CHUNKS: usize = 256;

type Body = UnsyncBoxBody<Bytes, ErrorCode>;

struct Tour;

wasip3::http::service::export!(Tour);

impl wasip3::exports::http::handler::Guest for Tour {
    async fn handle(request: types::Request) -> Result<types::Response, ErrorCode> {
        http_into_wasi_response(answer(http_from_wasi_request(request)?).await?)
    }
}

async fn answer(request: Request<IncomingRequestBody>) -> Result<Response<Body>, ErrorCode> {
    let body = match request.uri().path() {
        "/stream" => chunks((0..CHUNKS).map(|_| vec![b'x'; CHUNK])),
        "/echo" => request.into_body().boxed_unsync(),
        "/trailers" => return trailers(request),
        "/partial" => chunks((0..2).map(|i| if i == 0 { vec![b'x'; CHUNK] } else { panic!("half-way") })),
        "/fetch" => return fetch(request.uri().query().unwrap_or_default()).await,
        _ => text("Hello from Rust 0.3\n".to_owned()),
    };
    Ok(Response::new(body))
}

fn text(text: String) -> Body {
    Full::from(text).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn chunks(chunks: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Body {
    StreamBody::new(stream::iter(chunks.map(|chunk| Ok(Frame::data(Bytes::from(chunk)))))).boxed_unsync()
}

/// The body comes back as it was; the trailer `x-sent` comes back as `x-seen`, the names of all of them as `x-names`.
fn trailers(request: Request<IncomingRequestBody>) -> Result<Response<Body>, ErrorCode> {
    let body = request.into_body().map_frame(|frame| match frame.into_trailers() {
        Ok(sent) => Frame::trailers(seen(&sent)),
        Err(data) => data,
    });
    let response = Response::builder().header("trailer", "x-seen, x-names").body(body.boxed_unsync());
    response.map_err(|error| ErrorCode::InternalError(Some(error.to_string())))
}

fn seen(sent: &HeaderMap) -> HeaderMap {
    let names: Vec<_> = sent.keys().map(|name| name.as_str()).collect();
    let mut seen = HeaderMap::new();
    seen.insert("x-names", names.join(" ").parse().expect("names are plain"));
    if let Some(value) = sent.get("x-sent") {
        seen.insert("x-seen", value.clone());
    }
    seen
}

async fn fetch(query: &str) -> Result<Response<Body>, ErrorCode> {
    let url = query.strip_prefix("url=").unwrap_or_default();
    let nothing = Empty::<Bytes>::new();
    let request = Request::get(url).body(nothing).map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
    Ok(match client::send(http_into_wasi_request(request)?).await {
        Ok(answer) => {
            let answer = http_from_wasi_response(answer)?;
            let status = answer.status().as_u16();
            let got = answer.into_body().collect().await?.to_bytes();
            Response::new(text(format!("fetched {status} {}", String::from_utf8_lossy(&got))))
        }
        Err(error) => {
            let mut refused = Response::new(text(format!("refused: {error:?}")));
            *refused.status_mut() = StatusCode::BAD_GATEWAY;
            refused
        }
    })
}

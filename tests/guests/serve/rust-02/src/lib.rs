//! The tour of `souk serve` (`../README.md`), in Rust with the public crate `wstd`: `wasi:http` 0.2.

use futures_lite::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use wstd::http::body::{Body, Frame};
use wstd::http::{Client, Error, HeaderMap, Request, Response, StatusCode};

const CHUNK: usize = 4096;
const CHUNKS: usize = 256;

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    match request.uri().path() {
        "/stream" => Ok(Response::new(Body::from_stream(stream::iter((0..CHUNKS).map(|_| vec![b'x'; CHUNK]))))),
        "/echo" => Ok(Response::new(request.into_body())),
        "/trailers" => trailers(request),
        "/partial" => {
            let parts = stream::iter(0..2).map(|i| if i == 0 { vec![b'x'; CHUNK] } else { panic!("half-way") });
            Ok(Response::new(Body::from_stream(parts)))
        }
        "/fetch" => fetch(request.uri().query().unwrap_or_default()).await,
        _ => Ok(Response::new("Hello from Rust 0.2\n".into())),
    }
}

/// The body comes back as it was; the trailer `x-sent` comes back as `x-seen`, the names of all of them as `x-names`.
fn trailers(request: Request<Body>) -> Result<Response<Body>, Error> {
    let body = request.into_body().into_boxed_body().map_frame(|frame| match frame.into_trailers() {
        Ok(sent) => Frame::trailers(seen(&sent)),
        Err(data) => data,
    });
    Ok(Response::builder().header("trailer", "x-seen, x-names").body(Body::from_http_body(body))?)
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

async fn fetch(query: &str) -> Result<Response<Body>, Error> {
    let url = query.strip_prefix("url=").unwrap_or_default();
    let said = match Client::new().send(Request::get(url).body(Body::empty())?).await {
        Ok(mut answer) => {
            let status = answer.status().as_u16();
            format!("fetched {status} {}", answer.body_mut().str_contents().await?)
        }
        Err(error) => {
            let refused = format!("refused: {error:#}").into();
            return Ok(Response::builder().status(StatusCode::BAD_GATEWAY).body(refused)?);
        }
    };
    Ok(Response::new(said.into()))
}

//! The server behind both caches: three pages that may be kept for a day, and a count of how often it was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// The small page.
pub(crate) const PAGE_BYTES: usize = 1024;
const PICTURE_BYTES: usize = 100 * 1024;

static ASKED: AtomicUsize = AtomicUsize::new(0);

/// How often a page was asked for.
pub(crate) fn asked() -> usize {
    ASKED.load(Ordering::SeqCst)
}

/// What is at a path.
pub(crate) fn body(path: &str) -> Bytes {
    let length = if path.ends_with("100k") { PICTURE_BYTES } else { PAGE_BYTES };
    // No two lines alike, so that nothing that is cut or doubled goes unseen.
    (0..length).map(|at| b'a' + u8::try_from((at / 7 + at / 251) % 26).unwrap_or(0)).collect()
}

/// On a thread of its own.
pub(crate) fn start() -> Result<SocketAddr> {
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    socket.set_nonblocking(true)?;
    let addr = socket.local_addr()?;
    std::thread::Builder::new().name("origin".to_owned()).spawn(move || serve(socket))?;
    Ok(addr)
}

fn serve(socket: std::net::TcpListener) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        loop {
            let (stream, _) = socket.accept().await?;
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(page));
            tokio::spawn(async move { drop(served.await) });
        }
    })
}

async fn page(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    ASKED.fetch_add(1, Ordering::SeqCst);
    let answer = Response::builder()
        .header("content-type", "application/octet-stream")
        .header("cache-control", "public, max-age=86400")
        .header("etag", "\"of-the-day\"")
        .header("last-modified", "Mon, 02 Nov 2026 08:00:00 GMT");
    Ok(answer.body(Full::new(body(request.uri().path()))).expect("valid fields"))
}

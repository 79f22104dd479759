//! Components that were made with the public tools of five tool chains, unmodified under `souk serve`: the same tour of
//! each (`tests/guests/serve`). What the machine has no tools for, or not the crates, is skipped aloud.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use souk_tests::tools::{self, Begun, Language};
use souk_tests::{no_wasm_toolchain, root, say, skip};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::serve::Serve;

const MIB: usize = 1 << 20;
const CHUNK: usize = 16 << 10;
/// A component of 20 MB is compiled when `souk serve` starts, and its first request may be slow in a debug build.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn rust_with_wstd_and_wasi_0_2() -> Result<()> {
    take("rust 0.2", crate_of("rust-02")?, Trailers::Named).await
}

#[tokio::test]
async fn rust_with_wasip3_and_wasi_0_3() -> Result<()> {
    take("rust 0.3", crate_of("rust-03")?, Trailers::Named).await
}

#[tokio::test]
async fn c_with_wit_bindgen() -> Result<()> {
    take("c", project_of(Language::C, "c/tour.c", "src/plugin.c")?, Trailers::Yes).await
}

#[tokio::test]
async fn javascript_with_jco() -> Result<()> {
    // The fetch API has no trailers.
    take("js", project_of(Language::Js, "js/tour.js", "src/plugin.js")?, Trailers::No).await
}

#[tokio::test]
async fn python_with_componentize_py() -> Result<()> {
    take("python", project_of(Language::Python, "python/tour.py", "src/plugin.py")?, Trailers::Yes).await
}

#[derive(PartialEq)]
enum Trailers {
    /// And the guest says which it was given.
    Named,
    Yes,
    No,
}

/// A crate of its own, built as any crate is.
fn crate_of(name: &str) -> Result<Begun> {
    if let Some(why) = no_wasm_toolchain() {
        return Ok(Err(why));
    }
    // Outside the sources, where its build may leave what it likes.
    let dir = tools::projects().join(name);
    for file in ["Cargo.toml", "Cargo.lock", "src/lib.rs"] {
        copy(&guests().join(name).join(file), &dir.join(file))?;
    }
    match tools::crates_are_absent(&dir)? {
        Some(why) => Ok(Err(why)),
        None => build(&dir),
    }
}

/// A project of `souk plugin new`, of which nothing is used but the tools.
fn project_of(language: Language, from: &str, to: &str) -> Result<Begun> {
    let dir = match tools::project("tour", language, "http")? {
        Ok(dir) => dir,
        Err(why) => return Ok(Err(why)),
    };
    copy(&guests().join(from), &dir.join(to))?;
    build(&dir)
}

fn guests() -> PathBuf {
    root().join("tests/guests/serve")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    std::fs::create_dir_all(folder)?;
    std::fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

fn build(dir: &Path) -> Result<Begun> {
    tools::run(dir, &["plugin", "build", "--out", "tour.wasm"])?;
    Ok(Ok(dir.join("tour.wasm")))
}

async fn take(name: &str, built: Begun, trailers: Trailers) -> Result<()> {
    let component = match built {
        Ok(file) => std::fs::read(file)?,
        Err(why) => {
            skip(&format!("tour of {name}"), &why);
            return Ok(());
        }
    };
    let neighbour = Neighbour::start().await?;
    let granted = format!("http://localhost:{}", neighbour.port);
    // Interpreters on a slow machine with an unoptimised host take more than the 50 ms of a request that shoppers wait for.
    let grants = ["--allow-private", "--allow-host", &granted, "--processor", "2 s"];
    let serve = Serve::component(&component, &grants).await.with_context(|| name.to_owned())?;
    for version in [Version::Http1, Version::Http2] {
        let tour = Tour { serve: &serve, version };
        tour.streams().await.with_context(|| format!("{name}, {version:?}: streams"))?;
        tour.fetches(neighbour.port).await.with_context(|| format!("{name}, {version:?}: fetches"))?;
        if trailers != Trailers::No {
            let named = trailers == Trailers::Named;
            tour.trailers(named).await.with_context(|| format!("{name}, {version:?}: trailers"))?;
        }
    }
    breaks_off(&serve).await.with_context(|| format!("{name}: breaks off"))?;
    if component.len() < MIB {
        // Once per version of wasi:http is enough, and a large component takes half a minute to compile again.
        refuses_what_is_private(&component, neighbour.port)
            .await
            .with_context(|| format!("{name}: private"))?;
    }
    say(&format!("{name}: {} bytes, all of the tour over HTTP/1.1 and HTTP/2", component.len()));
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

struct Tour<'a> {
    serve: &'a Serve,
    version: Version,
}

type Upload = UnsyncBoxBody<Bytes, Infallible>;

/// What came back for one request, whole.
struct Whole {
    status: u16,
    body: Bytes,
    trailers: HeaderMap,
}

impl Tour<'_> {
    async fn streams(&self) -> Result<()> {
        let hello = self.ask("/", nothing()).await?;
        ensure!(hello.status == 200 && hello.body.starts_with(b"Hello from "), "{:?}", hello.body);
        let streamed = self.ask("/stream", nothing()).await?;
        ensure!(
            streamed.body.len() == MIB && streamed.body.iter().all(|&b| b == b'x'),
            "{}",
            streamed.body.len()
        );
        let sent: Vec<u8> = (0..MIB).map(|i| (i % 251) as u8).collect();
        let echoed = self.ask("/echo", chunked(&sent, None)).await?;
        ensure!(echoed.body == sent, "{} bytes came back of {MIB}", echoed.body.len());
        Ok(())
    }

    /// A granted host answers; this machine by its number, the cloud's metadata and a stranger are refused by name.
    async fn fetches(&self, port: u16) -> Result<()> {
        let granted = self.ask(&format!("/fetch?url=http://localhost:{port}/"), nothing()).await?;
        ensure!(granted.body == "fetched 200 good day", "{} {:?}", granted.status, granted.body);
        for url in [
            format!("http://127.0.0.1:{port}/"),
            "http://169.254.169.254/".to_owned(),
            "http://example.com/".to_owned(),
        ] {
            let refused = self.ask(&format!("/fetch?url={url}"), nothing()).await?;
            ensure!(
                refused.status == 502 && refused.body.starts_with(b"refused"),
                "{url}: {:?}",
                refused.body
            );
        }
        Ok(())
    }

    /// The guest reads a trailer of the request and writes one of the response, behind 1 MiB in each direction. Trailers
    /// that speak for the head do not reach it.
    async fn trailers(&self, named: bool) -> Result<()> {
        let mut sent = HeaderMap::new();
        for name in ["x-sent", "cookie", "proxy-authorization", "if-match"] {
            sent.insert(name, HeaderValue::from_static("at the end"));
        }
        let body = vec![b'y'; MIB];
        let echoed = self.ask("/trailers", chunked(&body, Some(sent))).await?;
        ensure!(echoed.body == body, "{} bytes came back of {MIB}", echoed.body.len());
        ensure!(
            echoed.trailers.get("x-seen").is_some_and(|seen| seen == "at the end"),
            "{:?}",
            echoed.trailers
        );
        let names = echoed.trailers.get("x-names");
        ensure!(!named || names.is_some_and(|names| names == "x-sent"), "{:?}", echoed.trailers);
        Ok(())
    }

    async fn ask(&self, path: &str, body: Upload) -> Result<Whole> {
        timeout(PATIENCE, self.exchange(path, body)).await.with_context(|| format!("{path}: no end of it"))?
    }

    async fn exchange(&self, path: &str, body: Upload) -> Result<Whole> {
        let io = TokioIo::new(TcpStream::connect(self.serve.address).await?);
        let method = if body.size_hint().exact() == Some(0) { "GET" } else { "POST" };
        let request = Request::builder().method(method);
        let response = match self.version {
            Version::Http1 => {
                let (mut send, connection) = hyper::client::conn::http1::handshake(io).await?;
                tokio::spawn(connection);
                // hyper sends only trailers that were announced, and RFC 9110 wants to be asked for some.
                let head = request.uri(path).header(header::HOST, "shop.example");
                let head = head
                    .header(header::TE, "trailers")
                    .header(header::TRAILER, "x-sent, cookie, proxy-authorization, if-match");
                send.send_request(head.body(body)?).await?
            }
            Version::Http2 => {
                let (mut send, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                let head = request.uri(format!("http://shop.example{path}")).header(header::TE, "trailers");
                send.send_request(head.body(body)?).await?
            }
        };
        let status = response.status().as_u16();
        let collected = response.into_body().collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok(Whole { status, body: collected.to_bytes(), trailers })
    }
}

fn nothing() -> Upload {
    Empty::new().boxed_unsync()
}

fn chunked(bytes: &[u8], trailers: Option<HeaderMap>) -> Upload {
    let data = bytes.chunks(CHUNK).map(|chunk| Frame::data(Bytes::copy_from_slice(chunk)));
    let frames: Vec<_> = data.chain(trailers.map(Frame::trailers)).map(Ok).collect();
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// A guest that fails half-way through its body, on a raw socket: what there is of it never looks whole.
async fn breaks_off(serve: &Serve) -> Result<()> {
    let (read, closed) =
        serve.raw("GET /partial HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n").await?;
    let end = String::from_utf8_lossy(&read[read.len().saturating_sub(20)..]).into_owned();
    // Nothing at all, or an error, if the guest failed before its head had left.
    let error = read.starts_with(b"HTTP/1.1 50");
    ensure!(closed, "the connection stays open after {} bytes: {end}", read.len());
    let told = read.is_empty() || error;
    ensure!(told || read.starts_with(b"HTTP/1.1 200"), "{end}");
    ensure!(
        told || !read.ends_with(b"\r\n0\r\n\r\n"),
        "ends as if it were whole: {} bytes, {end}",
        read.len()
    );
    Ok(())
}

/// A grant does not reach into this machine or its network, whatever it is called, unless the operator says so.
async fn refuses_what_is_private(component: &[u8], port: u16) -> Result<()> {
    let named = format!("http://localhost:{port}");
    let number = format!("http://127.0.0.1:{port}");
    let metadata = "http://169.254.169.254";
    let grants = ["--allow-host", &named, "--allow-host", &number, "--allow-host", metadata];
    let serve = Serve::component(component, &grants).await?;
    let tour = Tour { serve: &serve, version: Version::Http1 };
    for url in [&*named, &*number, metadata] {
        let refused = tour.ask(&format!("/fetch?url={url}/"), nothing()).await?;
        ensure!(refused.status == 502 && refused.body.starts_with(b"refused"), "{url}: {:?}", refused.body);
    }
    Ok(())
}

/// A server next door, which guests may fetch from.
struct Neighbour {
    port: u16,
    task: JoinHandle<()>,
}

impl Neighbour {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"good day"))))
                });
                let served =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(served);
            }
        });
        Ok(Self { port, task })
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.task.abort();
    }
}

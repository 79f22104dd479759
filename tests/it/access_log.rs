//! The access log of `souk proxy`, read as an operator would.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use souk_tests::http::Client;
use souk_tests::proxy::Proxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that lets `/page` be kept, and nothing else.
async fn origin() -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|request: Request<Incoming>| async move {
                let control = if request.uri().path() == "/page" { "max-age=60" } else { "private" };
                Response::builder()
                    .header(header::CACHE_CONTROL, control)
                    .body(Full::new(Bytes::from("hello")))
            });
            tokio::spawn(async move {
                drop(http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await)
            });
        }
    });
    Ok(addr)
}

/// So many lines, when they are there.
async fn lines(file: &std::path::Path, count: usize) -> Result<Vec<String>> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.lines().count() >= count && text.ends_with('\n') {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .with_context(|| format!("no {count} lines in {}", file.display()))
}

#[tokio::test]
async fn each_request_is_a_line_of_json() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("access.log");
    let path = file.to_str().context("a path that is text")?;
    let proxy = Proxy::start_with(origin().await?, &["--access-log", path]).await?;
    let client = Client::new(proxy.addr)
        .with("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .with("cookie", "session=secret");
    client.get("/page?token=secret").await?;
    client.get("/page?token=secret").await?;
    client.get("/cart").await?;
    client.get("/a%00b").await?;
    client.send(Method::HEAD, "/page", None).await?;
    let lines = lines(&file, 5).await?;
    let told: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
    let words = |told: &Value| {
        let text = |name: &str| told[name].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {} {} {} {}",
            text("method"),
            text("path"),
            told["status"],
            told["bytes"],
            text("cache"),
            text("reason"),
            told["complete"]
        )
    };
    let told_of: Vec<_> = told.iter().map(words).collect();
    ensure!(
        told_of[..3]
            == [
                "GET /page 200 5 fill - true",
                "GET /page 200 5 hit - true",
                "GET /cart 200 5 pass private true"
            ],
        "{told_of:#?}"
    );
    ensure!(
        told_of[3].starts_with("GET /a%00b 400 ") && told_of[3].ends_with("refused bad_path true"),
        "{told_of:#?}"
    );
    ensure!(told_of[4].starts_with("HEAD /page 200 0 "), "{told_of:#?}");
    ensure!(told[0]["upstream_us"].is_u64() && told[1]["upstream_us"].is_null(), "{lines:#?}");
    for line in &told {
        ensure!(
            line["trace"] == "0af7651916cd43dd8448eb211c80319c" && line["protocol"] == "HTTP/1.1",
            "{line}"
        );
        ensure!(
            line["peer"] == "127.0.0.1" && line["duration_us"].is_u64() && line["time"].is_string(),
            "{line}"
        );
    }
    ensure!(!lines.concat().contains("secret"), "a secret is in the log: {lines:#?}");
    Ok(())
}

#[tokio::test]
async fn the_combined_form_is_what_every_tool_reads_and_a_file_moved_away_is_made_anew() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (file, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let path = file.to_str().context("a path that is text")?;
    let flags = ["--access-log", path, "--access-log-format", "combined", "--access-log-query"];
    let proxy = Proxy::start_with(origin().await?, &flags).await?;
    let client = Client::new(proxy.addr).with("user-agent", "a \"b\"").with("referer", "http://x.example/");
    client.get("/page?size=2").await?;
    let first = lines(&file, 1).await?.remove(0);
    let (peer, rest) = first.split_once(" - - [").context("the peer")?;
    let (time, rest) = rest.split_once("] ").context("the time")?;
    ensure!(peer == "127.0.0.1" && time.ends_with(" +0000") && time.len() == 26, "{first}");
    ensure!(rest == r#""GET /page?size=2 HTTP/1.1" 200 5 "http://x.example/" "a \"b\"""#, "{first}");

    std::fs::rename(&file, &moved)?;
    // The log looks at its name once a second, before a line: one of these goes to a new file.
    let followed = async {
        while !file.exists() {
            client.get("/page").await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, followed).await.context("the file is never made anew")??;
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_has_a_line_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("access.log");
    let path = file.to_str().context("a path that is text")?;
    // A server that hears the request and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start_with(silent.local_addr()?, &["--access-log", path]).await?;
    let mut client = TcpStream::connect(proxy.addr).await?;
    client.write_all(b"GET /never HTTP/1.1\r\nHost: shop.example\r\n\r\n").await?;
    let (mut held, _) = tokio::time::timeout(PATIENCE, silent.accept()).await??;
    let mut heard = vec![0; 16];
    held.read_exact(&mut heard).await?;
    ensure!(heard.starts_with(b"GET /never"), "{heard:?}");
    drop(client);
    let line: Value = serde_json::from_str(&lines(&file, 1).await?.remove(0))?;
    ensure!(line["status"] == 499 && line["path"] == "/never", "{line}");
    ensure!(line["complete"] == false && line["bytes"] == 0 && line["cache"].is_null(), "{line}");
    Ok(())
}

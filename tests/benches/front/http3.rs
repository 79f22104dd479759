//! A load of HTTP/3, of the project's own making: no tool for it is in Debian.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, Bytes};
use h3::client::SendRequest;
use http::Request;
use quinn::Endpoint;
use quinn::crypto::rustls::QuicClientConfig;

use crate::STREAMS;
use crate::clients::Fetch;
use crate::loads::Sample;

/// Few, because each has state of its own on both sides, and a client of QUIC that is one program has one.
const CONNECTIONS: usize = 8;

type Asker = SendRequest<h3_quinn::OpenStreams, Bytes>;

pub(crate) struct Client<'a> {
    fetch: &'a Fetch,
    addr: SocketAddr,
}

impl<'a> Client<'a> {
    pub(crate) fn new(fetch: &'a Fetch, addr: SocketAddr) -> Self {
        Self { fetch, addr }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Asker> {
        let connection = endpoint.connect(self.addr, "localhost")?.await?;
        let (mut driver, send) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
        tokio::spawn(async move { driver.wait_idle().await });
        Ok(send)
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let tls = QuicClientConfig::try_from(self.fetch.tls("h3")?)?;
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        Ok(endpoint)
    }

    /// The second answer is a hit of the right length.
    pub(crate) async fn check(&self, path: &str, bytes: usize) -> Result<()> {
        let endpoint = self.endpoint()?;
        let mut send = self.connect(&endpoint).await?;
        let url = self.url(path);
        one(&mut send, &url).await?;
        let (read, said) = one(&mut send, &url).await?;
        ensure!(read == bytes, "{read} bytes over HTTP/3, and not {bytes}");
        ensure!(said.contains("hit"), "not from the cache: {said:?}");
        Ok(())
    }

    pub(crate) async fn load(&self, path: &str, time: Duration) -> Result<Sample> {
        let endpoint = self.endpoint()?;
        let url = self.url(path);
        let mut sends = Vec::new();
        for _ in 0..CONNECTIONS {
            sends.push(self.connect(&endpoint).await?);
        }
        let began = Instant::now();
        let until = began + time;
        let clients = sends.iter().flat_map(|send| std::iter::repeat_n(send.clone(), STREAMS));
        let clients: Vec<_> = clients.map(|send| tokio::spawn(client(send, url.clone(), until))).collect();
        let mut late = Vec::new();
        for client in clients {
            late.extend(client.await??);
        }
        let rate = late.len() as f64 / began.elapsed().as_secs_f64();
        ensure!(!late.is_empty(), "no answer came");
        late.sort_unstable();
        let at = |per_cent: usize| late.get(late.len() * per_cent / 100).copied();
        Ok(Sample { rate, requests: late.len() as u64, p50: at(50), p99: at(99) })
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.addr.port())
    }
}

async fn client(mut send: Asker, url: String, until: Instant) -> Result<Vec<Duration>> {
    let mut late = Vec::new();
    loop {
        let began = Instant::now();
        if began >= until {
            return Ok(late);
        }
        one(&mut send, &url).await?;
        late.push(began.elapsed());
    }
}

/// Bytes of the answer, and what it says of the cache.
async fn one(send: &mut Asker, url: &str) -> Result<(usize, String)> {
    let mut stream = send.send_request(Request::get(url).body(())?).await?;
    stream.finish().await?;
    let answer = stream.recv_response().await?;
    ensure!(answer.status() == 200, "HTTP/3: {}", answer.status());
    let said = answer.headers().get("cache-status").context("no Cache-Status")?.to_str()?.to_owned();
    let mut read = 0;
    while let Some(data) = stream.recv_data().await? {
        read += data.remaining();
    }
    Ok((read, said))
}

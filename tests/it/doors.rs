//! The doors of `souk proxy` beside those for shoppers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use souk_tests::proxy::Proxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Operators' door has places for a few; whoever leaves connections lying there loses the oldest of them, and shuts nobody out.
#[tokio::test]
async fn operators_have_a_few_connections_and_always_one_more() -> Result<()> {
    // Nobody asks it for anything.
    let upstream = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(upstream.local_addr()?).await?;
    let mut idle = Vec::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(proxy.admin).await?;
        is_alive(&mut stream).await?;
        idle.push(stream);
    }
    // 80 less the 64 that have a place. Which is idle first is told by the node: a connection whose task is held up after its
    // answer has gone is idle after its neighbours, so a few more than the sixteen oldest are looked at.
    let closed: FuturesUnordered<_> = idle[..24]
        .iter_mut()
        .map(async |stream| {
            // In order or not: it is closed.
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .collect();
    let closed = timeout(PATIENCE, closed.take(16).count()).await;
    ensure!(closed.context("fewer than sixteen of the oldest are closed")? == 16);
    for stream in &mut idle[56..] {
        is_alive(stream).await?;
    }
    Ok(())
}

/// Asks on a connection and reads the answer to its end.
async fn is_alive(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.context("an operator waits")??;
        ensure!(read > 0, "the connection is closed after {:?}", String::from_utf8_lossy(&answer));
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

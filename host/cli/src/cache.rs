//! `souk cache`: what the cache of a running proxy or node holds and would do, asked of its admin address.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};

use crate::control;

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Say what the cache would do with a request, and why, without doing it
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    souk cache explain http://shop.example/tea --admin 127.0.0.1:9080\n  \
    souk cache explain http://shop.example/tea -H 'Accept-Encoding: br' -H 'Cache-Control: no-cache' --json\n\n\
    ADDR is what `souk proxy --admin` listens on, or a node's `[listen] admin`, which knows of pages that plugins make and of\n\
    its API's listings too. The URL is the one that shoppers ask for;\n\
    nothing is fetched, stored or counted. Fields that you do not give are not sent: a page that varies by Accept-Encoding is explained as for a client\n\
    without it. Values of cookies are never shown.")]
pub(crate) struct ExplainArgs {
    /// What is asked for, such as http://shop.example/tea
    #[arg(value_name = "URL")]
    url: String,
    /// A field of the request; may be given many times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The request's method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// The admin address of the proxy or node
    #[arg(long, value_name = "ADDR", env = "SOUK_ADMIN")]
    admin: SocketAddr,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn header(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once(':').ok_or("write it like 'Accept-Encoding: br'")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(crate) async fn command(command: CacheCommand) -> anyhow::Result<ExitCode> {
    match command {
        CacheCommand::Explain(args) => explain(args).await,
    }
}

async fn explain(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let ExplainArgs { url, headers, method, admin, json } = args;
    let question = serde_json::json!({"url": url, "method": method, "headers": headers});
    let accept = if json { "application/json" } else { "text/plain" };
    let (status, answer) = control::ask_admin(admin, "/explain", &question, accept)
        .await
        .map_err(anyhow::Error::msg)
        .with_context(|| {
            format!("ask {admin}; is it the admin address of a running `souk proxy` or `souk edge`?")
        })?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(status.is_success(), "{admin} did not explain it: {}", control::told(&answer));
    anstream::println!("{}", answer.trim_end());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_cut_at_its_first_colon() {
        let cut = header("If-None-Match: \"a:b\"").expect("a field");
        assert_eq!(cut, ("If-None-Match".to_owned(), "\"a:b\"".to_owned()));
        assert!(header("br").is_err());
    }
}

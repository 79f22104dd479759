//! A real browser, driven over a pipe by its own protocol (DevTools): it opens a page, and says what became of it.
//!
//! Chromium takes commands on descriptor 3 and answers on 4, each a JSON object with a NUL behind it. Knows no shop.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Nothing here takes longer unless it hangs; a browser starts within some seconds on a machine that has much to do.
const PATIENCE: Duration = Duration::from_secs(120);
/// Events that are kept for whoever asks. A page has some twenty.
const EVENTS_MAX: usize = 4_096;

/// What every browser of the tests is started with.
pub(crate) const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--no-proxy-server",
    "--enable-quic",
    // Not `::1` first, where nobody listens.
    "--host-resolver-rules=MAP localhost 127.0.0.1",
];

/// Where it is, if there is one.
pub(crate) fn chromium() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&paths)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.is_file())
}

/// A browser with one page. Dropping it ends it.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    calls: u64,
    session: Option<String>,
    events: VecDeque<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `pin`: SHA-256 of the key of the server that it is to trust.
    pub(crate) async fn start(program: PathBuf, pin: &str) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        // The pipes that the shell has for standard input and output become what the browser speaks on.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"])
            .arg(program)
            .args(FLAGS)
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--ignore-certificate-errors-spki-list={pin}"))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("start the browser")?;
        let to = child.stdin.take().context("its input is a pipe")?;
        let from = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let events = VecDeque::new();
        let mut browser = Self { child, to, from, calls: 0, session: None, events, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await?;
        browser.session = attached["sessionId"].as_str().map(ToOwned::to_owned);
        ensure!(browser.session.is_some(), "no session: {attached}");
        browser.call("Network.enable", json!({})).await?;
        browser.call("Page.enable", json!({})).await?;
        Ok(browser)
    }

    /// Goes to an address.
    pub(crate) async fn open(&mut self, url: &str) -> Result<()> {
        let gone = self.call("Page.navigate", json!({ "url": url })).await?;
        ensure!(gone.get("errorText").is_none(), "{url}: {gone}");
        Ok(())
    }

    /// What an expression comes to on the page; a promise is waited for.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let said = self.call("Runtime.evaluate", asked).await?;
        ensure!(said.get("exceptionDetails").is_none(), "{expression}: {said}");
        Ok(said["result"]["value"].clone())
    }

    /// Values of a field in the requests that it has sent since it was asked last.
    pub(crate) fn sent(&mut self, field: &str) -> Vec<String> {
        let events = std::mem::take(&mut self.events);
        let sent = events.iter().filter(|event| event["method"] == "Network.requestWillBeSentExtraInfo");
        let fields = sent.filter_map(|event| event["params"]["headers"].as_object()).flatten();
        let values = fields.filter(|(name, _)| name.eq_ignore_ascii_case(field));
        values.filter_map(|(_, value)| value.as_str().map(ToOwned::to_owned)).collect()
    }

    /// Ends it, in order.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.session = None;
        self.call("Browser.close", json!({})).await?;
        timeout(PATIENCE, self.child.wait()).await.context("the browser does not end")??;
        Ok(())
    }

    async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.calls += 1;
        let id = self.calls;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let answered = async {
            self.to.write_all(&[message.to_string().as_bytes(), b"\0"].concat()).await?;
            loop {
                let mut text = Vec::new();
                self.from.read_until(0, &mut text).await?;
                if text.pop() != Some(0) {
                    bail!("the browser has ended");
                }
                let said: Value = serde_json::from_slice(&text)?;
                if said["id"] == id {
                    return match said.get("error") {
                        Some(error) => bail!("{error}"),
                        None => Ok(said["result"].clone()),
                    };
                }
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(said);
            }
        };
        timeout(PATIENCE, answered)
            .await
            .context("the browser does not answer")
            .flatten()
            .context(method.to_owned())
    }
}

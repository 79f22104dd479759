//! `souk proxy` beside Debian's nginx, the same page out of the cache of each: one core for the server, one for the load.
//!
//! `cargo bench -p souk-tests --bench front -- [--short] [--rounds 3] [--seconds 2] [--only WORD] [--open-file-cache]`
//!
//! `--short` is the rows that have a target beside nginx, in half a minute, and what became of them.
//!
//! Needs `nginx`, `wrk` and `h2load` (Debian: `nginx-light`, `wrk`, `nghttp2-client`); a row whose tool is not there says
//! so. Servers take turns within each round, so that a machine that grows slower is slower for both; a ratio is between
//! medians. Processor time per request, of the server alone, is the steadier figure where a machine has other tenants.
//! Before a row is measured, each server has to answer with the right bytes, and from its cache.
//!
//! HTTP/3 has no peer (Debian's nginx does not speak it) and a client of ours, which costs more than the server. Two cores
//! are beside the load on the same two: what is told is how much more a request costs there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use souk_tests::proxy::Proxy;
use souk_tests::say;

#[path = "front/clients.rs"]
mod clients;
#[path = "front/http3.rs"]
mod http3;
#[path = "front/loads.rs"]
mod loads;
#[path = "front/machine.rs"]
mod machine;
#[path = "front/nginx.rs"]
mod nginx;
#[path = "front/origin.rs"]
mod origin;

use clients::Fetch;
use loads::{Load, Sample};
use machine::{Machine, processor_of};
use nginx::{Nginx, NginxOptions};

/// Connections of each load, as `docs/BENCHMARKS.md` says of every row.
const CONNECTIONS: usize = 64;
/// Requests that a connection of HTTP/2 has open at once, where it has several: a page's first bundle.
const STREAMS: usize = 10;
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;

struct Options {
    /// The rows with a target beside the peer, and nothing else.
    short: bool,
    rounds: usize,
    seconds: u64,
    only: Option<String>,
    open_file_cache: bool,
}

/// Over what a row is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Clear,
    Tls,
    /// Over TLS, with so many requests open on a connection.
    Http2(usize),
}

/// One line of the table.
struct Row {
    name: &'static str,
    path: &'static str,
    spoken: Spoken,
    /// What the ratio of requests/s must be, if anybody has said so.
    target: Option<f64>,
}

const ROWS: [Row; 6] = [
    Row { name: "1 KiB, HTTP/1.1", path: "/1k", spoken: Spoken::Clear, target: Some(1.4) },
    Row { name: "1 KiB, TLS, HTTP/1.1", path: "/1k", spoken: Spoken::Tls, target: Some(1.3) },
    Row { name: "1 KiB, TLS, HTTP/2 x 10", path: "/1k", spoken: Spoken::Http2(STREAMS), target: Some(1.3) },
    Row { name: "1 KiB, TLS, HTTP/2 x 1", path: "/1k", spoken: Spoken::Http2(1), target: None },
    Row { name: "100 KiB, HTTP/1.1", path: "/100k", spoken: Spoken::Clear, target: Some(0.9) },
    Row { name: "100 KiB, TLS, HTTP/1.1", path: "/100k", spoken: Spoken::Tls, target: Some(1.1) },
];
const LOGGED: Row =
    Row { name: "1 KiB, HTTP/1.1, access log", path: "/1k", spoken: Spoken::Clear, target: None };

/// One round of one server.
#[derive(Clone, Copy, Debug)]
struct Round {
    sample: Sample,
    /// Microseconds of processor time of the server for each request.
    spent_us: f64,
}

/// A server that is measured.
enum Server {
    Souk(Proxy),
    Nginx(Nginx),
}

/// What all servers of a run share.
struct World {
    options: Options,
    origin: std::net::SocketAddr,
    cert: PathBuf,
    key: PathBuf,
    dir: tempfile::TempDir,
}

fn main() -> Result<()> {
    let options = options()?;
    pin(&[LOAD_CORE]).context("the load has a core of its own: two are needed")?;
    let dir = tempfile::tempdir()?;
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    // ECDSA on P-256.
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    std::fs::write(&cert, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let world = World { options, origin: origin::start()?, cert, key, dir };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(world.run(&made.cert))
}

impl World {
    async fn run(&self, certificate: &rcgen::Certificate) -> Result<()> {
        let fetch = Fetch::trusting(certificate.der().clone())?;
        let machine = Machine::watch()?;
        self.title();
        if self.wants_any(&ROWS) {
            let souk = Server::Souk(self.souk(&[SERVER_CORE], &[]).await?);
            let peer = self.nginx(false, 1)?;
            let open = self.compare(&ROWS, &souk, peer.as_ref(), &fetch).await?;
            say(&match open.as_slice() {
                [] => "\nevery target holds".to_owned(),
                rows => format!("\n**missed, or not measured**: {}", rows.join("; ")),
            });
        }
        if self.options.short {
            say(&machine.verdict()?);
            return Ok(());
        }
        if self.wants(&LOGGED) {
            let log = self.file("souk-access.log");
            let souk = Server::Souk(self.souk(&[SERVER_CORE], &["--access-log", &log]).await?);
            let peer = self.nginx(true, 1)?;
            self.compare(&[LOGGED], &souk, peer.as_ref(), &fetch).await?;
        }
        if self.wants_word("HTTP/3") {
            self.http3(&fetch).await?;
        }
        if self.wants_word("two cores") {
            self.two_cores(&fetch).await?;
        }
        say(&machine.verdict()?);
        Ok(())
    }

    fn title(&self) {
        say(&format!(
            "\n{CONNECTIONS} connections, {} rounds of {} s in turns; server on core {SERVER_CORE}, load on core {LOAD_CORE}{}",
            self.options.rounds,
            self.options.seconds,
            if self.options.open_file_cache { "; nginx with open_file_cache" } else { "" },
        ));
        say(
            "| from the cache | souk: requests/s | CPU | p50 | p99 | nginx: requests/s | CPU | p50 | p99 | requests/s | CPU | target |",
        );
        say("|---|---|---|---|---|---|---|---|---|---|---|---|");
    }

    async fn souk(&self, cores: &[usize], flags: &[&str]) -> Result<Proxy> {
        let (cert, key) = (text(&self.cert)?, text(&self.key)?);
        let doors = ["--listen", "127.0.0.1:0", "--tls", "127.0.0.1:0", "--cert", cert, "--key", key];
        Proxy::pinned(self.origin, cores, &[&doors[..], flags].concat()).await
    }

    fn nginx(&self, logs: bool, workers: usize) -> Result<Option<Server>> {
        let options = NginxOptions {
            logs,
            workers,
            open_file_cache: self.options.open_file_cache,
            cores: if workers == 1 { vec![SERVER_CORE] } else { vec![SERVER_CORE, LOAD_CORE] },
        };
        Ok(Nginx::start(self.origin, &self.cert, &self.key, &options)?.map(Server::Nginx))
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    /// Prints a line for each row, and returns the names of those whose target does not hold, as far as anybody knows.
    async fn compare(
        &self,
        rows: &[Row],
        souk: &Server,
        peer: Option<&Server>,
        fetch: &Fetch,
    ) -> Result<Vec<&'static str>> {
        let mut open = Vec::new();
        for row in rows.iter().filter(|row| self.wants(row)) {
            let Some(load) = Load::of(row.spoken) else {
                say(&format!("| {} | skipped: no {} |", row.name, Load::tool(row.spoken)));
                open.extend(row.target.map(|_| row.name));
                continue;
            };
            souk.check(row, fetch).await?;
            if let Some(peer) = peer {
                peer.check(row, fetch).await?;
            }
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..self.options.rounds {
                ours.push(self.round(&load, souk, row)?);
                if let Some(peer) = peer {
                    theirs.push(self.round(&load, peer, row)?);
                }
            }
            say(&line(row, &ours, &theirs));
            let holds = |target| ratio(&ours, &theirs).is_some_and(|ratio| ratio >= target);
            open.extend(row.target.filter(|target| !holds(*target)).map(|_| row.name));
        }
        Ok(open)
    }

    fn round(&self, load: &Load, server: &Server, row: &Row) -> Result<Round> {
        let before = server.processor()?;
        let sample = load.run(&server.url(row.spoken, row.path)?, self.options.seconds)?;
        let spent = server.processor()?.saturating_sub(before);
        ensure!(sample.requests > 0, "{}: nothing was answered", server.name());
        Ok(Round { sample, spent_us: spent.as_secs_f64() * 1e6 / sample.requests as f64 })
    }

    /// The server alone: what a request of HTTP/3 costs it. The client is busier than the server, so the rate is the
    /// client's.
    async fn http3(&self, fetch: &Fetch) -> Result<()> {
        let souk = self.souk(&[SERVER_CORE], &["--http3"]).await?;
        let addr = souk.https.context("it has TLS")?;
        let client = http3::Client::new(fetch, addr);
        client.check("/1k", origin::PAGE_BYTES).await?;
        let mut rounds = Vec::new();
        for _ in 0..self.options.rounds {
            let before = processor_of(souk.id())?;
            let sample = client.load("/1k", Duration::from_secs(self.options.seconds)).await?;
            let spent = processor_of(souk.id())?.saturating_sub(before);
            rounds
                .push(Round { sample, spent_us: spent.as_secs_f64() * 1e6 / sample.requests.max(1) as f64 });
        }
        let row = Row {
            name: "1 KiB, HTTP/3 x 10 (8 connections)",
            path: "/1k",
            spoken: Spoken::Tls,
            target: None,
        };
        say(&line(&row, &rounds, &[]));
        say(
            "(HTTP/3 without a peer: Debian's nginx has none. Its client takes more than its core, so read the CPU.)",
        );
        Ok(())
    }

    /// How much more a request costs where two cores serve and share what is served. Twice the work of one core would be
    /// done if it cost no more.
    async fn two_cores(&self, fetch: &Fetch) -> Result<()> {
        const BOTH: [usize; 2] = [SERVER_CORE, LOAD_CORE];
        let row = Row { name: "two cores", path: "/1k", spoken: Spoken::Clear, target: None };
        let Some(load) = Load::of(row.spoken) else {
            say("two cores: skipped: no wrk");
            return Ok(());
        };
        let alone = Server::Souk(self.souk(&[SERVER_CORE], &[]).await?);
        let both = Server::Souk(self.souk(&BOTH, &["--workers", "2"]).await?);
        let (peer_alone, peer_both) = (self.nginx(false, 1)?, self.nginx(false, 2)?);
        let pairs = [("souk", Some((alone, both))), ("nginx", peer_alone.zip(peer_both))];
        for (name, pair) in pairs {
            let Some((alone, both)) = pair else { continue };
            alone.check(&row, fetch).await?;
            both.check(&row, fetch).await?;
            let wide = load.clone().on(&BOTH);
            let (mut one, mut two) = (Vec::new(), Vec::new());
            for _ in 0..self.options.rounds {
                one.push(self.round(&load, &alone, &row)?);
                two.push(self.round(&wide, &both, &row)?);
            }
            let (one, two) = (median(&one, |round| round.spent_us), median(&two, |round| round.spent_us));
            say(&format!(
                "two cores, {name}: {one:.1} us of processor a request on one, {two:.1} us on two with the load beside it: {:.2} x the work of one{}",
                2.0 * one / two,
                if name == "souk" { " (target >= 1.7)" } else { "" },
            ));
        }
        Ok(())
    }

    fn wants(&self, row: &Row) -> bool {
        self.wants_word(row.name) && (row.target.is_some() || !self.options.short)
    }

    fn wants_any(&self, rows: &[Row]) -> bool {
        rows.iter().any(|row| self.wants(row))
    }

    fn wants_word(&self, name: &str) -> bool {
        self.options.only.as_deref().is_none_or(|only| name.contains(only))
    }
}

impl Server {
    fn name(&self) -> &'static str {
        match self {
            Self::Souk(_) => "souk",
            Self::Nginx(_) => "nginx",
        }
    }

    fn addr(&self, spoken: Spoken) -> Result<std::net::SocketAddr> {
        match (self, spoken) {
            (Self::Souk(souk), Spoken::Clear) => Ok(souk.addr),
            (Self::Souk(souk), _) => souk.https.context("it has TLS"),
            (Self::Nginx(nginx), Spoken::Clear) => Ok(nginx.clear),
            (Self::Nginx(nginx), _) => Ok(nginx.tls),
        }
    }

    fn url(&self, spoken: Spoken, path: &str) -> Result<String> {
        let scheme = if spoken == Spoken::Clear { "http" } else { "https" };
        Ok(format!("{scheme}://{}{path}", self.addr(spoken)?))
    }

    fn processor(&self) -> Result<Duration> {
        match self {
            Self::Souk(souk) => processor_of(souk.id()),
            Self::Nginx(nginx) => nginx.processor(),
        }
    }

    /// The right bytes, and the second time from the cache: by each server's own word, and by the origin, which is not
    /// asked again.
    async fn check(&self, row: &Row, fetch: &Fetch) -> Result<()> {
        let addr = self.addr(row.spoken)?;
        let first = fetch.get(row.spoken, addr, row.path).await?;
        ensure!(first.status == 200, "{}, {}: {}", self.name(), row.name, first.status);
        // nginx has it in its cache a moment after its client does.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let asked = origin::asked();
        let second = fetch.get(row.spoken, addr, row.path).await?;
        let body = origin::body(row.path);
        ensure!(first.body == body && second.body == body, "{}, {}: other bytes", self.name(), row.name);
        let (field, says) = match self {
            Self::Souk(_) => ("cache-status", "hit"),
            Self::Nginx(_) => ("x-cache", "HIT"),
        };
        let said = second.header(field);
        ensure!(said.contains(says), "{}, {}: {field}: {said:?}", self.name(), row.name);
        ensure!(origin::asked() == asked, "{}, {}: the origin was asked again", self.name(), row.name);
        Ok(())
    }
}

fn line(row: &Row, ours: &[Round], theirs: &[Round]) -> String {
    let shown = |rounds: &[Round]| {
        if rounds.is_empty() {
            return "- | - | - | -".to_owned();
        }
        let late = |pick: fn(&Sample) -> Option<Duration>| {
            let of = |round: &Round| pick(&round.sample).map_or(f64::NAN, |late| late.as_secs_f64() * 1e3);
            let late = median(rounds, of);
            if late.is_nan() { "-".to_owned() } else { format!("{late:.2} ms") }
        };
        format!(
            "{:.0} | {:.1} us | {} | {}",
            median(rounds, |round| round.sample.rate),
            median(rounds, |round| round.spent_us),
            late(|sample| sample.p50),
            late(|sample| sample.p99),
        )
    };
    let spent = |rounds: &[Round]| median(rounds, |round| round.spent_us);
    let (rate, spent) = (ratio(ours, theirs), (!theirs.is_empty()).then(|| spent(theirs) / spent(ours)));
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2} x"));
    let verdict = match (row.target, rate) {
        (Some(target), Some(rate)) => {
            format!(">= {target:.1} x: {}", if rate >= target { "yes" } else { "**no**" })
        }
        (Some(target), None) => format!(">= {target:.1} x: no peer"),
        (None, _) => "-".to_owned(),
    };
    format!(
        "| {} | {} | {} | {} | {} | {verdict} |",
        row.name,
        shown(ours),
        shown(theirs),
        ratio(rate),
        ratio(spent),
    )
}

/// Of requests a second, between medians. None without a peer.
fn ratio(ours: &[Round], theirs: &[Round]) -> Option<f64> {
    let rate = |rounds: &[Round]| median(rounds, |round| round.sample.rate);
    (!theirs.is_empty()).then(|| rate(ours) / rate(theirs))
}

fn median(rounds: &[Round], pick: impl Fn(&Round) -> f64) -> f64 {
    let mut all: Vec<f64> = rounds.iter().map(pick).collect();
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// This process and what it starts from now on.
fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    Ok(sched_setaffinity(None, &set)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a plain path")
}

fn options() -> Result<Options> {
    let mut options = Options { short: false, rounds: 3, seconds: 2, only: None, open_file_cache: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--short" => (options.short, options.seconds) = (true, 1),
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--only" => options.only = Some(value()?),
            "--open-file-cache" => options.open_file_cache = true,
            // cargo says so.
            "--bench" => {}
            other => bail!("{other} is not known"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "there is nothing to measure");
    Ok(options)
}

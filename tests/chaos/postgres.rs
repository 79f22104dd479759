//! The region's database is a PostgreSQL with a standby that follows synchronously. The one that writes is killed, the other is
//! promoted, and the region goes on there, each second time after a SIGKILL of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use souk_tests::cluster::{Plan, Spec, own_address};
use souk_tests::skip;
use tokio::time::sleep;

use crate::run::{Row, count, seed};
use crate::seed::mix;
use crate::server::{programs, shell};
use crate::shoppers::Habits;

/// Minds both servers as their user: does what it reads, a word a line, answers each, and ends them when nobody writes any more.
///
/// `fail`: SIGKILL of whoever leads, and the other is promoted. It waits for nobody at first, as a cluster's manager has it, for
/// nobody follows it. `mend`: the one that was killed follows the new leader from a fresh copy, and is waited for again.
const MINDER: &str = r#"
bin=$1; ip=$2; port_one=$3; port_two=$4
dir=$(mktemp -d /tmp/souk-pair-XXXXXX) || exit 1
leads=one; follows=two
port() { eval echo \$port_$1; }
ask() { "$bin/psql" -h "$dir" -p "$(port $1)" -U souk -d postgres -qtAc "$2" </dev/null; }
run() {
    "$bin/postgres" -D "$dir/$1" -k "$dir" -p "$(port $1)" -c listen_addresses=$ip -c max_connections=100 \
        -c shared_buffers=32MB -c wal_keep_size=256MB </dev/null >>"$dir/$1.log" 2>&1 &
    eval pid_$1=$!
}
start() {
    run $1
    n=0
    until "$bin/pg_isready" -q -h "$dir" -p "$(port $1)"; do
        n=$((n + 1)); [ $n -lt 600 ] || exit 1
        # The children of one that was killed may still be there for a moment.
        eval kill -0 \$pid_$1 2>/dev/null || run $1
        sleep 0.1
    done
}
follow() {
    rm -rf "$dir/$follows"
    "$bin/pg_basebackup" -h "$dir" -p "$(port $leads)" -U souk -D "$dir/$follows" -R -c fast >>"$dir/copy.log" 2>&1 || exit 1
    start $follows
    ask $leads "ALTER SYSTEM SET synchronous_standby_names = '*'"; ask $leads "SELECT pg_reload_conf()" >/dev/null
    n=0
    until [ "$(ask $leads "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')")" = 1 ]; do
        n=$((n + 1)); [ $n -lt 600 ] || exit 1
        sleep 0.1
    done
}
fail() {
    eval kill -9 \$pid_$leads; eval wait \$pid_$leads 2>/dev/null
    gone=$leads; leads=$follows; follows=$gone
    "$bin/pg_ctl" -D "$dir/$leads" promote >>"$dir/$leads.log" 2>&1 || exit 1
    ask $leads "ALTER SYSTEM SET synchronous_standby_names = ''"; ask $leads "SELECT pg_reload_conf()" >/dev/null
}
"$bin/initdb" -D "$dir/one" -A trust -U souk -E UTF8 --locale=C --no-sync >"$dir/initdb.log" 2>&1 || exit 1
echo "host all all 127.0.0.0/8 trust" >>"$dir/one/pg_hba.conf"
start one
ask one "CREATE DATABASE souk"
follow
echo ready
while read -r word; do
    case $word in
        fail) fail ;;
        mend) follow ;;
    esac
    echo done
done
kill -QUIT $pid_one $pid_two 2>/dev/null; wait 2>/dev/null
rm -rf "$dir"
"#;

/// A PostgreSQL and its standby. Dropping it ends both.
struct Pair {
    _process: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
    ip: Ipv4Addr,
    ports: [u16; 2],
}

impl Pair {
    /// None: there is no PostgreSQL on this machine.
    fn start() -> Result<Option<Self>> {
        let Some(programs) = programs() else { return Ok(None) };
        let ip = own_address();
        // Nobody else listens on this address.
        let held = [TcpListener::bind((ip, 0))?, TcpListener::bind((ip, 0))?];
        let ports = [held[0].local_addr()?.port(), held[1].local_addr()?.port()];
        drop(held);
        let mut process = shell()
            .args(["-c", MINDER, "minder"])
            .arg(&programs)
            .arg(ip.to_string())
            .args(ports.map(|port| port.to_string()))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let words = process.stdin.take().context("it is piped")?;
        let answers = BufReader::new(process.stdout.take().context("it is piped")?);
        let mut this = Self { _process: process, words, answers, ip, ports };
        this.hear("ready")?;
        Ok(Some(this))
    }

    fn hear(&mut self, expected: &str) -> Result<()> {
        let mut said = String::new();
        self.answers.read_line(&mut said)?;
        ensure!(said.trim() == expected, "the servers are not {expected}: {said:?}, see /tmp/souk-pair-*");
        Ok(())
    }

    fn does(&mut self, word: &str) -> Result<()> {
        self.words.write_all(format!("{word}\n").as_bytes())?;
        self.hear("done")
    }

    /// What a region is told of it.
    fn settings(&self) -> Value {
        let (ip, [one, two]) = (self.ip, self.ports);
        json!({
            "engine": "postgres",
            "url": format!("postgres://souk@{ip}:{one}/souk"),
            "standbys": [format!("{ip}:{two}")],
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_failover() -> Result<()> {
    let Some(mut pair) = Pair::start()? else {
        skip("postgres_failover", "no PostgreSQL: install postgresql");
        return Ok(());
    };
    let region = Spec { config: vec![("store", pair.settings())], ..Spec::default() };
    let habits = Habits { shoppers: 24, ordered_percent: 30, seed: seed(), ..Habits::default() };
    let mut row = Row::open("postgres_failover", Plan { region, ..Plan::of(2) }, habits).await?;
    let failovers = count(3, 30);
    let (mut slowest, mut regions) = (Duration::ZERO, 0);
    for number in 0..failovers {
        // Not before it has committed something at this server.
        row.region_commits().await?;
        sleep(Duration::from_micros(mix(seed(), number, 4) % 100_000)).await;
        let began = Instant::now();
        let with_region = number % 2 == 1;
        if with_region {
            row.cluster.region.kill()?;
            regions += 1;
        }
        pair.does("fail")?;
        if with_region {
            row.cluster.region.start().await?;
        }
        row.region_commits().await?;
        slowest = slowest.max(began.elapsed());
        pair.does("mend")?;
    }
    row.close(&format!(
        "{failovers} SIGKILLs of the PostgreSQL that writes, its synchronous standby promoted, {regions} of them with a SIGKILL of \
         the region; the slowest first commit at the other server after {} ms",
        slowest.as_millis()
    ))
    .await?;
    Ok(())
}

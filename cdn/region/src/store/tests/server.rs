//! A PostgreSQL of the tests' own: in a folder and behind a socket of its own, ended when the test process ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use parking_lot::Mutex;

/// Minds the server: does what it reads, a word a line, answers each, and ends the server when nobody writes any more,
/// whatever has become of the tests. Its own user where the tests run as root, which the server refuses.
const MINDER: &str = r#"
bin=$1; flush=$2
dir=$(mktemp -d /tmp/souk-pg-XXXXXX) || exit 1
"$bin/initdb" -D "$dir/data" -A trust -U souk -E UTF8 --locale=C --no-sync >"$dir/initdb.log" 2>&1 || exit 1
run() {
    "$bin/postgres" -D "$dir/data" -k "$dir" -c listen_addresses= -c max_connections=300 -c fsync=$flush \
        -c shared_buffers=32MB </dev/null >>"$dir/log" 2>&1 &
    pid=$!
}
start() {
    run
    n=0
    until "$bin/pg_isready" -q -h "$dir"; do
        n=$((n + 1)); [ $n -lt 600 ] || exit 1
        # The children of one that was killed may still be there for a moment.
        kill -0 $pid 2>/dev/null || run
        sleep 0.1
    done
}
ask() { "$bin/psql" -h "$dir" -U souk -d postgres -qtAc "$1" </dev/null; }
start
echo "$dir"
while read -r word rest; do
    case $word in
        database) ask "CREATE DATABASE $rest" >>"$dir/log" 2>&1 ;;
        kill) kill -9 $pid; wait $pid 2>/dev/null ;;
        start) : >"$dir/data/postgresql.auto.conf"; start ;;
        hold) ask "ALTER SYSTEM SET synchronous_standby_names = 'nobody'"; ask "SELECT pg_reload_conf()" >/dev/null
            until [ "$(ask 'SHOW synchronous_standby_names')" = nobody ]; do sleep 0.02; done ;;
        held) until [ "$(ask "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")" != 0 ]; do sleep 0.02; done ;;
    esac
    echo done
done
kill -QUIT $pid; wait $pid 2>/dev/null
rm -rf "$dir"
"#;

/// A server that runs.
pub(crate) struct Server {
    /// Of its socket.
    folder: String,
    minder: Mutex<Minder>,
}

struct Minder {
    _process: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
    databases: u32,
}

impl Server {
    /// The one that all tests share; it flushes nothing. None: there is no PostgreSQL on this machine.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start("off")).as_ref()
    }

    /// One that a test may do to as it likes.
    pub(crate) fn own() -> Option<Self> {
        Self::start("on")
    }

    #[allow(
        clippy::print_stdout,
        reason = "a test that is skipped says so; this file is in tests of three kinds"
    )]
    fn start(flush: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            println!("skipped: no PostgreSQL on this machine (Debian: apt-get install postgresql)");
            return None;
        };
        let mut process = shell()
            .args(["-c", MINDER, "minder"])
            .arg(&programs)
            .arg(flush)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        let words = process.stdin.take().expect("it is piped");
        let mut answers = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut folder = String::new();
        answers.read_line(&mut folder).expect("the minder says where the server is");
        let folder = folder.trim().to_owned();
        assert!(!folder.is_empty(), "PostgreSQL in {} does not start", programs.display());
        let minder = Mutex::new(Minder { _process: process, words, answers, databases: 0 });
        Some(Self { folder, minder })
    }

    /// Has something done, and waits until it is.
    pub(crate) fn does(&self, word: &str) {
        let mut minder = self.minder.lock();
        minder.words.write_all(format!("{word}\n").as_bytes()).expect("the minder listens");
        let mut done = String::new();
        minder.answers.read_line(&mut done).expect("the minder answers");
        assert_eq!(done.trim(), "done", "{word}");
    }

    /// Makes an empty database. Where the socket is, and its name; the user is `souk` and needs no password.
    pub(crate) fn database(&self) -> (String, String) {
        let number = {
            let mut minder = self.minder.lock();
            minder.databases += 1;
            minder.databases
        };
        let database = format!("souk_{number}");
        self.does(&format!("database {database}"));
        (self.folder.clone(), database)
    }
}

/// A shell that may run the server, which refuses to be root's.
pub(crate) fn shell() -> Command {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0);
    if !is_root {
        return Command::new("sh");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh"]);
    command
}

/// Where the server's programs are: beside one in the path, or where Debian puts each version's, the newest.
pub(crate) fn programs() -> Option<PathBuf> {
    let has_all =
        |folder: &Path| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    folders.sort();
    std::env::split_paths(&path).chain(folders.into_iter().rev()).find(|folder| has_all(folder))
}

//! Servers of RabbitMQ of the tests' own: in a folder, on ports and with an `epmd` of their own, ended when the test process
//! ends. One, or several that form a cluster.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Minds the servers: does what it reads, a line a thing, answers each, and ends everything when nobody writes any more,
/// whatever has become of the tests. `detached` makes the server's script become the server, whose number is known then.
const MINDER: &str = r#"
bin=$1; export ERL_EPMD_PORT=$2
dir=$(mktemp -d /tmp/souk-rabbitmq-XXXXXX) || exit 1
export HOME=$dir RABBITMQ_CONF_ENV_FILE=$dir/environment RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins \
    RABBITMQ_ADVANCED_CONFIG_FILE=$dir/advanced.config RABBITMQ_MNESIA_BASE=$dir/data RABBITMQ_LOG_BASE=$dir/logs \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}'
: >"$RABBITMQ_CONF_ENV_FILE"
echo '[].' >"$RABBITMQ_ENABLED_PLUGINS_FILE"
(umask 077; echo souk-tests >"$dir/.erlang.cookie"; chmod 400 "$dir/.erlang.cookie")
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 </dev/null >>"$dir/epmd.log" 2>&1 &
epmd=$!
echo "$dir"
while read -r word member rest; do
    case $word in
        start)
            detached=1 RABBITMQ_NODENAME="souk$member@localhost" RABBITMQ_DIST_PORT="$rest" \
                RABBITMQ_CONFIG_FILE="$dir/$member.conf" RABBITMQ_GENERATED_CONFIG_DIR="$dir/generated.$member" \
                RABBITMQ_PID_FILE="$dir/$member.pid" \
                "$bin/rabbitmq-server" </dev/null >>"$dir/$member.log" 2>&1 &
            eval "pid$member=$!" ;;
        kill) eval "kill -9 \$pid$member; wait \$pid$member" 2>/dev/null; eval "pid$member=" ;;
        ctl) "$bin/rabbitmqctl" -q -n "souk$member@localhost" $rest </dev/null >"$dir/answer" 2>>"$dir/ctl.log" \
            || echo "failed: $?" >>"$dir/answer" ;;
    esac
    echo done
done
for pid in $pid0 $pid1 $pid2; do kill -9 "$pid"; wait "$pid" 2>/dev/null; done
kill "$epmd"; wait "$epmd" 2>/dev/null
rm -rf "$dir"
"#;

/// A server says what is wrong with its settings at once, and needs some ten seconds on a busy machine otherwise; one that
/// comes back waits for the others as well.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// Servers that run.
pub(crate) struct Servers {
    folder: PathBuf,
    pub(crate) ip: Ipv4Addr,
    /// Of shoppers of messages, by member.
    pub(crate) ports: Vec<u16>,
    /// Between the members.
    distribution: Vec<u16>,
    minder: Mutex<Minder>,
}

struct Minder {
    process: Child,
    /// None: there is nothing more to be done.
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Servers {
    /// `settings`: of a member, from the folder in which its files may be put and the address at which it listens. None: there is
    /// no RabbitMQ on this machine.
    #[allow(
        clippy::print_stdout,
        reason = "a test that is skipped says so; this file is in tests of two kinds"
    )]
    pub(crate) fn start(
        members: usize,
        ip: Ipv4Addr,
        settings: impl Fn(&Path, &str) -> String,
    ) -> Option<Self> {
        let Some(programs) = programs() else {
            println!("skipped: no rabbitmq-server (Debian: apt-get install rabbitmq-server)");
            return None;
        };
        let free = |ip: Ipv4Addr, count: usize| {
            // They have to be known before the servers are there.
            let held: Vec<_> =
                (0..count).map(|_| TcpListener::bind((ip, 0)).expect("a loopback address")).collect();
            let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
            held.iter().map(port).collect::<Vec<_>>()
        };
        let ports = free(ip, members);
        let mut distribution = free(Ipv4Addr::LOCALHOST, members + 1);
        let epmd = distribution.pop().expect("one more than members");
        let mut process = Command::new("sh")
            .args(["-c", MINDER, "minder"])
            .arg(&programs)
            .arg(epmd.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell starts");
        let words = process.stdin.take();
        let mut answers = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut folder = String::new();
        answers.read_line(&mut folder).expect("the minder says where the servers are");
        let folder = PathBuf::from(folder.trim());
        assert!(folder.is_absolute(), "there is no room for RabbitMQ");
        for (member, port) in ports.iter().enumerate() {
            let cluster: String = (0..members)
                .map(|of| format!("cluster_formation.classic_config.nodes.{} = souk{of}@localhost\n", of + 1))
                .collect();
            let text = format!(
                "{}\nloopback_users = none\nlog.console = true\nlog.file = false\n\
                 cluster_formation.peer_discovery_backend = classic_config\n{cluster}",
                settings(&folder, &format!("{ip}:{port}"))
            );
            std::fs::write(folder.join(format!("{member}.conf")), text).expect("the folder is ours");
        }
        let minder = Mutex::new(Minder { process, words, answers });
        let this = Self { folder, ip, ports, distribution, minder };
        // The first is there before the others ask whom to join.
        for member in 0..members {
            this.start_member(member);
            if member == 0 || member + 1 == members {
                (0..=member).for_each(|member| this.is_there(member));
            }
        }
        Some(this)
    }

    /// Begins to start it.
    pub(crate) fn start_member(&self, member: usize) {
        self.does(&format!("start {member} {}", self.distribution[member]));
    }

    /// Waits until it listens.
    pub(crate) fn is_there(&self, member: usize) {
        let began = Instant::now();
        while TcpStream::connect((self.ip, self.ports[member])).is_err() {
            assert!(began.elapsed() < STARTS_WITHIN, "RabbitMQ does not start\n{}", self.last_words());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until a member would know a quorum queue of its own after a SIGKILL. It writes the names of them down up to three seconds
    /// late, and one without a name has no leader any more; of several members, the others would tell it.
    pub(crate) fn has_written_down(&self, queue: &str) {
        let began = Instant::now();
        while !holds(&self.folder.join("data"), "names.dets", queue.as_bytes()) {
            assert!(began.elapsed() < STARTS_WITHIN, "the queue is not written down\n{}", self.last_words());
            std::thread::sleep(POLL);
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, member: usize) {
        self.does(&format!("kill {member}"));
    }

    /// What `rabbitmqctl` says, asked at that member.
    pub(crate) fn ctl(&self, member: usize, command: &str) -> String {
        self.does(&format!("ctl {member} {command}"));
        std::fs::read_to_string(self.folder.join("answer")).unwrap_or_default()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn address(&self, member: usize) -> String {
        format!("{}:{}", self.ip, self.ports[member])
    }

    fn does(&self, word: &str) {
        let mut minder = self.minder.lock();
        let words = minder.words.as_mut().expect("it is let go when the servers are dropped");
        words.write_all(format!("{word}\n").as_bytes()).expect("the minder listens");
        let mut done = String::new();
        minder.answers.read_line(&mut done).expect("the minder answers");
        assert_eq!(done.trim(), "done", "{word}");
    }

    /// What the servers said last, for the reader of a failure.
    pub(crate) fn last_words(&self) -> String {
        let words = |member: usize| {
            let text = std::fs::read_to_string(self.file(&format!("{member}.log"))).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(20).collect();
            format!("souk{member}:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        (0..self.ports.len()).map(words).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let minder = self.minder.get_mut();
        minder.words = None;
        let _ended = minder.process.wait();
    }
}

/// Whether a file of that name, somewhere in a folder, has these bytes in it.
fn holds(folder: &Path, name: &str, bytes: &[u8]) -> bool {
    let Ok(inside) = std::fs::read_dir(folder) else { return false };
    inside.filter_map(Result::ok).any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return holds(&path, name, bytes);
        }
        entry.file_name() == name
            && std::fs::read(path).is_ok_and(|held| held.windows(bytes.len()).any(|window| window == bytes))
    })
}

/// Where the server's scripts are. The one that Debian puts in the path is another: it becomes the user `rabbitmq`.
pub(crate) fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = vec![PathBuf::from("/usr/lib/rabbitmq/bin")];
    folders.extend(std::env::split_paths(&path).filter(|folder| folder.join("rabbitmq-env").exists()));
    folders.into_iter().find(|folder| folder.join("rabbitmq-server").exists())
}

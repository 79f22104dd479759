//! Loading through a child process and a cache of machine code, and what a hostile component does to either.
//!
//! This program is its own child: called with `compile` it compiles, called with `taken-over` it tries what somebody
//! would who has the compiler's process in hand, called with `old-kernel` it compiles where there is no seccomp, called with `parent` it begins a compilation and waits to be killed.
//! Called with `load FILE…` it loads HTTP plugins as a node does and says how long each took: real components of
//! JavaScript and Python are too large to be part of the project.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stdout, reason = "its own harness: what passed is said as libtest says it")]

mod common;

use std::convert::Infallible;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{GOOD, Guest, Shop, call, component, engine, lines, release};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use prometheus_client::registry::Registry;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::site::{Guard, OnFault};
use souk_sandbox::http::{HttpEngine, HttpLimits};
use souk_sandbox::loader::{self, Order};
use souk_sandbox::{
    Chain, CompileLimits, Compiler, Confinement, HookPlugin, LoadError, Loader, LoaderMetrics,
    LoaderSettings, SiteData,
};

/// What a child gets here: enough for any honest guest of these tests, little enough for a hostile one to end soon.
fn limits() -> CompileLimits {
    CompileLimits { processor_max: Duration::from_secs(2), ..CompileLimits::default() }
}

fn loader(dir: &Path, limits: CompileLimits) -> Loader {
    counted(dir, limits, LoaderMetrics::default())
}

fn counted(dir: &Path, limits: CompileLimits, metrics: LoaderMetrics) -> Loader {
    with_child(dir, &["compile"], limits, Confinement::Required, metrics)
}

/// Compiles in this program, called so.
fn with_child(
    dir: &Path,
    arguments: &[&str],
    limits: CompileLimits,
    confinement: Confinement,
    metrics: LoaderMetrics,
) -> Loader {
    let compiler = Compiler::this_program(arguments);
    let artefacts = Some((dir.join("artefacts"), 64 << 20));
    Loader::open(LoaderSettings { compiler, limits, confinement, artefacts }, metrics).unwrap()
}

async fn load(loader: &Loader, component: &[u8]) -> Result<Arc<HookPlugin>, LoadError> {
    let bytes = Bytes::copy_from_slice(component);
    loader.hooks(&engine(), Digest::of(component), async { Ok::<_, Infallible>(bytes) }).await
}

/// Fails if the loader wants the component's bytes.
async fn load_kept(loader: &Loader, component: &[u8]) -> Result<Arc<HookPlugin>, LoadError> {
    let nobody = async { panic!("the component's bytes are asked for") };
    loader.hooks(&engine(), Digest::of(component), nobody).await
}

/// The complaint's code; anything else is shown.
fn code(result: Result<Arc<HookPlugin>, LoadError>) -> String {
    match result {
        Ok(_) => "loaded".to_owned(),
        Err(LoadError::Refused(refused)) => {
            assert_eq!(refused.complaints.len(), 1, "{refused}");
            refused.complaints[0].code.to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// A good plugin with so many further functions, each of some work for the compiler.
fn bomb(functions: usize, adds: usize) -> Vec<u8> {
    let body = "(local.set $x (i32.add (i32.mul (local.get $x) (i32.const 7)) (i32.load (local.get $x))))";
    let function = format!("(func (param $x i32) (result i32) {} (local.get $x))\n", body.repeat(adds));
    let core = GOOD.core();
    let core = core.trim_end().strip_suffix(')').unwrap();
    component("pricing-plugin", &format!("{core}\n{})", function.repeat(functions)))
}

fn price(plugin: &Arc<HookPlugin>) -> i64 {
    let chain = Chain::new(vec![(release("ten", plugin, OnFault::Closed), Arc::clone(plugin))]);
    let data: Arc<dyn SiteData> = Arc::new(Shop::default());
    chain.price(&call(&data), &Guard::default(), lines(1)).unwrap().total.0
}

async fn what_a_child_made_runs_and_is_kept(dir: &Path) {
    let component = GOOD.component();
    let plugin = load(&loader(dir, limits()), &component).await.unwrap();
    assert_eq!(price(&plugin), 900, "10.00 less ten per cent");
    // As a process that starts again.
    let kept = load_kept(&loader(dir, limits()), &component).await.unwrap();
    assert_eq!((price(&kept), kept.hooks()), (900, plugin.hooks()));
    assert!(kept.code_bytes() > 0);
}

async fn code_of_other_settings_is_not_taken(dir: &Path) {
    let component = GOOD.component();
    let loader = loader(dir, limits());
    load(&loader, &component).await.unwrap();
    let other = common::engine_with(souk_sandbox::HookLimits {
        memory_bytes_max: 8 << 20,
        ..souk_sandbox::HookLimits::default()
    });
    assert!(loader.has_hooks(&engine(), Digest::of(&component)));
    assert!(!loader.has_hooks(&other, Digest::of(&component)), "admitted by another limit");
    assert!(!loader.has_hooks(&engine(), Digest::of(b"other")));
}

async fn a_rotten_file_is_compiled_again(dir: &Path) {
    let component = GOOD.component();
    let mut registry = Registry::default();
    let metrics = LoaderMetrics::register(&mut registry);
    let loader = counted(dir, limits(), metrics);
    load(&loader, &component).await.unwrap();
    let files = std::fs::read_dir(dir.join("artefacts")).unwrap().map(|entry| entry.unwrap().path());
    let file = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "art")).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(price(&load(&loader, &component).await.unwrap()), 900);
    load_kept(&loader, &component).await.unwrap();
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    for line in [
        r#"souk_artefacts_total{outcome="corrupt"} 1"#,
        r#"souk_artefacts_total{outcome="stored"} 2"#,
        r#"souk_artefacts_total{outcome="hit"} 1"#,
        r#"souk_compilations_total{outcome="done"} 2"#,
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
}

async fn a_bomb_costs_its_child_and_nobody_else(dir: &Path) {
    let loader = loader(dir, limits());
    let (greedy, other): (SiteId, SiteId) = ("greedy".parse().unwrap(), "other".parse().unwrap());
    let bomb = bomb(6_000, 60);
    let started = Instant::now();
    let burning = {
        let (loader, bomb) = (loader.on_behalf_of(&greedy), bomb.clone());
        tokio::spawn(async move { code(load(&loader, &bomb).await) })
    };
    // Another merchant's plugin is compiled meanwhile.
    load(&loader.on_behalf_of(&other), &GOOD.component()).await.unwrap();
    assert!(!burning.is_finished(), "the bomb burns on");
    assert_eq!(burning.await.unwrap(), "compile_time");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    // It is remembered: not even its bytes are wanted.
    assert_eq!(code(load_kept(&loader, &bomb).await), "compile_time");
}

async fn a_component_that_wants_too_much_memory_is_refused(dir: &Path) {
    // What the program itself takes, and a little.
    let limits = CompileLimits { memory_bytes_max: 320 << 20, ..CompileLimits::default() };
    let loader = loader(dir, limits);
    assert_eq!(code(load(&loader, &GOOD.component()).await), "loaded");
    assert_eq!(code(load(&loader, &bomb(29_000, 30)).await), "compile_memory");
}

async fn a_component_that_crashes_the_compiler_is_refused(dir: &Path) {
    // An instance type in an instance type in … : reading it recurses.
    let levels = 300_000;
    let mut types = vec![1];
    for _ in 0..levels {
        types.extend([0x42, 1, 1]);
    }
    types.extend([0x42, 0]);
    let mut component = GOOD.component();
    component.push(7);
    let mut length = types.len();
    while length > 0x7f {
        component.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    component.push(length as u8);
    component.extend(types);
    assert_eq!(code(load(&loader(dir, limits()), &component).await), "compile_crash");
}

async fn what_does_not_validate_is_refused_with_the_reason(dir: &Path) {
    let broken = component("pricing-plugin", &Guest { run: "(i32.const 64)", ..GOOD }.core());
    // The type of the constant: i64 instead of i32.
    let at = broken.windows(3).position(|bytes| bytes == [0x41, 0xc0, 0x00]).unwrap();
    let mut broken = broken;
    broken[at] = 0x42;
    assert_eq!(code(load(&loader(dir, limits()), &broken).await), "does_not_compile");
}

async fn other_bytes_and_no_bytes_are_told_apart(dir: &Path) {
    let loader = loader(dir, limits());
    let digest = Digest::of(b"another");
    let forged =
        loader.hooks(&engine(), digest, async { Ok::<_, Infallible>(Bytes::from(GOOD.component())) }).await;
    assert_eq!(forged.map(drop).unwrap_err().name(), "forged");
    let away = loader.hooks(&engine(), digest, async { Err("away") }).await;
    assert!(matches!(away.map(drop), Err(LoadError::Bytes("away"))));
}

async fn a_program_that_is_no_compiler_is_the_hosts_fault(dir: &Path) {
    for program in ["/nonexistent/souk", "/bin/true", "/bin/false", "/bin/cat"] {
        let compiler = Compiler::Child { program: program.into(), arguments: Vec::new() };
        let artefacts = Some((dir.join("none"), 1 << 20));
        let confinement = Confinement::Required;
        let settings = LoaderSettings { compiler, limits: limits(), confinement, artefacts };
        let loader = Loader::open(settings, LoaderMetrics::default()).unwrap();
        let refused = load(&loader, &GOOD.component()).await.map(drop).unwrap_err();
        assert_eq!(refused.name(), "host", "{program}: {refused}");
    }
}

async fn a_child_holds_nothing_and_ends_with_its_parent(dir: &Path) {
    let mut parent =
        Command::new("/proc/self/exe").arg("parent").arg(dir).env("SECRET", "x").spawn().unwrap();
    let child = wait_for("the child", || children_of(parent.id()).first().copied());
    // The child takes everything away from itself before it reads the component.
    let text = |file: &str| std::fs::read_to_string(format!("/proc/{child}/{file}")).unwrap_or_default();
    let limits = wait_for("the limits", || {
        let limits = text("limits");
        // No new ones, also in place of the three that it was given.
        (limits.contains("Max open files            0 ") && limits.contains("Max processes             0 "))
            .then_some(limits)
    });
    for limit in
        ["Max file size             0 ", "Max core file size        0 ", "Max cpu time              60 "]
    {
        assert!(limits.contains(limit), "{limit} in\n{limits}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(text("environ"), "");
        let held = std::fs::read_dir(format!("/proc/{child}/fd")).unwrap().count();
        assert!(held <= 3, "{held} descriptors");
    }
    kill(Pid::from_raw(parent.id() as i32), Signal::SIGKILL).unwrap();
    parent.wait().unwrap();
    wait_for("the child's end", || {
        let state = text("stat");
        (state.is_empty() || state.contains(") Z ")).then_some(())
    });
}

/// What whoever took the compiler over can do: each attempt with how the loader tells its end. The attempts run where
/// the compiler would, after the component was read.
const ATTEMPTS: [(&str, &str); 13] = [
    ("read a file", "PermissionDenied"),
    ("write a file", "PermissionDenied"),
    ("list a folder", "PermissionDenied"),
    (RUN_CODE, "PermissionDenied"),
    ("signal its parent", "EPERM"),
    ("raise its limits", "EPERM"),
    ("make a socket", "compile_forbidden"),
    ("make a datagram socket", "compile_forbidden"),
    ("make a local socket", "compile_forbidden"),
    ("start a program", "compile_forbidden"),
    ("start a thread", "compile_forbidden"),
    ("trace a process", "compile_forbidden"),
    (OUTLIVE, "compile_time"),
];
const RUN_CODE: &str = "run code of its own";
/// The kernel's first word on processor time is a signal, which whoever holds the process need not hear.
const OUTLIVE: &str = "outlive its time";

async fn whoever_takes_the_compiler_over_has_nothing(dir: &Path) {
    for (attempt, end) in ATTEMPTS {
        let told = code(load(&taken_over(dir, "taken-over", attempt), &GOOD.component()).await);
        let expected = match end {
            "compile_forbidden" | "compile_time" => end.to_owned(),
            reason => format!("the compiler could not do its work: {attempt}: {reason}"),
        };
        assert_eq!(told, expected, "{attempt}");
    }
}

fn taken_over(dir: &Path, how: &str, attempt: &str) -> Loader {
    with_child(dir, &[how, attempt], limits(), Confinement::Required, LoaderMetrics::default())
}

/// That an attempt is refused says something only if it would succeed elsewhere.
async fn what_is_refused_there_can_be_done_here(_: &Path) {
    assert_eq!(attempt(RUN_CODE), format!("{RUN_CODE}: it can"));
}

async fn a_call_that_every_compilation_makes_is_no_merchants_attack(dir: &Path) {
    let refused = load(&taken_over(dir, "taken-over-by-any", "make a socket"), &GOOD.component()).await;
    let refused = refused.map(drop).unwrap_err();
    assert_eq!(refused.name(), "host", "{refused}");
    assert!(refused.to_string().contains("harmless"), "{refused}");
}

async fn a_kernel_without_seccomp_compiles_only_where_that_is_said(dir: &Path) {
    let component = GOOD.component();
    let required =
        with_child(dir, &["old-kernel"], limits(), Confinement::Required, LoaderMetrics::default());
    let refused = load(&required, &component).await.map(drop).unwrap_err();
    assert_eq!(refused.name(), "host", "{refused}");
    assert!(refused.to_string().contains("does not refuse system calls"), "{refused}");
    let mut registry = Registry::default();
    let metrics = LoaderMetrics::register(&mut registry);
    let best_effort = with_child(dir, &["old-kernel"], limits(), Confinement::BestEffort, metrics);
    assert_eq!(price(&load(&best_effort, &component).await.unwrap()), 900);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    assert!(page.contains(r#"souk_compiler_held_by{layer="seccomp"} 0"#), "{page}");
}

/// From here on this process and its threads are on a kernel that knows no seccomp.
fn forget_seccomp() {
    let answer = SeccompAction::Errno(nix::libc::ENOSYS.unsigned_abs());
    let rules = [(nix::libc::SYS_seccomp, Vec::new())].into_iter().collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

fn attempt(what: &str) -> String {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixDatagram;
    fn end<T>(result: std::io::Result<T>) -> String {
        result.map_or_else(|error| format!("{:?}", error.kind()), |_| "it can".to_owned())
    }
    fn errno<T>(result: nix::Result<T>) -> String {
        result.map_or_else(|error| format!("{error:?}"), |_| "it can".to_owned())
    }
    let end = match what {
        "read a file" => end(std::fs::read("/etc/passwd")),
        "write a file" => end(std::fs::write("/tmp/souk-was-here", "x")),
        "list a folder" => end(std::fs::read_dir("/")),
        RUN_CODE => {
            // The runtime writes machine code into its memory and asks the kernel to let it run. Any other failure is shown.
            let code = wat::parse_str("(module (func))").unwrap();
            let engine = wasmtime::Engine::new(wasmtime::Config::new().parallel_compilation(false));
            match engine.and_then(|engine| wasmtime::Module::new(&engine, code)) {
                Ok(_) => "it can".to_owned(),
                Err(error) if error.chain().any(is_refusal) => "PermissionDenied".to_owned(),
                Err(error) => format!("{error:#}"),
            }
        }
        OUTLIVE => loop {
            std::hint::spin_loop();
        },
        "signal its parent" => errno(kill(nix::unistd::getppid(), Signal::SIGUSR1)),
        "raise its limits" => {
            use nix::sys::resource::{Resource, setrlimit};
            errno(setrlimit(Resource::RLIMIT_NPROC, 1_000, 1_000))
        }
        "make a socket" => end(TcpListener::bind("127.0.0.1:0")),
        "make a datagram socket" => end(UdpSocket::bind("127.0.0.1:0")),
        "make a local socket" => end(UnixDatagram::unbound()),
        "start a program" => end(Command::new("/bin/true").spawn()),
        "start a thread" => end(std::thread::Builder::new().spawn(|| ())),
        "trace a process" => errno(nix::sys::ptrace::traceme()),
        other => other.to_owned(),
    };
    format!("{what}: {end}")
}

/// The kernel's, to a call that is not on the list.
fn is_refusal(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref() == Some(&rustix::io::Errno::PERM)
        || cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

async fn a_node_sees_what_held_its_compiler(dir: &Path) {
    let mut registry = Registry::default();
    let loader = counted(dir, limits(), LoaderMetrics::register(&mut registry));
    load(&loader, &GOOD.component()).await.unwrap();
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    assert!(page.contains(r#"souk_compiler_held_by{layer="seccomp"} 1"#), "{page}");
    assert!(page.contains(r#"souk_compiler_held_by{layer="landlock"} "#), "{page}");
}

async fn a_compilation_that_nobody_waits_for_ends(dir: &Path) {
    let loader = loader(dir, CompileLimits::default());
    let own = std::process::id();
    let bomb = bomb(20_000, 60);
    let task = tokio::spawn(async move { code(load(&loader, &bomb).await) });
    let child =
        tokio::task::spawn_blocking(move || wait_for("the child", || children_of(own).first().copied()));
    let child = child.await.unwrap();
    task.abort();
    let _ = task.await;
    let gone = move || {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        (state.is_empty() || state.contains(") Z ")).then_some(())
    };
    tokio::task::spawn_blocking(move || wait_for("the child's end", gone)).await.unwrap();
}

fn children_of(parent: u32) -> Vec<u32> {
    let children = format!("/proc/{parent}/task");
    let tasks = std::fs::read_dir(children).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[track_caller]
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < give_up, "{what} is not to be seen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("compile") => return loader::compile(&arguments[1].parse::<Order>().unwrap()),
        Some("old-kernel") => {
            forget_seccomp();
            return loader::compile(&arguments[1].parse::<Order>().unwrap());
        }
        Some(how @ ("taken-over" | "taken-over-by-any")) => {
            // Made before there is nothing left to make it with.
            let hostile = GOOD.component();
            if arguments[1] == OUTLIVE {
                // Every thread that this one starts is deaf to it too.
                SigSet::from(Signal::SIGXCPU).thread_block().unwrap();
            }
            return loader::run_taken_over(&arguments[2].parse::<Order>().unwrap(), |component| {
                (how == "taken-over-by-any" || component == hostile).then(|| attempt(&arguments[1]))
            });
        }
        Some("load") => {
            let dir = tempfile::tempdir().unwrap();
            for file in &arguments[1..] {
                let component = Bytes::from(std::fs::read(file).unwrap());
                let digest = Digest::of(&component);
                let loader = loader(dir.path(), CompileLimits::default());
                let engine = HttpEngine::new(HttpLimits::default()).unwrap();
                let started = Instant::now();
                block_on(async {
                    let loaded = loader.http(&engine, digest, async { Ok::<_, Infallible>(component) }).await;
                    let how = loaded.map_or_else(|error| error.to_string(), |_| "loaded".to_owned());
                    println!("{file}: {how} ({:.1} s)", started.elapsed().as_secs_f64());
                });
            }
            return ExitCode::SUCCESS;
        }
        Some("parent") => {
            let loader = loader(Path::new(&arguments[1]), CompileLimits::default());
            block_on(async { drop(load(&loader, &bomb(20_000, 60)).await) });
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    macro_rules! tests {
        ($($name:ident),* $(,)?) => { [$((stringify!($name), (|dir| block_on($name(dir))) as fn(&Path))),*] };
    }
    let tests = tests![
        what_a_child_made_runs_and_is_kept,
        code_of_other_settings_is_not_taken,
        a_rotten_file_is_compiled_again,
        a_bomb_costs_its_child_and_nobody_else,
        a_component_that_wants_too_much_memory_is_refused,
        a_component_that_crashes_the_compiler_is_refused,
        what_does_not_validate_is_refused_with_the_reason,
        other_bytes_and_no_bytes_are_told_apart,
        a_program_that_is_no_compiler_is_the_hosts_fault,
        a_child_holds_nothing_and_ends_with_its_parent,
        whoever_takes_the_compiler_over_has_nothing,
        what_is_refused_there_can_be_done_here,
        a_call_that_every_compilation_makes_is_no_merchants_attack,
        a_kernel_without_seccomp_compiles_only_where_that_is_said,
        a_node_sees_what_held_its_compiler,
        a_compilation_that_nobody_waits_for_ends,
    ];
    // As libtest does: a filter by name, and flags that concern it only.
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    for (name, test) in tests.iter().filter(|(name, _)| wanted.is_none_or(|wanted| name.contains(wanted))) {
        let dir = tempfile::tempdir().unwrap();
        let started = Instant::now();
        // A failed test panics, and with it the program fails.
        test(dir.path());
        println!("test {name} ... ok ({:.1} s)", started.elapsed().as_secs_f64());
    }
    ExitCode::SUCCESS
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

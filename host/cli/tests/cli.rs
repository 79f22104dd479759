//! The program from outside: exit codes, what it says when it is asked wrongly, and what reaches which stream.

#![expect(clippy::unwrap_used, reason = "a test ends where its assumption does")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

fn souk(args: &[&str]) -> Done {
    done(command(args).output().unwrap())
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_souk"));
    command.args(args).stdin(Stdio::null());
    for name in [
        "SOUK_REGION",
        "SOUK_TOKEN",
        "SOUK_SITE",
        "SOUK_LOG",
        "SOUK_ADMIN",
        "SOUK_PLUGINS_DIR",
        "SOUK_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
}

fn done(output: Output) -> Done {
    Done {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn each_command_explains_itself() {
    for (args, shown) in [
        (&["--help"][..], "Begin with `souk demo`"),
        (&["demo", "--help"], "souk demo --replay online-retail.csv.gz --exit"),
        (&["edge", "--help"], "souk edge --config /etc/souk/edge.toml"),
        (&["region", "--help"], "souk region --config /etc/souk/region.toml"),
        (&["proxy", "--help"], "--upstream http://127.0.0.1:3000"),
        (&["serve", "--help"], "souk serve hello.wasm"),
        (
            &["cache", "explain", "--help"],
            "souk cache explain http://shop.example/tea --admin 127.0.0.1:9080",
        ),
        (&["plugin", "build", "--help"], "souk plugin build plugins/pricing"),
        (&["purge", "--help"], "souk purge --site sample --tag home"),
        (&["order", "--help"], "souk order reconcile --site sample"),
        (&["site", "import", "--help"], "--map sku=StockCode,title=Description,price=UnitPrice"),
        (&["site", "releases", "set", "--help"], "\"on_fault\": \"open\""),
    ] {
        let done = souk(args);
        assert_eq!(done.code, 0, "{args:?}");
        assert!(done.stdout.contains(shown), "{args:?} does not show {shown:?}:\n{}", done.stdout);
        assert!(!done.stdout.contains('\u{1b}'), "{args:?} colours a pipe");
    }
}

#[test]
fn a_wrong_question_ends_with_2_and_says_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("edge.toml"), "[node]\nidd = 1\n").unwrap();
    std::fs::write(folder.path().join("shop.csv"), "a,b\n1,2\n").unwrap();
    let heading = "InvoiceNo,StockCode,Description,Quantity,UnitPrice,CustomerID,Country\n";
    std::fs::write(folder.path().join("invoices.csv"), heading).unwrap();
    let slip = "{\"site\": \"s\", \"currency\": \"GBP\", \"reservation\": {}}";
    std::fs::write(folder.path().join("reservation.json"), slip).unwrap();
    std::fs::write(folder.path().join("other.json"), "{\"site\": \"other\", \"currency\": \"GBP\"}").unwrap();
    std::fs::write(
        folder.path().join("whole.toml"),
        "[node]\nid = 1\npop = \"lon\"\nregion = \"eu\"\ndata_dir = \"data\"\n[link]\nregions = [{ addr = \"a:1\", server_name = \"a\" }]\n\
         ca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"c.key\"\nseal_keys = [\"seal.pub\"]\n[listen]\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n",
    )
    .unwrap();
    std::fs::create_dir(folder.path().join("used")).unwrap();
    std::fs::write(folder.path().join("used/file"), "x").unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let region = ["--region", "http://127.0.0.1:9", "--token", "t", "--site", "s"];
    let site = |args: &[&str]| {
        [&["site"], args, &region[..]].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()
    };
    let proxy = |args: &[&str]| {
        let listen = ["proxy", "--listen", "127.0.0.1:0"];
        [&listen[..], args].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()
    };
    let put = |name: &str| site(&["put", &at(name)]);
    let own = |args: &[&str]| args.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    for (args, said) in [
        (own(&[]), "Usage: souk"),
        (own(&["dmeo"]), "demo"),
        (own(&["edge"]), "--config <FILE>"),
        (own(&["edge", "--config", "/nonexistent.toml"]), "/nonexistent.toml: the file cannot be opened"),
        (
            own(&["edge", "--config", &at("edge.toml")]),
            "edge.toml:2: node.idd: unknown key `idd`; did you mean `id`?",
        ),
        (own(&["region", "--config", &at("edge.toml")]), "edge.toml:1: node: unknown key `node`"),
        (
            own(&["proxy", "--listen", "127.0.0.1:0", "--upstream", "shop"]),
            "--upstream \"shop\" is not a URL",
        ),
        (own(&["proxy", "--listen", "localhost", "--upstream", "http://a"]), "--listen <ADDR>"),
        (
            proxy(&["--upstream", "http://a", "--policy-route", "/a=pass", "--policy-route", "/a=strict"]),
            "--policy-route says two policies of /a: leave one of them out",
        ),
        (
            proxy(&["--upstream", "http://a", "--upstream", "https://b"]),
            "all servers of an upstream hold the same",
        ),
        (proxy(&["--upstream", "http://a;weight=0"]), "a weight is a number from 1 to 100"),
        (proxy(&["--upstream", "http://a", "--health-every", "1s"]), "--health-path <PATH>"),
        (proxy(&["--upstream", "http://a", "--health-path", "healthz"]), "write it like /healthz"),
        (proxy(&["--upstream", "http://a", "--hedge-after", "fast"]), "write it like \"50 ms\", or like 95p"),
        (proxy(&["--upstream", "http://a", "--retries", "6"]), "at most 5"),
        (proxy(&["--upstream", "http://a", "--connect-timeout", "1 ms"]), "write at least \"10 ms\""),
        (proxy(&["--upstream", "http://a", "--in-flight-max", "0"]), "--in-flight-max 0 answers nobody"),
        (
            proxy(&["--upstream", "http://a", "--header-deadline", "1 ms"]),
            "--header-deadline \"1 ms\" is too little to work with: write at least \"100 ms\"",
        ),
        (proxy(&["--upstream", "http://a", "--rate-per-address", "0"]), "--rate-per-address <N>"),
        (proxy(&["--upstream", "http://a", "--trust", "shop"]), "write it like 10.0.0.0/8"),
        (proxy(&["--upstream", "http://a", "--peer", "http://b"]), "--peer-own <URL>"),
        (proxy(&["--upstream", "http://a", "--disk-size", "1 GiB"]), "--disk <DIR>"),
        (proxy(&["--upstream", "http://a", "--disk", &at("d"), "--disk-size", "1 KiB"]), "raise --disk-size"),
        (own(&["serve", "/nonexistent.wasm"]), "cannot open /nonexistent.wasm"),
        (own(&["purge", "--site", "s"]), "it names nothing"),
        (own(&["purge", "--url", "tea"]), "neither a path such as /tea?size=2"),
        (own(&["purge", "--tag", "x"]), "say which shop with --site or SOUK_SITE"),
        (own(&["order", "show", "12"]), "32 lower-case"),
        (own(&["site", "import", "x.csv"]), "say which site with --site or SOUK_SITE"),
        (own(&["site", "put", "x.json"]), "say where the region is with --region or SOUK_REGION"),
        (own(&["site", "push", "x", "--site", "A B"]), "site \"A B\" is not valid"),
        (site(&["push", &at("absent")]), "is not a folder"),
        (own(&["demo", "--dir", &at("used")]), "is not empty; choose another folder"),
        (own(&["demo", "--plugins", &at("used")]), "holds no catalog, pricing, cart"),
        (own(&["demo", "--node-config", &at("absent.toml")]), "absent.toml: No such file"),
        (own(&["demo", "--region-config", &at("absent.toml")]), "absent.toml: No such file"),
        (own(&["demo", "--kill-edge"]), "--replay <FILE>"),
        // What only the replay will need is looked at before a plugin is built.
        (own(&["demo", "--replay", &at("absent.csv")]), "absent.csv: No such file"),
        (own(&["demo", "--replay", &at("used")]), "used: Is a directory"),
        (own(&["demo", "--replay", &at("shop.csv")]), "the heading has no column InvoiceNo"),
        (
            own(&["demo", "--replay", &at("invoices.csv"), "--refused", "/nonexistent/x"]),
            "--refused /nonexistent/x: No such",
        ),
        (own(&["demo", "--replay", &at("invoices.csv"), "--record", "/proc/x"]), "--record /proc/x: "),
        (
            own(&["demo", "--replay", &at("invoices.csv"), "--record", &at("used")]),
            "is not empty; recordings want",
        ),
        (own(&["demo", "--replay", &at("invoices.csv"), "--carts", "0"]), "write a number from 1"),
        (own(&["demo", "--store", "mysql://x/y"]), "--store: this is not the address of a PostgreSQL"),
        (own(&["serve", &at("shop.csv")]), "shop.csv: this is not WebAssembly"),
        (put("reservation.json"), "unknown key `reservation`; known here: "),
        (put("other.json"), "is for the site other, and --site or SOUK_SITE says s"),
        (own(&["edge", "--config", &at("whole.toml")]), "whole.toml:8: link.ca: "),
        (own(&["demo", "--replay", "x", "--rate", "fast"]), "\"fast\" is neither `max` nor"),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = souk(&args);
        assert_eq!(done.code, 2, "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(said), "{args:?} does not say {said:?}:\n{}", done.stderr);
        assert_eq!(done.stdout, "", "{args:?}: standard output is for results");
    }
    assert!(!folder.path().join("data").exists(), "a node that is refused has made nothing");
}

#[test]
fn the_token_is_taken_from_the_environment_and_never_shown() {
    let done = done(command(&["site", "put", "--help"]).env("SOUK_TOKEN", "very-secret").output().unwrap());
    assert_eq!(done.code, 0);
    assert!(done.stdout.contains("SOUK_TOKEN") && !done.stdout.contains("very-secret"), "{}", done.stdout);
}

#[test]
fn a_folder_that_is_no_plugin_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let crate_of = |name: &str, manifest: &str| {
        let dir = folder.path().join(name);
        std::fs::create_dir_all(dir.join("src")).unwrap();
        std::fs::write(dir.join("Cargo.toml"), manifest).unwrap();
        std::fs::write(dir.join("src/lib.rs"), "").unwrap();
        dir
    };
    let package = |name: &str| format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n\n[workspace]\n");
    let plain = crate_of("plain", &package("plain"));
    let workspace = crate_of("workspace", "[workspace]\n");
    let broken = crate_of("broken", "[package\n");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    // The wrong folder is wrong usage; a crate that is not as it must be has failed to build.
    for (dir, code, said) in [
        (&folder.path().join("absent"), 2, "is not a folder"),
        (&empty, 2, "neither plugin.toml nor Cargo.toml; begin one with `souk plugin new NAME`"),
        (&plain, 1, "crate-type = [\"cdylib\", \"rlib\"]"),
        (&workspace, 1, "is a workspace, not a crate"),
        (&broken, 1, "cargo does not understand"),
    ] {
        let done = build(dir);
        assert_eq!(done.code, code, "{}", done.stderr);
        assert!(done.stderr.contains(said), "{dir:?} does not say {said:?}:\n{}", done.stderr);
    }
}

fn build(dir: &Path) -> Done {
    souk(&["plugin", "build", dir.to_str().unwrap()])
}

#[test]
fn a_region_that_is_away_is_named_after_some_patience() {
    // Port 9 of the loopback address: nobody listens, and the refusal is immediate.
    let started = std::time::Instant::now();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.html"), "x").unwrap();
    let dir = folder.path().to_str().unwrap();
    let done = souk(&["site", "push", dir, "--region", "http://127.0.0.1:9", "--token", "t", "--site", "s"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("the region at http://127.0.0.1:9 cannot be reached"), "{}", done.stderr);
    assert!(done.stderr.contains("Connection refused"), "{}", done.stderr);
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn a_replay_that_is_interrupted_before_its_report_has_not_succeeded() {
    // A compiler that never answers keeps the demo at its first step; it ends by itself, whatever becomes of the test.
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in ["cargo", "rustc", "rustup"] {
        let file = bin.join(name);
        std::fs::write(&file, "#!/bin/sh\nexec /bin/sleep 10\n").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let heading = "InvoiceNo,StockCode,Description,Quantity,UnitPrice,CustomerID,Country\n";
    std::fs::write(folder.path().join("invoices.csv"), heading).unwrap();
    for (replay, signal, code) in [(true, "TERM", 130), (true, "INT", 130), (false, "TERM", 0)] {
        let dir = folder.path().join(format!("demo-{replay}-{signal}"));
        let mut demo = command(&["demo", "--dir", dir.to_str().unwrap()]);
        if replay {
            demo.args(["--exit", "--replay"]).arg(folder.path().join("invoices.csv"));
        }
        let mut demo = demo.env("PATH", &bin).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The demo listens for signals before it creates its folder.
        while !dir.exists() {
            assert_eq!(demo.try_wait().unwrap(), None, "the demo has ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let kill = Command::new("/bin/kill").args(["-s", signal, &demo.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(demo.wait().unwrap().code(), Some(code), "replay: {replay}, SIG{signal}");
        assert!(!dir.exists(), "the folder is gone");
    }
}

//! Every template of `souk plugin new`: five hooks in four languages, each begun, built and tested as its README says.
//!
//! All of it takes a quarter of an hour, so a plain `cargo test` does C whole, a hook and HTTP in Rust, HTTP in JavaScript,
//! and nothing twice that `merchant` does (pricing in Rust and JavaScript). `SOUK_TEST_TEMPLATES=cart,http` does these in
//! every language, as CI does one, and `SOUK_TEST_TEMPLATES=all` everything. What is left out is said.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use souk_tests::tools::{self, Language};
use souk_tests::{say, skip};

const HOOKS: [&str; 5] = ["pricing", "cart", "catalog", "checkout", "http"];

#[test]
fn rust() -> Result<()> {
    all_hooks(Language::Rust, &["cart", "http"])
}

#[test]
fn javascript() -> Result<()> {
    all_hooks(Language::Js, &["http"])
}

#[test]
fn python() -> Result<()> {
    all_hooks(Language::Python, &[])
}

#[test]
fn c() -> Result<()> {
    all_hooks(Language::C, &HOOKS)
}

fn all_hooks(language: Language, always: &[&str]) -> Result<()> {
    let wanted = std::env::var("SOUK_TEST_TEMPLATES").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').filter(|word| !word.is_empty()).collect();
    // A name that is none would leave out what somebody asked for.
    let strange = wanted.iter().find(|word| **word != "all" && !HOOKS.contains(word));
    ensure!(strange.is_none(), "SOUK_TEST_TEMPLATES names {strange:?}: `all`, or some of {HOOKS:?}");
    for hook in HOOKS {
        let name = format!("template of {} in {}", hook, language.word());
        if !always.contains(&hook) && !wanted.iter().any(|word| *word == "all" || *word == hook) {
            skip(&name, &format!("SOUK_TEST_TEMPLATES={hook} builds it, `all` all of them"));
            continue;
        }
        match tools::project("tea-week", language, hook)? {
            Ok(project) => whole(&project, language, hook).context(name)?,
            Err(why) => skip(&name, &why),
        }
    }
    Ok(())
}

/// Builds a fresh project and runs its tests: its own, and its fixtures in the sandbox.
fn whole(project: &Path, language: Language, hook: &str) -> Result<()> {
    let since = Instant::now();
    let built: Value = serde_json::from_str(&tools::run(project, &["plugin", "build", "--json"])?)?;
    let build = since.elapsed();
    // Nothing has changed, so nothing may seem new to a region. Of the others' tools no such promise is made.
    if matches!(language, Language::Rust | Language::Js) {
        let again: Value = serde_json::from_str(&tools::run(project, &["plugin", "build", "--json"])?)?;
        ensure!(again["sha256"] == built["sha256"], "built again it is another: {built} {again}");
    }
    let hooks: &[&str] = if hook == "http" { &[] } else { &[hook] };
    ensure!(built["hooks"] == serde_json::json!(hooks), "{built}");
    let since = Instant::now();
    let tested: Value = serde_json::from_str(&tools::run(project, &["plugin", "test", "--json"])?)?;
    let fixtures = std::fs::read_dir(project.join("fixtures")).map_or(0, Iterator::count);
    ensure!(fixtures > 0, "nothing to run in the sandbox");
    ensure!(tested["failed"] == 0 && tested["passed"] == fixtures, "{tested}");
    let inspected: Value = serde_json::from_str(&tools::run(project, &["plugin", "inspect", "--json"])?)?;
    ensure!(inspected["complaints"] == serde_json::json!([]), "a region would refuse it: {inspected}");
    say(&format!(
        "| `{}` | `{hook}` | {} | {:.1} s | {:.1} s |",
        language.word(),
        size(built["bytes"].as_u64().unwrap_or_default()),
        build.as_secs_f64(),
        since.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn size(bytes: u64) -> String {
    if bytes < 1_000_000 { format!("{} kB", bytes / 1000) } else { format!("{:.1} MB", bytes as f64 / 1e6) }
}

/// A plugin need not be one file, nor its author's alone.
#[test]
fn javascript_is_split_into_files_and_takes_packages() -> Result<()> {
    for hook in ["pricing", "http"] {
        let name = format!("several files and a package in JavaScript, {hook}");
        match tools::project("bundle", Language::Js, hook)? {
            Ok(project) => several_files(&project, hook).context(name)?,
            Err(why) => skip(&name, &why),
        }
    }
    Ok(())
}

/// Moves the template's plugin behind TypeScript, another file and a package in the other module format.
fn several_files(project: &Path, hook: &str) -> Result<()> {
    let package = project.join("packages/greeting");
    std::fs::create_dir_all(&package)?;
    std::fs::write(
        package.join("package.json"),
        r#"{ "name": "greeting", "version": "1.0.0", "main": "index.js" }"#,
    )?;
    // CommonJS, as most packages of npm are.
    std::fs::write(package.join("index.js"), "exports.greet = (name) => `hello, ${name}`;\n")?;
    let plugin = project.join("src/plugin.js");
    std::fs::rename(&plugin, project.join("src/inner.js"))?;
    std::fs::write(project.join("src/name.ts"), "export const name: string = \"shop\";\n")?;
    let names = if hook == "http" { "answer" } else { hook };
    std::fs::write(
        &plugin,
        format!(
            "import {{ greet }} from \"../packages/greeting/index.js\";\n\
             import {{ name }} from \"./name\";\n\
             if (greet(name) !== \"hello, shop\") throw new Error(\"no package\");\n\
             export {{ {names} }} from \"./inner.js\";\n"
        ),
    )?;
    let built: Value = serde_json::from_str(&tools::run(project, &["plugin", "build", "--json"])?)?;
    ensure!(built["bytes"].as_u64() > Some(100_000), "{built}");
    // Node has the package as CommonJS, so only the sandbox's part.
    if hook != "http" {
        let tested: Value =
            serde_json::from_str(&tools::run(project, &["plugin", "test", "--no-native", "--json"])?)?;
        ensure!(tested["failed"] == 0 && tested["passed"] == 2, "{tested}");
    }
    Ok(())
}

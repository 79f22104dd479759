//! The habits that a compiler does not check: who imports whom, what a file says of itself, how long it may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use souk_tests::root;

/// The arrows of the house: a crate of ours may import those named beside it, and no other of ours.
/// A new arrow is a decision: write it down in `docs/decisions/` first.
const ARROWS: &[(&str, &[&str])] = &[
    ("souk-config", &[]),
    ("souk-commerce", &[]),
    ("souk-sandbox", &["souk-commerce"]),
    ("souk-cache", &["souk-config"]),
    ("souk-replication", &[]),
    ("souk-link", &["souk-replication"]),
    ("souk-search", &["souk-commerce"]),
    (
        "souk-edge",
        &[
            "souk-config",
            "souk-commerce",
            "souk-sandbox",
            "souk-cache",
            "souk-replication",
            "souk-link",
            "souk-search",
        ],
    ),
    (
        "souk-region",
        &["souk-config", "souk-commerce", "souk-sandbox", "souk-replication", "souk-link", "souk-search"],
    ),
    ("souk", &["souk-config", "souk-commerce", "souk-sandbox", "souk-edge", "souk-region", "souk-link"]),
    ("souk-sdk", &[]),
    ("souk-plugin-catalog", &["souk-sdk"]),
    ("souk-plugin-pricing", &["souk-sdk"]),
    ("souk-plugin-cart", &["souk-sdk"]),
];

/// Knowing one of these is the privilege of the crates beside it (the tests crate measures against them).
const PRIVILEGES: &[(&str, &[&str])] = &[
    ("wasmtime", &["souk-sandbox", "souk-tests"]),
    ("wasmtime-wasi", &["souk-sandbox"]),
    ("wasmtime-wasi-http", &["souk-sandbox"]),
    // The link, and the node's HTTP/3 listener.
    ("quinn", &["souk-link", "souk-edge", "souk-tests"]),
    ("h3", &["souk-edge", "souk-tests"]),
    ("instant-acme", &["souk-edge"]),
    ("redb", &["souk-edge", "souk-tests"]),
    // The region's store, and a node's index.
    ("rusqlite", &["souk-region", "souk-search"]),
    ("tokio-postgres", &["souk-region"]),
    ("async-nats", &["souk-region", "souk-tests"]),
    ("amqprs", &["souk-region", "souk-tests"]),
    ("axum", &["souk-region"]),
    ("anyhow", &["souk", "souk-tests"]),
];

/// What a crate must not touch, whatever the reason: the absences that make it testable.
const ABSENCES: &[(&str, &[&str])] = &[
    ("souk-replication", &["tokio", "quinn", "rand", "getrandom", "serde"]),
    ("souk-commerce", &["tokio", "quinn", "rand", "getrandom", "wasmtime"]),
];

/// A file longer than this owns more than one thing, or says in its first lines why not.
const LINES_MAX: usize = 1_000;

struct Manifest {
    name: String,
    dependencies: Vec<String>,
}

fn manifests() -> Vec<Manifest> {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let workspace: toml::Table = text.parse().expect("the workspace manifest is TOML");
    let members = workspace["workspace"]["members"].as_array().expect("the workspace has members");
    let read = |member: &toml::Value| {
        let folder = member.as_str().expect("a member is a path");
        let text =
            std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a member has a manifest");
        let manifest: toml::Table = text.parse().expect("a manifest is TOML");
        let keys = |table: &str| -> Vec<String> {
            manifest
                .get(table)
                .and_then(|t| t.as_table())
                .map(|t| t.keys().cloned().collect())
                .unwrap_or_default()
        };
        let name = manifest["package"]["name"].as_str().expect("a package has a name").to_owned();
        Manifest { name, dependencies: [keys("dependencies"), keys("build-dependencies")].concat() }
    };
    members.iter().map(read).collect()
}

#[test]
fn the_arrows_between_crates_are_kept() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for manifest in manifests().iter().filter(|m| m.name != "souk-tests") {
        let allowed = arrows
            .get(manifest.name.as_str())
            .unwrap_or_else(|| panic!("{} has no row in ARROWS", manifest.name));
        for dependency in manifest.dependencies.iter().filter(|d| *d == "souk" || d.starts_with("souk-")) {
            assert!(allowed.contains(&dependency.as_str()), "{} must not import {dependency}", manifest.name);
        }
    }
}

#[test]
fn privileges_and_absences_are_kept() {
    for manifest in manifests() {
        for (dependency, owners) in PRIVILEGES {
            let imports = manifest.dependencies.iter().any(|d| d == dependency);
            assert!(
                !imports || owners.contains(&manifest.name.as_str()),
                "{} must not know {dependency}",
                manifest.name
            );
        }
        for (_, absent) in ABSENCES.iter().filter(|(name, _)| *name == manifest.name) {
            for dependency in *absent {
                assert!(
                    !manifest.dependencies.iter().any(|d| d == dependency),
                    "{} must not know {dependency}",
                    manifest.name
                );
            }
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the project can be read") {
        let path = entry.expect("a folder entry can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git" | "node_modules") {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn files(extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["edge-config", "host", "cdn", "sdk", "plugins", "tests"] {
        walk(&root().join(folder), &mut found);
    }
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    assert!(!found.is_empty(), "no .{extension} file found: is this the project?");
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path, text)
        })
        .collect()
}

#[test]
fn every_rust_file_says_what_it_is_and_stays_short() {
    for (path, text) in files("rs") {
        let shown = path.strip_prefix(root()).unwrap_or(&path).display();
        assert!(text.starts_with("//!"), "{shown}: begin with what the file owns and who calls it (`//! …`)");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{shown}: {lines} lines; which of them belong to someone else?");
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            assert!(!line.ends_with([' ', '\t']), "{shown}:{number}: white space at the end of the line");
            // Put together here, so that this file does not find itself.
            for mark in [
                concat!("TO", "DO"),
                concat!("FIX", "ME"),
                concat!("to", "do!("),
                concat!("unimple", "mented!("),
            ] {
                assert!(!line.contains(mark), "{shown}:{number}: `{mark}` is work left undone");
            }
        }
    }
}

#[test]
fn the_top_level_holds_what_the_layout_names() {
    const KNOWN: &[&str] = &[
        "Cargo.toml",
        "Cargo.lock",
        "host",
        "sdk",
        "plugins",
        "edge-config",
        "cdn",
        "tests",
        "docs",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    ];
    for entry in std::fs::read_dir(root()).expect("the root can be read") {
        let name = entry.expect("an entry can be read").file_name().to_string_lossy().into_owned();
        let one_liner =
            ["rust-toolchain.toml", "rustfmt.toml", "clippy.toml", "deny.toml"].contains(&name.as_str());
        let known = KNOWN.contains(&name.as_str()) || one_liner || name.starts_with('.') || name == "target";
        assert!(known, "{name}: the top level is fixed; put it into one of {KNOWN:?}");
    }
}

#[test]
fn decisions_are_dated_and_whole() {
    let folder = root().join("docs/decisions");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("docs/decisions can be read") {
        let path = entry.expect("an entry can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dated = name.len() > 11
            && name[..10]
                .chars()
                .enumerate()
                .all(|(i, c)| if i == 4 || i == 7 { c == '-' } else { c.is_ascii_digit() });
        assert!(dated && name.ends_with(".md"), "{name}: name it YYYY-MM-DD-subject.md");
        let text = std::fs::read_to_string(&path).expect("a decision can be read");
        for heading in ["## Context", "## Choice", "## Cost", "## What would change our mind"] {
            assert!(text.contains(heading), "{name}: no `{heading}`");
        }
        count += 1;
    }
    assert!(count > 0, "no decision is written down");
}

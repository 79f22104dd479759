//! What the SDKs of other languages are generated from: `sdk/wit`, read by the tools' own parser.
//!
//! It writes TypeScript declarations (as QuickJS maps the contract), Python stubs (as componentize-py does) and C bindings
//! (by wit-bindgen itself). The test `bindings` compares them with what is in `sdk/`, and writes them there when
//! `SOUK_BLESS` is set; nothing else calls this.

mod c;
mod python;
mod typescript;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use wit_parser::{Interface, PackageId, Resolve};

/// The hooks, each with its interface and its world of the contract.
const HOOKS: [&str; 4] = ["catalog", "pricing", "cart", "checkout"];

/// Every generated file below `sdk/`, by its path there.
pub fn generate(sdk: &Path) -> Result<BTreeMap<String, String>> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(sdk.join("wit")).context("read sdk/wit")?;
    let mut files = BTreeMap::new();
    files.insert("js/souk-plugin.d.ts".to_owned(), typescript::declarations(&resolve, package)?);
    for (path, text) in python::stubs(&resolve, package)? {
        files.insert(format!("python/wit_world/{path}"), text);
    }
    for hook in HOOKS {
        for (path, text) in c::bindings(&sdk.join("wit"), &format!("{hook}-plugin"))? {
            files.insert(format!("c/{hook}/{path}"), text);
        }
    }
    for (path, text) in c::bindings(&sdk.join("wit-http"), "http-plugin")? {
        files.insert(format!("c/http/{path}"), text);
    }
    Ok(files)
}

/// An interface of the contract.
fn interface<'a>(resolve: &'a Resolve, package: PackageId, name: &str) -> Result<&'a Interface> {
    let id = resolve.packages[package].interfaces.get(name);
    Ok(&resolve.interfaces[*id.with_context(|| format!("the contract has no interface {name}"))?])
}

/// `added-by` is `addedBy`.
fn camel(name: &str) -> String {
    let mut words = name.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| text + &capital(word))
}

/// `stock-hint` is `StockHint`.
fn pascal(name: &str) -> String {
    name.split('-').map(capital).collect()
}

/// `added-by` is `added_by`.
fn snake(name: &str) -> String {
    name.replace('-', "_")
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

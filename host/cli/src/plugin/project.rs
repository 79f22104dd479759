//! What lies in a merchant's folder: which language, which hook, under which name, and where its component goes.
//!
//! A folder says so in `plugin.toml`. A Rust crate without that file is a project too: cargo knows its name. Nothing here
//! builds; [`super::build`] asks this module first.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use souk_commerce::id::PluginName;

use crate::failure::Usage;

/// The file that makes a folder a project.
pub(crate) const MANIFEST: &str = "plugin.toml";

/// What a plugin may be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Language {
    /// Rust, with the SDK
    Rust,
    /// JavaScript: QuickJS for hooks, StarlingMonkey (fetch events) for HTTP
    Js,
    /// Python, with componentize-py
    Python,
    /// C, with any compiler for Wasm; zig from PyPI by default
    C,
}

/// What a plugin is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Change prices by adjustments
    Pricing,
    /// Review changes to a cart
    Cart,
    /// Decorate pages of products
    Catalog,
    /// Look at an order before it is placed
    Checkout,
    /// Answer HTTP requests on a route of the site
    Http,
}

impl Language {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Js => "js",
            Self::Python => "python",
            Self::C => "c",
        }
    }
}

impl Kind {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Pricing => "pricing",
            Self::Cart => "cart",
            Self::Catalog => "catalog",
            Self::Checkout => "checkout",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// `plugin.toml` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: PluginName,
    language: Language,
    hook: Kind,
    source: Option<PathBuf>,
}

/// A merchant's folder, as used.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) dir: PathBuf,
    /// None: a bare crate, which is called what cargo calls it.
    pub(crate) named: Option<Named>,
    pub(crate) language: Language,
}

/// What `plugin.toml` says beside the language.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) name: PluginName,
    pub(crate) hook: Kind,
    /// The file that the language's tool begins with.
    pub(crate) source: PathBuf,
}

impl Project {
    pub(crate) fn read(dir: &Path) -> Result<Self, Usage> {
        let dir = dir.canonicalize().map_err(|_| Usage(format!("{} is not a folder", dir.display())))?;
        let file = dir.join(MANIFEST);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(_) if dir.join("Cargo.toml").is_file() => {
                return Ok(Self { dir, named: None, language: Language::Rust });
            }
            Err(_) => {
                return Err(Usage(format!(
                    "{} is no plugin: it has neither {MANIFEST} nor Cargo.toml; begin one with `souk plugin new NAME`",
                    dir.display()
                )));
            }
        };
        let manifest: Manifest = toml::from_str(&text)
            .map_err(|e| Usage(format!("{} is wrong:\n{}", file.display(), e.to_string().trim_end())))?;
        let Manifest { name, language, hook, source } = manifest;
        let source = source.unwrap_or_else(|| default_source(language));
        if !dir.join(&source).is_file() {
            let shown = source.display();
            return Err(Usage(format!("{}: there is no source file {shown}", file.display())));
        }
        Ok(Self { dir, named: Some(Named { name, hook, source }), language })
    }

    /// What a person calls it: its name, or that of a bare crate's folder.
    pub(crate) fn title(&self) -> String {
        match &self.named {
            Some(named) => named.name.to_string(),
            None => self.dir.file_name().unwrap_or(self.dir.as_os_str()).to_string_lossy().into_owned(),
        }
    }

    /// Where its component lies unless the user says otherwise; none for a bare crate, whose place cargo knows.
    pub(crate) fn component(&self) -> Option<PathBuf> {
        self.named.as_ref().map(|named| self.dir.join("build").join(format!("{}.wasm", named.name)))
    }
}

impl Project {
    /// The project's own unit tests, which run at native speed; none where the language has no such thing here.
    pub(crate) fn unit_tests(&self) -> Option<Command> {
        let mut tests = match self.language {
            Language::Rust => {
                let mut cargo = Command::new("cargo");
                cargo.args(["test", "--quiet"]);
                cargo
            }
            Language::Js => {
                let mut npm = Command::new("npm");
                npm.args(["test", "--silent"]);
                npm
            }
            Language::Python => {
                let mut python = Command::new("python3");
                python.args(["-m", "unittest", "discover", "-q", "test"]).env("PYTHONPATH", "souk");
                python
            }
            Language::C => return None,
        };
        tests.current_dir(&self.dir);
        Some(tests)
    }
}

/// Where `souk plugin new` puts it.
pub(super) fn default_source(language: Language) -> PathBuf {
    PathBuf::from(match language {
        Language::Rust => "src/lib.rs",
        Language::Js => "src/plugin.js",
        Language::Python => "src/plugin.py",
        Language::C => "src/plugin.c",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("files lie in folders")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        dir
    }

    #[test]
    fn a_project_says_what_it_is() {
        let text = "name = \"tea-week\"\nlanguage = \"js\"\nhook = \"pricing\"\n";
        let dir = folder(&[(MANIFEST, text), ("src/plugin.js", "")]);
        let project = Project::read(dir.path()).expect("a project");
        assert_eq!(project.language, Language::Js);
        assert!(project.component().expect("a place").ends_with("build/tea-week.wasm"));
    }

    #[test]
    fn a_bare_crate_is_a_project() {
        let dir = folder(&[("Cargo.toml", "")]);
        let project = Project::read(dir.path()).expect("a project");
        assert!(project.named.is_none() && project.language == Language::Rust);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (files, said) in [
            (&[][..], "begin one with `souk plugin new NAME`"),
            (&[(MANIFEST, "name = \"a\"\nlanguage = \"cobol\"\nhook = \"pricing\"")][..], "cobol"),
            (&[(MANIFEST, "name = \"a\"\nlanguage = \"c\"\nhook = \"pricing\"\ncolour = 1")][..], "colour"),
            (
                &[(MANIFEST, "name = \"a\"\nlanguage = \"c\"\nhook = \"pricing\"")][..],
                "no source file src/plugin.c",
            ),
        ] {
            let dir = folder(files);
            let error = Project::read(dir.path()).expect_err("not a project").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

//! `souk plugin new`: a real small plugin with tests, which builds outside this repository.
//!
//! What a project begins with lies in `templates/`, by language and hook; what it needs of Souk (contract, SDK, bindings)
//! comes out of `sdk/` into the project's own folder `souk/`, because nothing of ours is in a registry. Both are part of the
//! program. The templates of one hook do the same in every language, so they share its fixtures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use souk_commerce::id::PluginName;

use super::project::{Kind, Language};
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD};

include!(concat!(env!("OUT_DIR"), "/templates.rs"));
include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk plugin new tea-week\n  \
                        souk plugin new tea-week --lang js --hook pricing\n  \
                        souk plugin new hello --lang python --hook http --dir plugins/hello\n\n\
                        The project builds with `souk plugin build`, here or anywhere else.")]
pub(crate) struct NewArgs {
    /// The name under which it will be released: a-z, 0-9 and '-'
    #[arg(value_name = "NAME")]
    pub(crate) name: PluginName,
    /// What it is written in
    #[arg(long, value_enum, default_value = "rust", value_name = "LANG")]
    pub(crate) lang: Language,
    /// What it is called for
    #[arg(long, value_enum, default_value = "pricing", value_name = "HOOK")]
    pub(crate) hook: Kind,
    /// Where to put it; must be empty or absent [default: a new folder NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was begun.
#[derive(Debug, Serialize)]
struct Begun<'a> {
    plugin: &'a PluginName,
    language: Language,
    hook: Kind,
    dir: &'a Path,
    files: usize,
}

pub(crate) fn command(args: &NewArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(args.name.as_str()));
    if std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Usage(format!("{} is not empty; choose another folder with --dir", dir.display())).into());
    }
    let files = files(&args.name, args.lang, args.hook);
    for (path, text) in &files {
        let path = dir.join(path);
        let folder = path.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(folder)
            .map_err(|e| Usage(format!("cannot create {}: {e}", folder.display())))?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let begun =
        Begun { plugin: &args.name, language: args.lang, hook: args.hook, dir: &dir, files: files.len() };
    if args.json {
        terminal::json(&begun);
    } else {
        begun.print();
    }
    Ok(ExitCode::SUCCESS)
}

impl Begun<'_> {
    fn print(&self) {
        anstream::println!(
            "{GOOD}✓{GOOD:#} {BOLD}{}{BOLD:#}: a {} plugin in {} {DIM}({} files){DIM:#}",
            self.dir.display(),
            self.hook,
            self.language,
            self.files
        );
        let dir = self.dir.display();
        anstream::println!("\n  cd {dir}\n  souk plugin build\n  souk plugin test");
        anstream::println!("  souk plugin dev      {DIM}# a shop on this machine, with it{DIM:#}");
        anstream::println!("\n{DIM}README.md says the rest.{DIM:#}");
    }
}

/// How its own unit tests are run.
const fn tests(language: Language) -> &'static str {
    match language {
        Language::Rust => "cargo test",
        Language::Js => "npm test",
        Language::Python => "PYTHONPATH=souk python3 -m unittest discover test",
        Language::C => "souk plugin test",
    }
}

/// What its tools are, for the README.
const fn needs(language: Language, hook: Kind) -> &'static str {
    match (language, hook) {
        (Language::Rust, _) => {
            "Rust 1.85 or newer. `souk plugin build` finds or fetches what rustc needs for Wasm; the versions of crates are those of \
             `Cargo.lock`, which the first build writes: commit it."
        }
        (Language::Js, Kind::Http) => {
            "Node.js 20 or newer. The first build fetches jco (StarlingMonkey, about 400 MB) with npm, at the versions of \
             `package-lock.json`. A build takes about 20 seconds."
        }
        (Language::Js, _) => {
            "Node.js 20 or newer. The first build fetches componentize-qjs (QuickJS) with npm, at the version of \
             `package-lock.json`. 64-bit numbers of the contract are plain numbers here, absent values are `null`, a refusal is \
             thrown: `souk/souk-plugin.d.ts` has all types, and editors read it."
        }
        (Language::Python, _) => {
            "Python 3.10 or newer. The first build fetches componentize-py with pip into `.venv`, at the version of \
             `requirements.txt`. The component holds CPython itself: about 18 MB, ten seconds to build."
        }
        (Language::C, _) => {
            "A C compiler for wasm32-wasi: the one in `$SOUK_CC` (it is given clang's arguments), else `zig` on the PATH, else the \
             first build fetches zig from PyPI with pip into `.venv` (about 400 MB), at the version of `requirements.txt`."
        }
    }
}

/// Every file of a new project, by its path there.
fn files(name: &PluginName, language: Language, hook: Kind) -> Vec<(String, String)> {
    let http = hook == Kind::Http;
    let (lang, kind) = (language.word(), if http { "http" } else { "hook" });
    let folder = |path: String, to: &'static str| (path, to);
    let mut templates = vec![
        folder("all".to_owned(), ""),
        folder(format!("readme/{kind}"), ""),
        folder(format!("fixtures/{hook}"), ""),
        folder(format!("{lang}/any"), ""),
        folder(format!("{lang}/{hook}"), ""),
    ];
    let mut sdk = vec![folder(if http { "wit-http" } else { "wit" }.to_owned(), "souk/wit/")];
    if !http {
        templates.push(folder(format!("{lang}/hook"), ""));
    }
    match language {
        Language::Rust if http => {}
        Language::Rust => {
            templates.push(folder("rust/sdk".to_owned(), "souk/sdk/"));
            sdk.push(folder("rust/src".to_owned(), "souk/sdk/src/"));
        }
        Language::Js if http => {}
        Language::Js => sdk.push(folder("js".to_owned(), "souk/")),
        Language::Python => sdk.push(folder("python".to_owned(), "souk/")),
        Language::C => sdk.push(folder(format!("c/{hook}"), "souk/")),
    }
    let words = Words::of(name, language, hook);
    let template = taken(TEMPLATES, &templates).map(|(path, text)| (written(&path), words.fill(text)));
    let vendored = taken(SDK, &sdk).map(|(path, text)| (path, text.to_owned()));
    template.chain(vendored).collect()
}

/// The files below each of the folders, moved to where the project has them.
fn taken<'a>(
    from: &'static [(&'static str, &'static str)],
    folders: &'a [(String, &'static str)],
) -> impl Iterator<Item = (String, &'static str)> + 'a {
    folders.iter().flat_map(move |(folder, to)| {
        from.iter().filter_map(move |(path, text)| {
            let rest = path.strip_prefix(folder.as_str())?.strip_prefix('/')?;
            Some((format!("{to}{rest}"), *text))
        })
    })
}

/// A template is not called what it becomes where that would mean something in this repository: manifests, dot files.
fn written(path: &str) -> String {
    path.strip_suffix(".in").unwrap_or(path).replace("dot-", ".")
}

/// What templates leave open.
struct Words(Vec<(&'static str, String)>);

impl Words {
    fn of(name: &PluginName, language: Language, hook: Kind) -> Self {
        let spaced = name.as_str().replace('-', " ");
        let title = spaced[..1].to_uppercase() + &spaced[1..];
        Self(vec![
            ("{{name}}", name.to_string()),
            ("{{code}}", name.as_str().replace('-', "_")),
            ("{{title}}", title.trim().to_owned()),
            ("{{language}}", language.to_string()),
            ("{{hook}}", hook.to_string()),
            ("{{source}}", super::project::default_source(language).display().to_string()),
            ("{{tests}}", tests(language).to_owned()),
            ("{{needs}}", needs(language, hook).to_owned()),
            ("{{version}}", env!("CARGO_PKG_VERSION").to_owned()),
        ])
    }

    fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (word, said)| text.replace(word, said))
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use souk_sandbox::record::Fixture;

    use super::*;
    use crate::plugin::exchange::Exchange;
    use crate::plugin::project::Project;

    #[test]
    fn every_language_begins_every_hook_with_a_whole_project() {
        let name: PluginName = "tea-week".parse().expect("a name");
        for language in Language::value_variants() {
            for hook in Kind::value_variants() {
                let dir = tempfile::tempdir().expect("a folder");
                let args = NewArgs {
                    name: name.clone(),
                    lang: *language,
                    hook: *hook,
                    dir: Some(dir.path().join("new")),
                    json: true,
                };
                command(&args).expect("a project");
                let project = Project::read(&dir.path().join("new")).expect("a project that is understood");
                let named = project.named.as_ref().expect("a plugin.toml");
                assert_eq!((project.language, named.hook), (*language, *hook));
                for (path, text) in files(&name, *language, *hook) {
                    assert!(!text.contains("{{name}}") && !text.contains("{{code}}"), "{path}");
                    assert!(!path.contains("dot-") && !path.ends_with(".in"), "{path}");
                }
                for needed in ["README.md", ".gitignore", "souk/wit"] {
                    assert!(project.dir.join(needed).exists(), "{language} {hook}: no {needed}");
                }
                assert!(project.dir.join("fixtures").exists());
                let used = command(&args).expect_err("the folder is used now");
                assert!(used.to_string().contains("is not empty"));
            }
        }
    }

    #[test]
    fn fixtures_are_what_the_sandbox_reads() {
        let fixtures = TEMPLATES.iter().filter(|(path, _)| path.starts_with("fixtures/"));
        let words = Words::of(&"tea-week".parse().expect("a name"), Language::Rust, Kind::Pricing);
        let mut seen = 0;
        for (path, text) in fixtures {
            let text = words.fill(text);
            let decoded = if path.starts_with("fixtures/http/") {
                Exchange::decode(text.as_bytes()).map(|_| ())
            } else {
                Fixture::decode(text.as_bytes()).map(|_| ()).map_err(|error| error.to_string())
            };
            decoded.unwrap_or_else(|e| panic!("{path}: {e}"));
            seen += 1;
        }
        assert!(seen >= 9, "{seen} fixtures");
    }
}

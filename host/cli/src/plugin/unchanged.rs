//! The component of the last build, kept while nothing changes that it was made of.
//!
//! A tool that runs an engine at build time and keeps its memory (QuickJS, StarlingMonkey) keeps random numbers too: the
//! keys of hash tables. So the same source gives other bytes each time, and a component that is another to a region: its
//! nodes would compile it, and a deploy would make a release in which nothing is new. The tools have no switch for it, so
//! what a build would begin with is compared instead. Another machine's bytes remain others: build once, push that.
//!
//! Who calls it: [`super::javascript`], the only language whose inputs are all in one bundle.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use souk_commerce::id::Digest;

use super::build::write_if_changed;

/// Beside the component, in a folder that no repository keeps.
const RECORD: &str = "build/made.json";

/// What a build begins with.
#[derive(Debug, Default)]
pub(super) struct Inputs(String);

/// Which component came of which inputs.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    inputs: Digest,
    component: Digest,
}

impl Inputs {
    /// Something that is said to the tool, or which tool it is.
    pub(super) fn word(&mut self, word: &str) {
        self.part("word", word.as_bytes());
    }

    pub(super) fn file(&mut self, file: &Path) -> anyhow::Result<()> {
        let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        self.part("file", &bytes);
        Ok(())
    }

    /// Each file below a folder, with its name.
    pub(super) fn folder(&mut self, folder: &Path) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths {
            self.part("name", path.file_name().unwrap_or_default().as_encoded_bytes());
            if path.is_dir() { self.folder(&path)? } else { self.file(&path)? }
        }
        self.word("end");
        Ok(())
    }

    /// Digests have one length, so no two lists of parts read the same.
    fn part(&mut self, kind: &str, bytes: &[u8]) {
        self.0.push_str(&format!("{kind} {}\n", Digest::of(bytes)));
    }

    fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// The component at `file`, if it is the one that was made of the same.
    pub(super) fn last(&self, project: &Path, file: &Path) -> Option<Vec<u8>> {
        let record: Made = serde_json::from_slice(&std::fs::read(project.join(RECORD)).ok()?).ok()?;
        if record.inputs != self.digest() {
            return None;
        }
        std::fs::read(file).ok().filter(|component| Digest::of(component) == record.component)
    }

    /// For the next build. Whether the component reaches its file is seen then.
    pub(super) fn made(&self, project: &Path, component: &[u8]) -> anyhow::Result<()> {
        let made = Made { inputs: self.digest(), component: Digest::of(component) };
        let text = serde_json::to_vec(&made).context("write down what was made")?;
        write_if_changed(&project.join(RECORD), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(source: &str) -> Inputs {
        let mut inputs = Inputs::default();
        inputs.word("tool 1.0");
        inputs.word(source);
        inputs
    }

    #[test]
    fn what_was_made_of_the_same_is_kept_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (project, file) = (folder.path(), folder.path().join("a.wasm"));
        assert_eq!(inputs("a").last(project, &file), None);
        inputs("a").made(project, b"first").unwrap();
        assert_eq!(inputs("a").last(project, &file), None, "it never reached its file");
        std::fs::write(&file, "first").unwrap();
        assert_eq!(inputs("a").last(project, &file).as_deref(), Some(&b"first"[..]));
        assert_eq!(inputs("b").last(project, &file), None, "another source");
        std::fs::write(&file, "touched").unwrap();
        assert_eq!(inputs("a").last(project, &file), None, "somebody else wrote the file");
        std::fs::write(project.join(RECORD), "{").unwrap();
        assert_eq!(inputs("a").last(project, &file), None, "a record that is cut off");
    }

    #[test]
    fn a_folder_is_its_names_and_its_files() {
        let of = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let file = folder.path().join(name);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, text).unwrap();
            }
            let mut inputs = Inputs::default();
            inputs.folder(folder.path()).unwrap();
            inputs.digest()
        };
        let whole = of(&[("a.wit", "1"), ("deps/b.wit", "2")]);
        assert_eq!(whole, of(&[("deps/b.wit", "2"), ("a.wit", "1")]));
        for other in [
            &[("a.wit", "1"), ("deps/b.wit", "3")][..],
            &[("a.wit", "1"), ("deps/c.wit", "2")],
            &[("a.wit", "1"), ("b.wit", "2")],
            &[("a.wit", "1")],
        ] {
            assert_ne!(whole, of(other), "{other:?}");
        }
    }
}

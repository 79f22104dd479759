//! The greatest term of its region that this node has met, on the disk: what keeps it from a home that was replaced.
//!
//! A home that another one has replaced may not know it yet, and would acknowledge what nobody else will ever have. So a node that
//! has met the new one goes back to no older one, after a restart too. Owns the file `term` in the data directory.

use std::io::{Error, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// What was met. Clones share it. One that was not opened remembers while the process lives.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    dir: Option<PathBuf>,
    known: Arc<AtomicU64>,
    /// Held while a term is written down, so that the greater of two is what stays in the file.
    writing: Arc<Mutex<()>>,
}

impl Terms {
    /// Reads what was written down. A file that says nothing is an error and not a term of 0: somebody has to know of it.
    pub fn open(data_dir: &Path) -> std::io::Result<Self> {
        let path = data_dir.join("term");
        let known = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let why = format!("{} holds no number: remove it if you trust the region", path.display());
                Error::new(ErrorKind::InvalidData, why)
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self {
            dir: Some(data_dir.to_owned()),
            known: Arc::new(AtomicU64::new(known)),
            writing: Arc::default(),
        })
    }

    /// The greatest that was met; 0: none.
    pub fn met(&self) -> u64 {
        self.known.load(Ordering::Relaxed)
    }

    /// A home of this term was met. Blocking.
    pub fn note(&self, term: u64) -> std::io::Result<()> {
        let _writing = self.writing.lock();
        if term <= self.met() {
            return Ok(());
        }
        if let Some(dir) = &self.dir {
            let draft = dir.join("term.draft");
            let mut file = std::fs::File::create(&draft)?;
            writeln!(file, "{term}")?;
            file.sync_all()?;
            std::fs::rename(&draft, dir.join("term"))?;
            std::fs::File::open(dir)?.sync_all()?;
        }
        self.known.store(term, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_remembered_over_a_restart_and_never_goes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let terms = Terms::open(dir.path()).expect("opens");
        assert_eq!(terms.met(), 0);
        terms.note(3).expect("noted");
        terms.note(2).expect("nothing to do");
        assert_eq!((terms.met(), Terms::open(dir.path()).expect("opens").met()), (3, 3));
        std::fs::write(dir.path().join("term"), "no number").expect("written");
        let refusal = Terms::open(dir.path()).expect_err("a file that says nothing");
        assert!(refusal.to_string().contains("term"), "{refusal}");
    }
}

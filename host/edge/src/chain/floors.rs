//! The newest release set that this node has accepted of each site, on the disk: what keeps an old one out.
//!
//! A set that was sealed once stays sealed for ever, and whoever holds the key of the link could send it again, with the hole
//! that its successor closed. So a node remembers how far it was, beside its replica and not in it: a replica is thrown away
//! when it is broken, or taken whole anew. Owns `data_dir/floors`, a file per site. What a set's number is worth is
//! [`souk_commerce::seal`]'s.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use souk_commerce::id::SiteId;

/// Why a number was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FloorError {
    #[error("release set {number} is older than {floor}, which this node has had")]
    Older { number: u64, floor: u64 },
    #[error("the number of the release set cannot be written down: {0}")]
    Disk(String),
}

/// The floors of all sites.
#[derive(Debug)]
pub struct Floors {
    dir: PathBuf,
    /// For a moment only: requests look here.
    known: Mutex<HashMap<SiteId, u64>>,
    /// Held while a number is compared, written down and known, so that the greater of two is what stays in the file.
    writing: Mutex<()>,
}

impl Floors {
    /// Reads what was written down. A file that says nothing is an error and not a floor of 0: somebody has to know of it.
    pub fn open(data_dir: &Path) -> std::io::Result<Self> {
        let dir = data_dir.join("floors");
        std::fs::create_dir_all(&dir)?;
        // What is written into a folder is durable when the folder's own name is.
        std::fs::File::open(data_dir)?.sync_all()?;
        let mut known = HashMap::new();
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            // A draft that a crash left.
            let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|n| !n.contains('.'))
            else {
                continue;
            };
            let text = std::fs::read_to_string(&path)?;
            let (Ok(site), Ok(floor)) = (name.parse::<SiteId>(), text.trim().parse::<u64>()) else {
                let why = format!("{} holds no number: remove it if you trust the region", path.display());
                return Err(Error::new(ErrorKind::InvalidData, why));
            };
            known.insert(site, floor);
        }
        Ok(Self { dir, known: Mutex::new(known), writing: Mutex::new(()) })
    }

    /// The number of the newest set of the site that was accepted, if one ever was.
    pub fn of(&self, site: &SiteId) -> Option<u64> {
        self.known.lock().get(site).copied()
    }

    /// Takes a set of this number, and none below it from now on, after a crash too. Blocking.
    pub fn accept(&self, site: &SiteId, number: u64) -> Result<(), FloorError> {
        let _writing = self.writing.lock();
        match self.of(site) {
            Some(floor) if number < floor => return Err(FloorError::Older { number, floor }),
            Some(floor) if number == floor => return Ok(()),
            Some(_) | None => {}
        }
        self.write(site, number).map_err(|error| FloorError::Disk(error.to_string()))?;
        self.known.lock().insert(site.clone(), number);
        Ok(())
    }

    fn write(&self, site: &SiteId, number: u64) -> std::io::Result<()> {
        let path = self.dir.join(site.as_str());
        let draft = self.dir.join(format!("{site}.draft"));
        let mut file = std::fs::File::create(&draft)?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_does_not_wait_for_whoever_writes() {
        let dir = tempfile::tempdir().expect("a directory");
        let shop: SiteId = "shop".parse().expect("a site");
        let floors = Floors::open(dir.path()).expect("opens");
        let draft = dir.path().join("floors/shop.draft");
        // A disk that takes its time: to open a pipe for writing waits for its reader.
        let owner = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &draft, rustix::fs::FileType::Fifo, owner, 0).expect("a pipe");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| floors.accept(&shop, 7));
            while floors.writing.try_lock().is_some() {
                std::thread::yield_now();
            }
            assert_eq!(floors.of(&shop), None, "it is not written down yet");
            let reader = std::fs::File::open(&draft).expect("the writer waits");
            // A pipe cannot be flushed.
            assert!(matches!(writer.join().expect("it ends"), Err(FloorError::Disk(_))));
            drop(reader);
        });
        assert_eq!(floors.of(&shop), None);
        std::fs::remove_file(&draft).expect("removed");
        assert_eq!(floors.accept(&shop, 7), Ok(()));
        assert_eq!(floors.of(&shop), Some(7));
    }

    #[test]
    fn a_number_never_goes_back_after_a_restart_neither() {
        let dir = tempfile::tempdir().expect("a directory");
        let (shop, other): (SiteId, SiteId) =
            ("shop".parse().expect("a site"), "other".parse().expect("a site"));
        let floors = Floors::open(dir.path()).expect("opens");
        assert_eq!(floors.of(&shop), None);
        assert_eq!(floors.accept(&shop, 7), Ok(()));
        assert_eq!(floors.accept(&shop, 7), Ok(()));
        assert_eq!(floors.accept(&shop, 6), Err(FloorError::Older { number: 6, floor: 7 }));
        assert_eq!(floors.accept(&other, 1), Ok(()), "each site counts for itself");
        assert_eq!(floors.accept(&shop, 9), Ok(()));
        // As after a crash in the middle of a write.
        std::fs::write(dir.path().join("floors/shop.draft"), "1").expect("written");
        let floors = Floors::open(dir.path()).expect("opens again");
        assert_eq!(floors.accept(&shop, 8), Err(FloorError::Older { number: 8, floor: 9 }));
        assert_eq!(floors.accept(&shop, 9), Ok(()));
        std::fs::write(dir.path().join("floors/shop"), "").expect("written");
        assert_eq!(Floors::open(dir.path()).expect_err("damaged").kind(), ErrorKind::InvalidData);
    }
}

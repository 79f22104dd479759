//! A file that is appended to by its name: if somebody moves it away, the next line begins a new one.
//!
//! So a rotation needs no signal: rename (as logrotate does it by itself), and within a second lines go to the new file.
//! A file that is cut in place (`copytruncate`) is appended to at its new end, too. It is written by the log's own thread,
//! which is the only one that waits for the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks at what has the name now.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Following {
    path: PathBuf,
    file: File,
    looked: Instant,
}

impl Following {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = append(&path)?;
        Ok(Self { path, file, looked: Instant::now() })
    }

    /// Opens the name again where it is another file's, or nobody's.
    fn follow(&mut self) -> io::Result<()> {
        let id = |found: &std::fs::Metadata| (found.dev(), found.ino());
        let named = std::fs::metadata(&self.path).ok();
        if named.as_ref().map(id) != Some(id(&self.file.metadata()?)) {
            self.file = append(&self.path)?;
        }
        Ok(())
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

impl Write for Following {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.looked.elapsed() >= LOOKS_EVERY {
            self.looked = Instant::now();
            // A name that cannot be opened now may be later; until then the old file takes the lines.
            let _ = self.follow();
        }
        // Whole lines, or two would become one.
        self.file.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let mut log = Following::open(path.clone()).expect("a file");
        log.write_all(b"one\n").expect("written");
        std::fs::rename(&path, &moved).expect("moved");
        log.follow().expect("made anew");
        log.write_all(b"two\n").expect("written");
        assert_eq!(std::fs::read_to_string(&moved).expect("there"), "one\n");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "two\n");
        // Cut in place.
        File::create(&path).expect("cut");
        log.follow().expect("the same file");
        log.write_all(b"three\n").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "three\n");
    }
}

//! Small file systems of a row's own: one on a loop device whose power can be cut, and one in memory that is soon full.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

/// A process that was killed has given its files back when its parent has waited for it; the kernel's own hands may take longer.
const UNMOUNTS_WITHIN: Duration = Duration::from_secs(10);
/// Written at once when a disk is filled.
const CHUNK: usize = 64 << 10;

/// Runs a program of the system; an error is what it said.
fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let done = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("no {program} ({error})"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim()))
}

fn shown(path: &Path) -> Result<&str> {
    path.to_str().context("a temporary path is text")
}

/// An ext4 on a loop device. Dropping it takes it away.
pub(crate) struct LoopDisk {
    folder: TempDir,
    /// Numbers its lives.
    cuts: u64,
}

impl LoopDisk {
    /// Or why there can be none here.
    pub(crate) fn make(mebibytes: u64) -> Result<Result<Self, String>> {
        let folder = tempfile::Builder::new().prefix("souk-disk-").tempdir()?;
        let disk = Self { folder, cuts: 0 };
        File::create(disk.image())?.set_len(mebibytes << 20)?;
        std::fs::create_dir(disk.path())?;
        let tried = run("xfs_io", &["-V"])
            .and_then(|()| run("mkfs.ext4", &["-q", "-F", shown(&disk.image()).unwrap_or_default()]));
        if let Err(why) = tried {
            return Ok(Err(why));
        }
        // Who may not mount, or has no loop device, learns it here.
        Ok(disk.mount().map(|()| disk).map_err(|error| format!("{error:#}")))
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn mount(&self) -> Result<()> {
        let (image, path) = (self.image(), self.path());
        run("mount", &["-o", "loop", shown(&image)?, shown(&path)?]).map_err(anyhow::Error::msg)?;
        // A witness of this life, long before its end: to sync one right before would write out what others have not synced.
        let mut synced = File::create(self.witness("synced"))?;
        synced.write_all(&self.cuts.to_be_bytes())?;
        synced.sync_all()?;
        Ok(File::open(path)?.sync_all()?)
    }

    fn witness(&self, kind: &str) -> PathBuf {
        self.path().join(format!("{kind}-{}", self.cuts))
    }

    /// From now on nothing is written any more, whatever anybody syncs: what the kernel still has in memory is lost. Whoever uses
    /// the disk must be frozen: see the row.
    pub(crate) fn cut(&self) -> Result<()> {
        File::create(self.witness("unsynced"))?.write_all(&self.cuts.to_be_bytes())?;
        run("xfs_io", &["-x", "-c", "shutdown", shown(&self.path())?]).map_err(anyhow::Error::msg)
    }

    /// Power again: the journal is replayed. Whoever used the disk must have been killed. Whether the file that was not synced
    /// is gone.
    pub(crate) fn power_on(&mut self) -> Result<bool> {
        let path = self.path();
        let began = Instant::now();
        while let Err(why) = run("umount", &[shown(&path)?]) {
            ensure!(began.elapsed() < UNMOUNTS_WITHIN, "{why}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (synced, unsynced, life) = (self.witness("synced"), self.witness("unsynced"), self.cuts);
        self.cuts += 1;
        self.mount()?;
        ensure!(
            std::fs::read(synced).is_ok_and(|b| b == life.to_be_bytes()),
            "what was synced in life {life} is not there"
        );
        Ok(std::fs::read(unsynced).unwrap_or_default().is_empty())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may have a file open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).stderr(Stdio::null()).status();
    }
}

/// A file system in memory. Dropping it takes it away.
pub(crate) struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Or why there can be none here.
    pub(crate) fn make(mebibytes: u64) -> Result<Result<Self, String>> {
        let folder = tempfile::Builder::new().prefix("souk-disk-").tempdir()?;
        let size = format!("size={mebibytes}m");
        let mounted = run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", shown(folder.path())?]);
        Ok(mounted.map(|()| Self { folder }))
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// To the last byte. What was freed since the last time, too.
    pub(crate) fn fill(&self) -> Result<u64> {
        let mut file = File::options().create(true).append(true).open(self.ballast())?;
        let mut written = 0;
        for size in [CHUNK, 4 << 10] {
            loop {
                match file.write(&vec![7; size]) {
                    Ok(0) => break,
                    Ok(more) => written += more as u64,
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => bail!("fill the disk: {error}"),
                }
            }
        }
        Ok(written)
    }

    pub(crate) fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).stderr(Stdio::null()).status();
    }
}

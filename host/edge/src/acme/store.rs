//! What is kept of an authority: the account, and a certificate with its key for each name.
//!
//! A folder for each directory, so that what was got from a staging authority is not used for the real one's. A file is whole
//! or is not there: written beside its name, synced, and renamed. Only its owner reads it, from its first byte on.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use souk_config::AcmeConfig;

const ACCOUNT: &str = "account.json";
/// A chain of five certificates of RSA and a key have some 10 KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Of the name of a directory's folder.
const NAME_BYTES: usize = 8;

#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(super) fn open(config: &AcmeConfig) -> io::Result<Self> {
        let name = Sha256::digest(config.directory.as_str());
        let folder = config.cache.join(hex::encode(name.get(..NAME_BYTES).unwrap_or_default()));
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let store = Self { folder };
        // What cannot be written is found out now, and not when there is a certificate to keep.
        store.keep("probe", b"")?;
        std::fs::remove_file(store.folder.join("probe"))?;
        Ok(store)
    }

    pub(super) fn account(&self) -> Option<Vec<u8>> {
        self.read(ACCOUNT)
    }

    pub(super) fn keep_account(&self, json: &[u8]) -> io::Result<()> {
        self.keep(ACCOUNT, json)
    }

    /// One that the authority does not know any longer.
    pub(super) fn forget_account(&self) -> io::Result<()> {
        std::fs::remove_file(self.folder.join(ACCOUNT))
    }

    /// Chain and key.
    pub(super) fn certificate(&self, domain: &str) -> Option<Vec<u8>> {
        self.read(&certificate(domain))
    }

    pub(super) fn keep_certificate(&self, domain: &str, pem: &[u8]) -> io::Result<()> {
        self.keep(&certificate(domain), pem)
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.folder.join(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
        match read {
            Ok(_) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was kept cannot be read");
                None
            }
        }
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, beside) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        // One that a process left behind that was killed may be anybody's.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        sync(&self.folder)
    }
}

/// The rename itself.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Names of hosts are names of files: letters, digits, hyphens and dots, and none begins with a dot.
fn certificate(domain: &str) -> String {
    format!("{domain}.pem")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_kept_is_its_owners_and_each_directorys_own() {
        let dir = tempfile::tempdir().expect("a folder");
        let of = |directory: &str| {
            let (cache, domains) = (dir.path().join("deep/cache"), vec!["shop.example".to_owned()]);
            let config = AcmeConfig::new(directory, Vec::new(), domains, cache, None).expect("valid");
            Store::open(&config).expect("opened")
        };
        let store = of("https://one.example/");
        assert_eq!(store.certificate("shop.example"), None);
        // A torn one of a process that was killed, which others could read.
        std::fs::write(store.folder.join("shop.example.pem.new"), "torn").expect("written");
        for text in ["first", "second"] {
            store.keep_certificate("shop.example", text.as_bytes()).expect("kept");
            assert_eq!(store.certificate("shop.example").as_deref(), Some(text.as_bytes()));
        }
        store.keep_account(b"{}").expect("kept");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&store.folder), 0o700);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&store.folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            names.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        }
        names.sort();
        assert_eq!(names, ["account.json", "shop.example.pem"]);
        assert_eq!(of("https://two.example/").certificate("shop.example"), None);
        store.forget_account().expect("forgotten");
        assert_eq!(of("https://one.example/").account(), None);
        assert!(store.certificate("shop.example").is_some());
    }
}

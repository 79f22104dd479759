//! The key of keys: a file of its own, which wraps the keys of sites.
//!
//! One line per key, `souk-vault-1` and 64 hexadecimal digits. The first is the present one; the others open what was wrapped
//! before. To change it, a new line is put first and the region started again: it wraps every site's key anew, says so, and
//! the old line can go. Nothing that is sealed is touched by that.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use souk_commerce::id::SiteId;
use zeroize::Zeroizing;

use super::cipher::{Cipher, KEY_BYTES, RawKey};
use super::keyring::SiteRow;
use crate::sealing::write_secret;

const KIND: &str = "souk-vault-1";
/// Its name in the data folder, where no other is named.
const FILE: &str = "vault.key";
/// Keys in the file: the present one, and those before it while a fleet of processes is started again.
const KEYS_MAX: usize = 8;

/// Where the key of keys is.
#[derive(Debug, Clone)]
pub(crate) enum KekFile {
    /// The operator's.
    Named(PathBuf),
    /// The region's own, which it makes at its first start.
    Own(PathBuf),
    #[cfg(test)]
    Made(Vec<u8>),
}

struct Known {
    id: String,
    cipher: Cipher,
}

/// The present key of keys, and those before it.
pub(super) struct Kek {
    known: Vec<Known>,
}

impl KekFile {
    /// `named`: the file that the operator named, or else the region's own in `data_dir`.
    pub(crate) fn new(data_dir: &Path, named: Option<PathBuf>) -> Self {
        named.map_or_else(|| Self::Own(data_dir.join(FILE)), Self::Named)
    }

    #[cfg(test)]
    pub(crate) fn for_tests(seeds: &[u8]) -> Self {
        Self::Made(seeds.to_vec())
    }

    /// Reads it; `may_make`: makes it, where there is none yet and the operator has named none.
    pub(super) fn read(
        &self,
        may_make: bool,
        random: impl FnOnce() -> [u8; KEY_BYTES],
    ) -> Result<Kek, String> {
        let (file, may_make) = match self {
            Self::Named(file) => (file, false),
            Self::Own(file) => (file, may_make),
            #[cfg(test)]
            Self::Made(seeds) => {
                let keys: Vec<_> = seeds.iter().map(|seed| Zeroizing::new([*seed; KEY_BYTES])).collect();
                return Ok(Kek::of(&keys));
            }
        };
        let told = |what: &str, why: &dyn std::fmt::Display| format!("{what} {}: {why}", file.display());
        let text = match std::fs::read_to_string(file) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && may_make => {
                let key = Zeroizing::new(random());
                let text = Zeroizing::new(format!("{KIND} {}\n", hex::encode(&key[..])));
                write_secret(file, &text).map_err(|e| told("cannot write", &e))?;
                tracing::info!(file = %file.display(), "the region has made the key of keys, without which nothing of a shopper can be read: keep a copy of it apart from the backups");
                text
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let why = "there is no such file. Put the one there that the region had before, for one that is made anew \
                           opens nothing; for a new region write one line: souk-vault-1 and the 64 digits of `openssl rand -hex 32`";
                return Err(told("cannot read the key of keys in", &why));
            }
            Err(e) => return Err(told("cannot read the key of keys in", &e)),
        };
        let mode = std::fs::metadata(file).map_err(|e| told("cannot read", &e))?.permissions().mode();
        if mode & 0o077 != 0 {
            let why = format!("its mode is {:o}, so that others can read it; chmod 600 it", mode & 0o777);
            return Err(told("cannot use the key of keys in", &why));
        }
        let keys = parse(&text).map_err(|why| told("cannot use the key of keys in", &why))?;
        Ok(Kek::of(&keys))
    }
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kek").field(&self.current()).finish()
    }
}

impl Kek {
    fn of(keys: &[RawKey]) -> Self {
        let known = keys.iter().map(|key| {
            // Names the key and says nothing of it: eight bytes of a hash of 256 random bits.
            let id = Sha256::new().chain_update(b"souk vault 1\0kek\0").chain_update(&key[..]).finalize();
            Known { id: hex::encode(&id[..8]), cipher: Cipher::new(key) }
        });
        Self { known: known.collect() }
    }

    /// The name of the present key.
    pub(super) fn current(&self) -> &str {
        &self.known[0].id
    }

    /// Whether it is in the file.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.known.iter().any(|known| known.id == id)
    }

    pub(super) fn wrap(&self, site: &SiteId, key: &RawKey) -> SiteRow {
        let present = &self.known[0];
        SiteRow { kek: present.id.clone(), wrapped: present.cipher.seal_key(key, &aad(site)) }
    }

    /// None: it was wrapped by a key that is not in the file, or was changed.
    pub(super) fn unwrap(&self, site: &SiteId, row: &SiteRow) -> Option<RawKey> {
        let known = self.known.iter().find(|known| known.id == row.kek)?;
        known.cipher.open_key(&row.wrapped, &aad(site))
    }
}

fn aad(site: &SiteId) -> Vec<u8> {
    [b"souk vault 1\0site\0", site.as_str().as_bytes()].concat()
}

/// What is wrong is said without what was there: it may be a key.
fn parse(text: &str) -> Result<Vec<RawKey>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(lines) {
        let wrong = || format!("line {number} is not {KIND} and 64 hexadecimal digits");
        let digits = line.strip_prefix(KIND).map(str::trim).ok_or_else(wrong)?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(digits, &mut key[..]).map_err(|_| wrong())?;
        keys.push(key);
    }
    match keys.len() {
        0 => Err(format!("there is no line {KIND} in it")),
        1..=KEYS_MAX => Ok(keys),
        more => Err(format!("{more} keys are more than {KEYS_MAX}: old ones can go after a start")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_makes_its_key_once_and_never_in_place_of_one_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let own = KekFile::new(dir.path(), None);
        let missing = own.read(false, || unreachable!("it may not")).unwrap_err();
        assert!(missing.contains("vault.key") && missing.contains("openssl rand"), "{missing}");
        let made = own.read(true, || [7; KEY_BYTES]).unwrap();
        let file = dir.path().join(FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = own.read(true, || unreachable!("there is one")).unwrap();
        assert_eq!(made.current(), again.current());
        let named = KekFile::new(dir.path(), Some(dir.path().join("named.key")));
        assert!(named.read(true, || unreachable!("it was named")).is_err());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let open_to_all = own.read(true, || unreachable!()).unwrap_err();
        assert!(open_to_all.contains("chmod 600"), "{open_to_all}");
    }

    #[test]
    fn a_bad_file_is_refused_and_not_repeated() {
        let digits = "ab".repeat(KEY_BYTES);
        for bad in ["", "# nothing\n", "souk-vault-1 secret", &digits, "souk-vault-1", "souk-vault-2 00"] {
            let refusal = parse(bad).unwrap_err();
            assert!(!refusal.contains("secret") && !refusal.contains(&digits), "{refusal}");
        }
        let line = format!("{KIND} {digits}\n");
        assert_eq!(parse(&line.repeat(2)).unwrap().len(), 2);
        assert!(parse(&line.repeat(KEYS_MAX + 1)).is_err());
    }
}

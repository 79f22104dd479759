//! The files of the key with which a region seals releases. The private half is read by the region alone; the public
//! half lies beside the database as `seal.pub`, for the operator to give to every node.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use souk_commerce::seal::SealKey;

const PRIVATE: &str = "seal.key";
const PUBLIC: &str = "seal.pub";

/// Reads the key that the operator named; without one, the region's own, which it makes at its first start.
pub(crate) fn open(
    data_dir: &Path,
    named: Option<&Path>,
    random: impl FnOnce() -> [u8; 32],
) -> Result<SealKey, String> {
    let own = data_dir.join(PRIVATE);
    let file = named.unwrap_or(&own);
    let failed =
        |what: &str, file: &Path, e: &dyn std::fmt::Display| format!("{what} {}: {e}", file.display());
    let key = match std::fs::read_to_string(file) {
        Ok(text) => SealKey::from_pem(&text).map_err(|e| failed("cannot use", file, &e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            let key = SealKey::generate(&random());
            write_secret(file, &key.to_pem()).map_err(|e| failed("cannot write", file, &e))?;
            tracing::info!(key = key.id(), "the region has made its key that seals releases");
            key
        }
        Err(e) => return Err(failed("cannot read", file, &e)),
    };
    let mode = std::fs::metadata(file).map_err(|e| failed("cannot read", file, &e))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "the key that seals releases can be read by others than the region");
    }
    let public = data_dir.join(PUBLIC);
    std::fs::write(&public, key.public_pem()).map_err(|e| failed("cannot write", &public, &e))?;
    Ok(key)
}

/// Whole or not at all, and readable by its owner only from its first byte on: half a key would lock the region out.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    match std::fs::remove_file(&partial) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_makes_its_key_once_and_keeps_it_to_itself() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), None, || [3; 32]).unwrap();
        let mode = std::fs::metadata(dir.path().join(PRIVATE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = open(dir.path(), None, || unreachable!("there is one")).unwrap();
        assert_eq!(first.id(), again.id());
        assert_eq!(std::fs::read_to_string(dir.path().join(PUBLIC)).unwrap(), first.public_pem());
    }

    #[test]
    fn a_key_that_was_named_is_never_made_up() {
        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().join("named.key");
        let refusal = open(dir.path(), Some(&named), || unreachable!("it was named")).unwrap_err();
        assert!(refusal.contains("named.key"), "{refusal}");
        std::fs::write(&named, "no key").unwrap();
        assert!(open(dir.path(), Some(&named), || unreachable!("it was named")).is_err());
        let key = SealKey::generate(&[4; 32]);
        std::fs::write(&named, key.to_pem()).unwrap();
        assert_eq!(open(dir.path(), Some(&named), || unreachable!()).unwrap().id(), key.id());
        assert!(!dir.path().join(PRIVATE).exists());
    }
}

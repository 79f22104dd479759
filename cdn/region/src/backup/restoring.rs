//! Puts a backup into an empty place, whole or not at all.

use std::path::{Path, PathBuf};

use serde::Serialize;
use souk_commerce::seal::SealKey;
use souk_config::{RegionConfig, StoreConfig};

use super::checking::{self, Faults, Scratch};
use super::folder::{make_private, settle};
use super::making::BLOBS;
use super::manifest::{self, Manifest};
use super::pool::{Copied, Pool};
use super::rows::Reader;
use super::{BackupError, Progress, Sizes, Told, door};
use crate::store::backup::{Cell, Door, file_in};

/// Where what is a shopper's stands, sealed.
const SEALED: [&str; 2] = ["orders", "checkout"];

/// A region that can be started.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    pub from: PathBuf,
    pub region: String,
    /// Of the history that the backup is a moment of. The region begins another one when it starts.
    pub former_epoch: u32,
    pub made_ms: u64,
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Blobs that the backup does not have, and rows refer to: to be uploaded again.
    pub absent: Vec<String>,
}

/// What an operator goes on without.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waived {
    /// The key that sealed the backup's releases.
    pub seal_key: bool,
    /// What opens names and notes of its orders.
    pub keyring: bool,
}

/// Restores `dir`, or the newest backup in it. Blocks.
///
/// Everything is read and checked before the region's database is there. What was begun and failed leaves no database; blobs
/// that were copied stay, and are used by the next try.
pub fn restore(
    config: &RegionConfig,
    dir: &Path,
    waived: Waived,
    told: &mut Told<'_>,
) -> Result<Restored, BackupError> {
    let data_dir = &config.region.data_dir;
    let path = manifest::find(dir)?;
    let manifest = Manifest::read(&path)?.map_err(|fault| BackupError::Broken { faults: vec![fault] })?;
    if config.store == StoreConfig::Sqlite {
        for name in ["region.db", "region.db-wal"] {
            let file = data_dir.join(name);
            if file.exists() {
                return Err(BackupError::NotEmpty(format!("{} is there: move it away", file.display())));
            }
        }
    }
    if !waived.seal_key {
        check_seal_key(config, &manifest)?;
    }
    let mut faults = Faults::default();
    checking::files(&path, &manifest, &mut faults, told)?;
    whole(faults)?;
    if !waived.keyring {
        check_keyring(config, &path, &manifest, told)?;
    }
    make_private(data_dir)?;
    copy_blobs(&path, &manifest, data_dir, told)?;

    match &config.store {
        StoreConfig::Sqlite => {
            let place = Partial(data_dir.join("region.db.partial"));
            place.clear()?;
            fill_file(&place.0, &path, &manifest, told, data_dir)?;
            place.is_closed()?;
            let file = file_in(data_dir);
            std::fs::rename(&place.0, &file).map_err(|e| BackupError::of(&file, e))?;
            settle(data_dir)?;
        }
        StoreConfig::Postgres(_) => {
            // First where it costs nothing: a server's transaction is not where faults are looked for.
            let scratch = Scratch::make(data_dir)?;
            fill_file(&scratch.0.join("rows.db"), &path, &manifest, told, &scratch.0)?;
            drop(scratch);
            let door = door(config)?;
            let mut faults = Faults::default();
            let filling = checking::fill(&door, &path, &manifest, &mut faults, told, data_dir)?;
            whole(faults)?;
            if let Some(filling) = filling {
                filling.end(&manifest.counters, manifest.term)?;
            }
        }
    }
    Ok(Restored {
        region: manifest.region.clone(),
        former_epoch: manifest.region_epoch,
        made_ms: manifest.made_ms,
        sizes: manifest.sizes(),
        absent: manifest.absent.iter().map(ToString::to_string).collect(),
        from: path,
    })
}

fn whole(faults: Faults) -> Result<(), BackupError> {
    if faults.is_empty() { Ok(()) } else { Err(BackupError::Broken { faults: faults.into_list() }) }
}

/// Fills a file that nobody has yet, and checks what is in it.
fn fill_file(
    file: &Path,
    path: &Path,
    manifest: &Manifest,
    told: &mut Told<'_>,
    place: &Path,
) -> Result<(), BackupError> {
    let door = Door::sqlite(file.to_owned());
    let mut faults = Faults::default();
    if let Some(filling) = checking::fill(&door, path, manifest, &mut faults, told, place)? {
        filling.end(&manifest.counters, manifest.term).map_err(|e| BackupError::while_writing(place, e))?;
        checking::laws(&door, path, manifest, &mut faults, place)?;
    }
    whole(faults)
}

/// Nodes trust the key that sealed the releases that they run. A region with another one has none of its plugins run until they
/// trust that too.
fn check_seal_key(config: &RegionConfig, manifest: &Manifest) -> Result<(), BackupError> {
    let Some(backup) = &manifest.seal_key else { return Ok(()) };
    let own = config.region.data_dir.join("seal.key");
    let file = config.control.seal_key.as_deref().unwrap_or(&own);
    let own = std::fs::read_to_string(file).ok().and_then(|text| SealKey::from_pem(&text).ok());
    let own = own.map(|key| key.id().to_owned());
    if own.as_ref() == Some(backup) {
        return Ok(());
    }
    Err(BackupError::OtherSealKey { backup: backup.clone(), own })
}

/// A region makes a keyring where there is none, and then the right one has no place any more.
fn check_keyring(
    config: &RegionConfig,
    path: &Path,
    manifest: &Manifest,
    told: &mut Told<'_>,
) -> Result<(), BackupError> {
    let lacking = door(config)?.lacks_keys(&config.region.data_dir, config.vault.key_file.clone())?;
    let Some(lacking) = lacking else { return Ok(()) };
    for table in manifest.tables.iter().filter(|table| SEALED.contains(&table.table.as_str())) {
        told(Progress { what: &table.table, done: 0, of: Some(table.rows) });
        let file = path.join(table.file());
        let failed = |e| BackupError::of(&file, e);
        let mut rows = Reader::open(&file).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if row.iter().any(Cell::holds_sealed) {
                return Err(BackupError::NoKeyring(lacking));
            }
        }
    }
    Ok(())
}

fn copy_blobs(
    path: &Path,
    manifest: &Manifest,
    data_dir: &Path,
    told: &mut Told<'_>,
) -> Result<(), BackupError> {
    let from = checking::pool_of(path);
    let mut pool = Pool::of(data_dir.join(BLOBS));
    let mut faults = Faults::default();
    let mut done = 0;
    checking::listed(path, &mut |digest, _| {
        done += 1;
        told(Progress { what: BLOBS, done, of: Some(manifest.blobs.count) });
        if pool.take(digest, &from)? == Copied::Absent {
            faults.add(format!("blob {digest} is not there, or holds other bytes than its name says"));
        }
        Ok(())
    })?;
    pool.settle()?;
    whole(faults)
}

/// A database that is not finished. Dropped, it is taken away with what SQLite has put beside it.
struct Partial(PathBuf);

impl Partial {
    /// What is in it is in the one file: a log beside it would stay behind.
    fn is_closed(&self) -> Result<(), BackupError> {
        let mut wal = self.0.clone().into_os_string();
        wal.push("-wal");
        match std::fs::metadata(&wal) {
            Ok(file) if file.len() > 0 => {
                Err(BackupError::Store(format!("{} is still in use", PathBuf::from(wal).display())))
            }
            _ => std::fs::File::open(&self.0)
                .and_then(|file| file.sync_all())
                .map_err(|e| BackupError::of(&self.0, e)),
        }
    }

    fn clear(&self) -> Result<(), BackupError> {
        for ending in ["", "-wal", "-shm", "-journal"] {
            let mut name = self.0.clone().into_os_string();
            name.push(ending);
            let file = PathBuf::from(name);
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(BackupError::of(&file, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed, it is not there any more.
        if let Err(error) = self.clear() {
            tracing::warn!(%error, "a database that was not finished stays");
        }
    }
}

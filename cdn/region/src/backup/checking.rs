//! Reads a backup again, all of it: files by their digests, rows by what must hold between them, blobs by their names.
//!
//! The rows are put into a database of its own for that, in a folder that is removed afterwards: so each constraint of each
//! table is checked by the engine, and each law between tables by the same statements that a region that runs is asked.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use souk_commerce::id::Digest;
use souk_config::RegionConfig;

use super::making::{BLOBS, LIST};
use super::manifest::{self, FILE, Manifest};
use super::pool;
use super::rows::{self, Reader};
use super::{BackupError, FAULTS_MAX, Progress, Sizes, Told, door};
use crate::blobs;
use crate::store::StoreError;
use crate::store::backup::{Door, Filling, tables};

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    pub path: Option<PathBuf>,
    pub region: String,
    pub region_epoch: u32,
    pub made_ms: Option<u64>,
    pub schema: usize,
    #[serde(flatten)]
    pub sizes: Sizes,
    /// What is not as it must be; empty if all is.
    pub faults: Vec<String>,
}

/// Faults, as many as are named.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<String>);

impl Faults {
    pub(super) fn add(&mut self, fault: impl Into<String>) {
        match self.0.len() {
            n if n < FAULTS_MAX => self.0.push(fault.into()),
            FAULTS_MAX => self.0.push("and more".to_owned()),
            _ => {}
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_list(self) -> Vec<String> {
        self.0
    }
}

/// Reads a whole backup: `dir` itself, or the newest in it. `scratch`: where there is room for its rows once more. Blocks.
pub fn verify(dir: &Path, scratch: &Path, told: &mut Told<'_>) -> Result<Checked, BackupError> {
    let path = manifest::find(dir)?;
    let mut faults = Faults::default();
    let manifest = match Manifest::read(&path)? {
        Ok(manifest) => manifest,
        Err(fault) => {
            // Nothing says what else there should be.
            return Ok(Checked {
                path: Some(path),
                region: String::new(),
                region_epoch: 0,
                made_ms: None,
                schema: 0,
                sizes: Sizes::default(),
                faults: vec![fault],
            });
        }
    };
    files(&path, &manifest, &mut faults, told)?;
    // What is not what it was is not read any further.
    if faults.is_empty() {
        stored_blobs(&path, &manifest, &mut faults, told)?;
        let scratch = Scratch::make(scratch)?;
        let door = Door::sqlite(scratch.0.join("rows.db"));
        if let Some(filling) = fill(&door, &path, &manifest, &mut faults, told, &scratch.0)? {
            filling
                .end(&manifest.counters, manifest.term)
                .map_err(|e| BackupError::while_writing(&scratch.0, e))?;
            laws(&door, &path, &manifest, &mut faults, &scratch.0)?;
        }
    }
    Ok(Checked {
        region: manifest.region.clone(),
        region_epoch: manifest.region_epoch,
        made_ms: Some(manifest.made_ms),
        schema: manifest.schema,
        sizes: manifest.sizes(),
        path: Some(path),
        faults: faults.into_list(),
    })
}

/// The same laws at a region that runs, and the bytes that its rows refer to. Blocks.
pub fn verify_running(config: &RegionConfig, told: &mut Told<'_>) -> Result<Checked, BackupError> {
    let door = door(config)?;
    let snapshot = door.look()?;
    let mut faults = Faults::default();
    for fault in snapshot.broken_laws()? {
        faults.add(fault);
    }
    let mut sizes = Sizes::default();
    let from = config.region.data_dir.join(BLOBS);
    snapshot.blobs(&mut |digest| {
        sizes.blobs += 1;
        told(Progress { what: BLOBS, done: sizes.blobs, of: None });
        match rows::digest_of(&blobs::path_in(&from, digest)) {
            Ok((bytes, found)) if found == digest => sizes.blob_bytes += bytes,
            Ok(_) => faults.add(format!("blob {digest} holds other bytes than its name says")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                faults.add(format!("blob {digest} is not there, and rows refer to it"));
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    })?;
    for table in &snapshot.tables {
        let mut count = 0;
        snapshot.rows(table, &mut |_| {
            count += 1;
            Ok(())
        })?;
        told(Progress { what: &table.name, done: count, of: None });
        sizes.rows += count;
        match table.name.as_str() {
            "orders" => sizes.orders = count,
            "cart" => sizes.carts = count,
            _ => {}
        }
    }
    Ok(Checked {
        path: None,
        region: config.region.name.clone(),
        region_epoch: snapshot.region_epoch.unwrap_or(0),
        made_ms: None,
        schema: snapshot.version,
        sizes,
        faults: faults.into_list(),
    })
}

/// Each file is what the manifest says, and there is no other.
pub(super) fn files(
    path: &Path,
    manifest: &Manifest,
    faults: &mut Faults,
    told: &mut Told<'_>,
) -> Result<(), BackupError> {
    let expected = manifest.tables.iter().map(|file| (file.file(), file.sha256));
    let expected: BTreeMap<String, Digest> =
        expected.chain([(LIST.to_owned(), manifest.blobs.sha256)]).collect();
    for (name, digest) in &expected {
        told(Progress { what: name, done: 0, of: None });
        let file = path.join(name);
        match rows::digest_of(&file) {
            Ok((_, found)) if found == *digest => {}
            Ok(_) => faults.add(format!("{name} is not what {FILE} says: its bytes have changed")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => faults.add(format!("{name} is not there")),
            Err(e) => return Err(BackupError::of(&file, e)),
        }
    }
    Ok(())
}

/// The listed blobs, in the order of the list.
pub(super) fn listed(
    path: &Path,
    take: &mut dyn FnMut(Digest, u64) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let file = path.join(LIST);
    let failed = |e| BackupError::of(&file, e);
    for line in BufReader::new(std::fs::File::open(&file).map_err(failed)?).lines() {
        let line = line.map_err(failed)?;
        let (digest, bytes) = pool::read_line(&line).ok_or_else(|| {
            failed(io::Error::new(io::ErrorKind::InvalidData, "a line that is none of ours"))
        })?;
        take(digest, bytes)?;
    }
    Ok(())
}

fn stored_blobs(
    path: &Path,
    manifest: &Manifest,
    faults: &mut Faults,
    told: &mut Told<'_>,
) -> Result<(), BackupError> {
    for digest in &manifest.absent {
        faults.add(format!(
            "blob {digest}, to which rows refer, was not at the region: upload it again after a restore"
        ));
    }
    let pool = pool_of(path);
    let mut done = 0;
    listed(path, &mut |digest, bytes| {
        done += 1;
        told(Progress { what: BLOBS, done, of: Some(manifest.blobs.count) });
        let file = blobs::path_in(&pool, digest);
        match rows::digest_of(&file) {
            Ok(found) if found == (bytes, digest) => {}
            Ok(_) => faults.add(format!("blob {digest} holds other bytes than its name says")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                faults.add(format!("blob {digest} is not there"))
            }
            Err(e) => return Err(BackupError::of(&file, e)),
        }
        Ok(())
    })
}

/// Where the bytes of a backup are: beside it.
pub(super) fn pool_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or_else(|| Path::new(".")).join(BLOBS)
}

/// Puts the rows of a backup into an empty database; none if they do not fit. The files are known to be whole.
pub(super) fn fill(
    door: &Door,
    path: &Path,
    manifest: &Manifest,
    faults: &mut Faults,
    told: &mut Told<'_>,
    place: &Path,
) -> Result<Option<Filling>, BackupError> {
    let known = tables::at(manifest.schema)?;
    let listed = manifest.tables.iter().map(|file| (&file.table, &file.columns));
    if !known.iter().map(|table| (&table.name, &table.columns)).eq(listed) {
        faults.add(format!("its tables are not those of version {}", manifest.schema));
        return Ok(None);
    }
    let writing = |e| BackupError::while_writing(place, e);
    let mut filling = match door.fill(manifest.schema).map_err(writing)? {
        Ok(filling) => filling,
        Err(inhabited) => return Err(BackupError::NotEmpty(inhabited.to_string())),
    };
    for (table, file) in known.iter().zip(&manifest.tables) {
        let mut rows = 0;
        let mut reader = Reader::open(&path.join(file.file())).map_err(|e| BackupError::of(path, e))?;
        loop {
            let row = match reader.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(e) => {
                    faults.add(format!("{} cannot be read: {e}", file.file()));
                    return Ok(None);
                }
            };
            rows += 1;
            if let Err(error) = filling.put(table, row) {
                return refused(error, table, faults, place);
            }
            if rows % 4_096 == 0 {
                told(Progress { what: &table.name, done: rows, of: Some(file.rows) });
            }
        }
        if let Err(error) = filling.end_table(table) {
            return refused(error, table, faults, place);
        }
        told(Progress { what: &table.name, done: rows, of: Some(file.rows) });
        if rows != file.rows {
            faults.add(format!("{} has {rows} rows, and {FILE} says {}", file.file(), file.rows));
            return Ok(None);
        }
    }
    Ok(Some(filling))
}

/// A row that an engine does not take breaks a constraint; a disk that is full breaks none.
fn refused(
    error: StoreError,
    table: &tables::Table,
    faults: &mut Faults,
    place: &Path,
) -> Result<Option<Filling>, BackupError> {
    match BackupError::while_writing(place, error) {
        BackupError::Store(why) => {
            faults.add(format!("table {}: a row is refused: {why}", table.name));
            Ok(None)
        }
        other => Err(other),
    }
}

/// What must hold between the rows that were put in, and that each blob to which they refer is listed.
pub(super) fn laws(
    door: &Door,
    path: &Path,
    manifest: &Manifest,
    faults: &mut Faults,
    place: &Path,
) -> Result<(), BackupError> {
    // The laws are those of this program's tables.
    door.modernise().map_err(|e| BackupError::while_writing(place, e))?;
    let snapshot = door.look()?;
    for fault in snapshot.broken_laws()? {
        faults.add(fault);
    }
    let mut referred = Sha256::new();
    let mut count = 0_u64;
    snapshot.blobs(&mut |digest| {
        if !manifest.absent.contains(&digest) {
            referred.update(digest.0);
            count += 1;
        }
        Ok(())
    })?;
    let mut in_list = Sha256::new();
    listed(path, &mut |digest, _| {
        in_list.update(digest.0);
        Ok(())
    })?;
    // Both are in the order of the digests.
    if referred.finalize() != in_list.finalize() {
        faults.add(format!("its rows refer to {count} blobs, and {} are listed", manifest.blobs.count));
    }
    Ok(())
}

/// A folder for a while.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn make(within: &Path) -> Result<Self, BackupError> {
        let path = within.join(format!("souk-verify-{:016x}", rand::random::<u64>()));
        super::folder::make_private(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::fs::remove_dir_all(&self.0).is_err() {
            tracing::warn!(path = %self.0.display(), "a folder of a check stays");
        }
    }
}

//! Makes a backup of a region that runs, or does not.

use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use souk_commerce::id::Digest;
use souk_commerce::seal::TrustedKeys;
use souk_config::{RegionConfig, StoreConfig};
use time::OffsetDateTime;

use super::folder::{Folder, create_private};
use super::manifest::{BlobList, FORMAT, Manifest};
use super::pool::{self, Copied, Pool};
use super::pruning::prune;
use super::rows::Writer;
use super::{BackupError, Progress, Sizes, Told, door};
use crate::clock;
use crate::store::StoreError;
use crate::store::backup::{Snapshot, file_in};

/// Where the digests of a backup are listed.
pub(super) const LIST: &str = "blobs.list";
/// The folder of blobs, in a folder of backups and in a region's.
pub(super) const BLOBS: &str = "blobs";
/// Rows between two words about them.
const TOLD_EVERY: u64 = 4_096;

/// A backup that is there.
#[derive(Debug, Clone, Serialize)]
pub struct Made {
    pub path: PathBuf,
    pub region: String,
    pub region_epoch: u32,
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Compressed rows.
    pub row_bytes: u64,
    /// Blobs that no earlier backup in the folder had.
    pub new_blobs: u64,
    pub new_blob_bytes: u64,
    /// Blobs that rows refer to and that the region does not have, or has damaged.
    pub absent: Vec<String>,
    /// Older backups that were taken away.
    pub pruned: usize,
}

/// Makes a backup in `dir`, beside those that are there; with `keep`, the oldest beyond so many are taken away after it. Blocks.
///
/// All rows are of one committed moment. The region is not stopped and waits for nothing; on SQLite its write-ahead log is not
/// cut back until the rows are read.
pub fn back_up(
    config: &RegionConfig,
    dir: &Path,
    keep: Option<NonZeroUsize>,
    told: &mut Told<'_>,
) -> Result<Made, BackupError> {
    let data_dir = &config.region.data_dir;
    if config.store == StoreConfig::Sqlite && !file_in(data_dir).is_file() {
        return Err(BackupError::NoRegion { path: data_dir.clone() });
    }
    let door = door(config)?;
    let folder = Folder::enter(dir)?;
    let unfinished = folder.begin()?;
    let snapshot = door.look()?;
    let made_ms = clock::now_ms();
    let Some(region_epoch) = snapshot.region_epoch else {
        return Err(BackupError::NoRegion { path: data_dir.clone() });
    };
    let mut tables = Vec::with_capacity(snapshot.tables.len());
    for table in &snapshot.tables {
        let mut writer = Writer::create(&unfinished.path, table)?;
        let written = snapshot.rows(table, &mut |cells| {
            writer.put(cells)?;
            if writer.rows().is_multiple_of(TOLD_EVERY) {
                told(Progress { what: &table.name, done: writer.rows(), of: None });
            }
            Ok(())
        });
        written.map_err(|e| BackupError::while_writing(&unfinished.path, e))?;
        told(Progress { what: &table.name, done: writer.rows(), of: None });
        tables.push(writer.finish(table)?);
    }
    let taken = take_blobs(&snapshot, &data_dir.join(BLOBS), &folder.dir, &unfinished.path, told)?;
    let manifest = Manifest {
        format: FORMAT,
        made_by: concat!("souk ", env!("CARGO_PKG_VERSION")).to_owned(),
        made_ms,
        region: config.region.name.clone(),
        region_epoch,
        term: snapshot.term,
        engine: door.engine().to_owned(),
        schema: snapshot.version,
        heads: snapshot.heads.iter().map(|(log, version)| (log.name().to_owned(), version)).collect(),
        counters: snapshot.counters.clone(),
        seal_key: seal_key(data_dir),
        tables,
        blobs: taken.list,
        absent: taken.absent,
    };
    drop(snapshot);
    manifest.write(&unfinished.path)?;
    let path = unfinished.finish(&folder, &name(made_ms))?;
    let pruned = keep.map_or(Ok(0), |keep| prune(&folder, keep))?;
    Ok(Made {
        path,
        region: manifest.region.clone(),
        region_epoch,
        sizes: manifest.sizes(),
        row_bytes: manifest.tables.iter().map(|file| file.bytes).sum(),
        new_blobs: taken.new,
        new_blob_bytes: taken.new_bytes,
        absent: manifest.absent.iter().map(ToString::to_string).collect(),
        pruned,
    })
}

struct Taken {
    list: BlobList,
    absent: Vec<Digest>,
    new: u64,
    new_bytes: u64,
}

fn take_blobs(
    snapshot: &Snapshot,
    from: &Path,
    dir: &Path,
    unfinished: &Path,
    told: &mut Told<'_>,
) -> Result<Taken, BackupError> {
    let path = unfinished.join(LIST);
    let mut out = BufWriter::new(create_private(&path)?);
    let mut hash = Sha256::new();
    let mut pool = Pool::of(dir.join(BLOBS));
    let (mut count, mut all_bytes, mut new, mut new_bytes) = (0, 0, 0, 0);
    let mut absent = Vec::new();
    // An error of ours does not fit into the store's.
    let mut failed = None;
    let listed = snapshot.blobs(&mut |digest| {
        let bytes = match pool.take(digest, from) {
            Ok(Copied::Absent) => {
                absent.push(digest);
                return Ok(());
            }
            Ok(Copied::Known { bytes }) => bytes,
            Ok(Copied::New { bytes }) => {
                (new, new_bytes) = (new + 1, new_bytes + bytes);
                bytes
            }
            Err(error) => {
                failed = Some(error);
                return Err(StoreError::Closed);
            }
        };
        (count, all_bytes) = (count + 1, all_bytes + bytes);
        let line = pool::line(digest, bytes);
        hash.update(&line);
        out.write_all(line.as_bytes())?;
        told(Progress { what: BLOBS, done: count, of: None });
        Ok(())
    });
    if let Some(error) = failed {
        return Err(error);
    }
    listed.map_err(|e| BackupError::while_writing(unfinished, e))?;
    let failed = |e| BackupError::of(&path, e);
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    pool.settle()?;
    let list = BlobList { count, bytes: all_bytes, sha256: Digest(hash.finalize().into()) };
    Ok(Taken { list, absent, new, new_bytes })
}

/// The name of the key that seals the region's releases, from its public half.
fn seal_key(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join("seal.pub")).ok()?;
    let keys = TrustedKeys::from_pems([text.as_str()]).ok()?;
    keys.ids().next().map(ToOwned::to_owned)
}

/// `20261130T130522Z`: names are in the order of their times.
fn name(made_ms: u64) -> String {
    let seconds = i64::try_from(made_ms / 1_000).unwrap_or(0);
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

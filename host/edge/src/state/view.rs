//! A view of a database file that cannot be written to: writes stay in memory and hide what is below them.
//!
//! redb repairs a file when it is opened after an error, and to repair is to write. On a full disk this lets the
//! repair happen where there is room, so that carts can be read until the disk takes writes again. Used by the
//! committer only; the gate is closed meanwhile, so memory holds a repair and nothing more.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use parking_lot::Mutex;
use redb::StorageBackend;

/// Granularity of what hides the file: redb's page.
const BLOCK_BYTES: u64 = 4_096;

/// What lies below: bytes that are only read.
pub(super) trait Below: Debug + Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

impl Below for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }
}

#[derive(Debug)]
pub(super) struct View<B> {
    below: B,
    over: Mutex<Over>,
}

#[derive(Debug)]
struct Over {
    len: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl<B: Below> View<B> {
    pub(super) fn of(below: B) -> Result<Self, redb::StorageError> {
        let len = below.len()?;
        Ok(Self { below, over: Mutex::new(Over { len, blocks: BTreeMap::new() }) })
    }

    /// A block as it is below, with zeros beyond the end of the file.
    fn below(&self, block: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        let from = block * BLOCK_BYTES;
        let there = self.below.len()?.saturating_sub(from).min(BLOCK_BYTES);
        self.below.read(from, &mut bytes[..there as usize])?;
        Ok(bytes)
    }
}

/// The blocks that a range touches, each with the part of it and the part of the range.
fn parts(
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let end = offset + len as u64;
    (offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).map(move |block| {
        let start = block * BLOCK_BYTES;
        let (from, to) = (offset.max(start), end.min(start + BLOCK_BYTES));
        let within = (from - start) as usize..(to - start) as usize;
        (block, within, (from - offset) as usize..(to - offset) as usize)
    })
}

impl<B: Below> StorageBackend for View<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over.lock();
        if offset + out.len() as u64 > over.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (block, within, of_out) in parts(offset, out.len()) {
            match over.blocks.get(&block) {
                Some(bytes) => out[of_out].copy_from_slice(&bytes[within]),
                None => out[of_out].copy_from_slice(&self.below(block)?[within]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.over.lock().len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over.lock();
        for (block, within, of_data) in parts(offset, data.len()) {
            let bytes = match over.blocks.entry(block) {
                Entry::Occupied(held) => held.into_mut(),
                Entry::Vacant(free) => free.insert(self.below(block)?),
            };
            bytes[within].copy_from_slice(&data[of_data]);
        }
        Ok(())
    }
}

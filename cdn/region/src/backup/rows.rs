//! A table as a file: each row a CBOR array of its cells behind its length (32 bits, little-endian), all of it compressed with
//! Zstandard. Rows are written and read one at a time, so that no table has to fit into memory.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use sha2::{Digest as _, Sha256};
use souk_commerce::id::Digest;

use super::BackupError;
use super::folder::create_private;
use super::manifest::{TableFile, file_of};
use crate::store::backup::Cell;
use crate::store::backup::tables::Table;

/// The library's own default: tables of text shrink to a fifth, at the speed of a disk.
const LEVEL: i32 = 3;
/// The longest row is an order of 8 MiB; what says that it is longer than this is broken.
const ROW_BYTES_MAX: usize = 64 << 20;

/// Counts and digests what passes.
struct Noted<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Noted<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hash.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

pub(super) struct Writer {
    path: PathBuf,
    out: zstd::stream::write::Encoder<'static, Noted<BufWriter<File>>>,
    row: Vec<u8>,
    rows: u64,
}

impl Writer {
    pub(super) fn create(folder: &Path, table: &Table) -> Result<Self, BackupError> {
        let path = folder.join(file_of(&table.name));
        let inner = BufWriter::new(create_private(&path)?);
        let noted = Noted { inner, hash: Sha256::new(), bytes: 0 };
        let out = zstd::stream::write::Encoder::new(noted, LEVEL).map_err(|e| BackupError::of(&path, e))?;
        Ok(Self { path, out, row: Vec::new(), rows: 0 })
    }

    pub(super) fn put(&mut self, cells: &[Cell]) -> io::Result<()> {
        self.row.clear();
        encode(cells, &mut self.row).map_err(|e| io::Error::other(e.to_string()))?;
        let length =
            u32::try_from(self.row.len()).map_err(|_| io::Error::other("a row of more than 4 GiB"))?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.row)?;
        self.rows += 1;
        Ok(())
    }

    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    /// Everything is on the disk.
    pub(super) fn finish(self, table: &Table) -> Result<TableFile, BackupError> {
        let failed = |e: io::Error| BackupError::of(&self.path, e);
        let Noted { inner, hash, bytes } = self.out.finish().map_err(failed)?;
        let file = inner.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        Ok(TableFile {
            table: table.name.clone(),
            columns: table.columns.clone(),
            rows: self.rows,
            bytes,
            sha256: Digest(hash.finalize().into()),
        })
    }
}

pub(crate) fn encode(
    cells: &[Cell],
    out: &mut Vec<u8>,
) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    let mut e = Encoder::new(out);
    e.array(cells.len() as u64)?;
    for cell in cells {
        match cell {
            Cell::Null => e.null()?,
            Cell::Int(number) => e.i64(*number)?,
            Cell::Text(text) => e.str(text)?,
            Cell::Blob(bytes) => e.bytes(bytes)?,
        };
    }
    Ok(())
}

fn decode(row: &[u8]) -> Result<Vec<Cell>, minicbor::decode::Error> {
    decode_next(&mut Decoder::new(row))
}

/// The next of rows that lie one after the other.
pub(crate) fn decode_next(d: &mut Decoder<'_>) -> Result<Vec<Cell>, minicbor::decode::Error> {
    let cells = d.array()?.ok_or_else(|| minicbor::decode::Error::message("a row of no length"))?;
    let mut found = Vec::new();
    for _ in 0..cells {
        found.push(match d.datatype()? {
            Type::Null => {
                d.null()?;
                Cell::Null
            }
            Type::String => Cell::Text(d.str()?.to_owned()),
            Type::Bytes => Cell::Blob(d.bytes()?.to_vec()),
            _ => Cell::Int(d.i64()?),
        });
    }
    Ok(found)
}

/// Reads a file's rows. What it meets that is no row is an error of kind `InvalidData`.
pub(super) struct Reader {
    from: zstd::stream::read::Decoder<'static, BufReader<File>>,
    row: Vec<u8>,
}

impl Reader {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { from: zstd::stream::read::Decoder::new(File::open(path)?)?, row: Vec::new() })
    }

    /// The next row, or that there is none.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<Cell>>> {
        let broken = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut length = [0; 4];
        // The end is where a length would begin.
        if self.from.read(&mut length[..1])? == 0 {
            return Ok(None);
        }
        self.from.read_exact(&mut length[1..])?;
        let length = u32::from_le_bytes(length) as usize;
        if length > ROW_BYTES_MAX {
            return Err(broken(format!("a row of {length} bytes")));
        }
        self.row.clear();
        let read = (&mut self.from).take(length as u64).read_to_end(&mut self.row)?;
        if read < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decode(&self.row).map(Some).map_err(|e| broken(e.to_string()))
    }
}

/// The digest of a file, read to its end.
pub(super) fn digest_of(path: &Path) -> io::Result<(u64, Digest)> {
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hash)?;
    Ok((bytes, Digest(hash.finalize().into())))
}

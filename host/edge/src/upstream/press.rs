//! Makes the encodings that clients would have liked, once each, off the hot path.
//!
//! Owns the codecs, their levels, and the one thread that they run on. Refuses to know what may be encoded and who gets it,
//! which is the cache's. A request hands work over without waiting: if the queue is full its client has the bytes as they
//! are, and a later request asks again.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use souk_cache::Cache;
use souk_cache::coding::{Coding, EncodingDue};

use super::telemetry::PressMetrics;

/// Encodings that wait. They hold no bytes of their own, and at half a second each this is a minute of work.
const WAITING_MAX: usize = 128;
/// After each encoding the thread rests for as long as it took times this: half of one processor at most.
const REST_TIMES: u32 = 1;
/// The least important that a thread can be: what shoppers wait for goes first.
const NICENESS: i32 = 19;
/// Brotli's best level makes some 0.5 MB a second, so it is for small texts; this one makes ten times that.
const BR_LEVEL_LARGE: i32 = 9;
const BR_LEVEL_SMALL: i32 = 11;
const BR_SMALL_BYTES_MAX: u64 = 128 * 1024;
const BR_WINDOW_LOG: i32 = 22;
/// Windows of this level reach 8 MiB, which is what RFC 9659 lets a browser be asked for.
const ZSTD_LEVEL: i32 = 19;

/// The thread and the queue before it. Dropping it ends the thread after what it is at.
pub(super) struct Press {
    jobs: SyncSender<EncodingDue>,
    /// Waiting or being made: a popular page is asked for many times meanwhile.
    known: Arc<Mutex<HashSet<(usize, Coding)>>>,
    metrics: PressMetrics,
}

impl Press {
    pub(super) fn start(cache: Cache, metrics: PressMetrics) -> io::Result<Self> {
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let known = Arc::new(Mutex::default());
        let worker = Worker { cache, known: Arc::clone(&known), metrics: metrics.clone() };
        std::thread::Builder::new().name("souk-press".to_owned()).spawn(move || worker.run(&waiting))?;
        Ok(Self { jobs, known, metrics })
    }

    /// Takes work on if there is room, and never waits.
    pub(super) fn offer(&self, due: EncodingDue) {
        let id = due.id();
        if !self.known.lock().insert(id) {
            return;
        }
        if self.jobs.try_send(due).is_err() {
            self.known.lock().remove(&id);
            self.metrics.dropped.inc();
        }
    }
}

struct Worker {
    cache: Cache,
    known: Arc<Mutex<HashSet<(usize, Coding)>>>,
    metrics: PressMetrics,
}

impl Worker {
    fn run(&self, jobs: &Receiver<EncodingDue>) {
        // Linux has a niceness for each thread. Where it cannot be had, resting alone must do.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "encodings are made at ordinary priority");
        }
        while let Ok(due) = jobs.recv() {
            let began = Instant::now();
            match encode(due.coding(), due.pieces(), due.total()) {
                Ok(encoded) => {
                    self.metrics.made(due.coding().name(), due.total(), encoded.len() as u64);
                    self.cache.add_encoding(&due, encoded.into());
                }
                // In memory, a codec fails only where there is no memory for it.
                Err(error) => {
                    self.metrics.dropped.inc();
                    tracing::warn!(coding = due.coding().name(), %error, "an encoding was not made");
                }
            }
            // After the entry has it: nobody finds the work neither done nor known.
            self.known.lock().remove(&due.id());
            std::thread::sleep(began.elapsed() * REST_TIMES);
        }
    }
}

/// The pieces, one after the other, in a coding.
fn encode(coding: Coding, pieces: &[Bytes], total: u64) -> io::Result<Vec<u8>> {
    let out = Vec::new();
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(out, Compression::best());
            write_all(&mut encoder, pieces)?;
            encoder.finish()
        }
        Coding::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
            // The frame says its size, and its window is no larger than that.
            encoder.set_pledged_src_size(Some(total))?;
            encoder.include_contentsize(true)?;
            write_all(&mut encoder, pieces)?;
            encoder.finish()
        }
        Coding::Br => {
            let small = total <= BR_SMALL_BYTES_MAX;
            let params = brotli::enc::BrotliEncoderParams {
                quality: if small { BR_LEVEL_SMALL } else { BR_LEVEL_LARGE },
                lgwin: BR_WINDOW_LOG,
                size_hint: usize::try_from(total).unwrap_or_default(),
                ..Default::default()
            };
            let mut encoder = brotli::CompressorWriter::with_params(out, 64 * 1024, &params);
            write_all(&mut encoder, pieces)?;
            encoder.flush()?;
            Ok(encoder.into_inner())
        }
    }
}

fn write_all(to: &mut impl Write, pieces: &[Bytes]) -> io::Result<()> {
    pieces.iter().try_for_each(|piece| to.write_all(piece))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    fn decode(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
            Coding::Zstd => zstd::stream::read::Decoder::new(bytes).expect("a frame").read_to_end(&mut out),
            Coding::Br => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
        }
        .expect("what was encoded here");
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_encoding_decodes_to_the_identity(
            pieces in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..3_000),
                    "[a-e <>]{0,3000}".prop_map(String::into_bytes),
                ],
                0..4,
            ),
        ) {
            let pieces: Vec<Bytes> = pieces.into_iter().map(Bytes::from).collect();
            let identity = pieces.concat();
            for coding in Coding::ALL {
                let encoded = encode(coding, &pieces, identity.len() as u64).expect("memory");
                prop_assert_eq!(decode(coding, &encoded), identity.clone(), "{:?}", coding);
            }
        }
    }

    #[test]
    fn a_large_text_is_encoded_too() {
        let line = "<li>a line of a long list, number ";
        let identity: String = (0..40_000).map(|number| format!("{line}{number}</li>\n")).collect();
        let pieces = [Bytes::from(identity.clone())];
        for coding in Coding::ALL {
            let encoded = encode(coding, &pieces, identity.len() as u64).expect("memory");
            assert!(encoded.len() * 4 < identity.len(), "{coding:?}: {}", encoded.len());
            assert_eq!(decode(coding, &encoded), identity.as_bytes(), "{coding:?}");
        }
    }
}

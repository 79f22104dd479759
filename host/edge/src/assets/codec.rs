//! Makes the forms of a file: three codings, and the difference from an older version (RFC 9842 section 5).
//!
//! Owns the codecs, their levels and the heads of differences. Runs on the one thread of [`super::variants`]; refuses to know
//! why somebody wants a form and who gets it.

use std::io::{self, Read, Write as _};

use brotli::enc::BrotliEncoderParams;
use flate2::Compression;
use flate2::write::GzEncoder;
use souk_commerce::id::Digest;

use super::choice::Coding;

/// What a difference begins with, before the digest of what it is a difference from. Of Zstandard it is a frame that a
/// decoder skips.
const DCZ_MAGIC: [u8; 8] = [0x5e, 0x2a, 0x4d, 0x18, 0x20, 0x00, 0x00, 0x00];
/// Windows of this level reach 8 MiB, which is what every client has (RFC 9659, RFC 9842 section 5).
const ZSTD_LEVEL: i32 = 19;
const ZSTD_WINDOW_LOGS: (u32, u32) = (17, 23);
/// Brotli's best level makes some 0.5 MB a second, and its tables grow with the window: 8 MiB of them for 1 MiB of text.
/// The other one makes ten times that.
const BR_LEVEL_SMALL: i32 = 11;
const BR_LEVEL_LARGE: i32 = 9;
const BR_SMALL_BYTES_MAX: usize = 512 << 10;
/// The largest window of a client is 16 MiB (RFC 7932 section 9.1).
const BR_WINDOW_LOGS: (u32, u32) = (16, 24);

/// A file in a coding; `from` is the version that the client has, for a difference.
pub(super) fn encode(coding: Coding, from: Option<(&Digest, &[u8])>, file: &[u8]) -> io::Result<Vec<u8>> {
    match (coding, from) {
        (Coding::Dcz, Some((digest, from))) => {
            let head = [DCZ_MAGIC.as_slice(), &digest.0].concat();
            zstd(head, from, file)
        }
        (Coding::Dcz, None) => Err(io::Error::other("a difference from nothing")),
        (Coding::Zstd, _) => zstd(Vec::new(), &[], file),
        (Coding::Br, _) => br(file),
        (Coding::Gzip, _) => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(file)?;
            encoder.finish()
        }
    }
}

/// Whether a difference leads from the one version to the other, by a decoder: what is sent under a strong tag must be right,
/// and of the two sides of a codec with a dictionary the encoder is the one that is used least.
pub(super) fn leads_to(coding: Coding, encoded: &[u8], from: &[u8], file: &[u8]) -> bool {
    // One byte more than there may be, so that too much is seen and not read.
    let limit = file.len() as u64 + 1;
    let mut out = Vec::with_capacity(file.len());
    let read = match coding {
        Coding::Dcz => {
            let Some(frame) = encoded.get(DCZ_MAGIC.len() + 32..) else { return false };
            zstd::stream::read::Decoder::with_ref_prefix(frame, from)
                .and_then(|decoder| decoder.take(limit).read_to_end(&mut out))
        }
        Coding::Br | Coding::Zstd | Coding::Gzip => return false,
    };
    read.is_ok() && out == file
}

/// A window that holds both versions: then everything of the older one is in reach to the end of the newer one.
fn window_log(from: &[u8], file: &[u8], (min, max): (u32, u32)) -> u32 {
    (from.len() + file.len()).next_power_of_two().trailing_zeros().clamp(min, max)
}

fn zstd(head: Vec<u8>, from: &[u8], file: &[u8]) -> io::Result<Vec<u8>> {
    // A prefix is taken as it is, whatever it begins with; a dictionary of Zstandard's own form would be read as one.
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(head, ZSTD_LEVEL, from)?;
    encoder.window_log(window_log(from, file, ZSTD_WINDOW_LOGS))?;
    // Finds what has moved far, which is what a new version of a bundle mostly consists of.
    encoder.long_distance_matching(!from.is_empty())?;
    encoder.set_pledged_src_size(Some(file.len() as u64))?;
    encoder.include_contentsize(true)?;
    encoder.write_all(file)?;
    encoder.finish()
}

fn br(mut file: &[u8]) -> io::Result<Vec<u8>> {
    let small = file.len() <= BR_SMALL_BYTES_MAX;
    // Brotli's windows are 16 bytes less than their power of two.
    let (min, max) = BR_WINDOW_LOGS;
    let log = (file.len() + 16).next_power_of_two().trailing_zeros().clamp(min, max);
    let params = BrotliEncoderParams {
        quality: if small { BR_LEVEL_SMALL } else { BR_LEVEL_LARGE },
        lgwin: i32::try_from(log).expect("at most 24"),
        size_hint: file.len(),
        ..Default::default()
    };
    let mut out = Vec::new();
    brotli::BrotliCompress(&mut file, &mut out, &params)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(coding: Coding, encoded: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let read = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(encoded).read_to_end(&mut out),
            Coding::Zstd => zstd::stream::read::Decoder::new(encoded).expect("a frame").read_to_end(&mut out),
            _ => brotli::Decompressor::new(encoded, 4_096).read_to_end(&mut out),
        };
        read.expect("what was encoded here");
        out
    }

    /// Some script: lines of words, the same for the same seed.
    fn script(seed: u64, lines: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let line =
            |_| format!("export const v{:x} = (a{:x}) => a.f{:x}({:x});\n", next(), next(), next(), next());
        (0..lines).map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn a_new_version_is_told_in_a_few_bytes() {
        let old = script(1, 4_000);
        // A change in the middle, something new at the end, and a part that has moved.
        let (a, b) = old.split_at(old.len() / 3);
        let new = [b, b"const added = 1;\n", a, &script(2, 40)].concat();
        let coding = Coding::Dcz;
        let digest = Digest::of(&old);
        let told = encode(coding, Some((&digest, &old)), &new).expect("memory");
        assert!(leads_to(coding, &told, &old, &new), "{coding:?}");
        let whole = encode(Coding::Br, None, &new).expect("memory");
        assert!(told.len() * 10 < whole.len(), "{coding:?}: {} and whole {}", told.len(), whole.len());
        // By another version it is nothing.
        let mut other = old.clone();
        other.rotate_left(17);
        assert!(!leads_to(coding, &told, &other, &new), "{coding:?}");
        assert!(!leads_to(coding, &told[..told.len() - 1], &old, &new), "{coding:?}");
        assert!(!leads_to(coding, &told[..20], &old, &new), "{coding:?}");
        let head: &[u8] = &DCZ_MAGIC;
        assert_eq!(told[..head.len() + 32], [head, &digest.0].concat(), "{coding:?}");
    }

    #[test]
    fn the_largest_files_are_told_within_the_windows_of_every_client() {
        let old = script(3, 60_000);
        let new = [&old[1_000..], b"// the end\n"].concat();
        let coding = Coding::Dcz;
        let told = encode(coding, Some((&Digest::of(&old), &old)), &new).expect("memory");
        assert!(told.len() < 2_000, "{coding:?}: {}", told.len());
        assert!(leads_to(coding, &told, &old, &new), "{coding:?}");
    }

    #[test]
    fn a_version_that_looks_like_a_dictionary_of_zstandard_is_taken_as_it_is() {
        let old = [&[0x37, 0xa4, 0x30, 0xec], script(4, 100).as_slice()].concat();
        let new = [old.as_slice(), b"more"].concat();
        let told = encode(Coding::Dcz, Some((&Digest::of(&old), &old)), &new).expect("memory");
        assert!(told.len() < 200 && leads_to(Coding::Dcz, &told, &old, &new));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_form_leads_to_the_file(
            old in prop_oneof!["[a-e <>]{1,3000}".prop_map(String::into_bytes), proptest::collection::vec(any::<u8>(), 1..3_000)],
            cut in any::<prop::sample::Index>(),
            added in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let at = cut.index(old.len());
            let new = [&old[at..], &added, &old[..at]].concat();
            for coding in Coding::ALL {
                let from = (Digest::of(&old), old.as_slice());
                let told = encode(coding, coding.is_difference().then_some((&from.0, from.1)), &new).expect("memory");
                if coding.is_difference() {
                    prop_assert!(leads_to(coding, &told, &old, &new), "{:?}", coding);
                } else {
                    prop_assert_eq!(decode(coding, &told), new.clone(), "{:?}", coding);
                }
            }
        }
    }
}

//! Byte sizes and durations as people write them: a number and a unit, `"256 MiB"`, `"5 s"`.
//!
//! A bare number is refused, because nobody can see whether it counts seconds or milliseconds, bytes or megabytes.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::shared;

const BYTE_UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
];
const TIME_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads `"256 MiB"`. Units: B, KiB, MiB, GiB, TiB, kB, MB; the space may be left out.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    parse(text, &BYTE_UNITS).ok_or_else(|| {
        format!("{text:?} is not a size such as \"256 MiB\" (units: B, KiB, MiB, GiB, TiB, kB, MB)")
    })
}

/// Reads `"1500 ms"`. Units: ms, s, min, h, d; the space may be left out.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, &TIME_UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a duration such as \"5 s\" (units: ms, s, min, h, d)"))
}

/// A duration as people write it, in the greatest unit that it is whole in: `"100 ms"`, `"0 s"`, `"1 min"`.
pub(crate) fn duration_text(time: Duration) -> String {
    let ms = time.as_millis();
    let whole = |(_, factor): &&(&str, u64)| ms.is_multiple_of(u128::from(*factor));
    let (unit, factor) = match ms {
        0 => TIME_UNITS[1],
        _ => *TIME_UNITS.iter().rev().find(whole).expect("each is whole in milliseconds"),
    };
    format!("{} {unit}", ms / u128::from(factor))
}

/// The name of a region or a place: `eu-west`.
pub fn parse_place(text: &str) -> Result<String, String> {
    shared::place("", text.to_owned()).map_err(|refusal| format!("{}; {}", refusal.problem, refusal.remedy))
}

/// The name by which nodes know a region's certificate: a DNS name, or an IPv4 address.
pub fn parse_server_name(text: &str) -> Result<String, String> {
    shared::server_name("", text.to_owned())
        .map_err(|refusal| format!("{} such as \"region.example.net\"", refusal.problem))
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '_')?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.replace('_', "").parse().ok()?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.checked_mul(*factor)
}

/// A byte size in a raw configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

/// A duration in a raw configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span(pub(crate) Duration);

/// One visitor for both, so that a bare number meets an error that shows what to write.
struct WithUnit<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for WithUnit<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = WithUnit { expected: "a size with its unit, such as \"256 MiB\"", parse: parse_bytes };
        deserializer.deserialize_str(visitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor =
            WithUnit { expected: "a duration with its unit, such as \"5 s\"", parse: parse_duration };
        deserializer.deserialize_str(visitor).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_needs_its_unit() {
        for (text, bytes) in [("256 MiB", 256 << 20), ("1KiB", 1024), ("10_000 B", 10_000), (" 2 kB ", 2_000)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "256", "MiB", "-1 MiB", "1.5 MiB", "1 mib", "1 MiB x", "99999999999 TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for (text, ms) in [("5 s", 5_000), ("250ms", 250), ("2 min", 120_000), ("1 d", 86_400_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["5", "5 sec", "s", "1e3 s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}

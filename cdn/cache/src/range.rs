//! `Range` of a client against a stored representation (RFC 9110 section 14).
//!
//! One range is answered with 206. Several are answered with the whole: a client must be able to take that, and it
//! leaves nothing for a range bomb to multiply.

/// Longest `Range` that is read.
const RANGE_BYTES_MAX: usize = 256;

/// What may stand around the parts of a field (RFC 9110 section 5.6.3). A no-break space may not.
const BLANKS: [char; 2] = [' ', '\t'];

/// What a `Range` means for a representation of known length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// No range, one that is not understood, or several: the whole.
    Whole,
    /// From `first` to `last`, both included.
    Slice { first: u64, last: u64 },
    /// No byte of it exists: 416.
    Unsatisfiable,
}

/// The part that `value` asks of `length` bytes.
pub fn part(value: &[u8], length: u64) -> Part {
    let Some(spec) = (value.len() <= RANGE_BYTES_MAX).then(|| single_spec(value)).flatten() else {
        return Part::Whole;
    };
    match spec {
        (Some(first), _) if first >= length => Part::Unsatisfiable,
        (Some(first), last) => {
            let last = last.unwrap_or(u64::MAX).min(length - 1);
            if last < first { Part::Whole } else { Part::Slice { first, last } }
        }
        (None, Some(0)) => Part::Unsatisfiable,
        (None, Some(_)) if length == 0 => Part::Unsatisfiable,
        (None, Some(suffix)) => Part::Slice { first: length.saturating_sub(suffix), last: length - 1 },
        (None, None) => Part::Whole,
    }
}

/// Whether `value` asks for one range of bytes.
pub fn is_single(value: &[u8]) -> bool {
    value.len() <= RANGE_BYTES_MAX && single_spec(value).is_some()
}

/// First and last of `bytes=first-last`; a missing first is a suffix length.
fn single_spec(value: &[u8]) -> Option<(Option<u64>, Option<u64>)> {
    let text = std::str::from_utf8(value).ok()?.trim_matches(BLANKS);
    let (unit, set) = text.split_once('=')?;
    if !unit.trim_end_matches(BLANKS).eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.split_once('-')?;
    let number = |text: &str| -> Option<Option<u64>> {
        let text = text.trim_matches(BLANKS);
        if text.is_empty() {
            return Some(None);
        }
        // A comma (a second range), a sign or a letter makes it something else than one range.
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| Some(text.parse().unwrap_or(u64::MAX)))
    };
    let (first, last) = (number(first)?, number(last)?);
    match (first, last) {
        (None, None) => None,
        (Some(first), Some(last)) if last < first => None,
        spec => Some(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_range_is_a_slice_and_several_are_the_whole() {
        let slice = |first, last| Part::Slice { first, last };
        let table = [
            ("bytes=0-4", 10, slice(0, 4)),
            ("bytes=5-", 10, slice(5, 9)),
            ("bytes=-3", 10, slice(7, 9)),
            ("bytes=-99", 10, slice(0, 9)),
            ("bytes=0-99", 10, slice(0, 9)),
            ("Bytes = 2-3 ", 10, slice(2, 3)),
            ("bytes=0-99999999999999999999", 10, slice(0, 9)),
            ("bytes=10-", 10, Part::Unsatisfiable),
            ("bytes=-0", 10, Part::Unsatisfiable),
            ("bytes=-1", 0, Part::Unsatisfiable),
            ("bytes=0-", 0, Part::Unsatisfiable),
            ("bytes=4-2", 10, Part::Whole),
            ("bytes=0-1,3-4", 10, Part::Whole),
            ("bytes=0-1,", 10, Part::Whole),
            ("items=0-1", 10, Part::Whole),
            ("bytes=-", 10, Part::Whole),
            ("bytes=a-b", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("bytes", 10, Part::Whole),
            ("bytes=\u{a0}0-4", 10, Part::Whole),
        ];
        for (text, length, want) in table {
            assert_eq!(part(text.as_bytes(), length), want, "{text} of {length}");
        }
    }

    proptest! {
        #[test]
        fn a_slice_lies_inside(text in "(bytes=)?[0-9,\\-= ]{0,24}", length in 0u64..1_000) {
            if let Part::Slice { first, last } = part(text.as_bytes(), length) {
                prop_assert!(first <= last && last < length);
            }
        }
    }
}

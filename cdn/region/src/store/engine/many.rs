//! Statements over many keys: one round trip for dozens of them.
//!
//! A statement's text names each parameter, and a session keeps every text prepared. So there are texts for a few numbers of
//! keys only, the [`SIZES`], and a list of any length is cut into runs of these.

use std::fmt::Write as _;

/// Keys of one statement, the most first. At 64 the way to the server and back is a hundredth of what the rows cost there.
const SIZES: [usize; 3] = [64, 8, 1];

/// Cuts a list into runs of the [`SIZES`].
pub(in crate::store) fn runs<T>(mut items: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = SIZES.into_iter().find(|size| *size <= items.len())?;
        let (run, rest) = items.split_at(size);
        items = rest;
        Some(run)
    })
}

/// `?2, ?3, ?4` for three parameters from the second on.
pub(in crate::store) fn holes(first: usize, count: usize) -> String {
    let mut text = String::with_capacity(count * 5);
    for number in first..first + count {
        let comma = if number == first { "" } else { ", " };
        write!(text, "{comma}?{number}").expect("a text takes what is written");
    }
    text
}

/// `(?1, ?2), (?3, ?4)` for two rows of two columns.
pub(in crate::store) fn rows(count: usize, columns: usize) -> String {
    let row = |row: usize| format!("({})", holes(row * columns + 1, columns));
    (0..count).map(row).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_any_length_is_cut_into_few_sizes() {
        for length in 0..300 {
            let list: Vec<_> = (0..length).collect();
            let cut: Vec<&[usize]> = runs(&list).collect();
            assert_eq!(cut.concat(), list);
            assert!(cut.iter().all(|run| SIZES.contains(&run.len())), "{length}");
            assert!(cut.len() <= length / 64 + 14, "{length}: {} runs", cut.len());
        }
    }

    #[test]
    fn holes_and_rows_are_numbered_through() {
        assert_eq!((holes(2, 3), holes(1, 1)), ("?2, ?3, ?4".to_owned(), "?1".to_owned()));
        assert_eq!(rows(2, 2), "(?1, ?2), (?3, ?4)");
    }
}

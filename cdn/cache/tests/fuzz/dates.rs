//! HTTP dates against a reader that knows the three formats word by word, and counts days by adding up months.

use souk_cache::date;

use crate::message::{holds, same};

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
/// The longest of the formats, twice: what is longer is not read.
const BYTES_MAX: usize = 64;

pub(crate) fn of_text(input: &[u8]) -> Result<String, String> {
    let got = date::parse(input);
    same("the date", got, read(input))?;
    if let Some(seconds) = got {
        let written = date::format(seconds * 1_000);
        same("what is written of it", date::parse(written.as_bytes()), Some(seconds))?;
        holds("a date is one of the years that four digits say", seconds < 253_402_300_800)?;
    }
    Ok(format!("{got:?}"))
}

/// Seconds since 1970.
pub(crate) fn read(input: &[u8]) -> Option<u64> {
    let text = input.trim_ascii();
    if text.len() > BYTES_MAX || !text.is_ascii() {
        return None;
    }
    let text = String::from_utf8(text.to_vec()).ok()?.to_ascii_lowercase();
    let words: Vec<&str> = text.split(' ').collect();
    let short = |word: &str| DAYS.iter().any(|day| &day[..3] == word);
    match words.as_slice() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [day, date, month, year, time, "gmt"] if short(day.strip_suffix(',')?) => {
            seconds(number(year, 4)?, month, number(date, 2)?, time)
        }
        // Sunday, 06-Nov-94 08:49:37 GMT
        [day, date, time, "gmt"] if DAYS.contains(&day.strip_suffix(',')?) => {
            let parts: Vec<&str> = date.split('-').collect();
            let [date, month, year] = parts.as_slice() else { return None };
            let year = number(year, 2)?;
            seconds(if year < 70 { year + 2_000 } else { year + 1_900 }, month, number(date, 2)?, time)
        }
        // Sun Nov  6 08:49:37 1994
        [day, month, "", date, time, year] if short(day) => {
            seconds(number(year, 4)?, month, number(date, 1)?, time)
        }
        [day, month, date, time, year] if short(day) => {
            seconds(number(year, 4)?, month, number(date, 2)?, time)
        }
        _ => None,
    }
}

/// So many digits, no more and no fewer.
fn number(text: &str, digits: usize) -> Option<u64> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn seconds(year: u64, month: &str, date: u64, time: &str) -> Option<u64> {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = |year: u64, month: usize| match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    };
    let month = MONTHS.iter().position(|name| *name == month)?;
    let parts: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = parts.as_slice() else { return None };
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    if year < 1970 || date == 0 || date > length(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let months: u64 = (0..month).map(|month| length(year, month)).sum();
    Some((((years + months + date - 1) * 24 + hour) * 60 + minute) * 60 + second)
}

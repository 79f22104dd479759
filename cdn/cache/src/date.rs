//! HTTP dates, as RFC 9110 section 5.6.7 has them and as servers really write them.
//!
//! `httpdate` reads the three formats but insists on the case of letters; servers do not. Everything else that it
//! refuses (other zones, missing commas, doubled blanks, one-digit hours) is refused here too: an `Expires` that is not
//! a date is an `Expires` in the past.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest of the three formats is `Wednesday, 06-Nov-94 08:49:37 GMT`; twice that is no date.
const DATE_BYTES_MAX: usize = 64;

/// Seconds since 1970 of an HTTP date, or nothing.
pub fn parse(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text.len() > DATE_BYTES_MAX || !text.is_ascii() {
        return None;
    }
    let mut canonical = String::with_capacity(text.len());
    for word in text.chunk_by(|a, b| a.is_ascii_alphabetic() == b.is_ascii_alphabetic()) {
        let zone = word.eq_ignore_ascii_case(b"GMT");
        for (place, byte) in word.iter().enumerate() {
            let upper = zone || place == 0;
            canonical.push(char::from(if upper {
                byte.to_ascii_uppercase()
            } else {
                byte.to_ascii_lowercase()
            }));
        }
    }
    if !is_spaced(&canonical) {
        return None;
    }
    let time = httpdate::parse_http_date(&canonical).ok().or_else(|| with_another_weekday(&canonical))?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Whether there are as many blanks as its format has: of the one with two digits for a year, `httpdate` takes anything for
/// the blank before the time.
fn is_spaced(canonical: &str) -> bool {
    let blanks = canonical.bytes().filter(|byte| *byte == b' ').count();
    match canonical.find(',') {
        Some(3) => blanks == 5,
        Some(_) => blanks == 3,
        // A day of one digit has a blank before it.
        None => matches!(blanks, 4 | 5),
    }
}

/// The weekday says nothing that the date does not say, so a wrong one is no reason to throw the date away.
fn with_another_weekday(canonical: &str) -> Option<SystemTime> {
    const WEEKDAYS: [&str; 7] =
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let end = canonical.find(|c: char| !c.is_ascii_alphabetic())?;
    let (said, rest) = canonical.split_at(end);
    // In the form that was used: a short name, or the whole.
    let spelled = |day: &'static str| if end == 3 { &day[..3] } else { day };
    if !WEEKDAYS.iter().any(|day| spelled(day) == said) {
        return None;
    }
    WEEKDAYS.iter().find_map(|day| httpdate::parse_http_date(&format!("{}{rest}", spelled(day))).ok())
}

/// `now_ms` as an IMF-fixdate.
pub fn format(now_ms: u64) -> String {
    // The last second of 9999, and of what the format can say.
    const SECONDS_MAX: u64 = 253_402_300_799;
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs((now_ms / 1_000).min(SECONDS_MAX));
    httpdate::fmt_http_date(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_formats_in_any_case_and_nothing_else() {
        let good = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("SUN, 06 nov 1994 08:49:37 gMt", 784_111_777),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
            ("Sun Nov  6 08:49:37 1994", 784_111_777),
            ("Thursday, 18-Aug-50 02:01:18 GMT", 2_544_400_878),
            ("Mon Nov  6 08:49:37 1994", 784_111_777),
            ("Wed, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        ];
        for (text, seconds) in good {
            assert_eq!(parse(text.as_bytes()), Some(seconds), "{text}");
        }
        let bad = [
            "",
            "0",
            "-1",
            "soon",
            "Day, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sunday, 06-Nov-94`08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 32 Nov 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Thu, 01 Jan 0000 00:00:00 GMT",
        ];
        for text in bad {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn formats_any_now() {
        assert_eq!(format(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(parse(format(u64::MAX).as_bytes()), Some(253_402_300_799));
    }
}

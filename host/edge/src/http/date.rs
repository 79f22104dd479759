//! The `Date` of an answer that has none yet.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;

thread_local! {
    /// What this thread said last, and the second of which that was.
    static SAID: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// Now, as HTTP writes it. Written once a second and thread: most answers that need one are of the same second.
pub(crate) fn date_now() -> HeaderValue {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    SAID.with_borrow_mut(|(of, said)| {
        if *of != second || said.is_empty() {
            let text = httpdate::fmt_http_date(now);
            (*of, *said) = (second, HeaderValue::from_str(&text).expect("a date is visible ASCII"));
        }
        said.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_date_of_now() {
        let before = SystemTime::now();
        for _ in 0..2 {
            let said = date_now();
            let said = httpdate::parse_http_date(said.to_str().expect("text")).expect("a date");
            // Whole seconds.
            assert!(said <= SystemTime::now(), "{said:?}");
            assert!(said + std::time::Duration::from_secs(1) > before, "{said:?}");
        }
    }
}

//! Bytes as the lines of a head, as far as HTTP lets them be.

use http::{HeaderMap, HeaderName, HeaderValue};

/// `name: value` a line. What is no field, no parser gets to see.
pub(crate) fn fields(input: &[u8]) -> HeaderMap {
    let mut out = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..at], line[at + 1..].trim_ascii());
        let read = HeaderName::from_bytes(name.trim_ascii()).ok().zip(HeaderValue::from_bytes(value).ok());
        // A map that is full says so, and a head has at most a hundred fields.
        if let Some((name, value)) = read.filter(|_| out.len() < 100) {
            out.append(name, value);
        }
    }
    out
}

/// Only these of them.
pub(crate) fn only(fields: &HeaderMap, names: &[&str]) -> HeaderMap {
    let kept = fields.iter().filter(|(name, _)| names.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The lines of a field.
pub(crate) fn lines<'a>(fields: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    fields.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

/// What differs, in words; nothing if nothing does.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("{what}: got {got:?}, expected {expected:?}")) }
}

/// What must hold.
pub(crate) fn holds(what: &str, is_so: bool) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what.to_owned()) }
}

//! How a line of the access log looks: JSON, or the NCSA forms that every tool reads.

use std::fmt::Write as _;

use http::Version;
use serde::Serialize;
use souk_config::AccessFormat;
use time::OffsetDateTime;

use super::{METHOD_BYTES_MAX, PATH_BYTES_MAX, QUERY_BYTES_MAX, Visit, Written, cut};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The members of a JSON line, in their order. An absent one is left out.
#[derive(Serialize)]
struct Json<'a> {
    time: String,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    protocol: &'static str,
    status: u16,
    bytes: u64,
    duration_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_us: Option<u64>,
    peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
    /// The client has the whole answer, as far as the node can know.
    complete: bool,
}

/// The line, with its end.
pub(super) fn of(written: &Written, format: AccessFormat, with_query: bool) -> String {
    match format {
        AccessFormat::Json => json(written, with_query),
        AccessFormat::Common => common(written, with_query) + "\n",
        AccessFormat::Combined => {
            let visit = &written.visit;
            let (referer, agent) = (quoted(visit.referer.as_deref()), quoted(visit.agent.as_deref()));
            format!("{} {referer} {agent}\n", common(written, with_query))
        }
    }
}

fn json(written: &Written, with_query: bool) -> String {
    let visit = &written.visit;
    let micros = |spent: std::time::Duration| u64::try_from(spent.as_micros()).unwrap_or(u64::MAX);
    let refused = written.refusal.map(|_| "refused");
    let members = Json {
        time: rfc3339(visit.at_ms),
        method: method(visit),
        host: visit.host.as_deref(),
        path: path(visit),
        query: query(visit, with_query),
        protocol: protocol(visit.version),
        status: written.status,
        bytes: written.bytes,
        duration_us: micros(visit.started.elapsed()),
        cache: written.told.map(|told| told.outcome).or(refused),
        reason: written.told.and_then(|told| told.reason).or(written.refusal),
        upstream_us: written.upstream.map(micros),
        peer: visit.peer.to_string(),
        trace: written.trace.as_deref(),
        complete: written.complete,
    };
    // No member can fail to be written.
    serde_json::to_string(&members).unwrap_or_default() + "\n"
}

fn common(written: &Written, with_query: bool) -> String {
    let visit = &written.visit;
    let target = match query(visit, with_query) {
        Some(query) => format!("{}?{query}", path(visit)),
        None => path(visit).to_owned(),
    };
    let request = format!("{} {target} {}", method(visit), protocol(visit.version));
    let bytes = if written.bytes == 0 { "-".to_owned() } else { written.bytes.to_string() };
    format!(
        "{} - - [{}] {} {} {bytes}",
        visit.peer,
        ncsa_time(visit.at_ms),
        quoted(Some(&request)),
        written.status
    )
}

fn method(visit: &Visit) -> &str {
    cut(visit.method.as_str(), METHOD_BYTES_MAX)
}

fn path(visit: &Visit) -> &str {
    cut(visit.path(), PATH_BYTES_MAX)
}

fn query(visit: &Visit, with_query: bool) -> Option<&str> {
    visit.uri.query().filter(|_| with_query).map(|query| cut(query, QUERY_BYTES_MAX))
}

/// In quotes, so that nothing that a client writes can end the text, the line, or steer a terminal.
fn quoted(text: Option<&str>) -> String {
    let Some(text) = text else { return "\"-\"".to_owned() };
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            0x20..=0x7e => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out.push('"');
    out
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

fn utc(at_ms: u64) -> OffsetDateTime {
    let nanos = i128::from(at_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn rfc3339(at_ms: u64) -> String {
    let at = utc(at_ms);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

fn ncsa_time(at_ms: u64) -> String {
    let at = utc(at_ms);
    let month = MONTHS[usize::from(u8::from(at.month())) - 1];
    format!(
        "{:02}/{month}/{:04}:{:02}:{:02}:{:02} +0000",
        at.day(),
        at.year(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_both_forms() {
        assert_eq!(rfc3339(1_800_000_000_007), "2027-01-15T08:00:00.007Z");
        assert_eq!(ncsa_time(1_800_000_000_007), "15/Jan/2027:08:00:00 +0000");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00.000Z", "no date at all");
    }

    #[test]
    fn nothing_that_a_client_writes_ends_the_text() {
        assert_eq!(quoted(Some("a\"b\\c\n\u{1b}[2Jé")), "\"a\\\"b\\\\c\\x0a\\x1b[2J\\xc3\\xa9\"");
        assert_eq!(quoted(None), "\"-\"");
    }
}

//! `Vary` and the fields that variants are told apart by.

use http::HeaderMap;
use souk_cache::PassReason;
use souk_cache::vary::{Variant, accept_encoding};

use crate::message::{fields, holds, lines, only, same};

const FIELDS_MAX: usize = 8;

/// Response and request are one head here: the fields of both have names of their own.
pub(crate) fn of_both(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let taken = accept_encoding(&head);
    same("the codings", taken, codings(&head))?;
    let mut again = HeaderMap::new();
    again.insert("accept-encoding", taken.unwrap_or("identity").parse().expect("plain"));
    same("the same once more", accept_encoding(&again), taken)?;
    let mut out = format!("{taken:?}");
    for negotiates in [false, true] {
        let got = Variant::of(&head, &head, negotiates);
        same("what it varies by", names(&got), vary(&head))?;
        if let Ok(variant) = got {
            holds("the request that it answered selects it", variant.matches(&head))?;
            let fields: Vec<&str> = variant.names().map(|name| name.as_str()).collect();
            // Nothing else makes a difference.
            let mut other = only(&head, &fields);
            if !fields.contains(&"other") {
                other.insert("other", "1".parse().expect("plain"));
            }
            holds("whatever else a request says", variant.matches(&other))?;
            let mut together = variant.clone().and(&variant).map_err(|_| "it fits itself".to_owned())?;
            same("with itself", &together, &variant)?;
            if let Ok(bare) = Variant::of(&HeaderMap::new(), &head, negotiates) {
                together = bare.and(&variant).map_err(|_| "it fits nothing".to_owned())?;
                same("with nothing", &together, &variant)?;
            }
            out.push_str(&format!("{:?}", variant.fields().collect::<Vec<_>>()));
        }
    }
    Ok(out)
}

fn names(variant: &Result<Variant, PassReason>) -> Result<Vec<String>, PassReason> {
    match variant {
        Ok(variant) => Ok(variant.names().map(|name| name.as_str().to_owned()).collect()),
        Err(reason) => Err(*reason),
    }
}

/// Line by line and member by member, the first that is wrong with it counts.
fn vary(head: &HeaderMap) -> Result<Vec<String>, PassReason> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let mut names: Vec<String> = Vec::new();
    for line in lines(head, "vary") {
        for member in line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if member.is_empty() {
                continue;
            }
            if member == b"*" || !member.iter().all(is_token) {
                return Err(PassReason::VaryAny);
            }
            let name = String::from_utf8_lossy(member).to_ascii_lowercase();
            if ["cookie", "user-agent", "authorization"].contains(&name.as_str()) {
                return Err(PassReason::VaryPersonal);
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.len() > FIELDS_MAX {
            return Err(PassReason::VaryTooMany);
        }
    }
    names.sort();
    Ok(names)
}

/// The last word on each coding counts.
fn codings(head: &HeaderMap) -> Option<&'static str> {
    let mut said: Vec<(String, bool)> = Vec::new();
    for line in lines(head, "accept-encoding") {
        for member in line.split(|byte| *byte == b',') {
            let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).to_ascii_lowercase();
            let is_refused = parts.any(|part| {
                let text: String = part.iter().map(|byte| char::from(*byte)).collect();
                let Some((name, value)) = text.split_once('=') else { return false };
                let value = value.trim_ascii();
                name.trim_ascii().eq_ignore_ascii_case("q")
                    && !value.is_empty()
                    && value.chars().all(|c| c == '0' || c == '.')
            });
            said.push((name, !is_refused));
        }
    }
    let last = |names: &[&str]| {
        said.iter().rev().find(|(name, _)| names.contains(&name.as_str())).map(|(_, is_taken)| *is_taken)
    };
    let gzip = last(&["gzip", "x-gzip"]).or_else(|| last(&["*"])).unwrap_or(false);
    let takes = [last(&["zstd"]).unwrap_or(false), last(&["br"]).unwrap_or(false), gzip];
    let all = ["zstd", "br", "gzip"];
    let wanted: Vec<&str> =
        all.into_iter().zip(takes).filter(|(_, takes)| *takes).map(|(name, _)| name).collect();
    let spellings = ["zstd, br, gzip", "zstd, br", "zstd, gzip", "zstd", "br, gzip", "br", "gzip"];
    let text = wanted.join(", ");
    spellings.into_iter().find(|spelling| *spelling == text)
}

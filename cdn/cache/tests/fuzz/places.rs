//! Where a request goes and what a purge means: authority and target, as keys have them.

use souk_cache::key::{KeyRef, TARGET_BYTES_MAX};
use souk_cache::{Key, Place, Scheme};

use crate::message::{holds, same};

const HOST_BYTES_MAX: usize = 253;

/// The first line is an authority, the second a target.
pub(crate) fn of_text(input: &[u8]) -> Result<String, String> {
    // As requests have them: text without control characters and beyond ASCII.
    let text: String = input.iter().filter(|byte| byte.is_ascii()).map(|byte| char::from(*byte)).collect();
    let (authority, target) = text.split_once('\n').unwrap_or((&text, "/"));
    let target: String = target.chars().filter(|c| *c != '\n').collect();
    let mut out = String::new();
    for scheme in [Scheme::Http, Scheme::Https] {
        let got = Key::new("site", scheme, authority, &target);
        same("whether it is a place", got.is_ok(), is_authority(authority) && is_target(&target))?;
        let plain = KeyRef::plain("site", scheme, authority, &target);
        let Ok(key) = got else {
            holds("what is no place is none on the short way either", plain.is_none())?;
            out.push_str("no ");
            continue;
        };
        same("the target is as it was written", key.target(), target.as_str())?;
        holds("the authority is in one spelling", !key.authority().contains(char::is_uppercase))?;
        same("read again", Key::new("site", scheme, key.authority(), &target).as_ref(), Ok(&key))?;
        if let Some(plain) = plain {
            same("the short way", plain.to_key(), key.clone())?;
        }
        let is_written = target.bytes().all(|byte| byte.is_ascii_graphic()) && !target.contains('#');
        same("whether it can be purged", Place::parse("site", &target).is_ok(), is_written)?;
        if is_written {
            let whole = format!("{}://{}{target}", scheme.as_str(), key.authority());
            let there = Place::parse("site", &whole);
            holds("and by its address", there.is_ok() || whole.len() > TARGET_BYTES_MAX)?;
            same(
                "in whichever spelling",
                Place::parse("site", &target),
                Place::parse("site", &encoded(&target)),
            )?;
        }
        out.push_str(&format!("{} {is_written} ", key.authority()));
    }
    Ok(out)
}

/// Every letter that needs no code with one, where that changes nothing: not beside a code that is there.
fn encoded(target: &str) -> String {
    if target.contains('%') || target.len() > TARGET_BYTES_MAX / 3 {
        return target.to_owned();
    }
    let mut out = String::new();
    for c in target.chars() {
        if c.is_ascii_alphanumeric() || "-._~".contains(c) {
            out.push_str(&format!("%{:02x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => {
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                (host, port)
            }
            None => return false,
        },
        None => {
            let at = text.find(':').unwrap_or(text.len());
            let (host, port) = text.split_at(at);
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=".contains(c);
            if host.is_empty() || !host.chars().all(is_name) {
                return false;
            }
            (host, port)
        }
    };
    let is_port = |digits: &str| {
        !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && digits.trim_start_matches('0').len() <= 5
            && digits.parse::<u64>().is_ok_and(|port| port <= 65_535)
    };
    host.len() <= HOST_BYTES_MAX && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_target(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let codes = path.split('%').skip(1).all(|rest| {
        let digits: String = rest.chars().take(2).collect();
        digits.len() == 2
            && digits.chars().all(|c| c.is_ascii_hexdigit())
            && u8::from_str_radix(&digits, 16).is_ok_and(|byte| byte >= 0x20 && byte != 0x7f)
    });
    // A separator parts a key from a piece of it.
    target.starts_with('/')
        && !target.contains('\x1f')
        && target.len() <= TARGET_BYTES_MAX
        && codes
        && !path.chars().any(|c| c == '\\' || c <= ' ' || c == '\x7f')
}

//! A site's settings as a person wrote them. A region skips what it does not know, so that an older one understands a newer
//! one's words; of a person, a name that is not known is a slip, and what was meant would silently stay as it is.

use std::path::Path;

use serde_json::Value;
use souk_commerce::site::{Reservations, SiteSettings};

use super::read_json;
use crate::failure::Usage;

/// ISO 4217, without metals, funds and codes for tests.
const CURRENCIES: &str = "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD \
    CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF \
    IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP \
    MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK \
    SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD \
    XCG XOF XPF YER ZAR ZMW ZWG";

/// The edge data that plugins read: its keys are the merchant's own.
const FREE: &str = "kv";

pub(super) fn read(file: &Path) -> anyhow::Result<SiteSettings> {
    let written: Value = read_json(file)?;
    let settings: SiteSettings = read_json(file)?;
    match slip(&written, &settings) {
        Some(why) => Err(Usage(format!("{}: {why}", file.display())).into()),
        None => Ok(settings),
    }
}

fn slip(written: &Value, settings: &SiteSettings) -> Option<String> {
    let code = settings.currency.code();
    if !CURRENCIES.split(' ').any(|known| known == code) {
        return Some(format!("currency {code:?} is none of ISO 4217: write a code such as \"EUR\""));
    }
    // With all that is left out of JSON while it has its default.
    let reservations = Reservations { enabled: true, ..Reservations::default() };
    let all = SiteSettings { cpu_weight: Some(1), reservations, ..settings.clone() };
    unknown("", written, &serde_json::to_value(all).ok()?)
}

/// The first key that is not known, and what is known in its place.
fn unknown(path: &str, written: &Value, known: &Value) -> Option<String> {
    let (written, known) = (written.as_object()?, known.as_object()?);
    written.iter().find_map(|(key, value)| match known.get(key) {
        None => {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            Some(format!("unknown key `{path}{key}`; known here: {}", names.join(", ")))
        }
        Some(_) if key == FREE => None,
        Some(inner) => unknown(&format!("{path}{key}."), value, inner),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Option<String> {
        let settings = serde_json::from_str(text).expect("settings");
        slip(&serde_json::from_str(text).expect("JSON"), &settings)
    }

    #[test]
    fn a_slip_of_the_hand_is_named() {
        let whole = r#"{"site": "shop", "name": "A", "hosts": [], "currency": "GBP", "language": "en", "limits": {"coupons_max": 1},
            "guard": {}, "cpu_weight": 2, "reservations": {"enabled": true, "minutes": 5}, "shopper_key": null,
            "kv": {"anything": "goes"}}"#;
        assert_eq!(told(whole), None);
        let foo =
            told(r#"{"site": "shop", "currency": "GBP", "reservation": {"enabled": true}}"#).expect("a slip");
        assert!(
            foo.starts_with("unknown key `reservation`; known here: ") && foo.contains("reservations"),
            "{foo}"
        );
        let inner =
            told(r#"{"site": "shop", "currency": "GBP", "limits": {"cart_lines": 1}}"#).expect("a slip");
        assert!(inner.starts_with("unknown key `limits.cart_lines`"), "{inner}");
        let money = told(r#"{"site": "shop", "currency": "XXZ"}"#).expect("no currency");
        assert!(money.contains("\"XXZ\" is none of ISO 4217"), "{money}");
    }
}

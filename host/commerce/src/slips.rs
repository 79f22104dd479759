//! Slips of the hand in what a person wrote of a shop.
//!
//! Nodes and stores skip what they do not know, so that an older one understands a newer one's words. Of a person, a name that is
//! not known is a slip, and what was meant would silently stay as it is: so whoever takes settings from one asks here first.

use serde_json::Value;

use crate::site::{Reservations, SiteSettings};

/// ISO 4217, without metals, funds and codes for tests.
const CURRENCIES: &str = "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD \
    CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF \
    IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP \
    MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK \
    SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD \
    XCG XOF XPF YER ZAR ZMW ZWG";

/// ISO 3166-1 alpha-2, as it is assigned; and Kosovo, which has no code of its own there and is shipped to under this one.
const COUNTRIES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV \
    BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA \
    GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI \
    KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA \
    NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK \
    SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS \
    XK YE YT ZA ZM ZW";

/// The edge data that plugins read: its keys are the merchant's own.
const FREE: &str = "kv";

/// What was probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Slip {
    /// Where it stands.
    pub field: String,
    pub why: String,
}

/// The first slip in settings that were `written` so.
pub fn in_settings(written: &Value, settings: &SiteSettings) -> Option<Slip> {
    let code = settings.currency.code();
    if !CURRENCIES.split(' ').any(|known| known == code) {
        let why = format!("currency {code:?} is none of ISO 4217: write a code such as \"EUR\"");
        return Some(Slip { field: "currency".to_owned(), why });
    }
    // With all that is left out of JSON while it has its default.
    let reservations = Reservations { enabled: true, ..Reservations::default() };
    let all = SiteSettings { cpu_weight: Some(1), reservations, ..settings.clone() };
    unknown("", written, &serde_json::to_value(all).ok()?)
}

/// Whether there is a country of this code.
pub fn is_country(code: &str) -> bool {
    code.len() == 2 && COUNTRIES.split(' ').any(|known| known == code)
}

/// The first key that is not known, and what is known in its place.
fn unknown(path: &str, written: &Value, known: &Value) -> Option<Slip> {
    let (written, known) = (written.as_object()?, known.as_object()?);
    written.iter().find_map(|(key, value)| match known.get(key) {
        None => {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            let field = format!("{path}{key}");
            let why = format!("unknown key `{field}`; known here: {}", names.join(", "));
            Some(Slip { field, why })
        }
        Some(_) if key == FREE => None,
        Some(inner) => unknown(&format!("{path}{key}."), value, inner),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Option<(String, String)> {
        let settings = serde_json::from_str(text).expect("settings");
        let slip = in_settings(&serde_json::from_str(text).expect("JSON"), &settings);
        slip.map(|Slip { field, why }| (field, why))
    }

    #[test]
    fn a_slip_of_the_hand_is_named() {
        let whole = r#"{"site": "shop", "name": "A", "hosts": [], "currency": "GBP", "language": "en", "limits": {"coupons_max": 1},
            "guard": {}, "cpu_weight": 2, "reservations": {"enabled": true, "minutes": 5}, "shopper_key": null,
            "kv": {"anything": "goes"}}"#;
        assert_eq!(told(whole), None);
        let (field, why) =
            told(r#"{"site": "shop", "currency": "GBP", "reservation": {"enabled": true}}"#).expect("a slip");
        assert_eq!(field, "reservation");
        assert!(
            why.starts_with("unknown key `reservation`; known here: ") && why.contains("reservations"),
            "{why}"
        );
        let (field, why) =
            told(r#"{"site": "shop", "currency": "GBP", "limits": {"cart_lines": 1}}"#).expect("a slip");
        assert_eq!(field, "limits.cart_lines");
        assert!(why.starts_with("unknown key `limits.cart_lines`"), "{why}");
        let (field, why) = told(r#"{"site": "shop", "currency": "XXZ"}"#).expect("no currency");
        assert_eq!(field, "currency");
        assert!(why.contains("\"XXZ\" is none of ISO 4217"), "{why}");
    }

    #[test]
    fn a_country_is_one_that_there_is() {
        assert_eq!(COUNTRIES.split_ascii_whitespace().count(), 250);
        for code in ["GB", "AD", "ZW", "XK"] {
            assert!(is_country(code), "{code}");
        }
        for code in ["ZZ", "UK", "EU", "gb", "", " ", "A", "GB ", "AD AE", "D A"] {
            assert!(!is_country(code), "{code:?}");
        }
    }
}

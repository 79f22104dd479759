//! From the names of countries, as old accounting systems write them, to ISO 3166-1.
//!
//! Pure. Most names are one country; a few need a rule, and each rule says why. A name that is not here refuses its
//! row: a wrong country is a wrong price.

use souk_commerce::id::Country;

/// Where an invoice goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    To(Country),
    /// The file says that nobody knows; the cart is made without a country.
    Nowhere,
}

/// The names that the accounts of the trade use, with the code that each stands for.
const NAMES: [(&str, &str); 47] = [
    ("Australia", "AU"),
    ("Austria", "AT"),
    ("Bahrain", "BH"),
    ("Belgium", "BE"),
    ("Brazil", "BR"),
    ("Bulgaria", "BG"),
    ("Canada", "CA"),
    // Two bailiwicks, JE and GG, and no code for both. Jersey is the larger; delivery and tax are alike.
    ("Channel Islands", "JE"),
    ("Cyprus", "CY"),
    ("Czech Republic", "CZ"),
    ("Denmark", "DK"),
    // The constitution's name of Ireland in Irish, in capitals since the telex.
    ("EIRE", "IE"),
    ("Estonia", "EE"),
    ("Finland", "FI"),
    ("France", "FR"),
    ("Germany", "DE"),
    ("Greece", "GR"),
    ("Hong Kong", "HK"),
    ("Hungary", "HU"),
    ("Iceland", "IS"),
    ("Ireland", "IE"),
    ("Israel", "IL"),
    ("Italy", "IT"),
    ("Japan", "JP"),
    ("Korea", "KR"),
    ("Latvia", "LV"),
    ("Lebanon", "LB"),
    ("Lithuania", "LT"),
    ("Luxembourg", "LU"),
    ("Malta", "MT"),
    ("Netherlands", "NL"),
    ("New Zealand", "NZ"),
    ("Nigeria", "NG"),
    ("Norway", "NO"),
    ("Poland", "PL"),
    ("Portugal", "PT"),
    // The Republic of South Africa.
    ("RSA", "ZA"),
    ("Romania", "RO"),
    ("Saudi Arabia", "SA"),
    ("Singapore", "SG"),
    ("Spain", "ES"),
    ("Sweden", "SE"),
    ("Switzerland", "CH"),
    ("Thailand", "TH"),
    ("USA", "US"),
    ("United Arab Emirates", "AE"),
    ("United Kingdom", "GB"),
];

/// Names that stand for no single country. `European Community` is twelve to twenty-eight of them, depending on the year.
const NO_COUNTRY: [&str; 3] = ["", "Unspecified", "European Community"];

/// The destination that `name` means, or none if it means nothing to us. Two capitals are taken as a code.
pub(super) fn destination(name: &str) -> Option<Destination> {
    let name = name.trim();
    if NO_COUNTRY.iter().any(|n| n.eq_ignore_ascii_case(name)) {
        return Some(Destination::Nowhere);
    }
    let code = NAMES.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or(name, |(_, code)| code);
    code.parse().ok().map(Destination::To)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_country_of_the_shopping_data_has_a_code() {
        for (name, code) in [
            ("United Kingdom", "GB"),
            ("Germany", "DE"),
            ("France", "FR"),
            ("EIRE", "IE"),
            ("Spain", "ES"),
            ("Norway", "NO"),
            ("Portugal", "PT"),
            ("Belgium", "BE"),
            ("Australia", "AU"),
            ("Cyprus", "CY"),
            ("Netherlands", "NL"),
            ("Japan", "JP"),
            ("Switzerland", "CH"),
            ("Italy", "IT"),
            ("Sweden", "SE"),
            ("Lithuania", "LT"),
            ("Iceland", "IS"),
            ("Denmark", "DK"),
            ("Channel Islands", "JE"),
            ("Finland", "FI"),
            ("Austria", "AT"),
            ("Poland", "PL"),
            ("Israel", "IL"),
            ("Bahrain", "BH"),
        ] {
            let country = code.parse().expect("a code");
            assert_eq!(destination(name), Some(Destination::To(country)), "{name}");
        }
    }

    #[test]
    fn codes_pass_and_strangers_do_not() {
        assert_eq!(destination(" NL "), Some(Destination::To("NL".parse().expect("a code"))));
        assert_eq!(destination("european community"), Some(Destination::Nowhere));
        assert_eq!(destination("Unspecified"), Some(Destination::Nowhere));
        for name in ["Atlantis", "Nl", "N", "NLD", "1234"] {
            assert_eq!(destination(name), None, "{name}");
        }
    }
}

//! What the merchant writes, and what is wrong with it. The crate's first page says what each field means.

use serde::Deserialize;

/// The host takes badges of at most this length.
const BADGE_BYTES_MAX: usize = 40;
/// What the number of a low stock can need in a badge.
const NUMBER_BYTES_MAX: usize = 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(default)]
    pub hide: Vec<Hide>,
    #[serde(default)]
    pub rank: Vec<Rank>,
    #[serde(default)]
    pub badges: Vec<Badge>,
    #[serde(default = "yes")]
    pub reduced_badge: bool,
    #[serde(default)]
    pub low_stock_at: u32,
    #[serde(default = "only_left")]
    pub low_stock_badge: String,
}

fn yes() -> bool {
    true
}

fn only_left() -> String {
    "Only {n} left".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hide {
    pub tag: String,
    #[serde(default)]
    pub countries: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rank {
    pub tag: String,
    pub by: i32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Badge {
    pub tag: String,
    pub badge: String,
}

impl Settings {
    /// Says what is wrong, by the path of the field, where the shape alone cannot.
    pub fn check(&self) -> Result<(), String> {
        for (i, rule) in self.hide.iter().enumerate() {
            for country in &rule.countries {
                if country.len() != 2 || !country.bytes().all(|b| b.is_ascii_uppercase()) {
                    return Err(format!(
                        "hide[{i}]: country {country:?} is not two capital letters of ISO 3166-1"
                    ));
                }
            }
        }
        for (i, rule) in self.badges.iter().enumerate() {
            check_badge(&rule.badge, BADGE_BYTES_MAX).map_err(|wrong| format!("badges[{i}]: {wrong}"))?;
        }
        // `{n}` makes room for three of the digits.
        check_badge(&self.low_stock_badge, BADGE_BYTES_MAX + "{n}".len() - NUMBER_BYTES_MAX)
            .map_err(|wrong| format!("low_stock_badge: {wrong}"))?;
        if self.low_stock_badge.matches("{n}").count() > 1 {
            return Err("low_stock_badge: it has {n} more than once".to_owned());
        }
        Ok(())
    }
}

fn check_badge(badge: &str, bytes_max: usize) -> Result<(), String> {
    if badge.is_empty() || badge.len() > bytes_max || badge.chars().any(char::is_control) {
        return Err(format!("{badge:?} is not 1 to {bytes_max} bytes without control characters"));
    }
    Ok(())
}

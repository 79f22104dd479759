//! What the merchant writes: the shape of the settings, and what is wrong with them.

use serde::Deserialize;
use souk_sdk::{Line, Minor};

/// The host takes labels of at most this length.
const LABEL_BYTES_MAX: usize = 120;
const WHOLE_BP: u32 = 10_000;

/// All rules of a release. See `README.md` for the meaning of each field.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(default = "yes")]
    pub gifts_free: bool,
    #[serde(default)]
    pub quantity_breaks: Vec<QuantityBreaks>,
    #[serde(default)]
    pub segments: Vec<SegmentRule>,
    #[serde(default)]
    pub countries: Vec<CountryRule>,
    #[serde(default)]
    pub coupons: Vec<CouponRule>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantityBreaks {
    pub sku: Option<String>,
    pub tag: Option<String>,
    pub breaks: Vec<Break>,
    pub label: Option<String>,
}

/// From `at` pieces on, `off_bp` off.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Break {
    pub at: u32,
    pub off_bp: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentRule {
    pub segment: String,
    pub off_bp: u32,
    pub label: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountryRule {
    pub country: String,
    pub sku: Option<String>,
    pub tag: Option<String>,
    pub change_bp: i32,
    pub label: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CouponRule {
    pub code: String,
    pub off_bp: Option<u32>,
    pub amount_off: Option<Minor>,
    #[serde(default)]
    pub min_total: Minor,
    pub not_before: Option<u64>,
    pub not_after: Option<u64>,
    pub label: Option<String>,
}

/// Whether a rule with this `sku` and `tag` is for the line.
pub(crate) fn is_for(sku: Option<&String>, tag: Option<&String>, line: &Line) -> bool {
    sku.is_none_or(|sku| *sku == line.product.sku) && tag.is_none_or(|tag| line.product.has_tag(tag))
}

impl Settings {
    /// Says what is wrong, by the path of the field, where the shape alone cannot.
    pub fn check(&self) -> Result<(), String> {
        for (i, rule) in self.quantity_breaks.iter().enumerate() {
            rule.check().map_err(|wrong| format!("quantity_breaks[{i}]: {wrong}"))?;
        }
        for (i, rule) in self.segments.iter().enumerate() {
            let again = self.segments[..i].iter().any(|before| before.segment == rule.segment);
            rule.check(again).map_err(|wrong| format!("segments[{i}]: {wrong}"))?;
        }
        for (i, rule) in self.countries.iter().enumerate() {
            rule.check().map_err(|wrong| format!("countries[{i}]: {wrong}"))?;
        }
        for (i, rule) in self.coupons.iter().enumerate() {
            let again = self.coupons[..i].iter().any(|before| before.code == rule.code);
            rule.check(again).map_err(|wrong| format!("coupons[{i}]: {wrong}"))?;
        }
        Ok(())
    }
}

impl QuantityBreaks {
    fn check(&self) -> Result<(), String> {
        check_selector(self.sku.as_ref(), self.tag.as_ref())?;
        check_label(self.label.as_ref())?;
        if self.breaks.is_empty() {
            return Err("breaks is empty".to_owned());
        }
        let mut last = 0;
        for step in &self.breaks {
            if step.at <= last {
                return Err(format!("breaks must rise, and at is {} after {last}", step.at));
            }
            last = step.at;
            check_off(step.off_bp)?;
        }
        Ok(())
    }
}

impl SegmentRule {
    fn check(&self, again: bool) -> Result<(), String> {
        check_label(self.label.as_ref())?;
        if self.segment.is_empty() {
            return Err("segment is empty".to_owned());
        }
        if again {
            return Err(format!("segment {:?} has a rule already", self.segment));
        }
        check_off(self.off_bp)
    }
}

impl CountryRule {
    fn check(&self) -> Result<(), String> {
        check_selector(self.sku.as_ref(), self.tag.as_ref())?;
        check_label(self.label.as_ref())?;
        if self.country.len() != 2 || !self.country.bytes().all(|b| b.is_ascii_uppercase()) {
            return Err(format!("country {:?} is not two capital letters of ISO 3166-1", self.country));
        }
        if self.change_bp == 0 || self.change_bp.unsigned_abs() > WHOLE_BP {
            return Err(format!("change_bp is {}, not -10000 to 10000 and not 0", self.change_bp));
        }
        Ok(())
    }
}

impl CouponRule {
    fn check(&self, again: bool) -> Result<(), String> {
        check_label(self.label.as_ref())?;
        let in_code = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if !(1..=40).contains(&self.code.len()) || !self.code.bytes().all(in_code) {
            return Err(format!("code {:?} is not 1 to 40 characters of A-Z, 0-9, '-' and '_'", self.code));
        }
        if again {
            return Err(format!("code {:?} has a rule already", self.code));
        }
        match (self.off_bp, self.amount_off) {
            (Some(off_bp), None) => check_off(off_bp)?,
            (None, Some(amount)) if amount < 1 => return Err(format!("amount_off is {amount}, less than 1")),
            (None, Some(_)) => {}
            _ => return Err("exactly one of off_bp and amount_off is needed".to_owned()),
        }
        if self.min_total < 0 {
            return Err(format!("min_total is {}, less than 0", self.min_total));
        }
        match (self.not_before, self.not_after) {
            (Some(from), Some(to)) if from > to => {
                Err(format!("not_before {from} is later than not_after {to}"))
            }
            _ => Ok(()),
        }
    }
}

fn check_selector(sku: Option<&String>, tag: Option<&String>) -> Result<(), String> {
    if sku.is_some() && tag.is_some() {
        return Err("it has both sku and tag; write two rules".to_owned());
    }
    Ok(())
}

fn check_off(off_bp: u32) -> Result<(), String> {
    if (1..=WHOLE_BP).contains(&off_bp) { Ok(()) } else { Err(format!("off_bp is {off_bp}, not 1 to 10000")) }
}

fn check_label(label: Option<&String>) -> Result<(), String> {
    match label {
        Some(label) if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) => {
            Err(format!("label is longer than {LABEL_BYTES_MAX} bytes or has control characters"))
        }
        _ => Ok(()),
    }
}

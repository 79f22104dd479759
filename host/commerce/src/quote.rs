//! What a cart costs and why.
//!
//! Plugins say adjustments; every total is computed here, so that totals add up and each penny has a plugin, a code
//! and a label. The price guard looks at the result of each plugin and takes it whole or not at all.
//!
//! **Order of the arithmetic.** Within one plugin's answer first the line adjustments, in the order given, each on
//! its line's running total; then the cart adjustments, in the order given, on the running total of the cart. A
//! percentage is of the running amount and is rounded by [`Minor::basis_points`]. What an earlier plugin did at cart
//! level stays the amount that it was when a later plugin changes a line. So at all times
//! `line.total = line.amount + Σ line.adjustments`, `subtotal = Σ line.total` and
//! `total = subtotal + Σ adjustments`.

use serde::{Deserialize, Serialize};

use crate::cart::LineKey;
use crate::id::{Country, PluginName};
use crate::money::{AmountOverflow, Currency, Minor};
use crate::product::Listed;
use crate::site::{Guard, Hook};

/// Most adjustments that one plugin may answer with: eight for each line of a cart at its default limit.
pub const ADJUSTMENTS_MAX: usize = 8_192;
/// Longest code of an adjustment.
pub const CODE_BYTES_MAX: usize = 64;
/// Longest label of an adjustment.
pub const LABEL_BYTES_MAX: usize = 120;

/// What an adjustment changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Index of the line in [`Quote::lines`].
    Line(usize),
    /// The whole cart, after all lines.
    Cart,
}

/// How an adjustment changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdjustEffect {
    /// Basis points of the running amount: -1000 is ten per cent off.
    Percent(i32),
    /// Added to the running amount.
    Amount(Minor),
    /// Replaces the price of one unit, and with it everything that came before on the line; lines only.
    UnitPrice(Minor),
}

/// One thing that a pricing plugin says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjustment {
    pub target: Target,
    pub effect: AdjustEffect,
    pub code: String,
    pub label: String,
}

/// One adjustment as it came out, with who said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub plugin: PluginName,
    pub release: u32,
    pub code: String,
    pub label: String,
    /// What it changed; negative is off.
    pub amount: Minor,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuoteLine {
    pub line: LineKey,
    pub title: String,
    pub quantity: u32,
    /// The merchant's price of one unit.
    pub unit_price: Minor,
    /// `unit_price` times `quantity`.
    pub amount: Minor,
    pub adjustments: Vec<Applied>,
    pub total: Minor,
}

/// A plugin that was left out, and why: a discount is never missing in silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    pub plugin: PluginName,
    pub release: u32,
    pub hook: Hook,
    /// Machine-readable: `trap`, `deadline`, `memory`, `negative_price`…
    pub reason: String,
    pub detail: String,
}

/// A priced cart. Its JSON is the answer of `GET …/quote`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    pub currency: Currency,
    pub country: Option<Country>,
    pub lines: Vec<QuoteLine>,
    /// At cart level.
    pub adjustments: Vec<Applied>,
    /// Sum of the line totals.
    pub subtotal: Minor,
    pub total: Minor,
    /// Greatest price version among the lines; 0 for an empty cart.
    pub price_version: u64,
    pub fallbacks: Vec<Fallback>,
    /// Lines whose product or price is gone: not priced, and a checkout with them is refused.
    pub unavailable: Vec<LineKey>,
}

/// Why the price guard dropped what a plugin said. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("{0}: the price would be negative")]
    NegativePrice(Subject),
    #[error("{subject}: {total} is below the floor of {floor}")]
    BelowFloor { subject: Subject, total: Minor, floor: Minor },
    #[error("{subject}: {total} of {amount} is more than {cap_bp} basis points off")]
    DiscountCap { subject: Subject, total: Minor, amount: Minor, cap_bp: u32 },
    #[error("there is no line {0} in this quote")]
    UnknownLine(usize),
    #[error("a unit price was set for the whole cart")]
    UnitPriceOnCart,
    #[error("{0} adjustments are more than {ADJUSTMENTS_MAX}")]
    TooManyAdjustments(usize),
    #[error("{0}: an amount is out of range")]
    Overflow(Subject),
    #[error("code {0:?} is not 1 to {CODE_BYTES_MAX} characters of a-z, 0-9, '_', '.' and '-'")]
    BadCode(String),
    #[error("the label of {0:?} is longer than {LABEL_BYTES_MAX} bytes or has control characters")]
    BadLabel(String),
}

/// What a broken rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Line(LineKey),
    Cart,
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(key) => write!(f, "line {key}"),
            Self::Cart => f.write_str("the cart"),
        }
    }
}

impl Broken {
    /// For the quote, the log and the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NegativePrice(_) => "negative_price",
            Self::BelowFloor { .. } => "below_floor",
            Self::DiscountCap { .. } => "discount_cap",
            Self::UnknownLine(_) => "unknown_line",
            Self::UnitPriceOnCart => "unit_price_on_cart",
            Self::TooManyAdjustments(_) => "too_many_adjustments",
            Self::Overflow(_) => "overflow",
            Self::BadCode(_) => "bad_code",
            Self::BadLabel(_) => "bad_label",
        }
    }
}

impl Quote {
    /// The cart at the merchant's prices. An amount that does not fit (or a negative price, which the region never
    /// lets in) is an error: such a cart cannot be sold.
    pub fn base(
        currency: Currency,
        country: Option<Country>,
        lines: Vec<(LineKey, u32, Listed)>,
    ) -> Result<Self, AmountOverflow> {
        let _ = (currency, country, lines);
        todo!()
    }

    /// Applies what one plugin said, all or nothing. `floors` has one entry per line of the quote: the least price
    /// of one unit, if the merchant set one.
    pub fn apply(
        &mut self,
        plugin: &PluginName,
        release: u32,
        adjustments: &[Adjustment],
        floors: &[Option<Minor>],
        guard: &Guard,
    ) -> Result<(), Broken> {
        let _ = (plugin, release, adjustments, floors, guard);
        todo!()
    }
}

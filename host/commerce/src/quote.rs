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
use crate::journal::CallId;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Index of the line in [`Quote::lines`].
    Line(usize),
    /// The whole cart, after all lines.
    Cart,
}

/// How an adjustment changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustEffect {
    /// Basis points of the running amount: -1000 is ten per cent off.
    Percent(i32),
    /// Added to the running amount.
    Amount(Minor),
    /// Replaces the price of one unit, and with it everything that came before on the line; lines only.
    UnitPrice(Minor),
}

/// One thing that a pricing plugin says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// A plugin that was left out, and why: a discount is never missing in silence. Whoever holds the cart may see it, so
/// it names the failure and does not describe it: the text of a fault is the merchant's, in the journal, under the
/// name of the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    pub plugin: PluginName,
    pub release: u32,
    pub hook: Hook,
    /// Machine-readable: `trap`, `deadline`, `memory`, `negative_price`…
    pub reason: String,
    /// None if a breaker kept the plugin from being called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallId>,
    /// The release that was asked in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<u32>,
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
        let mut quote = Self {
            currency,
            country,
            lines: Vec::with_capacity(lines.len()),
            adjustments: Vec::new(),
            subtotal: Minor::ZERO,
            total: Minor::ZERO,
            price_version: 0,
            fallbacks: Vec::new(),
            unavailable: Vec::new(),
        };
        for (line, quantity, listed) in lines {
            let unit_price = listed.price.price;
            if unit_price.is_negative() {
                return Err(AmountOverflow);
            }
            let amount = unit_price.times(quantity)?;
            quote.subtotal = quote.subtotal.plus(amount)?;
            quote.price_version = quote.price_version.max(listed.price_version);
            quote.lines.push(QuoteLine {
                line,
                title: listed.product.title.clone(),
                quantity,
                unit_price,
                amount,
                adjustments: Vec::new(),
                total: amount,
            });
        }
        quote.total = quote.subtotal;
        Ok(quote)
    }

    /// Applies what one plugin said, all or nothing; its words become the quote's. `floors` has one entry per line of the quote: the least price
    /// of one unit, if the merchant set one.
    pub fn apply(
        &mut self,
        plugin: &PluginName,
        release: u32,
        adjustments: Vec<Adjustment>,
        floors: &[Option<Minor>],
        guard: &Guard,
    ) -> Result<(), Broken> {
        assert_eq!(
            floors.len(),
            self.lines.len(),
            "the caller names a floor, or none, for each line of the quote"
        );
        if adjustments.len() > ADJUSTMENTS_MAX {
            return Err(Broken::TooManyAdjustments(adjustments.len()));
        }
        let mut draft = Draft::of(self).map_err(|_| Broken::Overflow(Subject::Cart))?;
        for adjustment in &adjustments {
            check_words(adjustment)?;
            if let Target::Line(index) = adjustment.target {
                let line = self.lines.get(index).ok_or(Broken::UnknownLine(index))?;
                draft.adjust_line(index, line, adjustment.effect)?;
            }
        }
        draft.sum_up()?;
        for adjustment in &adjustments {
            if adjustment.target == Target::Cart {
                draft.adjust_cart(adjustment.effect)?;
            }
        }
        draft.keep_guard(&self.lines, floors, guard)?;
        self.take(draft, plugin, release, adjustments);
        Ok(())
    }

    /// The guard has let the draft through: nothing below can fail.
    fn take(&mut self, draft: Draft, plugin: &PluginName, release: u32, adjustments: Vec<Adjustment>) {
        let mut line_changes = draft.line_changes.into_iter();
        let mut cart_changes = draft.cart_changes.into_iter();
        for adjustment in adjustments {
            let (changes, applied) = match adjustment.target {
                Target::Line(index) => (&mut line_changes, &mut self.lines[index].adjustments),
                Target::Cart => (&mut cart_changes, &mut self.adjustments),
            };
            applied.push(Applied {
                plugin: plugin.clone(),
                release,
                code: adjustment.code,
                label: adjustment.label,
                amount: changes.next().expect("the draft has one change for each adjustment of its kind"),
            });
        }
        for (line, total) in self.lines.iter_mut().zip(draft.line_totals) {
            line.total = total;
        }
        self.subtotal = draft.subtotal;
        self.total = draft.total;
    }
}

/// The totals as they would become, and what each adjustment would change.
struct Draft {
    line_totals: Vec<Minor>,
    line_changes: Vec<Minor>,
    /// What earlier plugins and this one did at cart level.
    cart_adjusted: Minor,
    cart_changes: Vec<Minor>,
    subtotal: Minor,
    total: Minor,
}

impl Draft {
    fn of(quote: &Quote) -> Result<Self, AmountOverflow> {
        Ok(Self {
            line_totals: quote.lines.iter().map(|line| line.total).collect(),
            line_changes: Vec::new(),
            cart_adjusted: quote.total.minus(quote.subtotal)?,
            cart_changes: Vec::new(),
            subtotal: quote.subtotal,
            total: quote.total,
        })
    }

    fn adjust_line(&mut self, index: usize, line: &QuoteLine, effect: AdjustEffect) -> Result<(), Broken> {
        let subject = || Subject::Line(line.line.clone());
        let overflow = |_: AmountOverflow| Broken::Overflow(subject());
        let running = self.line_totals[index];
        let after = match effect {
            AdjustEffect::Percent(bp) => running.basis_points(bp).and_then(|change| running.plus(change)),
            AdjustEffect::Amount(change) => running.plus(change),
            AdjustEffect::UnitPrice(price) => price.times(line.quantity),
        }
        .map_err(overflow)?;
        if after.is_negative() {
            return Err(Broken::NegativePrice(subject()));
        }
        self.line_changes.push(after.minus(running).map_err(overflow)?);
        self.line_totals[index] = after;
        Ok(())
    }

    fn sum_up(&mut self) -> Result<(), Broken> {
        let overflow = |_: AmountOverflow| Broken::Overflow(Subject::Cart);
        self.subtotal =
            self.line_totals.iter().try_fold(Minor::ZERO, |sum, total| sum.plus(*total)).map_err(overflow)?;
        self.total = self.subtotal.plus(self.cart_adjusted).map_err(overflow)?;
        Ok(())
    }

    fn adjust_cart(&mut self, effect: AdjustEffect) -> Result<(), Broken> {
        let overflow = |_: AmountOverflow| Broken::Overflow(Subject::Cart);
        let change = match effect {
            AdjustEffect::Percent(bp) => self.total.basis_points(bp).map_err(overflow)?,
            AdjustEffect::Amount(change) => change,
            AdjustEffect::UnitPrice(_) => return Err(Broken::UnitPriceOnCart),
        };
        self.total = self.total.plus(change).map_err(overflow)?;
        if self.total.is_negative() {
            return Err(Broken::NegativePrice(Subject::Cart));
        }
        self.cart_changes.push(change);
        Ok(())
    }

    /// A line that a plugin added may be free; beside that, no line goes below its floor or beyond the cap of a
    /// line, and the cart as a whole not below the sum of its floors or beyond the cap of a cart.
    ///
    /// A plugin's line counts in both sums with what is asked for it: nothing if it is free, but one that costs
    /// money must not pay for a discount on what the shopper added.
    fn keep_guard(&self, lines: &[QuoteLine], floors: &[Option<Minor>], guard: &Guard) -> Result<(), Broken> {
        let mut floor_sum: i128 = 0;
        let mut amount_sum: i128 = 0;
        for ((line, floor), total) in lines.iter().zip(floors).zip(&self.line_totals) {
            let floor = i128::from(floor.unwrap_or_default().0) * i128::from(line.quantity);
            if line.line.added_by.is_some() {
                floor_sum += floor.min(total.0.into());
                amount_sum += i128::from(total.0);
                continue;
            }
            let subject = || Subject::Line(line.line.clone());
            let reduced = *total < line.amount;
            if reduced && i128::from(total.0) < floor {
                return Err(Broken::BelowFloor { subject: subject(), total: *total, floor: minor(floor) });
            }
            let cap_bp = guard.line_discount_bp_max;
            if reduced && beyond_cap(*total, line.amount.0.into(), cap_bp) {
                return Err(Broken::DiscountCap {
                    subject: subject(),
                    total: *total,
                    amount: line.amount,
                    cap_bp,
                });
            }
            // A price that the merchant put below its own floor is the merchant's; the plugins may not lower it.
            floor_sum += floor.min(line.amount.0.into());
            amount_sum += i128::from(line.amount.0);
        }
        if self.total.is_negative() {
            return Err(Broken::NegativePrice(Subject::Cart));
        }
        if i128::from(self.total.0) < floor_sum {
            return Err(Broken::BelowFloor {
                subject: Subject::Cart,
                total: self.total,
                floor: minor(floor_sum),
            });
        }
        let cap_bp = guard.cart_discount_bp_max;
        if beyond_cap(self.total, amount_sum, cap_bp) {
            let amount = minor(amount_sum);
            return Err(Broken::DiscountCap { subject: Subject::Cart, total: self.total, amount, cap_bp });
        }
        Ok(())
    }
}

/// More than `cap_bp` off, exactly: no rounding in the merchant's disfavour.
fn beyond_cap(total: Minor, amount: i128, cap_bp: u32) -> bool {
    i128::from(total.0) * 10_000 < amount * (10_000 - i128::from(cap_bp.min(10_000)))
}

/// For messages only.
fn minor(amount: i128) -> Minor {
    Minor(i64::try_from(amount).unwrap_or(i64::MAX))
}

fn check_words(adjustment: &Adjustment) -> Result<(), Broken> {
    let Adjustment { code, label, .. } = adjustment;
    let in_code = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-');
    if code.is_empty() || code.len() > CODE_BYTES_MAX || !code.bytes().all(in_code) {
        return Err(Broken::BadCode(code.chars().take(CODE_BYTES_MAX).collect()));
    }
    if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(Broken::BadLabel(code.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

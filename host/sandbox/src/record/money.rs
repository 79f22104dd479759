//! What another answer does to the prices: computed by the same arithmetic and under the same guard as a quote.

use serde::Serialize;
use souk_commerce::cart::LineKey;
use souk_commerce::money::{AmountOverflow, Minor};
use souk_commerce::quote::Quote;

use super::recording::{Input, Line, Outcome, Recording};
use super::replay::Replayed;

/// The prices of a recorded pricing call with the recorded answer and with another.
///
/// The call began with what the plugins before it had left on each line; what they, or plugins after it, did to the
/// cart as a whole is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MoneyChange {
    /// The lines whose price is not the same, in the cart's order.
    pub lines: Vec<LineChange>,
    pub total_recorded: Minor,
    pub total_replayed: Minor,
    /// The rule of the price guard that dropped an answer, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_recorded: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_replayed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineChange {
    pub line: LineKey,
    pub title: String,
    pub quantity: u32,
    pub recorded: Minor,
    pub replayed: Minor,
}

impl MoneyChange {
    pub fn is_none(&self) -> bool {
        self.lines.is_empty() && self.total_recorded == self.total_replayed
    }
}

/// None where there is no price in it: not a pricing call, or its amounts are out of range.
pub fn money_change(recording: &Recording, replayed: &Replayed) -> Option<MoneyChange> {
    let Input::Pricing { lines } = &recording.input else { return None };
    let (ours, guard_recorded) = priced(recording, lines, &recording.outcome).ok()?;
    let (theirs, guard_replayed) = priced(recording, lines, &replayed.outcome).ok()?;
    let changed = ours.lines.iter().zip(&theirs.lines).filter(|(a, b)| a.total != b.total);
    let lines = changed
        .map(|(a, b)| LineChange {
            line: a.line.clone(),
            title: a.title.clone(),
            quantity: a.quantity,
            recorded: a.total,
            replayed: b.total,
        })
        .collect();
    Some(MoneyChange {
        lines,
        total_recorded: ours.total,
        total_replayed: theirs.total,
        guard_recorded,
        guard_replayed,
    })
}

/// The quote with this outcome, and the rule that it broke, if it did: then nothing of it is in the quote.
fn priced(
    recording: &Recording,
    lines: &[Line],
    outcome: &Outcome,
) -> Result<(Quote, Option<String>), AmountOverflow> {
    let owned: Vec<_> = lines.iter().map(Line::owned).collect();
    let base = owned.iter().map(|line| (line.key.clone(), line.quantity, line.listed.clone())).collect();
    let mut quote = Quote::base(recording.context.currency, recording.context.country.clone(), base)?;
    quote.subtotal = Minor::ZERO;
    for (priced, line) in quote.lines.iter_mut().zip(&owned) {
        priced.total = line.amount;
        quote.subtotal = quote.subtotal.plus(line.amount)?;
    }
    quote.total = quote.subtotal;
    let Outcome::Adjusted(adjustments) = outcome else { return Ok((quote, None)) };
    let floors: Vec<Option<Minor>> = owned.iter().map(|line| line.listed.price.floor).collect();
    // A recording without a guard was made where none was known; the platform's own always holds.
    let guard = recording.guard.unwrap_or_default();
    let broken =
        quote.apply(&recording.plugin, recording.release, adjustments.clone(), &floors, &guard).err();
    Ok((quote, broken.map(|broken| broken.name().to_owned())))
}

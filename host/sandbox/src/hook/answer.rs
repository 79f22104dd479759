//! The guest's answers, checked: counts, lengths, and that they name only what the call was about.
//!
//! What a *price* may be is not decided here but by the price guard of `souk-commerce`.

use std::collections::HashSet;

use souk_commerce::cart::LineKey;
use souk_commerce::id::{InvalidName, Sku};
use souk_commerce::money::Minor;
use souk_commerce::product::Listed;
use souk_commerce::quote::{AdjustEffect, Adjustment, Target};

use super::bindings::exports::souk::plugin::{cart, catalog, checkout, pricing};
use super::bindings::souk::plugin::types;
use super::plugin::Presentation;
use super::{CartOp, LineView};
use crate::fault::{Fault, bounded, is_obeyed};
use crate::limits::answer::{
    ADJUSTMENTS_PER_LINE_MAX, BADGE_BYTES_MAX, BADGES_MAX, CART_OPS_MAX, CODE_BYTES_MAX, NOTES_MAX,
    TEXT_BYTES_MAX, TITLE_BYTES_MAX,
};

pub(super) fn refusal(refusal: types::Refusal) -> Fault {
    match (code("the code of a refusal", &refusal.code), text("the message of a refusal", &refusal.message)) {
        (Ok(()), Ok(())) => Fault::Refused { code: refusal.code, message: refusal.message },
        (Err(fault), _) | (_, Err(fault)) => fault,
    }
}

pub(super) fn adjustments(answer: Vec<pricing::Adjustment>, lines: usize) -> Result<Vec<Adjustment>, Fault> {
    few("adjustments", answer.len(), (lines + 1).saturating_mul(ADJUSTMENTS_PER_LINE_MAX))?;
    answer
        .into_iter()
        .map(|adjustment| {
            Ok(Adjustment {
                target: match adjustment.target {
                    pricing::Target::Line(id) => Target::Line(position(id, lines)?),
                    pricing::Target::Cart => Target::Cart,
                },
                effect: match adjustment.effect {
                    pricing::Effect::Percent(basis_points) => AdjustEffect::Percent(basis_points),
                    pricing::Effect::Amount(amount) => AdjustEffect::Amount(Minor(amount)),
                    pricing::Effect::UnitPrice(price) => AdjustEffect::UnitPrice(Minor(price)),
                },
                code: adjustment.code,
                label: adjustment.label,
            })
        })
        .collect()
}

pub(super) fn presentations(
    answer: Vec<catalog::Presentation>,
    products: &[Listed],
) -> Result<Vec<Presentation>, Fault> {
    few("presentations", answer.len(), products.len())?;
    let mut unseen: HashSet<&str> = products.iter().map(|listed| listed.product.sku.as_str()).collect();
    answer
        .into_iter()
        .map(|presentation| {
            if !unseen.remove(presentation.sku.as_str()) {
                let sku = bounded(&presentation.sku, CODE_BYTES_MAX);
                return Err(Fault::BadValue(format!("{sku:?} is not of this page, or presented twice")));
            }
            few("badges", presentation.badges.len(), BADGES_MAX)?;
            for badge in &presentation.badges {
                short("a badge", badge, BADGE_BYTES_MAX)?;
            }
            if let Some(title) = &presentation.title {
                short("a title", title, TITLE_BYTES_MAX)?;
            }
            Ok(Presentation {
                sku: sku(&presentation.sku)?,
                hidden: presentation.hidden,
                rank: presentation.rank,
                badges: presentation.badges,
                title: presentation.title,
            })
        })
        .collect()
}

pub(super) fn cart_ops(answer: Vec<cart::CartOp>, lines: &[LineView<'_>]) -> Result<Vec<CartOp>, Fault> {
    few("cart operations", answer.len(), CART_OPS_MAX)?;
    answer
        .into_iter()
        .map(|op| {
            Ok(match op {
                cart::CartOp::Cap(quantity) => CartOp::Cap(quantity),
                cart::CartOp::Put((text, quantity)) => CartOp::Put { sku: sku(&text)?, quantity },
                cart::CartOp::Remove(id) => {
                    CartOp::Remove(LineKey::clone(lines[position(id, lines.len())?].key))
                }
            })
        })
        .collect()
}

/// Code and text of each note.
pub(super) fn notes(answer: Vec<checkout::Note>) -> Result<Vec<(String, String)>, Fault> {
    few("notes", answer.len(), NOTES_MAX)?;
    answer
        .into_iter()
        .map(|note| {
            code("the code of a note", &note.code)?;
            text("the text of a note", &note.text)?;
            Ok((note.code, note.text))
        })
        .collect()
}

fn position(id: u32, lines: usize) -> Result<usize, Fault> {
    match usize::try_from(id) {
        Ok(position) if position < lines => Ok(position),
        _ => Err(Fault::BadValue(format!("there is no line {id} in this call"))),
    }
}

fn few(what: &str, count: usize, count_max: usize) -> Result<(), Fault> {
    if count <= count_max {
        Ok(())
    } else {
        Err(Fault::BadValue(format!("{count} {what} are more than {count_max}")))
    }
}

fn sku(text: &str) -> Result<Sku, Fault> {
    // The error would quote all of it, however long.
    let name = bounded(text, CODE_BYTES_MAX);
    text.parse().map_err(|error: InvalidName| {
        Fault::BadValue(format!("{} {name:?} is not valid: {}", error.kind, error.rule))
    })
}

fn code(what: &str, text: &str) -> Result<(), Fault> {
    let valid = (1..=CODE_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-'));
    if valid {
        Ok(())
    } else {
        let shown = bounded(text, CODE_BYTES_MAX);
        Err(Fault::BadValue(format!(
            "{what}, {shown:?}, is not 1 to {CODE_BYTES_MAX} of a-z, 0-9, '_', '.' and '-'"
        )))
    }
}

fn text(what: &str, text: &str) -> Result<(), Fault> {
    short(what, text, TEXT_BYTES_MAX)
}

/// What a shopper will read: bounded, and without what a terminal, a log or a page would obey.
fn short(what: &str, text: &str, bytes_max: usize) -> Result<(), Fault> {
    if text.len() > bytes_max {
        Err(Fault::BadValue(format!("{what} has {} bytes, more than {bytes_max}", text.len())))
    } else if text.chars().any(is_obeyed) {
        Err(Fault::BadValue(format!("{what} has control characters")))
    } else {
        Ok(())
    }
}

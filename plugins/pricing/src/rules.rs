//! The rules, in the order of `README.md`.

use souk_sdk::{Adjustment, Context, Effect, Line, Minor, Target};

use crate::settings::{CountryRule, CouponRule, SegmentRule, Settings, is_for};

/// Everything that the settings say about these lines.
pub fn adjust(settings: &Settings, ctx: &Context, lines: &[Line]) -> Vec<Adjustment> {
    let mut adjustments = Vec::with_capacity(lines.len());
    let mut goods: Minor = 0;
    for line in lines {
        let first = adjustments.len();
        adjust_line(settings, ctx, line, &mut adjustments);
        let total =
            adjustments[first..].iter().fold(line.amount, |running, said| after(running, &said.effect));
        goods = goods.saturating_add(total);
    }
    let mut running = goods;
    for coupon in settings.coupons.iter().filter(|coupon| holds(coupon, ctx, goods)) {
        if let Some(said) = redeem(coupon, running) {
            running = after(running, &said.effect);
            adjustments.push(said);
        }
    }
    adjustments
}

fn adjust_line(settings: &Settings, ctx: &Context, line: &Line, said: &mut Vec<Adjustment>) {
    if line.added_by.is_some() && settings.gifts_free {
        said.push(Adjustment::unit_price(line, 0, "gift", "Gift"));
        return;
    }
    said.extend(quantity_break(settings, line));
    said.extend(segment(settings, ctx, line));
    let countries = settings.countries.iter().filter(|rule| rule.country == ctx.country);
    let countries = countries.filter(|rule| is_for(rule.sku.as_ref(), rule.tag.as_ref(), line));
    said.extend(countries.map(|rule| country(rule, line)));
}

fn quantity_break(settings: &Settings, line: &Line) -> Option<Adjustment> {
    let rule =
        settings.quantity_breaks.iter().find(|rule| is_for(rule.sku.as_ref(), rule.tag.as_ref(), line))?;
    // The breaks rise, so the last that holds is the greatest.
    let step = rule.breaks.iter().rfind(|step| step.at <= line.quantity)?;
    let label =
        rule.label.clone().unwrap_or_else(|| format!("{} or more: {} off", step.at, percent(step.off_bp)));
    Some(Adjustment::percent(line, off(step.off_bp), "quantity_break", &label))
}

fn segment(settings: &Settings, ctx: &Context, line: &Line) -> Option<Adjustment> {
    let mut best: Option<&SegmentRule> = None;
    for rule in settings.segments.iter().filter(|rule| ctx.segments.contains(&rule.segment)) {
        if best.is_none_or(|best| rule.off_bp > best.off_bp) {
            best = Some(rule);
        }
    }
    let rule = best?;
    let label = rule.label.clone().unwrap_or_else(|| format!("Your price: {} off", percent(rule.off_bp)));
    Some(Adjustment::percent(line, off(rule.off_bp), "segment", &label))
}

fn country(rule: &CountryRule, line: &Line) -> Adjustment {
    let label = rule.label.clone().unwrap_or_else(|| {
        let kind = if rule.change_bp > 0 { "surcharge" } else { "off" };
        format!("{}: {} {kind}", rule.country, percent(rule.change_bp.unsigned_abs()))
    });
    Adjustment::percent(line, rule.change_bp, "country", &label)
}

fn holds(coupon: &CouponRule, ctx: &Context, goods: Minor) -> bool {
    ctx.coupons.contains(&coupon.code)
        && goods >= coupon.min_total
        && coupon.not_before.is_none_or(|from| from <= ctx.now_ms)
        && coupon.not_after.is_none_or(|to| ctx.now_ms <= to)
}

fn redeem(coupon: &CouponRule, running: Minor) -> Option<Adjustment> {
    let code = format!("coupon.{}", coupon.code.to_ascii_lowercase());
    let label = coupon.label.clone().unwrap_or_else(|| format!("Coupon {}", coupon.code));
    match (coupon.off_bp, coupon.amount_off) {
        (Some(off_bp), _) => Some(Adjustment::percent(Target::Cart, off(off_bp), &code, &label)),
        (_, Some(amount)) if running > 0 => {
            Some(Adjustment::amount(Target::Cart, -amount.min(running), &code, &label))
        }
        _ => None,
    }
}

fn off(off_bp: u32) -> i32 {
    -i32::try_from(off_bp).expect("checked settings have off_bp up to 10000")
}

/// What the host will make of it: the same rule, rounded half away from zero.
fn after(running: Minor, effect: &Effect) -> Minor {
    match effect {
        Effect::Percent(bp) => {
            let exact = i128::from(running) * i128::from(*bp);
            let change = (exact + 5_000 * exact.signum()) / 10_000;
            running.saturating_add(Minor::try_from(change).unwrap_or(0))
        }
        Effect::Amount(change) => running.saturating_add(*change),
        // Only gifts get a unit price here, and it is 0.
        Effect::UnitPrice(_) => 0,
    }
}

/// 1250 as `12.5 %`.
fn percent(bp: u32) -> String {
    match (bp / 100, bp % 100) {
        (whole, 0) => format!("{whole} %"),
        (whole, part) if part % 10 == 0 => format!("{whole}.{} %", part / 10),
        (whole, part) => format!("{whole}.{part:02} %"),
    }
}

//! What a call is about, in the host's own values: the way from a live call into a recording and back into a call.

use std::sync::Arc;

use souk_commerce::cart::LineKey;
use souk_commerce::money::Minor;
use souk_commerce::product::{Listed, PriceRow, Product};
use souk_commerce::quote::Adjustment;
use souk_commerce::site::Hook;

use super::recording::{Good, Input, Line, Note, Outcome};
use crate::fault::Fault;
use crate::hook::{CartOp, HookPlugin, Invocation, LineView, Presentation, Requested};

/// The arguments of one call, owned. Products are shared with the site's catalogue, so that holding one is cheap.
#[derive(Debug, Clone)]
pub enum Subject {
    Catalog(Vec<Listed>),
    Pricing(Vec<LineOf>),
    Cart(Vec<LineOf>, Requested),
    Checkout(Vec<LineOf>, Minor),
}

/// An owned [`LineView`].
#[derive(Debug, Clone)]
pub struct LineOf {
    pub key: LineKey,
    pub quantity: u32,
    pub listed: Listed,
    pub amount: Minor,
}

impl LineOf {
    pub(crate) fn all(views: &[LineView<'_>]) -> Vec<Self> {
        views
            .iter()
            .map(|view| Self {
                key: view.key.clone(),
                quantity: view.quantity,
                listed: view.listed.clone(),
                amount: view.amount,
            })
            .collect()
    }

    fn view(&self) -> LineView<'_> {
        LineView { key: &self.key, quantity: self.quantity, listed: &self.listed, amount: self.amount }
    }
}

impl Subject {
    pub fn hook(&self) -> Hook {
        match self {
            Self::Catalog(_) => Hook::Catalog,
            Self::Pricing(_) => Hook::Pricing,
            Self::Cart(..) => Hook::Cart,
            Self::Checkout(..) => Hook::Checkout,
        }
    }

    /// Products or lines.
    pub fn len(&self) -> usize {
        match self {
            Self::Catalog(products) => products.len(),
            Self::Pricing(lines) | Self::Cart(lines, _) | Self::Checkout(lines, _) => lines.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The call that this is the subject of. `Err` is the host's own trouble, which is nobody's outcome.
    pub fn ask(&self, plugin: &HookPlugin, invocation: &Invocation<'_>) -> Result<Outcome, Fault> {
        match self {
            Self::Catalog(products) => outcome(&plugin.present(invocation, products)),
            Self::Pricing(lines) => outcome(&plugin.adjust(invocation, &views(lines))),
            Self::Cart(lines, change) => outcome(&plugin.review_change(invocation, &views(lines), change)),
            Self::Checkout(lines, total) => outcome(&plugin.review_order(invocation, &views(lines), *total)),
        }
    }

    pub(crate) fn input(&self) -> Input {
        let all = |lines: &[LineOf]| lines.iter().map(Line::of).collect();
        match self {
            Self::Catalog(products) => Input::Catalog { products: products.iter().map(Good::of).collect() },
            Self::Pricing(lines) => Input::Pricing { lines: all(lines) },
            Self::Cart(lines, change) => Input::Cart { lines: all(lines), change: change.clone() },
            Self::Checkout(lines, total) => Input::Checkout { lines: all(lines), total: *total },
        }
    }
}

impl From<&Input> for Subject {
    fn from(input: &Input) -> Self {
        let all = |lines: &[Line]| lines.iter().map(Line::owned).collect();
        match input {
            Input::Catalog { products } => Self::Catalog(products.iter().map(Good::listed).collect()),
            Input::Pricing { lines } => Self::Pricing(all(lines)),
            Input::Cart { lines, change } => Self::Cart(all(lines), change.clone()),
            Input::Checkout { lines, total } => Self::Checkout(all(lines), *total),
        }
    }
}

impl Line {
    fn of(line: &LineOf) -> Self {
        Self {
            line: line.key.clone(),
            quantity: line.quantity,
            amount: line.amount,
            product: Good::of(&line.listed),
        }
    }

    pub(crate) fn owned(&self) -> LineOf {
        LineOf {
            key: self.line.clone(),
            quantity: self.quantity,
            listed: self.product.listed(),
            amount: self.amount,
        }
    }
}

impl Good {
    pub(crate) fn of(listed: &Listed) -> Self {
        let product = &listed.product;
        Self {
            sku: product.sku.clone(),
            title: product.title.clone(),
            price: listed.price.price,
            compare_at: listed.price.compare_at,
            floor: listed.price.floor,
            tags: product.tags.clone(),
            attributes: product.attributes.clone(),
            stock: listed.stock,
        }
    }

    /// What no guest sees (description, image, version of the price) is not recorded and comes back empty.
    pub(crate) fn listed(&self) -> Listed {
        Listed {
            product: Arc::new(Product {
                sku: self.sku.clone(),
                title: self.title.clone(),
                description: String::new(),
                tags: self.tags.clone(),
                attributes: self.attributes.clone(),
                image: None,
            }),
            price: PriceRow { price: self.price, compare_at: self.compare_at, floor: self.floor },
            price_version: 0,
            stock: self.stock,
        }
    }

    pub(crate) fn text_bytes(&self) -> usize {
        let attributes: usize = self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        let tags: usize = self.tags.iter().map(String::len).sum();
        self.sku.as_str().len() + self.title.len() + tags + attributes
    }
}

fn views(lines: &[LineOf]) -> Vec<LineView<'_>> {
    lines.iter().map(LineOf::view).collect()
}

/// An answer of a hook that can stand in a recording.
pub(crate) trait Answer {
    fn outcome(&self) -> Outcome;
}

impl Answer for Vec<Presentation> {
    fn outcome(&self) -> Outcome {
        Outcome::Presented(self.clone())
    }
}

impl Answer for Vec<Adjustment> {
    fn outcome(&self) -> Outcome {
        Outcome::Adjusted(self.clone())
    }
}

impl Answer for Vec<CartOp> {
    fn outcome(&self) -> Outcome {
        Outcome::Changed(self.clone())
    }
}

impl Answer for Vec<(String, String)> {
    fn outcome(&self) -> Outcome {
        let note = |(code, text): &(String, String)| Note { code: code.clone(), text: text.clone() };
        Outcome::Noted(self.iter().map(note).collect())
    }
}

/// `Err` for what says nothing about the plugin and can be recorded no more than replayed.
pub(crate) fn outcome<R: Answer>(answer: &Result<R, Fault>) -> Result<Outcome, Fault> {
    match answer {
        Ok(answer) => Ok(answer.outcome()),
        Err(fault @ (Fault::Busy | Fault::Internal(_))) => Err(fault.clone()),
        Err(fault) => Ok(Outcome::of_fault(fault)),
    }
}

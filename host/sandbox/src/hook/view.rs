//! The host's values as the guest sees them: borrowed, so that a call copies them once, into the guest's memory.

use souk_commerce::product::Listed;

use super::bindings::souk::plugin::types;
use super::guest::stock;
use super::{Invocation, LineView};

/// The lists inside a call's values, flattened into three vectors: a vector per product would cost more than the
/// lines themselves.
pub(super) struct Words<'a> {
    tags: Vec<&'a str>,
    attributes: Vec<(&'a str, &'a str)>,
    segments: Vec<&'a str>,
    coupons: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn of(
        invocation: &Invocation<'a>,
        products: impl Iterator<Item = &'a Listed> + Clone,
    ) -> Self {
        let (tags, attributes) = products.clone().fold((0, 0), |(tags, attributes), listed| {
            (tags + listed.product.tags.len(), attributes + listed.product.attributes.len())
        });
        let mut words = Self {
            tags: Vec::with_capacity(tags),
            attributes: Vec::with_capacity(attributes),
            segments: invocation.call.segments.iter().map(String::as_str).collect(),
            coupons: invocation.call.coupons.iter().map(|coupon| coupon.as_str()).collect(),
        };
        for listed in products {
            words.tags.extend(listed.product.tags.iter().map(String::as_str));
            words
                .attributes
                .extend(listed.product.attributes.iter().map(|(name, value)| (&**name, &**value)));
        }
        words
    }

    pub(super) fn context<'w>(&'w self, invocation: &Invocation<'w>) -> types::Context<'w> {
        let call = invocation.call;
        types::Context {
            now_ms: call.now_ms,
            currency: call.currency.code(),
            country: call.country.as_ref().map_or("", |country| country.as_str()),
            region: call.region.as_deref(),
            language: &call.language,
            segments: &self.segments,
            customer: call.customer.as_deref(),
            coupons: &self.coupons,
            seed: call.seed,
            settings: invocation.settings,
        }
    }

    /// `products` must be those that these words were collected from, in the same order.
    pub(super) fn products<'w>(
        &'w self,
        products: impl Iterator<Item = &'w Listed>,
    ) -> Vec<types::ProductParam<'w>> {
        let mut cursor = self.cursor();
        products.map(|listed| cursor.product(listed)).collect()
    }

    /// `lines` must be those that these words were collected from, in the same order.
    pub(super) fn lines<'w>(&'w self, lines: &[LineView<'w>]) -> Vec<types::Line<'w>> {
        let mut cursor = self.cursor();
        lines
            .iter()
            .zip(0..)
            .map(|(line, id)| types::Line {
                id,
                product: cursor.product(line.listed),
                quantity: line.quantity,
                amount: line.amount.0,
                added_by: line.key.added_by.as_ref().map(|plugin| plugin.as_str()),
            })
            .collect()
    }

    fn cursor(&self) -> Cursor<'_> {
        Cursor { tags: &self.tags, attributes: &self.attributes }
    }
}

struct Cursor<'w> {
    tags: &'w [&'w str],
    attributes: &'w [(&'w str, &'w str)],
}

impl<'w> Cursor<'w> {
    fn product(&mut self, listed: &'w Listed) -> types::ProductParam<'w> {
        let product = &*listed.product;
        let (tags, rest) = self.tags.split_at(product.tags.len());
        self.tags = rest;
        let (attributes, rest) = self.attributes.split_at(product.attributes.len());
        self.attributes = rest;
        types::ProductParam {
            sku: product.sku.as_str(),
            title: &product.title,
            price: listed.price.price.0,
            compare_at: listed.price.compare_at.map(|amount| amount.0),
            tags,
            attributes,
            stock: stock(listed.stock),
        }
    }
}

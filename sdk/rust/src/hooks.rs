//! The four hooks as traits, and the macros that export a type as a plugin.

use crate::bindings::{cart, catalog, checkout, pricing};
use crate::{Adjustment, CartOp, Change, Context, Line, Note, OrderDraft, Presentation, Product, Refusal};

/// What a hook answers: a decision, or a "no" with a sentence for the shopper.
pub type Answer<T> = Result<T, Refusal>;

/// Decorates a page of products: hides, ranks, badges, relabels. It cannot invent a product.
pub trait Catalog {
    /// Products without a [`Presentation`] are shown as they are.
    fn present(ctx: &Context, products: &[Product]) -> Answer<Vec<Presentation>>;
}

/// Changes prices by adjustments.
pub trait Pricing {
    /// Line adjustments first, in the order given, each on its line's running amount; then the cart's. The price
    /// guard takes the whole answer or nothing of it.
    fn adjust(ctx: &Context, lines: &[Line]) -> Answer<Vec<Adjustment>>;
}

/// Reviews a change to a cart before it is accepted.
pub trait Cart {
    /// An empty list accepts the change as it is; a refusal leaves the cart untouched. `before` is the cart without
    /// the change.
    fn review(ctx: &Context, before: &[Line], change: &Change) -> Answer<Vec<CartOp>>;
}

/// The last look at an order before it is placed.
pub trait Checkout {
    /// Notes are kept with the order; a refusal stops the checkout and loses nothing.
    fn review(ctx: &Context, draft: &OrderDraft) -> Answer<Vec<Note>>;
}

impl<T: Catalog> catalog::exports::souk::plugin::catalog::Guest for T {
    fn present(ctx: Context, products: Vec<Product>) -> Answer<Vec<Presentation>> {
        report_panics();
        <T as Catalog>::present(&ctx, &products)
    }
}

impl<T: Pricing> pricing::exports::souk::plugin::pricing::Guest for T {
    fn adjust(ctx: Context, lines: Vec<Line>) -> Answer<Vec<Adjustment>> {
        report_panics();
        <T as Pricing>::adjust(&ctx, &lines)
    }
}

impl<T: Cart> cart::exports::souk::plugin::cart::Guest for T {
    fn review(ctx: Context, before: Vec<Line>, change: Change) -> Answer<Vec<CartOp>> {
        report_panics();
        <T as Cart>::review(&ctx, &before, &change)
    }
}

impl<T: Checkout> checkout::exports::souk::plugin::checkout::Guest for T {
    fn review(ctx: Context, draft: OrderDraft) -> Answer<Vec<Note>> {
        report_panics();
        <T as Checkout>::review(&ctx, &draft)
    }
}

/// A panic in Wasm is a trap without a word. This gives the merchant's log the place and the reason first.
fn report_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| crate::host::error(&panic.to_string())));
}

/// Exports a type that implements [`Catalog`](crate::Catalog) as a catalogue plugin.
#[macro_export]
macro_rules! export_catalog {
    ($plugin:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::catalog::export!($plugin with_types_in $crate::bindings::catalog);
    };
}

/// Exports a type that implements [`Pricing`](crate::Pricing) as a pricing plugin.
#[macro_export]
macro_rules! export_pricing {
    ($plugin:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::pricing::export!($plugin with_types_in $crate::bindings::pricing);
    };
}

/// Exports a type that implements [`Cart`](crate::Cart) as a cart plugin.
#[macro_export]
macro_rules! export_cart {
    ($plugin:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::cart::export!($plugin with_types_in $crate::bindings::cart);
    };
}

/// Exports a type that implements [`Checkout`](crate::Checkout) as a checkout plugin.
#[macro_export]
macro_rules! export_checkout {
    ($plugin:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::checkout::export!($plugin with_types_in $crate::bindings::checkout);
    };
}

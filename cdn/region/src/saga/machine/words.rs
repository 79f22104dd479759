//! The words of the machine, as they are stored and shown.

macro_rules! named {
    ($name:ident: $($variant:ident = $text:literal),*) => {
        impl $name {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// As it is stored.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            pub(crate) fn by_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.name() == name)
            }
        }
    };
}

named!(By: Invoice = "invoice", Provider = "provider");
named!(Money: Unasked = "unasked", Authorizing = "authorizing", Authorized = "authorized", Capturing = "capturing",
    Captured = "captured", Voiding = "voiding", Void = "void", Refunding = "refunding", Refunded = "refunded");
named!(Goods: Held = "held", Released = "released", Gone = "gone");
named!(Op: Authorize = "authorize", Capture = "capture", Void = "void", Refund = "refund");
named!(Event: Placed = "order.placed", Declined = "checkout.declined", Captured = "order.captured",
    Fulfilled = "order.fulfilled", Cancelled = "order.cancelled", Voided = "payment.voided", Refunded = "order.refunded",
    CaptureFailed = "payment.capture_failed", RefundRefused = "payment.refund_refused");
named!(Wish: Capture = "capture", Fulfil = "fulfil", Cancel = "cancel", Refund = "refund");

/// Who takes the money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The shop, outside of Souk: nothing is asked of anybody, and what the merchant says has happened.
    Invoice,
    Provider,
}

/// Where the money is, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Money {
    Unasked,
    Authorizing,
    Authorized,
    Capturing,
    Captured,
    Voiding,
    /// None is held and none was taken.
    Void,
    Refunding,
    Refunded,
}

/// Where the units of stock are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goods {
    /// Taken from what is available.
    Held,
    /// Put back.
    Released,
    /// Sent to the shopper.
    Gone,
}

/// What can be asked of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Authorize,
    Capture,
    Void,
    Refund,
}

/// What a merchant can want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Capture,
    Fulfil,
    Cancel,
    Refund,
}

/// What the world learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Placed,
    Declined,
    Captured,
    Fulfilled,
    Cancelled,
    Voided,
    Refunded,
    CaptureFailed,
    /// The shopper has not the money back, and the provider has said why not. It is asked again; somebody should look.
    RefundRefused,
}

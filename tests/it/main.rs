//! Everything that looks at the product from outside, in one binary: one link step, one place to look.

mod hostile;
mod replay;
mod shop;
mod tidy;

#[path = "../guests/wat.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the sandbox's own tests, which use the rest")]
mod guests;

//! Everything that looks at the product from outside, in one binary: one link step, one place to look.

mod shop;
mod tidy;

//! The hostile corpus: components that try to hurt their host or their neighbours, each with the outcome that is
//! expected of it by name. Made from WebAssembly text and bytes on the spot, so that no compiler is needed.
//!
//! [`hooks`]: pricing plugins that misbehave when they are called. [`bombs`]: what must not get in at all.
//! [`http`]: `wasi:http` components. Run by `tests/it/corpus.rs`; a row of `docs/THREATS.md` names each.

pub mod bombs;
pub mod hooks;
pub mod http;

/// One hostile component.
#[derive(Clone, Copy)]
pub struct Hostile {
    /// Kebab case, as a plugin's name is.
    pub name: &'static str,
    pub make: fn() -> Vec<u8>,
    pub expected: Expected,
}

/// How a hostile component must end.
#[derive(Debug, Clone, Copy)]
pub enum Expected {
    /// Not let in: the region's answer has one of these codes.
    Refused(&'static [&'static str]),
    /// Let in; each call ends by one of these names and changes no price.
    Fault(&'static [&'static str]),
    /// Let in, and gets no more than any plugin: the call goes well.
    Contained,
}

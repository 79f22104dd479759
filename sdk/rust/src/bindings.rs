//! What `wit-bindgen` makes of `sdk/wit`: the types once, and one module per hook whose `export!` makes a plugin.
//!
//! A component may export several hooks: each world is described in a section of its own, and the component is their
//! union. Plugins use the traits of this crate instead.
#![allow(
    unsafe_code,
    reason = "the canonical ABI is pointers; all of it is generated, and nothing is added by hand"
)]
#![allow(
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::all,
    reason = "generated code has its own style"
)]

/// The types and the host's functions, shared by all hooks.
pub mod shared {
    wit_bindgen::generate!({
        inline: "
            package souk:sdk;
            world shared {
                import souk:plugin/types@0.1.0;
                import souk:plugin/host@0.1.0;
            }
        ",
        path: "../wit",
        world: "souk:sdk/shared",
        generate_all,
        generate_unused_types: true,
        additional_derives: [PartialEq, Eq],
    });
}

macro_rules! hook {
    ($(#[$doc:meta])* $hook:ident, $world:literal, $module:literal) => {
        $(#[$doc])*
        pub mod $hook {
            wit_bindgen::generate!({
                path: "../wit",
                world: $world,
                pub_export_macro: true,
                default_bindings_module: $module,
                generate_unused_types: true,
                additional_derives: [PartialEq, Eq],
                with: {
                    "souk:plugin/types@0.1.0": crate::bindings::shared::souk::plugin::types,
                    "souk:plugin/host@0.1.0": crate::bindings::shared::souk::plugin::host,
                },
            });
        }
    };
}

hook!(catalog, "catalog-plugin", "souk_sdk::bindings::catalog");
hook!(pricing, "pricing-plugin", "souk_sdk::bindings::pricing");
hook!(cart, "cart-plugin", "souk_sdk::bindings::cart");
hook!(checkout, "checkout-plugin", "souk_sdk::bindings::checkout");

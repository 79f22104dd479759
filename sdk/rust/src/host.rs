//! What a plugin may ask of its host. Every answer is recorded, so that a call can be replayed, and all of them count
//! against one budget per call.
//!
//! In a native build the answers come from [`testing`](crate::testing).

use crate::Product;
#[cfg(target_arch = "wasm32")]
use crate::bindings::shared::souk::plugin::host as wit;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing as wit;

pub use crate::bindings::shared::souk::plugin::host::Level;

/// A line for the merchant's log. Longer than 1 KiB is cut; more than 16 KiB in one call ends the call.
pub fn log(level: Level, text: &str) {
    wit::log(level, text);
}

/// A log line for whoever develops the plugin.
pub fn debug(text: &str) {
    log(Level::Debug, text);
}

/// A log line about the ordinary.
pub fn info(text: &str) {
    log(Level::Info, text);
}

/// A log line about something that the merchant should look at.
pub fn warn(text: &str) {
    log(Level::Warn, text);
}

/// A log line about something that went wrong.
pub fn error(text: &str) {
    log(Level::Error, text);
}

/// A product of the same site, or none.
pub fn lookup_product(sku: &str) -> Option<Product> {
    wit::lookup_product(sku)
}

/// A value of the site's edge data, or none.
pub fn kv_get(key: &str) -> Option<Vec<u8>> {
    wit::kv_get(key)
}

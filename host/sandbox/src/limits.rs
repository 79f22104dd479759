//! Every number that bounds a guest, with the sentence that derives it.

use std::time::Duration;

/// What one call of a hook may use. The defaults are the platform's; a site's plan may raise them.
#[derive(Debug, Clone)]
pub struct HookLimits {
    /// Linear memory of one instance, all its memories together. A Rust plugin uses 1.1 MiB, QuickJS 1.6 MiB,
    /// StarlingMonkey 10.1 MiB; beyond that a `memory.copy` alone could outlast the deadline (62 MB: 134 ms).
    pub memory_bytes_max: usize,
    /// Elements of all tables together. StarlingMonkey has 12,000.
    pub table_elements_max: usize,
    /// Processor time for one hook of the whole chain: instantiate, run and post-return of every plugin.
    /// The plugins share it.
    pub deadline: Duration,
    /// Wall time after which a call ends as [`crate::Fault::Busy`] although its thread got no processor time: a
    /// machine so overloaded must shed work. A guest cannot sleep, so the difference to `deadline` is never its own
    /// doing, and no breaker counts it.
    pub wall_max: Duration,
    /// Calls of `souk:plugin/host`, shared by the chain like the deadline. A lookup costs about 1 us. A call counts
    /// once more for each [`HOST_CALL_BYTES`] that it hands over or gets.
    pub host_calls_max: u32,
    /// Log text of one call.
    pub log_bytes_max: usize,
    /// Bytes that one call may hand to the host at a time, as arguments of a host call or as its result.
    pub lifted_bytes_max: usize,
    /// Native stack of one call. Well under the 2 MiB of a runtime's worker thread.
    pub stack_bytes_max: usize,
    /// Calls that can run at the same time. They run inline on the caller's threads, so more than the machine has
    /// threads is slack for nested ones; each costs address space, not memory.
    pub calls_max: u32,
}

impl Default for HookLimits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 16 << 20,
            table_elements_max: 20_000,
            deadline: Duration::from_millis(5),
            wall_max: Duration::from_millis(250),
            host_calls_max: 1_000,
            log_bytes_max: 16 << 10,
            lifted_bytes_max: 4 << 20,
            stack_bytes_max: 512 << 10,
            calls_max: 128,
        }
    }
}

/// Core instances that one component may have: Python has 107.
pub const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 256;
/// Memories of one component: Python declares about 10.
pub const MEMORIES_PER_COMPONENT_MAX: u32 = 16;
/// Tables of one component. Most have one; adapters add one each.
pub const TABLES_PER_COMPONENT_MAX: u32 = 64;

/// Bytes that a host call may move before it counts as another: copying them costs about as much as a call.
pub const HOST_CALL_BYTES: usize = 1 << 10;

/// One line of a plugin's log. Longer is cut: the contract in `sdk/wit` says so.
pub const LOG_LINE_BYTES_MAX: usize = 1 << 10;
/// How often a guest may ask for memory that it cannot have before the call ends. A garbage collector that is
/// refused collects and asks again; one that keeps asking is stuck.
pub const MEMORY_REFUSALS_MAX: u32 = 16;

/// What a guest's answer may hold. The line count of the call multiplies where it must.
pub mod answer {
    /// Adjustments per line of the call, and as many again for the cart.
    pub const ADJUSTMENTS_PER_LINE_MAX: usize = 8;
    /// Operations that a cart hook may ask for: a bundle of 30 parts and a gift.
    pub const CART_OPS_MAX: usize = 32;
    /// Notes that a checkout hook may leave on an order.
    pub const NOTES_MAX: usize = 16;
    /// `code` of an adjustment, a note or a refusal.
    pub const CODE_BYTES_MAX: usize = 64;
    /// `label` of an adjustment.
    pub const LABEL_BYTES_MAX: usize = 120;
    /// `message` of a refusal, `text` of a note.
    pub const TEXT_BYTES_MAX: usize = 500;
    /// `title` of a presentation.
    pub const TITLE_BYTES_MAX: usize = 200;
    /// Badges of a product, and the length of one.
    pub const BADGES_MAX: usize = 8;
    pub const BADGE_BYTES_MAX: usize = 40;
}

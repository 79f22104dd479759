//! The region: the authoritative state of the shops that it is home to.
//!
//! It owns the truth (catalogue, prices, stock, releases, orders), the order of the logs down, the mark up to which
//! each node's outbox has been applied, and the control API. It knows nothing of shoppers' HTTP, of caches, or of
//! how a node stores what it is told; nodes reach it only through `souk_link`, people only through the control API.
//! `souk region` and `souk demo` call [`run`].
//!
//! ```text
//!  operator ──HTTP──▶ control ─┐                         ┌─▶ readers (snapshots, queries)
//!                              ├─▶ store: one writer ────┤
//!  node ─────QUIC──▶ uplink ───┘   (group commit)        └─▶ log heads, applied marks ─▶ waiting nodes
//!                      └─▶ checkout ─▶ chains (the same plugins as on the node)
//!                              └─▶ saga ──HTTPS──▶ payment provider
//!                    store ─▶ events ─▶ NATS or RabbitMQ ─▶ whoever listens to what happens to orders
//! ```
//!
//! Reading order: [`store`] (what is true, and how it changes), [`blobs`] (bytes by digest) and [`lending`] (their way out),
//! [`uplink`] (what nodes may ask), [`chains`] and [`checkout`] (how an order is made), [`saga`] (how it is paid, and its life
//! after that), [`events`] (who is told of it), [`journal`] (what plugins did), [`rollout`] (who runs what), [`obeyed`] (who has
//! forgotten what), [`digests`] (whether nodes hold what we hold), [`presence`] (the nodes of other processes), [`stock`]
//! (promises that are over), [`words`] (what products are found by), [`backup`] (all of it in a folder, and back), [`control`] (what people may ask), [`telemetry`],
//! [`clock`].

pub mod backup;
mod blobs;
mod chains;
mod checkout;
mod clock;
mod collect;
mod control;
mod digests;
mod erasures;
mod events;
mod journal;
mod lending;
mod obeyed;
mod own;
pub mod pair;
mod presence;
mod rollout;
mod running;
mod saga;
mod sealing;
mod stock;
mod store;
mod telemetry;
#[cfg(test)]
mod tests;
mod uplink;
mod words;

pub use running::{RegionError, Running, run};

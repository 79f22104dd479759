//! The chaos suite: a region and nodes as processes, shoppers who note every acknowledgement, something that breaks, and then the
//! question whether all that was acknowledged is there. One line of figures for each row; the table is in `docs/CHAOS.md`.
//!
//! ```text
//! cargo test -p souk-tests --test chaos                                            all rows, few faults each
//! SOUK_CHAOS=full cargo test -p souk-tests --test chaos kill9_node -- --nocapture  one row, hundreds of faults
//! ```
//!
//! A row that needs what is not here (root, a loop device, a package) says so aloud and passes.

mod audit;
mod books;
mod broker;
mod clock;
mod disk_full;
mod disks;
mod fsync_eio;
mod kill9;
mod limits;
mod nats;
mod partition;
mod payments;
mod postgres;
mod powercut;
mod rabbitmq;
mod replay;
mod run;
mod seed;
mod shop;
mod shoppers;
mod soak;
mod upgrade;

#[path = "../../cdn/region/tests/fake_provider/mod.rs"]
mod fake_provider;
#[path = "../../cdn/region/src/events/rabbitmq/tests/server.rs"]
#[expect(dead_code, reason = "what the region's own tests do to a server besides is theirs")]
mod rabbitmq_servers;
#[path = "../../cdn/region/src/store/tests/server.rs"]
#[expect(dead_code, reason = "what the region's own tests do to a server besides is theirs")]
mod server;

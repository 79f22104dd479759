//! The node: a request from socket to response.
//!
//! ```text
//! listen -> tls -> wire -> http -> route -> serve -> chain -> upstream / state -> rescue
//! ```
//!
//! [`listen`] accepts, `http2` serves such connections, [`http3`] does both over QUIC, [`gate`] counts who is let in, [`tls`] shakes hands with
//! what [`acme`] or an operator has got, [`wire`] holds a
//! client's bytes to the letter and to the clock, [`admission`] says what is a request, [`http`] makes an exchange of it, [`route`] says what a
//! path means, [`serve`] tells the story of one answer, [`api`] and [`assets`] know what a shopper may ask for,
//! [`chain`] keeps each site's plugins ready, [`shelf`] answers what they ask, [`journal`] carries what they say,
//! [`rollout`] tells the region what runs, [`agreement`] compares its rows with ours,
//! [`page_cache`] keeps answers and takes them back, `search` finds products by their words, [`state`] keeps what must not be lost, [`upstream`] fetches from a
//! merchant's own server (on a node, by `routes`), and [`rescue`] alone turns errors into answers. Operators read `admin`; of `souk proxy` and
//! `souk serve`, `pages`; of `souk proxy`, `access`.
//!
//! The node knows its region only as a peer behind `souk_link`: it never imports the region's code, and every
//! answer but checkout and orders can be given while the region is away.

mod access;
pub mod acme;
pub mod admin;
pub mod admission;
mod agreement;
pub mod api;
pub mod assets;
pub mod blobs;
pub mod chain;
pub mod component;
mod doors;
pub mod gate;
pub mod http;
mod http2;
pub mod http3;
pub mod interim;
pub mod journal;
pub mod listen;
mod mount;
pub mod node;
pub mod page_cache;
mod pages;
mod per_site;
mod plan;
pub mod proxy;
pub mod rescue;
pub mod rollout;
pub mod route;
mod routes;
mod running;
mod search;
pub mod serve;
pub mod shelf;
pub mod shopper;
pub mod state;
pub mod stock;
pub mod telemetry;
pub mod tls;
mod trace;
pub mod uplink;
pub mod upstream;
pub mod wire;

pub use component::{ServeConfig, run_serve};
pub use node::run_node;
pub use proxy::run_proxy;
pub use running::{Listening, RunError, Running};

//! Everything that looks at the product from outside, in one binary: one link step, one place to look.

mod access_log;
mod acme;
mod backup;
mod behaviour;
mod bindings;
mod browser;
mod cache_attacks;
mod calls;
mod catch_up;
mod corpus;
mod crossing;
mod dev;
mod dictionaries;
mod disk;
mod doors;
mod h2_attacks;
mod hostile;
mod http3;
mod journal;
mod malformed;
mod merchant;
mod pair;
mod purge;
mod regions;
mod replay;
mod restart;
mod search;
mod serve;
mod shield;
mod shop;
mod shoppers;
mod stock;
mod swap;
mod templates;
mod tidy;
mod tour;
mod upstreams;

#[path = "../guests/wat.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the sandbox's own tests, which use the rest")]
mod guests;

#[path = "../guests/http.rs"]
#[expect(unreachable_pub, reason = "shared with the sandbox's own tests")]
mod http_guests;

#[path = "../guests/page.rs"]
#[expect(unreachable_pub, reason = "reads like the other guests")]
mod pages;

#[path = "../guests/corpus/mod.rs"]
#[expect(unreachable_pub, reason = "reads like the other guests")]
mod hostile_corpus;

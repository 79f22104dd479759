//! Two regions of one name, in two places: a home, and a standby that follows it and can be made the home.
//!
//! ```text
//!   nodes ══ operations ══▶ home ── rows, keys, files ──▶ standby
//!                            ◀── what is on the disk ───
//!         ◀═ what is acknowledged: at level 2, what both have
//! ```
//!
//! Reading order: [`rules`] (what two regions that meet make of each other; pure), [`held`] (what counts as safe), [`rumour`] (what
//! nodes say of a later home), [`home`] (serves a standby, and ends when another home has come), [`standby`] (follows, and takes
//! over). What rows are and how they are put in is the store's ([`crate::store::pair`]). Called by [`crate::running`], which raises a
//! region as what its store says that it is.

pub(crate) mod held;
pub(crate) mod home;
pub(crate) mod rules;
pub(crate) mod rumour;
pub(crate) mod standby;
#[cfg(test)]
mod tests;

use souk_config::{PairConfig, RegionConfig, StoreConfig};
use souk_link::{PeerDialer, Pem, RegionAddress, StartError, TlsFiles};

use crate::backup::{BackupError, door};
use crate::journal::Journal;
use crate::own;
use crate::store::claim;

/// Our certificates, for either end.
pub(crate) fn tls(config: &RegionConfig) -> TlsFiles {
    let file = |path: &std::path::Path| Pem::File(path.to_owned());
    TlsFiles { ca: file(&config.link.ca), cert: file(&config.link.cert), key: file(&config.link.key) }
}

/// Reaches the other region.
pub(crate) fn dialer(config: &RegionConfig, pair: &PairConfig) -> Result<PeerDialer, StartError> {
    let address = |peer: &souk_config::RegionAddr| RegionAddress {
        addr: peer.addr.clone(),
        server_name: peer.server_name.clone(),
    };
    PeerDialer::new(&config.region.name, pair.peers.iter().map(address).collect(), &tls(config))
}

/// Makes the store of a region that does not run one that follows the other region of its pair: `souk region follow`. What it holds
/// is replaced; with `discard` even if it holds anything. Blocks.
pub fn follow(config: &RegionConfig, discard: bool) -> Result<(), BackupError> {
    if config.pair.is_none() {
        let why =
            "its settings name no other region to follow: add a table [pair] with `addrs` and `server_name`";
        return Err(BackupError::Store(why.to_owned()));
    }
    let dir = &config.region.data_dir;
    own::folder(dir).map_err(|source| BackupError::Folder { path: dir.clone(), source })?;
    // A region that runs has its file to itself, whatever it is.
    let _claim = match config.store {
        StoreConfig::Sqlite => Some(claim(dir).map_err(|e| BackupError::Store(e.to_string()))?),
        StoreConfig::Postgres(_) => None,
    };
    if let Err(why) = door(config)?.follow(discard)? {
        return Err(BackupError::Store(why.to_string()));
    }
    // Recorded calls of shoppers whom the home may erase: a standby is told of rows only.
    Journal::remove(dir).map_err(|source| BackupError::Folder { path: dir.join("journal.db"), source })
}

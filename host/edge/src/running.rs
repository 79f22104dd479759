//! What a started node hands back, and why one does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::task::JoinHandle;

/// A node that listens. Dropping it does not stop it; its shutdown token does.
#[derive(Debug)]
pub struct Running {
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    /// Ends when the last connection is drained and the last file is closed.
    pub done: JoinHandle<()>,
}

/// Why the node does not start. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {addr}: {source}; is another process using the address?")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error("cannot use the data directory {}: {source}", path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    #[error(transparent)]
    State(#[from] crate::state::OpenError),
    #[error("cannot use the region's public key in {}: {why}; copy seal.pub from the region's data folder", path.display())]
    SealKey { path: PathBuf, why: String },
    #[error("cannot start the plugin sandbox: {0}")]
    Sandbox(String),
    #[error("cannot load the component: {0}")]
    Component(String),
    #[error("cannot start the link to the region: {0}")]
    Link(String),
    #[error("cannot start the proxy: {0}")]
    Proxy(String),
}

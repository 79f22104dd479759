//! What a started node hands back, and why one does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::task::JoinHandle;

/// Where a process can be reached. With port 0 in its settings this is the only way to learn a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listening {
    /// The first address in clear text.
    pub http: Option<SocketAddr>,
    /// The first with TLS; HTTP/3, where it is served, has the same port number.
    pub https: Option<SocketAddr>,
    /// The others of both kinds.
    pub also: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

/// A node that listens. Dropping it does not stop it; its shutdown token does.
#[derive(Debug)]
pub struct Running {
    pub listening: Listening,
    /// Ends when the last connection is drained and the last file is closed.
    pub done: JoinHandle<()>,
}

/// Why the node does not start. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {addr}: {source}; is another process using the address?")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error("cannot listen on {addr} (UDP, for HTTP/3): {source}; is another process using the port?")]
    BindUdp { addr: SocketAddr, source: std::io::Error },
    #[error("cannot use the data directory {}: {source}", path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    #[error(transparent)]
    Acme(#[from] crate::acme::AcmeError),
    #[error(transparent)]
    State(#[from] crate::state::OpenError),
    #[error("cannot use the region's public key in {}: {why}; copy seal.pub from the region's data folder", path.display())]
    SealKey { path: PathBuf, why: String },
    #[error("cannot start the plugin sandbox: {0}")]
    Sandbox(String),
    #[error("cannot start the thread that encodes site files: {0}")]
    AssetThread(std::io::Error),
    #[error("cannot load the component: {0}")]
    Component(String),
    #[error("cannot start the link to the region: {0}")]
    Link(String),
    #[error("cannot start the proxy: {0}")]
    Proxy(String),
    #[error("cannot open the access log: {0}")]
    AccessLog(std::io::Error),
    #[error("cannot serve [[upstreams]]: {0}")]
    Upstreams(String),
}

//! Settings of `souk proxy`: the node as a caching reverse proxy with no region and no file.
//!
//! Owns the meaning and the limits of the flags. Refuses to know how they are parsed (the command line does that)
//! and what the cache does with them. The proxy in the edge crate is the caller.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::access::AccessConfig;
use crate::doors::Doors;
use crate::limits::EdgeLimits;
use crate::rates::RatesConfig;
use crate::trace::TraceConfig;
use crate::upstream::{PeersConfig, UpstreamConfig, UpstreamConfigError};

/// Memory for stored responses. A quarter of a 1 GiB machine: the smallest that a node is meant for.
pub const MEMORY_BYTES_MAX_DEFAULT: u64 = 256 * 1024 * 1024;
/// Largest response that is stored. An eighth of the default memory, so that one object cannot empty the cache.
pub const OBJECT_BYTES_MAX_DEFAULT: u64 = 32 * 1024 * 1024;
/// Larger responses are kept in slices, if their upstream answers ranges. What is smaller is a page's picture or script, of
/// which hardly anybody wants a part.
pub const SLICE_FROM_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
/// Two slices: below that there would be nothing to cut.
pub const SLICE_FROM_BYTES_MIN: u64 = 2 * 1024 * 1024;
/// Smallest cache that still makes sense: a few pages with their pictures.
pub const MEMORY_BYTES_MIN: u64 = 1024 * 1024;
/// Disk for stored responses, where a folder is given. Some 300,000 pages and pictures of shops; their index takes
/// about 30 MiB of memory.
pub const DISK_BYTES_MAX_DEFAULT: u64 = 4 * 1024 * 1024 * 1024;
/// Smallest disk tier: below it the files are too few to give one up for the next.
pub const DISK_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// A validated proxy: what the flags of `souk proxy` mean.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub doors: Doors,
    pub upstream: UpstreamConfig,
    /// Where health and metrics are served. Off without it: the public port never serves them.
    pub admin: Option<SocketAddr>,
    pub memory_bytes_max: u64,
    pub object_bytes_max: u64,
    /// Larger responses are kept in slices.
    pub slice_from_bytes: u64,
    /// Where stored responses outlive the process.
    pub disk: Option<DiskConfig>,
    /// Where a line for each request goes. Off without it.
    pub access: Option<AccessConfig>,
    /// The collector that some requests are told to. None without it.
    pub trace: Option<TraceConfig>,
    /// Nodes to share fills with.
    pub peers: Option<PeersConfig>,
    /// Those of connections and requests; what else a node has is not here.
    pub limits: EdgeLimits,
    /// One request, from its head to the head of its answer. None: as long as its upstream may take.
    pub request_deadline: Option<Duration>,
    pub rates: RatesConfig,
}

/// A folder of stored responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    pub dir: PathBuf,
    /// Bytes of all its files together.
    pub bytes_max: u64,
}

/// Why a proxy cannot be made from these flags.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProxyConfigError {
    #[error(transparent)]
    Upstream(#[from] UpstreamConfigError),
    #[error("--slice-from {given} is below {SLICE_FROM_BYTES_MIN}: smaller responses are kept whole")]
    SliceFromTooSmall { given: u64 },
    #[error("the cache memory of {given} bytes is below {MEMORY_BYTES_MIN}, the least that holds a page")]
    MemoryTooSmall { given: u64 },
    #[error(
        "the disk of {given} bytes is below {DISK_BYTES_MIN}, the least that is worth a folder: raise --disk-size"
    )]
    DiskTooSmall { given: u64 },
    #[error(
        "one object of {object} bytes does not fit a cache of {memory} bytes: lower it to a quarter or less"
    )]
    ObjectTooLarge { object: u64, memory: u64 },
}

impl ProxyConfig {
    /// The defaults around the two flags that have none.
    pub fn new(listen: SocketAddr, upstream: &str) -> Result<Self, ProxyConfigError> {
        let upstream = UpstreamConfig::of(&[upstream.to_owned()])?;
        Ok(Self::before(upstream, Doors::clear(listen)))
    }

    /// The defaults between any doors and any upstream.
    pub fn before(upstream: UpstreamConfig, doors: Doors) -> Self {
        Self {
            doors,
            upstream,
            admin: None,
            memory_bytes_max: MEMORY_BYTES_MAX_DEFAULT,
            object_bytes_max: OBJECT_BYTES_MAX_DEFAULT,
            slice_from_bytes: SLICE_FROM_BYTES_DEFAULT,
            disk: None,
            access: None,
            trace: None,
            peers: None,
            limits: EdgeLimits::default(),
            request_deadline: None,
            rates: RatesConfig::default(),
        }
    }

    /// Set the memory; objects are kept to an eighth of it, and never above the default object size.
    pub fn with_memory(mut self, memory_bytes_max: u64) -> Result<Self, ProxyConfigError> {
        if memory_bytes_max < MEMORY_BYTES_MIN {
            return Err(ProxyConfigError::MemoryTooSmall { given: memory_bytes_max });
        }
        self.memory_bytes_max = memory_bytes_max;
        self.object_bytes_max = self.object_bytes_max.min(memory_bytes_max / 8);
        Ok(self)
    }

    /// Keep stored responses in a folder too, in `bytes_max` of it or the default.
    pub fn with_disk(mut self, dir: PathBuf, bytes_max: Option<u64>) -> Result<Self, ProxyConfigError> {
        let bytes_max = bytes_max.unwrap_or(DISK_BYTES_MAX_DEFAULT);
        if bytes_max < DISK_BYTES_MIN {
            return Err(ProxyConfigError::DiskTooSmall { given: bytes_max });
        }
        self.disk = Some(DiskConfig { dir, bytes_max });
        Ok(self)
    }

    /// Set from which size responses are kept in slices.
    pub fn with_slices_from(mut self, bytes: u64) -> Result<Self, ProxyConfigError> {
        if bytes < SLICE_FROM_BYTES_MIN {
            return Err(ProxyConfigError::SliceFromTooSmall { given: bytes });
        }
        self.slice_from_bytes = bytes;
        Ok(self)
    }

    /// Set the largest object, after the memory.
    pub fn with_object(mut self, object_bytes_max: u64) -> Result<Self, ProxyConfigError> {
        if object_bytes_max > self.memory_bytes_max / 4 {
            return Err(ProxyConfigError::ObjectTooLarge {
                object: object_bytes_max,
                memory: self.memory_bytes_max,
            });
        }
        self.object_bytes_max = object_bytes_max;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn one_object_never_fills_the_cache() {
        let config = ProxyConfig::new(listen(), "http://shop.example").expect("valid");
        assert!(config.object_bytes_max <= config.memory_bytes_max / 8);
        let small = config.with_memory(8 * 1024 * 1024).expect("large enough");
        assert_eq!(small.object_bytes_max, 1024 * 1024);
        assert!(matches!(
            small.clone().with_object(4 * 1024 * 1024),
            Err(ProxyConfigError::ObjectTooLarge { .. })
        ));
        assert!(matches!(small.with_memory(10), Err(ProxyConfigError::MemoryTooSmall { given: 10 })));
    }

    #[test]
    fn a_disk_has_a_least_size_and_a_default() {
        let config = ProxyConfig::new(listen(), "http://shop.example").expect("valid");
        let refused = config.clone().with_disk("/cache".into(), Some(1)).expect_err("one byte");
        assert_eq!(refused, ProxyConfigError::DiskTooSmall { given: 1 });
        assert!(refused.to_string().contains("--disk-size"), "{refused}");
        let disk = config.with_disk("/cache".into(), None).expect("the default").disk.expect("a disk");
        assert_eq!(disk.bytes_max, DISK_BYTES_MAX_DEFAULT);
    }
}

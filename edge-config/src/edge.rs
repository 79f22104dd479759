//! The settings of a node: who it is, where it listens, which region it belongs to.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use crate::access::{AccessConfig, RawAccess};
use crate::document::{Document, Source};
use crate::doors::{self, Doors, HttpsDoor, OneOrMany, RawHttps};
use crate::error::{ConfigError, Problem};
use crate::limits::{EdgeLimits, RawEdgeLimits};
use crate::peers::{PlaceConfig, RawPlace};
use crate::rates::{RatesConfig, RawRates};
use crate::routes::{self, RawRoute, UpstreamRoute};
use crate::shared::{self, Base, CompilerConfig, LinkTls, LogConfig, NamedFile, RawCompiler, RawLog};
use crate::trace::{RawTrace, TraceConfig};
use crate::upstream::parse_range;

/// Processes of one region that a node may dial: it asks all of them within three seconds when none answers.
const REGIONS_MAX: usize = 8;

/// A node, ready to be raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeConfig {
    pub node: NodeConfig,
    pub listen: EdgeListen,
    pub link: EdgeLinkConfig,
    pub limits: EdgeLimits,
    pub rates: RatesConfig,
    pub compiler: CompilerConfig,
    pub log: LogConfig,
    /// Merchants' own servers, on routes of their sites.
    pub upstreams: Vec<UpstreamRoute>,
    /// The nodes that fetch each thing once for all of them. None without it: each fetches for itself.
    pub peers: Option<PlaceConfig>,
    /// Where a line for each request goes. Off without it.
    pub access: Option<AccessConfig>,
    /// The collector that some requests are told to. None without it.
    pub trace: Option<TraceConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Unique within the region and written in the node's certificate; 1 or greater.
    pub id: u32,
    /// The place where the node stands.
    pub pop: String,
    /// The name of the region that the node belongs to, as in both certificates.
    pub region: String,
    /// The node's database and its stored assets. Nothing else may write here.
    pub data_dir: PathBuf,
    /// Where others reach this platform, as far as the machine cannot tell: behind address translation, or a neighbour's.
    /// No plugin may send requests there, whatever it was granted.
    pub own_addresses: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeListen {
    /// For shoppers.
    pub doors: Doors,
    /// Proxies of HTTP whose word about the client is taken: `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded`.
    pub trusted: Vec<IpNet>,
    /// Health, readiness, metrics, status. Not for the public.
    pub admin: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeLinkConfig {
    /// Where the processes of the region listen: asked in this order at first; never empty.
    pub regions: Vec<RegionAddr>,
    pub tls: LinkTls,
    /// Public keys (PEM) of the region's seal; never empty. A plugin release that none of them vouches for is not run.
    pub seal_keys: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionAddr {
    /// `host:port`, UDP.
    pub addr: String,
    pub server_name: String,
}

impl EdgeConfig {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Document::read(file)?.validate(RawEdge::validate)
    }

    /// The same, with where it came from.
    pub fn open(file: &Path) -> Result<(Self, Source), ConfigError> {
        let document = Document::read(file)?;
        Ok((document.validate(RawEdge::validate)?, Source(document)))
    }

    /// Every file that must be there before the node starts.
    pub fn named_files(&self) -> Vec<NamedFile<'_>> {
        let mut files = self.link.tls.named_files();
        let seals = self.link.seal_keys.iter().enumerate();
        files.extend(seals.map(|(i, path)| NamedFile::new(format!("link.seal_keys[{i}]"), path)));
        files.extend(self.listen.doors.https.iter().flat_map(HttpsDoor::named_files));
        files.extend(self.upstreams.iter().enumerate().filter_map(|(i, route)| {
            NamedFile::maybe(format!("upstreams[{i}].ca"), route.upstream.ca.as_ref())
        }));
        files
    }

    /// The same for a text; `file` is where it came from: relative paths begin in its folder.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        Document::parse(text.to_owned(), file)?.validate(RawEdge::validate)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEdge {
    node: RawNode,
    listen: RawListen,
    link: RawLink,
    #[serde(default)]
    limits: RawEdgeLimits,
    #[serde(default)]
    rates: RawRates,
    #[serde(default)]
    compiler: RawCompiler,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    upstreams: Vec<RawRoute>,
    peers: Option<RawPlace>,
    access_log: Option<RawAccess>,
    trace: Option<RawTrace>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    id: u32,
    pop: String,
    region: String,
    data_dir: PathBuf,
    #[serde(default)]
    own_addresses: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    http: Option<OneOrMany>,
    https: Option<RawHttps>,
    admin: String,
    #[serde(default)]
    reuse_port: bool,
    workers: Option<usize>,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
    #[serde(default)]
    trust: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    regions: Vec<RawRegionAddr>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    seal_keys: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegionAddr {
    addr: String,
    server_name: String,
}

impl RawEdge {
    fn validate(self, base: &Base<'_>) -> Result<EdgeConfig, Problem> {
        let limits = self.limits.validate()?;
        let node = self.node.validate(base)?;
        let listen = self.listen.validate(base)?;
        let peers = self.peers.map(|raw| raw.validate(node.id, &listen.doors, listen.admin)).transpose()?;
        Ok(EdgeConfig {
            node,
            listen,
            peers,
            link: self.link.validate(base)?,
            upstreams: routes::validate(self.upstreams, &limits, base)?,
            limits,
            rates: self.rates.validate()?,
            compiler: self.compiler.validate(),
            log: self.log.validate(),
            access: self.access_log.map(|raw| raw.validate(base)).transpose()?,
            trace: self.trace.map(RawTrace::validate).transpose()?,
        })
    }
}

impl RawNode {
    fn validate(self, base: &Base<'_>) -> Result<NodeConfig, Problem> {
        if self.id == 0 {
            return Err(Problem::new(
                "node.id",
                "0 is not a node",
                "write the number in the node's certificate, 1 or greater",
            ));
        }
        Ok(NodeConfig {
            id: self.id,
            pop: shared::place("node.pop", self.pop)?,
            region: shared::place("node.region", self.region)?,
            data_dir: base.path("node.data_dir", &self.data_dir)?,
            own_addresses: own_addresses(&self.own_addresses)?,
        })
    }
}

fn own_addresses(texts: &[String]) -> Result<Vec<IpAddr>, Problem> {
    const KEY: &str = "node.own_addresses";
    // Each outbound connection is compared with all of them, and a PoP with more has a prefix, not a list.
    const OWN_ADDRESSES_MAX: usize = 256;
    if texts.len() > OWN_ADDRESSES_MAX {
        return Err(Problem::new(
            KEY,
            format!("{} addresses are more than {OWN_ADDRESSES_MAX}", texts.len()),
            "name those that other machines can reach this platform by, and no others",
        ));
    }
    let address = |(i, text): (usize, &String)| {
        let refused = |what: &str| {
            Problem::new(
                format!("{KEY}[{i}]"),
                format!("{text:?} is {what}"),
                "write an IP address without a port, such as \"203.0.113.7\" or \"2001:db8::7\"",
            )
        };
        let address: IpAddr = text.parse().map_err(|_| refused("not an IP address"))?;
        if address.is_unspecified() {
            return Err(refused("no address that anybody can be reached by"));
        }
        Ok(address)
    };
    texts.iter().enumerate().map(address).collect()
}

impl RawListen {
    fn validate(self, base: &Base<'_>) -> Result<EdgeListen, Problem> {
        let doors = doors::validate(
            self.http,
            self.https,
            self.reuse_port,
            self.workers,
            &self.proxy_protocol_from,
            base,
        )?;
        let admin = shared::socket("listen.admin", &self.admin)?;
        if admin.port() != 0 && doors.addrs().any(|taken| taken == admin) {
            return Err(Problem::new(
                "listen.admin",
                format!("{admin} is also the address for shoppers"),
                "give the admin interface an address of its own: metrics are not for the public",
            ));
        }
        let network = |(index, text): (usize, &String)| {
            parse_range(text).map_err(|_| {
                Problem::new(
                    format!("listen.trust[{index}]"),
                    format!("{text:?} is no range of addresses"),
                    "write it like \"10.0.0.0/8\", \"fd00::/8\" or \"192.0.2.7\"",
                )
            })
        };
        let trusted = self.trust.iter().enumerate().map(network).collect::<Result<_, _>>()?;
        Ok(EdgeListen { doors, trusted, admin })
    }
}

impl RawLink {
    fn validate(self, base: &Base<'_>) -> Result<EdgeLinkConfig, Problem> {
        if self.regions.is_empty() {
            return Err(Problem::new(
                "link.regions",
                "the node has no region to send its operations to",
                "add a [[link.regions]] table with `addr` and `server_name`",
            ));
        }
        if self.regions.len() > REGIONS_MAX {
            return Err(Problem::new(
                "link.regions",
                format!("{} addresses are more than {REGIONS_MAX}", self.regions.len()),
                "name a few processes of the region, and give other nodes others",
            ));
        }
        let regions = self
            .regions
            .into_iter()
            .enumerate()
            .map(|(i, raw)| {
                Ok(RegionAddr {
                    addr: shared::host_and_port(&format!("link.regions[{i}].addr"), raw.addr)?,
                    server_name: shared::server_name(
                        &format!("link.regions[{i}].server_name"),
                        raw.server_name,
                    )?,
                })
            })
            .collect::<Result<_, Problem>>()?;
        let tls = LinkTls {
            ca: base.path("link.ca", &self.ca)?,
            cert: base.path("link.cert", &self.cert)?,
            key: base.path("link.key", &self.key)?,
        };
        if self.seal_keys.is_empty() {
            return Err(Problem::new(
                "link.seal_keys",
                "without a key no plugin could be told from a forged one",
                "name the public key of the region's seal: the file seal.pub in the region's data folder",
            ));
        }
        let seal_keys =
            self.seal_keys.iter().map(|path| base.path("link.seal_keys", path)).collect::<Result<_, _>>()?;
        Ok(EdgeLinkConfig { regions, tls, seal_keys })
    }
}

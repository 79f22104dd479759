//! The other nodes of a node's place: `[peers]` of its file. They fetch each thing once for all of them.
//!
//! Owns who they are and where they are asked. How one is asked, and when the upstream is asked instead, is the edge crate's.
//! Proxies without a region know each other by a secret: [`crate::upstream`].

use std::collections::HashSet;
use std::net::SocketAddr;

use serde::Deserialize;

use crate::doors::Doors;
use crate::error::Problem;
use crate::shared;
use crate::upstream::PEERS_MAX;

/// Who else is in this place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceConfig {
    /// Where the others ask this node. Only they are let in.
    pub listen: SocketAddr,
    /// The others; this node is not among them.
    pub nodes: Vec<PeerNode>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerNode {
    /// As in its certificate.
    pub id: u32,
    /// `host:port`, TCP: what it calls `peers.listen`.
    pub addr: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPlace {
    listen: String,
    nodes: Vec<RawPeerNode>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeerNode {
    id: u32,
    addr: String,
}

impl RawPlace {
    /// `own` is the number of this node; `taken` is where it listens already.
    pub(crate) fn validate(self, own: u32, doors: &Doors, admin: SocketAddr) -> Result<PlaceConfig, Problem> {
        let listen = shared::socket("peers.listen", &self.listen)?;
        if listen.port() != 0 && doors.addrs().chain([admin]).any(|taken| taken == listen) {
            return Err(Problem::new(
                "peers.listen",
                format!("{listen} is also an address for shoppers or operators"),
                "give the nodes of the place an address of their own: nobody else is let in there",
            ));
        }
        if self.nodes.len() > PEERS_MAX {
            return Err(Problem::new(
                "peers.nodes",
                format!("{} nodes are more than {PEERS_MAX}", self.nodes.len()),
                "make two places of them: a fill waits for one node, and more would only add some that it may fail at",
            ));
        }
        let mut known = HashSet::from([own]);
        let node = |(index, raw): (usize, RawPeerNode)| {
            let key = format!("peers.nodes[{index}]");
            if !known.insert(raw.id) {
                return Err(Problem::new(
                    format!("{key}.id"),
                    format!("node {} is there twice, or is this node itself", raw.id),
                    "name each other node of the place once, by the number in its certificate",
                ));
            }
            Ok(PeerNode { id: raw.id, addr: shared::host_and_port(&format!("{key}.addr"), raw.addr)? })
        };
        let nodes = self.nodes.into_iter().enumerate().map(node).collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(Problem::new(
                "peers.nodes",
                "there is no other node to share with",
                "name them, such as { id = 2, addr = \"10.0.0.2:7444\" }, or leave [peers] out",
            ));
        }
        Ok(PlaceConfig { listen, nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(text: &str) -> Result<PlaceConfig, String> {
        let raw: RawPlace = toml::from_str(text).map_err(|error| error.to_string())?;
        let shoppers = Doors::clear("10.0.0.1:80".parse().expect("an address"));
        raw.validate(1, &shoppers, "10.0.0.1:9090".parse().expect("an address"))
            .map_err(|problem| format!("{}: {}", problem.key, problem.problem))
    }

    #[test]
    fn a_place_is_other_nodes_and_an_address_for_them_alone() {
        let good = "listen = \"10.0.0.1:7444\"\nnodes = [{ id = 2, addr = \"b.internal:7444\" }, { id = 3, addr = \"10.0.0.3:7444\" }]";
        let place = validate(good).expect("a place");
        assert_eq!(place.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [2, 3]);
        for (text, said) in [
            (
                "listen = \"10.0.0.1:80\"\nnodes = [{ id = 2, addr = \"b:1\" }]",
                "peers.listen: 10.0.0.1:80 is also",
            ),
            (
                "listen = \"10.0.0.1:9090\"\nnodes = [{ id = 2, addr = \"b:1\" }]",
                "peers.listen: 10.0.0.1:9090 is also",
            ),
            (
                "listen = \"10.0.0.1:1\"\nnodes = [{ id = 1, addr = \"b:1\" }]",
                "peers.nodes[0].id: node 1 is there",
            ),
            (
                "listen = \"10.0.0.1:1\"\nnodes = [{ id = 2, addr = \"b:1\" }, { id = 2, addr = \"c:1\" }]",
                "peers.nodes[1].id: node 2 is there",
            ),
            (
                "listen = \"10.0.0.1:1\"\nnodes = [{ id = 2, addr = \"b\" }]",
                "peers.nodes[0].addr: \"b\" is not",
            ),
            ("listen = \"10.0.0.1:1\"\nnodes = []", "peers.nodes: there is no other node"),
        ] {
            let refused = validate(text).expect_err(text);
            assert!(refused.starts_with(said), "{refused}");
        }
        let many: Vec<_> = (2..=34).map(|id| format!("{{ id = {id}, addr = \"p{id}:1\" }}")).collect();
        let refused = validate(&format!("listen = \"10.0.0.1:1\"\nnodes = [{}]", many.join(", ")));
        assert!(refused.expect_err("33 nodes").starts_with("peers.nodes: 33 nodes are more than 32"));
    }
}

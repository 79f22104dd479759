//! A region's other half: where it is, and what counts as safe.

use serde::Deserialize;

use crate::edge::RegionAddr;
use crate::error::Problem;
use crate::shared;

/// The other region of a pair. Which of the two is home stands in their stores, and in no file: it changes in an emergency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairConfig {
    /// The link of the other region, or of its processes.
    pub peers: Vec<RegionAddr>,
    pub ack_level: AckLevel,
}

/// When something counts as committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AckLevel {
    /// When the home has it.
    #[default]
    One,
    /// When the standby has it too.
    Two,
}

impl AckLevel {
    pub const fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// Processes of the other region that are tried: as many as a node knows.
const PEERS_MAX: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPair {
    addrs: Vec<String>,
    server_name: String,
    #[serde(default = "one")]
    ack_level: u8,
}

const fn one() -> u8 {
    1
}

impl RawPair {
    pub(crate) fn validate(self) -> Result<PairConfig, Problem> {
        if self.addrs.is_empty() || self.addrs.len() > PEERS_MAX {
            return Err(Problem::new(
                "pair.addrs",
                format!("{} addresses are not 1 to {PEERS_MAX}", self.addrs.len()),
                "name where the other region listens for nodes: addrs = [\"region-b.example.net:7443\"]",
            ));
        }
        let server_name = shared::server_name("pair.server_name", self.server_name)?;
        let peers = self.addrs.into_iter().enumerate().map(|(i, addr)| {
            let addr = shared::host_and_port(&format!("pair.addrs[{i}]"), addr)?;
            Ok(RegionAddr { addr, server_name: server_name.clone() })
        });
        let ack_level = match self.ack_level {
            1 => AckLevel::One,
            2 => AckLevel::Two,
            other => {
                return Err(Problem::new(
                    "pair.ack_level",
                    format!("{other} regions are not 1 or 2"),
                    "write 1 (the home has it) or 2 (its standby has it too)",
                ));
            }
        };
        Ok(PairConfig { peers: peers.collect::<Result<_, Problem>>()?, ack_level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PairConfig, String> {
        let raw: RawPair = toml::from_str(text).map_err(|e| e.to_string())?;
        raw.validate().map_err(|problem| problem.key)
    }

    #[test]
    fn a_pair_names_the_other_region_and_how_much_is_enough() {
        let pair =
            read("addrs = [\"b.example.net:7443\"]\nserver_name = \"region.example.net\"").expect("is well");
        assert_eq!((pair.peers.len(), pair.ack_level), (1, AckLevel::One));
        let two = "addrs = [\"10.0.0.5:7443\"]\nserver_name = \"region.example.net\"\nack_level = 2";
        assert_eq!(read(two).map(|pair| pair.ack_level), Ok(AckLevel::Two));
        for (text, key) in [
            ("addrs = []\nserver_name = \"r\"", "pair.addrs"),
            ("addrs = [\"b\"]\nserver_name = \"r\"", "pair.addrs[0]"),
            ("addrs = [\"b:1\"]\nserver_name = \"a b\"", "pair.server_name"),
            ("addrs = [\"b:1\"]\nserver_name = \"r\"\nack_level = 3", "pair.ack_level"),
        ] {
            assert_eq!(read(text).map(drop), Err(key.to_owned()), "{text}");
        }
    }
}

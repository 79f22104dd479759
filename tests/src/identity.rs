//! What proves to a region and its nodes who is who, and to a region who its operator is: files made anew for each test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use souk_commerce::seal::SealKey;

/// The operator's token.
pub const TOKEN: &str = "souk_op_of_the_test";
/// The name in the region's certificate.
pub const SERVER_NAME: &str = "region.souk.internal";
/// The region's name.
pub const REGION: &str = "test";
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// A node whose clock is wrong by days still finds its certificates valid.
const VALID_SINCE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// A folder with an authority, a region's certificate and those of its nodes, and the key that seals releases.
#[derive(Debug, Clone)]
pub struct Identity {
    dir: PathBuf,
}

impl Identity {
    /// For a region and the nodes 1 to `nodes`.
    pub fn create(dir: &Path, nodes: u32) -> Result<Self> {
        let at = |name: &str| dir.join(name);
        let authority_key = KeyPair::generate()?;
        let mut authority = params(&[], VALID_SINCE)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(at("ca.pem"), authority.self_signed(&authority_key)?.pem())?;
        let issuer = Issuer::new(authority, authority_key);
        let mut all =
            vec![("region".to_owned(), format!("spiffe://souk/{REGION}/region"), &[SERVER_NAME] as &[&str])];
        all.extend(
            (1..=nodes).map(|id| (node_name(id), format!("spiffe://souk/{REGION}/edge/{id}"), &[] as _)),
        );
        for (name, spiffe, dns) in all {
            let mut own = params(dns, VALID_SINCE)?;
            own.subject_alt_names.push(SanType::URI(spiffe.as_str().try_into()?));
            own.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            std::fs::write(at(&format!("{name}.pem")), own.signed_by(&key, &issuer)?.pem())?;
            std::fs::write(at(&format!("{name}.key")), key.serialize_pem())?;
        }
        let seal = SealKey::generate(&[7; 32]);
        std::fs::write(at("seal.key"), seal.to_pem())?;
        std::fs::write(at("seal.pub"), seal.public_pem())?;
        let vault = at("vault.key");
        std::fs::write(&vault, format!("souk-vault-1 {}\n", "5a".repeat(32)))?;
        std::fs::set_permissions(&vault, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where a file of it lies.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The `[link]` of a region.
    pub fn region_link(&self) -> Value {
        self.link("region")
    }

    /// The `[control]` of a region.
    pub fn control(&self) -> Value {
        let digest = Sha256::digest(TOKEN.as_bytes());
        let token: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "operator_token_sha256": token, "seal_key": self.file("seal.key") })
    }

    /// The `[vault]` of a region: the same for all processes of it.
    pub fn vault(&self) -> Value {
        json!({ "key_file": self.file("vault.key") })
    }

    /// The `[link]` of a node that dials a region.
    pub fn node_link(&self, id: u32, region: &str) -> Value {
        self.node_link_to(id, &[region.to_owned()])
    }

    /// The same of a node that dials several processes of a region, in this order.
    pub fn node_link_to(&self, id: u32, regions: &[String]) -> Value {
        let mut link = self.link(&node_name(id));
        let region = |addr: &String| json!({ "addr": addr, "server_name": SERVER_NAME });
        link["regions"] = regions.iter().map(region).collect();
        link["seal_keys"] = json!([self.file("seal.pub")]);
        link
    }

    fn link(&self, name: &str) -> Value {
        let file = |ending: &str| self.file(&format!("{name}.{ending}"));
        json!({ "ca": self.file("ca.pem"), "cert": file("pem"), "key": file("key") })
    }
}

fn node_name(id: u32) -> String {
    format!("edge-{id}")
}

/// What a certificate says, valid since so long and for a quarter of a year: as a public authority would give it, neither for
/// ever nor from the past century.
pub fn params(names: &[&str], since: Duration) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH)?;
    (params.not_before, params.not_after) = (now - since, now + 90 * DAY);
    Ok(params)
}

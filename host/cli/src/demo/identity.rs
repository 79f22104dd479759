//! Who is who in a demo: an authority of its own, a certificate for each process, the key that seals
//! releases, the operator's token, and the key that signs shoppers' tokens. All of it is made at the start and worth nothing after the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use rcgen::KeyPair;
use sha2::Digest as _;

use crate::identity::mint::{self, CA_FILE, since_1970, write_new, write_secret};

pub(crate) use crate::identity::mint::Files as Identity;

/// The name of the demo's region, in certificates and configurations.
pub(crate) const REGION: &str = "demo";
/// The name by which nodes check the region's certificate; it need not resolve.
pub(crate) const SERVER_NAME: &str = "region.souk.internal";

const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Random bytes in the operator's token: nobody guesses 256 bits.
const TOKEN_BYTES: usize = 32;

/// The authority, and the folder that its files lie in. Its key is written nowhere.
pub(crate) struct Authority {
    folder: PathBuf,
    mint: mint::Authority,
}

/// Who vouches for releases.
#[derive(Debug, Clone)]
pub(crate) struct SealFiles {
    pub(crate) private: PathBuf,
    pub(crate) public: PathBuf,
    /// By which a region seals shoppers' data.
    pub(crate) vault: PathBuf,
}

impl Authority {
    pub(crate) fn create(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let mint = mint::Authority::mint("Souk demo authority", LIFE)?;
        write_new(&folder.join(CA_FILE), &mint.pem, 0o644)?;
        Ok(Self { folder: folder.to_owned(), mint })
    }

    pub(crate) fn region(&self) -> anyhow::Result<Identity> {
        let region = souk_link::Identity::Region { region: REGION.to_owned() };
        self.issue("region", &region, &[SERVER_NAME.to_owned()])
    }

    /// The key that seals plugin releases: its private half for the region, its public half for every node.
    pub(crate) fn seal(&self) -> anyhow::Result<SealFiles> {
        let key = souk_commerce::seal::SealKey::generate(&rand::random());
        let [private, public, vault] = ["seal.key", "seal.pub", "vault.key"].map(|it| self.folder.join(it));
        let files = SealFiles { private, public, vault };
        let vault: [u8; 32] = rand::random();
        write_secret(&files.vault, &format!("souk-vault-1 {}\n", hex::encode(vault)))?;
        write_secret(&files.private, &key.to_pem())?;
        std::fs::write(&files.public, key.public_pem())
            .with_context(|| format!("write {}", files.public.display()))?;
        Ok(files)
    }

    pub(crate) fn node(&self, id: u32) -> anyhow::Result<Identity> {
        let node = souk_link::Identity::Edge { region: REGION.to_owned(), node: id };
        self.issue(&format!("edge-{id}"), &node, &[])
    }

    fn issue(
        &self,
        name: &str,
        identity: &souk_link::Identity,
        hosts: &[String],
    ) -> anyhow::Result<Identity> {
        let files = Identity::in_folder(&self.folder, name);
        self.mint.issue(&files, identity, hosts, LIFE)?;
        Ok(files)
    }
}

/// What an operator shows to the region's control API.
pub(crate) struct OperatorToken(String);

impl OperatorToken {
    pub(crate) fn mint() -> Self {
        let secret: [u8; TOKEN_BYTES] = rand::random();
        // The prefix lets a scanner of repositories recognise a token that someone committed.
        Self(format!("souk_op_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret)))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// What the region keeps.
    pub(crate) fn sha256(&self) -> String {
        hex::encode(sha2::Sha256::digest(self.0.as_bytes()))
    }
}

/// The merchant's key, with which tokens of signed-in shoppers are signed.
#[derive(Clone)]
pub(crate) struct ShopperKey {
    /// Ed25519, PKCS#8 PEM.
    pub(crate) secret_pem: String,
    pub(crate) public_pem: String,
}

impl ShopperKey {
    pub(crate) fn mint() -> anyhow::Result<Self> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).context("make the shoppers' key")?;
        Ok(Self { secret_pem: key.serialize_pem(), public_pem: key.public_key_pem() })
    }

    /// A token of a shopper who signed in at the merchant's own site.
    pub(crate) fn token(&self, customer: &str, segments: &[&str], life: Duration) -> anyhow::Result<String> {
        #[derive(serde::Serialize)]
        struct Claims<'a> {
            sub: &'a str,
            segments: &'a [&'a str],
            exp: u64,
        }
        let exp = (since_1970()? + life).as_secs();
        let key = jsonwebtoken::EncodingKey::from_ed_pem(self.secret_pem.as_bytes())
            .context("read the shoppers' key")?;
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        jsonwebtoken::encode(&header, &Claims { sub: customer, segments, exp }, &key)
            .context("sign a shopper's token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shopper_s_token_is_verified_with_the_public_half() {
        #[derive(serde::Deserialize)]
        struct Claims {
            sub: String,
            segments: Vec<String>,
        }
        let key = ShopperKey::mint().expect("a key");
        let token = key.token("17850", &["trade"], Duration::from_secs(60)).expect("a token");
        let public = jsonwebtoken::DecodingKey::from_ed_pem(key.public_pem.as_bytes()).expect("a public key");
        let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
        let claims =
            jsonwebtoken::decode::<Claims>(&token, &public, &validation).expect("a valid token").claims;
        assert_eq!((claims.sub.as_str(), claims.segments), ("17850", vec!["trade".to_owned()]));
    }

    #[test]
    fn tokens_differ_and_the_region_keeps_their_hash_only() {
        let (a, b) = (OperatorToken::mint(), OperatorToken::mint());
        assert_ne!(a.secret(), b.secret());
        assert_eq!(a.sha256().len(), 64);
    }
}

//! Who is who in a demo: an authority of its own, a certificate for each process, the key that seals
//! releases, the operator's token, and the key that signs shoppers' tokens. All of it is made at the start and worth nothing after the end.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sha2::Digest as _;

/// The name of the demo's region, in certificates and configurations.
pub(crate) const REGION: &str = "demo";
/// The name by which nodes check the region's certificate; it need not resolve.
pub(crate) const SERVER_NAME: &str = "region.souk.internal";

const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A clock that is a little behind must not refuse a certificate that was made just now.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);
/// Random bytes in the operator's token: nobody guesses 256 bits.
const TOKEN_BYTES: usize = 32;

/// The authority, and the folder that its files lie in.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of one end of the link.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
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
        let mut params = params("Souk demo authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("make the authority's key")?;
        let cert = params.self_signed(&key).context("sign the authority's certificate")?;
        std::fs::write(folder.join("ca.pem"), cert.pem()).context("write the authority's certificate")?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) })
    }

    pub(crate) fn region(&self) -> anyhow::Result<Identity> {
        self.issue("region", &format!("spiffe://souk/{REGION}/region"), Some(SERVER_NAME))
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
        self.issue(&format!("edge-{id}"), &format!("spiffe://souk/{REGION}/edge/{id}"), None)
    }

    fn issue(&self, name: &str, spiffe: &str, dns: Option<&str>) -> anyhow::Result<Identity> {
        let mut params = params(name)?;
        params.subject_alt_names.push(SanType::URI(spiffe.try_into().context("write the SPIFFE id")?));
        if let Some(dns) = dns {
            params.subject_alt_names.push(SanType::DnsName(dns.try_into().context("write the DNS name")?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().with_context(|| format!("make the key of {name}"))?;
        let cert = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("sign the certificate of {name}"))?;
        let identity = Identity {
            ca: self.folder.join("ca.pem"),
            cert: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
        };
        std::fs::write(&identity.cert, cert.pem())
            .with_context(|| format!("write {}", identity.cert.display()))?;
        write_secret(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn params(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).context("begin a certificate")?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_1970()?;
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + LIFE;
    Ok(params)
}

fn since_1970() -> anyhow::Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).context("read a clock that is set before 1970")
}

/// Readable by its owner from its first byte on.
pub(crate) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
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
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_readable_by_their_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::create(folder.path()).expect("an authority");
        let node = authority.node(7).expect("a certificate");
        let mode = std::fs::metadata(&node.key).expect("the key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            std::fs::read_to_string(&node.cert)
                .expect("the certificate")
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
    }

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

//! Who vouches for a release: the region's Ed25519 signature, and the keys that a node trusts.
//!
//! What is signed is [`Release::sealed_bytes`]: the site, and the release as canonical JSON. A node asks
//! [`TrustedKeys::verify`] before it compiles or runs anything; the component itself is covered by its digest, which is
//! in the release. Keys rotate by trusting two at a time: nodes learn the new public key, the region seals with it, and
//! the old one is taken away when nothing active is sealed with it.
//!
//! Key files, and the randomness of a new key, belong to the caller.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::Value;

use crate::id::{Digest, SiteId};
use crate::site::{Release, ReleaseSet, Seal};

/// Most keys that a node trusts: one in use, one to come, and two that linger.
pub const TRUSTED_KEYS_MAX: usize = 4;
/// Separates these signatures from whatever else the same key might sign one day, and counts their format.
const DOMAIN: &str = "souk-release-seal/1\n";
const SET_DOMAIN: &str = "souk-release-set-seal/1\n";
/// The first 12 bytes of every Ed25519 `SubjectPublicKeyInfo` (RFC 8410); the 32 bytes of the key follow.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PUBLIC_KEY_BYTES: usize = 32;
/// RFC 7468 wraps PEM after 64 characters.
const PEM_LINE_BYTES: usize = 64;

/// Why a release was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("release {plugin}#{number} has no seal")]
    Missing { plugin: String, number: u32 },
    #[error("release {plugin}#{number} is sealed with key {key}, which is not trusted here")]
    UnknownKey { plugin: String, number: u32, key: String },
    #[error("the seal of release {plugin}#{number} does not fit it")]
    Broken { plugin: String, number: u32 },
    #[error("release {plugin}#0 is no release: it was pushed and never deployed")]
    Unreleased { plugin: String },
    #[error("release set {version} has no number, or no seal")]
    SetMissing { version: u64 },
    #[error("release set {number} is sealed with key {key}, which is not trusted here")]
    SetUnknownKey { number: u64, key: String },
    #[error("the seal of release set {number} does not fit it")]
    SetBroken { number: u64 },
}

/// Why a key was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a PEM of a private Ed25519 key (PKCS#8)")]
    NotPrivate,
    #[error("not a PEM of a public Ed25519 key (SubjectPublicKeyInfo)")]
    NotPublic,
    #[error("{keys} trusted keys are more than {TRUSTED_KEYS_MAX}")]
    TooMany { keys: usize },
    #[error("no trusted key is given")]
    None,
}

impl Release {
    /// What a seal signs: the same bytes wherever and whenever this release is read, whatever the order of the keys in
    /// its JSON. Everything but the seal is in them.
    pub fn sealed_bytes(&self, site: &SiteId) -> Vec<u8> {
        let mut release = serde_json::to_value(self).expect("a release has string keys only");
        if let Value::Object(fields) = &mut release {
            fields.remove("seal");
        }
        let mut out = DOMAIN.to_owned();
        canonical(&Value::from(site.as_str()), &mut out);
        out.push('\n');
        canonical(&release, &mut out);
        out.into_bytes()
    }
}

impl ReleaseSet {
    /// What the seal of a set signs: its number, and each release by its own seal, in order. So a field that only newer
    /// versions know changes nothing here, and no release can be left out, put in or moved.
    pub fn sealed_bytes(&self) -> Vec<u8> {
        let seals = |releases: &[Release]| -> Value {
            releases.iter().map(|r| r.seal.as_ref().map_or("", |seal| seal.signature.as_str())).collect()
        };
        let signed = serde_json::json!({
            "site": self.site,
            "version": self.version,
            "number": self.number,
            "releases": seals(&self.releases),
            "standby": seals(&self.standby),
            "coming": seals(&self.coming),
        });
        let mut out = SET_DOMAIN.to_owned();
        canonical(&signed, &mut out);
        out.into_bytes()
    }
}

/// JSON without spaces and with sorted keys. Sorted here, because whether `serde_json` keeps the order of insertion is
/// decided by any crate of the build.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| name.as_bytes());
            out.push('{');
            for (i, (name, value)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn key_id(public: &[u8]) -> String {
    hex::encode(&Digest::of(public).0[..8])
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(PEM_LINE_BYTES) {
        out.extend(line.iter().map(|&b| char::from(b)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// The key with which a region seals. Only the region's process has it.
pub struct SealKey {
    pair: Ed25519KeyPair,
    id: String,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The id only: a key in a log is a key lost.
        f.debug_tuple("SealKey").field(&self.id).finish()
    }
}

impl SealKey {
    fn new(pair: Ed25519KeyPair) -> Self {
        let id = key_id(pair.public_key().as_ref());
        Self { pair, id }
    }

    /// A new key from 32 bytes of the operating system's randomness.
    pub fn generate(random: &[u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(random).expect("any 32 bytes are an Ed25519 seed");
        Self::new(pair)
    }

    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::NotPrivate)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| KeyError::NotPrivate)?;
        Ok(Self::new(pair))
    }

    pub fn to_pem(&self) -> String {
        let der = self.pair.to_pkcs8v1().expect("a key pair in memory can be written");
        pem("PRIVATE KEY", der.as_ref())
    }

    /// What nodes are given to trust.
    pub fn public_pem(&self) -> String {
        let mut der = SPKI_PREFIX.to_vec();
        der.extend_from_slice(self.pair.public_key().as_ref());
        pem("PUBLIC KEY", &der)
    }

    /// The name of this key in a seal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Vouches for `release` at `site`, in place of any seal that it had.
    pub fn seal(&self, site: &SiteId, release: &mut Release) {
        let signature = self.pair.sign(&release.sealed_bytes(site));
        release.seal = Some(Seal { key: self.id.clone(), signature: BASE64.encode(signature.as_ref()) });
    }

    /// Vouches for a set whose releases are sealed.
    pub fn seal_set(&self, set: &mut ReleaseSet) {
        let signature = self.pair.sign(&set.sealed_bytes());
        set.seal = Some(Seal { key: self.id.clone(), signature: BASE64.encode(signature.as_ref()) });
    }

    /// The trust that goes with this very key.
    pub fn trusted(&self) -> TrustedKeys {
        let public = self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key is 32 bytes");
        TrustedKeys { keys: vec![(self.id.clone(), public)] }
    }
}

/// The public keys whose seals a node accepts.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    keys: Vec<(String, [u8; PUBLIC_KEY_BYTES])>,
}

impl TrustedKeys {
    /// Reads any number of PEMs, each of one key or of several: during a rotation there are two.
    pub fn from_pems<'p>(pems: impl IntoIterator<Item = &'p str>) -> Result<Self, KeyError> {
        let mut keys: Vec<(String, [u8; PUBLIC_KEY_BYTES])> = Vec::new();
        for text in pems {
            let before = keys.len();
            for der in SubjectPublicKeyInfoDer::pem_slice_iter(text.as_bytes()) {
                let der = der.map_err(|_| KeyError::NotPublic)?;
                let public = der.strip_prefix(&SPKI_PREFIX).ok_or(KeyError::NotPublic)?;
                let public: [u8; PUBLIC_KEY_BYTES] = public.try_into().map_err(|_| KeyError::NotPublic)?;
                keys.push((key_id(&public), public));
            }
            if keys.len() == before {
                return Err(KeyError::NotPublic);
            }
        }
        match keys.len() {
            0 => Err(KeyError::None),
            keys if keys > TRUSTED_KEYS_MAX => Err(KeyError::TooMany { keys }),
            _ => Ok(Self { keys }),
        }
    }

    /// The names of the keys, for a log line or a status page.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(id, _)| id.as_str())
    }

    /// Whether a trusted key vouches for exactly this release at exactly this site.
    pub fn verify(&self, site: &SiteId, release: &Release) -> Result<(), SealError> {
        let (plugin, number) = (release.plugin.to_string(), release.number);
        let Some(seal) = &release.seal else { return Err(SealError::Missing { plugin, number }) };
        match self.fits(seal, &release.sealed_bytes(site)) {
            Some(true) => Ok(()),
            Some(false) => Err(SealError::Broken { plugin, number }),
            None => Err(SealError::UnknownKey { plugin, number, key: shown(seal) }),
        }
    }

    /// Whether a trusted key vouches for exactly this set, and for every release that runs by it. What is to come is looked
    /// at when it is compiled. Whether the set is the newest is the node's to know.
    pub fn verify_set(&self, set: &ReleaseSet) -> Result<(), SealError> {
        let number = set.number;
        let seal = set.seal.as_ref().filter(|_| number > 0);
        let Some(seal) = seal else { return Err(SealError::SetMissing { version: set.version }) };
        match self.fits(seal, &set.sealed_bytes()) {
            Some(true) => {}
            Some(false) => return Err(SealError::SetBroken { number }),
            None => return Err(SealError::SetUnknownKey { number, key: shown(seal) }),
        }
        set.releases.iter().chain(&set.standby).try_for_each(|release| {
            if release.number == 0 {
                return Err(SealError::Unreleased { plugin: release.plugin.to_string() });
            }
            self.verify(&set.site, release)
        })
    }

    /// None: the key is not trusted.
    fn fits(&self, seal: &Seal, sealed: &[u8]) -> Option<bool> {
        let (_, public) = self.keys.iter().find(|(id, _)| *id == seal.key)?;
        Some(BASE64.decode(&seal.signature).is_ok_and(|signature| {
            UnparsedPublicKey::new(&ED25519, public).verify(sealed, &signature).is_ok()
        }))
    }
}

/// The name of a key as somebody else wrote it.
fn shown(seal: &Seal) -> String {
    seal.key.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{Grants, Hook, Kind, OnFault};

    fn site() -> SiteId {
        "shop".parse().expect("a site")
    }

    fn release() -> Release {
        Release {
            plugin: "pricing".parse().expect("a plugin"),
            number: 3,
            component: Digest::of(b"component"),
            hooks: vec![Hook::Pricing],
            // The last number is one that a fast parser reads as its neighbour.
            settings: serde_json::json!({
                "z": 1.1, "a": {"rate_bp": 750, "text": "50 % \"off\"\n"}, "f": 31.245270191439438,
            }),
            on_fault: OnFault::Closed,
            kind: Kind::Hooks,
            grants: Grants::default(),
            route: None,
            reuse: 0,
            record_bp: 25,
            seal: None,
        }
    }

    fn sealed(key: &SealKey) -> Release {
        let mut release = release();
        key.seal(&site(), &mut release);
        release
    }

    #[test]
    fn a_seal_survives_the_way_to_the_node() {
        let key = SealKey::generate(&[7; 32]);
        let trusted = TrustedKeys::from_pems([key.public_pem().as_str()]).expect("a public key");
        let sent = serde_json::to_vec(&sealed(&key)).expect("JSON");
        let arrived: Release = serde_json::from_slice(&sent).expect("a release");
        assert_eq!(trusted.verify(&site(), &arrived), Ok(()));
        assert_eq!(trusted.ids().collect::<Vec<_>>(), [key.id()]);
    }

    #[test]
    fn whatever_is_changed_breaks_the_seal() {
        let key = SealKey::generate(&[7; 32]);
        let trusted = key.trusted();
        let good = sealed(&key);
        type Change = fn(&mut Release);
        let changes: [(&str, Change); 11] = [
            ("plugin", |r| r.plugin = "cart".parse().expect("a plugin")),
            ("number", |r| r.number = 4),
            ("component", |r| r.component = Digest::of(b"another")),
            ("hooks", |r| r.hooks.push(Hook::Cart)),
            ("settings", |r| r.settings["a"]["rate_bp"] = 751.into()),
            ("on_fault", |r| r.on_fault = OnFault::Open),
            ("kind", |r| r.kind = Kind::Http),
            ("grants", |r| r.grants.hosts.push("api.example.com".to_owned())),
            ("route", |r| r.route = Some("/fn".to_owned())),
            ("reuse", |r| r.reuse = 2),
            ("record_bp", |r| r.record_bp = 26),
        ];
        // A field that is added to the release must be added above.
        let fields = serde_json::to_value(Release {
            kind: Kind::Http,
            grants: Grants { hosts: vec!["a.example".to_owned()], ..Grants::default() },
            route: Some("/fn".to_owned()),
            reuse: 2,
            ..good.clone()
        });
        let fields = fields.expect("JSON");
        let fields: Vec<_> = fields.as_object().expect("an object").keys().cloned().collect();
        let mut covered: Vec<_> = changes.iter().map(|(name, _)| (*name).to_owned()).collect();
        covered.push("seal".to_owned());
        covered.sort();
        assert_eq!(fields, covered);

        for (name, change) in changes {
            let mut bad = good.clone();
            change(&mut bad);
            let broken = SealError::Broken { plugin: bad.plugin.to_string(), number: bad.number };
            assert_eq!(trusted.verify(&site(), &bad), Err(broken), "{name}");
        }
        let elsewhere = trusted.verify(&"another".parse().expect("a site"), &good);
        assert!(matches!(elsewhere, Err(SealError::Broken { .. })), "{elsewhere:?}");
        assert_eq!(trusted.verify(&site(), &good), Ok(()));
    }

    #[test]
    fn a_set_is_what_the_region_has_put_together_and_nothing_else() {
        let key = SealKey::generate(&[7; 32]);
        let trusted = key.trusted();
        let with = |change: fn(&mut Release)| {
            let mut release = release();
            change(&mut release);
            key.seal(&site(), &mut release);
            release
        };
        let (one, two) = (with(|r| r.number = 1), with(|r| r.number = 2));
        let other = with(|r| r.plugin = "other".parse().expect("a plugin"));
        let pushed = with(|r| r.number = 0);
        let mut good = ReleaseSet {
            version: 5,
            number: 1_700_000_000_000,
            releases: vec![two, other.clone()],
            standby: vec![one.clone()],
            coming: vec![pushed.clone()],
            ..ReleaseSet::empty(site())
        };
        assert_eq!(trusted.verify_set(&good), Err(SealError::SetMissing { version: 5 }));
        key.seal_set(&mut good);
        let arrived = ReleaseSet::from_bytes(&good.to_bytes()).expect("readable");
        assert_eq!(trusted.verify_set(&arrived), Ok(()));

        let number = good.number;
        type Change<'a> = Box<dyn Fn(&mut ReleaseSet) + 'a>;
        let changes: [Change<'_>; 9] = [
            Box::new(|set| set.number += 1),
            Box::new(|set| set.version += 1),
            Box::new(|set| set.site = "another".parse().expect("a site")),
            Box::new(|set| set.releases.clear()),
            Box::new(|set| set.releases.reverse()),
            Box::new(|set| set.releases[0] = one.clone()),
            Box::new(|set| set.standby.clear()),
            Box::new(|set| set.standby = vec![other.clone()]),
            Box::new(|set| set.coming.clear()),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            let refused = trusted.verify_set(&bad);
            assert!(matches!(refused, Err(SealError::SetBroken { .. })), "change {index}: {refused:?}");
        }
        // Truly sealed, and yet nothing that may run.
        let sealed = |change: &dyn Fn(&mut ReleaseSet)| {
            let mut set = good.clone();
            change(&mut set);
            key.seal_set(&mut set);
            trusted.verify_set(&set)
        };
        assert_eq!(sealed(&|_| ()), Ok(()));
        assert_eq!(sealed(&|set| set.number = 0), Err(SealError::SetMissing { version: 5 }));
        let unreleased = Err(SealError::Unreleased { plugin: "pricing".to_owned() });
        assert_eq!(sealed(&|set| set.releases.push(pushed.clone())), unreleased);
        assert_eq!(sealed(&|set| set.standby.push(pushed.clone())), unreleased);
        let bare = release();
        let missing = sealed(&|set| set.releases.push(bare.clone()));
        assert!(matches!(missing, Err(SealError::Missing { .. })), "{missing:?}");
        let stranger = SealKey::generate(&[8; 32]);
        let unknown = stranger.trusted().verify_set(&good);
        assert_eq!(unknown, Err(SealError::SetUnknownKey { number, key: key.id().to_owned() }));
    }

    #[test]
    fn every_bit_of_the_signature_counts() {
        let key = SealKey::generate(&[7; 32]);
        let good = sealed(&key);
        let seal = good.seal.clone().expect("sealed");
        let signature = BASE64.decode(&seal.signature).expect("base64");
        for bit in 0..signature.len() * 8 {
            let mut bytes = signature.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let bad = Release {
                seal: Some(Seal { signature: BASE64.encode(bytes), ..seal.clone() }),
                ..good.clone()
            };
            assert!(
                matches!(key.trusted().verify(&site(), &bad), Err(SealError::Broken { .. })),
                "bit {bit}"
            );
        }
        let short = Release { seal: Some(Seal { signature: "====".to_owned(), ..seal }), ..good };
        assert!(matches!(key.trusted().verify(&site(), &short), Err(SealError::Broken { .. })));
    }

    #[test]
    fn keys_rotate_by_trusting_two() {
        let (old, new) = (SealKey::generate(&[1; 32]), SealKey::generate(&[2; 32]));
        let both = old.public_pem() + &new.public_pem();
        let both = TrustedKeys::from_pems([both.as_str()]).expect("two keys");
        assert_eq!(both.verify(&site(), &sealed(&old)), Ok(()));
        assert_eq!(both.verify(&site(), &sealed(&new)), Ok(()));
        let only_new = new.trusted().verify(&site(), &sealed(&old));
        assert!(matches!(only_new, Err(SealError::UnknownKey { key, .. }) if key == old.id()));
        assert!(matches!(new.trusted().verify(&site(), &release()), Err(SealError::Missing { .. })));
    }

    #[test]
    fn a_key_is_read_as_it_was_written_and_another_kind_is_refused() {
        let key = SealKey::generate(&[9; 32]);
        let read = SealKey::from_pem(&key.to_pem()).expect("its own PEM");
        assert_eq!(read.id(), key.id());
        assert_eq!(sealed(&read), sealed(&key));
        assert_eq!(SealKey::from_pem(&key.public_pem()).err(), Some(KeyError::NotPrivate));
        assert_eq!(SealKey::from_pem("").err(), Some(KeyError::NotPrivate));
        assert_eq!(TrustedKeys::from_pems([key.to_pem().as_str()]).err(), Some(KeyError::NotPublic));
        assert_eq!(TrustedKeys::from_pems([]).err(), Some(KeyError::None));
        let five = key.public_pem().repeat(5);
        assert_eq!(TrustedKeys::from_pems([five.as_str()]).err(), Some(KeyError::TooMany { keys: 5 }));
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }

    #[test]
    fn the_canonical_form_does_not_depend_on_the_order_of_keys() {
        let parse = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
        let mut a = String::new();
        canonical(&parse(r#"{"b":[1,{"y":null,"x":true}],"a":"é\u0007"}"#), &mut a);
        assert_eq!(a, "{\"a\":\"é\\u0007\",\"b\":[1,{\"x\":true,\"y\":null}]}");
    }
}

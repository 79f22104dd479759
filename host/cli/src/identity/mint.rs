//! Certificates of the link: an authority, and what it signs. Files are made and never replaced; keys are readable by
//! their owner only, from their first byte on.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use souk_link::Identity;
use x509_parser::pem::parse_x509_pem;

use crate::failure::Usage;

/// The authority's certificate, beside everything that it has signed.
pub(crate) const CA_FILE: &str = "ca.pem";
/// Whoever has this file can be any node and any region.
pub(crate) const CA_KEY_FILE: &str = "ca.key";

/// A clock that is a little behind must not refuse a certificate that was made just now.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// Who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    /// Seconds since 1970: what it signs is good no longer.
    until_s: i64,
}

/// The files of one end of the link.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Files {
    pub(crate) fn in_folder(folder: &Path, name: &str) -> Self {
        Self {
            ca: folder.join(CA_FILE),
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        }
    }
}

impl Authority {
    pub(crate) fn mint(name: &str, life: Duration) -> anyhow::Result<Self> {
        let mut params = params(name, life)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("make the authority's key")?;
        let cert = params.self_signed(&key).context("sign the authority's certificate")?;
        let until_s = params.not_after.unix_timestamp();
        Ok(Self { pem: cert.pem(), issuer: Issuer::new(params, key), until_s })
    }

    /// The one whose two files lie in a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, Usage> {
        let wrong = |name: &str, why: &dyn std::fmt::Display| {
            let make = "`souk identity authority DIR` makes one";
            Usage(format!("--authority {}: {why}; {make}", folder.join(name).display()))
        };
        let read = |name| std::fs::read_to_string(folder.join(name)).map_err(|e| wrong(name, &e));
        let (pem, key) = (read(CA_FILE)?, read(CA_KEY_FILE)?);
        let key = KeyPair::from_pem(&key).map_err(|e| wrong(CA_KEY_FILE, &e))?;
        let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|e| wrong(CA_FILE, &e))?;
        let certificate = block.parse_x509().map_err(|e| wrong(CA_FILE, &e))?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(wrong(CA_KEY_FILE, &"it is not the key of ca.pem beside it"));
        }
        let until_s = certificate.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|e| wrong(CA_FILE, &e))?;
        Ok(Self { issuer, pem, until_s })
    }

    /// Writes the certificate and, for whoever shall sign with it another day, its key.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        write_secret(&folder.join(CA_KEY_FILE), &self.issuer.key().serialize_pem())?;
        write_new(&folder.join(CA_FILE), &self.pem, 0o644)
    }

    /// Signs a certificate for `identity`, as a server also for the host names, and writes it with its key. Answers until when
    /// it is good, in seconds since 1970: as long as was asked for, and no longer than the authority.
    pub(crate) fn issue(
        &self,
        files: &Files,
        identity: &Identity,
        hosts: &[String],
        life: Duration,
    ) -> anyhow::Result<i64> {
        anyhow::ensure!(
            i64::try_from(since_1970()?.as_secs()).is_ok_and(|now| now < self.until_s),
            "the authority is no longer good; make a new one with `souk identity authority` and give its ca.pem to all"
        );
        let spiffe = identity.to_string();
        let mut params = params(&spiffe, life)?;
        params
            .subject_alt_names
            .push(SanType::URI(spiffe.as_str().try_into().context("write the SPIFFE id")?));
        for host in hosts {
            let name = match host.parse::<Ipv4Addr>() {
                Ok(address) => SanType::IpAddress(address.into()),
                Err(_) => SanType::DnsName(host.as_str().try_into().context("write the DNS name")?),
            };
            params.subject_alt_names.push(name);
        }
        if params.not_after.unix_timestamp() > self.until_s {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1)
                + Duration::from_secs(u64::try_from(self.until_s).unwrap_or_default());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().with_context(|| format!("make the key of {spiffe}"))?;
        let cert = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("sign the certificate of {spiffe}"))?;
        write_secret(&files.key, &key.serialize_pem())?;
        write_new(&files.cert, &cert.pem(), 0o644)?;
        Ok(params.not_after.unix_timestamp())
    }
}

fn params(name: &str, life: Duration) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).context("begin a certificate")?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_1970()?;
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + life;
    Ok(params)
}

pub(crate) fn since_1970() -> anyhow::Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).context("read a clock that is set before 1970")
}

/// Readable by its owner from its first byte on.
pub(crate) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    write_new(path, text, 0o600)
}

pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

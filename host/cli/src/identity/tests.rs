//! What `souk identity` makes is what the link takes, and nothing that is there is replaced.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use clap::Parser;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use souk_link::{Pem, StartError, TlsFiles};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: IdentityCommand,
}

/// As it is typed, with `@` for the folder of the test.
fn run(folder: &Path, line: &str) -> anyhow::Result<ExitCode> {
    let at = folder.to_str().expect("a path in UTF-8");
    let words = line.split(' ').map(|word| word.replace('@', at));
    command(&Line::try_parse_from(std::iter::once("souk".to_owned()).chain(words))?.command)
}

fn tls(folder: &Path, name: &str) -> TlsFiles {
    let Files { ca, cert, key } = Files::in_folder(folder, name);
    TlsFiles { ca: Pem::File(ca), cert: Pem::File(cert), key: Pem::File(key) }
}

fn chain(file: PathBuf) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).expect("a certificate")
}

#[test]
fn what_is_made_is_what_the_link_accepts_and_nobody_else_s() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    run(at, "authority @/ca").expect("an authority");
    let region =
        "region --authority @/ca --region eu-west --host region.example.net --host 10.0.0.5 --out @/region";
    run(at, region).expect("a region");
    std::fs::write(at.join("seal.pub"), "-----BEGIN PUBLIC KEY-----\n").expect("a key");
    run(at, "node --authority @/ca --region eu-west --node 7 --seal @/seal.pub --out @/edge")
        .expect("a node");

    let of = |region: &str| Identity::Region { region: region.to_owned() };
    let node = |region: &str, node| Identity::Edge { region: region.to_owned(), node };
    let (theirs, ours) = (tls(&at.join("region"), "region"), tls(&at.join("edge"), "edge-7"));
    theirs.check(&of("eu-west")).expect("the region's own");
    ours.check(&node("eu-west", 7)).expect("the node's own");
    for wrong in [node("eu-north", 7), node("eu-west", 8), of("eu-west")] {
        assert!(matches!(ours.check(&wrong), Err(StartError::WrongIdentity { .. })), "{wrong}");
    }
    assert!(matches!(theirs.check(&of("eu-north")), Err(StartError::WrongIdentity { .. })));

    // And each to the other, under the names that were given.
    let mut roots = RootCertStore::empty();
    roots.add(chain(at.join("edge/ca.pem"))).expect("an authority");
    let (roots, now) = (Arc::new(roots), UnixTime::now());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let server = server.build().expect("a verifier");
    let shown = chain(at.join("region/region.pem"));
    for (name, good) in [("region.example.net", true), ("10.0.0.5", true), ("other.example.net", false)] {
        let name = name.try_into().expect("a name");
        assert_eq!(server.verify_server_cert(&shown, &[], &name, &[], now).is_ok(), good, "{name:?}");
    }
    let client = WebPkiClientVerifier::builder_with_provider(roots, provider).build().expect("a verifier");
    client.verify_client_cert(&chain(at.join("edge/edge-7.pem")), &[], now).expect("one of ours");
    for key in ["ca/ca.key", "region/region.key", "edge/edge-7.key"] {
        let mode = std::fs::metadata(at.join(key)).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    assert!(at.join("edge/seal.pub").exists() && !at.join("edge/ca.key").exists());
}

#[test]
fn nothing_is_replaced_and_nothing_outlives_its_authority() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let refused = |line: &str| run(at, line).expect_err("a refusal").to_string();
    let node = "node --authority @/ca --region eu-west --node 1 --out @/edge";
    let absent = refused(node);
    assert!(
        absent.contains("ca.pem: No such file") && absent.contains("souk identity authority DIR"),
        "{absent}"
    );
    run(at, "authority @/ca --days 10").expect("an authority");
    assert!(refused("authority @/ca").contains("ca.pem is there already and is not replaced"));
    run(at, node).expect("a node");
    let before = std::fs::read(at.join("edge/edge-1.pem")).expect("a certificate");
    assert!(refused(node).contains("edge-1.pem is there already"));
    assert_eq!(std::fs::read(at.join("edge/edge-1.pem")).expect("a certificate"), before);
    // Another authority's folder is not mixed into this one's.
    run(at, "authority @/other").expect("an authority");
    let mixed = refused("node --authority @/other --region eu-west --node 2 --out @/edge");
    assert!(mixed.contains("ca.pem is there already"), "{mixed}");
    assert!(!at.join("edge/edge-2.pem").exists(), "all or nothing");
    std::fs::copy(at.join("other/ca.key"), at.join("ca/ca.key")).expect("a copy");
    assert!(
        refused("node --authority @/ca --region eu-west --node 3 --out @/3")
            .contains("not the key of ca.pem")
    );

    let authority = Authority::mint("short", DAY).expect("an authority");
    let files = Files::in_folder(at, "x");
    let identity = Identity::Region { region: "eu".to_owned() };
    let until = authority.issue(&files, &identity, &[], DAY * 100).expect("a certificate");
    let tomorrow = mint::since_1970().expect("a clock") + DAY;
    assert!(until <= i64::try_from(tomorrow.as_secs()).expect("soon"));
}

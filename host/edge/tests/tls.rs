//! TLS as clients meet it: a certificate for each name, renewed without a restart, sessions resumed, and no more versions and
//! protocols than are meant.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, HandshakeKind, ProtocolVersion};
use souk_config::doors::HttpsDoor;
use souk_edge::listen::{ListenLimits, Listener};
use souk_edge::tls::{Certificates, TlsError, server_config};
use support::{Echo, certificate, client, https, local, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

async fn serve(door: &HttpsDoor) -> (SocketAddr, Arc<Certificates>) {
    let certificates = Certificates::load(door).expect("pairs");
    let tls = server_config(Arc::clone(&certificates)).expect("a configuration");
    let listener = Listener::bind(local()).await.expect("a free port");
    let addr = listener.addr();
    tokio::spawn(listener.serve(
        Some(tls),
        ListenLimits::default(),
        Arc::new(Echo),
        CancellationToken::new(),
    ));
    (addr, certificates)
}

async fn shake(
    config: &Arc<ClientConfig>,
    addr: SocketAddr,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    let stream = TcpStream::connect(addr).await.expect("connected");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    soon(connector.connect(name, stream)).await
}

/// The certificate that is shown to whoever asks for a name.
async fn shown(config: &Arc<ClientConfig>, addr: SocketAddr, name: &str) -> CertificateDer<'static> {
    let stream = shake(config, addr, name).await.expect("a handshake");
    stream.get_ref().1.peer_certificates().expect("one").first().expect("one").clone()
}

#[tokio::test]
async fn each_name_has_its_certificate() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, first_der) = certificate(dir.path(), "first", &["shop.example"]);
    let (second, second_der) = certificate(dir.path(), "second", &["other.example", "*.other.example"]);
    let (third, third_der) = certificate(dir.path(), "third", &["own.other.example"]);
    let (addr, _) = serve(&https(Some(first), vec![second, third])).await;
    let all = [first_der.clone(), second_der.clone(), third_der.clone()];
    let config = Arc::new(client(&all, rustls::ALL_VERSIONS, &["h2"]));
    for (name, expected) in [
        ("shop.example", &first_der),
        ("other.example", &second_der),
        ("a.other.example", &second_der),
        ("own.other.example", &third_der),
    ] {
        assert_eq!(shown(&config, addr, name).await, *expected, "{name}");
    }
    // The default is shown to everybody else; whether it will do is theirs to decide.
    for name in ["unknown.example", "a.b.other.example", "127.0.0.1"] {
        let error = shake(&config, addr, name).await.expect_err("another name");
        assert!(error.to_string().contains("certificate not valid for name"), "{name}: {error}");
    }
}

#[tokio::test]
async fn without_a_default_unknown_names_get_an_alert() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, der) = certificate(dir.path(), "only", &["shop.example"]);
    let (addr, _) = serve(&https(None, vec![files])).await;
    let config = Arc::new(client(std::slice::from_ref(&der), rustls::ALL_VERSIONS, &["h2"]));
    assert_eq!(shown(&config, addr, "shop.example").await, der);
    for name in ["unknown.example", "127.0.0.1"] {
        let error = shake(&config, addr, name).await.expect_err("no certificate");
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        assert_eq!(cause, Some(&rustls::Error::AlertReceived(AlertDescription::AccessDenied)), "{name}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_and_half_a_pair_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, _) = certificate(dir.path(), "first", &["shop.example"]);
    let (second, old) = certificate(dir.path(), "second", &["other.example"]);
    let (addr, certificates) = serve(&https(Some(first), vec![second.clone()])).await;
    assert_eq!(certificates.refresh(), 0, "nothing has changed");

    let (made, new) = certificate(dir.path(), "made", &["other.example", "more.example"]);
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let swap = |from: &std::path::Path, to: &std::path::Path| {
        std::fs::copy(from, to).expect("copied");
        // Clocks of file systems are coarse, and the test is fast.
        let file = std::fs::File::options().append(true).open(to).expect("there");
        file.set_modified(later).expect("set");
    };
    swap(&made.cert, &second.cert);
    assert_eq!(certificates.refresh(), 0, "the key is still the old one");
    let config = Arc::new(client(&[old.clone(), new.clone()], rustls::ALL_VERSIONS, &["h2"]));
    assert_eq!(shown(&config, addr, "other.example").await, old);
    swap(&made.key, &second.key);
    assert_eq!(certificates.refresh(), 1);
    assert_eq!(shown(&config, addr, "other.example").await, new);
    assert_eq!(shown(&config, addr, "more.example").await, new);
}

#[tokio::test]
async fn sessions_are_resumed_under_their_own_name_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, der) = certificate(dir.path(), "shop", &["shop.example", "other.example"]);
    let (addr, _) = serve(&https(Some(files), Vec::new())).await;
    for (version, expected) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let config = Arc::new(client(std::slice::from_ref(&der), &[version], &["http/1.1"]));
        let mut kinds = Vec::new();
        for name in ["shop.example", "shop.example", "other.example"] {
            let mut stream = shake(&config, addr, name).await.expect("a handshake");
            assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
            kinds.push(stream.get_ref().1.handshake_kind().expect("done"));
            // Tickets come with the answer.
            let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            soon(stream.read_to_string(&mut answer)).await.expect("an answer");
            assert!(answer.ends_with("/ HTTP/1.1 tls=true"), "{answer}");
        }
        assert_eq!(kinds[1], HandshakeKind::Resumed, "{expected:?}: {kinds:?}");
        assert_ne!(kinds[2], HandshakeKind::Resumed, "{expected:?}: {kinds:?}");
    }
}

#[tokio::test]
async fn protocols_are_agreed_on_or_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, der) = certificate(dir.path(), "shop", &["shop.example"]);
    let (addr, _) = serve(&https(Some(files), Vec::new())).await;
    for (offered, agreed) in
        [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
    {
        let config = Arc::new(client(std::slice::from_ref(&der), rustls::ALL_VERSIONS, offered));
        let stream = shake(&config, addr, "shop.example").await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
    }
    // HTTP/3 is spoken over QUIC alone.
    let config = Arc::new(client(&[der], rustls::ALL_VERSIONS, &["h3"]));
    let error = shake(&config, addr, "shop.example").await.expect_err("nothing in common");
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    assert_eq!(cause, Some(&rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
}

#[test]
fn files_that_are_no_pair_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let (good, _) = certificate(dir.path(), "good", &["shop.example"]);
    let (other, _) = certificate(dir.path(), "other", &["shop.example"]);
    let (nameless, _) = certificate(dir.path(), "nameless", &["127.0.0.1"]);
    let pair = |cert: &std::path::Path, key: &std::path::Path| {
        let files = souk_config::doors::CertificateFiles { cert: cert.into(), key: key.into() };
        Certificates::load(&https(Some(files), Vec::new())).map(drop)
    };
    assert!(matches!(pair(&good.cert, &other.key), Err(TlsError::Mismatch { .. })));
    assert!(matches!(pair(&good.key, &good.key), Err(TlsError::Certificate { .. })));
    assert!(matches!(pair(&good.cert, &good.cert), Err(TlsError::Key { .. })));
    pair(&nameless.cert, &nameless.key).expect("a default needs no name");
    let named = Certificates::load(&https(Some(good), vec![nameless]));
    assert!(matches!(named, Err(TlsError::Nameless { .. })));
}

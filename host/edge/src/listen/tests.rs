//! Handshakes that find no place.

use futures_util::FutureExt as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use souk_config::doors::{CertificateFiles, HttpsDoor};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

use super::*;
use crate::gate::Tie;
use crate::http::full;
use crate::tls::{Certificates, server_config};

const PATIENCE: Duration = Duration::from_secs(20);

struct Hello;

impl Answer for Hello {
    fn answer(self: Arc<Self>, _: Request<RequestBody>, _: Peer) -> BoxFuture<'static, Response<Body>> {
        async { Response::new(full("hello")) }.boxed()
    }
}

/// A listener with TLS behind `gate`, and what its clients trust.
async fn serve(gate: Arc<Gate>) -> (SocketAddr, CertificateDer<'static>) {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let files = CertificateFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).expect("written");
    std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (default, certificates) = (Some(files), Vec::new());
    let https = HttpsDoor { addrs: vec![any], default, certificates, http3: false, acme: None };
    let tls = server_config(Certificates::load(&https).expect("a pair")).expect("a configuration");
    let listener = Listener::bind(any).await.expect("a free port").through(gate);
    let addr = listener.addr();
    tokio::spawn(listener.serve(
        Some(tls),
        ListenLimits::default(),
        Arc::new(Hello),
        CancellationToken::new(),
    ));
    (addr, made.cert.der().clone())
}

async fn shake_with(addr: SocketAddr, root: &CertificateDer<'static>) -> io::Result<ClientStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream);
    tokio::time::timeout(PATIENCE, shaken).await.expect("it ends in time")
}

#[tokio::test]
async fn a_handshake_without_a_place_is_shed_before_it_costs_anything() {
    let gate = ListenLimits::default().gate();
    let (addr, root) = serve(Arc::clone(&gate)).await;
    // As many as one address may have, of others that do not go on.
    let tie: Arc<Tie> = gate.admit(addr.ip()).expect("room");
    let mut stalled: Vec<_> = (0..).map_while(|_| tie.shake(PATIENCE)).collect();
    // Somebody who only connects has taken no place of those, and keeps none of them.
    let silent = TcpStream::connect(addr).await.expect("connected");
    let error = shake_with(addr, &root).await.expect_err("no place");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    // Almost all of them, so that there is no crowd either.
    stalled.truncate(1);
    shake_with(addr, &root).await.expect("a place is free");
    drop((silent, stalled));
}

//! A region as `souk region` raises it, and the way to its control API.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

#[path = "../../src/store/tests/server.rs"]
#[expect(dead_code, reason = "what the store's own tests do to a server besides is theirs")]
pub(crate) mod server;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use souk_config::RegionConfig;
use souk_region::{Running, run};
use souk_sandbox::Compiler;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub(crate) const TOKEN: &str = "souk_test_0123456789abcdef";

pub(crate) struct Region {
    pub(crate) dir: tempfile::TempDir,
    running: Option<Running>,
    /// What its file says besides.
    extra: String,
    shutdown: CancellationToken,
}

fn certificates(dir: &std::path::Path) {
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let mut leaf = CertificateParams::new(vec!["region.test".to_owned()]).unwrap();
    leaf.subject_alt_names.push(SanType::URI("spiffe://souk/eu/region".try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    let cert = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    std::fs::write(dir.join("ca.pem"), ca_cert.pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

impl Region {
    pub(crate) async fn new() -> Self {
        Self::with(&[], String::new()).await
    }

    /// With files of its own beside its configuration, and more in that.
    pub(crate) async fn with(files: &[(&str, &str)], extra: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
            // Keys are among them.
            std::fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o600)).unwrap();
        }
        let mut region = Self { dir, running: None, extra, shutdown: CancellationToken::new() };
        region.start().await;
        region
    }

    pub(crate) async fn start(&mut self) {
        let hash = hex::encode(Sha256::digest(TOKEN));
        let text = format!(
            "[region]\nname = \"eu\"\ndata_dir = \"data\"\n[listen]\nlink = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n\
             [link]\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\n\
             [control]\noperator_token_sha256 = \"{hash}\"\n{}",
            self.extra
        );
        let config = RegionConfig::parse(&text, &self.dir.path().join("region.toml")).unwrap();
        self.shutdown = CancellationToken::new();
        self.running = Some(run(config, Compiler::InProcess, self.shutdown.clone()).await.unwrap());
    }

    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.running.take().unwrap().join).await;
        ended.expect("it ends").unwrap().unwrap();
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.running.as_ref().unwrap().control_addr
    }

    pub(crate) async fn send(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addr()).await.unwrap();
        let head =
            format!("{head}\r\nhost: region\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // A refusal may come, and the connection go, before all of the body is sent.
        let _cut = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _cut = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json"
        );
        self.send(&head, body).await
    }

    pub(crate) async fn ask_as(&self, token: &str, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nauthorization: Bearer {token}\r\ncontent-type: application/json"
        );
        self.send(&head, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("PUT", path, body).await
    }

    pub(crate) async fn json(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.ask(method, path, body.to_string().as_bytes()).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{status} {body:?}: {e}")))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.ask("GET", path, b"").await;
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{status} {body:?}: {e}")))
    }

    pub(crate) async fn make_site(&self) {
        let (status, answer) = self.put("/v1/sites/shop", json!({ "site": "shop", "currency": "GBP" })).await;
        assert_eq!((status, &answer["created"]), (200, &json!(true)), "{answer}");
    }
}

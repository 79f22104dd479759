//! Three servers of NATS of a row's own, over TLS with certificates on both sides and a password; and somebody who listens
//! there, keeps the ids of what he was told, and compares it with what has happened.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream::Stream};
use futures_util::StreamExt as _;
use rcgen::{BasicConstraints, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use souk_tests::cluster::own_address;
use souk_tests::http::Client;
use souk_tests::identity::params;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::run::SERVES_WITHIN;

pub(crate) const SERVERS: usize = 3;
const STREAM: &str = "souk-events";
const LISTENER: &str = "warehouse";
pub(crate) const USER: &str = "souk";
pub(crate) const PASSWORD: &str = "a password of the test's";
/// Certificates are valid since an hour ago.
const VALID_SINCE: Duration = Duration::from_secs(3_600);
const POLL: Duration = Duration::from_millis(50);
/// A question to a server that was killed is asked again after so long: it is a part of what is measured.
const ASKS_FOR: Duration = Duration::from_secs(1);
const PAGE: usize = 1_000;
/// A member that comes back, elections, and what it has missed.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);

/// Debian's package, or another one in the path.
pub(crate) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    folders.into_iter().map(|folder| folder.join("nats-server")).find(|file| file.exists())
}

/// A cluster of them; dropping it ends all.
pub(crate) struct Nats {
    program: PathBuf,
    folder: TempDir,
    ip: Ipv4Addr,
    ports: Vec<u16>,
    running: Vec<Option<Child>>,
}

impl Nats {
    pub(crate) fn start(program: PathBuf) -> Result<Self> {
        let (folder, ip) = (tempfile::Builder::new().prefix("souk-nats-").tempdir()?, own_address());
        // Members have to know each other's ports before they start. Nobody else listens on this address.
        let held = (0..2 * SERVERS).map(|_| TcpListener::bind((ip, 0)));
        let held = held.collect::<Result<Vec<_>, _>>()?;
        let ports = held.iter().map(|listener| Ok(listener.local_addr()?.port()));
        let ports = ports.collect::<Result<Vec<_>>>()?;
        drop(held);
        certify(folder.path(), ip)?;
        std::fs::write(folder.path().join("password"), format!("{PASSWORD}\n"))?;
        let mut this = Self { program, folder, ip, ports, running: (0..SERVERS).map(|_| None).collect() };
        for member in 0..SERVERS {
            this.start_member(member)?;
        }
        Ok(this)
    }

    pub(crate) fn start_member(&mut self, member: usize) -> Result<()> {
        let routes = (0..SERVERS).map(|of| format!("nats://{}:{}", self.ip, self.ports[SERVERS + of]));
        let config = json!({
            "server_name": format!("n{member}"),
            "listen": format!("{}:{}", self.ip, self.ports[member]),
            "authorization": { "user": USER, "password": PASSWORD },
            // Both sides show who they are.
            "tls": {
                "cert_file": self.file("server.pem"),
                "key_file": self.file("server.key"),
                "ca_file": self.file("ca.pem"),
                "verify": true,
            },
            "jetstream": { "store_dir": self.path(member, "data"), "max_mem": 64 << 20, "max_file": 1 << 30 },
            "cluster": {
                "name": "souk",
                "listen": format!("{}:{}", self.ip, self.ports[SERVERS + member]),
                "routes": routes.collect::<Vec<_>>(),
            },
        });
        let file = self.path(member, "conf");
        std::fs::write(&file, config.to_string())?;
        let log = std::fs::File::options().create(true).append(true).open(self.path(member, "log"))?;
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.running[member] = Some(child);
        Ok(())
    }

    fn path(&self, member: usize, what: &str) -> PathBuf {
        self.file(&format!("n{member}.{what}"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a region is told of it.
    pub(crate) fn settings(&self) -> Value {
        json!({
            "broker": "nats",
            "servers": self.servers(),
            "user": USER,
            "password_file": self.file("password"),
            "ca": self.file("ca.pem"),
            "cert": self.file("client.pem"),
            "key": self.file("client.key"),
            "stream": STREAM,
        })
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) -> Result<()> {
        let mut child = self.running[member].take().context("it runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn servers(&self) -> Vec<String> {
        (0..SERVERS).map(|member| format!("{}:{}", self.ip, self.ports[member])).collect()
    }

    /// What the servers said last, for the reader of a failure.
    pub(crate) fn last_words(&self) -> String {
        let words = |member: usize| {
            let text = std::fs::read_to_string(self.path(member, "log")).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(12).collect();
            format!("n{member}:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        (0..SERVERS).map(words).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How whoever connects shows who he is, with what [`certify`] has left in a folder.
pub(crate) fn client_tls(folder: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(builder.with_client_auth_cert(
        vec![CertificateDer::from_pem_file(folder.join("client.pem"))?],
        PrivateKeyDer::from_pem_file(folder.join("client.key"))?,
    )?)
}

/// As somebody who may read what the region has handed on.
async fn connect(nats: &Nats) -> Result<jetstream::Context> {
    let tls = client_tls(nats.folder.path())?;
    let options = async_nats::ConnectOptions::with_user_and_password(USER.to_owned(), PASSWORD.to_owned())
        .require_tls(true)
        .tls_client_config(tls)
        .retry_on_initial_connect();
    let mut context = jetstream::new(options.connect(nats.servers()).await?);
    context.set_timeout(ASKS_FOR);
    Ok(context)
}

/// An authority, a certificate of all servers, and one of whoever connects.
pub(crate) fn certify(folder: &Path, ip: Ipv4Addr) -> Result<()> {
    let authority_key = KeyPair::generate()?;
    let mut authority = params(&[], VALID_SINCE)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name = named("authority");
    std::fs::write(folder.join("ca.pem"), authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::new(authority, authority_key);
    for (name, names) in [("server", &[ip.to_string().as_str()] as &[&str]), ("client", &[])] {
        let mut own = params(names, VALID_SINCE)?;
        own.distinguished_name = named(name);
        own.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        std::fs::write(folder.join(format!("{name}.pem")), own.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// To Erlang a certificate whose issuer has the same name as it has itself is nobody's but its own.
fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Waits until the stream has a leader and every copy is whole: another member may go then.
pub(crate) async fn is_whole(context: &jetstream::Context, nats: &Nats) -> Result<Stream> {
    let began = Instant::now();
    loop {
        let found = context.get_stream(STREAM).await;
        let stands = match &found {
            Ok(stream) => {
                let cluster = stream.cached_info().cluster.as_ref();
                let whole = cluster.is_some_and(|cluster| {
                    let copies = cluster.replicas.iter().filter(|copy| copy.current && !copy.offline);
                    cluster.leader.is_some() && copies.count() == SERVERS - 1
                });
                if whole { None } else { Some(format!("{cluster:?}")) }
            }
            Err(error) => Some(error.to_string()),
        };
        let Some(stands) = stands else { return Ok(found?) };
        ensure!(
            began.elapsed() < WHOLE_WITHIN,
            "the stream is not whole again: {stands}\n{}",
            nats.last_words()
        );
        sleep(POLL).await;
    }
}

/// Messages in the stream; none while nobody can say.
pub(crate) async fn messages(context: &jetstream::Context) -> Option<u64> {
    Some(context.get_stream(STREAM).await.ok()?.cached_info().state.messages)
}

/// Waits until there are so many more messages in the stream than `before`.
pub(crate) async fn arrive(
    context: &jetstream::Context,
    before: u64,
    more: u64,
    nats: &Nats,
) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let now = messages(context).await;
        if now.is_some_and(|now| now >= before + more) {
            return Ok(began.elapsed());
        }
        let words = nats.last_words();
        ensure!(began.elapsed() < SERVES_WITHIN, "{now:?} messages, {before} before\n{words}");
        sleep(POLL).await;
    }
}

/// The server that leads the stream.
pub(crate) fn leader(stream: &Stream) -> Result<usize> {
    let cluster = stream.cached_info().cluster.as_ref();
    let name = cluster.and_then(|cluster| cluster.leader.as_deref()).context("the stream has a leader")?;
    let number = name.strip_prefix('n').and_then(|number| number.parse().ok());
    number.with_context(|| format!("{name} is none of the servers"))
}

/// Everything in the region's outbox that is of this shop.
pub(crate) async fn outbox(operator: &Client, site: &str) -> Result<Vec<Value>> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = operator.get(&format!("/v1/sites/{site}/events?after={after}&limit={PAGE}")).await?.json();
        let page = page.as_array().context("a list of events")?.clone();
        let Some(last) = page.last() else { return Ok(all) };
        after = last["seq"].as_u64().context("a number")?;
        all.extend(page);
    }
}

/// Somebody who is told of a shop's orders, and deals with each event once.
pub(crate) struct Listener {
    pub(crate) context: jetstream::Context,
    pub(crate) heard: Heard,
    /// What his shop's subjects begin with.
    subjects: String,
}

/// What he was told.
#[derive(Default)]
pub(crate) struct Heard {
    /// By id, with the first that came.
    pub(crate) events: HashMap<String, Value>,
    /// Each order's numbers as they came first.
    of_order: BTreeMap<String, Vec<u64>>,
    pub(crate) messages: u64,
}

impl Listener {
    pub(crate) async fn connect(nats: &Nats, region: &str, site: &str) -> Result<Self> {
        let subjects = format!("souk.{region}.{site}.");
        Ok(Self { context: connect(nats).await?, heard: Heard::default(), subjects })
    }

    /// Takes what there is, or comes within [`ASKS_FOR`]. A server that was just killed has nothing; whoever calls asks again.
    pub(crate) async fn listen(&mut self) -> Result<()> {
        let Some(mut batch) = self.fetch().await else {
            sleep(POLL).await;
            return Ok(());
        };
        while let Some(Ok(message)) = batch.next().await {
            let header = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
            let id = header.map(|header| header.as_str());
            self.heard.hear(&message.payload, id, message.subject.as_str(), &self.subjects)?;
            // An acknowledgement that is lost brings the message again, which is told by its id.
            let _lost = message.ack().await;
        }
        Ok(())
    }

    async fn fetch(&self) -> Option<pull::Batch> {
        let config = pull::Config {
            durable_name: Some(LISTENER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ..pull::Config::default()
        };
        let stream = self.context.get_stream(STREAM).await.ok()?;
        let consumer: PullConsumer = stream.get_or_create_consumer(LISTENER, config).await.ok()?;
        consumer.fetch().max_messages(PAGE).expires(ASKS_FOR).messages().await.ok()
    }

    /// Listens until there are as many events as have happened.
    pub(crate) async fn listen_to_all_of(&mut self, outbox: &[Value], nats: &Nats) -> Result<()> {
        let began = Instant::now();
        while self.heard.events.len() < outbox.len() {
            let (heard, words) = (self.heard.events.len(), nats.last_words());
            let in_time = began.elapsed() < SERVES_WITHIN;
            ensure!(in_time, "{heard} of {} events have come\n{words}", outbox.len());
            self.listen().await?;
        }
        Ok(())
    }
}

impl Heard {
    /// `header`: the id that is said beside the message; `subject`: what listeners pick it by, which begins with `subjects`.
    pub(crate) fn hear(
        &mut self,
        body: &[u8],
        header: Option<&str>,
        subject: &str,
        subjects: &str,
    ) -> Result<()> {
        let event: Value = serde_json::from_slice(body)?;
        let id = event["id"].as_str().context("an id")?.to_owned();
        ensure!(header == Some(id.as_str()), "another id in the header: {event}");
        let kind = event["type"].as_str().and_then(|kind| kind.strip_prefix("souk.")).context("a type")?;
        ensure!(subject.strip_prefix(subjects) == Some(kind), "{subject} is not {subjects}{kind}");
        self.messages += 1;
        let order = event["subject"].as_str().context("an order")?.to_owned();
        let number = event["sequence"].as_str().context("a sequence")?.parse()?;
        if self.events.insert(id, event).is_none() {
            self.of_order.entry(order).or_default().push(number);
        }
        Ok(())
    }

    /// Messages that came again.
    pub(crate) fn repeated(&self) -> u64 {
        self.messages - self.events.len() as u64
    }

    /// Everything that has happened was told, nothing else, and of each order in order. Answers how many orders there are, and
    /// how many of them have several events.
    pub(crate) fn is_all_of(&self, outbox: &[Value]) -> Result<(usize, usize)> {
        let mut happened: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for event in outbox {
            let id = event["id"].as_str().context("an id")?;
            let told = self.events.get(id).with_context(|| format!("{event} was told to nobody"))?;
            ensure!(
                told["type"] == format!("souk.{}", event["kind"].as_str().unwrap_or_default()),
                "{event}: {told}"
            );
            ensure!(told["data"]["total"] == event["detail"]["total"], "another amount: {event}, {told}");
            ensure!(told["data"].get("cart").is_none(), "a cart's number is the cart: {told}");
            let order = event["order"].as_str().context("an order")?.to_owned();
            happened.entry(order).or_default().push(event["seq"].as_u64().context("a number")?);
        }
        ensure!(self.events.len() == outbox.len(), "{} events, {} happened", self.events.len(), outbox.len());
        for (order, numbers) in &happened {
            let came = &self.of_order[order];
            ensure!(came == numbers, "events of {order} came as {came:?}, and happened as {numbers:?}");
        }
        let several = happened.values().filter(|events| events.len() > 1).count();
        Ok((happened.len(), several))
    }
}

//! What attackers do to caches, done to a running `souk proxy` before an origin that is careless on purpose: the cache's
//! part of the threat table, from outside. What each claims follows from counts, contents and gates; no time decides.

mod client;
mod origin;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::{self, TryStreamExt as _};
use http::{Method, StatusCode};
use souk_tests::proxy::Proxy;
use souk_tests::say;

use self::client::{Answer, Client, Multiplexed};
use self::origin::{Origin, SECRET};

/// Nothing here takes longer unless it hangs; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients of the stampede, and the connections that carry them: a hundred streams each is what a connection may have.
const STAMPEDE: usize = 5_000;
const CONNECTIONS: usize = 100;
/// Who asks at once for what may not be stored. Half of what an upstream may be asked at once.
const ALONE: u32 = 500;
const LANGUAGES: usize = 10_000;
/// `souk_cache::vary::VARIANTS_MAX`, as `docs/CACHE.md` promises it.
const VARIANTS_MAX: usize = 16;
const BIG_BYTES: usize = 256 * 1024;
/// Keys of the flood, each a fetch over sockets. The crate's own test fills the tables with a hundred thousand.
const KEYS: usize = 20_000;
const CANARY: &str = "canary-7f3a";
const HOST: &str = "shop.example";

struct World {
    origin: Origin,
    proxy: Proxy,
    client: Client,
}

impl World {
    async fn start(flags: &[&str]) -> Result<Self> {
        let origin = Origin::start().await?;
        let proxy = Proxy::start_with(origin.addr, flags).await?;
        let client = Client(proxy.addr);
        Ok(Self { origin, proxy, client })
    }

    fn admin(&self) -> Client {
        Client(self.proxy.admin)
    }

    /// A gauge or counter without labels.
    async fn metric(&self, name: &str) -> Result<u64> {
        let page = self.admin().get("admin", "/metrics", &[]).await?.text();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in\n{page}"))
    }

    async fn until_metric(&self, name: &str, at_least: u64) -> Result<()> {
        let mut last = 0;
        let reached = async {
            loop {
                last = self.metric(name).await?;
                if last >= at_least {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached.with_context(|| format!("{name} is {last} and never {at_least}"))?
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_on_a_cold_key_are_one_fetch() -> Result<()> {
    let world = World::start(&[]).await?;
    let connections = try_join_all((0..CONNECTIONS).map(|_| Multiplexed::open(world.proxy.addr))).await?;
    let asked = connections.iter().cycle().take(STAMPEDE).cloned();
    let asked: Vec<_> = asked
        .map(|connection| tokio::spawn(async move { connection.get(HOST, "/cold", &[]).await }))
        .collect();
    // Every client but the one that fetches is known to wait before the origin says a word.
    world.until_metric("souk_proxy_waiting", STAMPEDE as u64 - 1).await?;
    world.origin.open();
    for answer in asked {
        let answer = answer.await??;
        ensure!(answer.status == 200 && answer.body == "x", "{answer:?}");
    }
    let fetches = world.origin.asked("shop.example/cold");
    ensure!(fetches == 1, "the origin was asked {fetches} times");
    say(&format!("stampede: {STAMPEDE} clients waited for 1 fetch"));
    Ok(())
}

/// The origin answers all but the first only when all of them are there: whoever lines them up never gets an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_what_may_not_be_stored_nobody_waits_for_another() -> Result<()> {
    let world = World::start(&[]).await?;
    let connections = try_join_all((0..10).map(|_| Multiplexed::open(world.proxy.addr))).await?;
    let asked = connections.iter().cycle().take(ALONE as usize);
    let answers = try_join_all(asked.map(|connection| connection.get(HOST, "/alone", &[]))).await?;
    for answer in answers {
        ensure!(answer.status == 200, "{} for whom nobody came", answer.status);
    }
    let fetches = world.origin.asked("shop.example/alone");
    ensure!(fetches == ALONE, "{fetches} fetches for {ALONE} clients");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_languages_are_sixteen_variants() -> Result<()> {
    let world = World::start(&[]).await?;
    world.client.get("calm.example", "/calm", &[]).await?;
    let connection = Multiplexed::open(world.proxy.addr).await?;
    let count = |control: Option<&'static str>| {
        let connection = &connection;
        let answers = stream::iter(0..LANGUAGES).map(move |number| async move {
            let language = format!("x-{number}");
            let mut fields = vec![("accept-language", language.as_str())];
            fields.extend(control.map(|control| ("cache-control", control)));
            anyhow::Ok(connection.get(HOST, "/vary", &fields).await?.status)
        });
        answers
            .buffer_unordered(50)
            .try_fold(0, |sum, status| async move { Ok(sum + usize::from(status == StatusCode::OK)) })
    };
    let answered = count(None).await?;
    ensure!(answered == LANGUAGES, "{answered} of {LANGUAGES} were answered");
    // Every value again, for what is stored only: no more than may be are.
    let stored = count(Some("only-if-cached")).await?;
    ensure!((1..=VARIANTS_MAX).contains(&stored), "{stored} variants are stored");
    let told = world.admin().get("admin", "/explain?url=http://shop.example/vary", &[]).await?.text();
    ensure!(told.contains(&format!("{stored} of at most {VARIANTS_MAX} stored")), "{told}");
    let calm = world.client.get("calm.example", "/calm", &[]).await?;
    ensure!(calm.says("hit") && world.origin.asked("calm.example/calm") == 1, "{calm:?}");
    say(&format!("vary bomb: {LANGUAGES} values, {stored} variants stored; the other key is still a hit"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_keys_stays_within_its_memory() -> Result<()> {
    const MEMORY: u64 = 4 << 20;
    let world = World::start(&["--memory", "4 MiB"]).await?;
    let connections = try_join_all((0..4).map(|_| Multiplexed::open(world.proxy.addr))).await?;
    let answers = stream::iter(0..KEYS).map(|number| {
        let connection = &connections[number % connections.len()];
        async move { connection.get(HOST, &format!("/k/{number:x}"), &[]).await }
    });
    let wrong = answers
        .buffer_unordered(64)
        .try_fold(0, |sum, answer| async move { Ok(sum + usize::from(answer.status != StatusCode::OK)) })
        .await?;
    ensure!(wrong == 0, "{wrong} of {KEYS} were not answered");
    let (stored, keys) =
        (world.metric("souk_proxy_stored_bytes").await?, world.metric("souk_proxy_stored_keys").await?);
    ensure!(stored <= MEMORY && keys > 0, "{stored} bytes, {keys} keys");
    say(&format!("flood: {KEYS} keys, {keys} of them kept in {stored} of {MEMORY} bytes"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaks_and_nothing_is_poisoned() -> Result<()> {
    let world = World::start(&[]).await?;
    deception(&world).await.context("cache deception")?;
    unkeyed(&world).await.context("unkeyed fields")?;
    fat_get(&world).await.context("fat GET")?;
    tenants(&world).await.context("two tenants")?;
    denial(&world).await.context("poisoning with errors")?;
    range_bomb(&world).await.context("range bomb")?;
    Ok(())
}

/// Ways to make a private page look like a file that may be kept.
const DECEPTIONS: [&str; 34] = [
    "/account/x.css",
    "/account;x.css",
    "/account;/x.css",
    "/account/;x.css",
    "/account.css",
    "/account/.css",
    "/account/x.js",
    "/account/x.png",
    "/account/x.CSS",
    "/account/x.woff2",
    "/account/robots.txt",
    "/account/favicon.ico",
    "/account/static/x.css",
    "/account//x.css",
    "/account/./x.css",
    "/account/../account/x.css",
    "/static/../account",
    "/static/..%2faccount",
    "/static/%2e%2e/account",
    "/account%2fx.css",
    "/account%2f..%2fx.css",
    "/account/..%2fx.css",
    "/account%3bx.css",
    "/account%3fx.css",
    "/account%23x.css",
    "/account%20.css",
    "/account%00.css",
    "/account%0a.css",
    "/account%0d%0ax.css",
    "/account%5cx.css",
    "/account%c0%afx.css",
    "/account?x.css",
    "/account?/x.css",
    "/account;jsessionid=1.css?v=2",
];

async fn deception(world: &World) -> Result<()> {
    let mut served = 0;
    for host in ["silent.example", "private.example", "no-store.example", "cookie.example"] {
        for path in DECEPTIONS {
            let victim = world.client.get(host, path, &[("cookie", "session=victim")]).await?;
            let reached = victim.status == 200 && victim.body == SECRET;
            ensure!(reached || victim.status == 400, "{host}{path}: {victim:?}");
            served += usize::from(reached);
            for _ in 0..2 {
                let thief = world.client.get(host, path, &[]).await?;
                ensure!(!thief.text().contains(SECRET), "{host}{path} gives the page away: {thief:?}");
                ensure!(!thief.says("hit"), "{host}{path} is stored: {thief:?}");
            }
        }
    }
    let asked = 4 * DECEPTIONS.len();
    ensure!(served > asked / 2, "the origin was not deceived: {served} of {asked}");
    say(&format!("cache deception: {served} of {asked} reached the private page, 0 leaked"));
    Ok(())
}

/// Fields that frameworks believe and no key holds, in the spellings that reach them.
const UNKEYED: [&str; 40] = [
    "forwarded",
    "x-forwarded",
    "x-forwarded-for",
    "x-forwarded-by",
    "x-forwarded-host",
    "x-forwarded-server",
    "x-forwarded-scheme",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-ssl",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-path",
    "x-forwarded-uri",
    "x-original-url",
    "x-original-host",
    "x-original-uri",
    "x-rewrite-url",
    "x-override-url",
    "x-host",
    "x-http-host-override",
    "x-http-destinationurl",
    "x-proxy-url",
    "x-scheme",
    "x-url-scheme",
    "front-end-https",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-souk-node",
    "x_forwarded_host",
    "x-forwarded_host",
    "x_original_url",
    "x_http_method_override",
];

async fn unkeyed(world: &World) -> Result<()> {
    let live = world.client.get(HOST, "/reflect-live", &[("shop-note", CANARY)]).await?;
    ensure!(live.text().contains(CANARY), "the origin reflects nothing: {live:?}");
    for (number, name) in UNKEYED.into_iter().enumerate() {
        let path = format!("/reflect/{number}");
        let poisoned = world.client.get(HOST, &path, &[(name, CANARY)]).await?;
        let clean = world.client.get(HOST, &path, &[]).await?;
        ensure!(poisoned.status == 200 && poisoned.body == clean.body, "{name}: {poisoned:?}\n{clean:?}");
        ensure!(!clean.text().contains(CANARY), "{name} reaches everybody: {clean:?}");
        ensure!(clean.says("hit"), "{name}: the page was not even stored: {clean:?}");
    }
    Ok(())
}

async fn fat_get(world: &World) -> Result<()> {
    world.client.get(HOST, "/reflect/stored", &[]).await?;
    for (number, path) in ["/reflect/fat-cold", "/reflect/stored"].into_iter().enumerate() {
        for (method, chunked) in [(Method::GET, false), (Method::GET, true), (Method::HEAD, false)] {
            let fat = world.client.send(&method, HOST, path, &[], Some((CANARY, chunked))).await?;
            ensure!(fat.status == 400, "{method} {path}, chunked {chunked}: {fat:?}");
            let asked = world.origin.asked(&format!("{HOST}{path}"));
            ensure!(asked as usize == number, "a fat {method} reached the origin of {path}");
        }
    }
    for path in ["/reflect/fat-cold", "/reflect/stored"] {
        let clean = world.client.get(HOST, path, &[]).await?;
        ensure!(clean.status == 200 && clean.text().ends_with("body: "), "{clean:?}");
    }
    Ok(())
}

async fn tenants(world: &World) -> Result<()> {
    let of = |host: &str| format!("the page of {host}");
    let spellings = [("a.example", "a.example"), ("b.example", "b.example"), ("A.Example:80", "a.example")];
    for path in ["/tenant", "/tenant-fresh"] {
        for round in 0..3 {
            for (host, whose) in spellings {
                let answer = world.client.get(host, path, &[]).await?;
                ensure!(
                    answer.status == 200 && answer.body == of(whose),
                    "{host}{path}, {round}: {answer:?}"
                );
                let part = world.client.get(host, path, &[("range", "bytes=12-")]).await?;
                ensure!(part.status == 206 && part.body == whose, "{host}{path}, {round}: {part:?}");
                let same = world.client.get(host, path, &[("if-none-match", "\"same\"")]).await?;
                ensure!(same.status == 304 && same.body.is_empty(), "{host}{path}, {round}: {same:?}");
            }
        }
    }
    // What one tenant changes is gone for that one alone.
    world.client.send(&Method::POST, "a.example", "/tenant-fresh", &[], Some(("x", false))).await?;
    let before = world.origin.asked("a.example/tenant-fresh");
    let (other, own) = (
        world.client.get("b.example", "/tenant-fresh", &[]).await?,
        world.client.get("a.example", "/tenant-fresh", &[]).await?,
    );
    ensure!(other.says("hit") && !own.says("hit") && own.body == of("a.example"), "{other:?} {own:?}");
    ensure!(world.origin.asked("a.example/tenant-fresh") == before + 1);
    ensure!(world.origin.asked("b.example/tenant-fresh") == 1);
    Ok(())
}

/// Errors that one client provokes are that client's: the page is there for everybody else, before and after.
async fn denial(world: &World) -> Result<()> {
    let large = "x".repeat(20 * 1024);
    let many: Vec<_> = (0..80).map(|number| (format!("x-many-{number}"), "x".to_owned())).collect();
    let one = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let attacks = [
        ("an oversize field", one("x-large", &large)),
        ("many fields", many),
        ("bytes beyond ASCII", one("x-odd", "\u{fc}\u{20ac}")),
        ("another method", one("x-http-method-override", "DELETE")),
        ("another method, as CGI spells it", one("x_http_method_override", "DELETE")),
        ("a range that is not there", one("range", "bytes=999999999-")),
        ("a range that is none", one("range", "bytes=x")),
        ("a crash", one("x-crash", "1")),
        ("a page that is missing", one("x-missing", "1")),
        ("a wrong password", one("authorization", "Basic eDp5")),
        ("a codec that nobody has", one("accept-encoding", "identity;q=0, *;q=0")),
        ("a precondition", one("if-match", "\"never\"")),
        ("an expectation", one("expect", "100-continue")),
        ("a protocol", one("upgrade", "h2c")),
    ];
    for (number, (name, fields)) in attacks.iter().enumerate() {
        let path = format!("/page/{number}");
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut before = world.client.get(HOST, &path, &fields).await?;
        for round in 0..2 {
            let clean = world.client.get(HOST, &path, &[]).await?;
            ensure!(
                clean.status == 200 && clean.body == "a page",
                "{name}, {round}: {before:?}, then {clean:?}"
            );
            before = world.client.get(HOST, &path, &fields).await?;
        }
    }
    for (number, line) in
        ["x-meta: a\u{7}b", "x-meta: a\u{0}b", "x-meta: \u{1b}[2J", "x meta: a"].iter().enumerate()
    {
        let path = format!("/page/meta-{number}");
        let answer =
            world.client.raw(&format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n{line}\r\n\r\n")).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 400"), "{line:?}: {}", answer.escape_ascii());
        let clean = world.client.get(HOST, &path, &[]).await?;
        ensure!(clean.status == 200 && clean.body == "a page", "{line:?}: {clean:?}");
    }
    Ok(())
}

async fn range_bomb(world: &World) -> Result<()> {
    let few = format!("bytes={}", vec!["0-"; 40].join(","));
    let many = format!("bytes={}", (0..3_000).map(|at| format!("{at}-")).collect::<Vec<_>>().join(","));
    let whole = |answer: &Answer| answer.status == 200 && answer.body.len() == BIG_BYTES;
    for path in ["/big/few", "/big/many"] {
        for _ in 0..2 {
            for bomb in [&few, &many] {
                let answer = world.client.get(HOST, path, &[("range", bomb)]).await?;
                ensure!(whole(&answer), "{} with {} bytes", answer.status, answer.body.len());
            }
        }
        let asked = world.origin.asked(&format!("{HOST}{path}"));
        ensure!(asked == 1, "{path}: {asked} fetches");
    }
    // A thousand different parts of what nobody has asked for yet: one fetch.
    let parts = (0..1_000).map(|at| async move {
        let range = format!("bytes={at}-{}", at + 9);
        world.client.get(HOST, "/big/parts", &[("range", &range)]).await
    });
    let parts: Vec<Answer> = stream::iter(parts).buffer_unordered(50).try_collect().await?;
    ensure!(parts.iter().all(|part| part.status == 206 && part.body.len() == 10));
    ensure!(world.origin.asked("shop.example/big/parts") == 1);
    Ok(())
}

/// `souk cache explain` says, from outside, what then happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn souk_explains_what_the_proxy_then_does() -> Result<()> {
    let world = World::start(&["--policy-route", "/assets=strict"]).await?;
    let admin = world.proxy.admin.to_string();
    let explain = |url: &str, more: &[&str]| {
        let mut command = tokio::process::Command::new(souk_tests::souk());
        command.args(["cache", "explain", url, "--admin", &admin]).args(more);
        async move {
            let ended = command.output().await?;
            let (out, err) = (String::from_utf8(ended.stdout)?, String::from_utf8(ended.stderr)?);
            ensure!(ended.status.success(), "{err}");
            Ok(out)
        }
    };
    let url = "http://shop.example/assets/tea?size=2";
    let cold = explain(url, &[]).await?;
    ensure!(cold.contains("policy      strict, by route /assets=strict"), "{cold}");
    ensure!(cold.contains("fetches (uri-miss)") && cold.contains("nothing for this variant"), "{cold}");
    ensure!(world.origin.asked("shop.example/assets/tea?size=2") == 0, "to explain is not to fetch");

    world.client.get(HOST, "/assets/tea?size=2", &[]).await?;
    let warm = explain(url, &[]).await?;
    ensure!(warm.contains("outcome     hit") && warm.contains("600 s from max-age"), "{warm}");
    let newest = explain(url, &["-H", "Cache-Control: no-cache", "--json"]).await?;
    let newest: serde_json::Value = serde_json::from_str(&newest)?;
    ensure!(newest["outcome"] == "fetches" && newest["reason"] == "request", "{newest}");
    ensure!(newest["stored"]["freshness"]["freshness_lifetime_s"] == 600, "{newest}");
    ensure!(newest["policy"]["route"] == "/assets=strict", "{newest}");

    world.client.get("private.example", "/account", &[]).await?;
    let passes = explain("http://private.example/account", &[]).await?;
    ensure!(passes.contains("passes (remembered)") && passes.contains("remembered  private"), "{passes}");
    let refused = explain("http://shop.example/a%00b", &[]).await?;
    ensure!(refused.contains("refused (bad_path), 400"), "{refused}");
    let public = world.client.get(HOST, "/explain?url=http://shop.example/", &[]).await?;
    ensure!(public.body == "calm", "the public port explains: {public:?}");
    ensure!(explain("shop.example/tea", &[]).await.is_err_and(|e| e.to_string().contains("write it whole")));
    Ok(())
}

//! The cache as a node uses it. No network and no clock: the test plays the upstream, and says what time it is.

mod confirm;
mod disk;
mod encoded;
mod explain;
mod flood;
mod freshness;
mod other_methods;
mod parts;
mod purge;
mod purged_disk;
mod shares;
mod single_flight;
mod trouble;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, response};
use http_body_util::BodyExt;
use souk_cache::freshness::Exchanged;
use souk_cache::{
    Asked, BodyAborted, Cache, CacheBody, CacheLimits, FillPermit, FillWriter, Hit, Key, Lookup, Scheme,
    Stored,
};

const NOW: u64 = 1_800_000_000_000;

fn cache() -> Cache {
    Cache::new(limits())
}

fn limits() -> CacheLimits {
    CacheLimits { memory_bytes_max: 1 << 20, object_bytes_max: 1 << 16, fill_bytes_max: 1 << 18 }
}

fn get(target: &str, fields: &[(&str, &str)]) -> Asked {
    ask(Method::GET, target, fields)
}

fn ask(method: Method, target: &str, fields: &[(&str, &str)]) -> Asked {
    let key = Key::new("site", Scheme::Http, "shop.example", target).expect("a key");
    Asked::new(key, method, map(fields))
}

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
    }
    map
}

fn head(status: u16, fields: &[(&str, &str)]) -> response::Parts {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    *response.headers_mut() = map(fields);
    response.into_parts().0
}

fn at(now_ms: u64) -> Exchanged {
    Exchanged { asked_ms: now_ms, answered_ms: now_ms }
}

async fn miss(cache: &Cache, now_ms: u64, asked: &Asked) -> FillPermit {
    match cache.look_up(now_ms, asked).await {
        Lookup::Miss(permit) => permit,
        other => panic!("wanted a miss, got {}", name(&other)),
    }
}

async fn hit(cache: &Cache, now_ms: u64, asked: &Asked) -> Hit {
    match cache.look_up(now_ms, asked).await {
        Lookup::Hit(hit) => hit,
        other => panic!("wanted a hit, got {}", name(&other)),
    }
}

fn name(lookup: &Lookup) -> String {
    match lookup {
        Lookup::Hit(hit) => format!("hit {:?}", hit.how()),
        Lookup::Stale(..) => "stale".to_owned(),
        Lookup::Miss(_) => "miss".to_owned(),
        Lookup::Pass(reason) => format!("pass {}", reason.name()),
        Lookup::Failed(failure, stale) => format!("failed {} stale={}", failure.0, stale.is_some()),
        Lookup::OnlyIfCached => "only-if-cached".to_owned(),
    }
}

fn fill(permit: FillPermit, asked: &Asked, now_ms: u64, head: &response::Parts) -> (Hit, FillWriter) {
    match permit.store(head, asked, at(now_ms)) {
        Stored::Filling(hit, writer) => (hit, writer),
        Stored::Pass(reason) => panic!("wanted a fill, got {}", reason.name()),
        Stored::Unfitting(_) => panic!("wanted a fill, got a part that does not fit"),
    }
}

/// Stores a whole response.
async fn put(cache: &Cache, now_ms: u64, asked: &Asked, fields: &[(&str, &str)], body: &'static str) {
    let permit = miss(cache, now_ms, asked).await;
    let (_, mut writer) = fill(permit, asked, now_ms, &head(200, fields));
    writer.push(&Bytes::from_static(body.as_bytes()));
    writer.finish().expect("the right length");
}

async fn text(body: CacheBody) -> Result<String, BodyAborted> {
    Ok(String::from_utf8(body.collect().await?.to_bytes().to_vec()).expect("text"))
}

async fn read(hit: Hit, now_ms: u64, asked: &Asked) -> (u16, HeaderMap, String) {
    let (head, body) = hit.respond(now_ms, asked).into_parts();
    (head.status.as_u16(), head.headers, text(body).await.expect("a whole body"))
}

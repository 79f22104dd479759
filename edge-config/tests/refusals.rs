//! Wrong configurations and what is said about each: the text that an operator reads at three in the morning.

use std::path::Path;
use std::time::Duration;

use souk_config::{EdgeConfig, EdgeLimits, LogFormat, RegionConfig};

const EDGE: &str = include_str!("../examples/edge.toml");
const REGION: &str = include_str!("../examples/region.toml");

fn edge(text: &str) -> Result<EdgeConfig, String> {
    EdgeConfig::parse(text, Path::new("/etc/souk/edge.toml")).map_err(|e| e.to_string())
}

fn region(text: &str) -> Result<RegionConfig, String> {
    RegionConfig::parse(text, Path::new("/etc/souk/region.toml")).map_err(|e| e.to_string())
}

/// The example with one piece of its text replaced, so that a case shows only what is wrong in it.
fn changed(example: &str, from: &str, to: &str) -> String {
    assert!(example.contains(from), "the example no longer contains {from:?}");
    example.replacen(from, to, 1)
}

#[test]
fn the_examples_are_valid_and_say_the_defaults() {
    let edge = edge(EDGE).unwrap();
    assert_eq!((edge.node.id, edge.node.pop.as_str(), edge.node.region.as_str()), (1, "lon", "eu-west"));
    assert_eq!(
        edge.link.tls.ca,
        Path::new("/etc/souk/link/ca.pem"),
        "relative paths begin in the file's folder"
    );
    assert_eq!(edge.node.data_dir, Path::new("/var/lib/souk/edge"));
    assert_eq!(edge.limits, EdgeLimits::default(), "the example shows the defaults");
    assert_eq!(edge.log.format, LogFormat::Json);
    let region = region(REGION).unwrap();
    assert_eq!(region.control.operator_token_sha256[..2], [0x6c, 0xa1]);
    assert_eq!(region.limits, souk_config::RegionLimits::default());
}

#[test]
fn an_upstream_is_read_whole_and_has_the_defaults_of_a_proxy() {
    use souk_config::{CachePolicy, UpstreamConfig, UpstreamHost};
    let routes = edge(EDGE).unwrap().upstreams;
    let [route] = routes.as_slice() else { panic!("the example has one") };
    assert_eq!((route.site.as_str(), route.path.as_str(), &route.host), ("shop", "/blog", &None));
    assert_eq!(route.upstream.servers[1].weight, 3);
    let health = route.upstream.health_check.as_ref().unwrap();
    assert_eq!((health.path.as_str(), health.every), ("/healthz", Duration::from_secs(5)));
    let short = EDGE.split("[[upstreams]]").next().unwrap();
    assert!(edge(short).unwrap().upstreams.is_empty());
    let least = format!(
        "{short}[[upstreams]]\nsite = \"shop\"\nhost = \"Blog.example\"\nservers = [\"https://a\"]\n\
         policy = \"strict\"\npreserve_host = true\nca = \"ca.pem\"\nhedge_after = \"95p\"\ntrust = [\"10.0.0.0/8\"]"
    );
    let route = edge(&least).unwrap().upstreams.remove(0);
    assert_eq!((route.path.as_str(), route.host.as_deref()), ("/", Some("blog.example")));
    let read = route.upstream;
    assert_eq!((read.policy_of("/x"), read.host), (CachePolicy::Strict, UpstreamHost::Preserve));
    assert_eq!(read.ca.as_deref(), Some(Path::new("/etc/souk/ca.pem")));
    assert_eq!((read.trusted.len(), read.hedge_after.is_some()), (1, true));
    let default = UpstreamConfig::of(&["https://a".to_owned()]).unwrap();
    assert_eq!(read.connect_timeout, default.connect_timeout);
    assert_eq!(read.first_byte_timeout, Duration::from_secs(24), "four fifths of the request's own deadline");
}

#[test]
fn who_looks_at_requests_is_read_and_nobody_does_unless_it_is_written() {
    use souk_config::{AccessFormat, AccessTo, SAMPLED_PER_MILLE_DEFAULT};
    let read = edge(EDGE).unwrap();
    let (access, trace) = (read.access.unwrap(), read.trace.unwrap());
    assert_eq!((access.to, access.format, access.with_query), (AccessTo::Stdout, AccessFormat::Json, false));
    assert_eq!(trace.sampled_per_mille, SAMPLED_PER_MILLE_DEFAULT, "the example shows the default");
    let file = edge(&changed(EDGE, "file = \"-\"", "file = \"access.log\"")).unwrap().access.unwrap();
    assert_eq!(file.to, AccessTo::File("/etc/souk/access.log".into()));
    let short = edge(EDGE.split("[access_log]").next().unwrap()).unwrap();
    assert_eq!((short.access, short.trace), (None, None));
}

#[test]
fn a_strict_route_is_strict_where_nobody_can_read_its_path_in_another_way() {
    use souk_config::CachePolicy;
    let strict = changed(EDGE, "policy = \"safe\"", "policy = \"strict\"");
    let upstream = edge(&strict).unwrap().upstreams.remove(0).upstream;
    assert_eq!(upstream.policy_of("/blog/a?b=%2f"), CachePolicy::Strict);
    for other in ["/blog/a;x", "/blog//a", "/blog/%61"] {
        assert_eq!(upstream.policy_of(other), CachePolicy::Safe, "{other}");
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let short = EDGE.split("[limits]").next().unwrap();
    let edge = edge(short).unwrap();
    assert_eq!(edge.limits, EdgeLimits::default());
    assert_eq!((edge.log.format, edge.log.filter.as_str()), (LogFormat::Text, "info"));
}

#[test]
fn the_compilers_cell_may_be_left_open_by_name_only() {
    use souk_config::Seccomp;
    assert_eq!(region(REGION).unwrap().compiler.seccomp, Seccomp::Required);
    let open = |example| changed(example, "seccomp = \"required\"", "seccomp = \"best_effort\"");
    assert_eq!(edge(&open(EDGE)).unwrap().compiler.seccomp, Seccomp::BestEffort);
    assert_eq!(region(&open(REGION)).unwrap().compiler.seccomp, Seccomp::BestEffort);
    let wrong = edge(&changed(EDGE, "seccomp = \"required\"", "seccomp = \"off\"")).unwrap_err();
    assert!(wrong.contains("compiler.seccomp") && wrong.contains("required, best_effort"), "{wrong}");
    let without = EDGE.replace("seccomp = \"required\"", "");
    assert_eq!(edge(&without).unwrap().compiler.seccomp, Seccomp::Required);
}

#[test]
fn the_platforms_own_addresses_are_read_and_checked() {
    let with = |list: &str| edge(&changed(EDGE, "own_addresses = []", &format!("own_addresses = {list}")));
    let expected: [std::net::IpAddr; 2] = ["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
    assert_eq!(with(r#"["203.0.113.7", "2001:db8::7"]"#).unwrap().node.own_addresses, expected);
    for wrong in ["203.0.113.7:443", "203.0.113.0/24", "edge.example.net", "", "0.0.0.0", "::"] {
        let refused = with(&format!("[\"192.0.2.1\", {wrong:?}]")).unwrap_err();
        assert!(refused.contains("node.own_addresses[1]") && refused.contains("203.0.113.7"), "{refused}");
    }
    let many = vec!["\"192.0.2.1\""; 257].join(", ");
    assert!(with(&format!("[{many}]")).unwrap_err().contains("257 addresses are more than 256"));
}

#[test]
fn rates_are_off_unless_they_are_written() {
    assert_eq!(edge(EDGE).unwrap().rates, souk_config::RatesConfig::default());
    let rates = edge(&changed(EDGE, "[rates]", "[rates]\nrequests_per_site_per_s = 5_000")).unwrap().rates;
    assert_eq!((rates.per_site.map(u32::from), rates.per_address), (Some(5_000), None));
    let refused = edge(&changed(EDGE, "[rates]", "[rates]\nrequests_per_token_per_s = 0")).unwrap_err();
    assert!(
        refused.contains("rates.requests_per_token_per_s") && refused.contains("at least 1"),
        "{refused}"
    );
}

#[test]
fn certificates_are_asked_for_where_it_is_written_and_can_be_shown() {
    let acme = "[listen.https.acme]\ndirectory = \"https://ca.example/\"\ncache = \"acme\"\n";
    let with = |more: &str| edge(&changed(EDGE, "[link] ", &format!("{acme}{more}\n[link] ")));
    let door = with("domains = [\"Shop.Example\"]").unwrap().listen.doors.https.unwrap();
    let asked = door.acme.unwrap();
    assert_eq!((asked.domains, asked.cache), (vec!["shop.example".to_owned()], "/etc/souk/acme".into()));
    for (more, said) in [
        ("domains = [\"*.shop.example\"]", "listen.https.acme.domains: \"*.shop.example\" is no host name"),
        ("domains = []", "listen.https.acme.domains: 0 names are not between 1 and 200"),
        ("domains = [\"a\"]\ncontacts = [\"me\"]", "listen.https.acme.contacts: \"me\" is no contact"),
        ("domains = [\"a\"]\nca = \"\"", "listen.https.acme.ca: the path is empty"),
        (
            "domains = [\"a\"]\nchallenge = \"dns-01\"",
            "listen.https.acme.challenge: \"dns-01\" is no way in which an authority looks here",
        ),
    ] {
        let refused = with(more).unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }
    // An authority looks in clear text.
    let text = changed(EDGE, "[link] ", &format!("{acme}domains = [\"a\"]\n[link] "));
    let deaf: String = text.lines().filter(|l| !l.starts_with("http = ")).map(|l| format!("{l}\n")).collect();
    let refused = edge(&deaf).unwrap_err();
    assert!(
        refused.contains("listen.https.acme: an authority looks") && refused.contains("add `http"),
        "{refused}"
    );
    // Or over TLS, where nothing else is needed.
    let text = deaf.replace("domains = [\"a\"]\n", "domains = [\"a\"]\nchallenge = \"tls-alpn-01\"\n");
    let asked = edge(&text).unwrap().listen.doors.https.unwrap().acme.unwrap();
    assert_eq!(asked.challenge, souk_config::AcmeChallenge::TlsAlpn01);
}

#[test]
fn limits_are_read_with_their_units() {
    let text = changed(EDGE, "outbox_bytes_max = \"1 GiB\"", "outbox_bytes_max = \"2MiB\"");
    let text = changed(&text, "idle_deadline = \"75 s\"", "idle_deadline = \"2 min\"");
    let limits = edge(&text).unwrap().limits;
    assert_eq!((limits.outbox_bytes_max, limits.idle_deadline), (2 << 20, Duration::from_secs(120)));
}

#[test]
fn each_refusal_of_an_edge_file_names_line_key_and_remedy() {
    for (from, to, said) in [
        ("http = ", "htpp = ", ":11: listen.htpp: unknown key `htpp`; did you mean `http`?"),
        (
            "pop = \"lon\"",
            "pop = \"lon\"\nzzz = 1",
            ":6: node.zzz: unknown key `zzz`; known here: id, pop, region, data_dir, own_addresses",
        ),
        ("[log]", "[logs]", ":68: logs: unknown key `logs`; did you mean `log`?"),
        ("id = 1 ", "id = 0 ", ":4: node.id: 0 is not a node; write the number in the node's certificate"),
        ("id = 1 ", "id = \"one\" ", ":4: node.id: invalid type: string \"one\"; expected u32"),
        ("pop = \"lon\"", "", ":3: node: `pop` is missing; write `pop = \"lon\"`"),
        ("pop = \"lon\"", "pop = \"London\"", ":5: node.pop: \"London\" is not a place name; write 1 to 32"),
        (
            "0.0.0.0:80\"",
            "localhost\"",
            ":11: listen.http: \"localhost\" is not an address to listen on; write an IP address",
        ),
        (
            "addr = \"0.0.0.0:443\"",
            "addr = [\"0.0.0.0:443\", \"443\"]",
            ":18: listen.https.addr[1]: \"443\" is not an address to listen on; write an IP address",
        ),
        (
            "key = \"tls/shop.key\"",
            "",
            ":17: listen.https: `cert` and `key` belong together, and one of them",
        ),
        (
            "cert = \"tls/other.pem\"",
            "cert = \"\"",
            ":24: listen.https.certificates[0].cert: the path is empty",
        ),
        (
            "proxy_protocol_from = []",
            "proxy_protocol_from = [\"lb\"]",
            ":15: listen.proxy_protocol_from[0]: \"lb\" is neither an IP address nor a network; write",
        ),
        (
            "reuse_port = false",
            "workers = 0",
            ":13: listen.workers: 0 sockets are not between 1 and 64; write",
        ),
        ("127.0.0.1:9090", "0.0.0.0:80", ":12: listen.admin: 0.0.0.0:80 is also the address for shoppers"),
        (
            "region.example.net:7443",
            "region.example.net",
            ":40: link.regions[0].addr: \"region.example.net\" is not a host and",
        ),
        (
            "server_name = \"region.example.net\"",
            "server_name = \"a b\"",
            ":41: link.regions[0].server_name: \"a b\" is not",
        ),
        (
            "\"64 KiB\"",
            "64",
            ":47: limits.header_bytes_max: invalid type: integer `64`; expected a size with its unit",
        ),
        (
            "\"64 KiB\"",
            "\"64 kib\"",
            ":47: limits.header_bytes_max: \"64 kib\" is not a size such as \"256 MiB\"; units: B,",
        ),
        (
            "\"64 KiB\"",
            "\"1 B\"",
            ":47: limits.header_bytes_max: \"1 B\" is too little to work with; write at least \"1024 B\"",
        ),
        (
            "\"30 s\"",
            "\"30 sec\"",
            ":51: limits.request_deadline: \"30 sec\" is not a duration such as \"5 s\"; units: ms,",
        ),
        ("\"json\"", "\"xml\"", ":69: log.format: \"xml\" is not known; write one of text, json"),
        ("[link]", "[link", ":33: "),
        ("seal_keys = [\"link/seal.pub\"]", "seal_keys = []", ":37: link.seal_keys: without a key no plugin"),
        ("ca = \"link/ca.pem\"", "ca = \"\"", ":34: link.ca: the path is empty; write a path"),
    ] {
        let refusal = edge(&changed(EDGE, from, to)).expect_err(to);
        let expected = format!("/etc/souk/edge.toml{said}");
        assert!(
            refusal.starts_with(&expected),
            "\n{from:?} -> {to:?}\n     got {refusal}\nexpected {expected}…"
        );
    }
}

/// The line is that of the key, wherever the example has it.
#[test]
fn each_refusal_of_an_upstream_or_of_who_looks_names_line_key_and_remedy() {
    for (from, to, said) in [
        (
            "site = \"shop\"",
            "site = \"Shop\"",
            ": upstreams[0].site: \"Shop\" is not the name of a site; write it as the region",
        ),
        (
            "path = \"/blog\"",
            "path = \"/blog/..\"",
            ": upstreams[0].path: \"/blog/..\" is not the path of a route; write \"/\", or",
        ),
        (
            "path = \"/blog\"",
            "path = \"/api/v2\"",
            ": upstreams[0].path: \"/api/v2\" is the shop's own API; write another path",
        ),
        (
            "\"http://10.0.0.7:8080\", ",
            "\"10.0.0.7:8080\", ",
            ": upstreams[0].servers[0]: \"10.0.0.7:8080\" is not a URL (relative URL without a base); write it like",
        ),
        (
            "8080;weight=3",
            "8080/base",
            ": upstreams[0].servers[1]: http://10.0.0.8:8080/base differs from the first in its scheme or path; all",
        ),
        (
            "policy = \"safe\"",
            "policy = \"lax\"",
            ": upstreams[0].policy: \"lax\" is no cache policy; write \"safe\", \"heuristic\"",
        ),
        (
            "trust = []                   # proxies",
            "trust = [\"lb\"]               # proxies",
            ": listen.trust[0]: \"lb\" is no range of addresses; write it like",
        ),
        (
            "\"gclid\"]",
            "\"gcl&id\"]",
            ": upstreams[0].query_drop[1]: \"gcl&id\" names no parameter; write one like \"gclid\", or",
        ),
        (
            "connect_timeout = \"5 s\"",
            "connect_timeout = \"5 ms\"",
            ": upstreams[0].connect_timeout: is below 10 ms; write at least \"10 ms\"",
        ),
        (
            "first_byte_timeout = \"24 s\"",
            "first_byte_timeout = \"30 s\"",
            ": upstreams[0].first_byte_timeout: 30000 ms are not below limits.request_deadline, 30000 ms; write less",
        ),
        ("retries_max = 2", "retries_max = 6", ": upstreams[0].retries_max: 6 is too many; write at most 5"),
        (
            "path = \"/healthz\"",
            "path = \"healthz\"",
            ": upstreams[0].health.path: \"healthz\" is no path; write it like /healthz",
        ),
        (
            "trust = []                   # senders",
            "trust = [\"lb\"]               # senders",
            ": upstreams[0].trust[0]: \"lb\" is no range of addresses; write it like",
        ),
        (
            "trust = []                   # senders",
            "trust = []\n[[upstreams]]\nsite = \"shop\"\npath = \"/blog/\"\nservers = [\"http://a\"] # senders",
            ": upstreams[1]: it is the route /blog of site shop again, as upstreams[0]; name all servers",
        ),
        (
            "format = \"json\"              # or \"common\"",
            "format = \"clf\" #",
            ": access_log.format: \"clf\" is no form of a line; write \"json\", \"common\" or",
        ),
        ("file = \"-\"", "file = \"\"", ": access_log.file: the path is empty; write a path"),
        (
            "http://127.0.0.1:4318",
            "https://127.0.0.1:4318",
            ": trace.collector: \"https://127.0.0.1:4318\" is not http; send to a collector beside",
        ),
        (
            "per_mille = 10 ",
            "per_mille = 1001 ",
            ": trace.per_mille: 1001 of a thousand requests are too many; write a number from 0",
        ),
        (
            "cache_disk_bytes_max = \"4 GiB\"",
            "cache_disk_bytes_max = \"16 MiB\"",
            ": limits.cache_disk_bytes_max: half of it is too little for the responses of [[upstreams]]; write at",
        ),
    ] {
        let refusal = edge(&changed(EDGE, from, to)).expect_err(to);
        let before = &EDGE[..EDGE.find(from).unwrap()];
        // Of what was put behind a line, the last key that is written.
        let more = if to.contains("[[upstreams]]") { 1 } else { 0 };
        let line = before.matches('\n').count() + 1 + more;
        let expected = format!("/etc/souk/edge.toml:{line}{said}");
        assert!(
            refusal.starts_with(&expected),
            "\n{from:?} -> {to:?}\n     got {refusal}\nexpected {expected}…"
        );
    }
}

#[test]
fn each_refusal_of_a_region_file_names_line_key_and_remedy() {
    for (from, to, said) in [
        (
            "[listen]\n",
            "[listen]\nlnik = \"x\"\n",
            ":8: listen.lnik: unknown key `lnik`; did you mean `link`?",
        ),
        (
            "6ca13d52",
            "token-of-mine",
            ":17: control.operator_token_sha256: this is not the SHA-256 of a token; write 64",
        ),
        (
            "6ca13d52",
            "zzzzzzzz",
            ":17: control.operator_token_sha256: this is not the SHA-256 of a token; write 64",
        ),
        ("[control]", "[contrl]", ":16: contrl: unknown key `contrl`; did you mean `control`?"),
        ("name = \"eu-west\"", "", ":3: region: `name` is missing; write the region's name"),
        (
            "nodes_max = 1_000",
            "nodes_max = 0",
            ":21: limits.nodes_max: 0 is too little to work with; write at least 1",
        ),
    ] {
        let refusal = region(&changed(REGION, from, to)).expect_err(to);
        let expected = format!("/etc/souk/region.toml{said}");
        assert!(
            refusal.starts_with(&expected),
            "\n{from:?} -> {to:?}\n     got {refusal}\nexpected {expected}…"
        );
        assert!(!refusal.contains("token-of-mine"), "a token pasted by mistake is not echoed");
    }
}

/// The line is that of the key, in a table that the example has in comments only.
#[test]
fn each_refusal_of_a_pair_names_line_key_and_remedy() {
    let well =
        "[pair]\naddrs = [\"b.example.net:7443\"]\nserver_name = \"region.example.net\"\nack_level = 2\n";
    region(&format!("{REGION}\n{well}")).expect("is well");
    let first = REGION.lines().count() + 2;
    for (from, to, line, said) in [
        (
            "addrs = [\"b.example.net:7443\"]",
            "addrs = []",
            1,
            "pair.addrs: 0 addresses are not 1 to 8; name where",
        ),
        ("b.example.net:7443", "b.example.net", 1, "pair.addrs[0]: "),
        ("addrs = [\"b.example.net:7443\"]\n", "", 0, "pair: `addrs` is missing; "),
        ("server_name = \"region.example.net\"\n", "", 0, "pair: `server_name` is missing; "),
        ("region.example.net", "no name", 2, "pair.server_name: "),
        ("ack_level = 2", "ack_level = 3", 3, "pair.ack_level: 3 regions are not 1 or 2; write 1 (the home"),
        ("ack_level", "ack_levle", 3, "pair.ack_levle: unknown key `ack_levle`; did you mean `ack_level`?"),
    ] {
        let refusal = region(&format!("{REGION}\n{}", changed(well, from, to))).expect_err(to);
        let expected = format!("/etc/souk/region.toml:{}: {said}", first + line);
        assert!(refusal.starts_with(&expected), "\n     got {refusal}\nexpected {expected}…");
    }
}

#[test]
fn a_node_that_nobody_can_reach_or_that_has_no_region_is_refused() {
    let deaf = EDGE
        .lines()
        .filter(|l| {
            !l.starts_with("http")
                && !l.starts_with("addr = \"0.0.0.0:443")
                && !l.contains("tls/")
                && !l.contains("[listen.https")
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert!(edge(&deaf).unwrap_err().contains("neither HTTP nor HTTPS; add `http"));
    let alone = EDGE
        .lines()
        .filter(|l| !l.contains("link.regions") && !l.contains("region.example.net"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("[link] ", "[link]\nregions = []\n#");
    let refusal = edge(&alone).unwrap_err();
    assert!(
        refusal.contains("link.regions: the node has no region to send its operations to; add a [[link"),
        "{refusal}"
    );
    let table =
        "[[link.regions]]\naddr = \"other.example.net:7443\"\nserver_name = \"region.example.net\"\n\n";
    let with = |more: usize| edge(&changed(EDGE, "[limits]", &(table.repeat(more) + "[limits]")));
    let regions = with(7).unwrap().link.regions;
    assert_eq!((regions.len(), regions[7].addr.as_str()), (8, "other.example.net:7443"));
    assert!(with(8).unwrap_err().contains("link.regions: 9 addresses are more than 8"));
}

#[test]
fn a_file_that_is_not_there_says_so() {
    let refusal = EdgeConfig::load(Path::new("/nonexistent/edge.toml")).unwrap_err();
    assert_eq!(refusal.line, 0);
    assert!(
        refusal.to_string().starts_with("/nonexistent/edge.toml: the file cannot be opened: "),
        "{refusal}"
    );
}

#[test]
fn whoever_finds_a_fault_later_has_the_file_the_line_and_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("region.toml");
    let payments = "[[payments]]\nsite = \"shop\"\nprovider = \"stripe\"\nsecret_key_file = \"a\"\nwebhook_secret_file = \"b\"\n";
    std::fs::write(&file, format!("{REGION}{payments}")).unwrap();
    let (config, source) = RegionConfig::open(&file).unwrap();
    let named: Vec<_> = config.named_files().into_iter().map(|file| file.key).collect();
    assert_eq!(
        named,
        [
            "link.ca",
            "link.cert",
            "link.key",
            "payments[0].secret_key_file",
            "payments[0].webhook_secret_file"
        ]
    );
    let line = REGION.lines().count() + 4;
    let refusal = source.blame("payments[0].secret_key_file", "it is absent", "make it").to_string();
    let said = format!("{}:{line}: payments[0].secret_key_file: it is absent; make it", file.display());
    assert_eq!(refusal, said);
    let edge = edge(EDGE).unwrap();
    let named: Vec<_> = edge.named_files().into_iter().map(|file| file.key).collect();
    assert_eq!(named[..4], ["link.ca", "link.cert", "link.key", "link.seal_keys[0]"]);
    assert_eq!(named[4..6], ["listen.https.cert", "listen.https.key"]);
    assert_eq!(named[6], "listen.https.certificates[0].cert");
}

#[test]
fn a_limit_is_quoted_in_the_unit_that_it_is_whole_in() {
    let refused = edge(&changed(EDGE, "idle_deadline = \"75 s\"", "idle_deadline = \"0 s\"")).unwrap_err();
    assert!(refused.contains("\"0 s\" is too little to work with; write at least \"1 s\""), "{refused}");
}

#[test]
fn payments_are_by_shop_and_a_key_goes_nowhere_in_the_clear() {
    use souk_config::{Capture, PaymentProviderKind};
    assert_eq!(region(REGION).unwrap().payments, []);
    // The example's own entry, with its marks of a comment taken away.
    let (before, entry) = REGION.split_once("# [[payments]]").unwrap();
    let (entry, after) = entry.split_once("\n[log]").unwrap();
    let entry = format!("[[payments]]{}", entry.replace("\n# ", "\n"));
    let with = |entry: &str| region(&format!("{before}{entry}\n[log]{after}"));
    let payments = with(&entry).unwrap().payments;
    let [shop] = &payments[..] else { panic!("{payments:?}") };
    assert_eq!((shop.site.as_str(), shop.provider), ("shop", PaymentProviderKind::Stripe));
    assert_eq!((shop.api.as_str(), shop.capture), ("https://api.stripe.com", Capture::AtOnce));
    assert_eq!(shop.secret_key_file, Path::new("/etc/souk/secrets/shop.key"));
    let refused = |from: &str, to: &str| with(&changed(&entry, from, to)).unwrap_err();
    for (from, to, said) in [
        ("site = \"shop\"", "site = \"Shop\"", "payments[0].site: \"Shop\" is not a site; write 1 to 63"),
        ("provider = \"stripe\"", "provider = \"cash\"", "\"cash\" is not known; write one of stripe"),
        ("\"at_once\"", "\"later\"", "\"later\" is not known; write one of at_once, on_request"),
        ("secrets/shop.key", "", "payments[0].secret_key_file: the path is empty"),
        ("https://api.stripe.com", "http://api.stripe.com", "would carry the shop's key in the clear"),
        ("https://api.stripe.com", "https://api.stripe.com/v1", "has more than a host and a port"),
        ("https://api.stripe.com", "https://key@api.stripe.com", "has more than a host and a port"),
        ("https://api.stripe.com", "ftp://api.stripe.com", "neither https nor http"),
        ("https://api.stripe.com", "api.stripe.com", "is not an address"),
    ] {
        let refusal = refused(from, to);
        assert!(refusal.contains(said) && refusal.contains("payments"), "{to}: {refusal}");
    }
    let here = with(&changed(&entry, "https://api.stripe.com", "http://127.0.0.1:4242")).unwrap();
    assert_eq!(here.payments[0].api, "http://127.0.0.1:4242");
    let twice = with(&format!("{entry}\n{entry}")).unwrap_err();
    assert!(twice.contains("payments[1].site") && twice.contains("one [[payments]] of each site"), "{twice}");
}

/// The region's example with a `[store]`.
fn with_store(text: &str) -> Result<RegionConfig, String> {
    let with_key = changed(REGION, "# seal_key = ", "seal_key = ");
    region(&format!("{with_key}\n[store]\n{text}\n"))
}

#[test]
fn a_database_that_others_may_share_needs_a_key_that_they_share() {
    let store = "engine = \"postgres\"\nurl = \"postgres://a@b/c\"";
    let key = with_store(store).unwrap().control.seal_key;
    assert_eq!(key.as_deref(), Some(Path::new("/etc/souk/link/seal.key")));
    let refusal = region(&format!("{REGION}\n[store]\n{store}\n")).unwrap_err();
    for said in ["control.seal_key", "would make its own", "openssl genpkey"] {
        assert!(refusal.contains(said), "{refusal}");
    }
}

#[test]
fn a_store_is_a_file_unless_a_database_is_named() {
    use souk_config::{PostgresTls, StoreConfig};
    assert_eq!(region(REGION).unwrap().store, StoreConfig::Sqlite);
    assert_eq!(with_store("engine = \"sqlite\"").unwrap().store, StoreConfig::Sqlite);
    let read = |text: &str| match with_store(&format!("engine = \"postgres\"\n{text}")).unwrap().store {
        StoreConfig::Postgres(database) => database,
        StoreConfig::Sqlite => panic!("{text}"),
    };
    let far = read(
        "url = \"postgres://souk@db.example/shops\"\nstandbys = [\"10.0.0.2:5433\"]\npassword_file = \"secrets/db\"\nca = \"ca.pem\"",
    );
    let hosts = [("db.example".to_owned(), 5432), ("10.0.0.2".to_owned(), 5433)];
    assert_eq!(
        (far.hosts.as_slice(), far.user.as_str(), far.database.as_str()),
        (&hosts[..], "souk", "shops")
    );
    assert_eq!(far.password_file.as_deref(), Some(Path::new("/etc/souk/secrets/db")));
    assert_eq!(far.tls, PostgresTls::Verified { ca: Some("/etc/souk/ca.pem".into()) });
    let socket = read("url = \"postgresql://souk@%2Frun%2Fpostgresql/souk\"");
    assert_eq!(socket.hosts, [("/run/postgresql".to_owned(), 5432)]);
    assert_eq!(socket.tls, PostgresTls::Off);
    let here = |url: &str| read(&format!("url = {url:?}"));
    assert_eq!(here("postgres://souk@127.0.0.1:6432/souk").tls, PostgresTls::Off);
    assert_eq!(here("postgres://souk@[::1]/souk").hosts, [("::1".to_owned(), 5432)]);
    assert_eq!(here("postgres://souk@db.example/souk").tls, PostgresTls::Verified { ca: None });
}

#[test]
fn a_database_that_cannot_be_meant_is_refused_without_its_password() {
    for (text, key, why) in [
        ("url = \"postgres://a@b/c\"", "store.url", "SQLite is a file"),
        ("engine = \"postgres\"", "store.url", "needs an address"),
        ("engine = \"postgres\"\nurl = \"mysql://a@b/c\"", "store.url", "not the address of a PostgreSQL"),
        (
            "engine = \"postgres\"\nurl = \"postgres://a:hunter2@b/c\"",
            "store.url",
            "the password is in the address",
        ),
        ("engine = \"postgres\"\nurl = \"postgres://b/c\"", "store.url", "names no user"),
        ("engine = \"postgres\"\nurl = \"postgres://a@b\"", "store.url", "names no database"),
        ("engine = \"postgres\"\nurl = \"postgres://a@/c\"", "store.url", "not an address"),
        (
            "engine = \"postgres\"\nurl = \"postgres://a@b/c?password=hunter2\"",
            "store.url",
            "more than a user",
        ),
        (
            "engine = \"postgres\"\nurl = \"postgres://a@b/c\"\nstandbys = [\"d\"]",
            "store.standbys[0]",
            "host and a port",
        ),
        ("engine = \"mongodb\"", "store.engine", "write one of sqlite, postgres"),
        ("engine = \"postgres\"\npassword = \"hunter2\"", "store.password", "unknown"),
    ] {
        let refusal = with_store(text).unwrap_err();
        assert!(refusal.contains(key) && refusal.contains(why), "{text}: {refusal}");
        assert!(!refusal.contains("hunter2"), "{refusal}");
    }
}

#[test]
fn events_stay_here_or_go_to_a_broker_and_each_refusal_says_what_to_write() {
    use souk_config::{BrokerConfig, BrokerLogin, BrokerTls, EventsConfig, NatsConfig};
    let with = |lines: &str| region(&format!("{REGION}\n[events]\n{lines}"));
    assert_eq!(region(REGION).unwrap().events, EventsConfig::InProcess);
    assert_eq!(with("broker = \"none\"").unwrap().events, EventsConfig::InProcess);
    let nats = |lines: &str| match with(&format!("broker = \"nats\"\n{lines}")) {
        Ok(region) => match region.events {
            EventsConfig::Nats(nats) => Ok(nats),
            other => panic!("NATS is named: {other:?}"),
        },
        Err(refusal) => Err(refusal),
    };
    let here = NatsConfig {
        broker: BrokerConfig { servers: vec!["127.0.0.1:4222".to_owned()], login: None, tls: BrokerTls::Off },
        stream: "souk-eu-west".to_owned(),
        replicas: 1,
    };
    assert_eq!(
        nats("servers = [\"127.0.0.1:4222\"]"),
        Ok(here),
        "no TLS within a machine, one copy by one server"
    );
    let whole = "servers = [\"a.example:4222\", \"b.example:4222\", \"c.example:4222\"]\nuser = \"souk\"\n\
                 password_file = \"secrets/nats\"\ncert = \"nats.pem\"\nkey = \"nats.key\"\nstream = \"orders\"";
    let there = NatsConfig {
        broker: BrokerConfig {
            servers: ["a", "b", "c"].map(|name| format!("{name}.example:4222")).to_vec(),
            login: Some(BrokerLogin {
                user: "souk".to_owned(),
                password_file: "/etc/souk/secrets/nats".into(),
            }),
            tls: BrokerTls::Verified {
                ca: None,
                identity: Some(("/etc/souk/nats.pem".into(), "/etc/souk/nats.key".into())),
            },
        },
        stream: "orders".to_owned(),
        replicas: 3,
    };
    assert_eq!(nats(whole), Ok(there), "TLS to other machines, three copies by three servers");
    let first = REGION.lines().count() + 2;
    let server = "servers = [\"127.0.0.1:4222\"]\n";
    for (lines, line, said) in [
        (
            "stream = \"orders\"",
            1,
            "events.stream: the region's own queue has no such setting; write broker = \"nats\" or",
        ),
        (
            &format!("broker = \"nats\"\n{server}queue = \"orders\""),
            3,
            "events.queue: NATS has no such setting; take it out",
        ),
        ("broker = \"nats\"", 0, "events.servers: broker = \"nats\" needs to be found; write where"),
        ("broker = \"kafka\"", 1, "events.broker: "),
        (
            "broker = \"nats\"\nservers = [\"nats://souk:secret@127.0.0.1\"]",
            2,
            "events.servers[0]: \"nats://souk:secret@127.0.0.1\" is not a host and a port; write",
        ),
        (
            &format!("broker = \"nats\"\n{server}user = \"souk\""),
            3,
            "events.user: a user logs in with a password; write",
        ),
        (
            &format!("broker = \"nats\"\n{server}password_file = \"p\""),
            3,
            "events.password_file: nobody is said to log in with it; name",
        ),
        (
            &format!("broker = \"nats\"\n{server}cert = \"c\""),
            3,
            "events.cert: it has no key; name its private key",
        ),
        (
            &format!("broker = \"nats\"\n{server}tls = \"off\"\nca = \"c\""),
            3,
            "events.tls: it is off, and yet there is a certificate; write tls = \"verify\"",
        ),
        (
            &format!("broker = \"nats\"\n{server}stream = \"a.b\""),
            3,
            "events.stream: \"a.b\" is no name of a stream; write",
        ),
        (&format!("broker = \"nats\"\n{server}replicas = 2"), 3, "events.replicas: a stream has no 2 copies"),
    ] {
        let refusal = with(lines).expect_err(lines);
        let expected = format!("/etc/souk/region.toml:{}: {said}", first + line);
        assert!(refusal.starts_with(&expected), "\n{lines}\n     got {refusal}\nexpected {expected}…");
    }
}

#[test]
fn a_quorum_queue_is_set_up_with_little_and_each_refusal_says_what_to_write() {
    use souk_config::{BrokerConfig, BrokerLogin, BrokerTls, EventsConfig, RabbitMqConfig};
    let with = |lines: &str| region(&format!("{REGION}\n[events]\nbroker = \"rabbitmq\"\n{lines}"));
    let rabbitmq = |lines: &str| match with(lines).map(|region| region.events) {
        Ok(EventsConfig::RabbitMq(rabbitmq)) => Ok(rabbitmq),
        Ok(other) => panic!("RabbitMQ is named: {other:?}"),
        Err(refusal) => Err(refusal),
    };
    let here = RabbitMqConfig {
        broker: BrokerConfig { servers: vec!["[::1]:5672".to_owned()], login: None, tls: BrokerTls::Off },
        virtual_host: "/".to_owned(),
        exchange: "souk".to_owned(),
        queue: "souk-eu-west".to_owned(),
        declare: true,
        replicas: 1,
    };
    assert_eq!(rabbitmq("servers = [\"[::1]:5672\"]"), Ok(here), "within a machine it asks for nothing");
    let whole = "servers = [\"a.example:5671\", \"b.example:5671\", \"c.example:5671\"]\nuser = \"souk\"\n\
                 password_file = \"secrets/rabbitmq\"\nca = \"ca.pem\"\nvirtual_host = \"shops\"\nexchange = \"all\"\n\
                 queue = \"orders\"\ndeclare = false";
    let there = RabbitMqConfig {
        broker: BrokerConfig {
            servers: ["a", "b", "c"].map(|name| format!("{name}.example:5671")).to_vec(),
            login: Some(BrokerLogin {
                user: "souk".to_owned(),
                password_file: "/etc/souk/secrets/rabbitmq".into(),
            }),
            tls: BrokerTls::Verified { ca: Some("/etc/souk/ca.pem".into()), identity: None },
        },
        virtual_host: "shops".to_owned(),
        exchange: "all".to_owned(),
        queue: "orders".to_owned(),
        declare: false,
        replicas: 3,
    };
    assert_eq!(rabbitmq(whole), Ok(there), "TLS to other machines");
    let files = with(&format!("{whole}\ncert = \"own.pem\"\nkey = \"own.key\"")).unwrap();
    let files: Vec<_> = files.named_files().into_iter().map(|file| file.key).collect();
    for key in ["events.password_file", "events.ca", "events.cert", "events.key"] {
        assert!(
            files.iter().any(|named| named == key),
            "{key} is not looked for before the start: {files:?}"
        );
    }
    let shown = "servers = [\"a.example:5671\"]\ncert = \"own.pem\"\nkey = \"own.key\"";
    assert_eq!(rabbitmq(shown).unwrap().broker.login, None, "the certificate says who it is");
    let first = REGION.lines().count() + 2;
    let server = "servers = [\"127.0.0.1:5672\"]\n";
    for (lines, line, said) in [
        (
            "",
            0,
            "events.servers: broker = \"rabbitmq\" needs to be found; write where its servers are, such as",
        ),
        (
            "servers = [\"a.example:5671\"]",
            0,
            "events.user: RabbitMQ lets nobody in from another machine who does not say who he is; write",
        ),
        (
            &format!("{server}stream = \"orders\""),
            3,
            "events.stream: RabbitMQ has no such setting; take it out",
        ),
        (&format!("{server}queue = \"\""), 3, "events.queue: \"\" is no name in RabbitMQ; write 1 to 255"),
        (&format!("{server}exchange = \"a\\nb\""), 3, "events.exchange: \"a\\nb\" is no name in RabbitMQ"),
        (&format!("{server}replicas = 4"), 3, "events.replicas: a stream has no 4 copies"),
        (
            &format!("{server}declare = false\nreplicas = 3"),
            4,
            "events.replicas: whoever makes the queue says how many servers keep it; take",
        ),
        (
            "servers = [\"amqps://souk:secret@a.example\"]",
            2,
            "events.servers[0]: \"amqps://souk:secret@a.example\" is not a host and a port; write",
        ),
    ] {
        let refusal = with(lines).expect_err(lines);
        let expected = format!("/etc/souk/region.toml:{}: {said}", first + line);
        assert!(refusal.starts_with(&expected), "\n{lines}\n     got {refusal}\nexpected {expected}…");
    }
}

#[test]
fn the_key_of_keys_is_the_regions_own_unless_a_file_is_named() {
    assert_eq!(region(REGION).unwrap().vault.key_file, None);
    let named = |text: &str| region(&format!("{REGION}\n[vault]\n{text}\n"));
    let file = named("key_file = \"secrets/vault.key\"").unwrap().vault.key_file.unwrap();
    assert!(file.is_absolute() && file.ends_with("secrets/vault.key"), "{}", file.display());
    let refusal = named("key = \"00\"").unwrap_err();
    assert!(refusal.contains("key_file"), "the key itself has no place here: {refusal}");
}

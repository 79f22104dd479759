//! Some four hundred malformed and smuggling HTTP/1.1 requests on raw sockets, before `souk proxy`: each on a path that
//! nothing is known of, and on one whose answer is stored. None may be accepted, mended, or be two requests in anybody's
//! reading.
//!
//! Accepted is what gets an answer below 400, or reaches the upstream. Smuggled is what makes a second answer come, however
//! late, or the upstream see a path that no well-formed request named. Answers come in the order of requests, so a
//! well-formed request behind each probe shows where its answers end: with the answer to that one, or with the connection.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use souk_tests::proxy::Proxy;
use souk_tests::say;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// What a request names that is meant to be read out of another one.
const SMUGGLED: &str = "/smuggled";
const STORED: &str = "/stored";
/// What is asked for behind each probe.
const BEHIND: &str = "/behind";
const HOST: &str = "shop.example";
/// Longer than a head may take, after which the server closes, and than a busy machine may.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Connections at once: fewer than a proxy minds.
const AT_ONCE: usize = 64;

/// What is wrong with a probe decides how far it may get.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    /// The head: nothing of it may reach the upstream.
    Head,
    /// The body: its head was right, so the upstream may have seen that.
    Body,
}

struct Probe {
    name: String,
    wrong: Wrong,
    /// With `PATH` where the path goes.
    bytes: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_is_accepted_and_none_is_two() -> Result<()> {
    let upstream = Upstream::start().await?;
    let proxy = Proxy::start(upstream.addr).await?;
    let primed = ask(proxy.addr, &get(STORED)).await?;
    ensure!(primed.starts_with(b"HTTP/1.1 200"), "{}", shown(&primed));

    let probes = probes();
    let runs = probes
        .iter()
        .enumerate()
        .flat_map(|(number, probe)| [(probe, format!("/cold-{number}")), (probe, STORED.to_owned())]);
    let addr = proxy.addr;
    let judged: Vec<_> = futures_util::stream::iter(runs)
        .map(|(probe, path)| async move {
            let seen = exchange(addr, &probe.at(&path)).await;
            (probe, path, seen)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;

    let reached = upstream.asked();
    let mut wrong: Vec<String> = Vec::new();
    for (probe, path, seen) in &judged {
        if let Some(fault) = match seen {
            Err(error) => Some(format!("{error:#}")),
            Ok(_) if probe.wrong == Wrong::Head && reached.contains(path) && path != STORED => {
                Some("reached the upstream".to_owned())
            }
            Ok(answers) => accepted(answers),
        } {
            wrong.push(format!("{} on {path}: {fault}", probe.name));
        }
    }
    let known = |path: &str| [STORED, BEHIND].contains(&path) || path.starts_with("/cold-");
    let strange: Vec<_> = reached.iter().filter(|path| !known(path)).collect();
    let again = ask(proxy.addr, &get(STORED)).await?;
    say(&format!(
        "{} malformed requests, {} exchanges: {} accepted or ambiguous",
        probes.len(),
        judged.len(),
        wrong.len()
    ));
    wrong.sort();
    ensure!(wrong.is_empty(), "{} accepted or ambiguous:\n{}", wrong.len(), wrong.join("\n"));
    ensure!(strange.is_empty(), "the upstream was asked for {strange:?}");
    ensure!(again.ends_with(STORED.as_bytes()) && upstream.gets(STORED) == 1, "{}", shown(&again));
    Ok(())
}

/// What is wrong with what came back; nothing if it was refused, once and in words.
fn accepted(answers: &[u8]) -> Option<String> {
    let heads: Vec<_> = answers
        .windows(12)
        .enumerate()
        // A status line: bodies speak of versions too.
        .filter(|(_, line)| {
            line.starts_with(b"HTTP/1.") && line[8] == b' ' && line[9..].iter().all(u8::is_ascii_digit)
        })
        .map(|(at, _)| at)
        .collect();
    let own = &answers[..heads.get(1).copied().unwrap_or(answers.len())];
    let status = own.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
    match (status, &heads[..]) {
        (None, _) => Some(format!("no answer: {}", shown(answers))),
        (Some(..400), _) => Some(format!("accepted: {}", shown(answers))),
        (Some(_), [_]) => None,
        // The one behind it.
        (Some(_), [_, at]) if answers[*at..].ends_with(BEHIND.as_bytes()) => None,
        _ => Some(format!("{} answers: {}", heads.len(), shown(answers))),
    }
}

fn shown(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(120)]))
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").into_bytes()
}

async fn ask(addr: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    timeout(ANSWER_MAX, stream.read_to_end(&mut answer)).await??;
    Ok(answer)
}

/// Everything that comes back, up to the end of the connection. When the first of it is there, a well-formed request goes
/// after it, which closes the connection if nothing else has. An error if the server does not.
async fn exchange(addr: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    // A server that refuses what it has read may close before the rest is written.
    let _ = timeout(ANSWER_MAX, stream.write_all(request)).await?;
    let mut answers = Vec::new();
    let mut behind = false;
    loop {
        match timeout(ANSWER_MAX, stream.read_buf(&mut answers)).await {
            Ok(Ok(0) | Err(_)) => return Ok(answers),
            Ok(Ok(_)) if !behind => {
                behind = true;
                let _ = stream.write_all(&get(BEHIND)).await;
            }
            Ok(Ok(_)) => {}
            Err(_) => bail!("open after {ANSWER_MAX:?}: {}", shown(&answers)),
        }
    }
}

/// The merchant's server: writes down what it is asked for, and answers what may be stored.
struct Upstream {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<(Method, String)>>>,
    task: JoinHandle<()>,
}

impl Upstream {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let asked = Arc::clone(&asked);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let asked = Arc::clone(&asked);
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let path = request.uri().path().to_owned();
                        asked.lock().push((request.method().clone(), path.clone()));
                        async move {
                            // The whole of it, as a server does that makes something of it.
                            let _ = request.into_body().collect().await;
                            let body = Full::new(Bytes::from(path));
                            let response = Response::builder().header(header::CACHE_CONTROL, "max-age=600");
                            Ok::<_, Infallible>(response.body(body).expect("a valid head"))
                        }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer);
                    tokio::spawn(async { drop(served.await) });
                }
            }
        });
        Ok(Self { addr, asked, task })
    }

    fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().iter().map(|(_, path)| path.clone()).collect()
    }

    fn gets(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|(method, asked)| *method == Method::GET && asked == path).count()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probe {
    fn at(&self, path: &str) -> Vec<u8> {
        let text = &self.bytes;
        let at = text.windows(4).position(|window| window == b"PATH");
        at.map_or_else(|| text.clone(), |at| [&text[..at], path.as_bytes(), &text[at + 4..]].concat())
    }
}

/// The families, one after the other. A name is enough to find the line that made it.
fn probes() -> Vec<Probe> {
    let mut made = Made(Vec::new());
    made.lengths();
    made.codings();
    made.coding_names();
    made.both();
    made.request_lines();
    made.versions();
    made.hosts();
    made.names_and_values();
    made.chunks();
    made.sizes();
    made.fat();
    made.0
}

struct Made(Vec<Probe>);

/// What follows a head whose body may end at several places: a request, wherever it is cut.
fn tail() -> String {
    format!("0\r\n\r\nGET {SMUGGLED} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

impl Made {
    fn add(&mut self, wrong: Wrong, name: &str, bytes: impl Into<Vec<u8>>) {
        self.0.push(Probe { name: name.to_owned(), wrong, bytes: bytes.into() });
    }

    /// A POST with these lines beside its Host, and a request in what might be its body.
    fn framed(&mut self, lines: &str) {
        let head = format!("POST PATH HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n\r\n{}", tail());
        self.add(Wrong::Head, &format!("{lines:?}"), head);
    }

    /// A POST with these lines beside its Host, and the body that a mild reader takes it to have.
    fn mild(&mut self, lines: &str, body: &str) {
        let head = format!("POST PATH HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n\r\n{body}");
        self.add(Wrong::Head, &format!("{lines:?} before {body:?}"), head);
    }

    /// A GET with these lines instead of its Host, and nothing behind it.
    fn asked(&mut self, lines: &[u8]) {
        let head = [b"GET PATH HTTP/1.1\r\n", lines, b"\r\n\r\n"].concat();
        self.add(Wrong::Head, &format!("{:?}", String::from_utf8_lossy(lines)), head);
    }

    /// Beside a proper Host.
    fn beside(&mut self, line: &[u8]) {
        self.asked(&[format!("Host: {HOST}\r\n").as_bytes(), line].concat());
    }

    fn lengths(&mut self) {
        for value in [
            "+5",
            "-5",
            "-0",
            "5 5",
            "5,5",
            "5, 5",
            "5,6",
            "0x5",
            "5.0",
            "5e0",
            "a",
            "5a",
            "a5",
            "\"5\"",
            "'5'",
            "5;",
            "5,",
            ",5",
            "18446744073709551616",
            "99999999999999999999999",
            "-18446744073709551611",
            "\u{0665}",
            "\u{ff15}",
            "5\t5",
            "5\u{b}",
            "5\0",
            "0, 0",
            "0x0",
            "NaN",
            "",
            "1_0",
            "5\u{a0}",
        ] {
            self.framed(&format!("Content-Length: {value}"));
        }
        self.mild("Content-Length: 5\r\nContent-Length: 5", "hello");
        self.mild("content-length: 5\r\nX-Between: y\r\nCONTENT-LENGTH: 5", "hello");
        for (one, two) in [(5, 6), (6, 5), (0, 5), (5, 0)] {
            self.framed(&format!("Content-Length: {one}\r\nContent-Length: {two}"));
            self.framed(&format!("content-length: {one}\r\nX-Between: y\r\nCONTENT-LENGTH: {two}"));
        }
        for name in
            ["Content-Length ", "Content-Length\t", " Content-Length", "Content-Length\0", "Content\0-Length"]
        {
            self.framed(&format!("{name}: 5"));
        }
        self.framed("X: y\r\n Content-Length: 5");
    }

    fn codings(&mut self) {
        for value in [
            "identity",
            "chunked, chunked",
            "chunked,chunked",
            "chunked, identity",
            "identity, chunked",
            "gzip",
            "gzip, chunked",
            "chunked, gzip",
            "deflate, chunked",
            "compress, chunked",
            "xchunked",
            "chunkedx",
            "x chunked",
            "chunked x",
            "chunked;q=1",
            "chunked; foo=bar",
            "\"chunked\"",
            "'chunked'",
            "chunked,",
            ",chunked",
            ", chunked",
            "chunk",
            "cow",
            "",
            "\u{b}chunked",
            "chunked\u{b}",
            "\0chunked",
            "chunked\0",
            "chun ked",
            "chunked\u{a0}",
            "\u{17f}chunked",
            "c\u{202f}hunked",
            "trailers",
            "*",
        ] {
            self.framed(&format!("Transfer-Encoding: {value}"));
        }
        for (one, two) in [
            ("chunked", "chunked"),
            ("chunked", "identity"),
            ("identity", "chunked"),
            ("gzip", "chunked"),
            ("chunked", "x"),
        ] {
            self.framed(&format!("Transfer-Encoding: {one}\r\nTransfer-Encoding: {two}"));
            self.framed(&format!("Transfer-Encoding: {one}\r\nX-Between: y\r\ntransfer-encoding: {two}"));
        }
    }

    fn coding_names(&mut self) {
        for name in [
            "Transfer-Encoding ",
            "Transfer-Encoding\t",
            " Transfer-Encoding",
            "\tTransfer-Encoding",
            "Transfer-Encoding\0",
            "Transfer\0-Encoding",
            "Transfer-Encoding\u{b}",
            "Transfer Encoding",
            "Transfer-Encoding\r",
            "\u{b}Transfer-Encoding",
            "",
            "(Transfer-Encoding)",
            "\"Transfer-Encoding\"",
            "Transfer-Encoding\u{a0}",
            "\u{feff}Transfer-Encoding",
        ] {
            self.framed(&format!("{name}: chunked\r\nContent-Length: 5"));
            self.framed(&format!("Content-Length: 5\r\n{name}: chunked"));
        }
        for fold in [
            "X: y\r\n Transfer-Encoding: chunked",
            "X: y\r\n\tTransfer-Encoding: chunked",
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding:\r\n\tchunked",
            "X: y\rTransfer-Encoding: chunked",
            "X: y\r\rTransfer-Encoding: chunked",
        ] {
            self.framed(&format!("{fold}\r\nContent-Length: 5"));
        }
    }

    /// A length said in two ways, in every order and spelling.
    fn both(&mut self) {
        for coding in ["Transfer-Encoding", "transfer-encoding", "TRANSFER-ENCODING", "tRANSFER-eNCODING"] {
            for value in ["chunked", "Chunked", "CHUNKED"] {
                self.mild(&format!("{coding}: {value}\r\nContent-Length: 5"), "0\r\n\r\n");
                self.mild(&format!("Content-Length: 5\r\n{coding}: {value}"), "0\r\n\r\n");
            }
        }
        for length in ["0", "4", "6", "1000"] {
            self.mild(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"), "0\r\n\r\n");
        }
        for line in ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"] {
            let head = format!("POST PATH HTTP/1.0\r\nHost: {HOST}\r\n{line}\r\n\r\n{}", tail());
            self.add(Wrong::Head, &format!("1.0 {line:?}"), head);
        }
    }

    fn request_lines(&mut self) {
        for line in [
            "GET  PATH HTTP/1.1",
            "GET PATH  HTTP/1.1",
            "GET\tPATH HTTP/1.1",
            "GET PATH\tHTTP/1.1",
            " GET PATH HTTP/1.1",
            "\tGET PATH HTTP/1.1",
            "GET PATH HTTP/1.1 ",
            "GET PATH HTTP/1.1 x",
            "GET PATH x HTTP/1.1",
            "GET HTTP/1.1",
            "GET  HTTP/1.1",
            "GET",
            "",
            "PATH HTTP/1.1",
            "GET PATH",
            "G\0T PATH HTTP/1.1",
            "G(T PATH HTTP/1.1",
            "G:T PATH HTTP/1.1",
            "G\"T PATH HTTP/1.1",
            "GET\u{b}PATH HTTP/1.1",
            "GET\u{c}PATH HTTP/1.1",
            "GET\u{85}PATH HTTP/1.1",
            "\u{feff}GET PATH HTTP/1.1",
            "\0GET PATH HTTP/1.1",
            "GET PATH\0 HTTP/1.1",
            "GET PATH\u{1} HTTP/1.1",
            "GET PATH\u{b} HTTP/1.1",
            "GET PATH\u{7f} HTTP/1.1",
            "GET PATH\rX HTTP/1.1",
            "GET \\PATH HTTP/1.1",
            "GET x HTTP/1.1",
            "GET * HTTP/1.1",
            "GET ?PATH HTTP/1.1",
            "GET %2fPATH HTTP/1.1",
            "GET http:/PATH HTTP/1.1",
            "GET http:///PATH HTTP/1.1",
            "GET http://PATH HTTP/1.1",
            "GET ://x/ HTTP/1.1",
            "GET http://shop.example:99999PATH HTTP/1.1",
            "GET http://user@shop.examplePATH HTTP/1.1",
            "GET http://user:secret@shop.examplePATH HTTP/1.1",
            "GET http://other.examplePATH HTTP/1.1",
            "GET file://shop.examplePATH HTTP/1.1",
            "GET ftp://shop.examplePATH HTTP/1.1",
            "GET http://shop.example@other.examplePATH HTTP/1.1",
            "GET http://shop.example\\PATH HTTP/1.1",
            "GET http://shop example/PATH HTTP/1.1",
            "CONNECT shop.example:443 HTTP/1.1",
            "CONNECT PATH HTTP/1.1",
            "TRACE PATH HTTP/1.1",
            "PRI * HTTP/2.0",
        ] {
            let head = format!("{line}\r\nHost: {HOST}\r\n\r\n");
            self.add(Wrong::Head, &format!("{line:?}"), head);
        }
        self.add(
            Wrong::Head,
            "not UTF-8 in the target",
            [b"GET PATH\xff HTTP/1.1\r\nHost: ", HOST.as_bytes(), b"\r\n\r\n"].concat(),
        );
        self.add(
            Wrong::Head,
            "a TLS hello",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".as_slice(),
        );
        self.add(Wrong::Head, "SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".as_slice());
        self.add(Wrong::Head, "a head of CR alone", format!("GET PATH HTTP/1.1\rHost: {HOST}\r\r"));
        self.add(
            Wrong::Head,
            "a request line that ends in CR CR LF",
            format!("GET PATH HTTP/1.1\r\r\nHost: {HOST}\r\n\r\n"),
        );
    }

    fn versions(&mut self) {
        for version in [
            "HTTP/0.9",
            "HTTP/1.2",
            "HTTP/1.9",
            "HTTP/2.0",
            "HTTP/2",
            "HTTP/3.0",
            "HTTP/1",
            "HTTP/1.",
            "HTTP/.1",
            "HTTP/11",
            "HTTP/1.10",
            "HTTP/1.01",
            "HTTP/01.1",
            "HTTP/1,1",
            "HTTP/1 .1",
            "HTTP /1.1",
            "HTTP/ 1.1",
            "http/1.1",
            "Http/1.1",
            "HTTQ/1.1",
            "HTTPS/1.1",
            "HTTP\\1.1",
            "HTTP-1.1",
            "HTTP/1.1x",
            "HTTP/1.1\0",
            "HTTP/+1.1",
            "HTTP/1.-1",
            "HTTP/\u{0661}.1",
            "1.1",
        ] {
            self.add(
                Wrong::Head,
                &format!("{version:?}"),
                format!("GET PATH {version}\r\nHost: {HOST}\r\n\r\n"),
            );
        }
    }

    fn hosts(&mut self) {
        self.asked(b"X: no host at all");
        for value in [
            "",
            " ",
            "a b",
            "a,b",
            "shop.example, other.example",
            "user@shop.example",
            "user:secret@shop.example",
            "shop.example/",
            "shop.example/x",
            "shop.example?x",
            "shop.example#x",
            "shop.example:99999",
            "shop.example:-1",
            "shop.example:x",
            "shop.example:80:80",
            "shop.example:80x",
            "[::1",
            "::1",
            "[::1]x",
            "[::g]",
            "[]",
            "shop.example\0",
            "shop.example%00",
            "shop\\example",
            "shop.example\\",
            "http://shop.example",
            "//shop.example",
            "<shop>",
            "shop.example\u{b}",
            "\"shop.example\"",
            "shop.example;x",
            "shop|example",
            "{shop}",
            "shop^example",
            "`shop`",
        ] {
            self.asked(format!("Host: {value}").as_bytes());
        }
        for lines in [
            "Host: shop.example\r\nHost: shop.example",
            "Host: shop.example\r\nHost: other.example",
            "Host: shop.example\r\nhost: other.example",
            "Host : shop.example",
            " Host: shop.example",
            "Host\t: shop.example",
            "X: y\r\n Host: shop.example",
            "Host: shop.example\r\n other.example",
        ] {
            self.asked(lines.as_bytes());
        }
        self.asked(b"Host: \xff\xfe");
    }

    fn names_and_values(&mut self) {
        for byte in *b" \t\0\x01\x0b\x0c\x1b\x7f\"(),/;<=>?@[\\]{}" {
            self.beside(&[b"X", &[byte][..], b"Y: z"].concat());
        }
        for name in [&b"\xff"[..], b"", b"\xc3\xa9"] {
            self.beside(&[name, b": z"].concat());
        }
        self.beside(b"a line without a colon");
        self.beside(b"X: y\r\n folded");
        self.beside(b"X: y\r\n\tfolded");
        // But tab, which is white space in a value.
        for byte in (0_u8..0x20).filter(|byte| !matches!(byte, b'\t' | b'\n')).chain([0x7f]) {
            self.beside(&[b"X: a", &[byte][..], b"b"].concat());
        }
        // A line feed alone ends a line for some, and not for others.
        self.mild("X: a\nTransfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n");
        self.mild("X: a\nContent-Length: 5", "hello");
        for (name, head) in [
            ("a line of a line feed", format!("GET PATH HTTP/1.1\r\nHost: {HOST}\r\nX: a\nY: b\r\n\r\n")),
            ("a head of line feeds", format!("GET PATH HTTP/1.1\nHost: {HOST}\n\n")),
            ("a last line of a line feed", format!("GET PATH HTTP/1.1\r\nHost: {HOST}\r\n\n")),
            ("an end of line feeds", format!("GET PATH HTTP/1.1\r\nHost: {HOST}\n\n")),
            ("a fragment", format!("GET PATH#fragment HTTP/1.1\r\nHost: {HOST}\r\n\r\n")),
            ("a fragment behind a query", format!("GET PATH?a#b HTTP/1.1\r\nHost: {HOST}\r\n\r\n")),
        ] {
            self.add(Wrong::Head, name, head);
        }
    }

    /// Chunks that somebody reads otherwise. What follows is a request if the body ends there.
    fn chunks(&mut self) {
        let smuggled = format!("GET {SMUGGLED} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        for body in [
            "g\r\nhello\r\n0\r\n\r\n",
            "-1\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "\t5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            ";x\r\nhello\r\n0\r\n\r\n",
            "5_0\r\nhello\r\n0\r\n\r\n",
            "5.0\r\nhello\r\n0\r\n\r\n",
            "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "\u{ff15}\r\nhello\r\n0\r\n\r\n",
            "5\u{0}\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhelloXX0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello\r0\r\n\r\n",
            "4\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\rhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
            "5\r\nhello\r\n0\r\n: x\r\n\r\n",
            "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5 5\r\nhello\r\n0\r\n\r\n",
            "5,\r\nhello\r\n0\r\n\r\n",
        ] {
            let head = format!(
                "POST PATH HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{body}{smuggled}"
            );
            self.add(Wrong::Body, &format!("chunks {body:?}"), head);
        }
        let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(64 << 10));
        let head = format!(
            "POST PATH HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{extension}{smuggled}"
        );
        self.add(Wrong::Body, "a chunk extension of 64 KiB", head);
        let trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(2_000));
        let head = format!(
            "POST PATH HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{trailers}{smuggled}"
        );
        self.add(Wrong::Body, "two thousand trailers", head);
    }

    fn sizes(&mut self) {
        self.add(
            Wrong::Head,
            "a target of 9 KiB",
            format!("GET PATH?{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "x".repeat(9 << 10)),
        );
        self.add(
            Wrong::Head,
            "a target of 100 KiB",
            format!("GET PATH?{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "x".repeat(100 << 10)),
        );
        self.add(
            Wrong::Head,
            "a method of 100 KiB",
            format!("{} PATH HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "X".repeat(100 << 10)),
        );
        self.beside(format!("X: {}", "y".repeat(100 << 10)).as_bytes());
        self.beside(format!("{}: y", "X".repeat(100 << 10)).as_bytes());
        self.beside("X: y\r\n".repeat(101).trim_end().as_bytes());
        self.beside("X: y\r\n".repeat(10_000).trim_end().as_bytes());
    }

    /// A body where none belongs: an upstream that ignores it reads it as the next request.
    fn fat(&mut self) {
        for method in ["GET", "HEAD"] {
            for line in ["Content-Length: 60", "Transfer-Encoding: chunked"] {
                let head = format!("{method} PATH HTTP/1.1\r\nHost: {HOST}\r\n{line}\r\n\r\n{}", tail());
                self.add(Wrong::Head, &format!("a {method} with {line}"), head);
            }
        }
    }
}

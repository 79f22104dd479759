//! The probes: what is wrong with each, family by family.

use super::{HOST, Probe, SMUGGLED, Wrong};

/// The families, one after the other. A name is enough to find the line that made it.
pub(super) fn probes() -> Vec<Probe> {
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

//! The peer: Debian's nginx with `proxy_cache`, set up as its guides say, in a folder of its own.
//!
//! `tcp_nopush` is off: with `sendfile` it would stall each answer on loopback for 40 ms, and be a false anchor.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use souk_tests::{say, skip};

use crate::machine::{children_of, processor_of};

const STARTS_WITHIN: Duration = Duration::from_secs(20);

pub(crate) struct NginxOptions {
    /// An access log in its own form, as it is shipped; otherwise none.
    pub(crate) logs: bool,
    pub(crate) workers: usize,
    /// Keeps files of its cache open. It is not shipped so.
    pub(crate) open_file_cache: bool,
    pub(crate) cores: Vec<usize>,
}

/// Dropping it ends it.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) clear: SocketAddr,
    pub(crate) tls: SocketAddr,
    _dir: tempfile::TempDir,
}

/// Where it is; Debian has it where the path of people has no folder.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join("nginx")).find(|file| file.is_file())
}

impl Nginx {
    /// None where it is not installed.
    pub(crate) fn start(
        origin: SocketAddr,
        cert: &Path,
        key: &Path,
        options: &NginxOptions,
    ) -> Result<Option<Self>> {
        let Some(program) = program() else {
            skip("nginx", "no nginx: install nginx-light");
            return Ok(None);
        };
        let dir = tempfile::tempdir()?;
        // Both at once, so that they are two.
        let sockets = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0"));
        let [clear, tls] = sockets;
        let (clear, tls) = (clear?.local_addr()?, tls?.local_addr()?);
        let settings = settings(dir.path(), [clear, tls], origin, cert, key, options);
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, settings)?;
        let cores: Vec<String> = options.cores.iter().map(ToString::to_string).collect();
        let child = Command::new("taskset")
            .args(["-c", &cores.join(",")])
            .arg(&program)
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start nginx")?;
        let mut nginx = Self { child, clear, tls, _dir: dir };
        let began = Instant::now();
        while std::net::TcpStream::connect(nginx.tls).is_err() {
            if let Some(status) = nginx.child.try_wait()? {
                let mut why = String::new();
                if let Some(mut said) = nginx.child.stderr.take() {
                    std::io::Read::read_to_string(&mut said, &mut why)?;
                }
                bail!("nginx ended: {status}: {why}");
            }
            ensure!(began.elapsed() < STARTS_WITHIN, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let version = Command::new(&program).arg("-v").output()?;
        say(String::from_utf8_lossy(&version.stderr).trim());
        Ok(Some(nginx))
    }

    /// Of the master and all that it has started.
    pub(crate) fn processor(&self) -> Result<Duration> {
        let own = self.child.id();
        let children = children_of(own)?;
        children.into_iter().chain([own]).map(processor_of).sum()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its workers with it, which a kill would not.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

fn settings(
    dir: &Path,
    [clear, tls]: [SocketAddr; 2],
    origin: SocketAddr,
    cert: &Path,
    key: &Path,
    options: &NginxOptions,
) -> String {
    let dir = dir.display();
    let (cert, key) = (cert.display(), key.display());
    let workers = options.workers;
    let log = if options.logs { format!("{dir}/access.log") } else { "off".to_owned() };
    let files = if options.open_file_cache { "open_file_cache max=1000 inactive=60s;" } else { "" };
    // Only root may change who the workers are, and only root has to: they must be able to write to the folder.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let reuse = if workers > 1 { " reuseport" } else { "" };
    format!(
        "{user}
daemon off;
worker_processes {workers};
pid {dir}/nginx.pid;
error_log {dir}/error.log error;
events {{ worker_connections 1024; }}
http {{
    access_log {log};
    sendfile on;
    tcp_nopush off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    {files}
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    proxy_cache_path {dir}/cache levels=1:2 keys_zone=pages:16m max_size=256m inactive=1h use_temp_path=off;
    server {{
        listen {clear}{reuse};
        listen {tls} ssl http2{reuse};
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_session_cache shared:tls:8m;
        location / {{
            proxy_pass http://{origin};
            proxy_http_version 1.1;
            proxy_cache pages;
            proxy_cache_key $scheme$host$request_uri;
            add_header x-cache $upstream_cache_status;
        }}
    }}
}}
"
    )
}

//! A compiler from the Debian or Ubuntu archive, for machines that can reach it and not rustup's server.
//!
//! Nothing is installed and nothing of the system is changed: package lists, packages and the unpacked compiler lie in
//! one folder of ours, so no root is needed and rustup's compiler is not in the way. Which packages, apt says: names
//! and versions are resolved, never written here. The distribution has no Wasm standard library of a useful age, so
//! cargo builds it from the distribution's source with `-Zbuild-std`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::toolchain::{output, sysroot};

/// Compilers by preference: `rustc-web` is the one that browsers are built with, and kept fresh in a stable release.
const COMPILERS: [(&str, &str); 2] = [("rustc-web", "rust-web-src"), ("rustc", "rust-src")];
/// The first compiler with edition 2024.
const RUSTC_MIN: (u32, u32) = (1, 85);
/// Folders of finished toolchains begin so. A folder appears by one rename, after everything is in it and has run.
const FINISHED: &str = "debian-";

/// A compiler in a folder of ours.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    root: PathBuf,
    libraries: PathBuf,
    linker: PathBuf,
    version: String,
}

impl Unpacked {
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Makes cargo use this compiler and build the standard library with it.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            // The compiler is a stable one that builds its own standard library: the one use this switch is for.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTC", self.rustc())
            .env("LD_LIBRARY_PATH", &self.libraries)
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", &self.linker)
            .env_remove("RUSTC_WRAPPER");
    }

    fn rustc(&self) -> PathBuf {
        self.root.join("usr/bin/rustc")
    }

    /// A folder is a toolchain only if its compiler runs.
    fn at(root: PathBuf) -> Result<Self, String> {
        let libraries = multiarch(&root.join("usr/lib")).ok_or_else(|| "it holds no libraries".to_owned())?;
        let rustc = root.join("usr/bin/rustc");
        let version = output(Command::new(&rustc).arg("-V").env("LD_LIBRARY_PATH", &libraries))?;
        let version = version.split(" (").next().unwrap_or(&version).to_owned();
        let source = root.join("usr/lib/rustlib/src/rust/library/Cargo.lock");
        if !source.is_file() {
            return Err("it holds no source of the standard library".to_owned());
        }
        Ok(Self { linker: linker()?, root, libraries, version })
    }
}

/// `usr/lib/x86_64-linux-gnu` and its like.
fn multiarch(lib: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(lib).ok()?;
    folders.flatten().map(|f| f.path()).find(|p| p.is_dir() && p.to_string_lossy().contains("-linux-gnu"))
}

/// Rustup's compiler brings a linker for Wasm; else one on the PATH.
fn linker() -> Result<PathBuf, String> {
    let bundled = sysroot(Path::new(".")).ok().and_then(|sysroot| {
        let hosts = std::fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
        hosts.flatten().map(|host| host.path().join("bin/rust-lld")).find(|lld| lld.is_file())
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    bundled
        .or_else(|| std::env::split_paths(&path).map(|dir| dir.join("wasm-ld")).find(|lld| lld.is_file()))
        .ok_or_else(|| "no linker for Wasm: neither rust-lld beside the compiler nor wasm-ld on the PATH (apt-get install lld)".to_owned())
}

/// `$SOUK_TOOLCHAIN_DIR`, or the user's cache folder.
fn cache() -> Result<PathBuf, String> {
    let own = std::env::var_os("SOUK_TOOLCHAIN_DIR").filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = || {
            std::env::var_os("HOME").filter(|v| !v.is_empty()).map(|home| PathBuf::from(home).join(".cache"))
        };
        cache.or_else(home).map(|cache| cache.join("souk/toolchain"))
    };
    own.or_else(user).ok_or_else(|| "neither SOUK_TOOLCHAIN_DIR nor HOME says where to put it".to_owned())
}

/// A toolchain that was fetched before.
pub(crate) fn unpacked() -> Option<Unpacked> {
    newest(&cache().ok()?)
}

fn newest(cache: &Path) -> Option<Unpacked> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(cache).ok()?.flatten().map(|f| f.path()).collect();
    folders.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(FINISHED)));
    folders.sort();
    folders.into_iter().rev().find_map(|root| Unpacked::at(root).ok())
}

/// Finds, downloads and unpacks; or takes what another process has unpacked meanwhile.
pub(crate) fn fetch(note: &(dyn Fn(String) + Sync)) -> Result<Unpacked, String> {
    is_debian()?;
    let cache = cache()?;
    std::fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let lock = std::fs::File::create(cache.join("lock")).map_err(|e| format!("{}: {e}", cache.display()))?;
    if lock.try_lock().is_err() {
        note("waiting for another process that fetches the compiler".to_owned());
        lock.lock().map_err(|e| format!("lock {}: {e}", cache.display()))?;
    }
    if let Some(ready) = newest(&cache) {
        return Ok(ready);
    }
    // What an earlier process left half done; its name does not begin like a finished one's.
    let work = cache.join("unpacking");
    let _ = std::fs::remove_dir_all(&work);
    let fetched = fetch_into(&work, &cache, note);
    let _ = std::fs::remove_dir_all(&work);
    fetched
}

fn fetch_into(work: &Path, cache: &Path, note: &(dyn Fn(String) + Sync)) -> Result<Unpacked, String> {
    let apt = Apt::new(work)?;
    note("reading the distribution's package lists".to_owned());
    apt.update()?;
    let packages = apt.resolve()?;
    note(format!("downloading {}", packages.describe()));
    let files = apt.download(&packages)?;
    let root = work.join("root");
    for (i, file) in files.iter().enumerate() {
        note(format!("unpacking {} of {}", i + 1, files.len()));
        unpack(file, &root)?;
    }
    Unpacked::at(root.clone()).map_err(|e| format!("the compiler that was unpacked does not run: {e}"))?;
    let finished = cache.join(format!("{FINISHED}{}-{}", packages.compiler, packages.version));
    std::fs::rename(&root, &finished).map_err(|e| format!("{}: {e}", finished.display()))?;
    Unpacked::at(finished)
}

fn is_debian() -> Result<(), String> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let like = release
        .lines()
        .filter(|l| l.starts_with("ID=") || l.starts_with("ID_LIKE="))
        .collect::<Vec<_>>()
        .join(" ");
    if like.contains("debian") || like.contains("ubuntu") {
        Ok(())
    } else {
        Err("this is neither Debian nor Ubuntu".to_owned())
    }
}

/// The packages that make a compiler, as the archive names them today.
struct Packages {
    compiler: String,
    version: String,
    names: Vec<String>,
    /// Of the whole download, for the user to see.
    bytes: u64,
}

impl Packages {
    fn describe(&self) -> String {
        format!(
            "{} {} ({} packages, {})",
            self.compiler,
            self.version,
            self.names.len(),
            crate::terminal::size(self.bytes)
        )
    }
}

/// apt with lists and a cache of its own.
struct Apt {
    work: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(work: &Path) -> Result<Self, String> {
        for folder in ["lists/partial", "archives/partial", "debs"] {
            std::fs::create_dir_all(work.join(folder)).map_err(|e| format!("{}: {e}", work.display()))?;
        }
        let options = [
            format!("Dir::State::lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.display()),
            "Acquire::Retries=2".to_owned(),
            "Acquire::http::Timeout=20".to_owned(),
            // Root would drop to a user who may not write into our folder.
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self {
            work: work.to_owned(),
            options: options.into_iter().flat_map(|o| ["-o".to_owned(), o]).collect(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("LC_ALL", "C").current_dir(self.work.join("debs"));
        command
    }

    fn update(&self) -> Result<(), String> {
        output(self.command("apt-get").arg("update")).map(drop)
    }

    fn resolve(&self) -> Result<Packages, String> {
        let mut found = Vec::new();
        for (compiler, source) in COMPILERS {
            let Some(version) = self.candidate(compiler)? else { continue };
            if rustc_version(&version).is_none_or(|v| v < RUSTC_MIN) {
                found.push(format!("{compiler} {version}"));
                continue;
            }
            let mut names = vec![
                format!("{compiler}={version}"),
                source_package(source, self.candidate(source)?, &version)?,
            ];
            let needed = self.depends(compiler)?;
            let llvm: Vec<String> = needed.iter().filter(|n| n.starts_with("libllvm")).cloned().collect();
            names.extend(
                needed.into_iter().filter(|n| n.starts_with("libstd-rust") || n.starts_with("libllvm")),
            );
            for package in llvm {
                names.extend(
                    self.depends(&package)?.into_iter().filter(|n| *n != package && !is_installed(n)),
                );
            }
            names.sort();
            names.dedup();
            let bytes = self.size(&names)?;
            return Ok(Packages { compiler: compiler.to_owned(), version, names, bytes });
        }
        let (major, minor) = RUSTC_MIN;
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        Err(format!("the archive has no compiler of {major}.{minor} or later (it has {found})"))
    }

    /// The version that apt would install, from `apt-cache policy`.
    fn candidate(&self, package: &str) -> Result<Option<String>, String> {
        let policy = output(self.command("apt-cache").args(["policy", package]))?;
        let candidate = policy.lines().find_map(|l| l.trim().strip_prefix("Candidate: ").map(str::to_owned));
        Ok(candidate.filter(|version| version != "(none)"))
    }

    /// Everything that a package needs, at every depth.
    fn depends(&self, package: &str) -> Result<Vec<String>, String> {
        let mut command = self.command("apt-cache");
        command.args([
            "depends",
            "--recurse",
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
        ]);
        command.args(["--no-replaces", "--no-enhances", package]);
        let listed = output(&mut command)?;
        // Names in angle brackets are virtual.
        Ok(listed.lines().filter(|l| !l.starts_with([' ', '<'])).map(str::to_owned).collect())
    }

    fn size(&self, names: &[String]) -> Result<u64, String> {
        let uris = output(self.command("apt-get").args(["download", "--print-uris"]).args(names))?;
        Ok(uris.lines().filter_map(|l| l.split(' ').nth(2)?.parse::<u64>().ok()).sum())
    }

    fn download(&self, packages: &Packages) -> Result<Vec<PathBuf>, String> {
        output(self.command("apt-get").arg("download").args(&packages.names))?;
        let listed = std::fs::read_dir(self.work.join("debs")).map_err(|e| e.to_string())?;
        let mut files: Vec<PathBuf> = listed.flatten().map(|f| f.path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "deb"));
        files.sort();
        if files.len() < packages.names.len() {
            return Err(format!("apt-get downloaded {} of {} packages", files.len(), packages.names.len()));
        }
        Ok(files)
    }
}

/// The standard library's source must be of the compiler's own version.
fn source_package(name: &str, candidate: Option<String>, version: &str) -> Result<String, String> {
    match candidate {
        Some(_) => Ok(format!("{name}={version}")),
        None => Err(format!("the archive has the compiler, but not its source ({name})")),
    }
}

/// `1.96.0+dfsg1-1~deb12u2` is `(1, 96)`.
fn rustc_version(version: &str) -> Option<(u32, u32)> {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    let mut numbers = version.split('.').map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn is_installed(package: &str) -> bool {
    let status = output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}\n", package]));
    status.is_ok_and(|status| status.lines().any(|l| l.starts_with("ii")))
}

/// Of the source package only the standard library is kept: the compiler's own source is ten times as large.
fn unpack(file: &Path, root: &Path) -> Result<(), String> {
    std::fs::create_dir_all(root).map_err(|e| format!("{}: {e}", root.display()))?;
    let is_source = file.file_name().is_some_and(|n| n.to_string_lossy().contains("-src_"));
    if !is_source {
        return output(Command::new("dpkg").arg("-x").arg(file).arg(root)).map(drop);
    }
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("dpkg-deb cannot be started: {e}"))?;
    let stdout = archive.stdout.take().expect("standard output was asked for as a pipe");
    let done = Command::new("tar")
        .args(["-x", "--wildcards", "-C"])
        .arg(root)
        .args(["./usr/src/*/library/*", "./usr/lib/rustlib/*"])
        .stdin(stdout)
        .output()
        .map_err(|e| format!("tar cannot be started: {e}"));
    let archived = archive.wait().map_err(|e| format!("dpkg-deb: {e}"))?;
    let done = done?;
    if archived.success() && done.status.success() {
        return Ok(());
    }
    Err(format!("{} cannot be unpacked: {}", file.display(), String::from_utf8_lossy(&done.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_s_versions_are_compared_as_numbers() {
        for (text, version) in [
            ("1.96.0+dfsg1-1~deb12u2", Some((1, 96))),
            ("1:1.9.0-1", Some((1, 9))),
            ("1.63.0+dfsg1-2", Some((1, 63))),
            ("none", None),
        ] {
            assert_eq!(rustc_version(text), version, "{text}");
        }
        assert!(rustc_version("1.9.0").is_some_and(|v| v < RUSTC_MIN));
    }

    #[test]
    fn a_folder_without_a_compiler_that_runs_is_no_toolchain() {
        let cache = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(cache.path().join("debian-rustc-web-1.96/usr/lib/x86_64-linux-gnu"))
            .expect("a folder");
        std::fs::create_dir_all(cache.path().join("unpacking/usr/bin")).expect("a folder");
        assert!(newest(cache.path()).is_none());
    }
}

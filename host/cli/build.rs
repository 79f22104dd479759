//! Puts the sample shop into the program, so that `souk demo` needs no file beside it (but the plugins' sources).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("sample-shop");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    list(&root, &mut files);
    files.sort();
    let mut code = String::from("pub(super) const FILES: &[(&str, &[u8])] = &[\n");
    for file in files {
        let name = file
            .strip_prefix(&root)
            .expect("it was listed there")
            .to_str()
            .expect("the sample shop's names are UTF-8");
        let path = file.to_str().expect("the source tree's path is UTF-8");
        writeln!(code, "    ({name:?}, include_bytes!({path:?})),").expect("a string can be written to");
    }
    code.push_str("];\n");
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("sample_shop.rs");
    fs::write(out, code).expect("the build folder can be written to");
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sample shop is part of the source tree") {
        let path = entry.expect("a folder's entries can be read").path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

//! Puts the sample shop, the plugin templates and the SDKs into the program, so that `souk demo` and `souk plugin new` need
//! no file beside it (but, for the demo, the plugins' sources).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    embed(&here.join("sample-shop"), "sample_shop.rs", "FILES: &[(&str, &[u8])]", "include_bytes!");
    embed(&here.join("templates"), "templates.rs", "TEMPLATES: &[(&str, &str)]", "include_str!");
    embed(&here.join("../../sdk"), "sdk.rs", "SDK: &[(&str, &str)]", "include_str!");
}

/// Writes a constant with every file below `root`, by its path there.
fn embed(root: &Path, name: &str, constant: &str, include: &str) {
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    list(root, &mut files);
    files.sort();
    let mut code = format!("pub(super) const {constant} = &[\n");
    for file in files {
        let name = file
            .strip_prefix(root)
            .expect("it was listed there")
            .to_str()
            .expect("names in the source tree are UTF-8");
        let path = file.to_str().expect("the source tree's path is UTF-8");
        writeln!(code, "    ({name:?}, {include}({path:?})),").expect("a string can be written to");
    }
    code.push_str("];\n");
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join(name);
    fs::write(out, code).expect("the build folder can be written to");
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("what is embedded is part of the source tree") {
        let path = entry.expect("a folder's entries can be read").path();
        // Hidden files and what Python leaves behind are nobody's source.
        if path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(['.', '_']) && n != "__init__.pyi")
        {
            continue;
        }
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

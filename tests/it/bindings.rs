//! What is generated from the contract for JavaScript, Python and C is what lies in `sdk/`.

use souk_tests::{bindings, root};

/// Set this to write the files instead of comparing them.
const BLESS: &str = "SOUK_BLESS";

#[test]
fn the_bindings_of_every_language_are_those_of_the_contract() {
    let sdk = root().join("sdk");
    let generated = bindings::generate(&sdk).expect("the contract can be read");
    assert!(generated.len() > 15, "{} files", generated.len());
    for (path, text) in generated {
        let file = sdk.join(&path);
        if std::env::var_os(BLESS).is_some() {
            std::fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("a folder");
            std::fs::write(&file, text).expect("the SDK can be written");
            continue;
        }
        let held = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            held == text,
            "sdk/{path} is not what sdk/wit says; write it anew with {BLESS}=1 cargo test -p souk-tests --test it bindings"
        );
    }
}

/// The SDK that `souk plugin new` puts into a project has the same dependencies as the one that we test.
#[test]
fn a_project_s_sdk_has_the_versions_of_ours() {
    let read = |path: &str| -> toml::Table {
        let text = std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        text.replace("{{version}}", "0.1.0").parse().unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let workspace = read("Cargo.toml");
    let ours = &read("sdk/rust/Cargo.toml")["dependencies"];
    let theirs = &read("host/cli/templates/rust/sdk/Cargo.toml.in")["dependencies"];
    let names =
        |table: &toml::Value| -> Vec<String> { table.as_table().expect("a table").keys().cloned().collect() };
    assert_eq!(names(ours), names(theirs));
    let locked = std::fs::read_to_string(root().join("Cargo.lock")).expect("a lock file");
    for name in names(theirs) {
        let workspace = &workspace["workspace"]["dependencies"][&name];
        let version = |of: &toml::Value| -> String {
            of.get("version").unwrap_or(of).as_str().expect("a version").to_owned()
        };
        let (theirs, features) = (version(&theirs[&name]), theirs[&name].get("features"));
        match theirs.strip_prefix('=') {
            // Generated code and the encoder of components must agree, so this one is pinned to the very release.
            Some(exact) => {
                let entry = format!("name = \"{name}\"\nversion = \"{exact}\"");
                assert!(locked.contains(&entry), "{name}: {exact} is not what we are tested with");
                assert_eq!(features, workspace.get("features"), "{name}");
            }
            None => assert_eq!(theirs, version(workspace), "{name}"),
        }
    }
}

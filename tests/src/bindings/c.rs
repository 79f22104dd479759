//! C: wit-bindgen's own generator, under one file name for every world, and without the object file that would hold the
//! component's type (`souk plugin build` puts the type in).

use std::path::Path;

use anyhow::{Context as _, Result};
use wit_bindgen_core::Files;
use wit_parser::Resolve;

pub(super) fn bindings(wit: &Path, world: &str) -> Result<Vec<(String, String)>> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit).with_context(|| format!("read {}", wit.display()))?;
    let world = resolve.select_world(&[package], Some(world))?;
    let options = wit_bindgen_c::Opts {
        no_object_file: true,
        rename_world: Some("bindings".to_owned()),
        ..wit_bindgen_c::Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files)?;
    let text =
        |(name, bytes): (&str, &[u8])| Ok((name.to_owned(), without_link(std::str::from_utf8(bytes)?)));
    files.iter().map(text).collect()
}

/// The generator ends its file with a call into the object file that it was asked not to write.
fn without_link(text: &str) -> String {
    let end = text.find("\n// Ensure that the *_component_type.o object is linked in").unwrap_or(text.len());
    text[..end].to_owned()
}

//! A site's settings as a person wrote them.

use std::path::Path;

use souk_commerce::site::SiteSettings;
use souk_commerce::slips;

use super::read_json;
use crate::failure::Usage;

pub(super) fn read(file: &Path) -> anyhow::Result<SiteSettings> {
    let settings: SiteSettings = read_json(file)?;
    match slips::in_settings(&read_json(file)?, &settings) {
        Some(slip) => Err(Usage(format!("{}: {slip}", file.display())).into()),
        None => Ok(settings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_with_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("site.json");
        std::fs::write(&file, r#"{"site": "shop", "currency": "GBP", "limits": {"cart_lines": 1}}"#)
            .expect("written");
        let told = read(&file).expect_err("a slip").to_string();
        assert!(told.contains("site.json: unknown key `limits.cart_lines`; known here: "), "{told}");
        std::fs::write(&file, r#"{"site": "shop", "currency": "GBP"}"#).expect("written");
        assert_eq!(read(&file).expect("settings").site.as_str(), "shop");
    }
}

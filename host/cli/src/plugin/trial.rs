//! What `test`, `bench`, `inspect` and `replay` have in common: which component is meant, and which fixtures lie beside it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use souk_commerce::id::PluginName;
use souk_sandbox::record::{FIXTURE_BYTES_MAX, Fixture};

use super::build::build_project;
use super::project::Project;
use crate::args::ToolchainChoice;
use crate::failure::Usage;
use crate::terminal::Step;

/// Where a project keeps its fixtures.
pub(super) const FIXTURES: &str = "fixtures";
/// Fixtures of one project: more would be a data set, not a test.
const FIXTURES_MAX: usize = 10_000;

/// A component to be tried.
pub(super) struct Subject {
    pub(super) plugin: PluginName,
    pub(super) file: PathBuf,
    pub(super) bytes: Vec<u8>,
}

/// What `plugin` names: a component, or a project, which is built first so that what is tried is what is written.
pub(super) fn subject(plugin: &Path, toolchain: ToolchainChoice) -> anyhow::Result<Subject> {
    let file = if plugin.is_dir() {
        let project = Project::read(plugin)?;
        let step = Step::start(format!("Building {}", plugin.display()));
        let built = build_project(&project, toolchain, None, &|text| step.note(text))?;
        step.done(&crate::terminal::size(built.bytes));
        built.file
    } else {
        plugin.to_owned()
    };
    let bytes = read_component(&file)?;
    Ok(Subject { plugin: name_of(&file), file, bytes })
}

pub(super) fn read_component(file: &Path) -> anyhow::Result<Vec<u8>> {
    let size = std::fs::metadata(file)
        .map_err(|error| Usage(format!("{} cannot be read: {error}", file.display())))?
        .len();
    let most = souk_sandbox::admit::COMPONENT_BYTES_MAX as u64;
    if size > most {
        return Err(Usage(format!(
            "{} has {size} bytes, more than a component may ({most})",
            file.display()
        ))
        .into());
    }
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// A plugin's name as its file has it; what cannot be a name becomes `plugin`.
fn name_of(file: &Path) -> PluginName {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase().replace(['_', '.'], "-");
    stem.parse().unwrap_or_else(|_| "plugin".parse().expect("it begins with a letter and has six"))
}

/// All fixtures of a folder by their file names, in that order.
pub(super) fn fixtures(dir: &Path) -> anyhow::Result<Vec<(String, Fixture)>> {
    let mut files = json_files(dir)?;
    files.truncate(FIXTURES_MAX);
    let mut fixtures = Vec::with_capacity(files.len());
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        fixtures.push((name, fixture(&file)?));
    }
    Ok(fixtures)
}

pub(super) fn fixture(file: &Path) -> anyhow::Result<Fixture> {
    let bytes = read_bounded(file, FIXTURE_BYTES_MAX)?;
    Fixture::decode(&bytes).map_err(|error| Usage(format!("{}: {error}", file.display())).into())
}

/// The `.json` files of a folder, sorted.
pub(super) fn json_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)
        .map_err(|error| Usage(format!("{} cannot be read: {error}", dir.display())))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") && path.is_file() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

pub(super) fn read_bounded(file: &Path, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let size = std::fs::metadata(file)
        .map_err(|error| Usage(format!("{} cannot be read: {error}", file.display())))?
        .len();
    if size > bytes_max as u64 {
        return Err(Usage(format!("{} has {size} bytes, more than {bytes_max}", file.display())).into());
    }
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// `12,345`: counts of instructions are read by people.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_called_after_its_file() {
        for (file, name) in [
            ("a/tea-week.wasm", "tea-week"),
            ("souk_plugin_pricing.wasm", "souk-plugin-pricing"),
            ("7.wasm", "plugin"),
        ] {
            assert_eq!(name_of(Path::new(file)).as_str(), name);
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}

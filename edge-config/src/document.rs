//! A TOML text with its places: turns what serde and the validators say into errors that point at a line and a key.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Problem};
use crate::shared::Base;

/// A configuration of this size was not written by hand: refused before it is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone)]
pub(crate) struct Document {
    file: PathBuf,
    text: String,
}

/// Where a configuration came from, for whoever finds out later that something it says is not so: that a certificate is
/// absent, or somebody else's.
#[derive(Debug, Clone)]
pub struct Source(pub(crate) Document);

impl Source {
    /// A refusal that names the file, the key and its line.
    pub fn blame(
        &self,
        key: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        self.0.locate(Problem::new(key, problem, remedy))
    }
}

impl Document {
    pub(crate) fn read(file: &Path) -> Result<Self, ConfigError> {
        let whole = |problem: String, remedy: &str| ConfigError {
            file: file.to_owned(),
            line: 0,
            key: String::new(),
            problem,
            remedy: remedy.to_owned(),
        };
        let size = std::fs::metadata(file)
            .map_err(|e| {
                whole(format!("the file cannot be opened: {e}"), "check the path and its permissions")
            })?
            .len();
        if size > FILE_BYTES_MAX {
            let problem =
                format!("the file has {size} bytes, and a configuration has at most {FILE_BYTES_MAX}");
            return Err(whole(problem, "check that this is the right file"));
        }
        let text = std::fs::read_to_string(file).map_err(|e| {
            whole(format!("the file cannot be read: {e}"), "it must be a regular file in UTF-8")
        })?;
        Self::parse(text, file)
    }

    /// The file is not opened: it only says where the text came from.
    pub(crate) fn parse(text: String, file: &Path) -> Result<Self, ConfigError> {
        Ok(Self { file: file.to_owned(), text })
    }

    /// Raw type in, validated type out.
    pub(crate) fn validate<Raw: DeserializeOwned, Valid>(
        &self,
        validate: impl FnOnce(Raw, &Base<'_>) -> Result<Valid, Problem>,
    ) -> Result<Valid, ConfigError> {
        let raw = toml::from_str(&self.text).map_err(|e| self.explain(&e))?;
        validate(raw, &Base(self.folder())).map_err(|p| self.locate(p))
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or_else(|| Path::new(""))
    }

    /// A validator's refusal, with the line of its key or, where the key is not written, of the table it belongs into.
    fn locate(&self, problem: Problem) -> ConfigError {
        let root = DeTable::parse(&self.text).ok();
        let mut line = 0;
        for place in root.iter().flat_map(|root| places(root.get_ref())) {
            let inside = problem.key.strip_prefix(place.path.as_str());
            if inside.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])) {
                line = line.max(self.line(place.key.start));
            }
        }
        ConfigError {
            file: self.file.clone(),
            line,
            key: problem.key,
            problem: problem.problem,
            remedy: problem.remedy,
        }
    }

    /// What the parser or serde said, in our words.
    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let key = self.key_at(&span);
        let (key, problem, remedy) = explain(error.message(), key);
        ConfigError { file: self.file.clone(), line: self.line(span.start), key, problem, remedy }
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|b| **b == b'\n').count()
    }

    /// The path of the key whose name or value lies most closely around the span; empty in a text that is not TOML.
    fn key_at(&self, span: &Range<usize>) -> String {
        let Ok(root) = DeTable::parse(&self.text) else { return String::new() };
        let around =
            |range: &Range<usize>| range.start <= span.start && span.end <= range.end && !span.is_empty();
        let closest = places(root.get_ref())
            .into_iter()
            .flat_map(|place| [(place.key, place.path.clone()), (place.value, place.path)])
            .filter(|(range, _)| around(range))
            .min_by_key(|(range, _)| range.len());
        closest.map(|(_, path)| path).unwrap_or_default()
    }
}

/// Where a key and its value stand in the text.
struct Place {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
}

/// Every key, at every depth.
fn places(table: &DeTable<'_>) -> Vec<Place> {
    fn visit(path: String, key: Range<usize>, value: &toml::Spanned<DeValue<'_>>, found: &mut Vec<Place>) {
        match value.get_ref() {
            DeValue::Table(table) => {
                for (name, value) in table {
                    visit(format!("{path}.{}", name.get_ref()), name.span(), value, found);
                }
            }
            DeValue::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    visit(format!("{path}[{i}]"), item.span(), item, found);
                }
            }
            _ => {}
        }
        found.push(Place { path, key, value: value.span() });
    }
    let mut found = Vec::new();
    for (name, value) in table {
        visit(name.get_ref().to_string(), name.span(), value, &mut found);
    }
    found
}

/// Serde's sentences are stable, and carry what a remedy needs: the names that would have been right.
fn explain(message: &str, key: String) -> (String, String, String) {
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let (written, allowed) = rest.split_once('`').unwrap_or((rest, ""));
        let allowed = quoted(allowed);
        let remedy = match nearest(written, &allowed) {
            Some(name) => format!("did you mean `{name}`?"),
            None if allowed.is_empty() => "nothing can be set here".to_owned(),
            None => format!("known here: {}", allowed.join(", ")),
        };
        return (key, format!("unknown key `{written}`"), remedy);
    }
    if let Some(rest) = message.strip_prefix("missing field `") {
        let name = rest.trim_end_matches('`');
        let place = if key.is_empty() { String::new() } else { format!("[{key}] ") };
        let remedy = match example(&key, name) {
            Some(example) => format!("write {example}"),
            None => format!("add it to {place}"),
        };
        return (key, format!("`{name}` is missing"), remedy.trim_end().to_owned());
    }
    if let Some(rest) = message.strip_prefix("unknown variant `") {
        let (written, allowed) = rest.split_once('`').unwrap_or((rest, ""));
        return (
            key,
            format!("{written:?} is not known"),
            format!("write one of {}", quoted(allowed).join(", ")),
        );
    }
    if let Some((problem, expected)) = message.split_once(", expected ") {
        return (key, problem.to_owned(), format!("expected {expected}"));
    }
    let (problem, remedy) = message.split_once(" (units: ").map_or((message, String::new()), |(p, units)| {
        (p, format!("units: {}", units.trim_end_matches(')')))
    });
    (key, problem.to_owned(), remedy)
}

/// What a missing required key looks like when it is there.
fn example(table: &str, name: &str) -> Option<&'static str> {
    Some(match (table, name) {
        ("node", "id") => "`id = 1`, the number in the node's certificate",
        ("node", "pop") => "`pop = \"lon\"`, the place where the node stands",
        ("node", "region") | ("region", "name") => "the region's name, such as \"eu-west\"",
        (_, "data_dir") => "`data_dir = \"data\"`, a folder for this process alone",
        (_, "admin") => "`admin = \"127.0.0.1:9090\"`",
        ("listen", "link") => "`link = \"0.0.0.0:7443\"`, the UDP address for nodes",
        ("listen", "control") => "`control = \"127.0.0.1:7080\"`, the HTTP address for operators",
        (_, "regions") => "a [[link.regions]] table with `addr` and `server_name`",
        (_, "ca") => "`ca = \"ca.pem\"`, the authority that signed both ends of the link",
        (_, "cert") => "`cert = \"cert.pem\"`",
        (_, "key") => "`key = \"key.pem\"`",
        (_, "operator_token_sha256") => "the output of: printf %s \"$TOKEN\" | sha256sum",
        ("", "node") => "a [node] table with `id`, `pop`, `region` and `data_dir`",
        ("", "region") => "a [region] table with `name` and `data_dir`",
        ("", "listen") => "a [listen] table",
        ("", "link") => "a [link] table with `ca`, `cert` and `key`",
        ("", "control") => "a [control] table with `operator_token_sha256`",
        _ => return None,
    })
}

/// The names between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The name that a slip of the hand most likely meant: at most a third of its letters wrong.
fn nearest<'a>(written: &str, allowed: &[&'a str]) -> Option<&'a str> {
    allowed
        .iter()
        .map(|name| (distance(written, name), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

/// How many letters were left out, put in, changed, or swapped with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    // Keys have at most a few dozen letters; what someone wrote instead of one is cut to that.
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

//! Why a configuration was refused, in the words of the person who has to repair it.

use std::fmt;
use std::path::PathBuf;

/// One refusal: file, line, key, what is wrong, and what to write instead.
///
/// Prints as `edge.toml:4: listen.htttp: unknown key; did you mean `http`?`, the form that editors turn into a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Counted from 1; 0 where the refusal is about the file as a whole.
    pub line: usize,
    /// Dotted, as a TOML reader writes it: `link.regions[0].addr`. Empty where no key is to blame.
    pub key: String,
    pub problem: String,
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.problem)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// A refusal by a validator, which knows the key but neither the file nor the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) key: String,
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl Problem {
    pub(crate) fn new(key: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), remedy: remedy.into() }
    }
}

/// A refusal of what may be set by a flag or by a key of a file, in words that fit both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) flag: &'static str,
    /// Within the table that it is set in.
    pub(crate) key: String,
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl Said {
    pub(crate) fn new(
        flag: &'static str,
        key: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { flag, key: key.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// As a refusal of the key in a table.
    pub(crate) fn at(self, table: &str) -> Problem {
        Problem::new(format!("{table}.{}", self.key), self.problem, self.remedy)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.flag, self.problem, self.remedy)
    }
}

//! The one place where an error becomes an exit code and a sentence.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use souk_config::{ConfigError, ProxyConfigError, UpstreamConfigError};

use crate::terminal;

/// Something was asked for wrongly: exit code 2, as for a wrong flag or a wrong configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// What happened is not a wrong question but a failure: exit code 1.
const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// Prints the error with its causes on standard error and chooses the code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    anstream::eprintln!("{red}error{red:#}: {}", sentence(error));
    ExitCode::from(code(error))
}

/// The error and its causes, outermost first. A cause that was said already is not said again: an error that names its cause in
/// its own words has it as its source all the same. What a file or a peer wrote reaches no terminal as it is.
fn sentence(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    terminal::tame(&told)
}

fn code(error: &anyhow::Error) -> u8 {
    let theirs = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || cause.is::<ProxyConfigError>()
            || cause.is::<UpstreamConfigError>()
            || cause.is::<Usage>()
    });
    if theirs { WRONG_USAGE } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_and_nothing_steers_the_terminal() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot listen: {source}; who does?")]
        struct Listen {
            source: std::io::Error,
        }
        let source = || std::io::Error::other("in use \u{1b}[2J\0");
        let told = sentence(&anyhow::Error::new(Listen { source: source() }).context("start"));
        assert_eq!(told, "start: cannot listen: in use \\u{1b}[2J\\u{0}; who does?");
        assert_eq!(
            sentence(&anyhow::Error::new(source()).context("read x")),
            "read x: in use \\u{1b}[2J\\u{0}"
        );
    }

    #[test]
    fn a_wrong_question_and_a_failure_have_different_codes() {
        assert_eq!(code(&anyhow::Error::new(Usage("x".into())).context("while y")), WRONG_USAGE);
        assert_eq!(code(&anyhow::anyhow!("x")), FAILED);
    }
}

//! The one place where an error becomes an exit code and a sentence.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use souk_config::{ConfigError, ProxyConfigError, UpstreamConfigError};

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
    anstream::eprintln!("{red}error{red:#}: {error:#}");
    ExitCode::from(code(error))
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
    fn a_wrong_question_and_a_failure_have_different_codes() {
        assert_eq!(code(&anyhow::Error::new(Usage("x".into())).context("while y")), WRONG_USAGE);
        assert_eq!(code(&anyhow::anyhow!("x")), FAILED);
    }
}

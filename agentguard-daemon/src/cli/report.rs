//! Errors and colours as people see them.

use std::io::IsTerminal;

use miette::{GraphicalReportHandler, GraphicalTheme};
use thiserror::Error;

use super::exit::Exit;
use crate::api::ClientError;
use crate::policy::PolicyError;
use crate::session::SessionError;

/// Why a command did not succeed.
#[derive(Debug, Error)]
pub enum CliError {
    /// The engine refused or failed.
    #[error("{}", text(.0))]
    Session(#[from] SessionError),
    /// The daemon refused or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Anything else, with its exit status.
    #[error("{1}")]
    Other(Exit, String),
}

impl CliError {
    /// The exit status.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Session(error) => error.into(),
            Self::Client(error) => error.into(),
            Self::Other(exit, _) => *exit,
        }
    }

    /// A file that could not be used.
    pub fn file(call: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let exit = match error.kind() {
            std::io::ErrorKind::NotFound => Exit::Missing,
            std::io::ErrorKind::PermissionDenied => Exit::NotPermitted,
            _ => Exit::InputOutput,
        };
        Self::Other(
            exit,
            format!("failed to {call} {}: {error}", path.display()),
        )
    }
}

/// An error in words; a policy's with file, line, caret and help.
pub fn text(error: &SessionError) -> String {
    let SessionError::Policy(policy) = error else {
        return error.to_string();
    };
    diagnostic("the policy is not valid", policy.as_ref())
}

/// What is wrong with a file, with its place, a caret and help.
pub fn diagnostic(what: &str, error: &PolicyError) -> String {
    let mut text = format!("{what}\n");
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    match handler.render_report(&mut text, error) {
        Ok(()) => text.trim_end().to_owned(),
        Err(_) => error.to_string(),
    }
}

/// Whether a stream gets colours: a terminal, and nobody said no.
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text in bold red.
pub fn red(text: &str, colour: bool) -> String {
    if colour {
        format!("\x1b[1;31m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

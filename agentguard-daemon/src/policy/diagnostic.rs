//! What is said about a policy that cannot be used: one message, one place, one remedy.
//!
//! A diagnostic never carries the contents of any file other than policy files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// A stretch of bytes in a policy file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// The text of one policy file, as far as diagnostics and records speak of it.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    text: Arc<str>,
    line_starts: Vec<usize>,
}

impl Source {
    /// Keeps `text` under the name that the user knows it by.
    pub fn new(path: &Path, text: &str) -> Self {
        let line_starts = std::iter::once(0)
            .chain(
                text.bytes()
                    .enumerate()
                    .filter(|(_, byte)| *byte == b'\n')
                    .map(|(at, _)| at + 1),
            )
            .collect();
        Self {
            path: path.to_path_buf(),
            text: Arc::from(text),
            line_starts,
        }
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The line (from 1) that holds the byte at `offset`.
    pub fn line(&self, offset: usize) -> u32 {
        self.line_starts.partition_point(|start| *start <= offset) as u32
    }
}

/// A problem inside one pattern: where in the pattern, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
    /// Byte offset in the pattern.
    pub at: usize,
    /// Bytes concerned; at least 1.
    pub len: usize,
}

impl PatternError {
    /// A problem with `len` bytes at `at`.
    pub fn new(at: usize, len: usize, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
            at,
            len: len.max(1),
        }
    }
}

#[derive(Clone, Debug)]
struct Problem {
    message: String,
    label: String,
    help: String,
    source: Option<NamedSource<Arc<str>>>,
    span: Span,
}

/// Why a policy cannot be used. Rendered by miette with file, line, column, caret and help.
#[derive(Clone, Debug)]
pub struct PolicyError(Box<Problem>);

impl PolicyError {
    /// A problem at a place in a policy file.
    pub fn at(
        source: &Source,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self::build(
            &source.path,
            source.text.clone(),
            span,
            &message.into(),
            &help.into(),
        )
    }

    /// A problem with a file whose text could not be kept whole (too large, not UTF-8).
    pub fn in_excerpt(
        path: &Path,
        excerpt: &str,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self::build(
            path,
            Arc::from(excerpt),
            span,
            &message.into(),
            &help.into(),
        )
    }

    /// A problem that has no place in any file.
    pub fn general(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self(Box::new(Problem {
            message: message.into(),
            label: String::new(),
            help: help.into(),
            source: None,
            span: Span::default(),
        }))
    }

    /// Replaces the text beside the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.0.label = label.into();
        self
    }

    fn build(path: &Path, text: Arc<str>, span: Span, message: &str, help: &str) -> Self {
        // miette cannot show a place in an empty text.
        let text = if text.is_empty() {
            Arc::from(" ")
        } else {
            text
        };
        let offset = floor_char_boundary(&text, span.offset.min(text.len().saturating_sub(1)));
        let line_end = text[offset..].find('\n').map_or(text.len(), |n| offset + n);
        let end = offset + span.len.clamp(1, (line_end - offset).max(1));
        // A place may lie inside a character of several bytes.
        let end = (end..=text.len())
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(text.len());
        let len = end - offset;
        let source = NamedSource::new(path.display().to_string(), text).with_language("yaml");
        Self(Box::new(Problem {
            message: printable(message),
            label: "here".into(),
            help: printable(help),
            source: Some(source),
            span: Span { offset, len },
        }))
    }

    /// What to do about it.
    pub fn help_text(&self) -> &str {
        &self.0.help
    }

    /// File, line and column (both from 1), where there is a place.
    pub fn place(&self) -> Option<(String, usize, usize)> {
        let source = self.0.source.as_ref()?;
        let before = &source.inner()[..self.0.span.offset];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Some((source.name().to_owned(), line, column))
    }
}

/// Text of a policy may be quoted; it must not reach a terminal as control characters.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

fn floor_char_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for PolicyError {}

impl Diagnostic for PolicyError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.0.help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0
            .source
            .as_ref()
            .map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.0.source.as_ref()?;
        let Span { offset, len } = self.0.span;
        Some(Box::new(std::iter::once(LabeledSpan::new(
            Some(self.0.label.clone()),
            offset,
            len,
        ))))
    }
}

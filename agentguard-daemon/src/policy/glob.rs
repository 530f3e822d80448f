//! The pattern language for paths and arguments: text to a flat sequence of tokens.
//!
//! Patterns speak about bytes. Braces are written out, variables are inserted as literal bytes, and
//! nothing is normalised silently: what could never match (`//`, `/./`, `..`) is an error, because a
//! rule that never matches is a hole. Matching is not done here (see `matcher` and `compile`).

pub use super::byteset::ByteSet;
use super::diagnostic::PatternError;
use super::flatten::{argument, expand, path};
use super::vars::Vars;

/// Depth of nested braces.
const MAX_BRACE_DEPTH: usize = 8;
/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 4096;

/// One step of a flat pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// This byte.
    Byte(u8),
    /// One byte of the set. (Apart, because nearly all tokens are bytes, and a policy has tens of thousands.)
    Set(Box<ByteSet>),
    /// Any run of bytes, also empty: in a path without `/`.
    Star,
    /// `(.*/)?`, after a `/`: any number of whole components.
    Deep,
    /// `(/.*)?`, at the end: the path itself and everything below.
    Tail,
}

/// What a pattern is matched against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A resolved path: wildcards stop at `/`.
    Path,
    /// The program of a command: as `Path`, and a bare name means `**/name`.
    Program,
    /// One argument: `/` is an ordinary byte.
    Argument,
    /// A Unix-domain socket: a path, or `@` and an abstract name, in which `/` is an ordinary byte.
    Socket,
}

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    alternatives: Vec<Box<[Token]>>,
}

impl Glob {
    /// Parses `text`.
    pub fn parse(text: &str, subject: Subject, vars: &Vars) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::new(
                0,
                1,
                "the pattern is empty",
                "write a pattern, or remove the item",
            ));
        }
        if text.len() > MAX_PATTERN {
            return Err(PatternError::new(
                0,
                text.len(),
                format!("the pattern is longer than {MAX_PATTERN} bytes"),
                "no path that can be judged is that long; split the rule",
            ));
        }
        let is_abstract = subject == Subject::Socket && text.starts_with('@');
        let mut parser = Parser {
            text,
            at: usize::from(is_abstract),
            subject: match subject {
                Subject::Socket if is_abstract => Subject::Argument,
                Subject::Socket => Subject::Path,
                other => other,
            },
            vars,
        };
        let nodes = parser.sequence(0)?;
        let alternatives = expand(&nodes, text.len())?
            .iter()
            .map(|flat| match subject {
                Subject::Argument => argument(flat),
                // The kernel's form of an abstract name begins with a NUL, which no path has.
                Subject::Socket if is_abstract => argument(flat).map(|mut tokens| {
                    tokens.insert(0, Token::Byte(0));
                    tokens
                }),
                Subject::Path | Subject::Socket => path(flat, text, false),
                Subject::Program => path(flat, text, true),
            })
            .map(|tokens| tokens.map(Vec::into_boxed_slice))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            text: text.to_owned(),
            alternatives,
        })
    }

    /// The pattern as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The flat sequences; the pattern matches where one of them does.
    pub fn alternatives(&self) -> &[Box<[Token]>] {
        &self.alternatives
    }
}

/// Whether a flat path pattern may match at any depth (`**/…`).
pub fn is_floating(tokens: &[Token]) -> bool {
    matches!(tokens, [Token::Byte(b'/'), Token::Deep, ..])
}

/// Whether a flat pattern speaks of an abstract name and not of a path.
pub fn is_abstract(tokens: &[Token]) -> bool {
    tokens.first() == Some(&Token::Byte(0))
}

/// A part of a pattern without alternatives.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// This byte.
    Byte(u8),
    /// One byte of the set.
    Set(ByteSet),
    /// So many `*`.
    Stars(usize),
}

/// A part of a pattern, with its offset.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// Without alternatives.
    Item(Item, usize),
    /// Braces.
    Alternatives(Vec<Vec<Node>>),
}

/// A pattern whose braces are written out.
pub(super) type Flat = Vec<(Item, usize)>;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    subject: Subject,
    vars: &'a Vars,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn error<T>(
        &self,
        at: usize,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Result<T, PatternError> {
        Err(PatternError::new(
            at,
            self.at.saturating_sub(at),
            message,
            help,
        ))
    }

    /// Parses up to the end, or inside braces up to `,` or `}`.
    fn sequence(&mut self, depth: usize) -> Result<Vec<Node>, PatternError> {
        let mut nodes = Vec::new();
        while let Some(byte) = self.peek() {
            let start = self.at;
            match byte {
                b',' | b'}' if depth > 0 => break,
                b'{' => nodes.push(self.braces(depth + 1)?),
                b'}' => {
                    self.at += 1;
                    return self.error(
                        start,
                        "`}` without its `{`",
                        "write `\\}` for the character itself",
                    );
                }
                b'[' => nodes.push(Node::Item(Item::Set(self.class()?), start)),
                b']' => {
                    self.at += 1;
                    return self.error(
                        start,
                        "`]` without its `[`",
                        "write `\\]` for the character itself",
                    );
                }
                b'?' => {
                    self.at += 1;
                    nodes.push(Node::Item(Item::Set(self.wild()), start));
                }
                b'*' => {
                    let run = self.text.as_bytes()[start..]
                        .iter()
                        .take_while(|b| **b == b'*')
                        .count();
                    self.at += run;
                    nodes.push(Node::Item(Item::Stars(run), start));
                }
                b'\\' => nodes.push(Node::Item(Item::Byte(self.escape()?), start)),
                b'$' if self.text[start..].starts_with("${") => self.variable(&mut nodes)?,
                b'~' if start == 0 && self.home_follows() => {
                    self.at += 1;
                    self.insert("home", start, &mut nodes)?;
                }
                b'"' | b'\'' if self.subject != Subject::Path => {
                    self.at += 1;
                    return self.error(
                        start,
                        "quotes have no meaning in a command pattern",
                        "write `\\ ` for a space inside one argument, and `\\\"` or `\\'` for the quote itself",
                    );
                }
                0 => {
                    self.at += 1;
                    return self.error(start, "a NUL byte can never match", "remove it");
                }
                _ => {
                    self.at += 1;
                    nodes.push(Node::Item(Item::Byte(byte), start));
                }
            }
        }
        Ok(nodes)
    }

    fn home_follows(&self) -> bool {
        self.subject != Subject::Argument
            && matches!(self.text.as_bytes().get(1), None | Some(b'/'))
    }

    /// What `?` stands for.
    fn wild(&self) -> ByteSet {
        let all = ByteSet::ALL.without(0);
        if self.subject == Subject::Argument {
            all
        } else {
            all.without(b'/')
        }
    }

    fn braces(&mut self, depth: usize) -> Result<Node, PatternError> {
        let start = self.at;
        self.at += 1;
        if depth > MAX_BRACE_DEPTH {
            return self.error(
                start,
                "braces are nested too deeply",
                format!("at most {MAX_BRACE_DEPTH} levels"),
            );
        }
        let mut alternatives = Vec::new();
        loop {
            alternatives.push(self.sequence(depth)?);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    break;
                }
                _ => {
                    return self.error(
                        start,
                        "`{` is never closed",
                        "add `}`, or write `\\{` for the character itself",
                    );
                }
            }
        }
        if alternatives.len() == 1 {
            return self.error(
                start,
                "braces with a single alternative",
                "write `{a,b}`; for the characters themselves write `\\{` and `\\}`; a variable is `${name}`",
            );
        }
        Ok(Node::Alternatives(alternatives))
    }

    fn class(&mut self) -> Result<ByteSet, PatternError> {
        let start = self.at;
        self.at += 1;
        if !self.text[start..].contains(']') {
            return self.error(
                start,
                "`[` is never closed",
                "add `]`, or write `\\[` for the character itself",
            );
        }
        let negated = matches!(self.peek(), Some(b'!' | b'^'));
        if negated {
            self.at += 1;
        }
        let first = self.at;
        let mut set = ByteSet::EMPTY;
        loop {
            let at = self.at;
            match self.peek() {
                None => {
                    return self.error(
                        start,
                        "`[` is never closed",
                        "add `]`, or write `\\[` for the character itself",
                    );
                }
                Some(b']') if at > first => {
                    self.at += 1;
                    break;
                }
                Some(_) => {}
            }
            let low = self.class_byte()?;
            let range = self.peek() == Some(b'-')
                && self
                    .text
                    .as_bytes()
                    .get(self.at + 1)
                    .is_some_and(|b| *b != b']');
            let high = if range {
                self.at += 1;
                self.class_byte()?
            } else {
                low
            };
            if low > high {
                return self.error(
                    at,
                    "the range of the class runs backwards",
                    "write the lower end first",
                );
            }
            if self.subject != Subject::Argument && !range && low == b'/' {
                return self.error(
                    at,
                    "a class never matches `/` in a path",
                    "write the `/` outside of the class",
                );
            }
            set = set.with_range(low, high);
        }
        let set = if negated { set.inverted() } else { set }.without(0);
        let set = if self.subject == Subject::Argument {
            set
        } else {
            set.without(b'/')
        };
        if set.is_empty() {
            return self.error(
                start,
                "the class matches nothing",
                "remove it, or write what it should match",
            );
        }
        Ok(set)
    }

    fn class_byte(&mut self) -> Result<u8, PatternError> {
        let at = self.at;
        match self.peek() {
            Some(b'\\') => self.escape(),
            Some(byte) if byte.is_ascii() && byte != 0 => {
                self.at += 1;
                Ok(byte)
            }
            _ => {
                self.at += 1;
                self.error(
                    at,
                    "a class holds single bytes, and this character is several",
                    "use braces (`{é,è}`), or bytes written as `\\xHH`",
                )
            }
        }
    }

    fn escape(&mut self) -> Result<u8, PatternError> {
        let start = self.at;
        self.at += 1;
        let help = "a backslash goes before punctuation, a space, or `xHH` for a byte; for a backslash write `\\\\`";
        match self.peek() {
            Some(b'x') => {
                let digits = self.text.get(self.at + 1..self.at + 3).unwrap_or_default();
                let value = u8::from_str_radix(digits, 16)
                    .ok()
                    .filter(|_| !digits.starts_with('+'));
                self.at += 1 + digits.len();
                match value {
                    Some(0) => self.error(start, "a NUL byte can never match", "remove it"),
                    Some(byte) => Ok(byte),
                    None => self.error(start, "`\\x` needs two hexadecimal digits", help),
                }
            }
            Some(byte) if byte.is_ascii_punctuation() || byte == b' ' => {
                self.at += 1;
                Ok(byte)
            }
            _ => self.error(start, "unknown escape", help),
        }
    }

    fn variable(&mut self, nodes: &mut Vec<Node>) -> Result<(), PatternError> {
        let start = self.at;
        let Some(len) = self.text[start..].find('}') else {
            self.at = self.text.len();
            return self.error(start, "`${` is never closed", "write `${name}`");
        };
        let name = &self.text[start + 2..start + len];
        self.at = start + len + 1;
        self.insert(name, start, nodes)
    }

    /// Inserts the value of a variable as literal bytes: wildcards in it have no meaning.
    fn insert(&self, name: &str, start: usize, nodes: &mut Vec<Node>) -> Result<(), PatternError> {
        let value = self.vars.value(name).map_err(|problem| {
            PatternError::new(start, self.at - start, problem.message, problem.help)
        })?;
        if value.bytes().any(|byte| byte == 0) {
            return self.error(
                start,
                format!("the value of `{name}` holds a NUL byte"),
                "set another value",
            );
        }
        nodes.extend(
            value
                .bytes()
                .map(|byte| Node::Item(Item::Byte(byte), start)),
        );
        Ok(())
    }
}

//! The pattern language for paths and arguments: text to a flat sequence of tokens.
//!
//! Patterns speak about bytes. Braces are written out, variables are inserted as literal bytes, and
//! nothing is normalised silently: what could never match (`//`, `/./`, `..`) is an error, because a
//! rule that never matches is a hole. Matching is not done here (see `matcher` and `compile`).

use super::diagnostic::PatternError;
use super::vars::Vars;

/// Alternatives that the braces of one pattern may amount to.
const MAX_ALTERNATIVES: usize = 1024;
/// Depth of nested braces.
const MAX_BRACE_DEPTH: usize = 8;
/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 4096;

/// A set of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSet([u64; 4]);

impl ByteSet {
    /// The empty set.
    pub const EMPTY: Self = Self([0; 4]);
    /// Every byte.
    pub const ALL: Self = Self([u64::MAX; 4]);

    /// Whether `byte` is in the set.
    pub const fn contains(&self, byte: u8) -> bool {
        self.0[(byte >> 6) as usize] >> (byte & 63) & 1 == 1
    }

    /// The set with `byte` added.
    #[must_use]
    pub const fn with(mut self, byte: u8) -> Self {
        self.0[(byte >> 6) as usize] |= 1 << (byte & 63);
        self
    }

    /// The set with `byte` removed.
    #[must_use]
    pub const fn without(mut self, byte: u8) -> Self {
        self.0[(byte >> 6) as usize] &= !(1 << (byte & 63));
        self
    }

    /// The set with every byte from `low` to `high`.
    #[must_use]
    pub fn with_range(self, low: u8, high: u8) -> Self {
        (low..=high).fold(self, Self::with)
    }

    /// Every byte that is not in the set.
    #[must_use]
    pub const fn inverted(self) -> Self {
        Self([!self.0[0], !self.0[1], !self.0[2], !self.0[3]])
    }

    /// Whether no byte is in the set.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }
}

/// One step of a flat pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// This byte.
    Byte(u8),
    /// One byte of the set.
    Set(ByteSet),
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
}

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    alternatives: Vec<Vec<Token>>,
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
        let mut parser = Parser {
            text,
            at: 0,
            subject,
            vars,
        };
        let nodes = parser.sequence(0)?;
        let alternatives = expand(&nodes, text.len())?
            .iter()
            .map(|flat| match subject {
                Subject::Argument => argument(flat),
                Subject::Path => path(flat, text, false),
                Subject::Program => path(flat, text, true),
            })
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
    pub fn alternatives(&self) -> &[Vec<Token>] {
        &self.alternatives
    }
}

/// Whether a flat path pattern may match at any depth (`**/…`).
pub fn is_floating(tokens: &[Token]) -> bool {
    matches!(tokens, [Token::Byte(b'/'), Token::Deep, ..])
}

#[derive(Clone, Debug)]
enum Item {
    Byte(u8),
    Set(ByteSet),
    Stars(usize),
}

#[derive(Clone, Debug)]
enum Node {
    Item(Item, usize),
    Alternatives(Vec<Vec<Node>>),
}

type Flat = Vec<(Item, usize)>;

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

/// Writes the braces out.
fn expand(nodes: &[Node], pattern_len: usize) -> Result<Vec<Flat>, PatternError> {
    let mut all: Vec<Flat> = vec![Vec::new()];
    for node in nodes {
        match node {
            Node::Item(item, at) => all
                .iter_mut()
                .for_each(|flat| flat.push((item.clone(), *at))),
            Node::Alternatives(alternatives) => {
                let mut tails = Vec::new();
                for alternative in alternatives {
                    tails.extend(expand(alternative, pattern_len)?);
                }
                if all.len() * tails.len() > MAX_ALTERNATIVES {
                    return Err(PatternError::new(
                        0,
                        pattern_len,
                        format!("the braces amount to more than {MAX_ALTERNATIVES} alternatives"),
                        "use wildcards, or split the rule",
                    ));
                }
                all = all
                    .iter()
                    .flat_map(|head| {
                        tails
                            .iter()
                            .map(move |tail| head.iter().chain(tail).cloned().collect())
                    })
                    .collect();
            }
        }
    }
    Ok(all)
}

fn argument(flat: &Flat) -> Result<Vec<Token>, PatternError> {
    flat.iter()
        .map(|(item, at)| match item {
            Item::Byte(byte) => Ok(Token::Byte(*byte)),
            Item::Set(set) => Ok(Token::Set(*set)),
            Item::Stars(1) => Ok(Token::Star),
            Item::Stars(run) => Err(PatternError::new(
                *at,
                *run,
                "`**` is only known as a whole argument (any number of arguments)",
                "inside one argument write `*`, which also matches `/`",
            )),
        })
        .collect()
}

/// Checks the components of a path pattern and gives its tokens.
fn path(flat: &Flat, text: &str, bare_names: bool) -> Result<Vec<Token>, PatternError> {
    let is_slash = |item: &Item| matches!(item, Item::Byte(b'/'));
    let mut components: Vec<&[(Item, usize)]> = flat.split(|(item, _)| is_slash(item)).collect();
    let mut tokens = Vec::new();
    let floats = matches!(components[0], [(Item::Stars(2), _)]);
    if components[0].is_empty() && components.len() > 1 {
        components.remove(0);
    } else if bare_names && components.len() == 1 && !floats {
        tokens.extend([Token::Byte(b'/'), Token::Deep]);
        return component(components[0], text, tokens);
    } else if !floats || components.len() == 1 {
        return Err(PatternError::new(
            0,
            text.len(),
            "a path pattern begins at the root or with `**/`",
            if bare_names {
                "begin with `/`, `**/`, `~/` or a variable; a program's name alone (`git`) means `**/git`"
            } else {
                "begin with `/`, `**/`, `~/` or a variable that holds an absolute path"
            },
        ));
    }
    if let [only] = components.as_slice()
        && only.is_empty()
    {
        return Ok(vec![Token::Byte(b'/')]);
    }
    let mut after_deep = false;
    for (index, part) in components.iter().enumerate() {
        let last = index + 1 == components.len();
        if let [(Item::Stars(2), at)] = part {
            if after_deep {
                return Err(PatternError::new(
                    *at,
                    2,
                    "`**/**` says the same as `**`",
                    "write `**` once",
                ));
            }
            if last {
                tokens.push(Token::Tail);
            } else {
                tokens.extend([Token::Byte(b'/'), Token::Deep]);
                after_deep = true;
            }
            continue;
        }
        if part.is_empty() {
            return Err(empty_component(flat, &components[..index], last));
        }
        if !after_deep {
            tokens.push(Token::Byte(b'/'));
        }
        after_deep = false;
        tokens = component(part, text, tokens)?;
    }
    Ok(tokens)
}

fn empty_component(flat: &Flat, before: &[&[(Item, usize)]], last: bool) -> PatternError {
    // The slash that follows `before`, as far as the text shows it.
    let index = before.iter().map(|part| part.len() + 1).sum::<usize>();
    let at = flat.get(index).or(flat.last()).map_or(0, |(_, at)| *at);
    if last {
        PatternError::new(
            at,
            1,
            "the pattern ends in `/`, which no resolved path does",
            "write `dir` for the directory itself, `dir/**` for it and everything below",
        )
    } else {
        PatternError::new(
            at,
            1,
            "`//` never occurs in a resolved path",
            "write a single `/`",
        )
    }
}

fn component(
    part: &[(Item, usize)],
    text: &str,
    mut tokens: Vec<Token>,
) -> Result<Vec<Token>, PatternError> {
    let dots = |n: usize| {
        part.len() == n
            && part
                .iter()
                .all(|(item, _)| matches!(item, Item::Byte(b'.')))
    };
    if dots(1) || dots(2) {
        let name = if dots(1) { "." } else { ".." };
        let len = if text[part[0].1..].starts_with(name) {
            name.len()
        } else {
            1
        };
        return Err(PatternError::new(
            part[0].1,
            len,
            format!("a component `{name}` never occurs in a resolved path"),
            "write the path that is really opened; rules see what the kernel resolved",
        ));
    }
    if part.iter().all(|(item, _)| matches!(item, Item::Stars(1))) {
        // A component is never empty: `/*` does not match `/`.
        tokens.push(Token::Set(ByteSet::ALL.without(0).without(b'/')));
    }
    for (item, at) in part {
        match item {
            Item::Byte(byte) => tokens.push(Token::Byte(*byte)),
            Item::Set(set) => tokens.push(Token::Set(*set)),
            Item::Stars(1) => tokens.push(Token::Star),
            Item::Stars(run) => {
                return Err(PatternError::new(
                    *at,
                    *run,
                    "`**` stands alone between slashes",
                    "write `dir/**`, `**/name` or `a/**/b`; inside one component write `*`",
                ));
            }
        }
    }
    Ok(tokens)
}

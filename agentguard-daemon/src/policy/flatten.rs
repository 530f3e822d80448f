//! From parsed patterns to flat ones: braces written out, components checked.

use super::byteset::ByteSet;
use super::diagnostic::PatternError;
use super::glob::{Flat, Item, Node, Token};

/// Alternatives that the braces of one pattern may amount to.
const MAX_ALTERNATIVES: usize = 1024;

/// Writes the braces out.
pub fn expand(nodes: &[Node], pattern_len: usize) -> Result<Vec<Flat>, PatternError> {
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

/// The tokens of an argument pattern.
pub fn argument(flat: &Flat) -> Result<Vec<Token>, PatternError> {
    flat.iter()
        .map(|(item, at)| match item {
            Item::Byte(byte) => Ok(Token::Byte(*byte)),
            Item::Set(set) => Ok(Token::Set(Box::new(*set))),
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
pub fn path(flat: &Flat, text: &str, bare_names: bool) -> Result<Vec<Token>, PatternError> {
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
        tokens.push(Token::Set(Box::new(ByteSet::ALL.without(0).without(b'/'))));
    }
    for (item, at) in part {
        match item {
            Item::Byte(byte) => tokens.push(Token::Byte(*byte)),
            Item::Set(set) => tokens.push(Token::Set(Box::new(*set))),
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

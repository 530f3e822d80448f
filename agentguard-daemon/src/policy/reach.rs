//! Which folders a pattern can match something in, so that a search does not look everywhere.
//! It decides where to look and never what is denied: that is asked of the reference.

use super::glob::{Token, is_floating};

/// How far a path has come in a pattern: positions before a token, or inside of one that spans slashes.
pub type Progress = Vec<u32>;

/// One flat pattern.
#[derive(Debug)]
pub struct Pattern {
    tokens: Vec<Token>,
    /// Index of its rule in the policy.
    pub rule: usize,
}

impl Pattern {
    pub fn new(tokens: &[Token], rule: usize) -> Self {
        Self {
            tokens: tokens.to_vec(),
            rule,
        }
    }

    /// Whether it may match at any depth.
    pub fn is_floating(&self) -> bool {
        is_floating(&self.tokens)
    }

    /// The one object below which everything lies that it can match.
    pub fn root(&self) -> Vec<u8> {
        let byte = |token: &Token| match token {
            Token::Byte(byte) => Some(*byte),
            _ => None,
        };
        let mut root: Vec<u8> = self.tokens.iter().map_while(byte).collect();
        if !matches!(self.tokens.get(root.len()), None | Some(Token::Tail)) {
            let end = root.iter().rposition(|byte| *byte == b'/');
            root.truncate(end.unwrap_or(0));
        }
        if root.is_empty() {
            root.push(b'/');
        }
        root
    }

    /// Whether it matches everything below what it matches.
    pub fn is_all_below(&self) -> bool {
        self.tokens.last() == Some(&Token::Tail)
    }

    /// Nothing read yet.
    pub fn start(&self) -> Progress {
        let mut progress = Vec::new();
        self.reach(0, &mut progress);
        progress
    }

    /// More bytes of the path.
    pub fn read(&self, from: &[u32], bytes: &[u8]) -> Progress {
        let mut progress = from.to_vec();
        let mut next = Vec::with_capacity(progress.len() + 1);
        let mut rest = bytes;
        while let [byte, after @ ..] = rest {
            if let [position] = progress[..]
                && position & 1 == 1
            {
                // Inside of a token that spans slashes only a slash can be news: the usual case by far.
                match rest.iter().position(|byte| *byte == b'/') {
                    Some(0) => {}
                    Some(slash) => {
                        rest = &rest[slash..];
                        continue;
                    }
                    None => break,
                }
            }
            next.clear();
            for position in &progress {
                self.step(*position, *byte, &mut next);
            }
            std::mem::swap(&mut progress, &mut next);
            if progress.is_empty() {
                break;
            }
            rest = after;
        }
        progress
    }

    /// Whether it matches what was read.
    pub fn matches(&self, progress: &[u32]) -> bool {
        progress.iter().any(|position| {
            let token = (position >> 1) as usize;
            token == self.tokens.len() || self.tokens[token] == Token::Tail
        })
    }

    fn step(&self, position: u32, byte: u8, next: &mut Progress) {
        let (token, inside) = (position >> 1, position & 1 == 1);
        match self.tokens.get(token as usize) {
            Some(Token::Byte(expected)) if *expected == byte => self.reach(token + 1, next),
            Some(Token::Set(set)) if set.contains(byte) => self.reach(token + 1, next),
            Some(Token::Star) if byte != b'/' => self.reach(token, next),
            Some(Token::Deep) if byte == b'/' => self.reach(token, next),
            Some(Token::Tail) if byte != b'/' && !inside => {}
            Some(Token::Deep | Token::Tail) => add(token << 1 | 1, next),
            _ => {}
        }
    }

    /// The position before a token, and those that it leads to without a byte.
    fn reach(&self, mut token: u32, next: &mut Progress) {
        add(token << 1, next);
        while let Some(Token::Star | Token::Deep) = self.tokens.get(token as usize) {
            token += 1;
            add(token << 1, next);
        }
    }
}

fn add(position: u32, next: &mut Progress) {
    if !next.contains(&position) {
        next.push(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::glob::{Glob, Subject};
    use crate::policy::matcher::matches_path;
    use crate::policy::vars::Vars;

    fn patterns(text: &str) -> (Glob, Vec<Pattern>) {
        let glob = Glob::parse(text, Subject::Path, &Vars::default()).unwrap();
        let patterns = glob.alternatives().iter();
        let patterns = patterns.map(|tokens| Pattern::new(tokens, 0)).collect();
        (glob, patterns)
    }

    #[test]
    fn it_agrees_with_the_reference_and_never_gives_a_folder_up_too_early() {
        let texts = [
            "/a/**",
            "/a/*/c",
            "/a/**/c",
            "/a/b*/**/c?",
            "**/c",
            "**/b/**",
            "/a/[bc]/{c,cc}",
            "/a",
            "/**",
        ];
        let names = ["a", "b", "c", "bb", "cc"];
        let mut paths: Vec<String> = vec![String::new()];
        for depth in 0..4 {
            let longest: Vec<String> = paths
                .iter()
                .filter(|path| path.matches('/').count() == depth)
                .cloned()
                .collect();
            for path in longest {
                paths.extend(names.iter().map(|name| format!("{path}/{name}")));
            }
        }
        for text in texts {
            let (glob, patterns) = patterns(text);
            for path in &paths[1..] {
                let matched = matches_path(&glob, path.as_bytes());
                let ours = patterns.iter().any(|pattern| {
                    pattern.matches(&pattern.read(&pattern.start(), path.as_bytes()))
                });
                assert_eq!(ours, matched, "{text} {path}");
                if matched && path.matches('/').count() > 1 {
                    let folder = &path[..=path.rfind('/').unwrap()];
                    let alive = patterns.iter().any(|pattern| {
                        !pattern.read(&pattern.start(), folder.as_bytes()).is_empty()
                    });
                    assert!(alive, "{text} is given up at {folder}");
                }
            }
        }
    }

    #[test]
    fn roots_are_what_is_written_without_wildcards() {
        for (text, root) in [
            ("/etc/shadow", "/etc/shadow"),
            ("/etc/ssh/**", "/etc/ssh"),
            ("/etc/ssh*", "/etc"),
            ("/home/*/.ssh/**", "/home"),
            ("/*", "/"),
            ("/**", "/"),
            ("/srv/**/key", "/srv"),
        ] {
            let (_, patterns) = patterns(text);
            assert_eq!(patterns[0].root(), root.as_bytes(), "{text}");
            assert!(!patterns[0].is_floating());
        }
        assert!(patterns("**/.env").1[0].is_floating());
    }
}

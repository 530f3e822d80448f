//! The machine's own package sources, in both formats that apt reads. Only what is configured is
//! ever used: no mirror's name is written down in this project.

use std::fs;
use std::path::Path;

/// Repositories of Debian as this machine is configured.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// Debian itself.
    pub archive: Option<String>,
    /// Security updates, where they are a repository of their own.
    pub security: Option<String>,
}

/// Reads `/etc/apt`.
pub fn configured() -> Mirrors {
    let apt = Path::new("/etc/apt");
    let mut files = vec![apt.join("sources.list")];
    let parts = fs::read_dir(apt.join("sources.list.d"))
        .into_iter()
        .flatten();
    files.extend(parts.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    files.sort();
    let mut pairs = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => pairs.extend(one_line(&text)),
            Some("sources") => pairs.extend(deb822(&text)),
            _ => {}
        }
    }
    choose(&pairs)
}

/// Lines such as `deb [signed-by=…] URI SUITE COMPONENT…`, as pairs of URI and suite.
fn one_line(text: &str) -> Vec<(String, String)> {
    let parse = |line: &str| {
        let line = line
            .split('#')
            .next()?
            .trim()
            .strip_prefix("deb ")?
            .trim_start();
        let line = if line.starts_with('[') {
            line.split_once(']')?.1
        } else {
            line
        };
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

/// Paragraphs of `Key: value`, as pairs of URI and suite.
fn deb822(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for paragraph in lines.split(|line| line.trim().is_empty()) {
        let value = |wanted: &str| -> Vec<&str> {
            let mut inside = false;
            let mut words = Vec::new();
            for line in paragraph {
                let rest = if line.starts_with([' ', '\t']) {
                    inside.then_some(*line)
                } else {
                    let (key, rest) = line.split_once(':').unwrap_or((line, ""));
                    inside = key.eq_ignore_ascii_case(wanted);
                    inside.then_some(rest)
                };
                words.extend(rest.into_iter().flat_map(str::split_whitespace));
            }
            words
        };
        if value("Enabled")
            .first()
            .is_some_and(|word| word.eq_ignore_ascii_case("no"))
            || !value("Types").contains(&"deb")
        {
            continue;
        }
        for uri in value("URIs") {
            pairs.extend(
                value("Suites")
                    .into_iter()
                    .map(|suite| (uri.to_owned(), suite.to_owned())),
            );
        }
    }
    pairs
}

fn choose(pairs: &[(String, String)]) -> Mirrors {
    const NAMES: &[&str] = &[
        "bookworm",
        "trixie",
        "forky",
        "sid",
        "stable",
        "oldstable",
        "testing",
        "unstable",
    ];
    let pick = |security: bool| {
        let fits = |suite: &str| {
            let base = suite.split(['-', '/']).next().unwrap_or_default();
            NAMES.contains(&base) && suite.contains("security") == security
        };
        pairs
            .iter()
            .find(|(_, suite)| fits(suite))
            .map(|(uri, _)| uri.clone())
    };
    Mirrors {
        archive: pick(false),
        security: pick(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors() -> Mirrors {
        Mirrors {
            archive: Some("http://mirror.example/debian".into()),
            security: Some("http://mirror.example/debian-security".into()),
        }
    }

    #[test]
    fn one_line_sources_are_read() {
        let text = "# deb http://old.example/debian bookworm main\n\
                    deb https://other.example/apt nodistro main\n\
                    deb-src http://source.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/a.gpg] http://mirror.example/debian bookworm main contrib # comment\n\
                    deb http://mirror.example/debian-security bookworm-security main\n";
        assert_eq!(choose(&one_line(text)), mirrors());
    }

    #[test]
    fn deb822_sources_are_read() {
        let text = "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: trixie\n trixie-updates\nComponents: main\n\n\
                    # A comment\nTypes: deb\nURIs: http://mirror.example/debian-security\nSuites: trixie-security\nComponents: main\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: trixie\n";
        assert_eq!(choose(&deb822(text)), mirrors());
    }

    #[test]
    fn a_machine_without_debian_has_no_mirrors() {
        assert_eq!(
            choose(&one_line("deb https://other.example/apt nodistro main\n")),
            Mirrors::default()
        );
    }
}

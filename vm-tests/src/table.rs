//! The table of techniques in `docs/evasion.md`, written from the rows so that it cannot say more than
//! is tested.

use std::fmt::Write as _;

use crate::row::{Actor, Expect, Family, Row};

const HEAD: &str = "\
# Ways round, and what stops them

Written from `vm-tests/rows` by `vm-tests table`; a test compares the two. Each line is one technique that is tried on every kernel of
the matrix, by each user named. Four things are checked: without a guard the act succeeds and has an effect
that shows; governed it has none; it fails with `EPERM` or `EACCES`, or the process is killed; and the audit
log holds a record that names the true object. Where a kernel or machine cannot do the thing at all, the row
is skipped and counted, after the error that says so was seen.

";

/// The whole document.
pub fn write(families: &[(String, Family)]) -> String {
    let mut text = HEAD.to_owned();
    let total: usize = families
        .iter()
        .map(|(_, family)| techniques(family).count())
        .sum();
    let _ = writeln!(text, "{total} techniques.");
    for (file, family) in families {
        if techniques(family).next().is_none() {
            continue;
        }
        let title = if family.title.is_empty() {
            file.as_str()
        } else {
            family.title.as_str()
        };
        let _ = writeln!(
            text,
            "\n## {title}\n\n`vm-tests/rows/{file}.yaml`\n\n| technique | by | verdict | stopped by | kernels |\n| --- | --- | --- | --- | --- |"
        );
        for row in techniques(family) {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                cell(&row.name),
                actors(row),
                verdict(row),
                stopper(row),
                row.needs.as_ref().map_or_else(
                    || "all".to_owned(),
                    |needs| format!("with {}", cell(&needs.what))
                ),
            );
        }
    }
    text
}

/// Rows that show that something is stopped.
fn techniques(family: &Family) -> impl Iterator<Item = &Row> {
    family
        .rows
        .iter()
        .filter(|row| matches!(row.expect, Expect::Denied | Expect::Killed))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn actors(row: &Row) -> &'static str {
    match row.actors.as_slice() {
        [Actor::User] => "user",
        [Actor::Root] => "root",
        _ => "user, root",
    }
}

fn verdict(row: &Row) -> &'static str {
    match (row.expect, &row.silent) {
        (Expect::Killed, _) => "killed",
        (_, Some(_)) => "without effect",
        _ => "denied",
    }
}

/// The hook, or what the record's operation says about it.
fn stopper(row: &Row) -> String {
    if let Some(hook) = &row.hook {
        return format!("`{hook}`");
    }
    let unix = row
        .target
        .as_deref()
        .is_some_and(|target| target.starts_with("unix:"));
    let hook = match row.operation() {
        "connect" if unix => "unix_stream_connect",
        "send" if unix => "unix_may_send",
        "listen" if unix => "socket_bind",
        "listen" => "socket_listen, socket_bind",
        "exec" => "file_open, bprm_check_security",
        "open" => "file_open",
        "connect" => "socket_connect",
        "send" => "socket_sendmsg",
        "rename" => "path_rename",
        "link" => "path_link",
        "unlink" => "path_unlink",
        "rmdir" => "path_rmdir",
        "mkdir" => "path_mkdir",
        "create" | "mknod" => "path_mknod",
        "symlink" => "path_symlink",
        "truncate" => "path_truncate",
        "chmod" => "path_chmod",
        "chown" => "path_chown",
        "attribute" => "file_ioctl",
        "map" => "mmap_file",
        "receive" => "file_receive",
        "socket" => "socket_create",
        _ => return "several".to_owned(),
    };
    hook.split(", ")
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_document_is_what_the_rows_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let families = crate::row::load(&folder.join("rows")).expect("the rows parse");
        let written =
            std::fs::read_to_string(folder.join("../docs/evasion.md")).unwrap_or_default();
        assert!(
            super::write(&families) == written,
            "docs/evasion.md is out of date: cargo run -p vm-tests -- table vm-tests/rows > docs/evasion.md"
        );
    }
}

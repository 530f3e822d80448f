//! Signatures and answers, each that counts with those that do not.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::approval::{Scope, Waiting};
use crate::outbound::Span;

fn secret(text: &str) -> (tempfile::TempDir, Result<Secret, String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let secret = Secret::read(&path);
    (folder, secret)
}

#[test]
fn a_secret_is_long_and_for_root_only() {
    for (text, good) in [
        ("0123456789abcdef0123456789abcdef", true),
        ("0123456789abcdef0123456789abcdef\n", true),
        ("0123456789abcdef0123456789abcde\n", false),
        ("", false),
        (&"x".repeat(4096), true),
        (&"x".repeat(5000), false),
    ] {
        assert_eq!(secret(text).1.is_ok(), good, "{}", text.len());
    }
    let (folder, _) = secret(&"x".repeat(40));
    let path = folder.path().join("secret");
    std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let error = Secret::read(&path).unwrap_err();
    assert!(
        error.contains("may be read by others") && !error.contains("xxx"),
        "{error}"
    );
    assert!(Secret::read(&folder.path().join("nothing")).is_err());
}

#[test]
fn a_signature_is_for_one_direction_time_nonce_and_body() {
    let (_folder, ours) = secret("0123456789abcdef0123456789abcdef\n");
    let ours = ours.unwrap();
    let (_folder, other) = secret(&"y".repeat(32));
    let signature = ours.sign(Direction::Answer, "1767225600", "00ff", b"{}");
    // printf 'answer.1767225600.00ff.{}' | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
    assert_eq!(
        signature,
        "v1=3459817af07762432695b94b8946eda1678dcbd3ec837905d549b29c28a4a8f8"
    );
    let verify = |way, time, nonce, body: &[u8], signature: &str| {
        ours.verify(way, (time, nonce), body, signature)
    };
    let answer = Direction::Answer;
    assert!(verify(answer, "1767225600", "00ff", b"{}", &signature));
    assert!(!verify(
        Direction::Question,
        "1767225600",
        "00ff",
        b"{}",
        &signature
    ));
    assert!(!verify(answer, "1767225601", "00ff", b"{}", &signature));
    assert!(!verify(answer, "1767225600", "00fe", b"{}", &signature));
    assert!(!verify(answer, "1767225600", "00ff", b"{} ", &signature));
    let given = (("1767225600", "00ff"), b"{}");
    assert!(!other.unwrap().verify(answer, given.0, given.1, &signature));
    for bad in [
        "",
        "v1=",
        &signature[3..],
        &signature.to_uppercase(),
        &signature[..66],
    ] {
        assert!(!verify(answer, "1767225600", "00ff", b"{}", bad), "{bad}");
    }
}

#[test]
fn only_an_answer_to_this_question_that_is_understood_counts() {
    let read = |text: &str| Answer::read(text.as_bytes(), "7-ab", "n1");
    let by = |name: &str| Some(name.to_owned());
    let grant = |scope, by| Ok(Answer::Grant { scope, by });
    for (text, answer) in [
        (
            r#"{"answer":"grant","for":"once","nonce":"n1"}"#,
            grant(Scope::Once, None),
        ),
        (
            r#"{"answer":"grant","for":"1h30m","by":"alice","nonce":"n1","id":"7-ab"}"#,
            grant(Scope::Seconds(5400), by("alice")),
        ),
        (
            r#"{"answer":"grant","for":"session","by":"a\n\u001b[2J\u202e","nonce":"n1"}"#,
            grant(Scope::Session, by(r"a\x0a\x1b[2J\xe2\x80\xae")),
        ),
        (
            r#"{"answer":"deny","by":"bob","nonce":"n1"}"#,
            Ok(Answer::Deny { by: by("bob") }),
        ),
        (r#"{"answer":"pending","nonce":"n1"}"#, Ok(Answer::Pending)),
    ] {
        assert_eq!(read(text), answer, "{text}");
    }
    for bad in [
        r#"{"answer":"grant","for":"once","nonce":"n2"}"#,
        r#"{"answer":"grant","for":"once"}"#,
        r#"{"answer":"grant","for":"once","nonce":"n1","id":"8-ab"}"#,
        r#"{"answer":"grant","nonce":"n1"}"#,
        r#"{"answer":"grant","for":"0s","nonce":"n1"}"#,
        r#"{"answer":"grant","for":"ever","nonce":"n1"}"#,
        r#"{"answer":"grant","for":900,"nonce":"n1"}"#,
        r#"{"answer":"grant","for":"once","for":"session","nonce":"n1"}"#,
        r#"{"answer":"grant","fro":"once","nonce":"n1"}"#,
        r#"{"answer":"GRANT","for":"once","nonce":"n1"}"#,
        r#"{"answer":"deny","for":"once","nonce":"n1"}"#,
        r#"{"answer":true,"for":"once","nonce":"n1"}"#,
        r#"{"answer":"grant","for":"once","nonce":"n1"} {}"#,
        "",
        "[]",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    let long = format!(
        r#"{{"answer":"deny","by":"{}","nonce":"n1"}}"#,
        "é".repeat(5000)
    );
    let Ok(Answer::Deny { by: Some(by) }) = read(&long) else {
        panic!("it is an answer");
    };
    assert_eq!(by, "é".repeat(64));
    let evil = read("{\"\u{1b}[2J\":1}").unwrap_err();
    assert!(!evil.contains('\u{1b}'), "{evil:?}");
}

#[test]
fn a_question_says_what_is_asked_and_forges_nothing() {
    let asked = Asked {
        waiting: Waiting {
            id: 7,
            agent: "claude".to_owned(),
            session: 3,
            op: "exec".to_owned(),
            target: "/usr/bin/cargo".to_owned(),
            to: None,
            access: Some("exec".to_owned()),
            argv: Some(
                ["cargo", "publish", r#"--x="\x0a"#]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            exe: None,
            pid: 1,
            uid: 0,
            rule: Some("publish".to_owned()),
            reason: None,
            first: "2026-01-01T00:00:00.000000001Z".to_owned(),
            last: "2026-01-01T00:00:05.000000001Z".to_owned(),
            tries: 2,
            denied_by: None,
        },
        policy: "careful\u{7}".to_owned(),
    };
    let text = asked.question("host", "n1", ["now", "then"]).unwrap();
    let it: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(it["id"], asked.id());
    assert!(asked.id().starts_with("7-"));
    assert_eq!(
        (&it["number"], &it["tries"], &it["session"]),
        (&7.into(), &2.into(), &3.into())
    );
    assert_eq!(
        (&it["time"], &it["expires"], &it["nonce"]),
        (&"now".into(), &"then".into(), &"n1".into())
    );
    assert_eq!(it["asks_to"], r#"run /usr/bin/cargo publish --x="\x0a"#);
    assert_eq!(it["act"]["argv"][1], "publish");
    assert_eq!(it["policy"], r"careful\x07");
    assert!(it["reason"].is_null());
}

#[test]
fn times_of_the_configuration_have_bounds() {
    for (text, good) in [
        ("1s", true),
        ("1h", true),
        ("0s", false),
        ("61m", false),
        ("x", false),
    ] {
        assert_eq!(
            Span::<3600>::try_from(text.to_owned()).is_ok(),
            good,
            "{text}"
        );
    }
}

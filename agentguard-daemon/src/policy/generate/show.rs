//! Random patterns as the text of a policy.

use std::fmt::Write as _;

use super::{Command, Component, Piece, Target};

pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

pub(super) fn show_path(components: &[Component], bare: bool) -> String {
    let mut text = String::new();
    for (index, component) in components.iter().enumerate() {
        let floats = index == 0 && components.len() > 1 && matches!(component, Component::Deep);
        if bare && index == 0 {
            continue;
        }
        if !floats && !bare {
            text.push('/');
        }
        match component {
            Component::Deep => text.push_str("**"),
            Component::Name(pieces) => show_pieces(pieces, &mut text),
        }
    }
    text
}

pub(super) fn show_command(command: &Command) -> String {
    let mut text = show_path(&command.program, command.bare);
    for argument in &command.arguments {
        text.push(' ');
        match argument {
            Some(pieces) => show_pieces(pieces, &mut text),
            None => text.push_str("**"),
        }
    }
    text
}

pub(super) fn show_pieces(pieces: &[Piece], text: &mut String) {
    for piece in pieces {
        match piece {
            Piece::Literal(byte) => show_byte(*byte, text),
            Piece::AnyByte => text.push('?'),
            Piece::Star => text.push('*'),
            Piece::Class { negated, members } => {
                text.push_str(if *negated { "[!" } else { "[" });
                for byte in members {
                    show_byte(*byte, text);
                }
                text.push(']');
            }
            Piece::Either(alternatives) => {
                text.push('{');
                for (index, alternative) in alternatives.iter().enumerate() {
                    if index > 0 {
                        text.push(',');
                    }
                    show_pieces(alternative, text);
                }
                text.push('}');
            }
        }
    }
}

pub(super) fn show_byte(byte: u8, text: &mut String) {
    match byte {
        b'/' => text.push('/'),
        b'a'..=b'z' | b'.' | b'_' => text.push(char::from(byte)),
        b'-' | b' ' | b'*' | b'[' | b'{' | b'$' | b'~' | b'?' => {
            text.extend(['\\', char::from(byte)]);
        }
        _ => {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

pub(super) fn show_range(target: &Target) -> String {
    if target.any {
        return "any".into();
    }
    if target.v4 {
        let [.., a, b, c, d] = target.base;
        format!("{a}.{b}.{c}.{d}/{}", target.bits - 96)
    } else {
        format!("{}/{}", std::net::Ipv6Addr::from(target.base), target.bits)
    }
}

pub(super) fn show_target(target: &Target) -> String {
    let range = show_range(target);
    let ports = target
        .ports
        .map_or(String::new(), |(low, high)| format!(":{low}-{high}"));
    if target.v4 || target.any {
        format!("{range}{ports}/{}", target.protocol)
    } else {
        format!("[{range}]{ports}/{}", target.protocol)
    }
}

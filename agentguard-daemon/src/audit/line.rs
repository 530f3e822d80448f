//! A record as a line of JSON, byte for byte as `serde_json` writes it, in a third of the time.
//!
//! It must never leave a field out: all of them are named here, or this does not compile.

use std::borrow::Cow;

use super::record::Record;
use crate::event::bytes::are_plain_in_json;

/// Writes each field of a record in its order, by its kind.
macro_rules! fields {
    ($record:ident, $line:ident, $($kind:ident $name:ident),* $(,)?) => {
        let Record { $($name),* } = $record;
        $($line.$kind(concat!(",\"", stringify!($name), "\":"), $name)?;)*
    };
}

type Outcome = Result<(), serde_json::Error>;

/// Adds the line of a record that follows the one with the hash `prev`, whatever itself has for that, without newline.
/// After an error a part of it may be there.
pub fn write(record: &Record<'_>, prev: &str, to: &mut Vec<u8>) -> Outcome {
    let mut line = Line { to, prev };
    fields!(
        record, line, first seq, always time, text agent, number session, number pid, number ppid, number uid,
        text exe, always op, text target, text to, text access, text verdict, text rule, text reason, text policy,
        text cause, number approval, text rule_at, list argv, number argc, number port, text name, text protocol,
        text family, text question, list answers, text reply, number inode, text device, number generation,
        number exec_id, number new_exec_id, number tid, number euid, number open_flags, text mode, number child,
        number status, number errno, list flags, number repeats, text since, text class, number lost, any usage, number bytes_in,
        number bytes_out, number packets_in, number packets_out, text detail, text log, text key, text signature,
        text digest, before prev, unless_empty hash,
    );
    line.to.push(b'}');
    Ok(())
}

struct Line<'a> {
    to: &'a mut Vec<u8>,
    prev: &'a str,
}

#[expect(
    clippy::ref_option,
    clippy::trivially_copy_pass_by_ref,
    reason = "each field is handed over by reference"
)]
impl Line<'_> {
    #[inline]
    fn put(&mut self, text: &str) {
        self.to.extend_from_slice(text.as_bytes());
    }

    fn first(&mut self, _name: &str, number: &u64) -> Outcome {
        self.put("{\"seq\":");
        serde_json::to_writer(&mut *self.to, number)
    }

    #[inline]
    fn always(&mut self, name: &str, text: &str) -> Outcome {
        self.put(name);
        self.quoted(text)
    }

    fn before(&mut self, name: &str, _own: &str) -> Outcome {
        self.always(name, self.prev)
    }

    fn unless_empty(&mut self, name: &str, text: &str) -> Outcome {
        if text.is_empty() {
            return Ok(());
        }
        self.always(name, text)
    }

    #[inline]
    fn text(&mut self, name: &str, text: &Option<Cow<'_, str>>) -> Outcome {
        let Some(text) = text else { return Ok(()) };
        self.always(name, text)
    }

    #[inline]
    fn number<T: Copy + Into<u64>>(&mut self, name: &str, number: &Option<T>) -> Outcome {
        let Some(number) = *number else { return Ok(()) };
        self.put(name);
        serde_json::to_writer(&mut *self.to, &number.into())
    }

    fn list(&mut self, name: &str, list: &Option<Vec<Cow<'_, str>>>) -> Outcome {
        let Some(list) = list else { return Ok(()) };
        self.put(name);
        self.put("[");
        for (number, text) in list.iter().enumerate() {
            if number > 0 {
                self.put(",");
            }
            self.quoted(text)?;
        }
        self.put("]");
        Ok(())
    }

    fn any<T: serde::Serialize>(&mut self, name: &str, value: &Option<T>) -> Outcome {
        let Some(value) = value else { return Ok(()) };
        self.put(name);
        serde_json::to_writer(&mut *self.to, value)
    }

    fn quoted(&mut self, text: &str) -> Outcome {
        if !are_plain_in_json(text.as_bytes()) {
            return serde_json::to_writer(&mut *self.to, text);
        }
        self.to.reserve(text.len() + 2);
        self.to.push(b'"');
        self.put(text);
        self.to.push(b'"');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::Used;

    /// A record in which each field has a value, made of one text and one number.
    fn full(text: &str, number: u64) -> Record<'_> {
        let own = || Some(Cow::Borrowed(text));
        let list = || Some(vec![Cow::Borrowed(text), Cow::Borrowed("")]);
        let small = Some(number as u32);
        let large = Some(number);
        let usage: Used = serde_json::from_str(
            r#"{"input_tokens":7,"cached_tokens":0,"output_tokens":3,"usd":"0.01","estimated":true}"#,
        )
        .unwrap();
        Record {
            seq: number,
            time: text.into(),
            agent: own(),
            session: small,
            pid: small,
            ppid: small,
            uid: small,
            exe: own(),
            op: text.into(),
            target: own(),
            to: own(),
            access: own(),
            verdict: own(),
            rule: own(),
            reason: own(),
            policy: own(),
            cause: own(),
            approval: large,
            rule_at: own(),
            argv: list(),
            argc: small,
            port: Some(number as u16),
            name: own(),
            protocol: own(),
            family: own(),
            question: own(),
            answers: list(),
            reply: own(),
            inode: large,
            device: own(),
            generation: small,
            exec_id: large,
            new_exec_id: large,
            tid: small,
            euid: small,
            open_flags: small,
            mode: own(),
            child: small,
            status: small,
            errno: Some(number as u16),
            flags: list(),
            repeats: large,
            since: own(),
            class: own(),
            lost: large,
            usage: Some(usage),
            bytes_in: large,
            bytes_out: large,
            packets_in: large,
            packets_out: large,
            detail: own(),
            log: own(),
            key: own(),
            signature: own(),
            digest: own(),
            prev: text.into(),
            hash: text.into(),
        }
    }

    fn same(record: &Record<'_>) -> bool {
        let mut line = Vec::new();
        write(record, &record.prev, &mut line).unwrap();
        line == serde_json::to_vec(record).unwrap()
    }

    #[test]
    fn an_empty_record_is_the_same() {
        assert!(same(&Record::new("open")));
    }

    proptest! {
        #[test]
        fn every_record_is_what_serde_makes_of_it(text: String, number: u64) {
            prop_assert!(same(&full(&text, number)));
            let other = Record { argv: Some(vec![]), target: Some(text.into()), ..Record::new("exec") };
            prop_assert!(same(&other));
        }
    }
}

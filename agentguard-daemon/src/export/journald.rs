//! The journal's own protocol: a record is one datagram of fields, or, where that is too long, a sealed file that is
//! handed over.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::fd::AsFd as _;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Map, Value};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::config::JournaldConfig;
use super::{Form, Item, Trouble, syslog};

/// What all records of ours have in common in a journal. `journalctl MESSAGE_ID=…` finds them.
pub const MESSAGE_ID: &str = "5f1a0c2e7d3b4c6a9e8f7b6a5d4c3b2a";
/// Fields of a record that get one of their own.
const FIELDS: &[&str] = &[
    "seq", "agent", "session", "op", "target", "to", "access", "verdict", "rule", "reason",
    "policy", "cause", "pid", "ppid", "uid", "exe", "name", "port", "hash",
];

/// Sends to the journal.
#[derive(Debug)]
pub struct Journal {
    config: JournaldConfig,
    form: Form,
    socket: Option<UnixDatagram>,
    settled: u64,
}

impl Journal {
    /// Does nothing yet.
    pub fn new(config: &JournaldConfig) -> Self {
        Self {
            form: config.format.form(),
            config: config.clone(),
            socket: None,
            settled: 0,
        }
    }

    /// The last record that the kernel took.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Sends records.
    pub async fn send(&mut self, items: &[Item]) -> Result<(), Trouble> {
        for item in items {
            if let Err(error) = self.one(item).await {
                self.socket = None;
                return Err(Trouble::passing(error.to_string()));
            }
            self.settled = item.seq;
        }
        Ok(())
    }

    async fn one(&mut self, item: &Item) -> io::Result<()> {
        let socket = if let Some(socket) = self.socket.take() {
            socket
        } else {
            let socket = UnixDatagram::unbound()?;
            socket.connect(&self.config.socket)?;
            socket
        };
        let entry = entry(&item.line, &self.form);
        match socket.send(&entry).await {
            Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                hand_over(&socket, &entry).await?;
            }
            sent => {
                sent?;
            }
        }
        self.socket = Some(socket);
        Ok(())
    }
}

/// The fields of a record, as the journal reads them.
fn entry(line: &[u8], form: &Form) -> Vec<u8> {
    let fields: Map<String, Value> = serde_json::from_slice(line).unwrap_or_default();
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let op = text("op").unwrap_or("unreadable");
    let verdict = text("verdict");
    let mut entry = Vec::with_capacity(2 * line.len());
    let mut message = String::new();
    let parts = [
        text("agent"),
        verdict,
        Some(op),
        text("target"),
        text("rule"),
        text("reason"),
    ];
    for part in parts.into_iter().flatten() {
        if !message.is_empty() {
            message.push(' ');
        }
        message.push_str(part);
    }
    put(&mut entry, "MESSAGE", message.as_bytes());
    put(&mut entry, "MESSAGE_ID", MESSAGE_ID.as_bytes());
    let priority = syslog::severity(op, verdict).to_string();
    put(&mut entry, "PRIORITY", priority.as_bytes());
    put(&mut entry, "SYSLOG_IDENTIFIER", b"agentguard");
    for name in FIELDS {
        let value = match fields.get(*name) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => continue,
        };
        let name = format!("AGENTGUARD_{}", name.to_uppercase());
        put(&mut entry, &name, value.as_bytes());
    }
    put(&mut entry, "AGENTGUARD_RECORD", &form.text(line));
    entry
}

/// A field with the length of its value, which can hold anything.
fn put(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// Hands an entry over as a file in memory that nobody can change any more.
async fn hand_over(socket: &UnixDatagram, entry: &[u8]) -> io::Result<()> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file: File = rustix::fs::memfd_create("agentguard-record", flags)?.into();
    file.write_all(entry)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    socket
        .async_io(Interest::WRITABLE, || {
            let descriptors = [file.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            let nothing = [IoSlice::new(&[])];
            rustix::net::sendmsg(socket, &nothing, &mut control, SendFlags::empty())?;
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn item(seq: u64, target: &str) -> Item {
        let line = format!(
            r#"{{"seq":{seq},"agent":"a","op":"open","target":"{target}","verdict":"deny","hash":"ff"}}"#
        );
        Item {
            seq,
            hash: "ff".to_owned(),
            line: line.into_bytes(),
        }
    }

    /// The fields of an entry.
    fn fields(mut entry: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let name = String::from_utf8(entry[..end].to_vec()).unwrap();
            let (length, rest) = entry[end + 1..].split_first_chunk::<8>().unwrap();
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
            fields.push((name, rest[..length].to_vec()));
            assert_eq!(rest[length], b'\n');
            entry = &rest[length + 1..];
        }
        fields
    }

    #[tokio::test]
    async fn records_arrive_as_fields_also_those_that_no_datagram_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let receiver = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::new(&JournaldConfig {
            socket: path.clone(),
            format: crate::export::config::Format::Record,
            begin: crate::export::config::Begin::Oldest,
        });
        let long = "x".repeat(2 << 20);
        let sent = [item(1, "/short"), item(2, &long)];
        journal.send(&sent).await.unwrap();
        assert_eq!(journal.settled(), 2);
        let mut buffer = vec![0; 1 << 16];
        let size = receiver.recv(&mut buffer).unwrap();
        let first = fields(&buffer[..size]);
        let of = |fields: &[(String, Vec<u8>)], name: &str| {
            let found = fields.iter().find(|(field, _)| field == name);
            found.map(|(_, value)| value.clone()).unwrap()
        };
        assert_eq!(of(&first, "MESSAGE"), b"a deny open /short");
        assert_eq!(of(&first, "PRIORITY"), b"4");
        assert_eq!(of(&first, "AGENTGUARD_SEQ"), b"1");
        assert_eq!(of(&first, "AGENTGUARD_RECORD"), sent[0].line);
        // The second one is a file.
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut into = [0; 8];
        rustix::net::recvmsg(
            &receiver,
            &mut [io::IoSliceMut::new(&mut into)],
            &mut control,
            rustix::net::RecvFlags::empty(),
        )
        .unwrap();
        let descriptor = control.drain().find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut all) => all.next(),
            _ => None,
        });
        let mut file = File::from(descriptor.unwrap());
        let mut entry = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut entry).unwrap();
        assert_eq!(of(&fields(&entry), "AGENTGUARD_RECORD"), sent[1].line);
        // Nobody there: it is said, and comes again.
        drop(receiver);
        std::fs::remove_file(&path).unwrap();
        assert!(journal.send(&[item(3, "/")]).await.is_err());
        assert_eq!(journal.settled(), 2);
    }
}

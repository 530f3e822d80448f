//! Records as the kernel would send them, for tests.

use agentguard_common::record::{HEADER_LEN, RecordHeader};
use agentguard_common::verdict::{Operation, Reason, Verdict};
use zerocopy::IntoBytes;

/// A record whose lengths fit its tail.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The header; lengths are set by [`Sample::bytes`].
    pub header: RecordHeader,
    /// Target.
    pub target: Vec<u8>,
    /// Arguments.
    pub arguments: Vec<u8>,
}

impl Sample {
    /// A record of session 7 of agent 1, pid 5,000,001 (which never exists).
    pub fn new(operation: Operation, verdict: Verdict, reason: Reason, target: &[u8]) -> Self {
        Self {
            header: RecordHeader {
                operation: operation as u8,
                verdict: verdict as u8,
                reason: reason as u16,
                agent: 1,
                session: 7,
                generation: 3,
                pid: 5_000_001,
                tid: 5_000_001,
                ppid: 5_000_000,
                uid: 1000,
                euid: 1000,
                ..RecordHeader::default()
            },
            target: target.to_vec(),
            arguments: Vec::new(),
        }
    }

    /// With a changed header.
    pub fn with(mut self, change: impl FnOnce(&mut RecordHeader)) -> Self {
        change(&mut self.header);
        self
    }

    /// With arguments.
    pub fn argv(mut self, argv: &[&str]) -> Self {
        self.header.aux = argv.len() as u32;
        for argument in argv {
            self.arguments.extend_from_slice(argument.as_bytes());
            self.arguments.push(0);
        }
        self
    }

    /// As the ring gives it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut header = self.header;
        header.target_len = self.target.len() as u32;
        header.args_len = self.arguments.len() as u32;
        header.len = HEADER_LEN as u32 + header.target_len + header.args_len;
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&self.target);
        bytes.extend_from_slice(&self.arguments);
        bytes
    }
}

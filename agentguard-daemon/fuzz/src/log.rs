//! Reading a log that may hold anything: each whole line is given, none is skipped, and a changed one is noticed.

use agentguard::audit::chain::{self, GENESIS};
use agentguard::audit::read::Reader;

/// The bytes as a log.
pub fn run(data: &[u8]) {
    let mut reader = Reader::over(data);
    let mut whole = Vec::new();
    let mut before = GENESIS;
    while let Some(line) = reader.next_line().expect("memory can be read") {
        assert!(!line.text.contains(&b'\n'));
        if let Ok(record) = &line.record {
            let text = serde_json::to_string(record).expect("JSON");
            assert!(!text.contains('\n'));
            let _ = record.is_denied();
        }
        if let Ok(hash) = chain::verify(&line.text, &before) {
            // One bit makes it another line.
            let mut changed = line.text.clone();
            if let Some(byte) = changed.first_mut() {
                *byte ^= 1;
            }
            assert!(chain::verify(&changed, &before).is_err());
            before = hash;
        }
        whole.extend_from_slice(&line.text);
        whole.push(b'\n');
    }
    let end = data
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    assert_eq!(whole, data[..end]);
}

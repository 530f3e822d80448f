//! What comes over the control socket behind HTTP (bodies, names in paths), and the kernel's text about the
//! peer's cgroup, which an agent may have named.

use agentguard::agent::Name;
use agentguard::agent::cgroup::path_in;
use agentguard::api::wire::AttachRequest;
use agentguard::session::PolicyRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes as each of them.
pub fn run(data: &[u8]) {
    body::<AttachRequest>(data);
    body::<PolicyRequest>(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let nearest = Name::nearest(text);
    assert_eq!(nearest.as_str().parse::<Name>().as_ref(), Ok(&nearest));
    match text.parse::<Name>() {
        // It becomes the name of a folder, a key of the log and a word on terminals.
        Ok(name) => {
            assert_eq!(name, nearest);
            assert!(!name.as_str().contains(['/', '\0']) && !name.as_str().starts_with('.'));
        }
        Err(error) => super::escape::printable(&error.to_string()),
    }
    if let Some(path) = path_in(text) {
        assert!(text.contains(path));
    }
}

/// What is understood says the same when it is written again.
fn body<T: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(request) = serde_json::from_slice::<T>(data) else {
        return;
    };
    let text = serde_json::to_vec(&request).expect("JSON");
    let again: T = serde_json::from_slice(&text).expect("the same");
    assert_eq!(serde_json::to_vec(&again).expect("JSON"), text);
}

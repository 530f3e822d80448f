//! What is open for an agent because names were resolved, as far as we know: for reverse questions, and for opening
//! it again under another policy. The kernel decides by its own map and not by this.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses remembered for an agent.
const MOST: usize = 8_192;

/// One name that opened an address, and until when.
pub(super) type Opened = (Arc<str>, Instant);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OpenNames {
    by_address: Mutex<HashMap<IpAddr, Opened>>,
}

impl OpenNames {
    pub(super) fn add(&self, address: IpAddr, name: &str, now: Instant, lifetime: Duration) {
        let mut opened = self.lock();
        if let Some((known, until)) = opened.get_mut(&address)
            && &**known == name
        {
            *until = (*until).max(now + lifetime);
            return;
        }
        if opened.len() >= MOST {
            opened.retain(|_, (_, until)| *until > now);
        }
        if opened.len() < MOST {
            opened.insert(address, (name.into(), now + lifetime));
        }
    }

    /// The name that opened an address last, while it is open.
    pub(super) fn name(&self, address: IpAddr, now: Instant) -> Option<Opened> {
        let opened = self.lock();
        let found = opened.get(&address)?;
        (found.1 > now).then(|| found.clone())
    }

    /// Everything, for judging it again: what is closed is forgotten.
    pub(super) fn take(&self, now: Instant) -> Vec<(IpAddr, Opened)> {
        let mut opened = self.lock();
        let live = opened.drain().filter(|(_, (_, until))| *until > now);
        live.collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Opened>> {
        self.by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

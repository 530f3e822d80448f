//! Looking once a second for what wakes nobody: tasks that could not be labelled, or were moved with their label, are
//! counted; threads that repeat an act have it told; and a record whose wake-up was lost would wait for the next.
//!
//! A thread of its own, which sleeps and asks the kernel for four numbers: the pump and its timers sleep on while
//! nothing has changed. It must never hold the enforcer while it waits.

use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use agentguard_common::record::class;
use tokio::sync::Notify;

use super::Enforcer;
use crate::kernel::Glimpse;

/// How often.
const LOOK: Duration = Duration::from_secs(1);

/// See the module.
pub struct Look {
    enforcer: Weak<Mutex<Box<dyn Enforcer>>>,
    rings: Vec<Glimpse>,
    found: Arc<Notify>,
    /// What was lost when it looked last.
    losses: Option<[u64; class::COUNT as usize]>,
}

impl Look {
    /// Tells `found` when there is something for the pump.
    pub fn new(
        enforcer: &Arc<Mutex<Box<dyn Enforcer>>>,
        rings: impl IntoIterator<Item = Glimpse>,
        found: Arc<Notify>,
    ) -> Self {
        Self {
            enforcer: Arc::downgrade(enforcer),
            rings: rings.into_iter().collect(),
            found,
            losses: None,
        }
    }

    /// Looks for as long as there is an enforcer.
    pub fn start(mut self) -> io::Result<()> {
        let begun = std::thread::Builder::new().name("look".to_owned());
        begun.spawn(move || {
            loop {
                std::thread::sleep(LOOK);
                match self.once() {
                    Some(true) => self.found.notify_one(),
                    Some(false) => {}
                    None => return,
                }
            }
        })?;
        Ok(())
    }

    /// Whether there is something for the pump; `None` where there is no enforcer any more.
    pub(super) fn once(&mut self) -> Option<bool> {
        let enforcer = self.enforcer.upgrade()?;
        let mut found = self.rings.iter().any(Glimpse::is_used);
        // Whoever holds it may hold it for long, and what is counted stays counted: the next look will do.
        if let Ok(mut enforcer) = enforcer.try_lock() {
            found |= !matches!(enforcer.unsettled(), Ok(0));
            if let Err(error) = enforcer.tell_repeats(false) {
                tracing::error!("what threads repeat could not be read: {error}");
            }
            let losses = enforcer.losses().ok();
            found |= losses != self.losses;
            self.losses = losses;
        }
        Some(found)
    }
}

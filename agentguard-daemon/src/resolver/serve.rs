//! Agents and their listeners.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::core::{Client, Core};
use super::gate::{AddressVerdict, Asker, Gate, Opening};
use super::sockets::{NetPlace, Sockets, make};
use super::upstream::Servers;
use super::{Limits, listen};

/// Networks in which one agent is served at most.
const PLACES: usize = 16;

/// An agent that is served.
struct Served {
    client: Arc<Client>,
    port: u16,
    /// By the network that they are in.
    listeners: BTreeMap<(u64, u64), Vec<JoinHandle<()>>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.client.ended.store(true, Ordering::Release);
        for listener in self.listeners.values().flatten() {
            listener.abort();
        }
    }
}

/// The resolver. Needs a tokio runtime, and works for as long as it is held.
pub struct Resolver {
    core: Arc<Core>,
    served: Mutex<BTreeMap<Asker, Served>>,
}

impl Resolver {
    /// Nobody is served yet.
    pub fn new(gate: Arc<dyn Gate>, servers: Servers, limits: Limits) -> Self {
        Self {
            core: Arc::new(Core::new(gate, servers, limits)),
            served: Mutex::default(),
        }
    }

    /// Listens for an agent in a network, and gives the port. An agent has the same port in all its networks;
    /// `port` is tried first for one that is not served yet. Where it is served already, nothing happens.
    ///
    /// # Errors
    /// Where the sockets cannot be made. The agent's names are then not resolved in that network.
    pub fn serve(&self, asker: Asker, place: &NetPlace, port: Option<u16>) -> io::Result<u16> {
        let known = self.lock().get(&asker).map(|served| {
            let here = served.listeners.contains_key(&place.id());
            (served.port, here, served.listeners.len())
        });
        let sockets = match known {
            Some((port, true, _)) => return Ok(port),
            Some((_, _, places)) if places >= PLACES => {
                return Err(io::Error::other("the agent has too many networks"));
            }
            Some((port, ..)) => make(place, Some(port), true)?,
            None => make(place, port, false)?,
        };
        let mut all = self.lock();
        let served = all.entry(asker).or_insert_with(|| Served {
            client: Arc::new(Client::new(asker, &self.core.limits)),
            port: sockets.port,
            listeners: BTreeMap::new(),
        });
        let port = served.port;
        let listeners = self.listen(&served.client, sockets)?;
        served.listeners.insert(place.id(), listeners);
        Ok(port)
    }

    fn listen(&self, client: &Arc<Client>, sockets: Sockets) -> io::Result<Vec<JoinHandle<()>>> {
        let mut listeners = Vec::new();
        for socket in sockets.datagrams {
            let socket = UdpSocket::from_std(socket)?;
            let work = listen::datagrams(self.core.clone(), client.clone(), socket);
            listeners.push(tokio::spawn(work));
        }
        for listener in sockets.streams {
            let listener = TcpListener::from_std(listener)?;
            let work = listen::streams(self.core.clone(), client.clone(), listener);
            listeners.push(tokio::spawn(work));
        }
        Ok(listeners)
    }

    /// The networks in which an agent is served.
    pub fn places(&self, asker: Asker) -> Vec<(u64, u64)> {
        let served = self.lock();
        let served = served.get(&asker);
        served.map_or_else(Vec::new, |it| it.listeners.keys().copied().collect())
    }

    /// Stops listening in networks that an agent has left.
    pub fn retain(&self, asker: Asker, keep: impl Fn((u64, u64)) -> bool) {
        if let Some(served) = self.lock().get_mut(&asker) {
            served.listeners.retain(|id, listeners| {
                let kept = keep(*id);
                if !kept {
                    listeners.iter().for_each(JoinHandle::abort);
                }
                kept
            });
        }
    }

    /// Serves an agent no more. Questions that are under way are not answered, and open nothing.
    pub fn stop(&self, asker: Asker) {
        self.lock().remove(&asker);
    }

    /// Forgets all answers: the next questions are asked of other resolvers. What is open stays open.
    pub fn forget_answers(&self) {
        self.core.cache.clear();
    }

    /// Judges again what is open for an agent, and opens again what still may be: after another policy came into
    /// force, and with it everything was closed.
    pub fn judge_again(&self, asker: Asker) {
        let client = self.lock().get(&asker).map(|it| it.client.clone());
        let Some(client) = client else {
            return;
        };
        let (gate, now) = (&self.core.gate, Instant::now());
        for (address, (name, until)) in client.open.take(now) {
            let judged = gate.judge(asker, &name);
            if !judged.passes()
                || matches!(
                    gate.address(asker, &name, &judged, address),
                    AddressVerdict::Withheld(_)
                )
            {
                continue;
            }
            let lifetime = until - now;
            let opening = Opening {
                name: &name,
                address,
                grants: &judged.grants,
                lifetime,
                generation: judged.generation,
            };
            match gate.open(asker, &opening) {
                Ok(()) => client.open.add(address, &name, now, lifetime),
                // Who needs it asks for the name again.
                Err(error) => tracing::debug!("{name}: {address} stays closed: {error}"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Asker, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Where the gateway listens, and whom it serves.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::Uri;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::config::GatewayConfig;
use super::exchange::answer;
use super::keys::Secret;
use super::prices::Prices;
use super::provider::Api;
use super::upstream::{Upstream, client};
use crate::audit::Record;
use crate::budget::Ledger;
use crate::kernel::socket_cgroup;
use crate::policy::Policy;

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The agent.
    pub name: String,
    /// Whose account is charged.
    pub account: String,
    /// Its session.
    pub session: u32,
    /// What it may do.
    pub policy: Arc<Policy>,
}

/// What the gateway asks of the rest.
pub trait Host: Send + Sync + 'static {
    /// The agent to which a cgroup belongs: its own, or one below.
    fn agent_of(&self, cgroup: u64) -> Option<Caller>;
    /// Writes a line of the log.
    fn record(&self, record: Record<'_>, refused: bool);
    /// A budget refused something, and more than that is to be done.
    fn alert(&self);
}

/// Why there is no gateway.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The configuration, a key or the prices cannot be used.
    #[error("the model gateway cannot start: {0}")]
    Config(String),
    /// The address is taken, or may not be used.
    #[error(
        "the model gateway cannot listen at {address}: {source}; name another address with `gateway: listen:` in the configuration"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel does not say whose a socket is.
    #[error("the model gateway cannot know its callers: {0}; `modprobe tcp_diag` may help")]
    Callers(std::io::Error),
}

/// One provider, ready.
#[derive(Debug)]
pub struct Provider {
    pub api: Api,
    pub base: Uri,
    /// The key, if it needs one; or why there is none.
    pub key: Result<Option<Secret>, String>,
}

/// What all calls share.
pub struct Shared {
    pub host: Arc<dyn Host>,
    pub ledger: Arc<Ledger>,
    pub prices: Prices,
    pub providers: BTreeMap<String, Provider>,
    pub upstream: Upstream,
    /// Whether any certificate is trusted.
    trusts: bool,
    pub config: GatewayConfig,
    /// Calls under way, by session.
    active: Mutex<HashMap<u32, usize>>,
}

/// The gateway, as long as it is not dropped.
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Shared {
    fn count(&self, session: u32, change: impl FnOnce(&mut usize)) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let count = active.entry(session).or_default();
        change(count);
        if *count == 0 {
            active.remove(&session);
        }
    }

    /// A call of a session began.
    pub fn begun(&self, session: u32) {
        self.count(session, |count| *count += 1);
    }

    /// A call of a session ended.
    pub fn ended(&self, session: u32) {
        self.count(session, |count| *count = count.saturating_sub(1));
    }
}

impl Gateway {
    /// Listens at the configured address, or with `any_port` at a free port of it. Needs a tokio runtime.
    pub async fn start(
        mut config: GatewayConfig,
        any_port: bool,
        ledger: Arc<Ledger>,
        host: Arc<dyn Host>,
    ) -> Result<Self, GatewayError> {
        config.check().map_err(GatewayError::Config)?;
        if any_port {
            config.listen.set_port(0);
        }
        let prices = Prices::find(config.prices.as_deref()).map_err(GatewayError::Config)?;
        let (upstream, trusts) = client(config.ca.as_deref()).map_err(GatewayError::Config)?;
        let mut providers = BTreeMap::new();
        for (name, provider) in config.all_providers() {
            let base = provider.uri().map_err(GatewayError::Config)?;
            let is_local = base.scheme_str() == Some("http");
            let key = match Secret::find(&name, provider.key_file.as_deref()) {
                Ok(None) if !is_local => Err(format!(
                    "there is no key for the provider `{name}`: put it into {}/{name}, readable by root only",
                    super::config::KEYS
                )),
                key => key,
            };
            if let Err(what) = &key {
                tracing::debug!("{what}");
            }
            let api = provider.api;
            providers.insert(name, Provider { api, base, key });
        }
        let address = config.listen;
        let listen = |source| GatewayError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        probe(&listener, address)
            .await
            .map_err(GatewayError::Callers)?;
        let shared = Arc::new(Shared {
            host,
            ledger,
            prices,
            providers,
            upstream,
            trusts,
            config,
            active: Mutex::default(),
        });
        let task = tokio::spawn(serve(listener, shared.clone()));
        Ok(Self {
            shared,
            address,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether calls of a session are under way.
    pub fn is_active(&self, session: u32) -> bool {
        let active = self.shared.active.lock();
        active
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&session)
    }

    /// The variables that lead an agent of this policy to its providers.
    pub fn environment(&self, policy: &Policy) -> Vec<(String, String)> {
        let known = self.shared.config.all_providers();
        let wanted = policy.limits().models.iter().flat_map(|it| &it.providers);
        wanted
            .filter_map(|name| Some(known.get(name)?.environment(name, self.address)))
            .flatten()
            .collect()
    }

    /// Why calls of a policy would fail, if they would: providers that are not configured or have no key.
    pub fn lacks(&self, policy: &Policy) -> Vec<String> {
        let wanted = policy.limits().models.iter().flat_map(|it| &it.providers);
        wanted
            .filter_map(|name| match self.shared.providers.get(name) {
                None => Some(format!("the provider `{name}` is not configured")),
                Some(provider) if provider.base.scheme_str() != Some("http") && !self.shared.trusts => {
                    Some(format!(
                        "no certificates are trusted for `{name}`: install the system's (ca-certificates), or name some with `ca`"
                    ))
                }
                Some(provider) => provider.key.as_ref().err().cloned(),
            })
            .collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks the kernel once about a connection of our own.
async fn probe(listener: &TcpListener, address: SocketAddr) -> std::io::Result<()> {
    let (ours, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (ours, (stream, peer)) = (ours?, accepted?);
    let found = socket_cgroup(&stream, peer, address)?;
    drop(ours);
    tracing::debug!("callers are known: this process is in the cgroup {found}");
    Ok(())
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(converse(stream, peer, shared.clone()));
            }
            Err(error) => {
                tracing::error!("failed to accept a connection of an agent: {error}");
                // Out of descriptors: others must end first.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let found = stream
        .local_addr()
        .and_then(|local| socket_cgroup(&stream, peer, local));
    let cgroup = match found {
        Ok(cgroup) => Some(cgroup),
        Err(error) => {
            tracing::debug!("the caller at {peer} is not known: {error}");
            None
        }
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(shared, cgroup, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_mins(1))
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a connection of an agent ended early: {error}");
    }
}

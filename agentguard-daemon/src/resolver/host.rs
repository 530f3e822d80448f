//! Names of hosts that AgentGuard itself talks to: receivers of records and metrics, providers of models.
//!
//! The C library loads modules of the host into the program for this, and a program that is linked statically must not
//! let it: modules of another version of the library end it. So it is done here, by `/etc/hosts` and the servers of
//! `/etc/resolv.conf`, and in no other way. It opens nothing for an agent.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use hickory_proto::rr::{Name, RData, RecordType};
use hyper_util::client::legacy::connect::dns::Name as HostName;
use tokio::net::TcpStream;

use super::upstream::{Failure, Servers, Upstreams};

/// Bytes of a file that are read.
const LONGEST: usize = 4 << 20;
/// Domains that an unfinished name is tried in.
const DOMAINS: usize = 6;
/// Most dots that `ndots` can ask for, as the C library has it.
const DOTS: usize = 15;

/// Where names are looked up.
#[derive(Debug)]
struct Host {
    hosts: PathBuf,
    conf: PathBuf,
    upstreams: Upstreams,
}

static HOST: LazyLock<Host> = LazyLock::new(|| Host {
    hosts: PathBuf::from("/etc/hosts"),
    conf: PathBuf::from("/etc/resolv.conf"),
    upstreams: Upstreams::new(Servers::default()),
});

/// The addresses of a host, those that can be reached first.
pub async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    HOST.addresses(host).await
}

/// A connection to a port of a host, at the first of its addresses that takes it.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut refused = None;
    for address in addresses(host).await? {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// The same for clients of HTTP.
#[derive(Clone, Copy, Debug)]
pub struct Lookup;

impl tower_service::Service<HostName> for Lookup {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: HostName) -> Self::Future {
        Box::pin(async move {
            let found = addresses(name.as_str()).await?;
            // The port is that of the address that is asked for.
            let found = found.into_iter().map(|it| SocketAddr::new(it, 0));
            Ok(found.collect::<Vec<_>>().into_iter())
        })
    }
}

impl Host {
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let name = bare.trim_end_matches('.').to_ascii_lowercase();
        // Whatever anybody's name server says.
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let known = in_hosts(&read(&self.hosts), &name);
        if !known.is_empty() {
            return Ok(reachable_first(known));
        }
        let mut failure = None;
        for candidate in candidates(bare, &read(&self.conf)) {
            match self.ask(&candidate).await {
                Ok(found) if found.is_empty() => {}
                Ok(found) => return Ok(reachable_first(found)),
                Err(error) => failure = Some(error),
            }
        }
        let why = failure.unwrap_or_else(|| "there is no such host".to_owned());
        let shown = host.escape_debug();
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("the name `{shown}` was not resolved: {why}"),
        ))
    }

    /// Both kinds of addresses; one that fails is not missed where the other is there.
    async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let mut name = Name::from_ascii(name).map_err(|error| error.to_string())?;
        name.set_fqdn(true);
        let (four, six) = tokio::join!(
            self.upstreams.find(&name, RecordType::A),
            self.upstreams.find(&name, RecordType::AAAA)
        );
        let mut found = Vec::new();
        let mut failure: Option<Failure> = None;
        for outcome in [six, four] {
            match outcome {
                Ok(answer) => found.extend(answer.records.iter().filter_map(|it| match &it.data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                })),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(failure) if found.is_empty() => Err(failure.to_string()),
            _ => Ok(found),
        }
    }
}

/// The text of a file; nothing where there is none.
fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned()
}

/// The addresses of a name in the text of `/etc/hosts`.
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else {
            continue;
        };
        let is_it = |word: &str| word.trim_end_matches('.').eq_ignore_ascii_case(name);
        if words.any(is_it) && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// The whole names that a name may mean, by the lines `search` and `options ndots:` of `/etc/resolv.conf`.
fn candidates(name: &str, conf: &str) -> Vec<String> {
    if let Some(whole) = name.strip_suffix('.') {
        return vec![whole.to_owned()];
    }
    let (mut domains, mut dots) = (Vec::new(), 1);
    for line in conf.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            // The last line counts.
            Some("search" | "domain") => domains = words.take(DOMAINS).collect(),
            Some("options") => {
                let mut asked = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                dots = asked.next_back().unwrap_or(dots);
            }
            _ => {}
        }
    }
    let mut all: Vec<String> = domains
        .iter()
        .map(|domain| format!("{name}.{}", domain.trim_matches('.')))
        .collect();
    let is_whole = name.matches('.').count() >= dots.min(DOTS);
    all.insert(if is_whole { 0 } else { all.len() }, name.to_owned());
    all
}

/// Addresses to which there is a way come first; otherwise the order stays. Nothing is sent for that.
fn reachable_first(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let has_way = |address: &IpAddr| {
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect((*address, 9)).is_ok())
    };
    addresses.sort_by_cached_key(|address| !has_way(address));
    addresses
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;

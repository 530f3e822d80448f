//! Which resolvers are asked: those of the configuration, or those of the system as long as it names them.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// The port of DNS.
const DNS: u16 = 53;
/// How many servers are used.
const MOST: usize = 8;
/// How often the file may be looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of the file that are read.
const LONGEST: usize = 64 << 10;

/// One server of a configuration: `ADDRESS` or `ADDRESS:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Server(SocketAddr);

impl TryFrom<String> for Server {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let whole = text.parse().ok();
        whole.or_else(|| server(&text)).map(Self).ok_or_else(|| {
            format!("`{text}` is not the address of a resolver; write an address such as 9.9.9.9, or ADDRESS:PORT")
        })
    }
}

/// Where the servers are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// In a file as `/etc/resolv.conf`. It is read again when it changes.
    File(PathBuf),
    /// Here.
    These(Vec<SocketAddr>),
}

impl Servers {
    /// Those of a configuration, or the system's if it names none.
    pub fn of(configured: &[Server]) -> Self {
        if configured.is_empty() {
            return Self::default();
        }
        Self::These(configured.iter().map(|server| server.0).collect())
    }
}

impl Default for Servers {
    fn default() -> Self {
        Self::File(PathBuf::from("/etc/resolv.conf"))
    }
}

/// What tells a file from what it was.
type Stamp = (u64, u64, i64, i64, u64);

/// See the module.
#[derive(Debug)]
pub(super) struct Watched {
    from: Servers,
    known: Vec<SocketAddr>,
    stamp: Option<Stamp>,
    looked: Option<Instant>,
}

impl Watched {
    pub(super) fn new(from: Servers) -> Self {
        Self {
            known: match &from {
                Servers::These(these) => these.clone(),
                Servers::File(_) => Vec::new(),
            },
            from,
            stamp: None,
            looked: None,
        }
    }

    /// The servers as they are named now. A file that is gone names none.
    pub(super) fn now(&mut self, now: Instant) -> Vec<SocketAddr> {
        if let Servers::File(path) = &self.from
            && self
                .looked
                .is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK)
        {
            self.looked = Some(now);
            let stamp = stamp(path);
            if stamp.is_none() || stamp != self.stamp {
                self.known = fs::read(path).map_or_else(
                    |error| {
                        let path = path.display();
                        tracing::warn!("no names can be resolved: failed to read {path}: {error}");
                        Vec::new()
                    },
                    |text| parse(&text),
                );
                self.stamp = stamp;
            }
        }
        self.known.clone()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.size(),
    ))
}

/// The lines `nameserver ADDRESS`. Everything else in the file is for clients.
fn parse(text: &[u8]) -> Vec<SocketAddr> {
    let text = String::from_utf8_lossy(&text[..text.len().min(LONGEST)]);
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(server) = words.next().and_then(server)
            && !servers.contains(&server)
            && servers.len() < MOST
        {
            servers.push(server);
        }
    }
    servers
}

fn server(text: &str) -> Option<SocketAddr> {
    if let Some((address, scope)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let scope = scope
            .parse()
            .ok()
            .or_else(|| nix::net::if_::if_nametoindex(scope).ok())?;
        return Some(SocketAddrV6::new(address, DNS, 0, scope).into());
    }
    let address: IpAddr = text.parse().ok()?;
    Some(SocketAddr::new(address, DNS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_system_are_read_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let mut watched = Watched::new(Servers::File(path.clone()));
        let start = Instant::now();
        assert!(watched.now(start).is_empty(), "there is no file");
        let text = "# nameserver 9.9.9.9\nnameserver 192.0.2.1\n\
                    nameserver   2001:db8::53 # main\noptions edns0\nsearch a b\n\
                    nameserver fe80::1%1\nnameserver nonsense\nnameserver\nnameserver 192.0.2.1\n";
        fs::write(&path, text).unwrap();
        assert!(watched.now(start).is_empty(), "it was looked at just now");
        let found = watched.now(start + LOOK);
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            ["192.0.2.1:53", "[2001:db8::53]:53", "[fe80::1%1]:53"]
        );
        fs::write(&path, "nameserver 192.0.2.77\n").unwrap();
        assert_eq!(
            watched.now(start + 2 * LOOK),
            ["192.0.2.77:53".parse().unwrap()]
        );
        fs::remove_file(&path).unwrap();
        assert!(watched.now(start + 3 * LOOK).is_empty());
    }
}

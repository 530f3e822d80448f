//! A host that has IPv6 and nothing else: names are resolved, what they permit is reached, and the rest is not.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::server::Server;
use super::{prepare, python, said_in, text_of};
use crate::guard::{AUDIT, Agent, Daemon, Group};
use crate::trail::{Trail, Wanted};

const RESOLV: &str = "/etc/resolv.conf";

/// Loopback without its IPv4 addresses, until it is dropped.
struct NoFour {
    addresses: Vec<String>,
    resolvers: String,
}

fn ip(words: &[&str]) -> Result<String> {
    let output = Command::new("/usr/sbin/ip")
        .args(words)
        .output()
        .context("failed to run ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl NoFour {
    fn make() -> Result<Self> {
        let listed = ip(&["-o", "-4", "addr", "show"])?;
        let addresses = listed
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
            .collect();
        let resolvers = fs::read_to_string(RESOLV)?;
        fs::write(RESOLV, "nameserver 2606:2800::53\n")?;
        let without = Self {
            addresses,
            resolvers,
        };
        ip(&["-4", "addr", "flush", "dev", "lo"])?;
        Ok(without)
    }
}

impl Drop for NoFour {
    fn drop(&mut self) {
        for address in &self.addresses {
            // What does not come back fails what comes next.
            let _ = ip(&["addr", "add", address, "dev", "lo"]);
        }
        let _ = fs::write(RESOLV, &self.resolvers);
    }
}

/// Each way in, and how it must end for an agent; `(name, script, whether it is reached ungoverned, and governed)`.
const TRIES: &[(&str, &str, bool, bool)] = &[
    ("by name", "get('good.example.com')", true, true),
    (
        "asked by UDP",
        "get(six('2606:2800::53', 'good.example.com'))",
        true,
        true,
    ),
    (
        "asked by TCP",
        "get(six('2606:2800::53', 'good.example.com', tcp=True))",
        true,
        true,
    ),
    (
        "asked without connecting",
        "get(six('2606:2800::53', 'good.example.com', connect=False))",
        true,
        true,
    ),
    (
        "by a name that is not permitted",
        "get('evil.example.net')",
        true,
        false,
    ),
    ("by its address", "get('2606:2800::66')", true, false),
    (
        "by a permitted address at another port",
        "get('good.example.com', 3128)",
        true,
        false,
    ),
    (
        "asked of another resolver",
        "get(six('2606:2800::1', 'evil.example.net', port=5353))",
        true,
        false,
    ),
    (
        "by IPv4, which is not there",
        "get('93.184.216.1')",
        false,
        false,
    ),
];

/// Asks for an address of IPv6.
const SIX: &str = r"
def six(server, name, tcp=False, port=53, connect=True):
    q = struct.pack('>6H', 4712, 256, 1, 0, 0, 0)
    q += b''.join(bytes([len(l)]) + l for l in name.encode().split(b'.')) + b'\0' + struct.pack('>2H', 28, 1)
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM); s.settimeout(5)
    if tcp:
        s.connect((server, port)); s.sendall(struct.pack('>H', len(q)) + q)
        n = struct.unpack('>H', s.recv(2))[0]; d = s.recv(n)
    elif connect:
        s.connect((server, port)); s.send(q); d = s.recv(4096)
    else:
        s.sendto(q, (server, port)); d, came = s.recvfrom(4096)
        assert came[0] == server and came[1] == port, came
    if d[3] & 15: sys.exit('code %d' % (d[3] & 15))
    return socket.inet_ntop(socket.AF_INET6, d[-16:])
";

/// The scenario. No daemon may run.
pub fn only() -> Result<()> {
    let server = prepare()?;
    let _without = NoFour::make()?;
    let daemon = Daemon::start()?;
    let agent = Agent::attach("names-six", "names")?;
    let twin = Group::new("names-six-twin")?;
    let mut trail = Trail::at(AUDIT);
    for (name, script, control, governed) in TRIES {
        let text = text_of(&format!("{SIX}{script}"));
        for (group, expected) in [(&twin, *control), (&agent.group, *governed)] {
            server.forget();
            let mark = trail.mark()?;
            let (said, complaint) = said_in(group, &python(&text))?;
            if said.contains("reached") != expected {
                bail!("{name}: it must be {expected} that it is reached: {said} {complaint}");
            }
            let denied = *control && !expected;
            if denied {
                asked_of_nobody(&server, name)?;
                let wanted = Wanted {
                    agent: Some("names-six".into()),
                    verdict: Some("deny".into()),
                    ..Wanted::default()
                };
                trail.wait(mark, &wanted)?;
            }
        }
    }
    drop(agent);
    drop(daemon);
    Ok(())
}

/// A name that is not permitted does not leave the host.
fn asked_of_nobody(server: &Server, way: &str) -> Result<()> {
    ensure!(
        !server.knows("evil.example.net"),
        "{way}: the question came to the server"
    );
    Ok(())
}

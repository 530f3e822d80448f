//! Scenarios that need a larger userland: each in a guest of its own, and on one kernel, because it is not the kernel
//! that is tested.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::{Counts, Job, LOG, Outcome, PATIENCE, closing, keep};
use crate::guest::{Guest, Show};
use crate::kernels::Kernel;
use crate::product;
use crate::userland::{CONTAINERS, DEBIAN, Userland, WORKSHOP, WORKSHOP_MEMORY};

/// The kernel on which they run, if none is named.
const ON: &str = "6.12";

/// Such a scenario.
struct Apart {
    /// How the names of its tests begin.
    name: &'static str,
    short: &'static str,
    /// What the program of the guest is told, before the filter.
    task: &'static str,
    userland: &'static Userland,
    /// Memory in MiB.
    memory: u32,
    /// Whether it runs with everything else, or only when it is asked for: see `CONTRIBUTING.md`.
    always: bool,
}

const ALL: &[Apart] = &[
    // Under a shipped policy ordinary work goes on.
    Apart {
        name: "ordinary work",
        short: "work",
        task: "workshop",
        userland: &WORKSHOP,
        memory: WORKSHOP_MEMORY,
        always: true,
    },
    // The same tests are left out, and counted so, where there is no engine.
    Apart {
        name: "egress: in a container",
        short: "containers",
        task: "rows",
        userland: &CONTAINERS,
        memory: 4096,
        always: true,
    },
    // The package does on a Debian system what the README says.
    Apart {
        name: "installed",
        short: "debian",
        task: "installed",
        userland: &DEBIAN,
        memory: 2048,
        always: false,
    },
];

impl Apart {
    fn is_meant(&self, filter: &str) -> bool {
        filter.starts_with(self.name) || filter.is_empty() && self.always
    }

    fn run(&self, kernel: &Kernel, filter: &str, binaries: &Path) -> Result<Counts> {
        let filter = if filter.is_empty() { self.name } else { filter };
        let quoted = crate::command::shell_quoted(filter);
        let job = format!("exec /guest/vm-tests {} --filter {quoted}\n", self.task);
        let mut guest = Guest::new(kernel.clone(), job);
        guest.userland = Some(self.userland.get()?);
        guest.memory = self.memory;
        guest.show = Show::Remarkable;
        guest.prefix = format!("{} {}: ", kernel.name, self.short);
        guest.timeout = PATIENCE;
        guest.wanted = vec![LOG.into()];
        guest.systemd = self.userland.system;
        product::put(&mut guest, binaries)?;
        let outcome = guest.run()?;
        let folder = keep(&format!("{}-{}", kernel.name, self.short), &outcome)?;
        let mut counts = outcome
            .output
            .lines()
            .find_map(closing)
            .unwrap_or_else(|| Counts::broke_off(&folder));
        // A kernel that is given by its path comes without modules.
        if kernel.modules.is_empty() && counts.passed == 0 && counts.skipped > 0 {
            counts.failed = 0;
        }
        if outcome.repeats > 0 {
            counts.note = format!("{} guest(s) died and were repeated", outcome.repeats);
        }
        Ok(counts)
    }
}

/// Whether tests of this name are among them, and nowhere else.
pub fn speaks_of(filter: &str) -> bool {
    ALL.iter().any(|apart| filter.starts_with(apart.name))
}

/// Their guests.
pub fn guests<'a>(
    kernels: &'a [Kernel],
    filter: &'a str,
    binaries: &'a Path,
) -> impl Iterator<Item = Job<'a>> {
    let on = |kernel: &&Kernel| kernels.len() == 1 || kernel.name == ON;
    let kernels: Vec<&Kernel> = kernels.iter().filter(on).collect();
    let meant = ALL.iter().filter(move |apart| apart.is_meant(filter));
    meant.flat_map(move |apart| {
        kernels.clone().into_iter().map(move |kernel| Job {
            weight: 1,
            run: Box::new(move || {
                let name = format!("kernel {}, {}", kernel.name, apart.name);
                println!("\n== {name}");
                let started = Instant::now();
                vec![Outcome::of(
                    &name,
                    started,
                    apart.run(kernel, filter, binaries),
                )]
            }),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_means_one_of_them_or_none() {
        assert!(speaks_of("ordinary work: git") && speaks_of("egress: in a container"));
        assert!(!speaks_of("") && !speaks_of("egress: by name"));
        let meant = |filter: &str| ALL.iter().filter(|it| it.is_meant(filter)).count();
        assert_eq!((meant(""), meant("installed"), meant("race")), (2, 1, 0));
    }
}

//! The time that windows run on: it goes on with the boot clock, over restarts, and never back.
//!
//! While the machine runs only `CLOCK_BOOTTIME` counts, which nobody can set. Across a restart of the machine
//! the wall clock is believed as far as it is ahead of the latest that was ever seen: setting it back gives
//! nothing.

use std::fmt::Debug;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The clocks at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Nanoseconds since the boot, suspended or not.
    pub boot: u64,
    /// Nanoseconds since 1970, as the clock on the wall has it.
    pub wall: u64,
}

/// Where readings come from.
pub trait Clock: Debug + Send + Sync {
    /// The clocks now.
    fn read(&self) -> Reading;
    /// A text that no other boot has.
    fn boot_id(&self) -> String;
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn read(&self) -> Reading {
        let nanoseconds = |clock| {
            clock_gettime(clock).map_or(0, |time| {
                let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
                let rest = u64::try_from(time.tv_nsec()).unwrap_or(0);
                seconds.saturating_mul(1_000_000_000).saturating_add(rest)
            })
        };
        Reading {
            boot: nanoseconds(ClockId::CLOCK_BOOTTIME),
            wall: nanoseconds(ClockId::CLOCK_REALTIME),
        }
    }

    fn boot_id(&self) -> String {
        crate::session::boot()
    }
}

/// The ledger's time; what is written down of it is all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// The boot that `boot` belongs to.
    boot_id: String,
    /// The boot clock at the last step, in nanoseconds.
    boot: u64,
    /// Nanoseconds of progress. It begins with the wall clock of the first moment, so that days are those of
    /// UTC where that was right.
    progress: u64,
    /// The latest that the wall clock can have been, in nanoseconds since 1970.
    wall: u64,
}

impl Time {
    /// The first moment ever.
    pub fn begin(clock: &dyn Clock) -> Self {
        let now = clock.read();
        Self {
            boot_id: clock.boot_id(),
            boot: now.boot,
            progress: now.wall,
            wall: now.wall,
        }
    }

    /// Goes on after a restart of the daemon or of the machine.
    pub fn resume(mut self, clock: &dyn Clock) -> Self {
        let (now, boot_id) = (clock.read(), clock.boot_id());
        if boot_id.is_empty() || boot_id != self.boot_id {
            let passed = now.wall.saturating_sub(self.wall);
            self.progress = self.progress.saturating_add(passed);
            self.wall = self.wall.max(now.wall);
            self.boot = now.boot;
            self.boot_id = boot_id;
        }
        self.step(&now);
        self
    }

    /// Goes on to now, and gives the progress.
    pub fn step(&mut self, now: &Reading) -> u64 {
        let passed = now.boot.saturating_sub(self.boot);
        self.boot = self.boot.max(now.boot);
        self.progress = self.progress.saturating_add(passed);
        self.wall = self.wall.saturating_add(passed).max(now.wall);
        self.progress
    }

    /// What the boot clock must be added to in this boot.
    pub fn since_boot(&self) -> u64 {
        self.progress.saturating_sub(self.boot)
    }

    /// The latest that it can be, in nanoseconds since 1970: never earlier than it once was.
    pub fn wall(&self) -> u64 {
        self.wall
    }

    /// Believes the wall clock as it is now: an operator says that it is right.
    pub fn believe(&mut self, now: &Reading) {
        self.wall = now.wall;
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Clocks that a test sets.
    #[derive(Debug)]
    pub struct Hands(pub Mutex<(Reading, String)>);

    impl Hands {
        pub fn new() -> Self {
            let reading = Reading {
                boot: 1_000_000_000,
                wall: 1_770_000_000_000_000_000,
            };
            Self(Mutex::new((reading, "first".into())))
        }

        pub fn pass(&self, nanoseconds: u64) {
            let mut hands = self.0.lock().unwrap();
            hands.0.boot += nanoseconds;
            hands.0.wall += nanoseconds;
        }

        pub fn set_back(&self, nanoseconds: u64) {
            self.0.lock().unwrap().0.wall -= nanoseconds;
        }

        pub fn reboot(&self, name: &str, off: u64) {
            let mut hands = self.0.lock().unwrap();
            hands.0.boot = 5;
            hands.0.wall += off;
            hands.1 = name.into();
        }
    }

    /// The same hands for every clock of a test.
    #[derive(Clone, Debug)]
    pub struct Shared(pub Arc<Hands>);

    impl Clock for Shared {
        fn read(&self) -> Reading {
            self.0.read()
        }

        fn boot_id(&self) -> String {
            self.0.boot_id()
        }
    }

    impl Clock for Hands {
        fn read(&self) -> Reading {
            self.0.lock().unwrap().0.clone()
        }

        fn boot_id(&self) -> String {
            self.0.lock().unwrap().1.clone()
        }
    }

    const DAY: u64 = 86_400_000_000_000;

    #[test]
    fn a_clock_that_is_set_back_and_forth_over_a_restart_gives_nothing() {
        let hands = Hands::new();
        let mut time = Time::begin(&hands);
        let begin = time.step(&hands.read());
        hands.set_back(DAY);
        hands.pass(1000);
        assert_eq!(time.step(&hands.read()), begin + 1000);
        // The machine starts again, and the clock is put right: only the real time has passed.
        hands.reboot("second", DAY + 50);
        let mut time = time.resume(&hands);
        assert_eq!(time.step(&hands.read()), begin + 1050);
        // Set back while it was off: no time has passed that can be shown.
        hands.set_back(DAY);
        hands.reboot("third", 10);
        let mut time = time.resume(&hands);
        assert_eq!(time.step(&hands.read()), begin + 1050);
        let latest = time.wall();
        hands.pass(7);
        time.step(&hands.read());
        assert_eq!(time.wall(), latest + 7);
    }

    #[test]
    fn a_restart_of_the_daemon_counts_boot_time() {
        let hands = Hands::new();
        let mut time = Time::begin(&hands);
        let begin = time.step(&hands.read());
        hands.pass(500);
        hands.set_back(DAY);
        let mut time = time.resume(&hands);
        assert_eq!(time.step(&hands.read()), begin + 500);
    }
}

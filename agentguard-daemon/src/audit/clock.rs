//! Kernel time to wall time, and wall time to text, cheaply.
//!
//! Records carry `CLOCK_BOOTTIME`, which no agent can set; people read wall time. The difference of
//! the two clocks is taken again for each batch, so a step of the wall clock shows from then on. Nothing else may change
//! it: times of one boot keep their order.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Converts boot time to text. Keeps the text of the last second.
#[derive(Debug)]
pub struct Clock {
    /// Nanoseconds from boot time to wall time.
    offset: i64,
    second: i64,
    /// `2026-11-23T04:05:06` of `second`, then fraction and zone.
    text: String,
}

const WHOLE: usize = "2026-11-23T04:05:06".len();

impl Clock {
    /// A clock set by the running kernel.
    pub fn new() -> Self {
        let mut clock = Self {
            offset: 0,
            second: i64::MIN,
            text: String::new(),
        };
        clock.refresh();
        clock
    }

    /// Takes the difference of the clocks again.
    pub fn refresh(&mut self) {
        let before = nanoseconds(boot_nanoseconds());
        let wall = wall_nanoseconds();
        let after = nanoseconds(boot_nanoseconds());
        self.compare(before, wall, after);
    }

    /// The wall clock was read between two readings of the other. However long somebody else had the processor meanwhile,
    /// the difference is between these; while the one that is known is too, nobody has set the clock.
    const fn compare(&mut self, before: i64, wall: i64, after: i64) {
        let (least, most) = (wall.saturating_sub(after), wall.saturating_sub(before));
        if self.offset < least || self.offset > most {
            self.offset = least + (most - least) / 2;
        }
    }

    /// The wall time at a boot time (nanoseconds), as RFC 3339 in UTC.
    pub fn at_boot_time(&mut self, boot: u64) -> &str {
        self.format(nanoseconds(boot).saturating_add(self.offset))
    }

    /// The wall time now.
    pub fn now(&mut self) -> &str {
        self.format(wall_nanoseconds())
    }

    fn format(&mut self, nanoseconds: i64) -> &str {
        const SECOND: i64 = 1_000_000_000;
        let second = nanoseconds.div_euclid(SECOND);
        if second != self.second || self.text.len() < WHOLE {
            self.second = second;
            self.text.clear();
            let stamp = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            // Writing to a `String` cannot fail; the format below is checked by a test.
            let _ = write!(self.text, "{stamp:.0}");
        }
        self.text.truncate(WHOLE);
        let mut fraction = nanoseconds.rem_euclid(SECOND).unsigned_abs();
        let mut digits = *b".000000000Z";
        for digit in digits[1..10].iter_mut().rev() {
            *digit = b'0' + (fraction % 10) as u8;
            fraction /= 10;
        }
        self.text
            .push_str(std::str::from_utf8(&digits).unwrap_or_default());
        &self.text
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
pub fn boot_nanoseconds() -> i128 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec())
    })
}

/// As they are counted here: until the year 2262.
fn nanoseconds(time: impl TryInto<i64>) -> i64 {
    time.try_into().unwrap_or(i64::MAX)
}

fn wall_nanoseconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| nanoseconds(time.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_written_with_nanoseconds_and_the_kept_second_changes() {
        let mut clock = Clock::new();
        assert_eq!(
            clock.format(1_000_000_000),
            "1970-01-01T00:00:01.000000000Z"
        );
        assert_eq!(
            clock.format(1_000_000_007),
            "1970-01-01T00:00:01.000000007Z"
        );
        assert_eq!(
            clock.format(1_795_406_400_999_999_999),
            "2026-11-23T04:00:00.999999999Z"
        );
    }

    #[test]
    fn only_a_step_of_the_wall_clock_changes_the_difference() {
        let mut clock = Clock::new();
        clock.offset = 0;
        clock.compare(100, 1_000_104, 110);
        let known = clock.offset;
        assert!((999_994..=1_000_004).contains(&known));
        // The processor was taken away before, and behind.
        clock.compare(200, known + 90_200, 90_200);
        clock.compare(200, known + 200, 90_200);
        assert_eq!(clock.offset, known);
        // Set back, and forward, by a microsecond.
        clock.compare(100_000, known + 99_000, 100_010);
        assert_eq!(clock.offset, known - 1_005);
        clock.compare(200_000, known + 200_000, 200_010);
        assert_eq!(clock.offset, known - 5);
    }

    #[test]
    fn boot_time_is_shown_as_wall_time() {
        let mut clock = Clock::new();
        let boot = u64::try_from(boot_nanoseconds()).unwrap();
        let shown: jiff::Timestamp = clock.at_boot_time(boot).parse().unwrap();
        let off = jiff::Timestamp::now().duration_since(shown).as_secs();
        assert!(off.abs() < 2, "{off} s");
    }
}

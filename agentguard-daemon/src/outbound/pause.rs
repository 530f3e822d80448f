//! How long to wait after failures.

use std::time::Duration;

/// Twice as long after each failure in a row, from `first` to `longest`, and never the same for two who wait.
pub fn pause(failures: u32, first: Duration, longest: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = first.saturating_mul(1 << doublings).min(longest);
    let mut random = [0_u8; 2];
    // Without randomness it is the whole time, which is as good for one that waits.
    let part = match rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()) {
        Ok(2) => f64::from(u16::from_ne_bytes(random)) / 65_536.0,
        _ => 1.0,
    };
    whole.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_and_has_an_end() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_mins(1));
        for (failures, whole) in [(0, 1), (1, 1), (2, 2), (5, 16), (7, 60), (u32::MAX, 60)] {
            let whole = Duration::from_secs(whole);
            let pause = pause(failures, first, longest);
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{failures}: {pause:?}"
            );
        }
    }
}

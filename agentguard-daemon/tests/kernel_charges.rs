//! The kernel's own charging of budgets against a list of everything that was ever charged, and in races: the
//! classifier `selftest` runs the code of the hooks under `BPF_PROG_TEST_RUN`, which needs root but no BPF LSM.

#![expect(clippy::unwrap_used, reason = "a test says where it fails")]

#[path = "support/selftest.rs"]
mod selftest;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use agentguard::kernel::boot_time;
use agentguard::policy::generate::Random;
use agentguard::policy::{LoadOptions, load_text};
use agentguard_common::budget::{Charge, LIVE, Limits, NO_METER, PER_AGENT, kind};
use agentguard_common::selftest::kind as kind_of_case;
use aya::programs::SchedClassifier;
use selftest::{Kernel, run, skipped};

/// Far more than a test takes: time passes only where the test says so.
const HOUR: u64 = 3_600_000_000_000;

/// The kernel, with a policy: any one.
fn load() -> Kernel {
    let mut kernel = Kernel::load();
    let text = "version: 1\nname: any\n";
    let policy = load_text("any.yaml".as_ref(), text, &LoadOptions::default()).unwrap();
    let table = policy.compile(1).unwrap().bytes;
    kernel.guard.install(1, &table).unwrap();
    kernel.case().kind = kind_of_case::CHARGE;
    kernel
}

/// What is charged from now on.
fn charge_this(kernel: &mut Kernel, kinds: u32, marks: u32, amount: u32) {
    let case = kernel.case();
    (case.access, case.args_len, case.count) = (kinds, marks, amount);
    kernel.set();
}

fn limits(offset: u64, charges: &[Charge]) -> Limits {
    let mut all = [Charge::default(); PER_AGENT];
    all[..charges.len()].copy_from_slice(charges);
    Limits {
        offset,
        count: charges.len() as u32,
        reserved: 0,
        charges: all,
    }
}

/// The reference: everything that was ever granted, with the number of its part.
#[derive(Default)]
struct Reference {
    granted: Vec<(u64, u64)>,
}

impl Reference {
    fn spent(&self, charge: &Charge, part: u64) -> u64 {
        let counts = |at: u64| {
            if charge.sliding != 0 {
                part - at < LIVE
            } else {
                at == part
            }
        };
        let granted = self.granted.iter().filter(|(at, _)| counts(*at));
        granted.map(|(_, amount)| amount).sum()
    }

    fn room(&self, charge: &Charge, part: u64, amount: u64) -> bool {
        let ceiling = if charge.sliding != 0 || part == charge.ceiling_window {
            charge.ceiling
        } else {
            charge.chunk
        };
        self.spent(charge, part) + amount <= charge.limit.min(ceiling)
    }
}

/// A budget of some kind, with a meter of its own.
fn any_charge(random: &mut Random, meter: u32, epoch: u64, part: impl Fn(u64) -> u64) -> Charge {
    let sliding = random.below(2) as u32;
    let length = match random.below(4) {
        0 if sliding == 0 => 0,
        _ => HOUR * (1 + random.below(3) as u64),
    };
    let limit = random.below(60) as u64;
    let ceiling = match random.below(3) {
        0 => random.below(60) as u64,
        _ => u64::MAX,
    };
    let chunk = match random.below(3) {
        0 => random.below(20) as u64,
        _ => u64::MAX,
    };
    Charge {
        kinds: 1 << random.below(4) | 1 << random.below(4),
        meter,
        marks: if random.below(3) == 0 {
            0x1000 << random.below(4)
        } else {
            0
        },
        sliding,
        length,
        limit,
        ceiling,
        ceiling_window: part(length),
        chunk,
        epoch,
        base: random.below(3) as u64 * 5,
        base_window: part(length),
    }
}

#[test]
fn the_kernel_charges_as_a_list_of_all_charges_says() {
    if skipped() {
        return;
    }
    let mut kernel = load();
    let (mut granted, mut refused) = (0u32, 0u32);
    for seed in 0..120u64 {
        let mut random = Random::new(seed);
        // In the middle of an hour, and parts are whole hours: the test takes less than the rest of it.
        let start = (1_000_000 + seed) * HOUR + HOUR / 2;
        let offset_at = |now: u64| now - boot_time().unwrap();
        let mut now = start;
        let count = 1 + random.below(PER_AGENT);
        let charges: Vec<Charge> = (0..count)
            .map(|index| {
                let part = |length| start.checked_div(length).unwrap_or(0);
                any_charge(&mut random, index as u32, seed + 1, part)
            })
            .collect();
        let mut references: Vec<Reference> = charges
            .iter()
            .map(|charge| Reference {
                granted: vec![(charge.base_window, charge.base)],
            })
            .collect();
        kernel
            .guard
            .set_limits(1, &limits(offset_at(now), &charges))
            .unwrap();
        for _ in 0..150 {
            if random.below(8) == 0 {
                now += HOUR * (1u64 << random.below(9));
                kernel
                    .guard
                    .set_limits(1, &limits(offset_at(now), &charges))
                    .unwrap();
            }
            let (kinds, marks) = (1 << random.below(4), (random.below(16) as u32) << 12);
            let amount = 1 + random.below(4) as u64;
            charge_this(&mut kernel, kinds, marks, amount as u32);
            let part = |charge: &Charge| now.checked_div(charge.length).unwrap_or(0);
            let concerned: Vec<usize> = (0..count)
                .filter(|index| {
                    let charge = &charges[*index];
                    charge.kinds & kinds != 0 && (charge.marks == 0 || charge.marks & marks != 0)
                })
                .collect();
            let short = concerned.iter().find(|index| {
                !references[**index].room(&charges[**index], part(&charges[**index]), amount)
            });
            let expected = short.map_or(0, |index| *index as u32 + 1);
            assert_eq!(kernel.run(), expected, "seed {seed}");
            if short.is_none() {
                for index in &concerned {
                    references[*index]
                        .granted
                        .push((part(&charges[*index]), amount));
                }
                granted += 1;
            } else {
                refused += 1;
            }
        }
        // What the daemon reads is what was granted.
        for (index, charge) in charges.iter().enumerate() {
            let meter = kernel.guard.meter(index as u32).unwrap();
            if meter.epoch == charge.epoch {
                let spent = references[index].spent(charge, meter.window);
                assert_eq!(meter.sum, spent, "seed {seed}, meter {index}");
                if charge.sliding != 0 {
                    assert_eq!(meter.cells.iter().sum::<u64>(), spent, "seed {seed}");
                }
            }
        }
    }
    println!("{granted} granted, {refused} refused, 0 differences");
    assert!(granted > 5_000 && refused > 5_000, "{granted} {refused}");
}

#[test]
fn without_limits_nothing_is_granted() {
    if skipped() {
        return;
    }
    let mut kernel = load();
    charge_this(&mut kernel, kind::OPENS, 0, 1);
    assert_eq!(kernel.run(), u32::from(NO_METER) + 1);
    let offset = 0;
    kernel.guard.set_limits(1, &limits(offset, &[])).unwrap();
    assert_eq!(kernel.run(), 0);
}

/// 64 threads race for the last units, a hundred times: exactly the limit is granted, of a fixed window, a
/// sliding one, and of both together.
#[test]
fn a_race_for_the_last_unit_grants_exactly_the_limit() {
    if skipped() {
        return;
    }
    let mut kernel = load();
    let offset = 1_000_000 * HOUR + HOUR / 2 - boot_time().unwrap();
    for round in 0..100u64 {
        let limit = 1 + round % 40;
        let charge = |meter, sliding| Charge {
            kinds: kind::OPENS,
            meter,
            sliding,
            length: HOUR,
            limit,
            ceiling: u64::MAX,
            chunk: u64::MAX,
            epoch: round + 1,
            ..Charge::default()
        };
        let charges = match round % 3 {
            0 => vec![charge(0, 0)],
            1 => vec![charge(1, 1)],
            _ => vec![charge(0, 0), charge(1, 1)],
        };
        kernel
            .guard
            .set_limits(1, &limits(offset, &charges))
            .unwrap();
        charge_this(&mut kernel, kind::OPENS, 0, 1);
        let (granted, start) = (AtomicU64::new(0), Barrier::new(64));
        let program: &SchedClassifier = kernel.program();
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..2 {
                        if run(program) == 0 {
                            granted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(granted.into_inner(), limit, "round {round}");
        for charge in &charges {
            assert_eq!(kernel.guard.meter(charge.meter).unwrap().sum, limit);
        }
    }
}

//! The classifier `selftest` in this machine's kernel, which runs the code of the hooks under `BPF_PROG_TEST_RUN`:
//! that needs root, but no BPF LSM.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::large_stack_arrays,
    clippy::missing_panics_doc,
    dead_code,
    missing_docs,
    reason = "tests may panic, and not each of them needs everything"
)]

use std::time::Duration;

use agentguard::kernel::{Guard, GuardOptions};
use agentguard_common::selftest::Case;
use agentguard_common::table::MAX_COMMAND;
use aya::maps::{Array, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Input(Case);

// SAFETY: `Case` is `repr(C)` and has no padding.
unsafe impl aya::Pod for Input {}

/// The program and its input.
pub struct Kernel {
    pub guard: Guard,
    input: Array<MapData, Input>,
    case: Box<Input>,
}

impl Kernel {
    pub fn load() -> Self {
        let mut guard = Guard::load_object(&GuardOptions::default()).unwrap();
        let input = guard.object().take_map("SELFTEST").unwrap();
        let case = Case {
            kind: 0,
            access: 0,
            path_len: 0,
            args_len: 0,
            count: 0,
            reserved: 0,
            bytes: [0; 4096 + MAX_COMMAND],
        };
        let mut kernel = Self {
            guard,
            input: Array::try_from(input).unwrap(),
            case: Box::new(Input(case)),
        };
        kernel.program().load().unwrap();
        kernel
    }

    pub fn program(&mut self) -> &mut SchedClassifier {
        let program = self.guard.object().program_mut("selftest").unwrap();
        program.try_into().unwrap()
    }

    /// The case that is handed over next.
    pub fn case(&mut self) -> &mut Case {
        &mut self.case.0
    }

    /// Hands the case over.
    pub fn set(&mut self) {
        self.input.set(0, *self.case, 0).unwrap();
    }

    /// What the program says to the case that it was handed last.
    pub fn run(&mut self) -> u32 {
        run(self.program())
    }

    /// How long that takes, on average of so many runs.
    pub fn time(&mut self, repeat: u32) -> Duration {
        let mut options = TestRunOptions::new();
        options.data_in = Some(&[0u8; 64]);
        options.repeat = repeat;
        self.program().test_run(options).unwrap().duration
    }
}

/// See [`Kernel::run`].
pub fn run(program: &SchedClassifier) -> u32 {
    let mut options = TestRunOptions::new();
    options.data_in = Some(&[0u8; 64]);
    program.test_run(options).unwrap().return_value
}

/// Says why a test that needs the kernel does not run.
pub fn skipped() -> bool {
    let skipped = !nix::unistd::geteuid().is_root();
    if skipped {
        eprintln!("skipped: loading a kernel program needs root; run the tests with sudo");
    }
    skipped
}

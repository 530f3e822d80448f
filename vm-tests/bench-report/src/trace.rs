//! One operation, instruction by instruction: what part of it is AgentGuard's, and of that what are its programs, what
//! they call, and what the kernel does around them.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::number::grouped;

/// Where the traced process has one instruction, which returns: it calls it before each operation and after the last.
pub const MARK: u64 = 0x10_0000_0000;
/// Operations before the one that is traced.
pub const WARM_UP: u32 = 20;
/// Operations that the traced process does.
pub const TIMES: u32 = WARM_UP + 20;
/// Where the kernel begins.
const KERNEL: u64 = 1 << 63;
/// Functions that are listed for each hook.
const FUNCTIONS: usize = 12;

/// Functions of the kernel and its programs, by address.
pub struct Symbols<'a>(Vec<(u64, &'a str)>);

impl<'a> Symbols<'a> {
    /// From the lines of `/proc/kallsyms`.
    pub fn parse(text: &'a str) -> Self {
        let mut all: Vec<(u64, &str)> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
                (is_code && address != 0).then_some((address, words.next()?))
            })
            .collect();
        all.sort_unstable();
        Self(all)
    }

    /// Whose an instruction is.
    fn name(&self, address: u64) -> &'a str {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        after.checked_sub(1).map_or("?", |index| self.0[index].1)
    }
}

/// An instruction that is executed next: where it is, and where the stack is.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its address.
    pub address: u64,
    /// The stack pointer before it.
    pub stack: u64,
}

/// One way into a program of AgentGuard's.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The function from which the kernel goes there.
    pub from: &'a str,
    /// Instructions in programs.
    pub programs: u64,
    /// In what they call.
    pub called: u64,
    /// Of the kernel's, before and after.
    pub around: u64,
    /// By function, in the order in which they first appear.
    pub functions: Vec<(&'a str, u64)>,
}

impl Part<'_> {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.programs + self.called + self.around
    }
}

/// Whether the kernel goes from here to a program.
fn is_way(name: &str) -> bool {
    name.starts_with("bpf_trampoline_") || name.starts_with("__cgroup_bpf_run_filter")
}

fn is_program(name: &str) -> bool {
    name.starts_with("bpf_prog_")
}

/// The parts that are AgentGuard's: each from the first instruction of a way to its return, which is where the stack is
/// higher than it was there.
pub fn parts<'a>(steps: &[Step], symbols: &Symbols<'a>) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut before = "?";
    let mut at = 0;
    while let Some(first) = steps.get(at) {
        let name = symbols.name(first.address);
        if !is_way(name) {
            before = name;
            at += 1;
            continue;
        }
        let rest = &steps[at..];
        let len = rest.iter().position(|step| step.stack > first.stack);
        let names: Vec<&str> = rest[..len.unwrap_or(rest.len())]
            .iter()
            .map(|step| symbols.name(step.address))
            .collect();
        at += names.len();
        // A way without a program is not ours.
        if let Some(part) = part(before, &names) {
            parts.push(part);
        }
    }
    parts
}

fn part<'a>(from: &'a str, names: &[&'a str]) -> Option<Part<'a>> {
    let first = names.iter().position(|name| is_program(name))?;
    let last = names.iter().rposition(|name| is_program(name))?;
    let programs = names.iter().filter(|name| is_program(name)).count() as u64;
    let mut functions: Vec<(&str, u64)> = Vec::new();
    let mut places = HashMap::new();
    for name in names {
        let place = *places.entry(name).or_insert(functions.len());
        if place == functions.len() {
            functions.push((name, 0));
        }
        functions[place].1 += 1;
    }
    Some(Part {
        from: from.strip_prefix("bpf_lsm_").unwrap_or(from),
        programs,
        called: (last + 1 - first) as u64 - programs,
        around: (names.len() - (last + 1 - first)) as u64,
        functions,
    })
}

/// The whole, as people read it.
pub fn text(steps: &[Step], symbols: &Symbols<'_>) -> String {
    let parts = parts(steps, symbols);
    let in_kernel = steps.iter().filter(|step| step.address >= KERNEL).count() as u64;
    let sum: u64 = parts.iter().map(Part::sum).sum();
    let mut text = format!(
        "{} instructions of the kernel, {} of the process; of the kernel's {} are on the way to AgentGuard and back\n",
        number(in_kernel),
        number(steps.len() as u64 - in_kernel),
        number(sum)
    );
    for part in &parts {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{}: {} (programs {}, what they call {}, around them {})",
            part.from,
            number(part.sum()),
            number(part.programs),
            number(part.called),
            number(part.around)
        );
        let mut most = part.functions.clone();
        most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (name, count) in most.iter().take(FUNCTIONS) {
            let _ = writeln!(text, "{count:>8}  {name}");
        }
        let others = most.len().saturating_sub(FUNCTIONS);
        if others > 0 {
            let rest: u64 = most.iter().skip(FUNCTIONS).map(|(_, count)| count).sum();
            let _ = writeln!(text, "{rest:>8}  in {others} others");
        }
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 instructions")]
fn number(count: u64) -> String {
    grouped(count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "\
        ffffffff81000000 T security_file_open\n\
        ffffffff81000100 T bpf_lsm_file_open\n\
        ffffffff81000200 t __bpf_prog_enter\n\
        ffffffff81000300 T bpf_probe_read_kernel\n\
        ffffffff81000380 D data_is_no_code\n\
        ffffffffc0000000 t bpf_trampoline_1\t[bpf]\n\
        ffffffffc0001000 t bpf_prog_0123_file_open\t[bpf]\n\
        0000000000000000 T hidden\n";

    fn steps(of: &[(u64, u64)]) -> Vec<Step> {
        let step = |&(address, stack)| Step { address, stack };
        of.iter().map(step).collect()
    }

    #[test]
    fn a_part_ends_where_its_way_returns() {
        let symbols = Symbols::parse(SYMBOLS);
        let steps = steps(&[
            (0x40_0000, 0x7000),
            (0xffff_ffff_8100_0000, 90),
            (0xffff_ffff_8100_0100, 80),
            (0xffff_ffff_c000_0000, 72),
            (0xffff_ffff_8100_0204, 64),
            (0xffff_ffff_c000_0008, 72),
            (0xffff_ffff_c000_1000, 64),
            (0xffff_ffff_8100_0300, 56),
            (0xffff_ffff_8100_0390, 56),
            (0xffff_ffff_c000_1004, 64),
            (0xffff_ffff_c000_0010, 72),
            (0xffff_ffff_8100_0104, 80),
            (0xffff_ffff_8100_0004, 90),
        ]);
        let found = parts(&steps, &symbols);
        assert_eq!(found.len(), 1);
        let part = &found[0];
        assert_eq!(part.from, "file_open");
        assert_eq!((part.programs, part.called, part.around), (2, 2, 4));
        assert_eq!(part.sum(), 8);
        assert_eq!(
            part.functions,
            [
                ("bpf_trampoline_1", 3),
                ("__bpf_prog_enter", 1),
                ("bpf_prog_0123_file_open", 2),
                ("bpf_probe_read_kernel", 2),
            ]
        );
        let text = text(&steps, &symbols);
        assert!(
            text.starts_with("12 instructions of the kernel, 1 of the process; of the kernel's 8 ")
        );
        assert!(text.contains("file_open: 8 (programs 2, what they call 2, around them 4)"));
    }

    #[test]
    fn a_way_without_a_program_is_not_ours() {
        let symbols = Symbols::parse(SYMBOLS);
        let steps = steps(&[(0xffff_ffff_c000_0000, 72), (0xffff_ffff_8100_0104, 80)]);
        assert_eq!(parts(&steps, &symbols), []);
    }
}

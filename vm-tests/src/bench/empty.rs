//! Programs that do nothing, or next to nothing, at the same places of the kernel as those of `AgentGuard`: what the
//! kernel itself takes for calling a program there, which no program can be without. They never judge anything.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

const PROGRAM_LOAD: i32 = 5;
const PROGRAM_BY_NUMBER: i32 = 13;
const INFORMATION: i32 = 15;
const ATTACH: i32 = 17;
const LINK: i32 = 28;
const LINK_BY_NUMBER: i32 = 30;
const NEXT_LINK: i32 = 31;
/// Kinds of programs: those that trace, and those at the hooks of security modules.
const TRACING: u32 = 26;
const LSM: u32 = 29;
/// Those for the packets of a cgroup, with their ways to be attached: what it receives, what it sends.
const PACKETS: u32 = 8;
const WAYS_OF_PACKETS: [u32; 2] = [0, 1];
/// Kinds of links: to a tracepoint, and through a trampoline.
const TO_TRACEPOINT: u32 = 1;
const BY_TRAMPOLINE: u32 = 2;
/// Ways to be attached.
const AT_TRACEPOINT: u32 = 23;
const AT_LSM_HOOK: u32 = 27;
/// `r0 = 0; exit`.
pub const NOTHING: &[u64] = &[0xb7, 0x95];
/// The same behind `bpf_get_current_task_btf()`: the least that a program does which tells processes apart.
pub const WHO: &[u64] = &[158 << 32 | 0x85, 0xb7, 0x95];
/// `r0 = 1; exit`: the packet goes on.
const GO_ON: &[u64] = &[1 << 32 | 0xb7, 0x95];
/// Words of `struct bpf_link_info` and `struct bpf_prog_info` up to what is read of them, and where that is.
const LINK_WORDS: usize = 4;
const LINK_PROGRAM: usize = 2;
const PROGRAM_WORDS: usize = 58;
const PROGRAM_PLACE: usize = 56;

/// A place of the kernel at which a program can be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Kind of the program.
    kind: u32,
    /// The hook or tracepoint, by its number in the kernel's type information.
    function: u32,
}

impl Place {
    /// The place of a link between a program and the kernel, if programs there are called by whatever
    /// a process of the machine does.
    fn of(link: u32, kind: u32, function: u32) -> Option<Self> {
        let known = matches!(
            (link, kind),
            (BY_TRAMPOLINE, LSM) | (TO_TRACEPOINT, TRACING)
        );
        (known && function != 0).then_some(Self { kind, function })
    }

    fn way(self) -> u32 {
        if self.kind == LSM {
            AT_LSM_HOOK
        } else {
            AT_TRACEPOINT
        }
    }
}

/// `union bpf_attr` for loading a program, up to the last member that is set.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    way: u32,
    types: [u64; 4],
    line_count: u32,
    function: u32,
}

/// `union bpf_attr` for everything else: words, of which two may be an address.
type Words = [u32; 4];

/// Places at which programs are attached at this time, each once: those of `AgentGuard` while it runs, for the
/// guest has no others.
pub fn places() -> Result<Vec<Place>> {
    let mut places = Vec::new();
    let mut number = 0;
    while let Some(link) = next_link(number)? {
        number = link;
        let link: [u32; LINK_WORDS] = information(&opened(LINK_BY_NUMBER, link)?)?;
        let program = opened(PROGRAM_BY_NUMBER, link[LINK_PROGRAM])?;
        let program: [u32; PROGRAM_WORDS] = information(&program)?;
        places.extend(Place::of(link[0], program[0], program[PROGRAM_PLACE]));
    }
    places.sort_unstable();
    places.dedup();
    ensure!(!places.is_empty(), "no program is attached to any hook");
    Ok(places)
}

/// Programs that do nothing; they are gone when this is dropped.
pub struct Attached(
    /// They hold what they are attached to.
    Vec<OwnedFd>,
);

impl Attached {
    /// Attaches one to each place.
    pub fn to(places: &[Place], instructions: &[u64]) -> Result<Self> {
        let attached = places.iter().map(|place| {
            attached(*place, instructions)
                .with_context(|| format!("failed to attach a program to {place:?}"))
        });
        attached.collect::<Result<_>>().map(Self)
    }

    /// Attaches others, which let packets go on, to the packets of a cgroup, where those of `AgentGuard` count.
    pub fn with_packets(mut self, cgroup: &Path) -> Result<Self> {
        let folder =
            File::open(cgroup).with_context(|| format!("failed to open {}", cgroup.display()))?;
        for way in WAYS_OF_PACKETS {
            let link = loaded(PACKETS, way, 0, GO_ON).and_then(|program| {
                let [program, cgroup] =
                    [program.as_raw_fd(), folder.as_raw_fd()].map(i32::cast_unsigned);
                let mut link: Words = [program, cgroup, way, 0];
                descriptor(bpf(LINK, &mut link)?)
            });
            self.0
                .push(link.context("failed to attach a program to packets")?);
        }
        Ok(self)
    }
}

fn loaded(kind: u32, way: u32, function: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut load = Load {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        way,
        function,
        ..Load::default()
    };
    descriptor(bpf(PROGRAM_LOAD, &mut load)?)
}

/// The link keeps its program.
fn attached(place: Place, instructions: &[u64]) -> io::Result<OwnedFd> {
    let program = loaded(place.kind, place.way(), place.function, instructions)?;
    // Without a name: the program knows its place.
    let mut link: Words = [0, 0, program.as_raw_fd().cast_unsigned(), 0];
    descriptor(bpf(ATTACH, &mut link)?)
}

/// The link with the next number after this one.
fn next_link(number: u32) -> io::Result<Option<u32>> {
    let mut words: Words = [number, 0, 0, 0];
    match bpf(NEXT_LINK, &mut words) {
        Ok(_) => Ok(Some(words[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn opened(command: i32, number: u32) -> io::Result<OwnedFd> {
    let mut words: Words = [number, 0, 0, 0];
    descriptor(bpf(command, &mut words)?)
}

/// The first words of what the kernel tells of a link or a program.
fn information<const WORDS: usize>(of: &OwnedFd) -> io::Result<[u32; WORDS]> {
    #[repr(C, align(8))]
    struct Room<const WORDS: usize>([u32; WORDS]);
    #[repr(C)]
    struct Question {
        of: i32,
        length: u32,
        answer: u64,
    }
    let mut room = Room([0; WORDS]);
    let mut question = Question {
        of: of.as_raw_fd(),
        length: size_of_val(&room) as u32,
        answer: (&raw mut room) as u64,
    };
    bpf(INFORMATION, &mut question)?;
    Ok(room.0)
}

fn bpf<A>(command: i32, attributes: &mut A) -> io::Result<i64> {
    // SAFETY: attributes of the length that is passed; what they point to lives as long as the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<A>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

fn descriptor(number: i64) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// As `include/uapi/linux/bpf.h` has them.
    #[test]
    fn attributes_lie_where_the_kernel_reads_them() {
        assert_eq!(offset_of!(Load, way), 68);
        assert_eq!(offset_of!(Load, function), 108);
        assert_eq!(size_of::<Load>(), 112);
    }

    #[test]
    fn only_programs_that_everybody_calls_have_a_place() {
        let hook = Place::of(BY_TRAMPOLINE, LSM, 7).expect("a hook");
        assert_eq!(hook.way(), AT_LSM_HOOK);
        let tracepoint = Place::of(TO_TRACEPOINT, TRACING, 7).expect("a tracepoint");
        assert_eq!(tracepoint.way(), AT_TRACEPOINT);
        let (cgroup, socket) = (3, 8);
        assert_eq!(Place::of(cgroup, socket, 0), None);
        assert_eq!(Place::of(BY_TRAMPOLINE, TRACING, 7), None);
        assert_eq!(Place::of(BY_TRAMPOLINE, LSM, 0), None);
    }
}

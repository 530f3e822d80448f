//! The system calls that aya does not offer: making, filling and removing inner maps, pinning what aya has
//! no type for, and asking what a map looks like.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// Programs can read the value and never write it.
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// `union bpf_attr` for `BPF_MAP_CREATE`, up to the last field that is set here.
#[repr(C)]
#[derive(Default)]
struct CreateMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}

/// `union bpf_attr` for `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadBtf {
    btf: u64,
    log_buf: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    /// Written out, so that it is zero: Linux 6.1 refuses anything else behind the last field that it knows.
    reserved: u32,
}

/// Calls `bpf` for a new descriptor.
fn descriptor<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a live `bpf_attr` of the size that is passed.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Type information with three types: 1 is `u32`, 2 an array of so many of it, 3 a struct of that.
fn table_types(words: u32) -> io::Result<OwnedFd> {
    const TYPES: u32 = 16 + 24 + 24;
    const STRINGS: &[u8] = b"\0u32\0table\0";
    let mut blob = Vec::new();
    for word in [0x0001_eb9f, 24, 0, TYPES, TYPES, STRINGS.len() as u32] {
        blob.extend(u32::to_ne_bytes(word));
    }
    // int: name, kind 1, size 4, 32 bits. array: no name, kind 3, size 0, element, index, length.
    // struct: name, kind 4 with one member, size; name, type and offset of the member.
    for word in [
        1,
        1 << 24,
        4,
        32,
        0,
        3 << 24,
        0,
        1,
        1,
        words,
        5,
        4 << 24 | 1,
        words * 4,
        5,
        2,
        0,
    ] {
        blob.extend(u32::to_ne_bytes(word));
    }
    blob.extend(STRINGS);
    let mut attr = LoadBtf {
        btf: blob.as_ptr().addr() as u64,
        btf_size: blob.len() as u32,
        ..LoadBtf::default()
    };
    descriptor(BPF_BTF_LOAD, &mut attr)
}

/// Makes the array map of one value that holds a policy.
///
/// It carries type information, of a struct, because the template in the object does: Linux 6.1 tells
/// maps with and without it apart, and refuses the one for the other.
pub fn create_table_map(value_size: u32) -> io::Result<OwnedFd> {
    let types = table_types(value_size / 4)?;
    let mut attr = CreateMap {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: 1,
        map_flags: BPF_F_RDONLY_PROG,
        btf_fd: types.as_raw_fd().cast_unsigned(),
        btf_key_type_id: 1,
        btf_value_type_id: 3,
        ..CreateMap::default()
    };
    attr.map_name[..6].copy_from_slice(b"policy");
    descriptor(BPF_MAP_CREATE, &mut attr)
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

/// The head of `union bpf_attr` for operations on elements.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: u32,
    value: *const u8,
) -> io::Result<()> {
    element_by(command, map, key, value, 0)
}

fn element_by(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: u32,
    value: *const u8,
    flags: u64,
) -> io::Result<()> {
    let mut attr = Element {
        map_fd: map.as_raw_fd().cast_unsigned(),
        key: (&raw const key).addr() as u64,
        value: value.addr() as u64,
        flags,
        ..Element::default()
    };
    call(command, &mut attr)
}

/// Calls `bpf` for nothing but its effect. Whatever `attr` points to must outlive the call.
fn call<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is a live `bpf_attr` of the size that is passed; its pointers are the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads an element of an array.
pub fn look_up<T>(map: BorrowedFd<'_>, key: u32, value: &mut T) -> io::Result<()>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes,
{
    let value = std::ptr::from_mut(value).cast::<u8>().cast_const();
    element(BPF_MAP_LOOKUP_ELEM, map, key, value)
}

/// `BPF_F_LOCK`: with the lock in the value held.
const BPF_F_LOCK: u64 = 4;

/// The same for a value with a lock in it, which nobody changes meanwhile.
pub fn look_up_locked<T>(map: BorrowedFd<'_>, key: u32, value: &mut T) -> io::Result<()>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes,
{
    let value = std::ptr::from_mut(value).cast::<u8>().cast_const();
    element_by(BPF_MAP_LOOKUP_ELEM, map, key, value, BPF_F_LOCK)
}

/// Writes an element of an array.
pub fn update<T: zerocopy::IntoBytes>(map: BorrowedFd<'_>, key: u32, value: &T) -> io::Result<()> {
    element(
        BPF_MAP_UPDATE_ELEM,
        map,
        key,
        std::ptr::from_ref(value).cast(),
    )
}

/// Makes an array of one value for user space alone.
pub fn create_array(name: &str, value_size: u32) -> io::Result<OwnedFd> {
    let mut attr = CreateMap {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: 1,
        ..CreateMap::default()
    };
    let len = name.len().min(15);
    attr.map_name[..len].copy_from_slice(&name.as_bytes()[..len]);
    descriptor(BPF_MAP_CREATE, &mut attr)
}

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// `union bpf_attr` for pins.
#[repr(C)]
#[derive(Default)]
struct PinObject {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Gives a map, program or link a name in bpffs; it lives for as long as that is there.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = PinObject {
        path: path.as_ptr().addr() as u64,
        fd: object.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    call(BPF_OBJ_PIN, &mut attr)
}

/// Opens what is pinned at a path.
pub fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = PinObject {
        path: path.as_ptr().addr() as u64,
        ..PinObject::default()
    };
    descriptor(BPF_OBJ_GET, &mut attr)
}

/// `union bpf_attr` for information about an object.
#[repr(C)]
struct GetInfo {
    fd: u32,
    len: u32,
    info: u64,
}

/// What a map looks like: the head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapShape {
    /// `BPF_MAP_TYPE_…`.
    pub map_type: u32,
    id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most elements.
    pub max_entries: u32,
    /// `BPF_F_…`.
    pub map_flags: u32,
}

/// Asks the kernel what a map looks like.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let mut shape = MapShape::default();
    let mut attr = GetInfo {
        fd: map.as_raw_fd().cast_unsigned(),
        len: size_of::<MapShape>() as u32,
        info: (&raw mut shape).addr() as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(shape)
}

/// Reads from task storage what the process behind a pidfd has there. False: nothing.
pub fn look_up_task<T>(
    map: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    value: &mut T,
) -> io::Result<bool>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes,
{
    let key = pidfd.as_raw_fd().cast_unsigned();
    match element(
        BPF_MAP_LOOKUP_ELEM,
        map,
        key,
        std::ptr::from_mut(value).cast::<u8>().cast_const(),
    ) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a table into the one value of a map, with zeroes behind it.
pub fn fill_table_map(map: &OwnedFd, value_size: usize, table: &[u8]) -> io::Result<()> {
    if table.len() > value_size {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut value = vec![0u8; value_size];
    value[..table.len()].copy_from_slice(table);
    element(BPF_MAP_UPDATE_ELEM, map.as_fd(), 0, value.as_ptr())
}

/// Removes an inner map from a map of maps; fine if there is none.
pub fn delete(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    match element(BPF_MAP_DELETE_ELEM, map, key, std::ptr::null()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: i32,
    program: i32,
    kind: u32,
    flags: u32,
    replaced: u32,
    /// Written out, so that it is zero.
    reserved: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: i32,
    kind: u32,
    how: u32,
    flags: u32,
    programs: u64,
    count: u32,
    /// Written out, so that it is zero.
    reserved: u32,
}

/// A program that is attached to a cgroup.
pub struct Attached {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The program.
    pub descriptor: OwnedFd,
}

const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_QUERY: libc::c_long = 16;
/// Beside those of others, and of folders above and below.
const BPF_F_ALLOW_MULTI: u32 = 2;
/// In the place of another one.
const BPF_F_REPLACE: u32 = 4;
/// Most programs of one kind on one cgroup.
const MAX_PROGRAMS: usize = 64;

/// Attaches a program to a cgroup, perhaps into the place of an earlier one; it stays for as long as the cgroup does.
pub fn attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    earlier: Option<BorrowedFd<'_>>,
    kind: u32,
) -> io::Result<()> {
    call(
        BPF_PROG_ATTACH,
        &mut Attach {
            target: cgroup.as_raw_fd(),
            program: program.as_raw_fd(),
            kind,
            flags: BPF_F_ALLOW_MULTI | earlier.map_or(0, |_| BPF_F_REPLACE),
            replaced: earlier.map_or(0, |it| it.as_raw_fd().cast_unsigned()),
            ..Attach::default()
        },
    )
}

/// Takes a program off a cgroup.
pub fn detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    call(
        BPF_PROG_DETACH,
        &mut Attach {
            target: cgroup.as_raw_fd(),
            program: program.as_raw_fd(),
            kind,
            ..Attach::default()
        },
    )
}

/// The programs of one kind that are attached to a cgroup itself.
pub fn attached(cgroup: BorrowedFd<'_>, kind: u32) -> io::Result<Vec<Attached>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut query = Query {
        target: cgroup.as_raw_fd(),
        kind,
        programs: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        ..Query::default()
    };
    call(BPF_PROG_QUERY, &mut query)?;
    let count = (query.count as usize).min(MAX_PROGRAMS);
    let ids = &ids[..count];
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let found = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| ids.contains(&program.id()))
        .filter_map(|program| {
            Some(Attached {
                id: program.id(),
                name: program.name_as_str()?.to_owned(),
                descriptor: program.fd().ok()?.as_fd().try_clone_to_owned().ok()?,
            })
        })
        .collect();
    Ok(found)
}

/// `CLOCK_BOOTTIME` in nanoseconds.
pub fn boot_time() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    u64::try_from(std::time::Duration::from(now).as_nanos()).map_err(io::Error::other)
}

/// Gives memory back to the kernel that was freed and is still held: loading programs and compiling policies take several
/// times what the daemon needs afterwards. It takes some milliseconds after much was freed.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// From now on, memory that was freed is mostly given back when it is: large blocks are mappings of their own, and
/// neither they nor the ends of heaps are kept, of which there are two and not eight for each processor. (Otherwise the
/// allocator takes the freeing of one large block for a sign that large blocks are to be kept, up to 64 MiB in each heap.)
pub fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers; the limits are read by the allocator only.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
    }
}

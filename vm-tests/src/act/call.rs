//! System calls by number, for what no crate wraps, and memory that a test may place where it needs
//! it. The only unsafe code of the tests; it must never be used by the machinery around the acts.

use std::arch::asm;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// One argument of a system call.
pub enum Arg<'a> {
    /// A number.
    Number(i64),
    /// Bytes that the kernel reads.
    In(&'a [u8]),
    /// Bytes that the kernel writes.
    Out(&'a mut [u8]),
}

macro_rules! numbers {
    ($($kind:ty),+) => { $(
        impl From<$kind> for Arg<'_> {
            fn from(number: $kind) -> Self {
                Self::Number(i64::from(number))
            }
        }
    )+ };
}
numbers!(i32, u32, i64);

impl From<usize> for Arg<'_> {
    fn from(number: usize) -> Self {
        Self::Number((number as u64).cast_signed())
    }
}

impl From<BorrowedFd<'_>> for Arg<'_> {
    fn from(fd: BorrowedFd<'_>) -> Self {
        Self::Number(i64::from(fd.as_raw_fd()))
    }
}

impl<'a> From<&'a CStr> for Arg<'a> {
    fn from(text: &'a CStr) -> Self {
        Self::In(text.to_bytes_with_nul())
    }
}

impl<'a> From<&'a CString> for Arg<'a> {
    fn from(text: &'a CString) -> Self {
        Self::In(text.as_bytes_with_nul())
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::In(bytes)
    }
}

impl<'a> From<&'a mut [u8]> for Arg<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::Out(bytes)
    }
}

/// Calls the kernel. Used through [`sys!`].
pub fn call(number: i64, arguments: &mut [Arg<'_>]) -> io::Result<i64> {
    let mut words = [0i64; 6];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = match argument {
            Arg::Number(number) => *number,
            Arg::In(bytes) => (bytes.as_ptr().expose_provenance() as u64).cast_signed(),
            Arg::Out(bytes) => (bytes.as_mut_ptr().expose_provenance() as u64).cast_signed(),
        };
    }
    // SAFETY: the buffers live until the call returns; the acts give sizes that fit them, and what is
    // written elsewhere is memory that the act made for it.
    let result = unsafe {
        libc::syscall(
            number, words[0], words[1], words[2], words[3], words[4], words[5],
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// `sys!(SYS_name, argument, …)`: one system call.
macro_rules! sys {
    ($name:ident $(, $argument:expr)* $(,)?) => {
        $crate::act::call::call(libc::$name, &mut [$($crate::act::call::Arg::from($argument)),*])
    };
}
pub(crate) use sys;

/// Takes over a descriptor that a call returned.
pub fn owned(result: i64) -> io::Result<OwnedFd> {
    let number = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it to this process, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A C string.
pub fn text(word: &str) -> io::Result<CString> {
    CString::new(word).map_err(io::Error::other)
}

/// The address of bytes, for structures that hold pointers.
pub fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

/// Pages of this process; never unmapped, since the process is about to end.
pub struct Memory {
    at: usize,
    length: usize,
}

impl Memory {
    /// Maps them.
    pub fn map(
        length: usize,
        protection: i32,
        flags: i32,
        file: Option<BorrowedFd<'_>>,
        offset: i64,
    ) -> io::Result<Self> {
        let file = file.map_or(-1, |file| file.as_raw_fd());
        let at = sys!(SYS_mmap, 0, length, protection, flags, file, offset)?;
        Ok(Self {
            at: usize::try_from(at).map_err(io::Error::other)?,
            length,
        })
    }

    /// Changes their protection.
    pub fn protect(&self, protection: i32) -> io::Result<()> {
        sys!(SYS_mprotect, self.at, self.length, protection).map(drop)
    }

    /// Where they are.
    pub fn address(&self) -> u64 {
        self.at as u64
    }

    fn place(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset + length <= self.length,
            "the act left its own memory"
        );
        std::ptr::with_exposed_provenance_mut(self.at + offset)
    }

    /// Writes bytes.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.place(offset, bytes.len());
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: inside of the mapping, which is never unmapped; volatile since the kernel shares it.
            unsafe { to.add(index).write_volatile(*byte) };
        }
    }

    /// Reads four bytes.
    pub fn read(&self, offset: usize) -> u32 {
        let from = self.place(offset, 4);
        let mut bytes = [0; 4];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: as above.
            *byte = unsafe { from.add(index).read_volatile() };
        }
        u32::from_ne_bytes(bytes)
    }
}

/// A 32-bit system call, as programs of another age make them. Pointers must be below 4 GiB.
pub fn call32(number: u32, arguments: [u32; 4]) -> io::Result<u32> {
    let [b, c, d, si] = arguments.map(u64::from);
    let result: u64;
    // SAFETY: the call gets pointers into memory that the act mapped below 4 GiB; the registers that
    // the kernel may change are named.
    unsafe {
        asm!(
            "xchg {b}, rbx",
            "int 0x80",
            "xchg {b}, rbx",
            b = inout(reg) b => _,
            inlateout("rax") u64::from(number) => result,
            in("rcx") c,
            in("rdx") d,
            in("rsi") si,
            in("rdi") 0u64,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    let result = result as u32;
    if result > u32::MAX - 4096 {
        return Err(io::Error::from_raw_os_error(
            result.wrapping_neg().cast_signed(),
        ));
    }
    Ok(result)
}

//! WASI preview 1, straight on the kernel's calls: the limits on files and on
//! what is written are kept here, a module that waits says so to the host, and
//! no thread but the module's is ever needed.

// Their signatures are WASI's.
#![allow(clippy::too_many_arguments)]

use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, RawDir, SeekFrom, Timespec, Timestamps, fallocate, fstat, seek};
use wasmtime::component::ResourceTable;
use wasmtime::{Caller, Linker, Memory, Result};

use crate::files::{
    BADF, Directory, Entry, Errno, FAULT, Files, How, INVAL, NOTSUP, OVERFLOW, Outcome, Stop, errno, fdflags, filestat,
    filetype,
};
use crate::process::{Process, Which};

pub const MODULE: &str = "wasi_snapshot_preview1";

/// What the linker has.
pub const FUNCTIONS: &[&str] = &[
    "args_get",
    "args_sizes_get",
    "environ_get",
    "environ_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_get",
    "fd_prestat_dir_name",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "sched_yield",
    "random_get",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// What a store holds for the functions here.
pub struct View {
    /// Of a module's instance, once there is one.
    pub memory: Option<Memory>,
    /// The run; there is none between two.
    pub process: Option<Process>,
    pub files: Files,
    /// What a component has handles to, besides files.
    pub handles: ResourceTable,
}

impl View {
    pub fn new(process: Option<Process>, files: Files) -> View {
        // A component has use for few; each costs memory here.
        let mut handles = ResourceTable::new();
        handles.set_max_capacity(1 << 16);
        View { memory: None, process, files, handles }
    }
}

/// Gives access to the view in a store's data.
pub trait HasView: 'static {
    fn view(&mut self) -> &mut View;
}

/// The module called proc_exit.
#[derive(Debug)]
pub struct ExitStatus(pub u32);

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl std::error::Error for ExitStatus {}

/// A module's memory, by its own addresses. Every access is checked.
struct Mem<'a>(&'a mut [u8]);

impl Mem<'_> {
    fn bytes(&mut self, at: u32, len: u32) -> Result<&mut [u8], Errno> {
        let end = (at as usize).checked_add(len as usize).ok_or(FAULT)?;
        self.0.get_mut(at as usize..end).ok_or(FAULT)
    }

    /// The same, to look at only.
    fn part(&self, at: u32, len: u32) -> Result<&[u8], Errno> {
        let end = (at as usize).checked_add(len as usize).ok_or(FAULT)?;
        self.0.get(at as usize..end).ok_or(FAULT)
    }

    fn u32(&mut self, at: u32) -> Result<u32, Errno> {
        let b = self.bytes(at, 4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn put(&mut self, at: u32, v: &[u8]) -> Result<(), Errno> {
        self.bytes(at, v.len() as u32)?.copy_from_slice(v);
        Ok(())
    }

    fn put32(&mut self, at: u32, v: u32) -> Result<(), Errno> {
        self.put(at, &v.to_le_bytes())
    }

    fn put64(&mut self, at: u32, v: u64) -> Result<(), Errno> {
        self.put(at, &v.to_le_bytes())
    }

    /// The i-th of a list of (address, length).
    fn vector(&mut self, list: u32, i: u32) -> Result<(u32, u32), Errno> {
        let at = i.checked_mul(8).and_then(|o| list.checked_add(o)).ok_or(FAULT)?;
        Ok((self.u32(at)?, self.u32(at.checked_add(4).ok_or(FAULT)?)?))
    }
}

/// Runs the body of a WASI function and turns how it ended into an errno, or
/// into the end of the run.
fn call<T: HasView>(c: &mut Caller<'_, T>, body: impl FnOnce(&mut Mem<'_>, &mut View) -> Outcome<()>) -> Result<i32> {
    let memory = match c.data_mut().view().memory {
        Some(m) => m,
        // A start function runs before there is an instance to look at.
        None => match c.get_export("memory").and_then(wasmtime::Extern::into_memory) {
            Some(m) => m,
            None => return Ok(FAULT.0.into()),
        },
    };
    let (bytes, data) = memory.data_and_store_mut(c);
    match body(&mut Mem(bytes), data.view()) {
        Ok(()) => Ok(0),
        Err(Stop::Errno(e)) => Ok(e.0.into()),
        Err(Stop::End(e)) => Err(e),
    }
}

impl View {
    pub fn process(&mut self) -> Outcome<&mut Process> {
        self.process.as_mut().ok_or_else(|| Stop::End(wasmtime::Error::msg("no process runs")))
    }
}

macro_rules! define {
    ($linker:expr, $($name:literal => $function:ident ( $($arg:ident : $ty:ty),* );)*) => {
        $( $linker.func_wrap(MODULE, $name, |mut c: Caller<'_, T>, $($arg: $ty),*| -> Result<i32> {
            call(&mut c, |m, v| $function(m, v, $($arg),*))
        })?; )*
    };
}

/// Defines every function of FUNCTIONS.
pub fn add_to_linker<T: HasView>(l: &mut Linker<T>) -> Result<()> {
    define!(l,
        "args_get" => args_get(list: u32, buf: u32);
        "args_sizes_get" => args_sizes_get(count: u32, size: u32);
        "environ_get" => environ_get(list: u32, buf: u32);
        "environ_sizes_get" => environ_sizes_get(count: u32, size: u32);
        "clock_res_get" => clock_res_get(id: u32, out: u32);
        "clock_time_get" => clock_time_get(id: u32, precision: u64, out: u32);
        "fd_advise" => fd_advise(fd: u32, offset: u64, len: u64, advice: u32);
        "fd_allocate" => fd_allocate(fd: u32, offset: u64, len: u64);
        "fd_close" => fd_close(fd: u32);
        "fd_datasync" => fd_datasync(fd: u32);
        "fd_fdstat_get" => fd_fdstat_get(fd: u32, out: u32);
        "fd_fdstat_set_flags" => fd_fdstat_set_flags(fd: u32, flags: u32);
        "fd_fdstat_set_rights" => fd_fdstat_set_rights(fd: u32, base: u64, inheriting: u64);
        "fd_filestat_get" => fd_filestat_get(fd: u32, out: u32);
        "fd_filestat_set_size" => fd_filestat_set_size(fd: u32, size: u64);
        "fd_filestat_set_times" => fd_filestat_set_times(fd: u32, atim: u64, mtim: u64, flags: u32);
        "fd_pread" => fd_pread(fd: u32, iovs: u32, n: u32, offset: u64, out: u32);
        "fd_prestat_get" => fd_prestat_get(fd: u32, out: u32);
        "fd_prestat_dir_name" => fd_prestat_dir_name(fd: u32, path: u32, len: u32);
        "fd_pwrite" => fd_pwrite(fd: u32, iovs: u32, n: u32, offset: u64, out: u32);
        "fd_read" => fd_read(fd: u32, iovs: u32, n: u32, out: u32);
        "fd_readdir" => fd_readdir(fd: u32, buf: u32, len: u32, cookie: u64, out: u32);
        "fd_renumber" => fd_renumber(fd: u32, to: u32);
        "fd_seek" => fd_seek(fd: u32, offset: i64, whence: u32, out: u32);
        "fd_sync" => fd_sync(fd: u32);
        "fd_tell" => fd_tell(fd: u32, out: u32);
        "fd_write" => fd_write(fd: u32, iovs: u32, n: u32, out: u32);
        "path_create_directory" => path_create_directory(fd: u32, path: u32, len: u32);
        "path_filestat_get" => path_filestat_get(fd: u32, flags: u32, path: u32, len: u32, out: u32);
        "path_filestat_set_times" => path_filestat_set_times(
            fd: u32, flags: u32, path: u32, len: u32, atim: u64, mtim: u64, which: u32);
        "path_link" => path_link(fd: u32, flags: u32, path: u32, len: u32, to: u32, new: u32, new_len: u32);
        "path_open" => path_open(
            fd: u32, dirflags: u32, path: u32, len: u32, oflags: u32, rights: u64, inheriting: u64, flags: u32, out: u32);
        "path_readlink" => path_readlink(fd: u32, path: u32, len: u32, buf: u32, buf_len: u32, out: u32);
        "path_remove_directory" => path_remove_directory(fd: u32, path: u32, len: u32);
        "path_rename" => path_rename(fd: u32, path: u32, len: u32, to: u32, new: u32, new_len: u32);
        "path_symlink" => path_symlink(target: u32, target_len: u32, fd: u32, path: u32, len: u32);
        "path_unlink_file" => path_unlink_file(fd: u32, path: u32, len: u32);
        "poll_oneoff" => poll_oneoff(subs: u32, events: u32, n: u32, out: u32);
        "proc_raise" => proc_raise(signal: u32);
        "sched_yield" => sched_yield();
        "random_get" => random_get(buf: u32, len: u32);
        "sock_accept" => sock_accept(fd: u32, flags: u32, out: u32);
        "sock_recv" => sock_recv(fd: u32, iovs: u32, n: u32, flags: u32, out: u32, roflags: u32);
        "sock_send" => sock_send(fd: u32, iovs: u32, n: u32, flags: u32, out: u32);
        "sock_shutdown" => sock_shutdown(fd: u32, how: u32);
    );
    l.func_wrap(MODULE, "proc_exit", |code: u32| -> Result<()> { Err(wasmtime::Error::new(ExitStatus(code))) })?;
    Ok(())
}

// Arguments and environment.

fn sizes(m: &mut Mem<'_>, list: &[Vec<u8>], count: u32, size: u32) -> Outcome<()> {
    let total: usize = list.iter().map(|s| s.len() + 1).sum();
    m.put32(count, list.len() as u32)?;
    m.put32(size, total as u32)?;
    Ok(())
}

/// Writes pointers at `list`, and the strings with a NUL each at `buf`.
fn strings(m: &mut Mem<'_>, strings: &[Vec<u8>], mut list: u32, mut buf: u32) -> Outcome<()> {
    for s in strings {
        m.put32(list, buf)?;
        m.put(buf, s)?;
        buf = buf.checked_add(s.len() as u32).ok_or(FAULT)?;
        m.put(buf, &[0])?;
        buf = buf.checked_add(1).ok_or(FAULT)?;
        list = list.checked_add(4).ok_or(FAULT)?;
    }
    Ok(())
}

fn args_get(m: &mut Mem<'_>, v: &mut View, list: u32, buf: u32) -> Outcome<()> {
    strings(m, &v.process()?.args, list, buf)
}

fn args_sizes_get(m: &mut Mem<'_>, v: &mut View, count: u32, size: u32) -> Outcome<()> {
    sizes(m, &v.process()?.args, count, size)
}

fn environ_get(m: &mut Mem<'_>, v: &mut View, list: u32, buf: u32) -> Outcome<()> {
    strings(m, &v.process()?.env, list, buf)
}

fn environ_sizes_get(m: &mut Mem<'_>, v: &mut View, count: u32, size: u32) -> Outcome<()> {
    sizes(m, &v.process()?.env, count, size)
}

// Clocks, randomness, and the rest that needs no file.

pub const REALTIME: u32 = 0;
pub const MONOTONIC: u32 = 1;

/// Monotonic time begins at the start of the worker: the kernel's would tell
/// how long the host has been up.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The instant at which monotonic time shows `t`, if there is one.
pub fn instant(t: u64) -> Option<Instant> {
    STARTED.checked_add(Duration::from_nanos(t))
}

/// Fixes the start of monotonic time.
pub fn start_clock() {
    LazyLock::force(&STARTED);
}

pub fn now(id: u32) -> Result<u64, Errno> {
    match id {
        REALTIME => {
            let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            Ok(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
        }
        MONOTONIC => Ok(STARTED.elapsed().as_nanos() as u64),
        _ => Err(INVAL),
    }
}

fn clock_res_get(m: &mut Mem<'_>, _: &mut View, id: u32, out: u32) -> Outcome<()> {
    let resolution = match id {
        REALTIME => 1000,
        MONOTONIC => 1,
        _ => return Err(INVAL.into()),
    };
    Ok(m.put64(out, resolution)?)
}

fn clock_time_get(m: &mut Mem<'_>, _: &mut View, id: u32, _precision: u64, out: u32) -> Outcome<()> {
    Ok(m.put64(out, now(id)?)?)
}

fn sched_yield(_: &mut Mem<'_>, _: &mut View) -> Outcome<()> {
    Ok(())
}

fn proc_raise(_: &mut Mem<'_>, _: &mut View, _signal: u32) -> Outcome<()> {
    Err(NOTSUP.into())
}

fn random_get(m: &mut Mem<'_>, _: &mut View, buf: u32, len: u32) -> Outcome<()> {
    Ok(fill_random(m.bytes(buf, len)?)?)
}

/// Fills a buffer with the kernel's random bytes.
pub fn fill_random(mut into: &mut [u8]) -> Result<(), Errno> {
    while !into.is_empty() {
        match rustix::rand::getrandom(&mut *into, rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => into = &mut into[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(errno(e)),
        }
    }
    Ok(())
}

// There are no sockets.

fn sock_accept(_: &mut Mem<'_>, v: &mut View, fd: u32, _flags: u32, _out: u32) -> Outcome<()> {
    no_socket(v, fd)
}

fn sock_recv(
    _: &mut Mem<'_>,
    v: &mut View,
    fd: u32,
    _iovs: u32,
    _n: u32,
    _flags: u32,
    _out: u32,
    _ro: u32,
) -> Outcome<()> {
    no_socket(v, fd)
}

fn sock_send(_: &mut Mem<'_>, v: &mut View, fd: u32, _iovs: u32, _n: u32, _flags: u32, _out: u32) -> Outcome<()> {
    no_socket(v, fd)
}

fn sock_shutdown(_: &mut Mem<'_>, v: &mut View, fd: u32, _how: u32) -> Outcome<()> {
    no_socket(v, fd)
}

fn no_socket(_: &mut View, _fd: u32) -> Outcome<()> {
    Err(BADF.into())
}

// Descriptors.

const RIGHT_FD_READ: u64 = 1 << 1;
const RIGHT_FD_SEEK: u64 = 1 << 2;
const RIGHT_FD_TELL: u64 = 1 << 5;
const RIGHT_FD_WRITE: u64 = 1 << 6;
const ALL_RIGHTS: u64 = (1 << 30) - 1;
/// What streams have: no seeking.
const STREAM_RIGHTS: u64 = ALL_RIGHTS & !(RIGHT_FD_SEEK | RIGHT_FD_TELL);

fn fd_close(_: &mut Mem<'_>, v: &mut View, fd: u32) -> Outcome<()> {
    Ok(v.files.close(fd)?)
}

fn fd_renumber(_: &mut Mem<'_>, v: &mut View, fd: u32, to: u32) -> Outcome<()> {
    Ok(v.files.renumber(fd, to)?)
}

fn fd_fdstat_get(m: &mut Mem<'_>, v: &mut View, fd: u32, out: u32) -> Outcome<()> {
    let mut b = [0; 24];
    let (kind, flags, rights, inheriting) = match v.files.get(fd)? {
        Entry::Stdin => (0, 0, STREAM_RIGHTS & !RIGHT_FD_WRITE, 0),
        Entry::Stdout | Entry::Stderr => (0, 0, STREAM_RIGHTS & !RIGHT_FD_READ, 0),
        Entry::Dir(_) => (3, 0, ALL_RIGHTS & !(RIGHT_FD_SEEK | RIGHT_FD_WRITE), ALL_RIGHTS),
        Entry::File(f) => (4, f.flags, f.rights | RIGHT_FD_SEEK | RIGHT_FD_TELL, 0),
    };
    b[0] = kind;
    b[2..4].copy_from_slice(&flags.to_le_bytes());
    b[8..16].copy_from_slice(&rights.to_le_bytes());
    b[16..24].copy_from_slice(&inheriting.to_le_bytes());
    Ok(m.put(out, &b)?)
}

fn fd_fdstat_set_flags(_: &mut Mem<'_>, v: &mut View, fd: u32, flags: u32) -> Outcome<()> {
    let flags = u16::try_from(flags).map_err(|_| INVAL)?;
    if flags & (fdflags::DSYNC | fdflags::RSYNC | fdflags::SYNC) != 0 {
        return Err(NOTSUP.into());
    }
    match v.files.get(fd)? {
        Entry::File(f) => {
            let mut have = rustix::fs::fcntl_getfl(&f.fd)?;
            have.set(rustix::fs::OFlags::APPEND, flags & fdflags::APPEND != 0);
            rustix::fs::fcntl_setfl(&f.fd, have)?;
            f.flags = flags;
        }
        Entry::Dir(_) => return Err(BADF.into()),
        // Streams are as they are: the flag NONBLOCK is taken and not kept,
        // as a read that returned EAGAIN would have to be polled.
        Entry::Stdin | Entry::Stdout | Entry::Stderr => {}
    }
    Ok(())
}

fn fd_fdstat_set_rights(_: &mut Mem<'_>, v: &mut View, fd: u32, _base: u64, _inheriting: u64) -> Outcome<()> {
    v.files.get(fd)?;
    Err(NOTSUP.into())
}

fn fd_filestat_get(m: &mut Mem<'_>, v: &mut View, fd: u32, out: u32) -> Outcome<()> {
    let b = match v.files.get(fd)? {
        Entry::Stdin | Entry::Stdout | Entry::Stderr => [0; 64],
        Entry::Dir(d) => filestat(&fstat(&d.fd)?),
        Entry::File(f) => filestat(&fstat(&f.fd)?),
    };
    Ok(m.put(out, &b)?)
}

fn fd_filestat_set_size(_: &mut Mem<'_>, v: &mut View, fd: u32, size: u64) -> Outcome<()> {
    Ok(v.files.set_size(fd, size)?)
}

fn fd_allocate(_: &mut Mem<'_>, v: &mut View, fd: u32, offset: u64, len: u64) -> Outcome<()> {
    let (f, counts) = v.files.file(fd)?;
    if f.read_only {
        return Err(BADF.into());
    }
    let end = offset.checked_add(len).filter(|e| *e <= i64::MAX as u64 && len > 0).ok_or(INVAL)?;
    let have = fstat(&f.fd)?.st_size as u64;
    counts.take(end.saturating_sub(have))?;
    Ok(fallocate(&f.fd, FallocateFlags::empty(), offset, len)?)
}

const SET_ATIM: u32 = 1;
const SET_ATIM_NOW: u32 = 2;
const SET_MTIM: u32 = 4;
const SET_MTIM_NOW: u32 = 8;

fn times(atim: u64, mtim: u64, flags: u32) -> Result<Timestamps, Errno> {
    let one = |ns: u64, set: bool, to_now: bool| match (set, to_now) {
        (true, true) => Err(INVAL),
        (true, false) => Ok(Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as _ }),
        (false, true) => Ok(Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW as _ }),
        (false, false) => Ok(Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT as _ }),
    };
    Ok(Timestamps {
        last_access: one(atim, flags & SET_ATIM != 0, flags & SET_ATIM_NOW != 0)?,
        last_modification: one(mtim, flags & SET_MTIM != 0, flags & SET_MTIM_NOW != 0)?,
    })
}

fn fd_filestat_set_times(_: &mut Mem<'_>, v: &mut View, fd: u32, atim: u64, mtim: u64, flags: u32) -> Outcome<()> {
    Ok(v.files.set_open_times(fd, &times(atim, mtim, flags)?)?)
}

fn fd_advise(_: &mut Mem<'_>, v: &mut View, fd: u32, offset: u64, len: u64, advice: u32) -> Outcome<()> {
    let advice = match advice {
        0 => Advice::Normal,
        1 => Advice::Sequential,
        2 => Advice::Random,
        3 => Advice::WillNeed,
        4 => Advice::DontNeed,
        5 => Advice::NoReuse,
        _ => return Err(INVAL.into()),
    };
    Ok(v.files.advise(fd, offset, len, advice)?)
}

fn fd_sync(_: &mut Mem<'_>, v: &mut View, fd: u32) -> Outcome<()> {
    Ok(v.files.sync(fd, false)?)
}

fn fd_datasync(_: &mut Mem<'_>, v: &mut View, fd: u32) -> Outcome<()> {
    Ok(v.files.sync(fd, true)?)
}

fn fd_seek(m: &mut Mem<'_>, v: &mut View, fd: u32, offset: i64, whence: u32, out: u32) -> Outcome<()> {
    let from = match whence {
        0 => SeekFrom::Start(u64::try_from(offset).map_err(|_| INVAL)?),
        1 => SeekFrom::Current(offset),
        2 => SeekFrom::End(offset),
        _ => return Err(INVAL.into()),
    };
    let (f, _) = v.files.file(fd)?;
    let at = seek(&f.fd, from)?;
    Ok(m.put64(out, at)?)
}

fn fd_tell(m: &mut Mem<'_>, v: &mut View, fd: u32, out: u32) -> Outcome<()> {
    fd_seek(m, v, fd, 0, 1, out)
}

/// Reads into the pieces until one is not filled.
fn read_pieces(
    m: &mut Mem<'_>,
    iovs: u32,
    n: u32,
    out: u32,
    mut read: impl FnMut(&mut [u8], u64) -> Outcome<usize>,
) -> Outcome<()> {
    let mut total = 0u64;
    for i in 0..n {
        let (at, len) = m.vector(iovs, i)?;
        if len == 0 {
            continue;
        }
        let got = match read(m.bytes(at, len)?, total) {
            Ok(n) => n,
            // What was read before counts.
            Err(Stop::Errno(_)) if total > 0 => break,
            Err(e) => return Err(e),
        };
        total += got as u64;
        if got < len as usize {
            break;
        }
    }
    Ok(m.put32(out, u32::try_from(total).map_err(|_| INVAL)?)?)
}

fn fd_read(m: &mut Mem<'_>, v: &mut View, fd: u32, iovs: u32, n: u32, out: u32) -> Outcome<()> {
    match v.files.get(fd)? {
        Entry::Stdin => {
            let p = v.process()?;
            read_pieces(m, iovs, n, out, |b, before| {
                // Only the first piece waits.
                if before > 0 && !p.input_ready() { Ok(0) } else { Ok(p.read(b)?) }
            })
        }
        Entry::Stdout | Entry::Stderr => Err(BADF.into()),
        Entry::Dir(_) | Entry::File(_) => {
            let (f, counts) = v.files.file(fd)?;
            read_pieces(m, iovs, n, out, |b, _| {
                let n = rustix::io::read(&f.fd, b)?;
                counts.read += n as u64;
                Ok(n)
            })
        }
    }
}

fn fd_pread(m: &mut Mem<'_>, v: &mut View, fd: u32, iovs: u32, n: u32, offset: u64, out: u32) -> Outcome<()> {
    let (f, counts) = v.files.file(fd)?;
    if offset > i64::MAX as u64 {
        return Err(INVAL.into());
    }
    read_pieces(m, iovs, n, out, |b, before| {
        let n = rustix::io::pread(&f.fd, b, offset.saturating_add(before))?;
        counts.read += n as u64;
        Ok(n)
    })
}

/// Writes the pieces until one is not taken whole.
fn write_pieces(
    m: &mut Mem<'_>,
    iovs: u32,
    n: u32,
    out: u32,
    mut write: impl FnMut(&[u8], u64) -> Outcome<usize>,
) -> Outcome<()> {
    let mut total = 0u64;
    for i in 0..n {
        let (at, len) = m.vector(iovs, i)?;
        if len == 0 {
            continue;
        }
        let done = match write(m.bytes(at, len)?, total) {
            Ok(n) => n,
            Err(Stop::Errno(_)) if total > 0 => break,
            Err(e) => return Err(e),
        };
        total += done as u64;
        if done < len as usize {
            break;
        }
    }
    Ok(m.put32(out, u32::try_from(total).map_err(|_| INVAL)?)?)
}

fn fd_write(m: &mut Mem<'_>, v: &mut View, fd: u32, iovs: u32, n: u32, out: u32) -> Outcome<()> {
    let which = match v.files.get(fd)? {
        Entry::Stdin => return Err(BADF.into()),
        Entry::Stdout => Which::Stdout,
        Entry::Stderr => Which::Stderr,
        Entry::Dir(_) | Entry::File(_) => {
            let (f, counts) = v.files.file(fd)?;
            if f.read_only {
                return Err(BADF.into());
            }
            return write_pieces(m, iovs, n, out, |b, _| {
                counts.take(b.len() as u64)?;
                Ok(rustix::io::write(&f.fd, b)?)
            });
        }
    };
    let p = v.process()?;
    write_pieces(m, iovs, n, out, |b, _| {
        p.write(which, b)?;
        Ok(b.len())
    })
}

fn fd_pwrite(m: &mut Mem<'_>, v: &mut View, fd: u32, iovs: u32, n: u32, offset: u64, out: u32) -> Outcome<()> {
    let (f, counts) = v.files.file(fd)?;
    if f.read_only {
        return Err(BADF.into());
    }
    if offset > i64::MAX as u64 {
        return Err(INVAL.into());
    }
    write_pieces(m, iovs, n, out, |b, before| {
        counts.take(b.len() as u64)?;
        Ok(rustix::io::pwrite(&f.fd, b, offset.saturating_add(before))?)
    })
}

fn preopen(d: &Directory) -> Result<&[u8], Errno> {
    d.preopen.as_deref().ok_or(BADF)
}

fn fd_prestat_get(m: &mut Mem<'_>, v: &mut View, fd: u32, out: u32) -> Outcome<()> {
    let Entry::Dir(d) = v.files.get(fd)? else {
        return Err(BADF.into());
    };
    let len = preopen(d)?.len() as u32;
    m.put32(out, 0)?; // a directory
    Ok(m.put32(out.checked_add(4).ok_or(FAULT)?, len)?)
}

fn fd_prestat_dir_name(m: &mut Mem<'_>, v: &mut View, fd: u32, path: u32, len: u32) -> Outcome<()> {
    let Entry::Dir(d) = v.files.get(fd)? else {
        return Err(BADF.into());
    };
    let name = preopen(d)?;
    if len as usize > name.len() {
        return Err(Errno(37).into());
    }
    Ok(m.put(path, &name[..len as usize])?)
}

/// Fills the buffer with entries; the last may be cut, which tells the module
/// that there is more. A cookie is the position after an entry, as the kernel
/// gives it.
fn fd_readdir(m: &mut Mem<'_>, v: &mut View, fd: u32, buf: u32, len: u32, cookie: u64, out: u32) -> Outcome<()> {
    let d = v.files.dir(fd)?;
    let into = m.bytes(buf, len)?;
    let mut used = 0;
    seek(&d.fd, SeekFrom::Start(cookie)).map_err(|_| INVAL)?;
    let mut space = [std::mem::MaybeUninit::uninit(); 16 << 10];
    let mut entries = RawDir::new(d.fd.as_fd(), &mut space);
    while used < into.len() {
        let Some(e) = entries.next() else { break };
        let e = e?;
        let name = e.file_name().to_bytes();
        // The parent of a mount is nobody's business.
        let ino = if name == b".." { fstat(&d.fd)?.st_ino } else { e.ino() };
        let mut head = [0; 24];
        head[..8].copy_from_slice(&e.next_entry_cookie().to_le_bytes());
        head[8..16].copy_from_slice(&ino.to_le_bytes());
        head[16..20].copy_from_slice(&(name.len() as u32).to_le_bytes());
        head[20] = filetype(e.file_type());
        for part in [&head[..], name] {
            let n = part.len().min(into.len() - used);
            into[used..used + n].copy_from_slice(&part[..n]);
            used += n;
        }
    }
    Ok(m.put32(out, used as u32)?)
}

// Paths.

const SYMLINK_FOLLOW: u32 = 1;

fn path_open(
    m: &mut Mem<'_>,
    v: &mut View,
    fd: u32,
    dirflags: u32,
    path: u32,
    len: u32,
    oflags: u32,
    rights: u64,
    _inheriting: u64,
    flags: u32,
    out: u32,
) -> Outcome<()> {
    let how = How {
        follow: dirflags & SYMLINK_FOLLOW != 0,
        read: rights & RIGHT_FD_READ != 0,
        write: rights & RIGHT_FD_WRITE != 0,
        oflags,
        fdflags: u16::try_from(flags).map_err(|_| INVAL)?,
        rights,
    };
    m.bytes(out, 4)?;
    let new = v.files.open(fd, m.bytes(path, len)?, &how)?;
    Ok(m.put32(out, new)?)
}

fn path_create_directory(m: &mut Mem<'_>, v: &mut View, fd: u32, path: u32, len: u32) -> Outcome<()> {
    Ok(v.files.make_directory(fd, m.bytes(path, len)?)?)
}

fn path_remove_directory(m: &mut Mem<'_>, v: &mut View, fd: u32, path: u32, len: u32) -> Outcome<()> {
    Ok(v.files.remove_directory(fd, m.bytes(path, len)?)?)
}

fn path_unlink_file(m: &mut Mem<'_>, v: &mut View, fd: u32, path: u32, len: u32) -> Outcome<()> {
    Ok(v.files.remove_file(fd, m.bytes(path, len)?)?)
}

fn path_rename(
    m: &mut Mem<'_>,
    v: &mut View,
    fd: u32,
    path: u32,
    len: u32,
    to: u32,
    new: u32,
    new_len: u32,
) -> Outcome<()> {
    Ok(v.files.rename(fd, m.part(path, len)?, to, m.part(new, new_len)?)?)
}

fn path_link(
    m: &mut Mem<'_>,
    v: &mut View,
    fd: u32,
    flags: u32,
    path: u32,
    len: u32,
    to: u32,
    new: u32,
    new_len: u32,
) -> Outcome<()> {
    if flags & SYMLINK_FOLLOW != 0 {
        return Err(INVAL.into());
    }
    Ok(v.files.link(fd, m.part(path, len)?, to, m.part(new, new_len)?)?)
}

fn path_symlink(
    m: &mut Mem<'_>,
    v: &mut View,
    target: u32,
    target_len: u32,
    fd: u32,
    path: u32,
    len: u32,
) -> Outcome<()> {
    Ok(v.files.symlink(m.part(target, target_len)?, fd, m.part(path, len)?)?)
}

fn path_readlink(
    m: &mut Mem<'_>,
    v: &mut View,
    fd: u32,
    path: u32,
    len: u32,
    buf: u32,
    buf_len: u32,
    out: u32,
) -> Outcome<()> {
    let found = v.files.read_link(fd, m.bytes(path, len)?)?;
    let n = found.len().min(buf_len as usize);
    m.bytes(buf, buf_len)?[..n].copy_from_slice(&found[..n]);
    Ok(m.put32(out, n as u32)?)
}

fn path_filestat_get(m: &mut Mem<'_>, v: &mut View, fd: u32, flags: u32, path: u32, len: u32, out: u32) -> Outcome<()> {
    let found = v.files.look(fd, m.bytes(path, len)?, flags & SYMLINK_FOLLOW != 0)?;
    let st = fstat(&found)?;
    Ok(m.put(out, &filestat(&st))?)
}

fn path_filestat_set_times(
    m: &mut Mem<'_>,
    v: &mut View,
    fd: u32,
    flags: u32,
    path: u32,
    len: u32,
    atim: u64,
    mtim: u64,
    which: u32,
) -> Outcome<()> {
    let t = times(atim, mtim, which)?;
    Ok(v.files.set_times(fd, m.bytes(path, len)?, flags & SYMLINK_FOLLOW != 0, &t)?)
}

// Waiting.

const EVENT_CLOCK: u8 = 0;
const EVENT_READ: u8 = 1;
const EVENT_WRITE: u8 = 2;
const ABSTIME: u16 = 1;
const SUBSCRIPTION: u32 = 48;
const EVENT: u32 = 32;

struct Subscription {
    userdata: [u8; 8],
    kind: u8,
    /// When a clock is due.
    due: Option<Instant>,
    fd: u32,
}

fn subscription(b: &[u8]) -> Result<Subscription, Errno> {
    let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap_or_default());
    let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap_or_default());
    let mut s = Subscription { userdata: u64_at(0).to_le_bytes(), kind: b[8], due: None, fd: u32_at(16) };
    match s.kind {
        EVENT_CLOCK => {
            let mut timeout = u64_at(24);
            let clock = u32_at(16);
            let current = now(clock)?;
            if u16::from_le_bytes([b[40], b[41]]) & ABSTIME != 0 {
                timeout = timeout.saturating_sub(current);
            }
            // A time that no clock reaches is never due.
            s.due = Instant::now().checked_add(Duration::from_nanos(timeout));
        }
        EVENT_READ | EVENT_WRITE => {}
        _ => return Err(INVAL),
    }
    Ok(s)
}

/// What one descriptor has to say: ready with so many bytes, or an errno.
fn poll_fd(v: &mut View, s: &Subscription) -> Outcome<Option<(Errno, u64)>> {
    let ok = |n: u64| Ok(Some((Errno(0), n)));
    match (s.kind, v.files.get(s.fd)) {
        (_, Err(e)) => Ok(Some((e, 0))),
        (EVENT_READ, Ok(Entry::Stdin)) => {
            let p = v.process()?;
            if p.input_ready() { ok(p.input_len() as u64) } else { Ok(None) }
        }
        (EVENT_WRITE, Ok(Entry::Stdin)) | (EVENT_READ, Ok(Entry::Stdout | Entry::Stderr)) => Ok(Some((BADF, 0))),
        (_, Ok(_)) => ok(1),
    }
}

fn poll_oneoff(m: &mut Mem<'_>, v: &mut View, subs: u32, events: u32, n: u32, out: u32) -> Outcome<()> {
    if n == 0 {
        return Err(INVAL.into());
    }
    // More than a module has use for; each costs memory here.
    const MAX: u32 = 1 << 16;
    if n > MAX {
        return Err(OVERFLOW.into());
    }
    let mut list = Vec::new();
    for b in m.bytes(subs, n * SUBSCRIPTION)?.as_chunks::<{ SUBSCRIPTION as usize }>().0 {
        list.push(subscription(b)?);
    }
    m.bytes(events, n * EVENT)?;
    v.process()?.drain()?;
    let wants_input = list.iter().any(|s| s.kind == EVENT_READ && matches!(v.files.get(s.fd), Ok(Entry::Stdin)));
    let due = list.iter().filter_map(|s| s.due).min();
    let mut ready = collect(v, &list)?;
    if ready.is_empty() {
        let left = due.map(|d| d.saturating_duration_since(Instant::now()));
        let p = v.process()?;
        match left {
            _ if wants_input => _ = p.wait_input(left)?,
            Some(d) => p.sleep(d)?,
            // Clocks that are never due: the host's deadline ends the wait.
            None => p.sleep(Duration::MAX)?,
        }
        while ready.is_empty() {
            ready = collect(v, &list)?;
            if ready.is_empty() {
                // The sleep was short by a rounding.
                std::thread::yield_now();
            }
        }
    }
    for (i, (at, e, bytes)) in ready.iter().enumerate() {
        let mut b = [0; EVENT as usize];
        b[..8].copy_from_slice(&list[*at].userdata);
        b[8..10].copy_from_slice(&e.0.to_le_bytes());
        b[10] = list[*at].kind;
        b[16..24].copy_from_slice(&bytes.to_le_bytes());
        m.put(events + i as u32 * EVENT, &b)?;
    }
    Ok(m.put32(out, ready.len() as u32)?)
}

/// The subscriptions that have something to say.
fn collect(v: &mut View, list: &[Subscription]) -> Outcome<Vec<(usize, Errno, u64)>> {
    let now = Instant::now();
    let mut ready = Vec::new();
    for (i, s) in list.iter().enumerate() {
        if s.kind == EVENT_CLOCK {
            if s.due.is_some_and(|d| d <= now) {
                ready.push((i, Errno(0), 0));
            }
        } else if let Some((e, n)) = poll_fd(v, s)? {
            ready.push((i, e, n));
        }
    }
    Ok(ready)
}

//! What a worker is restricted by. The order matters: capabilities and
//! no_new_privs first, then Landlock, which needs the directories, then
//! seccomp, which forbids the calls that the others made. The process has one
//! thread until all of it stands, so nothing is left out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::wire::Walls;

/// A directory that stays reachable.
pub struct Dir<'a> {
    pub fd: BorrowedFd<'a>,
    pub writable: bool,
}

/// What the process may still do once it is jailed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Allow {
    /// Name files (Landlock says where), and look at what is loaded.
    pub files: bool,
    /// Start threads of its own, as a parallel compiler does.
    pub threads: bool,
    /// Keep the capabilities by which a privileged caller's module uses a
    /// mount as the caller could.
    pub file_caps: bool,
}

fn err(what: &str) -> io::Error {
    let e = io::Error::last_os_error();
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// Restricts the process. Of files, `dirs` stay reachable, and `file` to be read.
/// What it returns is for people.
pub fn enter(dirs: &[Dir<'_>], file: Option<BorrowedFd<'_>>, allow: Allow) -> io::Result<Walls> {
    if let Some(n) = threads()
        && n != 1
    {
        return Err(io::Error::other(format!("{n} threads run before the jail stands")));
    }
    let mut walls = Walls::default();
    drop_capabilities(allow.file_caps)?;
    walls.walls.push("capabilities: dropped, no_new_privs".into());
    match landlock(dirs, file)? {
        Some(abi) => walls.walls.push(format!("landlock: ABI {abi}, {} directories reachable", dirs.len())),
        // The other walls stand: without mounts, seccomp leaves no way to open
        // a file at all.
        None => walls.missing.push(
            "landlock: the kernel has no Landlock, or it is not enabled (boot parameter lsm=landlock,...)".into(),
        ),
    }
    seccomp(allow)?;
    Ok(walls)
}

/// The number of threads, where /proc tells: its task directory has one link
/// for each, and two of its own.
fn threads() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/task").ok().map(|m| m.nlink() - 2)
}

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_FOWNER: u32 = 3;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn drop_capabilities(keep_file_caps: bool) -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut have = [CapData::default(); 2];
    // SAFETY: the calls take what their manual pages say: capget(2) writes two
    // CapData, capset(2) reads two, prctl(2) takes numbers.
    unsafe {
        if libc::syscall(libc::SYS_capget, &raw const header, have.as_mut_ptr()) != 0 {
            return Err(err("capget"));
        }
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(err("no_new_privs"));
        }
        if libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 {
            return Err(err("not dumpable"));
        }
        // The bounding set is left: it matters at exec, where no_new_privs
        // already grants nothing.
        let mut want = [CapData::default(); 2];
        if keep_file_caps {
            let keep = (1 << CAP_DAC_OVERRIDE | 1 << CAP_FOWNER) & have[0].effective;
            want[0].effective = keep;
            want[0].permitted = keep;
        }
        if libc::syscall(libc::SYS_capset, &raw const header, want.as_ptr()) != 0 {
            return Err(err("capset"));
        }
    }
    Ok(())
}

// Rights on files and directories (Documentation/userspace-api/landlock.rst).
const FS_WRITE_FILE: u64 = 1 << 1;
const FS_READ_FILE: u64 = 1 << 2;
const FS_READ_DIR: u64 = 1 << 3;
const FS_REMOVE_DIR: u64 = 1 << 4;
const FS_REMOVE_FILE: u64 = 1 << 5;
const FS_MAKE_DIR: u64 = 1 << 7;
const FS_MAKE_REG: u64 = 1 << 8;
const FS_MAKE_SYM: u64 = 1 << 12;
const FS_REFER: u64 = 1 << 13;
const FS_TRUNCATE: u64 = 1 << 14;
const FS_IOCTL_DEV: u64 = 1 << 15;
const READ: u64 = FS_READ_FILE | FS_READ_DIR;
/// What a writable mount has above reading. Devices, sockets, FIFOs and
/// executing are in no mount.
const WRITE: u64 =
    FS_WRITE_FILE | FS_REMOVE_DIR | FS_REMOVE_FILE | FS_MAKE_DIR | FS_MAKE_REG | FS_MAKE_SYM | FS_REFER | FS_TRUNCATE;
const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;

#[repr(C)]
struct Ruleset {
    fs: u64,
    net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Restricts the process to `dirs` and `file`. It returns the ABI that did it, or
/// None where the kernel has no Landlock.
fn landlock(dirs: &[Dir<'_>], file: Option<BorrowedFd<'_>>) -> io::Result<Option<i64>> {
    // SAFETY: the calls take what landlock(7) says; each pointer is to a value
    // that lives across the call.
    unsafe {
        let null = std::ptr::null::<u8>();
        let abi = libc::syscall(libc::SYS_landlock_create_ruleset, null, 0usize, LANDLOCK_CREATE_RULESET_VERSION);
        if abi < 1 {
            return Ok(None);
        }
        // All rights that the kernel's ABI knows. An older one knows a shorter
        // struct.
        let since = |version: i64, rights: u64| if abi >= version { rights } else { 0 };
        let fs = ((1 << 13) - 1) | since(2, FS_REFER) | since(3, FS_TRUNCATE) | since(5, FS_IOCTL_DEV);
        let attr = Ruleset { fs, net: since(4, 0b11), scoped: since(6, 0b11) };
        let size = match abi {
            ..4 => 8usize,
            4..6 => 16,
            _ => 24,
        };
        let fd = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0u32);
        if fd < 0 {
            return Err(err("landlock_create_ruleset"));
        }
        let ruleset = OwnedFd::from_raw_fd(fd as i32);
        let of_dirs = dirs.iter().map(|d| (d.fd, READ | if d.writable { WRITE } else { 0 }));
        for (at, allowed) in of_dirs.chain(file.map(|f| (f, FS_READ_FILE))) {
            let rule = PathBeneath { allowed: allowed & fs, parent: at.as_raw_fd() };
            let fd = ruleset.as_fd().as_raw_fd();
            if libc::syscall(libc::SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &raw const rule, 0u32) != 0 {
                return Err(err("landlock_add_rule"));
            }
        }
        if libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) != 0 {
            return Err(err("landlock_restrict_self"));
        }
        Ok(Some(abi))
    }
}

/// What every worker may call: memory (PROT_EXEC included, for compiled
/// modules), the handling of its own signals, clocks, and input and output on
/// descriptors that are open. Everything else fails with EPERM.
const ALWAYS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getrandom,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_seccomp,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// What a worker with mounts needs besides, and any while it loads.
const FILES: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_ftruncate,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_utimensat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_dup,
    libc::SYS_fstatfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
];

/// The commands of fcntl. By others a file could be made to send signals to another
/// process (F_SETOWN).
const FCNTL: &[i32] =
    &[libc::F_DUPFD, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// What starting threads takes, besides clone.
const THREADS: &[libc::c_long] = &[libc::SYS_prlimit64, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler];

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h), little-endian.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARG0: u32 = 16;
const DATA_ARG1: u32 = 24;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Marks calls of the x32 ABI, which the filter does not know.
const X32_BIT: u32 = 0x4000_0000;
/// All must be set in a clone: it makes a thread, not a process.
const THREAD_FLAGS: u32 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u32;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_KILL: u32 = 0x8000_0000;
const RET_EPERM: u32 = 0x0005_0000 | libc::EPERM as u32;
const RET_NOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
const PR_SET_VMA: u32 = 0x5356_4d41;

const JEQ: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JGE: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RET: u32 = libc::BPF_RET | libc::BPF_K;

/// Builds the filter. It is one pass over the list: the kernel asks once for
/// each number that is always allowed, and remembers.
fn program(allow: Allow) -> Vec<libc::sock_filter> {
    let mut p = Vec::new();
    let mut op = |code: u32, k: u32, jt: u8, jf: u8| p.push(libc::sock_filter { code: code as u16, jt, jf, k });
    op(LOAD, DATA_ARCH, 0, 0);
    op(JEQ, ARCH, 1, 0);
    op(RET, RET_KILL, 0, 0);
    op(LOAD, DATA_NR, 0, 0);
    op(JGE, X32_BIT, 0, 1);
    op(RET, RET_KILL, 0, 0);
    let files: &[_] = if allow.files { FILES } else { &[] };
    let threads: &[_] = if allow.threads { THREADS } else { &[] };
    for nr in ALWAYS.iter().chain(files).chain(threads) {
        op(JEQ, *nr as u32, 0, 1);
        op(RET, RET_ALLOW, 0, 0);
    }
    op(JEQ, libc::SYS_fcntl as u32, 0, 2 * FCNTL.len() as u8 + 2);
    op(LOAD, DATA_ARG1, 0, 0);
    for command in FCNTL {
        op(JEQ, *command as u32, 0, 1);
        op(RET, RET_ALLOW, 0, 0);
    }
    op(RET, RET_EPERM, 0, 0);
    // A signal to itself: the end of a program that found itself broken.
    op(JEQ, libc::SYS_tgkill as u32, 0, 4);
    op(LOAD, DATA_ARG0, 0, 0);
    op(JEQ, std::process::id(), 0, 1);
    op(RET, RET_ALLOW, 0, 0);
    op(RET, RET_EPERM, 0, 0);
    if allow.threads {
        // A thread, but no process.
        op(JEQ, libc::SYS_clone as u32, 0, 5);
        op(LOAD, DATA_ARG0, 0, 0);
        op(AND, THREAD_FLAGS, 0, 0);
        op(JEQ, THREAD_FLAGS, 0, 1);
        op(RET, RET_ALLOW, 0, 0);
        op(RET, RET_EPERM, 0, 0);
        // Its arguments lie in memory, where no filter can see them: libc
        // then takes clone.
        op(JEQ, libc::SYS_clone3 as u32, 0, 1);
        op(RET, RET_NOSYS, 0, 0);
        // prctl only to name mappings and threads.
        op(JEQ, libc::SYS_prctl as u32, 0, 5);
        op(LOAD, DATA_ARG0, 0, 0);
        op(JEQ, PR_SET_VMA, 1, 0);
        op(JEQ, libc::PR_SET_NAME as u32, 0, 1);
        op(RET, RET_ALLOW, 0, 0);
        op(RET, RET_EPERM, 0, 0);
    }
    op(RET, RET_EPERM, 0, 0);
    p
}

/// Puts the filter over the process. Filters add up: a second one can only
/// take away.
pub fn seccomp(allow: Allow) -> io::Result<()> {
    let mut code = program(allow);
    let prog = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: the filter lives across the call.
    let r = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const prog,
        )
    };
    match r {
        0 => Ok(()),
        -1 => Err(err("seccomp")),
        thread => Err(io::Error::other(format!("seccomp: thread {thread} could not be restricted"))),
    }
}

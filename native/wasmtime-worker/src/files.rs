//! The descriptors of a module: its three streams, and what it has open
//! beneath its mounts. The kernel resolves every name beneath the mount
//! (openat2, RESOLVE_BENEATH), Landlock stands behind that.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    Advice, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timestamps, fadvise, fdatasync, fstat, fsync,
    ftruncate, futimens, linkat, mkdirat, openat2, readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno as Sys;

use crate::conn::Gone;

/// A WASI errno (preview 1, "errno").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub u16);

pub const ACCES: Errno = Errno(2);
pub const BADF: Errno = Errno(8);
pub const EXIST: Errno = Errno(20);
pub const FAULT: Errno = Errno(21);
pub const INVAL: Errno = Errno(28);
pub const IO: Errno = Errno(29);
pub const ISDIR: Errno = Errno(31);
pub const LOOP: Errno = Errno(32);
pub const MFILE: Errno = Errno(33);
pub const NAMETOOLONG: Errno = Errno(37);
pub const NOENT: Errno = Errno(44);
pub const NOSPC: Errno = Errno(51);
pub const NOTDIR: Errno = Errno(54);
pub const NOTSUP: Errno = Errno(58);
pub const OVERFLOW: Errno = Errno(61);
pub const PERM: Errno = Errno(63);
pub const ROFS: Errno = Errno(69);
pub const SPIPE: Errno = Errno(70);

/// Why a WASI function does not return success.
pub enum Stop {
    Errno(Errno),
    /// The whole run ends.
    End(wasmtime::Error),
}

impl From<Errno> for Stop {
    fn from(e: Errno) -> Stop {
        Stop::Errno(e)
    }
}

impl From<Sys> for Stop {
    fn from(e: Sys) -> Stop {
        Stop::Errno(errno(e))
    }
}

impl From<Gone> for Stop {
    fn from(e: Gone) -> Stop {
        Stop::End(wasmtime::Error::new(e))
    }
}

pub type Outcome<T> = Result<T, Stop>;

/// The WASI number of a system error.
pub fn errno(e: Sys) -> Errno {
    match e {
        Sys::ACCESS => ACCES,
        Sys::AGAIN => Errno(6),
        Sys::BADF => BADF,
        Sys::BUSY => Errno(10),
        Sys::DEADLK => Errno(16),
        Sys::DQUOT => Errno(19),
        Sys::EXIST => EXIST,
        Sys::FAULT => FAULT,
        Sys::FBIG => Errno(22),
        Sys::INTR => Errno(27),
        Sys::INVAL => INVAL,
        Sys::ISDIR => ISDIR,
        Sys::LOOP => LOOP,
        Sys::MFILE | Sys::NFILE => MFILE,
        Sys::MLINK => Errno(34),
        Sys::NAMETOOLONG => NAMETOOLONG,
        Sys::NODEV => Errno(43),
        Sys::NOENT => NOENT,
        Sys::NOMEM => Errno(48),
        Sys::NOSPC => NOSPC,
        Sys::NOSYS => Errno(52),
        Sys::NOTDIR => NOTDIR,
        Sys::NOTEMPTY => Errno(55),
        Sys::NOTSUP => NOTSUP,
        Sys::NXIO => Errno(60),
        Sys::OVERFLOW => OVERFLOW,
        Sys::PERM => PERM,
        Sys::PIPE => Errno(64),
        Sys::ROFS => ROFS,
        Sys::SPIPE => SPIPE,
        Sys::TXTBSY => Errno(74),
        Sys::XDEV => Errno(75),
        _ => IO,
    }
}

pub enum Entry {
    Stdin,
    Stdout,
    Stderr,
    Dir(Directory),
    File(OpenFile),
}

/// A descriptor of the kernel. The ones that a process opened are counted for
/// as long as anything holds them.
pub struct Opened {
    fd: OwnedFd,
    _ticket: Option<Ticket>,
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Ticket(Arc<AtomicU64>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub struct Directory {
    pub fd: Arc<Opened>,
    pub read_only: bool,
    /// Its name, if it was there from the start.
    pub preopen: Option<Vec<u8>>,
}

impl Directory {
    /// A directory that is there from the start, under a name.
    pub fn preopened(fd: OwnedFd, read_only: bool, name: Vec<u8>) -> Directory {
        Directory { fd: Arc::new(Opened { fd, _ticket: None }), read_only, preopen: Some(name) }
    }
}

pub struct OpenFile {
    pub fd: Arc<Opened>,
    pub read_only: bool,
    pub flags: u16,
    pub rights: u64,
}

/// The bounds of one process on files, and what it did. A bound of 0 does not
/// bound.
#[derive(Default)]
pub struct Counts {
    pub max_written: u64,
    pub max_open: u64,
    open: Arc<AtomicU64>,
    pub written: u64,
    pub read: u64,
    pub disk_hits: u64,
    pub file_hits: u64,
}

impl Counts {
    /// Counts `n` bytes that are about to be written.
    pub fn take(&mut self, n: u64) -> Result<(), Errno> {
        let w = self.written.saturating_add(n);
        if self.max_written > 0 && w > self.max_written {
            self.disk_hits += 1;
            return Err(NOSPC);
        }
        self.written = w;
        Ok(())
    }

    fn open_one(&mut self) -> Result<Ticket, Errno> {
        if self.max_open > 0 && self.open.load(Ordering::Relaxed) >= self.max_open {
            self.file_hits += 1;
            return Err(MFILE);
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Ticket(self.open.clone()))
    }
}

pub struct Files {
    table: Vec<Option<Entry>>,
    pub counts: Counts,
}

/// Descriptors are bounded by the kernel's limit for the process; the table is
/// too, for renumbering.
const MAX_TABLE: usize = 1 << 16;

impl Files {
    pub fn new(mounts: Vec<Directory>) -> Files {
        let mut table = vec![Some(Entry::Stdin), Some(Entry::Stdout), Some(Entry::Stderr)];
        table.extend(mounts.into_iter().map(|m| Some(Entry::Dir(m))));
        Files { table, counts: Counts::default() }
    }

    pub fn get(&mut self, fd: u32) -> Result<&mut Entry, Errno> {
        self.table.get_mut(fd as usize).and_then(Option::as_mut).ok_or(BADF)
    }

    pub fn dir(&self, fd: u32) -> Result<&Directory, Errno> {
        match self.table.get(fd as usize) {
            Some(Some(Entry::Dir(d))) => Ok(d),
            Some(Some(_)) => Err(NOTDIR),
            _ => Err(BADF),
        }
    }

    pub fn file(&mut self, fd: u32) -> Result<(&mut OpenFile, &mut Counts), Errno> {
        match self.table.get_mut(fd as usize) {
            Some(Some(Entry::File(f))) => Ok((f, &mut self.counts)),
            Some(Some(Entry::Dir(_))) => Err(ISDIR),
            Some(Some(_)) => Err(SPIPE),
            _ => Err(BADF),
        }
    }

    fn insert(&mut self, e: Entry) -> Result<u32, Errno> {
        let at = self.table.iter().position(Option::is_none).unwrap_or(self.table.len());
        if at >= MAX_TABLE {
            return Err(MFILE);
        }
        if at == self.table.len() {
            self.table.push(None);
        }
        self.table[at] = Some(e);
        Ok(at as u32)
    }

    pub fn close(&mut self, fd: u32) -> Result<(), Errno> {
        self.table.get_mut(fd as usize).and_then(Option::take).map(drop).ok_or(BADF)
    }

    pub fn renumber(&mut self, from: u32, to: u32) -> Result<(), Errno> {
        self.get(from)?;
        self.get(to)?;
        if from != to {
            self.close(to)?;
            self.table[to as usize] = self.table[from as usize].take();
        }
        Ok(())
    }

    /// Opens a regular file or a directory; devices, sockets and FIFOs that lie
    /// in the directory are refused.
    pub fn open(&mut self, dir: u32, path: &[u8], how: &How) -> Result<u32, Errno> {
        let d = self.dir(dir)?;
        let read_only = d.read_only;
        if read_only
            && (how.write || how.oflags & (oflags::CREAT | oflags::TRUNC) != 0 || how.fdflags & fdflags::APPEND != 0)
        {
            return Err(ROFS);
        }
        let path = name(path)?;
        let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        flags |= match (how.read, how.write) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        let mut set = |on: bool, f: OFlags| {
            if on {
                flags |= f;
            }
        };
        set(!how.follow, OFlags::NOFOLLOW);
        set(how.oflags & oflags::CREAT != 0, OFlags::CREATE);
        set(how.oflags & oflags::EXCL != 0, OFlags::EXCL);
        set(how.oflags & oflags::TRUNC != 0, OFlags::TRUNC);
        set(how.oflags & oflags::DIRECTORY != 0, OFlags::DIRECTORY);
        set(how.fdflags & fdflags::APPEND != 0, OFlags::APPEND);
        set(how.fdflags & fdflags::DSYNC != 0, OFlags::DSYNC);
        set(how.fdflags & (fdflags::SYNC | fdflags::RSYNC) != 0, OFlags::SYNC);
        let mode = if how.oflags & oflags::CREAT != 0 { 0o666 } else { 0 };
        let ticket = self.counts.open_one()?;
        let fd = self.open_beneath(dir, &path, flags, mode)?;
        let kind = FileType::from_raw_mode(fstat(&fd).map_err(errno)?.st_mode);
        let fd = Arc::new(Opened { fd, _ticket: Some(ticket) });
        self.insert(match kind {
            FileType::Directory if how.write => return Err(ISDIR),
            FileType::Directory => Entry::Dir(Directory { fd, read_only, preopen: None }),
            FileType::RegularFile => Entry::File(OpenFile { fd, read_only, flags: how.fdflags, rights: how.rights }),
            _ => return Err(PERM),
        })
    }

    fn open_beneath(&mut self, dir: u32, path: &CString, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let opened = resolve(self.dir(dir)?.fd.as_fd(), path, flags, mode);
        if matches!(opened, Err(MFILE)) {
            // The process ran out of descriptors.
            self.counts.file_hits += 1;
        }
        opened
    }

    /// Opens a directory once more, to read it from its beginning.
    pub fn reopen(&mut self, dir: u32) -> Result<Arc<Opened>, Errno> {
        let ticket = self.counts.open_one()?;
        let fd = self.open_beneath(dir, &c".".into(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, 0)?;
        Ok(Arc::new(Opened { fd, _ticket: Some(ticket) }))
    }

    /// The directories that were there from the start.
    pub fn preopened(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.table.iter().enumerate().filter_map(|(i, e)| match e {
            Some(Entry::Dir(Directory { preopen: Some(name), .. })) => Some((i as u32, name.as_slice())),
            _ => None,
        })
    }

    /// Opens what holds the last element of `path`, for an operation on that.
    pub fn parent(&self, dir: u32, path: &[u8]) -> Result<(OwnedFd, Last), Errno> {
        let d = self.dir(dir)?;
        let path = name(path)?;
        let mut bytes = path.as_bytes();
        while let [rest @ .., b'/'] = bytes {
            bytes = rest;
        }
        let slash = bytes.len() < path.as_bytes().len();
        let (above, last) = match bytes.iter().rposition(|b| *b == b'/') {
            Some(i) => (&bytes[..i], &bytes[i + 1..]),
            None => (&b"."[..], bytes),
        };
        if last.is_empty() || last == b"." || last == b".." {
            // ".." is told to lead out even where it does not: nothing that
            // names a parent may be changed by it.
            return Err(if last == b".." { PERM } else { INVAL });
        }
        let above = CString::new(above).map_err(|_| INVAL)?;
        let fd = resolve(d.fd.as_fd(), &above, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, 0)?;
        Ok((fd, Last { name: CString::new(last).map_err(|_| INVAL)?, slash }))
    }

    /// Sets the size of a file. What that adds counts as written.
    pub fn set_size(&mut self, fd: u32, size: u64) -> Result<(), Errno> {
        let (f, counts) = self.file(fd)?;
        if f.read_only {
            return Err(BADF);
        }
        if size > i64::MAX as u64 {
            return Err(INVAL);
        }
        let have = fstat(&f.fd).map_err(errno)?.st_size as u64;
        counts.take(size.saturating_sub(have))?;
        ftruncate(&f.fd, size).map_err(errno)
    }

    /// Sets the times of what is open.
    pub fn set_open_times(&mut self, fd: u32, t: &Timestamps) -> Result<(), Errno> {
        match self.get(fd)? {
            Entry::File(f) if f.read_only => Err(ROFS),
            Entry::Dir(d) if d.read_only => Err(ROFS),
            Entry::File(f) => futimens(&f.fd, t).map_err(errno),
            Entry::Dir(d) => futimens(&d.fd, t).map_err(errno),
            _ => Err(BADF),
        }
    }

    /// Has the kernel write a file, or what a directory lists, to its disk.
    pub fn sync(&mut self, fd: u32, data_only: bool) -> Result<(), Errno> {
        let fd = match self.get(fd)? {
            Entry::File(f) => f.fd.as_fd(),
            Entry::Dir(d) => d.fd.as_fd(),
            _ => return Err(INVAL),
        };
        if data_only { fdatasync(fd) } else { fsync(fd) }.map_err(errno)
    }

    /// Tells how a part of a file will be used.
    pub fn advise(&mut self, fd: u32, offset: u64, len: u64, advice: Advice) -> Result<(), Errno> {
        let (f, _) = self.file(fd)?;
        if offset > i64::MAX as u64 || len > i64::MAX as u64 {
            return Err(INVAL);
        }
        fadvise(&f.fd, offset, std::num::NonZeroU64::new(len), advice).map_err(errno)
    }

    pub fn make_directory(&self, dir: u32, path: &[u8]) -> Result<(), Errno> {
        let (parent, last) = self.parent_to_change(dir, path)?;
        mkdirat(&parent, &last.name, Mode::from_raw_mode(0o777)).map_err(errno)
    }

    pub fn remove_directory(&self, dir: u32, path: &[u8]) -> Result<(), Errno> {
        let (parent, last) = self.parent_to_change(dir, path)?;
        unlinkat(&parent, &last.name, AtFlags::REMOVEDIR).map_err(errno)
    }

    pub fn remove_file(&self, dir: u32, path: &[u8]) -> Result<(), Errno> {
        let (parent, last) = self.parent_to_change(dir, path)?;
        last.check(&parent)?;
        unlinkat(&parent, &last.name, AtFlags::empty()).map_err(errno)
    }

    pub fn rename(&self, dir: u32, path: &[u8], to: u32, new: &[u8]) -> Result<(), Errno> {
        let (from_dir, from) = self.parent_to_change(dir, path)?;
        let (to_dir, into) = self.parent_to_change(to, new)?;
        from.check(&from_dir)?;
        if into.slash {
            // Only a directory can become one.
            Last { name: from.name.clone(), slash: true }.check(&from_dir)?;
        }
        renameat(&from_dir, &from.name, &to_dir, &into.name).map_err(errno)
    }

    /// Makes a hard link. The last element of `path` is never followed.
    pub fn link(&self, dir: u32, path: &[u8], to: u32, new: &[u8]) -> Result<(), Errno> {
        let (from_dir, from) = self.parent_to_change(dir, path)?;
        let (to_dir, into) = self.parent_to_change(to, new)?;
        from.check(&from_dir)?;
        if into.slash {
            return Err(NOENT);
        }
        linkat(&from_dir, &from.name, &to_dir, &into.name, AtFlags::empty()).map_err(errno)
    }

    /// Makes a symbolic link, if its target stays beneath the directory.
    pub fn symlink(&self, target: &[u8], dir: u32, link: &[u8]) -> Result<(), Errno> {
        if !target_is_local(link, target) {
            return Err(PERM);
        }
        let target = CString::new(target).map_err(|_| INVAL)?;
        let (parent, last) = self.parent_to_change(dir, link)?;
        if last.slash {
            return Err(NOENT);
        }
        symlinkat(&target, &parent, &last.name).map_err(errno)
    }

    pub fn read_link(&self, dir: u32, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let (parent, last) = self.parent(dir, path)?;
        if last.slash {
            return Err(NOTDIR);
        }
        readlinkat(&parent, &last.name, Vec::new()).map(CString::into_bytes).map_err(errno)
    }

    /// The same, for an operation that changes the directory.
    pub fn parent_to_change(&self, dir: u32, path: &[u8]) -> Result<(OwnedFd, Last), Errno> {
        let found = self.parent(dir, path)?;
        if self.dir(dir)?.read_only {
            return Err(ROFS);
        }
        Ok(found)
    }
}

/// The last element of a path.
pub struct Last {
    pub name: CString,
    /// It was followed by a slash, so it must be a directory.
    pub slash: bool,
}

impl Last {
    /// Refuses a slash after what is no directory. The kernel is never given
    /// the slash: behind one it would follow a link.
    pub fn check(&self, parent: &OwnedFd) -> Result<(), Errno> {
        if !self.slash {
            return Ok(());
        }
        let st = statat(parent, &self.name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
        if FileType::from_raw_mode(st.st_mode) == FileType::Directory { Ok(()) } else { Err(NOTDIR) }
    }
}

pub mod oflags {
    pub const CREAT: u32 = 1;
    pub const DIRECTORY: u32 = 2;
    pub const EXCL: u32 = 4;
    pub const TRUNC: u32 = 8;
}

pub mod fdflags {
    pub const APPEND: u16 = 1;
    pub const DSYNC: u16 = 2;
    pub const NONBLOCK: u16 = 4;
    pub const RSYNC: u16 = 8;
    pub const SYNC: u16 = 16;
}

/// How a file is opened.
pub struct How {
    pub follow: bool,
    pub read: bool,
    pub write: bool,
    pub oflags: u32,
    pub fdflags: u16,
    pub rights: u64,
}

/// Checks a module's path and returns it for the kernel.
fn name(path: &[u8]) -> Result<CString, Errno> {
    if path.first() == Some(&b'/') {
        return Err(PERM);
    }
    if path.is_empty() {
        return Err(NOENT);
    }
    if path.len() >= libc::PATH_MAX as usize {
        return Err(NAMETOOLONG);
    }
    CString::new(path).map_err(|_| INVAL)
}

/// Opens a name beneath a directory. What would leave it is refused.
fn resolve(dir: BorrowedFd<'_>, path: &CString, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..100 {
        match openat2(dir, path, flags, Mode::from_raw_mode(mode), beneath) {
            // Something was renamed meanwhile, and the kernel is not sure.
            Err(Sys::AGAIN | Sys::INTR) => {}
            Err(Sys::XDEV) => return Err(PERM),
            r => return r.map_err(errno),
        }
    }
    Err(Errno(6))
}

impl Files {
    /// Opens a name for looking at it only.
    pub fn look(&self, dir: u32, path: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if !follow {
            flags |= OFlags::NOFOLLOW;
        }
        resolve(self.dir(dir)?.fd.as_fd(), &name(path)?, flags, 0)
    }

    pub fn set_times(&self, dir: u32, path: &[u8], follow: bool, times: &Timestamps) -> Result<(), Errno> {
        let (parent, last);
        let fd = if follow {
            self.look(dir, path, true)?
        } else {
            (parent, last) = self.parent(dir, path)?;
            last.check(&parent)?;
            if self.dir(dir)?.read_only {
                return Err(ROFS);
            }
            return rustix::fs::utimensat(&parent, &last.name, times, AtFlags::SYMLINK_NOFOLLOW).map_err(errno);
        };
        if self.dir(dir)?.read_only {
            return Err(ROFS);
        }
        rustix::fs::utimensat(&fd, c"", times, AtFlags::EMPTY_PATH).map_err(errno)
    }
}

/// Whether a link with this target leads to a place beneath the directory, by
/// the names alone. The module could not follow another, but a program of the
/// host that reads the directory later might.
fn target_is_local(link: &[u8], target: &[u8]) -> bool {
    if target.first() == Some(&b'/') {
        return false;
    }
    let above = link.iter().rposition(|b| *b == b'/').map_or(&b""[..], |i| &link[..i]);
    let mut depth = 0i64;
    for part in above.split(|b| *b == b'/').chain(target.split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

/// A WASI filetype.
pub fn filetype(t: FileType) -> u8 {
    match t {
        FileType::BlockDevice => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 3,
        FileType::RegularFile => 4,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        _ => 0,
    }
}

/// The 64 bytes of a WASI filestat.
pub fn filestat(st: &Stat) -> [u8; 64] {
    let mut b = [0; 64];
    let ns = |sec: i64, nsec: u64| (sec.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(nsec);
    let mut put = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
    put(0, st.st_dev);
    put(8, st.st_ino);
    #[allow(clippy::useless_conversion)] // 32 bits wide on aarch64
    put(24, u64::from(st.st_nlink));
    put(32, st.st_size as u64);
    put(40, ns(st.st_atime, st.st_atime_nsec));
    put(48, ns(st.st_mtime, st.st_mtime_nsec));
    put(56, ns(st.st_ctime, st.st_ctime_nsec));
    b[16] = filetype(FileType::from_raw_mode(st.st_mode));
    b
}

//! wasi:filesystem, over the same descriptors and rules as preview 1. A handle
//! to a descriptor is its number.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Advice as KernelAdvice, FileType, OFlags, RawDir, Stat, Timespec, Timestamps, fcntl_getfl, fstat};
use rustix::io::{pread, pwrite};
use wasmtime::component::{
    ComponentNamedList, ComponentType, Lift, Linker, Lower, Resource, ResourceType, WasmList, flags,
};
use wasmtime::{Error, Result, StoreContextMut};

use super::clocks::Datetime;
use super::io::{Input, IoError, Output};
use super::{Interface, interface};
use crate::files::{BADF, Entry, Errno, How, INVAL, Opened, Outcome, Stop, errno, fdflags, oflags};
use crate::wasi::{HasView, View};
use crate::wire::MAX_BODY;

pub const INTERFACES: &[&str] = &["types", "preopens"];

macro_rules! codes {
    ($($variant:ident = $name:literal from $($number:literal)*,)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug, ComponentType, Lift, Lower)]
        #[component(enum)]
        #[repr(u8)]
        pub enum ErrorCode {
            $(#[component(name = $name)] $variant,)*
        }

        impl From<Errno> for ErrorCode {
            fn from(e: Errno) -> ErrorCode {
                match e.0 {
                    $($($number => ErrorCode::$variant,)*)*
                    _ => ErrorCode::Io,
                }
            }
        }
    };
}

// In the order of the interface, with the numbers of preview 1. To have too
// much open is a lack of memory: there is no nearer word.
codes! {
    Access = "access" from 2,
    WouldBlock = "would-block" from 6,
    Already = "already" from 7,
    BadDescriptor = "bad-descriptor" from 8,
    Busy = "busy" from 10,
    Deadlock = "deadlock" from 16,
    Quota = "quota" from 19,
    Exist = "exist" from 20,
    FileTooLarge = "file-too-large" from 22,
    IllegalByteSequence = "illegal-byte-sequence" from 25,
    InProgress = "in-progress" from 26,
    Interrupted = "interrupted" from 27,
    Invalid = "invalid" from 28,
    Io = "io" from 29,
    IsDirectory = "is-directory" from 31,
    Loop = "loop" from 32,
    TooManyLinks = "too-many-links" from 34,
    MessageSize = "message-size" from 35,
    NameTooLong = "name-too-long" from 37,
    NoDevice = "no-device" from 43,
    NoEntry = "no-entry" from 44,
    NoLock = "no-lock" from 46,
    InsufficientMemory = "insufficient-memory" from 33 48,
    InsufficientSpace = "insufficient-space" from 51,
    NotDirectory = "not-directory" from 54,
    NotEmpty = "not-empty" from 55,
    NotRecoverable = "not-recoverable" from 56,
    Unsupported = "unsupported" from 52 58,
    NoTty = "no-tty" from 59,
    NoSuchDevice = "no-such-device" from 60,
    Overflow = "overflow" from 61,
    NotPermitted = "not-permitted" from 63,
    Pipe = "pipe" from 64,
    ReadOnly = "read-only" from 69,
    InvalidSeek = "invalid-seek" from 70,
    TextFileBusy = "text-file-busy" from 74,
    CrossDevice = "cross-device" from 75,
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code)] // all make up the type
enum DescriptorType {
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "block-device")]
    BlockDevice,
    #[component(name = "character-device")]
    CharacterDevice,
    #[component(name = "directory")]
    Directory,
    #[component(name = "fifo")]
    Fifo,
    #[component(name = "symbolic-link")]
    SymbolicLink,
    #[component(name = "regular-file")]
    RegularFile,
    #[component(name = "socket")]
    Socket,
}

impl From<FileType> for DescriptorType {
    fn from(t: FileType) -> DescriptorType {
        match t {
            FileType::BlockDevice => DescriptorType::BlockDevice,
            FileType::CharacterDevice => DescriptorType::CharacterDevice,
            FileType::Directory => DescriptorType::Directory,
            FileType::Fifo => DescriptorType::Fifo,
            FileType::Symlink => DescriptorType::SymbolicLink,
            FileType::RegularFile => DescriptorType::RegularFile,
            FileType::Socket => DescriptorType::Socket,
            FileType::Unknown => DescriptorType::Unknown,
        }
    }
}

flags! {
    DescriptorFlags {
        #[component(name = "read")]
        const READ;
        #[component(name = "write")]
        const WRITE;
        #[component(name = "file-integrity-sync")]
        const FILE_INTEGRITY_SYNC;
        #[component(name = "data-integrity-sync")]
        const DATA_INTEGRITY_SYNC;
        #[component(name = "requested-write-sync")]
        const REQUESTED_WRITE_SYNC;
        #[component(name = "mutate-directory")]
        const MUTATE_DIRECTORY;
    }
}

flags! {
    PathFlags {
        #[component(name = "symlink-follow")]
        const SYMLINK_FOLLOW;
    }
}

flags! {
    OpenFlags {
        #[component(name = "create")]
        const CREATE;
        #[component(name = "directory")]
        const DIRECTORY;
        #[component(name = "exclusive")]
        const EXCLUSIVE;
        #[component(name = "truncate")]
        const TRUNCATE;
    }
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct DescriptorStat {
    #[component(name = "type")]
    kind: DescriptorType,
    #[component(name = "link-count")]
    link_count: u64,
    size: u64,
    #[component(name = "data-access-timestamp")]
    data_access: Option<Datetime>,
    #[component(name = "data-modification-timestamp")]
    data_modification: Option<Datetime>,
    #[component(name = "status-change-timestamp")]
    status_change: Option<Datetime>,
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(variant)]
enum NewTimestamp {
    #[component(name = "no-change")]
    NoChange,
    #[component(name = "now")]
    Now,
    #[component(name = "timestamp")]
    Timestamp(Datetime),
}

#[derive(Clone, ComponentType, Lift, Lower)]
#[component(record)]
struct DirectoryEntry {
    #[component(name = "type")]
    kind: DescriptorType,
    name: String,
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code)] // they come from components
enum Advice {
    #[component(name = "normal")]
    Normal,
    #[component(name = "sequential")]
    Sequential,
    #[component(name = "random")]
    Random,
    #[component(name = "will-need")]
    WillNeed,
    #[component(name = "dont-need")]
    DontNeed,
    #[component(name = "no-reuse")]
    NoReuse,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct MetadataHash {
    lower: u64,
    upper: u64,
}

/// Stands for a number in the table of files.
struct Descriptor;

type Fd = Resource<Descriptor>;

/// A directory-entry-stream: the rest of what the kernel gave last.
struct Listing {
    dir: Arc<Opened>,
    ahead: VecDeque<Result<DirectoryEntry, Errno>>,
    done: bool,
}

impl<T: HasView> Interface<'_, T> {
    /// Defines a function that can fail with an error-code.
    fn file_func<P, R>(&mut self, name: &str, f: fn(&mut View, P) -> Outcome<R>) -> Result<&mut Self>
    where
        P: ComponentNamedList + Lift + 'static,
        R: ComponentType + Lower + 'static,
    {
        self.0.func_wrap(name, move |mut s: StoreContextMut<'_, T>, p: P| Ok((answer(f(s.data_mut().view(), p))?,)))?;
        Ok(self)
    }
}

fn answer<R>(r: Outcome<R>) -> Result<Result<R, ErrorCode>> {
    match r {
        Ok(r) => Ok(Ok(r)),
        Err(Stop::Errno(e)) => Ok(Err(e.into())),
        Err(Stop::End(e)) => Err(e),
    }
}

pub fn add_to_linker<T: HasView>(l: &mut Linker<T>) -> Result<()> {
    let mut types = interface(l, "filesystem/types")?;
    types.0.resource("descriptor", ResourceType::host::<Descriptor>(), |mut s, fd| {
        let files = &mut s.data_mut().view().files;
        // One that was there from the start stays, however often it is given.
        if !matches!(files.dir(fd), Ok(d) if d.preopen.is_some()) {
            files.close(fd).map_err(|_| Error::msg("descriptor is not there"))?;
        }
        Ok(())
    })?;
    types
        .resource::<Listing>("directory-entry-stream")?
        .file_func("[method]directory-entry-stream.read-directory-entry", |v, (l,): (Resource<Listing>,)| {
            v.handles.get_mut(&l).map_err(|e| Stop::End(e.into()))?.next()
        })?
        .func("filesystem-error-code", |v, (e,): (Resource<IoError>,)| {
            Ok(Some(ErrorCode::from(v.handles.get(&e)?.0)))
        })?;
    file_methods(&mut types)?;
    path_methods(&mut types)?;
    types.0.func_wrap(
        "[method]descriptor.write",
        |mut s: StoreContextMut<'_, T>, (fd, list, at): (Fd, WasmList<u8>, u64)| {
            // The rest of a long one is for the next call.
            let n = list.len().min(MAX_BODY);
            let b = list.as_le_slice(&s)[..n].to_vec();
            Ok((answer(write(s.data_mut().view(), &fd, &b, at))?,))
        },
    )?;
    interface(l, "filesystem/preopens")?.func("get-directories", |v, ()| {
        let list = v.files.preopened().map(|(fd, name)| Ok((Fd::new_own(fd), std::str::from_utf8(name)?.to_owned())));
        list.collect::<Result<Vec<_>>>()
    })?;
    Ok(())
}

fn file_methods<T: HasView>(types: &mut Interface<'_, T>) -> Result<()> {
    types
        .file_func("[method]descriptor.read-via-stream", |v, (fd, at): (Fd, u64)| {
            let (f, _) = v.files.file(fd.rep())?;
            let file = f.fd.clone();
            push(v, Input::File { file, at })
        })?
        .file_func("[method]descriptor.write-via-stream", |v, (fd, at): (Fd, u64)| write_stream(v, &fd, Some(at)))?
        .file_func("[method]descriptor.append-via-stream", |v, (fd,): (Fd,)| write_stream(v, &fd, None))?
        .file_func("[method]descriptor.advise", |v, (fd, at, n, a): (Fd, u64, u64, Advice)| {
            let advice = match a {
                Advice::Normal => KernelAdvice::Normal,
                Advice::Sequential => KernelAdvice::Sequential,
                Advice::Random => KernelAdvice::Random,
                Advice::WillNeed => KernelAdvice::WillNeed,
                Advice::DontNeed => KernelAdvice::DontNeed,
                Advice::NoReuse => KernelAdvice::NoReuse,
            };
            Ok(v.files.advise(fd.rep(), at, n, advice)?)
        })?
        .file_func("[method]descriptor.sync-data", |v, (fd,): (Fd,)| Ok(v.files.sync(fd.rep(), true)?))?
        .file_func("[method]descriptor.sync", |v, (fd,): (Fd,)| Ok(v.files.sync(fd.rep(), false)?))?
        .file_func("[method]descriptor.get-flags", |v, (fd,): (Fd,)| get_flags(v, &fd))?
        .file_func("[method]descriptor.get-type", |v, (fd,): (Fd,)| {
            Ok(match v.files.get(fd.rep())? {
                Entry::Dir(_) => DescriptorType::Directory,
                _ => DescriptorType::RegularFile,
            })
        })?
        .file_func("[method]descriptor.set-size", |v, (fd, size): (Fd, u64)| Ok(v.files.set_size(fd.rep(), size)?))?
        .file_func("[method]descriptor.set-times", |v, (fd, a, m): (Fd, NewTimestamp, NewTimestamp)| {
            Ok(v.files.set_open_times(fd.rep(), &times(a, m)?)?)
        })?
        .file_func("[method]descriptor.read", |v, (fd, n, at): (Fd, u64, u64)| {
            let (f, counts) = v.files.file(fd.rep())?;
            let mut b = vec![0; n.min(MAX_BODY as u64) as usize];
            let got = pread(&f.fd, &mut b, at)?;
            counts.read += got as u64;
            b.truncate(got);
            Ok((b, got == 0 && n > 0))
        })?
        .file_func("[method]descriptor.read-directory", |v, (fd,): (Fd,)| {
            let dir = v.files.reopen(fd.rep())?;
            push(v, Listing { dir, ahead: VecDeque::new(), done: false })
        })?
        .file_func("[method]descriptor.stat", |v, (fd,): (Fd,)| Ok(stat(&stat_open(v, &fd)?)))?
        .func("[method]descriptor.is-same-object", |v, (a, b): (Fd, Fd)| {
            let id = |s: Outcome<Stat>| s.ok().map(|s| (s.st_dev, s.st_ino));
            let (a, b) = (id(stat_open(v, &a)), id(stat_open(v, &b)));
            Ok(a.is_some() && a == b)
        })?
        .file_func("[method]descriptor.metadata-hash", |v, (fd,): (Fd,)| Ok(hash(&stat_open(v, &fd)?)))?;
    Ok(())
}

fn path_methods<T: HasView>(types: &mut Interface<'_, T>) -> Result<()> {
    types
        .file_func("[method]descriptor.create-directory-at", |v, (fd, path): (Fd, String)| {
            Ok(v.files.make_directory(fd.rep(), path.as_bytes())?)
        })?
        .file_func("[method]descriptor.stat-at", |v, (fd, how, path): (Fd, PathFlags, String)| {
            Ok(stat(&stat_at(v, &fd, how, &path)?))
        })?
        .file_func(
            "[method]descriptor.set-times-at",
            |v, (fd, how, path, a, m): (Fd, PathFlags, String, NewTimestamp, NewTimestamp)| {
                let follow = how.contains(PathFlags::SYMLINK_FOLLOW);
                Ok(v.files.set_times(fd.rep(), path.as_bytes(), follow, &times(a, m)?)?)
            },
        )?
        .file_func("[method]descriptor.link-at", |v, (fd, how, path, to, new): (Fd, PathFlags, String, Fd, String)| {
            if how.contains(PathFlags::SYMLINK_FOLLOW) {
                return Err(INVAL.into());
            }
            Ok(v.files.link(fd.rep(), path.as_bytes(), to.rep(), new.as_bytes())?)
        })?
        .file_func("[method]descriptor.open-at", open_at)?
        .file_func("[method]descriptor.readlink-at", |v, (fd, path): (Fd, String)| {
            let target = v.files.read_link(fd.rep(), path.as_bytes())?;
            String::from_utf8(target).map_err(|_| ILSEQ.into())
        })?
        .file_func("[method]descriptor.remove-directory-at", |v, (fd, path): (Fd, String)| {
            Ok(v.files.remove_directory(fd.rep(), path.as_bytes())?)
        })?
        .file_func("[method]descriptor.rename-at", |v, (fd, path, to, new): (Fd, String, Fd, String)| {
            Ok(v.files.rename(fd.rep(), path.as_bytes(), to.rep(), new.as_bytes())?)
        })?
        .file_func("[method]descriptor.symlink-at", |v, (fd, target, link): (Fd, String, String)| {
            Ok(v.files.symlink(target.as_bytes(), fd.rep(), link.as_bytes())?)
        })?
        .file_func("[method]descriptor.unlink-file-at", |v, (fd, path): (Fd, String)| {
            Ok(v.files.remove_file(fd.rep(), path.as_bytes())?)
        })?
        .file_func("[method]descriptor.metadata-hash-at", |v, (fd, how, path): (Fd, PathFlags, String)| {
            Ok(hash(&stat_at(v, &fd, how, &path)?))
        })?;
    Ok(())
}

/// A name that is no text.
const ILSEQ: Errno = Errno(25);

fn push<R: Send + 'static>(v: &mut View, r: R) -> Outcome<Resource<R>> {
    v.handles.push(r).map_err(|e| Stop::End(e.into()))
}

fn open_at(
    v: &mut View,
    (fd, how, path, open, flags): (Fd, PathFlags, String, OpenFlags, DescriptorFlags),
) -> Outcome<Fd> {
    let mut o = 0;
    for (flag, bit) in [
        (OpenFlags::CREATE, oflags::CREAT),
        (OpenFlags::DIRECTORY, oflags::DIRECTORY),
        (OpenFlags::EXCLUSIVE, oflags::EXCL),
        (OpenFlags::TRUNCATE, oflags::TRUNC),
    ] {
        if open.contains(flag) {
            o |= bit;
        }
    }
    let mut f = 0;
    for (flag, bit) in [
        (DescriptorFlags::FILE_INTEGRITY_SYNC, fdflags::SYNC),
        (DescriptorFlags::DATA_INTEGRITY_SYNC, fdflags::DSYNC),
        (DescriptorFlags::REQUESTED_WRITE_SYNC, fdflags::RSYNC),
    ] {
        if flags.contains(flag) {
            f |= bit;
        }
    }
    let how = How {
        follow: how.contains(PathFlags::SYMLINK_FOLLOW),
        read: flags.contains(DescriptorFlags::READ),
        write: flags.contains(DescriptorFlags::WRITE),
        oflags: o,
        fdflags: f,
        rights: 0,
    };
    Ok(Fd::new_own(v.files.open(fd.rep(), path.as_bytes(), &how)?))
}

/// Insists on a file that was opened for writing.
fn write_stream(v: &mut View, fd: &Fd, at: Option<u64>) -> Outcome<Resource<Output>> {
    let (f, _) = v.files.file(fd.rep())?;
    if f.read_only || !writable(fcntl_getfl(&f.fd)?) {
        return Err(BADF.into());
    }
    let file = f.fd.clone();
    push(v, Output::File { file, at, failed: false })
}

fn writable(f: OFlags) -> bool {
    matches!(f & OFlags::RWMODE, OFlags::WRONLY | OFlags::RDWR)
}

fn write(v: &mut View, fd: &Fd, b: &[u8], at: u64) -> Outcome<u64> {
    let (f, counts) = v.files.file(fd.rep())?;
    if f.read_only {
        return Err(BADF.into());
    }
    counts.take(b.len() as u64)?;
    let n = pwrite(&f.fd, b, at)?;
    counts.written -= (b.len() - n) as u64;
    Ok(n as u64)
}

fn get_flags(v: &mut View, fd: &Fd) -> Outcome<DescriptorFlags> {
    let (f, change) = match v.files.get(fd.rep())? {
        Entry::Dir(d) if d.read_only => return Ok(DescriptorFlags::READ),
        Entry::Dir(_) => return Ok(DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY),
        Entry::File(f) => (fcntl_getfl(&f.fd)?, f.flags),
        _ => return Err(BADF.into()),
    };
    let mut flags = DescriptorFlags::default();
    let mut set = |on: bool, flag: DescriptorFlags| {
        if on {
            flags |= flag;
        }
    };
    set(f & OFlags::RWMODE != OFlags::WRONLY, DescriptorFlags::READ);
    set(writable(f), DescriptorFlags::WRITE);
    set(change & fdflags::SYNC != 0, DescriptorFlags::FILE_INTEGRITY_SYNC);
    set(change & fdflags::DSYNC != 0, DescriptorFlags::DATA_INTEGRITY_SYNC);
    set(change & fdflags::RSYNC != 0, DescriptorFlags::REQUESTED_WRITE_SYNC);
    Ok(flags)
}

fn stat_open(v: &mut View, fd: &Fd) -> Outcome<Stat> {
    Ok(match v.files.get(fd.rep())? {
        Entry::Dir(d) => fstat(&d.fd)?,
        Entry::File(f) => fstat(&f.fd)?,
        _ => return Err(BADF.into()),
    })
}

fn stat_at(v: &mut View, fd: &Fd, how: PathFlags, path: &str) -> Outcome<Stat> {
    let found = v.files.look(fd.rep(), path.as_bytes(), how.contains(PathFlags::SYMLINK_FOLLOW))?;
    Ok(fstat(&found)?)
}

fn stat(s: &Stat) -> DescriptorStat {
    let time = |sec: i64, nsec: u64| Some(Datetime { seconds: sec.max(0) as u64, nanoseconds: nsec as u32 });
    DescriptorStat {
        kind: FileType::from_raw_mode(s.st_mode).into(),
        #[allow(clippy::useless_conversion)] // 32 bits wide on aarch64
        link_count: u64::from(s.st_nlink),
        size: s.st_size as u64,
        data_access: time(s.st_atime, s.st_atime_nsec),
        data_modification: time(s.st_mtime, s.st_mtime_nsec),
        status_change: time(s.st_ctime, s.st_ctime_nsec),
    }
}

/// Differs between files, and when one changes. It need not hide anything: all
/// that it is made of can be asked for.
fn hash(s: &Stat) -> MetadataHash {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let half = |salt: u8| {
        let mut h = DefaultHasher::new();
        (salt, s.st_dev, s.st_ino, s.st_size, s.st_mtime, s.st_mtime_nsec).hash(&mut h);
        h.finish()
    };
    MetadataHash { lower: half(0), upper: half(1) }
}

fn times(access: NewTimestamp, modification: NewTimestamp) -> Result<Timestamps, Errno> {
    let one = |t: NewTimestamp| match t {
        NewTimestamp::NoChange => Ok(Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT as _ }),
        NewTimestamp::Now => Ok(Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW as _ }),
        NewTimestamp::Timestamp(d) if d.nanoseconds >= 1_000_000_000 => Err(INVAL),
        NewTimestamp::Timestamp(d) => {
            Ok(Timespec { tv_sec: i64::try_from(d.seconds).map_err(|_| INVAL)?, tv_nsec: d.nanoseconds as _ })
        }
    };
    Ok(Timestamps { last_access: one(access)?, last_modification: one(modification)? })
}

impl Listing {
    fn next(&mut self) -> Outcome<Option<DirectoryEntry>> {
        if self.ahead.is_empty() && !self.done {
            self.fill()?;
        }
        Ok(self.ahead.pop_front().transpose()?)
    }

    fn fill(&mut self) -> Outcome<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); 8 << 10];
        let mut entries = RawDir::new(self.dir.as_fd(), &mut space);
        loop {
            let Some(e) = entries.next() else {
                self.done = true;
                return Ok(());
            };
            let e = e.map_err(errno)?;
            // A component is not told of these two.
            if !matches!(e.file_name().to_bytes(), b"." | b"..") {
                let name = e.file_name().to_str().map_err(|_| ILSEQ);
                let kind = e.file_type().into();
                self.ahead.push_back(name.map(|n| DirectoryEntry { kind, name: n.to_owned() }));
            }
            if entries.is_buffer_empty() && !self.ahead.is_empty() {
                return Ok(());
            }
        }
    }
}

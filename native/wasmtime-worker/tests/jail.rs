//! Tries to leave the jail from every thread, and reads the status of each.
//! This file is its own harness: a jailed process begins with one thread.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};

use axo_wasmtime::jail::{self, Allow, Dir};
use rustix::fs::{Mode, OFlags, openat};

const MODE: &str = "AXO_TEST_JAIL";
const DIR: &str = "AXO_TEST_DIR";
const THREADS: usize = 3;

fn last() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn sys(r: i64) -> Result<(), i32> {
    if r >= 0 { Ok(()) } else { Err(last()) }
}

/// For calls with arguments that cannot work: any error but EPERM means that
/// the kernel looked at them.
fn let_through(r: Result<(), i32>) -> Result<(), i32> {
    match r {
        Err(e) if e == libc::EPERM || e == libc::ENOSYS => Err(e),
        _ => Ok(()),
    }
}

type Attack = (&'static str, fn() -> Result<(), i32>);

/// Tried from every thread. Each returns Ok if it works.
const ATTACKS: &[Attack] = &[
    ("open", || File::open("/etc/passwd").map(drop).map_err(|e| e.raw_os_error().unwrap_or(0))),
    // SAFETY, here and below: the arguments are constants that the calls take.
    ("socket", || sys(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) }.into())),
    ("exec", || {
        // A path that is not there: ENOENT means that the call was let through.
        let argv = [c"x".as_ptr(), std::ptr::null()];
        match sys(unsafe { libc::execv(c"/nonexistent".as_ptr(), argv.as_ptr()) }.into()) {
            Err(libc::ENOENT) => Ok(()),
            r => r,
        }
    }),
    ("fork", || {
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            unsafe { libc::_exit(0) }
        }
        if pid > 0 {
            unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), 0) };
        }
        sys(pid)
    }),
    ("clone3", || {
        // Too short an argument is EINVAL where it is looked at.
        match sys(unsafe { libc::syscall(libc::SYS_clone3, 0, 0) }) {
            Err(libc::EINVAL) => Ok(()),
            r => r,
        }
    }),
    ("kill", || sys(unsafe { libc::kill(libc::getppid(), 0) }.into())),
    ("signals of a file", || sys(unsafe { libc::fcntl(1, libc::F_SETOWN, libc::getppid()) }.into())),
    ("ptrace", || let_through(sys(unsafe { libc::ptrace(libc::PTRACE_ATTACH, 1 << 30, 0, 0) }))),
    ("mount", || {
        let r = unsafe { libc::mount(c"".as_ptr(), c"/nonexistent".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) };
        match sys(r.into()) {
            Err(libc::ENOENT) => Ok(()),
            r => r,
        }
    }),
    ("memfd", || sys(unsafe { libc::memfd_create(c"x".as_ptr(), 0) }.into())),
    ("io_uring", || let_through(sys(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) }))),
    ("bpf", || let_through(sys(unsafe { libc::syscall(libc::SYS_bpf, 0, 0, 0) }))),
    ("unshare", || sys(unsafe { libc::unshare(libc::CLONE_NEWUTS) }.into())),
    ("process_vm_readv", || {
        let r = unsafe { libc::syscall(libc::SYS_process_vm_readv, 1 << 30, 0, 0, 0, 0, 0) };
        let_through(sys(r as i64))
    }),
];

fn try_all(thread: &str) {
    let mut out = String::new();
    for (name, attack) in ATTACKS {
        let r = attack();
        out += &format!("{thread}\t{name}\t{}\t{}\n", r.is_ok(), r.err().unwrap_or(0));
    }
    // One write: lines of several threads do not mix.
    io::stdout().write_all(out.as_bytes()).expect("write");
}

/// Jails itself as a worker does (in the mode "control" it does not), tries
/// every attack, also from new threads where those are allowed, and waits.
fn child(mode: &str) {
    let dir = File::open(std::env::var_os(DIR).expect("a directory")).expect("open it");
    match mode {
        "control" => {}
        "run" => {
            let loading = Allow { files: true, threads: false, file_caps: false };
            jail::enter(&[], None, loading).expect("jail");
            jail::seccomp(Allow { files: false, ..loading }).expect("second filter");
        }
        "mounts" => {
            let allow = Allow { files: true, threads: false, file_caps: false };
            jail::enter(&[Dir { fd: dir.as_fd(), writable: true }], None, allow).expect("jail");
        }
        "compile" => {
            let allow = Allow { files: true, threads: true, file_caps: false };
            jail::enter(&[Dir { fd: dir.as_fd(), writable: true }], None, allow).expect("jail");
        }
        "late" => {
            // With a thread running already the jail must refuse to be built.
            let t = std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(5)));
            let allow = Allow { files: true, threads: true, file_caps: false };
            println!("late\tjail\t{}\t0", jail::enter(&[], None, allow).is_ok());
            println!("READY");
            drop(t);
            return;
        }
        _ => panic!("mode {mode}"),
    }
    try_all("main");
    std::thread::scope(|s| {
        let made: Vec<_> = (0..THREADS)
            .map(|i| {
                std::thread::Builder::new().spawn_scoped(s, move || {
                    try_all(&format!("thread {i}"));
                    io::stdin().read_exact(&mut [0]).ok(); // hold it for the parent's look
                })
            })
            .collect();
        let n = made.iter().filter(|m| m.is_ok()).count();
        println!("made\tthreads\t{}\t{n}", n > 0);
        println!("READY");
        io::stdin().read_exact(&mut [0]).ok();
    });
}

struct Report {
    lines: Vec<(String, String, bool, i32)>,
    statuses: Vec<String>,
}

fn run(mode: &str, dir: &Path, threads: usize) -> Report {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .env(MODE, mode)
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut out = BufReader::new(child.stdout.take().expect("stdout"));
    let mut lines = Vec::new();
    let (mut ready, mut line) = (false, String::new());
    let want = if mode == "late" { 1 } else { ATTACKS.len() * (1 + threads) + 1 };
    while !ready || lines.len() < want {
        line.clear();
        assert_ne!(out.read_line(&mut line).expect("read"), 0, "{mode}: the child ended after {} lines", lines.len());
        if line == "READY\n" {
            ready = true;
            continue;
        }
        let f: Vec<_> = line.trim_end().split('\t').collect();
        assert_eq!(f.len(), 4, "{mode}: {line}");
        lines.push((f[0].into(), f[1].into(), f[2] == "true", f[3].parse().expect("a number")));
    }
    let tasks: PathBuf = format!("/proc/{}/task", child.id()).into();
    let statuses = std::fs::read_dir(tasks)
        .expect("tasks")
        .filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("status")).ok())
        .collect();
    drop(child.stdin.take());
    child.wait().expect("wait");
    Report { lines, statuses }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap_or("").trim()
}

fn every_thread_is_held(dir: &Path) {
    // SAFETY: it takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    for (mode, threads) in [("control", THREADS), ("run", 0), ("mounts", 0), ("compile", THREADS)] {
        let r = run(mode, dir, threads);
        for (thread, attack, worked, code) in &r.lines {
            if attack == "threads" {
                assert_eq!(*code as usize, threads, "{mode}: threads made");
                continue;
            }
            let free = mode == "control";
            if free && (!root && matches!(attack.as_str(), "mount" | "unshare") || attack == "io_uring") {
                continue; // needs privileges, or is turned off on the host
            }
            assert_eq!(*worked, free, "{mode}: {attack} from {thread}: errno {code}");
        }
        assert_eq!(r.statuses.len(), 1 + threads, "{mode}: threads");
        for s in &r.statuses {
            let free = mode == "control";
            for (name, want) in
                [("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", "0000000000000000"), ("CapPrm", "0000000000000000")]
            {
                if free && name.starts_with("Cap") && !root {
                    continue;
                }
                assert_eq!(field(s, name) == want, !free, "{mode}: {name} is {}", field(s, name));
            }
        }
        println!("ok  {mode}: {} attempts", r.lines.len());
    }
}

/// A directory that was open before, and is not listed, is of no use
/// afterwards; a listed one is, for what it is listed for, and so is a file.
fn landlock_child() {
    let base = PathBuf::from(std::env::var_os(DIR).expect("a directory"));
    let open = |n: &str| File::open(base.join(n)).expect("open");
    let (listed, writable, other) = (open("listed"), open("writable"), open("other"));
    let alone = open("other/alone");
    let allow = Allow { files: true, threads: false, file_caps: false };
    let dirs = [Dir { fd: listed.as_fd(), writable: false }, Dir { fd: writable.as_fd(), writable: true }];
    let walls = jail::enter(&dirs, Some(alone.as_fd()), allow).expect("jail");
    if !walls.missing.is_empty() {
        println!("MISSING {:?}", walls.missing);
        return;
    }
    for (name, dir, flags, works) in [
        ("listed to read", &listed, OFlags::RDONLY, true),
        ("listed to write", &listed, OFlags::WRONLY, false),
        ("listed to cut", &listed, OFlags::RDONLY | OFlags::TRUNC, false),
        ("writable to cut", &writable, OFlags::RDWR | OFlags::TRUNC, true),
        ("other to read", &other, OFlags::RDONLY, false),
        ("other to write", &other, OFlags::WRONLY, false),
    ] {
        let r = openat(dir, "f", flags | OFlags::CLOEXEC, Mode::empty());
        println!("{}\t{name}\t{:?}", r.is_ok() == works, r.err());
    }
    for (name, flags, works) in [("file to read", OFlags::RDONLY, true), ("file to write", OFlags::WRONLY, false)] {
        let r = openat(&other, "alone", flags | OFlags::CLOEXEC, Mode::empty());
        println!("{}\t{name}\t{:?}", r.is_ok() == works, r.err());
    }
}

fn landlock(dir: &Path) {
    for d in ["listed", "writable", "other"] {
        std::fs::create_dir(dir.join(d)).expect("mkdir");
        std::fs::write(dir.join(d).join("f"), "x").expect("write");
    }
    std::fs::write(dir.join("other/alone"), "x").expect("write");
    let out = Command::new(std::env::current_exe().expect("this program"))
        .env(MODE, "landlock")
        .env(DIR, dir)
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&out.stdout);
    if text.starts_with("MISSING") && std::env::var_os("AXO_REQUIRE").is_none() {
        println!("SKIPPED landlock: {text}");
        return;
    }
    let good = text.lines().filter(|l| l.starts_with("true")).count();
    assert_eq!((good, text.lines().count()), (8, 8), "{text}{}", String::from_utf8_lossy(&out.stderr));
    println!("ok  landlock");
}

fn main() {
    if let Ok(mode) = std::env::var(MODE) {
        if mode == "landlock" {
            landlock_child()
        } else {
            child(&mode)
        }
        exit(0);
    }
    let dir = std::env::temp_dir().join(format!("axo-jail-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("mkdir");
    every_thread_is_held(&dir);
    let late = run("late", &dir, 0);
    assert!(!late.lines[0].2, "a jail was built around a process with two threads");
    landlock(&dir);
    std::fs::remove_dir_all(&dir).expect("clean up");
}

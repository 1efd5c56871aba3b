//! The worker's end of the connection: the inherited end of a socket pair.
//! Reads and writes block: a worker does one thing at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, IoSlice, IoSliceMut, read, writev};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, recv, recvmsg, sockopt::socket_type,
};

use crate::wire::{self, HEADER, Header};

/// Why the connection cannot go on.
#[derive(Debug)]
pub enum Gone {
    /// The host closed it between two frames.
    Closed,
    Io(io::Error),
    Violation(wire::Violation),
}

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Gone::Closed => f.write_str("connection to the host is closed"),
            Gone::Io(e) => write!(f, "connection to the host: {e}"),
            Gone::Violation(v) => v.fmt(f),
        }
    }
}

impl std::error::Error for Gone {}

impl From<Errno> for Gone {
    fn from(e: Errno) -> Gone {
        Gone::Io(e.into())
    }
}

impl From<wire::Violation> for Gone {
    fn from(v: wire::Violation) -> Gone {
        Gone::Violation(v)
    }
}

/// Where the host puts the worker's end.
const SOCKET: i32 = 3;
/// 253 descriptors fit one message (SCM_MAX_FD, unix(7)).
const MAX_FDS: usize = 253;
const BUFFER: usize = 32 << 10;

pub struct Conn {
    fd: OwnedFd,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// Descriptors that came, until the first message that may have some.
    fds: Option<Vec<OwnedFd>>,
    spin: Duration,
}

impl Conn {
    /// Takes over the inherited descriptor.
    pub fn inherited() -> io::Result<Conn> {
        // SAFETY: nothing else in this process uses the descriptor; if it is
        // not open, the next call says so and it is forgotten, not closed.
        let fd = unsafe { OwnedFd::from_raw_fd(SOCKET) };
        match socket_type(&fd) {
            Ok(SocketType::STREAM) => {}
            other => {
                std::mem::forget(fd);
                let why = other.err().map_or(String::from("of another kind"), |e| e.to_string());
                return Err(io::Error::other(format!(
                    "descriptor {SOCKET} is no stream socket ({why}): this program is started by the engine, not by hand"
                )));
            }
        }
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Conn::new(fd))
    }

    pub fn new(fd: OwnedFd) -> Conn {
        Conn { fd, buf: vec![0; BUFFER], start: 0, end: 0, fds: Some(Vec::new()), spin: Duration::ZERO }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the descriptors that came so far. None are taken from then on.
    pub fn descriptors(&mut self) -> Vec<OwnedFd> {
        self.fds.take().unwrap_or_default()
    }

    /// Has reads look again and again for `d` before they sleep.
    pub fn linger(&mut self, d: Duration) {
        self.spin = d;
    }

    /// Sends one frame, whose body is not copied.
    pub fn send(&mut self, kind: u8, stream: u32, body: &[u8]) -> Result<(), Gone> {
        let h = wire::header(kind, stream, body.len());
        let (mut head, mut body): (&[u8], &[u8]) = (&h, body);
        while !head.is_empty() || !body.is_empty() {
            let n = match writev(&self.fd, &[IoSlice::new(head), IoSlice::new(body)]) {
                Err(Errno::INTR) => continue,
                r => r?,
            };
            let of_head = n.min(head.len());
            head = &head[of_head..];
            body = &body[n - of_head..];
        }
        Ok(())
    }

    /// Waits until a read would not block, or the timeout passed. None waits
    /// for ever.
    pub fn readable(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|t| Instant::now() + t);
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let ts =
                left.map(|l| rustix::time::Timespec { tv_sec: l.as_secs() as i64, tv_nsec: l.subsec_nanos().into() });
            let mut p = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut p, ts.as_ref()) {
                Err(Errno::INTR) => {}
                r => return r.is_ok_and(|n| n > 0),
            }
        }
    }

    /// Whether a whole frame (or a bad one) is in the buffer.
    pub fn buffered(&self) -> bool {
        match wire::parse_header(&self.buf[self.start..self.end]) {
            Ok(None) => false,
            Ok(Some(h)) => self.end - self.start >= HEADER + h.len,
            Err(_) => true,
        }
    }

    /// Returns the next frame. Its body is in `body` until the next call.
    pub fn frame(&mut self) -> Result<Header, Gone> {
        loop {
            if let Some(h) = wire::parse_header(&self.buf[self.start..self.end])? {
                if self.end - self.start >= HEADER + h.len {
                    self.start += HEADER + h.len;
                    return Ok(h);
                }
                // The buffer grows only once a checked header says so.
                if self.buf.len() < HEADER + h.len {
                    self.buf.resize(HEADER + h.len, 0);
                }
            }
            self.fill()?;
        }
    }

    /// The body of the frame that `frame` returned last.
    pub fn body(&self, h: Header) -> &[u8] {
        &self.buf[self.start - h.len..self.start]
    }

    fn fill(&mut self) -> Result<(), Gone> {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        match self.read()? {
            0 if self.end == 0 => Err(Gone::Closed),
            0 => Err(Gone::Violation(wire::Violation("the connection ends inside a frame".into()))),
            n => {
                self.end += n;
                Ok(())
            }
        }
    }

    fn read(&mut self) -> Result<usize, Gone> {
        let into = &mut self.buf[self.end..];
        if let Some(found) = &mut self.fds {
            return read_with_fds(&self.fd, into, found);
        }
        if !self.spin.is_zero() {
            let begin = Instant::now();
            while begin.elapsed() < self.spin {
                match recv(&self.fd, &mut *into, RecvFlags::DONTWAIT) {
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    r => return Ok(r?.0),
                }
            }
        }
        loop {
            match read(&self.fd, &mut *into) {
                Err(Errno::INTR) => {}
                r => return Ok(r?),
            }
        }
    }
}

fn read_with_fds(fd: &OwnedFd, into: &mut [u8], found: &mut Vec<OwnedFd>) -> Result<usize, Gone> {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let msg = loop {
        match recvmsg(fd, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            r => break r?,
        }
    };
    for m in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = m {
            found.extend(fds);
        }
    }
    Ok(msg.bytes)
}

//! The wire protocol, as guest/wire/PROTOCOL.md says it. Every byte that comes
//! is treated as hostile: a violation ends the connection.

use std::fmt;

pub const VERSION: u64 = 1;
pub const HEADER: usize = 9;
/// The largest body of a frame.
pub const MAX_BODY: usize = 1 << 20;
/// The largest piece of input or output that is sent in one frame.
pub const MAX_DATA: usize = 64 << 10;
/// The credit that each direction of a stream begins with.
pub const INITIAL_WINDOW: u64 = 128 << 10;
const MAX_GRANT: u64 = 1 << 30;
const MAX_LIST: usize = 1 << 16;
/// Keeps the descriptors of a LOAD below what one message carries.
pub const MAX_MOUNTS: usize = 200;

pub mod kind {
    pub const HELLO: u8 = 1;
    pub const EXEC: u8 = 3;
    pub const STDIN: u8 = 5;
    pub const STDIN_EOF: u8 = 6;
    pub const STDOUT: u8 = 7;
    pub const STDERR: u8 = 8;
    pub const EXIT: u8 = 9;
    pub const PING: u8 = 12;
    pub const PONG: u8 = 13;
    pub const WINDOW: u8 = 14;
    pub const LOAD: u8 = 18;
    pub const LOADED: u8 = 19;
    pub const COMPILE: u8 = 20;
    pub const COMPILED: u8 = 21;
    pub const FAIL: u8 = 22;
    pub const WAIT: u8 = 23;
    pub const RUN: u8 = 24;
    /// Known, but not to a WASM worker, are those of containers up to here.
    pub const LAST: u8 = 30;
}

/// A violation of the protocol.
#[derive(Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "protocol violation: {}", self.0)
    }
}

impl std::error::Error for Violation {}

type Parsed<T> = Result<T, Violation>;

fn violation<T>(what: String) -> Parsed<T> {
    Err(Violation(what))
}

/// One frame; its body is the range that `parse` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub stream: u32,
    pub len: usize,
}

/// Reads the header at the front of `b`. None: it is not all there.
pub fn parse_header(b: &[u8]) -> Parsed<Option<Header>> {
    let Some(h) = b.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([h[0], h[1], h[2], h[3]]) as usize;
    let kind = h[4];
    if len > MAX_BODY {
        return violation(format!("body of {len} bytes, at most {MAX_BODY} are taken"));
    }
    if kind == 0 || kind > kind::LAST {
        return violation(format!("frame type {kind}"));
    }
    let stream = u32::from_be_bytes([h[5], h[6], h[7], h[8]]);
    Ok(Some(Header { kind, stream, len }))
}

/// The header of a frame with a body of `len` bytes.
pub fn header(kind: u8, stream: u32, len: usize) -> [u8; HEADER] {
    debug_assert!(len <= MAX_BODY);
    let mut h = [0; HEADER];
    h[..4].copy_from_slice(&(len as u32).to_be_bytes());
    h[4] = kind;
    h[5..].copy_from_slice(&stream.to_be_bytes());
    h
}

/// Appends a frame to `out`.
pub fn append(out: &mut Vec<u8>, kind: u8, stream: u32, body: &[u8]) {
    out.extend_from_slice(&header(kind, stream, body.len()));
    out.extend_from_slice(body);
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Parsed<Option<(u8, &'a [u8])>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let Some((h, rest)) = self.0.split_first_chunk::<5>() else {
            return violation(format!("field header of {} bytes", self.0.len()));
        };
        let n = u32::from_be_bytes([h[1], h[2], h[3], h[4]]) as usize;
        if n > rest.len() {
            return violation(format!("field {} of {n} bytes, {} are there", h[0], rest.len()));
        }
        let (value, rest) = rest.split_at(n);
        self.0 = rest;
        Ok(Some((h[0], value)))
    }
}

fn number(v: &[u8]) -> Parsed<u64> {
    match v.try_into() {
        Ok(b) => Ok(u64::from_be_bytes(b)),
        Err(_) => violation(format!("integer of {} bytes", v.len())),
    }
}

fn flag(v: &[u8]) -> Parsed<bool> {
    match number(v)? {
        0 => Ok(false),
        1 => Ok(true),
        n => violation(format!("flag of value {n}")),
    }
}

fn push(list: &mut Vec<Vec<u8>>, v: &[u8]) -> Parsed<()> {
    if list.len() >= MAX_LIST {
        return violation(format!("more than {MAX_LIST} elements"));
    }
    list.push(v.to_vec());
    Ok(())
}

fn unknown<T>(message: &str, tag: u8) -> Parsed<T> {
    violation(format!("{message} has no field {tag}"))
}

fn put(out: &mut Vec<u8>, tag: u8, v: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(v.len() as u32).to_be_bytes());
    out.extend_from_slice(v);
}

fn put_text(out: &mut Vec<u8>, tag: u8, v: &[u8]) {
    if !v.is_empty() {
        put(out, tag, v);
    }
}

fn put_number(out: &mut Vec<u8>, tag: u8, v: u64) {
    if v != 0 {
        put(out, tag, &v.to_be_bytes());
    }
}

/// What opens a connection. The lists are for other sandboxes than this one.
#[derive(Debug, Default)]
pub struct Hello<'a> {
    pub role: &'a str,
    pub engine: &'a str,
    pub execs: &'a [&'a str],
    pub notes: &'a [&'a str],
}

impl Hello<'_> {
    pub fn body(&self) -> Vec<u8> {
        let mut b = Vec::new();
        put_number(&mut b, 1, VERSION);
        put_text(&mut b, 2, self.role.as_bytes());
        put_text(&mut b, 3, self.engine.as_bytes());
        for e in self.execs {
            put(&mut b, 4, e.as_bytes());
        }
        for n in self.notes {
            put(&mut b, 5, n.as_bytes());
        }
        b
    }
}

/// What starts a process. Fields that a WASM worker has no use for are checked
/// and dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exec {
    pub args: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub memory: u64,
    pub fuel: u64,
    pub files: u64,
    pub disk: u64,
    pub no_stdin: bool,
    pub linger: u64,
}

impl Exec {
    pub fn parse(body: &[u8]) -> Parsed<Exec> {
        let mut m = Exec::default();
        let mut f = Fields(body);
        while let Some((tag, v)) = f.next()? {
            match tag {
                1 | 4 | 5 => {}
                2 => push(&mut m.args, v)?,
                3 => push(&mut m.env, v)?,
                6 => m.memory = number(v)?,
                7 => m.fuel = number(v)?,
                8 => m.files = number(v)?,
                9 => m.disk = number(v)?,
                10 => m.no_stdin = flag(v)?,
                11 => _ = flag(v)?,
                12 | 13 => _ = number(v)?,
                14 => m.linger = number(v)?,
                _ => return unknown("EXEC", tag),
            }
        }
        Ok(m)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub destination: Vec<u8>,
    pub read_only: bool,
}

impl Mount {
    fn parse(body: &[u8]) -> Parsed<Mount> {
        let mut m = Mount::default();
        let mut f = Fields(body);
        while let Some((tag, v)) = f.next()? {
            match tag {
                1 => m.destination = v.to_vec(),
                2 => {}
                3 => m.read_only = flag(v)?,
                _ => return unknown("LOAD mount", tag),
            }
        }
        Ok(m)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub fuel: bool,
    pub has_image: bool,
    pub memory: u64,
    pub by_path: bool,
    pub mounts: Vec<Mount>,
    pub jail: bool,
    pub has_start: bool,
}

impl Load {
    pub fn parse(body: &[u8]) -> Parsed<Load> {
        let mut m = Load::default();
        let mut f = Fields(body);
        while let Some((tag, v)) = f.next()? {
            match tag {
                1 => m.fuel = flag(v)?,
                2 => m.has_image = flag(v)?,
                3 => _ = number(v)?,
                4 => m.memory = number(v)?,
                5 => m.by_path = flag(v)?,
                6..=8 => {}
                9 => {
                    if m.mounts.len() >= MAX_MOUNTS {
                        return violation(format!("more than {MAX_MOUNTS} mounts"));
                    }
                    m.mounts.push(Mount::parse(v)?);
                }
                10 => m.jail = flag(v)?,
                11 => m.has_start = flag(v)?,
                _ => return unknown("LOAD", tag),
            }
        }
        Ok(m)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compile {
    pub fuel: bool,
    pub image: bool,
    pub by_path: bool,
    pub jail: bool,
}

impl Compile {
    pub fn parse(body: &[u8]) -> Parsed<Compile> {
        let mut m = Compile::default();
        let mut f = Fields(body);
        while let Some((tag, v)) = f.next()? {
            match tag {
                1 => m.fuel = flag(v)?,
                2 => m.image = flag(v)?,
                3 => m.by_path = flag(v)?,
                4 | 5 => {}
                6 => m.jail = flag(v)?,
                _ => return unknown("COMPILE", tag),
            }
        }
        Ok(m)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// A memory image of its own file; this engine keeps it in the artefact.
    pub has_image: bool,
    pub image_base: u64,
    pub min_memory: u64,
    pub max_memory: u64,
    pub has_start: bool,
}

impl Compiled {
    pub fn body(&self) -> Vec<u8> {
        let mut b = Vec::new();
        put_number(&mut b, 1, self.has_image.into());
        put_number(&mut b, 2, self.image_base);
        put_number(&mut b, 3, self.min_memory);
        put_number(&mut b, 4, self.max_memory);
        put_number(&mut b, 5, self.has_start.into());
        b
    }
}

#[derive(Debug, Default)]
pub struct Walls {
    pub walls: Vec<String>,
    pub missing: Vec<String>,
}

impl Walls {
    pub fn body(&self) -> Vec<u8> {
        let mut b = Vec::new();
        for w in &self.walls {
            put(&mut b, 1, w.as_bytes());
        }
        for w in &self.missing {
            put(&mut b, 2, w.as_bytes());
        }
        b
    }
}

pub fn fail(class: &str, message: &str) -> Vec<u8> {
    let mut b = Vec::new();
    put_text(&mut b, 1, class.as_bytes());
    put_text(&mut b, 2, message.as_bytes());
    b
}

#[derive(Debug, PartialEq, Eq)]
pub struct Window {
    pub of: u8,
    pub bytes: u64,
}

impl Window {
    pub fn parse(body: &[u8]) -> Parsed<Window> {
        let (mut of, mut bytes) = (0, 0);
        let mut f = Fields(body);
        while let Some((tag, v)) = f.next()? {
            match tag {
                1 => of = number(v)?,
                2 => bytes = number(v)?,
                _ => return unknown("WINDOW", tag),
            }
        }
        match u8::try_from(of) {
            Ok(of @ (kind::STDIN | kind::STDOUT | kind::STDERR)) if bytes > 0 && bytes <= MAX_GRANT => {
                Ok(Window { of, bytes })
            }
            _ => violation(format!("WINDOW of {bytes} bytes for type {of}")),
        }
    }

    pub fn body(&self) -> Vec<u8> {
        let mut b = Vec::new();
        put_number(&mut b, 1, self.of.into());
        put_number(&mut b, 2, self.bytes);
        b
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cause {
    #[default]
    Exited = 1,
    Trap = 3,
    Fuel = 4,
    Failed = 5,
}

#[derive(Debug, Default)]
pub struct Exit {
    pub cause: Cause,
    pub code: u64,
    /// A module has no signals.
    pub signal: u64,
    pub detail: String,
    pub cpu: u64,
    pub peak_memory: u64,
    pub fuel: u64,
    pub stdout: u64,
    pub stderr: u64,
    pub memory_hits: u64,
    pub disk_hits: u64,
    pub file_hits: u64,
    pub table_hits: u64,
    pub stack_hits: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

impl Exit {
    pub fn body(&self) -> Vec<u8> {
        let mut b = Vec::new();
        for (tag, v) in [
            (1, self.cause as u64),
            (2, self.code),
            (3, self.signal),
            (5, self.cpu),
            (6, self.peak_memory),
            (7, self.fuel),
            (8, self.stdout),
            (9, self.stderr),
            (10, self.memory_hits),
            (11, self.disk_hits),
            (12, self.file_hits),
            (13, self.table_hits),
            (14, self.read_bytes),
            (15, self.written_bytes),
            (16, self.stack_hits),
        ] {
            put_number(&mut b, tag, v);
        }
        put_text(&mut b, 4, self.detail.as_bytes());
        b
    }
}

//! One run of a module, as its WASI functions see it: arguments, environment,
//! and the three streams, under the host's credit.

use std::time::{Duration, Instant};

use crate::conn::{Conn, Gone};
use crate::wire::{self, Exec, Header, INITIAL_WINDOW, MAX_DATA, Violation, Window, kind};

pub struct Process {
    pub conn: Conn,
    pub stream: u32,
    pub args: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    granted: bool,
    input: Vec<u8>,
    taken: usize,
    eof: bool,
    /// Bytes read since the last WINDOW.
    owed: u64,
    pub stdout: Output,
    pub stderr: Output,
}

/// stdout or stderr. Nothing is buffered: what was written before a kill has
/// left the worker.
pub struct Output {
    kind: u8,
    credit: u64,
    pub total: u64,
}

impl Output {
    fn new(kind: u8) -> Output {
        Output { kind, credit: INITIAL_WINDOW, total: 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    Stdout,
    Stderr,
}

/// Not worth giving up the slot for: to get it back costs two messages.
pub const SHORT_SLEEP: Duration = Duration::from_micros(500);

impl Process {
    pub fn new(conn: Conn, stream: u32, m: Exec) -> Process {
        Process {
            conn,
            stream,
            args: m.args,
            env: m.env,
            granted: false,
            input: Vec::new(),
            taken: 0,
            eof: m.no_stdin,
            owed: 0,
            stdout: Output::new(kind::STDOUT),
            stderr: Output::new(kind::STDERR),
        }
    }

    fn output(&mut self, which: Which) -> &mut Output {
        match which {
            Which::Stdout => &mut self.stdout,
            Which::Stderr => &mut self.stderr,
        }
    }

    /// Hands a frame to the process. Frames of earlier streams are late, not
    /// wrong, and are dropped.
    fn deliver(&mut self, h: Header) -> Result<(), Gone> {
        let violation = |what: String| Err(Gone::Violation(Violation(what)));
        match h.kind {
            kind::PING => {
                let body = self.conn.body(h).to_vec();
                return self.conn.send(kind::PONG, h.stream, &body);
            }
            kind::STDIN | kind::STDIN_EOF | kind::WINDOW | kind::RUN => {}
            k => return violation(format!("frame type {k} while a process runs")),
        }
        if h.stream < self.stream {
            return Ok(());
        }
        if h.stream > self.stream {
            return violation(format!("frame type {} for stream {}, which is not there", h.kind, h.stream));
        }
        match h.kind {
            kind::STDIN => {
                let body = self.conn.body(h);
                if (self.input.len() - self.taken + body.len()) as u64 > INITIAL_WINDOW {
                    return violation("input beyond its credit".into());
                }
                self.input.drain(..std::mem::take(&mut self.taken));
                self.input.extend_from_slice(body);
            }
            kind::STDIN_EOF => self.eof = true,
            kind::RUN => self.granted = true,
            _ => {
                let w = Window::parse(self.conn.body(h))?;
                let out = match w.of {
                    kind::STDOUT => &mut self.stdout,
                    kind::STDERR => &mut self.stderr,
                    _ => return violation(format!("WINDOW for type {} from the host", w.of)),
                };
                out.credit += w.bytes;
                if out.credit > INITIAL_WINDOW {
                    return violation("more credit back than was taken".into());
                }
            }
        }
        Ok(())
    }

    fn take_frame(&mut self) -> Result<(), Gone> {
        let h = self.conn.frame()?;
        self.deliver(h)
    }

    /// Takes what has come already, without waiting.
    pub fn drain(&mut self) -> Result<(), Gone> {
        while self.conn.buffered() || self.conn.readable(Some(Duration::ZERO)) {
            self.take_frame()?;
        }
        Ok(())
    }

    /// Waits for what frames from the host make true. Meanwhile the host may
    /// let another process compute.
    fn blocked(&mut self, ready: impl Fn(&Process) -> bool) -> Result<(), Gone> {
        self.drain()?;
        if ready(self) {
            return Ok(());
        }
        self.give_slot()?;
        while !ready(self) {
            self.take_frame()?;
        }
        self.regain_slot()
    }

    pub fn give_slot(&mut self) -> Result<(), Gone> {
        self.conn.send(kind::WAIT, self.stream, &[])
    }

    pub fn regain_slot(&mut self) -> Result<(), Gone> {
        self.granted = false;
        self.conn.send(kind::RUN, self.stream, &[])?;
        while !self.granted {
            self.take_frame()?;
        }
        Ok(())
    }

    pub fn sleep(&mut self, d: Duration) -> Result<(), Gone> {
        if d < SHORT_SLEEP {
            std::thread::sleep(d);
            return Ok(());
        }
        self.give_slot()?;
        std::thread::sleep(d);
        self.regain_slot()
    }

    /// Whether a read would return at once.
    pub fn input_ready(&self) -> bool {
        self.taken < self.input.len() || self.eof
    }

    /// How many bytes of input are at hand.
    pub fn input_len(&self) -> usize {
        self.input.len() - self.taken
    }

    /// Waits for input until the timeout; None waits for ever.
    pub fn wait_input(&mut self, timeout: Option<Duration>) -> Result<bool, Gone> {
        self.wait_until(timeout, Process::input_ready)
    }

    /// Waits for what frames from the host make true, until the timeout; None
    /// waits for ever.
    pub fn wait_until(&mut self, timeout: Option<Duration>, ready: impl Fn(&Process) -> bool) -> Result<bool, Gone> {
        let Some(timeout) = timeout else {
            self.blocked(ready)?;
            return Ok(true);
        };
        self.drain()?;
        if ready(self) || timeout.is_zero() {
            return Ok(ready(self));
        }
        self.give_slot()?;
        // A time that no clock reaches is none.
        let deadline = Instant::now().checked_add(timeout);
        while !ready(self) {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) || !self.conn.readable(left) {
                break;
            }
            self.drain()?;
        }
        self.regain_slot()?;
        Ok(ready(self))
    }

    /// Reads what is there; 0 is the end. It waits only if nothing is.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, Gone> {
        if into.is_empty() {
            return Ok(0);
        }
        if !self.input_ready() {
            self.blocked(Process::input_ready)?;
        }
        let n = into.len().min(self.input_len());
        into[..n].copy_from_slice(&self.input[self.taken..self.taken + n]);
        self.taken += n;
        if self.taken == self.input.len() {
            self.input.clear();
            self.taken = 0;
        }
        self.owed += n as u64;
        if self.owed >= INITIAL_WINDOW / 2 && !self.eof {
            let w = Window { of: kind::STDIN, bytes: self.owed };
            self.conn.send(kind::WINDOW, self.stream, &w.body())?;
            self.owed = 0;
        }
        Ok(n)
    }

    /// How many bytes may be written without waiting for the host.
    pub fn credit(&self, which: Which) -> u64 {
        match which {
            Which::Stdout => self.stdout.credit,
            Which::Stderr => self.stderr.credit,
        }
    }

    pub fn has_credit(&self, which: Which) -> bool {
        self.credit(which) > 0
    }

    /// Writes all of `b`, and waits for credit as often as that takes.
    pub fn write(&mut self, which: Which, mut b: &[u8]) -> Result<(), Gone> {
        while !b.is_empty() {
            if !self.has_credit(which) {
                self.blocked(|p| p.has_credit(which))?;
            }
            let stream = self.stream;
            let o = self.output(which);
            let n = b.len().min(MAX_DATA).min(o.credit as usize);
            o.credit -= n as u64;
            o.total += n as u64;
            let kind = o.kind;
            self.conn.send(kind, stream, &b[..n])?;
            b = &b[n..];
        }
        Ok(())
    }
}

/// Serves an idle worker until the next EXEC comes. Frames for a process that
/// has ended are late.
pub fn next_exec(conn: &mut Conn) -> Result<(u32, Exec), Gone> {
    loop {
        let h = conn.frame()?;
        match h.kind {
            kind::EXEC => return Ok((h.stream, Exec::parse(conn.body(h))?)),
            kind::PING => {
                let body = conn.body(h).to_vec();
                conn.send(kind::PONG, h.stream, &body)?;
            }
            kind::STDIN | kind::STDIN_EOF | kind::WINDOW | kind::RUN => {}
            k => return Err(wire::Violation(format!("frame type {k} to an idle worker")).into()),
        }
    }
}

//! wasi:io: streams, what can be waited for, and errors.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::{ReadWriteFlags, pread, pwrite, pwritev2};
use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource};
use wasmtime::{Error, Result};

use super::cli::process;
use super::{Interface, interface};
use crate::conn::Gone;
use crate::files::{BADF, Counts, Errno, Opened, errno};
use crate::process::{Process, Which};
use crate::wasi::{HasView, View};
use crate::wire::MAX_DATA;

pub const INTERFACES: &[&str] = &["error", "poll", "streams"];

/// Why a stream failed.
pub struct IoError(pub Errno);

/// An input-stream.
pub enum Input {
    Stdin,
    File { file: Arc<Opened>, at: u64 },
}

/// An output-stream.
pub enum Output {
    Stream(Which),
    /// Without a place it appends. After an error nothing more is taken.
    File {
        file: Arc<Opened>,
        at: Option<u64>,
        failed: bool,
    },
}

/// What can be waited for. Files are always ready.
#[derive(Clone, Copy)]
pub enum Pollable {
    Always,
    Stdin,
    Output(Which),
    /// At a time; None: never.
    Clock(Option<Instant>),
}

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
pub enum StreamError {
    #[component(name = "last-operation-failed")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

/// Why a call on a stream does not succeed.
enum End {
    Closed,
    Failed(Errno),
    /// The whole run ends.
    Run(Error),
}

impl<E: Into<Error>> From<E> for End {
    fn from(e: E) -> End {
        End::Run(e.into())
    }
}

type Streamed<R> = Result<R, End>;

pub fn add_to_linker<T: HasView>(l: &mut Linker<T>) -> Result<()> {
    interface(l, "io/error")?.resource::<IoError>("error")?.func(
        "[method]error.to-debug-string",
        |v, (e,): (Resource<IoError>,)| {
            let code = v.handles.get(&e)?.0;
            Ok(format!("{:?}", super::filesystem::ErrorCode::from(code)))
        },
    )?;
    interface(l, "io/poll")?
        .resource::<Pollable>("pollable")?
        .func("[method]pollable.ready", |v, (p,): (Resource<Pollable>,)| {
            let p = *v.handles.get(&p)?;
            let process = process(v)?;
            process.drain()?;
            Ok(p.ready(process))
        })?
        .act("[method]pollable.block", |v, (p,): (Resource<Pollable>,)| {
            let p = *v.handles.get(&p)?;
            wait(process(v)?, &[p])?;
            Ok(())
        })?
        .func("poll", |v, (list,): (Vec<Resource<Pollable>>,)| {
            if list.is_empty() {
                return Err(Error::msg("poll of an empty list"));
            }
            let list = list.iter().map(|p| Ok(*v.handles.get(p)?)).collect::<Result<Vec<_>>>()?;
            Ok(wait(process(v)?, &list)?)
        })?;
    let mut streams = interface(l, "io/streams")?;
    streams.resource::<Input>("input-stream")?.resource::<Output>("output-stream")?;
    input_methods(&mut streams)?;
    output_methods(&mut streams)
}

type In = Resource<Input>;
type Out = Resource<Output>;

fn input_methods<T: HasView>(streams: &mut Interface<'_, T>) -> Result<()> {
    streams
        .func("[method]input-stream.read", |v, (s, n): (In, u64)| {
            let r = read(v, &s, n, false);
            answer(v, r)
        })?
        .func("[method]input-stream.blocking-read", |v, (s, n): (In, u64)| {
            let r = read(v, &s, n, true);
            answer(v, r)
        })?
        .func("[method]input-stream.skip", |v, (s, n): (In, u64)| {
            let r = read(v, &s, n, false).map(|b| b.len() as u64);
            answer(v, r)
        })?
        .func("[method]input-stream.blocking-skip", |v, (s, n): (In, u64)| {
            let r = read(v, &s, n, true).map(|b| b.len() as u64);
            answer(v, r)
        })?
        .func("[method]input-stream.subscribe", |v, (s,): (In,)| {
            let p = match v.handles.get(&s)? {
                Input::Stdin => Pollable::Stdin,
                Input::File { .. } => Pollable::Always,
            };
            Ok(v.handles.push(p)?)
        })?;
    Ok(())
}

fn output_methods<T: HasView>(streams: &mut Interface<'_, T>) -> Result<()> {
    streams
        .func("[method]output-stream.check-write", |v, (s,): (Out,)| {
            let r = permit(v, &s);
            answer(v, r)
        })?
        .func("[method]output-stream.write", |v, (s, b): (Out, Vec<u8>)| {
            let r = write(v, &s, &b);
            answer(v, r)
        })?
        .func("[method]output-stream.blocking-write-and-flush", |v, (s, b): (Out, Vec<u8>)| {
            let r = write(v, &s, &b);
            answer(v, r)
        })?
        // Nothing is kept back.
        .func("[method]output-stream.flush", |v, (s,): (Out,)| {
            let r = usable(v, &s);
            answer(v, r)
        })?
        .func("[method]output-stream.blocking-flush", |v, (s,): (Out,)| {
            let r = usable(v, &s);
            answer(v, r)
        })?
        .func("[method]output-stream.subscribe", |v, (s,): (Out,)| {
            let p = match v.handles.get(&s)? {
                Output::Stream(which) => Pollable::Output(*which),
                Output::File { .. } => Pollable::Always,
            };
            Ok(v.handles.push(p)?)
        })?
        .func("[method]output-stream.write-zeroes", |v, (s, n): (Out, u64)| {
            let r = write_zeroes(v, &s, n);
            answer(v, r)
        })?
        .func("[method]output-stream.blocking-write-zeroes-and-flush", |v, (s, n): (Out, u64)| {
            let r = write_zeroes(v, &s, n);
            answer(v, r)
        })?
        .func("[method]output-stream.splice", |v, (s, from, n): (Out, In, u64)| {
            let r = splice(v, &s, &from, n, false);
            answer(v, r)
        })?
        .func("[method]output-stream.blocking-splice", |v, (s, from, n): (Out, In, u64)| {
            let r = splice(v, &s, &from, n, true);
            answer(v, r)
        })?;
    Ok(())
}

/// Turns how a call ended into what the component is told.
fn answer<R>(v: &mut View, r: Streamed<R>) -> Result<Result<R, StreamError>> {
    match r {
        Ok(r) => Ok(Ok(r)),
        Err(End::Closed) => Ok(Err(StreamError::Closed)),
        Err(End::Failed(e)) => Ok(Err(StreamError::LastOperationFailed(v.handles.push(IoError(e))?))),
        Err(End::Run(e)) => Err(e),
    }
}

fn read(v: &mut View, s: &In, n: u64, block: bool) -> Streamed<Vec<u8>> {
    let mut b = vec![0; n.min(MAX_DATA as u64) as usize];
    let got = match v.handles.get_mut(s)? {
        _ if b.is_empty() => return Ok(b),
        Input::Stdin => {
            let p = v.process.as_mut().ok_or_else(|| Error::msg("no process runs"))?;
            if !block {
                p.drain()?;
                if !p.input_ready() {
                    return Ok(Vec::new());
                }
            }
            p.read(&mut b)?
        }
        Input::File { file, at } => {
            let got = pread(&*file, &mut b, *at).map_err(|e| End::Failed(errno(e)))?;
            *at = at.saturating_add(got as u64);
            v.files.counts.read += got as u64;
            got
        }
    };
    if got == 0 {
        return Err(End::Closed);
    }
    b.truncate(got);
    Ok(b)
}

/// How much may be written at once: 0 where that would have to wait.
fn permit(v: &mut View, s: &Out) -> Streamed<u64> {
    usable(v, s)?;
    match *v.handles.get(s)? {
        Output::Stream(which) => {
            let p = process(v)?;
            p.drain()?;
            Ok(p.credit(which).min(MAX_DATA as u64))
        }
        Output::File { .. } => Ok(MAX_DATA as u64),
    }
}

fn usable(v: &mut View, s: &Out) -> Streamed<()> {
    match v.handles.get(s)? {
        Output::File { failed: true, .. } => Err(End::Closed),
        _ => Ok(()),
    }
}

fn write(v: &mut View, s: &Out, b: &[u8]) -> Streamed<()> {
    if b.len() > MAX_DATA {
        return Err(Error::msg(format!("write of {} bytes, at most {MAX_DATA} were permitted", b.len())).into());
    }
    match v.handles.get_mut(s)? {
        Output::Stream(which) => {
            let which = *which;
            Ok(process(v)?.write(which, b)?)
        }
        Output::File { failed: true, .. } => Err(End::Closed),
        Output::File { file, at, failed } => write_file(file, at, b, &mut v.files.counts).map_err(|e| {
            *failed = true;
            End::Failed(e)
        }),
    }
}

fn write_file(file: &Arc<Opened>, at: &mut Option<u64>, mut b: &[u8], counts: &mut Counts) -> Result<(), Errno> {
    while !b.is_empty() {
        counts.take(b.len() as u64)?;
        let done = match at {
            Some(at) => pwrite(file, b, *at),
            None => pwritev2(file, &[IoSlice::new(b)], u64::MAX, ReadWriteFlags::APPEND),
        };
        let n = match done {
            Ok(0) => return Err(BADF),
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => 0,
            Err(e) => return Err(errno(e)),
        };
        // What was not written is taken again.
        counts.written -= (b.len() - n) as u64;
        if let Some(at) = at {
            *at = at.saturating_add(n as u64);
        }
        b = &b[n..];
    }
    Ok(())
}

fn write_zeroes(v: &mut View, s: &Out, n: u64) -> Streamed<()> {
    // write checks the length; one more than it takes is refused too.
    let zeroes = vec![0; n.min(MAX_DATA as u64 + 1) as usize];
    write(v, s, &zeroes)
}

fn splice(v: &mut View, s: &Out, from: &In, n: u64, block: bool) -> Streamed<u64> {
    let mut n = n.min(MAX_DATA as u64);
    if !block {
        n = n.min(permit(v, s)?);
    }
    let b = read(v, from, n, block)?;
    write(v, s, &b)?;
    Ok(b.len() as u64)
}

impl Pollable {
    fn ready(self, p: &Process) -> bool {
        match self {
            Pollable::Always => true,
            Pollable::Stdin => p.input_ready(),
            Pollable::Output(which) => p.has_credit(which),
            Pollable::Clock(due) => due.is_some_and(|d| d <= Instant::now()),
        }
    }
}

/// Waits until one of the list is ready, and returns which are.
fn wait(p: &mut Process, list: &[Pollable]) -> Result<Vec<u32>, Gone> {
    p.drain()?;
    let from_host = list.iter().any(|l| matches!(l, Pollable::Stdin | Pollable::Output(_)));
    let due = list.iter().filter_map(|l| if let Pollable::Clock(due) = l { *due } else { None }).min();
    loop {
        let ready: Vec<u32> = (0u32..).zip(list).filter(|(_, l)| l.ready(p)).map(|(i, _)| i).collect();
        if !ready.is_empty() {
            return Ok(ready);
        }
        let left = due.map(|d| d.saturating_duration_since(Instant::now()));
        if from_host {
            p.wait_until(left, |p| list.iter().any(|l| l.ready(p)))?;
        } else {
            // Clocks that are never due: the host's deadline ends the wait.
            p.sleep(left.unwrap_or(std::time::Duration::MAX))?;
        }
    }
}

//! The compile worker: it answers one COMPILE. The module is hostile: the
//! process is jailed before a byte of it is read.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use crate::check::{self, EXHAUSTED, INVALID, Info, MAX_MODULE, Refusal, UNSUPPORTED};
use crate::conn::{Conn, Gone};
use crate::engine::{self, ENGINE, Settings};
use crate::jail::{self, Allow, Dir};
use crate::run::Program;
use crate::wire::{self, Compile, Compiled, Hello, Violation, kind};

/// The one file of an artefact.
pub const ARTEFACT: &str = "module.cwasm";

pub fn serve(mut conn: Conn) -> Result<(), Gone> {
    conn.send(kind::HELLO, 0, &Hello { role: "wasm-compile", engine: ENGINE, ..Hello::default() }.body())?;
    let h = conn.frame()?;
    if h.kind != kind::COMPILE {
        return Err(Violation(format!("frame type {} to a compile worker", h.kind)).into());
    }
    let m = Compile::parse(conn.body(h))?;
    let fds = conn.descriptors();
    match compile(fds, &m) {
        Ok(done) => conn.send(kind::COMPILED, h.stream, &done.body()),
        Err(e) => conn.send(kind::FAIL, h.stream, &wire::fail(e.class, first_bytes(&e.text, 4096))),
    }
}

/// The longest prefix of at most `n` bytes that is whole text.
pub fn first_bytes(s: &str, n: usize) -> &str {
    &s[..s.floor_char_boundary(n)]
}

/// An error that is nobody's fault but the worker's.
fn internal(what: &str, e: impl std::fmt::Display) -> Refusal {
    Refusal::new("", format!("{what}: {e}"))
}

fn compile(fds: Vec<OwnedFd>, m: &Compile) -> Result<Compiled, Refusal> {
    let Ok([module, out]) = <[OwnedFd; 2]>::try_from(fds) else {
        return Err(Refusal::new("", "a COMPILE carries two descriptors"));
    };
    if m.jail {
        let allow = Allow { files: true, threads: true, file_caps: false };
        jail::enter(&[Dir { fd: out.as_fd(), writable: true }], None, allow).map_err(|e| internal("jail", e))?;
    }
    let binary = read(module)?;
    let info = check::check(&binary)?;
    let settings = Settings { fuel: m.fuel, component: info.component };
    let engine = engine::compiler(settings).map_err(|e| internal("engine", e))?;
    let artefact = build(&engine, &binary, &info)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&out, ARTEFACT, flags, Mode::from_raw_mode(0o600)).map_err(|e| internal("artefact", e))?;
    File::from(file).write_all(&artefact).map_err(|e| internal("artefact", e))?;
    Ok(Compiled {
        min_memory: info.min_memory,
        max_memory: info.max_memory,
        has_start: info.has_start,
        ..Compiled::default()
    })
}

fn read(module: OwnedFd) -> Result<Vec<u8>, Refusal> {
    let mut file = File::from(module);
    let mut binary = Vec::new();
    let mut begin = || -> std::io::Result<()> {
        use std::io::Seek;
        file.rewind()?;
        (&mut file).take(MAX_MODULE + 1).read_to_end(&mut binary)?;
        Ok(())
    };
    begin().map_err(|e| internal("read module", e))?;
    if binary.len() as u64 > MAX_MODULE {
        return Err(Refusal::new(INVALID, format!("module has more than {MAX_MODULE} bytes")));
    }
    Ok(binary)
}

/// Compiles, and checks that what comes out can be linked.
fn build(engine: &Engine, binary: &[u8], info: &Info) -> Result<Vec<u8>, Refusal> {
    // SAFETY, twice: these are the bytes that the compiler just made.
    let (artefact, program) = if info.component {
        let artefact = engine.precompile_component(binary).map_err(|e| judge(&e))?;
        let c = unsafe { Component::deserialize(engine, &artefact) }.map_err(|e| internal("artefact", e))?;
        (artefact, Program::component(engine, &c))
    } else {
        let artefact = engine.precompile_module(binary).map_err(|e| judge(&e))?;
        let m = unsafe { Module::deserialize(engine, &artefact) }.map_err(|e| internal("artefact", e))?;
        (artefact, Program::module(engine, &m))
    };
    match program {
        Ok(_) => Ok(artefact),
        // It asks for a function that this version of an interface lacks.
        Err(e) if info.component => Err(Refusal::new(UNSUPPORTED, format!("component: {e:#}"))),
        Err(e) => Err(Refusal::new(INVALID, format!("module: {e:#}"))),
    }
}

/// Gives what the engine said its class.
fn judge(e: &wasmtime::Error) -> Refusal {
    let text = format!("{e:#}");
    let class = if text.contains("Cannot allocate memory")
        || text.contains("implementation limit")
        || text.contains("too large")
    {
        EXHAUSTED
    } else if text.contains("not enabled") || text.contains("not supported") || text.contains("disallowed") {
        UNSUPPORTED
    } else {
        INVALID
    };
    Refusal::new(class, format!("compile: {text}"))
}

//! The run worker: it serves one process at a time, each in an instance of its
//! own that was made before the process was asked for, and is used once.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::component::{self, Component, ComponentExportIndex};
use wasmtime::{Engine, Instance, InstancePre, Linker, Module, ResourceLimiter, Result, Store, Trap, TypedFunc};

use crate::conn::{Conn, Gone};
use crate::engine::{self, ENGINE, MAX_TABLE, Settings};
use crate::files::{Directory, Files};
use crate::jail::{self, Allow, Dir};
use crate::p2;
use crate::process::{Process, next_exec};
use crate::wasi::{self, ExitStatus, HasView, View};
use crate::wire::{self, Cause, Exec, Exit, Hello, Load, Violation, Walls, kind};

/// What a store holds.
pub struct Host {
    view: View,
    limits: Limits,
}

impl HasView for Host {
    fn view(&mut self) -> &mut View {
        &mut self.view
    }
}

/// Bounds what a store may have, and counts what was refused.
#[derive(Default)]
pub struct Limits {
    pub memory: usize,
    pub used: usize,
    pub memory_hits: u64,
    /// Elements of all tables.
    pub elements: usize,
    pub table_hits: u64,
}

/// What a component may be put together of; a module is one instance, and has
/// one memory.
const MAX_INSTANCES: usize = 1_000;
const MAX_TABLES: usize = 1_000;
const MAX_MEMORIES: usize = 100;

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        if maximum.is_some_and(|m| desired > m) {
            return Ok(false); // the module's own bound
        }
        let total = (self.used - current.min(self.used)).saturating_add(desired);
        if total > self.memory {
            self.memory_hits += 1;
            return Ok(false);
        }
        self.used = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> Result<()> {
        self.memory_hits += 1;
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        if maximum.is_some_and(|m| desired > m) {
            return Ok(false);
        }
        let total = (self.elements - current.min(self.elements)).saturating_add(desired);
        if total > MAX_TABLE {
            self.table_hits += 1;
            return Ok(false);
        }
        self.elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

/// Compiled code with all that it imports.
pub enum Program {
    Module(InstancePre<Host>),
    Component(component::InstancePre<Host>, ComponentExportIndex),
}

/// What starts an instance of a program.
enum Entry {
    Module(TypedFunc<(), ()>),
    Component(component::TypedFunc<(), (Result<(), ()>,)>),
}

impl Program {
    /// Links a module with the functions of WASI.
    pub fn module(engine: &Engine, m: &Module) -> Result<Program> {
        let mut l = Linker::new(engine);
        wasi::add_to_linker(&mut l)?;
        Ok(Program::Module(l.instantiate_pre(m)?))
    }

    /// Links a command component with them.
    pub fn component(engine: &Engine, c: &Component) -> Result<Program> {
        let mut l = component::Linker::new(engine);
        p2::add_to_linker(&mut l, c)?;
        let run = p2::run_export(c).ok_or_else(|| wasmtime::Error::msg("there is no wasi:cli/run"))?;
        Ok(Program::Component(l.instantiate_pre(c)?, run))
    }

    fn instantiate(&self, store: &mut Store<Host>) -> Result<Entry> {
        match self {
            Program::Module(pre) => {
                let instance: Instance = pre.instantiate(&mut *store)?;
                store.data_mut().view.memory = instance.get_memory(&mut *store, "memory");
                Ok(Entry::Module(instance.get_typed_func(store, "_start")?))
            }
            Program::Component(pre, run) => {
                let instance = pre.instantiate(&mut *store)?;
                Ok(Entry::Component(instance.get_typed_func(store, run)?))
            }
        }
    }
}

impl Entry {
    fn call(&self, store: &mut Store<Host>) -> Result<()> {
        match self {
            Entry::Module(f) => f.call(store, ()),
            Entry::Component(f) => match f.call(store, ())?.0 {
                Ok(()) => Ok(()),
                // All that it tells of its failure.
                Err(()) => Err(wasmtime::Error::new(ExitStatus(1))),
            },
        }
    }
}

pub fn serve(mut conn: Conn) -> Result<(), Gone> {
    conn.send(kind::HELLO, 0, &Hello { role: "wasm-run", engine: ENGINE, ..Hello::default() }.body())?;
    wasi::start_clock();
    // What needs no module is made while the host looks for one.
    let usual = engine::reserve_stack()
        .map_err(|e| e.to_string())
        .and_then(|()| engine::runner(Settings { fuel: false, component: false }).map_err(|e| format!("{e:#}")));
    let h = conn.frame()?;
    if h.kind != kind::LOAD {
        return Err(Violation(format!("frame type {} before LOAD", h.kind)).into());
    }
    let load = Load::parse(conn.body(h))?;
    let fds = conn.descriptors();
    let (mut runner, walls) = match usual.and_then(|e| Runner::prepare(load, fds, e)) {
        Ok(r) => r,
        Err(e) => return conn.send(kind::FAIL, h.stream, &wire::fail("", crate::compile::first_bytes(&e, 4096))),
    };
    conn.send(kind::LOADED, h.stream, &walls.body())?;
    loop {
        let (stream, exec) = next_exec(&mut conn)?;
        conn = runner.exec(conn, stream, exec)?;
    }
}

struct Runner {
    load: Load,
    mounts: Vec<OwnedFd>,
    engine: Engine,
    program: Program,
    parked: Option<(Store<Host>, Entry)>,
}

/// Bounds how long an idle worker may look for its next message without
/// sleeping.
const MAX_LINGER: Duration = Duration::from_micros(100);

impl Runner {
    /// Jails the process and then loads the module.
    fn prepare(load: Load, mut fds: Vec<OwnedFd>, usual: Engine) -> Result<(Runner, Walls), String> {
        let text = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
        if fds.len() != 1 + load.mounts.len() || load.has_image || load.by_path {
            return Err(format!("{} descriptors came for an artefact and {} mounts", fds.len(), load.mounts.len()));
        }
        let mounts = fds.split_off(1);
        let artefact = File::from(fds.remove(0));
        let mut walls = Walls::default();
        let with_files = !mounts.is_empty();
        if load.jail {
            let dirs: Vec<_> =
                mounts.iter().zip(&load.mounts).map(|(fd, m)| Dir { fd: fd.as_fd(), writable: !m.read_only }).collect();
            let allow = Allow { files: true, threads: false, file_caps: with_files };
            walls = jail::enter(&dirs, Some(artefact.as_fd()), allow).map_err(text("jail"))?;
        }
        let component = is_component(&artefact).map_err(text("artefact"))?;
        let settings = Settings { fuel: load.fuel, component };
        let engine = if settings == (Settings { fuel: false, component: false }) {
            usual
        } else {
            drop(usual);
            engine::runner(settings).map_err(|e| format!("engine: {e:#}"))?
        };
        // SAFETY: the host verified that the artefact is what a compile worker
        // made of the module, and sealed it.
        let program = unsafe { load_native(&engine, artefact, component) }?;
        let mut r = Runner { load, mounts, engine, program, parked: None };
        if !r.load.has_start {
            r.parked = Some(r.instantiate(None).map_err(|(e, _)| format!("module: {e:#}"))?);
        }
        if r.load.jail {
            // What loading needed is not needed any more.
            walls.walls.push(if with_files {
                "seccomp: allow-list without processes, threads or new sockets".into()
            } else {
                jail::seccomp(Allow { files: false, threads: false, file_caps: false }).map_err(text("jail"))?;
                "seccomp: allow-list without files, processes, threads or new sockets".into()
            });
        }
        Ok((r, walls))
    }

    fn files(&self) -> Result<Files, std::io::Error> {
        let mut dirs = Vec::new();
        for (fd, m) in self.mounts.iter().zip(&self.load.mounts) {
            let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
            dirs.push(Directory::preopened(fd, m.read_only, m.destination.clone()));
        }
        Ok(Files::new(dirs))
    }

    /// Makes an instance. With a process, its limits hold and its start
    /// function may use it; what fails then gives the store back.
    #[allow(clippy::type_complexity)]
    fn instantiate(
        &self,
        with: Option<(Process, Limits, u64)>,
    ) -> Result<(Store<Host>, Entry), (wasmtime::Error, Box<Option<Store<Host>>>)> {
        let files = self.files().map_err(|e| (wasmtime::Error::new(e), Box::new(None)))?;
        let (process, limits, fuel) = match with {
            Some((p, l, f)) => (Some(p), l, f),
            None => (None, Limits { memory: self.memory(0), ..Limits::default() }, u64::MAX),
        };
        let mut store = Store::new(&self.engine, Host { view: View::new(process, files), limits });
        store.limiter(|h| &mut h.limits);
        store.set_hostcall_fuel(p2::MAX_CALL);
        let made = if self.load.fuel { store.set_fuel(fuel) } else { Ok(()) };
        match made.and_then(|()| self.program.instantiate(&mut store)) {
            Ok(entry) => Ok((store, entry)),
            Err(e) => Err((e, Box::new(Some(store)))),
        }
    }

    /// The memory limit of a run that asks for `m` bytes.
    fn memory(&self, m: u64) -> usize {
        let most = self.load.memory;
        (if m == 0 { most } else { m.min(most) }) as usize
    }

    /// Serves one EXEC, and then makes the worker ready for the next.
    fn exec(&mut self, mut conn: Conn, stream: u32, m: Exec) -> Result<Conn, Gone> {
        conn.linger(Duration::from_nanos(m.linger).min(MAX_LINGER));
        let memory = self.memory(m.memory);
        let (fuel, files, disk) = (m.fuel, m.files, m.disk);
        let process = Process::new(conn, stream, m);
        let cpu = cpu_time();
        let (mut store, end) = match self.parked.take() {
            Some((mut store, entry)) => {
                let host = store.data_mut();
                host.view.process = Some(process);
                host.limits.memory = memory;
                host.view.files.counts.max_open = files;
                host.view.files.counts.max_written = disk;
                let fueled = if self.load.fuel { store.set_fuel(fuel) } else { Ok(()) };
                let end = fueled.and_then(|()| entry.call(&mut store));
                (store, end)
            }
            None => {
                let limits = Limits { memory, ..Limits::default() };
                match self.instantiate(Some((process, limits, fuel))) {
                    Ok((mut store, entry)) => {
                        let counts = &mut store.data_mut().view.files.counts;
                        counts.max_open = files;
                        counts.max_written = disk;
                        let end = entry.call(&mut store);
                        (store, end)
                    }
                    Err((e, store)) => match *store {
                        Some(store) => (store, Err(e)),
                        None => return Err(Gone::Io(std::io::Error::other(format!("{e:#}")))),
                    },
                }
            }
        };
        let mut exit = match end {
            Ok(()) => Exit { cause: Cause::Exited, ..Exit::default() },
            Err(e) => judge(e, matches!(self.program, Program::Component(..)))?,
        };
        if self.load.fuel {
            exit.fuel = fuel.saturating_sub(store.get_fuel().unwrap_or(0));
        }
        exit.cpu = cpu_time().saturating_sub(cpu);
        let host = store.data_mut();
        let Some(mut process) = host.view.process.take() else {
            return Err(Gone::Io(std::io::Error::other("the process is lost")));
        };
        exit.peak_memory = host.limits.used as u64;
        exit.memory_hits = host.limits.memory_hits;
        exit.table_hits = host.limits.table_hits;
        exit.stdout = process.stdout.total;
        exit.stderr = process.stderr.total;
        let counts = &host.view.files.counts;
        exit.disk_hits = counts.disk_hits;
        exit.file_hits = counts.file_hits;
        exit.read_bytes = counts.read;
        exit.written_bytes = counts.written;
        process.conn.send(kind::EXIT, stream, &exit.body())?;
        // From here on nobody waits.
        drop(store);
        if !self.load.has_start {
            let made = self
                .instantiate(None)
                .map_err(|(e, _)| Gone::Io(std::io::Error::other(format!("next instance: {e:#}"))))?;
            self.parked = Some(made);
        }
        Ok(process.conn)
    }
}

/// Loads native code.
///
/// # Safety
/// The artefact is what a compile worker made, and nobody changes it.
unsafe fn load_native(engine: &Engine, artefact: File, component: bool) -> Result<Program, String> {
    let native = |e: wasmtime::Error| format!("load native code: {e:#}");
    // SAFETY: the caller's word.
    let program = unsafe {
        if component {
            // The engine maps a component by its name only. Mapped it must be: its
            // memory is then a copy-on-write view of the file.
            let name = format!("/proc/self/fd/{}", artefact.as_raw_fd());
            Program::component(engine, &Component::deserialize_file(engine, name).map_err(native)?)
        } else {
            Program::module(engine, &Module::deserialize_open_file(engine, artefact).map_err(native)?)
        }
    };
    program.map_err(|e| format!("link: {e:#}"))
}

/// Looks at the header of an artefact, which is mapped for that.
fn is_component(artefact: &File) -> std::io::Result<bool> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let len = artefact.metadata()?.len() as usize;
    // SAFETY: the mapping is new and private, and nothing keeps a reference
    // into it; the host does not change the file.
    unsafe {
        let at = mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, artefact, 0)?;
        let kind = Engine::detect_precompiled(std::slice::from_raw_parts(at.cast::<u8>(), len));
        munmap(at, len)?;
        Ok(matches!(kind, Some(wasmtime::Precompiled::Component)))
    }
}

fn cpu_time() -> u64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Turns the end of a call into an EXIT. An Err is the host's end. What a
/// component hands to the host can be wrong in ways that are no trap of the
/// engine's, and end it like one.
fn judge(e: wasmtime::Error, component: bool) -> Result<Exit, Gone> {
    if let Some(s) = e.downcast_ref::<ExitStatus>() {
        return Ok(Exit { cause: Cause::Exited, code: s.0.into(), ..Exit::default() });
    }
    if e.is::<Gone>() {
        return Err(e.downcast::<Gone>().unwrap_or(Gone::Closed));
    }
    let trap = |detail: &str| Exit { cause: Cause::Trap, detail: detail.into(), ..Exit::default() };
    let text = format!("{e:#}");
    Ok(match e.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Exit { cause: Cause::Fuel, ..Exit::default() },
        Some(Trap::StackOverflow) => Exit { stack_hits: 1, ..trap("stack overflow") },
        // The component model has many, which no other engine here has.
        Some(t) if component && trap_text(*t) == OTHER => trap(&t.to_string()),
        Some(t) => trap(trap_text(*t)),
        None if component => trap(crate::compile::first_bytes(&text, 1024)),
        None => {
            Exit { cause: Cause::Failed, detail: crate::compile::first_bytes(&text, 1024).into(), ..Exit::default() }
        }
    })
}

const OTHER: &str = "other";

/// The names of traps, the same for every engine.
fn trap_text(t: Trap) -> &'static str {
    match t {
        Trap::UnreachableCodeReached => "unreachable",
        Trap::MemoryOutOfBounds => "out of bounds memory access",
        Trap::TableOutOfBounds | Trap::IndirectCallToNull => "invalid table access",
        Trap::BadSignature => "indirect call type mismatch",
        Trap::IntegerOverflow => "integer overflow",
        Trap::IntegerDivisionByZero => "integer divide by zero",
        Trap::BadConversionToInteger => "invalid conversion to integer",
        _ => OTHER,
    }
}

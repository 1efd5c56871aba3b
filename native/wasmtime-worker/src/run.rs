//! The run worker: it serves one process at a time, each in an instance of its
//! own that was made before the process was asked for, and is used once.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Engine, Instance, InstancePre, Linker, Module, ResourceLimiter, Result, Store, Trap, TypedFunc};

use crate::conn::{Conn, Gone};
use crate::engine::{self, ENGINE, MAX_TABLE, Settings};
use crate::files::{Directory, Files};
use crate::jail::{self, Allow, Dir};
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
    pub table_hits: u64,
}

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

    fn table_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        if maximum.is_some_and(|m| desired > m) {
            return Ok(false);
        }
        if desired > MAX_TABLE {
            self.table_hits += 1;
            return Ok(false);
        }
        Ok(true)
    }
}

/// The functions that modules may import.
pub fn linker(engine: &Engine) -> Result<Linker<Host>> {
    let mut l = Linker::new(engine);
    wasi::add_to_linker(&mut l)?;
    Ok(l)
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
    pre: InstancePre<Host>,
    parked: Option<(Store<Host>, Instance)>,
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
            walls = jail::enter(&dirs, allow).map_err(text("jail"))?;
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
        let module = unsafe { Module::deserialize_open_file(&engine, artefact) }
            .map_err(|e| format!("load native code: {e:#}"))?;
        let pre = linker(&engine).and_then(|l| l.instantiate_pre(&module)).map_err(|e| format!("module: {e:#}"))?;
        let mut r = Runner { load, mounts, engine, pre, parked: None };
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
            dirs.push(Directory { fd, read_only: m.read_only, preopen: Some(m.destination.clone()) });
        }
        Ok(Files::new(dirs))
    }

    /// Makes an instance. With a process, its limits hold and its start
    /// function may use it; what fails then gives the store back.
    #[allow(clippy::type_complexity)]
    fn instantiate(
        &self,
        with: Option<(Process, Limits, u64)>,
    ) -> Result<(Store<Host>, Instance), (wasmtime::Error, Box<Option<Store<Host>>>)> {
        let files = self.files().map_err(|e| (wasmtime::Error::new(e), Box::new(None)))?;
        let (process, limits, fuel) = match with {
            Some((p, l, f)) => (Some(p), l, f),
            None => (None, Limits { memory: self.memory(0), ..Limits::default() }, u64::MAX),
        };
        let host = Host { view: View { memory: None, process, files }, limits };
        let mut store = Store::new(&self.engine, host);
        store.limiter(|h| &mut h.limits);
        let made = if self.load.fuel { store.set_fuel(fuel) } else { Ok(()) };
        match made.and_then(|()| self.pre.instantiate(&mut store)) {
            Ok(i) => {
                store.data_mut().view.memory = i.get_memory(&mut store, "memory");
                Ok((store, i))
            }
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
            Some((mut store, instance)) => {
                let host = store.data_mut();
                host.view.process = Some(process);
                host.limits.memory = memory;
                host.view.files.counts.max_open = files;
                host.view.files.counts.max_written = disk;
                let end = self.start(&mut store, &instance, fuel);
                (store, end)
            }
            None => {
                let limits = Limits { memory, ..Limits::default() };
                match self.instantiate(Some((process, limits, fuel))) {
                    Ok((mut store, instance)) => {
                        let counts = &mut store.data_mut().view.files.counts;
                        counts.max_open = files;
                        counts.max_written = disk;
                        let end = self.call(&mut store, &instance);
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
            Err(e) => judge(e)?,
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

    fn start(&self, store: &mut Store<Host>, instance: &Instance, fuel: u64) -> Result<()> {
        if self.load.fuel {
            store.set_fuel(fuel)?;
        }
        self.call(store, instance)
    }

    fn call(&self, store: &mut Store<Host>, instance: &Instance) -> Result<()> {
        let f: TypedFunc<(), ()> = instance.get_typed_func(&mut *store, "_start")?;
        f.call(store, ())
    }
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

/// Turns the end of a call into an EXIT. An Err is the host's end.
fn judge(e: wasmtime::Error) -> Result<Exit, Gone> {
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
        Some(t) => trap(trap_text(*t)),
        None => {
            Exit { cause: Cause::Failed, detail: crate::compile::first_bytes(&text, 1024).into(), ..Exit::default() }
        }
    })
}

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
        _ => "other",
    }
}

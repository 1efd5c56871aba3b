//! What it costs a computing module to be interruptible from inside: nothing that
//! looks, fuel, and epochs, which the worker does not use. In turn in one process,
//! on the worker's own engine settings and WASI functions:
//!
//!     checks MODULE ROUNDS [ARG...]
//!
//! prints the median CPU time of each in nanoseconds.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use axo_wasmtime::conn::Conn;
use axo_wasmtime::engine::{self, Settings};
use axo_wasmtime::files::Files;
use axo_wasmtime::process::Process;
use axo_wasmtime::wasi::{self, HasView, View};
use axo_wasmtime::wire::Exec;
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Engine, InstancePre, Linker, Module, Result, Store};

struct Host(View);

impl HasView for Host {
    fn view(&mut self) -> &mut View {
        &mut self.0
    }
}

struct Way {
    name: &'static str,
    engine: Engine,
    pre: InstancePre<Host>,
    took: Vec<Duration>,
}

impl Way {
    fn new(name: &'static str, module: &str) -> Result<Way> {
        let mut c = engine::config(Settings { fuel: name == "fuel", component: false });
        c.epoch_interruption(name == "epoch");
        let engine = Engine::new(&c)?;
        let mut linker = Linker::new(&engine);
        wasi::add_to_linker(&mut linker)?;
        let pre = linker.instantiate_pre(&Module::new(&engine, std::fs::read(module)?)?)?;
        Ok(Way { name, engine, pre, took: Vec::new() })
    }

    fn run(&mut self, args: &[String]) -> Result<()> {
        // What it writes stays in the socket's buffer.
        let (_host, worker) = UnixStream::pair()?;
        let args = std::iter::once("prog").chain(args.iter().map(String::as_str)).map(Into::into).collect();
        let exec = Exec { args, no_stdin: true, ..Exec::default() };
        let view = View::new(Some(Process::new(Conn::new(worker.into()), 1, exec)), Files::new(Vec::new()));
        let mut store = Store::new(&self.engine, Host(view));
        match self.name {
            "fuel" => store.set_fuel(u64::MAX)?,
            "epoch" => store.set_epoch_deadline(1 << 40),
            _ => {}
        }
        let start = self.pre.instantiate(&mut store)?.get_typed_func::<(), ()>(&mut store, "_start")?;
        let began = cpu_time();
        match start.call(&mut store, ()) {
            Err(e) if e.downcast_ref::<wasi::ExitStatus>().is_none_or(|s| s.0 != 0) => return Err(e),
            _ => self.took.push(cpu_time() - began),
        }
        Ok(())
    }
}

fn cpu_time() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn main() -> Result<()> {
    // "--bench" is cargo's.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [module, rounds, args @ ..] = args.as_slice() else {
        return Err(wasmtime::Error::msg("usage: checks MODULE ROUNDS [ARG...]"));
    };
    engine::reserve_stack()?;
    let mut ways = Vec::new();
    for name in ["none", "fuel", "epoch"] {
        let way = Way::new(name, module)?;
        if name == "epoch" {
            let engine = way.engine.clone();
            std::thread::spawn(move || {
                loop {
                    std::thread::sleep(Duration::from_millis(1));
                    engine.increment_epoch();
                }
            });
        }
        ways.push(way);
    }
    for _ in 0..rounds.parse::<usize>().map_err(wasmtime::Error::new)? {
        for way in &mut ways {
            way.run(args)?;
        }
    }
    for way in &mut ways {
        way.took.sort();
        println!("{} {}", way.name, way.took[way.took.len() / 2].as_nanos());
    }
    Ok(())
}

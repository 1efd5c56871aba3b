//! How wasmtime is set up. A compile worker and a run worker must agree on it:
//! the engine refuses an artefact that was made under other settings.

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Result};

/// The name and version of the engine, for HELLO and for the key of the
/// artefact cache.
pub const ENGINE: &str = "wasmtime 48.0.8";

/// What changes an artefact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub fuel: bool,
    pub component: bool,
}

/// Native stack of a module in bytes. Interpreters recurse deeply.
const WASM_STACK: usize = 8 << 20;
/// What host functions may take on top of it.
const HOST_STACK: u64 = 4 << 20;
/// Elements of a table, 8 bytes each. CPython's has 12,000.
pub const MAX_TABLE: usize = 1 << 20;
/// Memory that is cleared for the next instance, after the answer; more is given
/// back to the kernel. A program of Go touches most of its first 4 MiB: to clear
/// them takes less processor time than its page faults, and nobody waits for it.
const KEEP_RESIDENT: usize = 4 << 20;

/// What both kinds of engine agree on.
pub fn config(s: Settings) -> Config {
    let mut c = Config::new();
    // WebAssembly 2.0 and tail calls, as the other engine has them. What is
    // beyond is left out until a module needs it: it is also what most of the
    // engine's advisories are about.
    c.wasm_tail_call(true)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_extended_const(false)
        .wasm_function_references(false)
        .wasm_gc(false)
        .wasm_exceptions(false)
        .wasm_threads(false)
        .wasm_multi_memory(s.component)
        .wasm_component_model(s.component);
    c.consume_fuel(s.fuel);
    c.max_wasm_stack(WASM_STACK);
    // No such stack is ever made, but the engine insists on its size.
    c.async_stack_size(WASM_STACK + HOST_STACK as usize);
    // Nobody reads traces of wasm frames; without them artefacts are smaller.
    c.wasm_backtrace_max_frames(None);
    c.generate_address_map(false);
    c.native_unwind_info(false);
    c.memory_init_cow(true);
    c
}

/// An engine that makes artefacts.
pub fn compiler(s: Settings) -> Result<Engine> {
    Engine::new(&config(s))
}

/// An engine that runs one instance at a time.
pub fn runner(s: Settings) -> Result<Engine> {
    let mut c = config(s);
    c.enable_compiler(false);
    if !s.component {
        let mut p = PoolingAllocationConfig::new();
        p.total_core_instances(1)
            .total_memories(1)
            .total_tables(16)
            .max_tables_per_module(16)
            .max_memories_per_module(1)
            .max_core_instance_size(16 << 20)
            .table_elements(MAX_TABLE)
            .max_memory_size(4 << 30)
            .linear_memory_keep_resident(KEEP_RESIDENT)
            .table_keep_resident(KEEP_RESIDENT)
            .max_unused_warm_slots(1)
            .decommit_batch_size(1);
        c.allocation_strategy(InstanceAllocationStrategy::Pooling(p));
    }
    Engine::new(&c)
}

/// Makes room for the stack of a module: the main thread's grows to its limit.
pub fn reserve_stack() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let want = WASM_STACK as u64 + HOST_STACK;
    let have = getrlimit(Resource::Stack);
    if have.current.is_none_or(|c| c >= want) {
        return Ok(());
    }
    if have.maximum.is_some_and(|m| m < want) {
        return Err(std::io::Error::other(format!("the limit of the stack is below {want} bytes")));
    }
    setrlimit(Resource::Stack, Rlimit { current: Some(want), maximum: have.maximum })?;
    Ok(())
}

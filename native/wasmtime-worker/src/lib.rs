//! The wasmtime worker of Axocoatl Isolation: one process, one module, one run
//! at a time, behind a jail, spoken to over guest/wire. The host side is
//! driver/wasm.

pub mod check;
pub mod compile;
pub mod conn;
pub mod engine;
pub mod files;
pub mod jail;
pub mod p2;
pub mod process;
pub mod run;
pub mod wasi;
pub mod wire;

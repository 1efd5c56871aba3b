//! wasi:cli: arguments, environment, the three streams and the end. There is no
//! working directory, and no terminal.

use wasmtime::component::{Linker, Resource};
use wasmtime::{Error, Result};

use super::interface;
use super::io::{Input, Output};
use crate::process::Which;
use crate::wasi::{ExitStatus, HasView, View};

pub const INTERFACES: &[&str] = &[
    "environment",
    "exit",
    "stdin",
    "stdout",
    "stderr",
    "terminal-input",
    "terminal-output",
    "terminal-stdin",
    "terminal-stdout",
    "terminal-stderr",
];

pub struct TerminalInput;
pub struct TerminalOutput;

pub fn add_to_linker<T: HasView>(l: &mut Linker<T>) -> Result<()> {
    interface(l, "cli/environment")?
        .func("get-environment", |v, ()| environment(v))?
        .func("get-arguments", |v, ()| process(v)?.args.iter().map(|a| text(a)).collect::<Result<Vec<_>>>())?
        .func("initial-cwd", |_, ()| Ok(None::<String>))?;
    interface(l, "cli/exit")?
        .act("exit", |_, (status,): (Result<(), ()>,)| Err(ended(status.is_err().into())))?
        .act("exit-with-code", |_, (code,): (u8,)| Err(ended(code)))?;
    interface(l, "cli/stdin")?.func("get-stdin", |v, ()| Ok(v.handles.push(Input::Stdin)?))?;
    interface(l, "cli/stdout")?.func("get-stdout", |v, ()| Ok(v.handles.push(Output::Stream(Which::Stdout))?))?;
    interface(l, "cli/stderr")?.func("get-stderr", |v, ()| Ok(v.handles.push(Output::Stream(Which::Stderr))?))?;
    interface(l, "cli/terminal-input")?.resource::<TerminalInput>("terminal-input")?;
    interface(l, "cli/terminal-output")?.resource::<TerminalOutput>("terminal-output")?;
    interface(l, "cli/terminal-stdin")?.func("get-terminal-stdin", |_, ()| Ok(None::<Resource<TerminalInput>>))?;
    interface(l, "cli/terminal-stdout")?.func("get-terminal-stdout", |_, ()| Ok(None::<Resource<TerminalOutput>>))?;
    interface(l, "cli/terminal-stderr")?.func("get-terminal-stderr", |_, ()| Ok(None::<Resource<TerminalOutput>>))?;
    Ok(())
}

fn ended(code: u8) -> Error {
    Error::new(ExitStatus(code.into()))
}

/// The run that a function is part of.
pub fn process(v: &mut View) -> Result<&mut crate::process::Process> {
    v.process.as_mut().ok_or_else(|| Error::msg("no process runs"))
}

/// Text of the host's. It sends nothing else to a component.
fn text(b: &[u8]) -> Result<String> {
    Ok(std::str::from_utf8(b)?.to_owned())
}

fn environment(v: &mut View) -> Result<Vec<(String, String)>> {
    process(v)?
        .env
        .iter()
        .map(|e| {
            let e = text(e)?;
            let (name, value) = e.split_once('=').unwrap_or((&e, ""));
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

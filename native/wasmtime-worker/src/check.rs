//! Bounds what compiling a module may cost, before it is compiled, and tells
//! what the host must know of it. The engine validates it afterwards.

use std::fmt;

use wasmparser::{BinaryReaderError, ComponentTypeRef, ExternalKind, Operator, Parser, Payload, TypeRef};

use crate::{p2, wasi};

/// The largest module in bytes.
pub const MAX_MODULE: u64 = 256 << 20;
const FUNCTIONS: u32 = 200_000;
const FUNCTION_BYTES: usize = 2 << 20;
const NESTING: usize = 5_000;
const LOCALS: u32 = 50_000;
const TYPES: u32 = 100_000;
const IMPORTS: u32 = 10_000;
const EXPORTS: u32 = 100_000;
const GLOBALS: u32 = 100_000;
const TABLES: u32 = 16;
const SEGMENTS: u32 = 200_000;
/// Core modules, components and instances of a component.
const PARTS: u32 = 1_000;
const PAGE: u64 = 64 << 10;

/// The classes that FAIL carries.
pub const INVALID: &str = "invalid argument";
pub const UNSUPPORTED: &str = "unsupported";
pub const EXHAUSTED: &str = "resource exhausted";

/// Why a module is refused.
#[derive(Debug)]
pub struct Refusal {
    pub class: &'static str,
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    pub fn new(class: &'static str, text: impl Into<String>) -> Refusal {
        Refusal { class, text: text.into() }
    }
}

impl From<BinaryReaderError> for Refusal {
    fn from(e: BinaryReaderError) -> Refusal {
        Refusal::new(INVALID, format!("module: {} (at byte {})", e.message(), e.offset()))
    }
}

/// What a module holds. Of a component, its core modules together.
#[derive(Debug, Default)]
pub struct Info {
    pub component: bool,
    pub min_memory: u64,
    pub max_memory: u64,
    pub has_start: bool,
}

#[derive(Default)]
struct Counts {
    functions: u32,
    types: u32,
    imports: u32,
    exports: u32,
    globals: u32,
    tables: u32,
    segments: u32,
    parts: u32,
}

fn count(n: &mut u32, more: u32, limit: u32, what: &str) -> Result<(), Refusal> {
    *n = n.saturating_add(more);
    if *n > limit {
        return Err(Refusal::new(EXHAUSTED, format!("module: {n} {what}, at most {limit} are taken")));
    }
    Ok(())
}

/// Checks the form of a module or component.
pub fn check(binary: &[u8]) -> Result<Info, Refusal> {
    let mut info = Info { component: Parser::is_component(binary), ..Info::default() };
    let mut n = Counts::default();
    let mut bad_imports = Vec::new();
    let mut command = false;
    let mut start = None;
    // How deep the part that is read lies inside of others.
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(binary) {
        match payload? {
            Payload::TypeSection(s) => count(&mut n.types, s.count(), TYPES, "types")?,
            Payload::ImportSection(s) => {
                count(&mut n.imports, s.count(), IMPORTS, "imports")?;
                if !info.component {
                    for im in s.into_imports() {
                        let im = im?;
                        let known = im.module == wasi::MODULE && wasi::FUNCTIONS.contains(&im.name);
                        if !known || !matches!(im.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                            bad_imports.push(format!("{:.100}.{:.100}", im.module, im.name));
                        }
                    }
                }
            }
            Payload::FunctionSection(s) => count(&mut n.functions, s.count(), FUNCTIONS, "functions")?,
            Payload::TableSection(s) => {
                count(&mut n.tables, s.count(), if info.component { 1_000 } else { TABLES }, "tables")?
            }
            Payload::MemorySection(s) => {
                for m in s {
                    let m = m?;
                    info.min_memory = info.min_memory.saturating_add(m.initial.saturating_mul(PAGE));
                    info.max_memory = info.max_memory.saturating_add(m.maximum.unwrap_or(0).saturating_mul(PAGE));
                }
            }
            Payload::GlobalSection(s) => count(&mut n.globals, s.count(), GLOBALS, "globals")?,
            Payload::ExportSection(s) => {
                count(&mut n.exports, s.count(), EXPORTS, "exports")?;
                for e in s {
                    let e = e?;
                    command |= e.name == "_start" && e.kind == ExternalKind::Func;
                }
            }
            Payload::StartSection { func, .. } => start = Some(func),
            Payload::ElementSection(s) => count(&mut n.segments, s.count(), SEGMENTS, "segments")?,
            Payload::DataSection(s) => count(&mut n.segments, s.count(), SEGMENTS, "segments")?,
            Payload::CodeSectionEntry(body) => check_body(&body)?,
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                depth += 1;
                count(&mut n.parts, 1, PARTS, "parts")?;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::InstanceSection(s) => count(&mut n.parts, s.count(), PARTS, "parts")?,
            Payload::ComponentInstanceSection(s) => count(&mut n.parts, s.count(), PARTS, "parts")?,
            Payload::ComponentTypeSection(s) => count(&mut n.types, s.count(), TYPES, "types")?,
            Payload::CoreTypeSection(s) => count(&mut n.types, s.count(), TYPES, "types")?,
            Payload::ComponentAliasSection(s) => count(&mut n.exports, s.count(), EXPORTS, "aliases")?,
            Payload::ComponentCanonicalSection(s) => count(&mut n.functions, s.count(), FUNCTIONS, "functions")?,
            Payload::ComponentImportSection(s) => {
                count(&mut n.imports, s.count(), IMPORTS, "imports")?;
                for im in s {
                    let im = im?;
                    let there = matches!(im.ty, ComponentTypeRef::Instance(_)) && p2::provides(im.name.name);
                    // Of a part inside it is the component's business.
                    if depth == 0 && !there {
                        bad_imports.push(format!("{:.100}", im.name.name));
                    }
                }
            }
            Payload::ComponentExportSection(s) => {
                count(&mut n.exports, s.count(), EXPORTS, "exports")?;
                for e in s {
                    command |= depth == 0 && p2::is_run(e?.name.name);
                }
            }
            _ => {}
        }
    }
    info.has_start = start.is_some();
    if !command {
        return Err(Refusal::new(INVALID, if info.component { NO_RUN } else { NO_START }));
    }
    refuse_imports(bad_imports, info.component)?;
    Ok(info)
}

const NO_START: &str = "module exports no function _start: it is a library or a reactor, not a command";
const NO_RUN: &str = "component exports no wasi:cli/run of version 0.2: it is no command, or one of another WASI";

fn refuse_imports(mut bad: Vec<String>, component: bool) -> Result<(), Refusal> {
    const SHOW: usize = 10;
    if bad.is_empty() {
        return Ok(());
    }
    let more = if bad.len() > SHOW { format!(" and {} more", bad.len() - SHOW) } else { String::new() };
    bad.truncate(SHOW);
    let names: Vec<_> = bad.iter().map(|b| format!("{b:?}")).collect();
    let (what, there) = if component {
        ("component", "wasi:cli, clocks, filesystem, io, random and sockets of version 0.2 are there".into())
    } else {
        ("module", format!("only the functions of {} are there", wasi::MODULE))
    };
    Err(Refusal::new(UNSUPPORTED, format!("{what} imports {}{more}: {there}", names.join(", "))))
}

fn check_body(body: &wasmparser::FunctionBody<'_>) -> Result<(), Refusal> {
    let size = body.range().len();
    if size > FUNCTION_BYTES {
        let text = format!("module: function body of {size} bytes, at most {FUNCTION_BYTES} are taken");
        return Err(Refusal::new(EXHAUSTED, text));
    }
    let mut locals = 0;
    for l in body.get_locals_reader()? {
        count(&mut locals, l?.0, LOCALS, "locals in one function")?;
    }
    let mut depth = 0usize;
    for op in body.get_operators_reader()? {
        match op? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                depth += 1
            }
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING {
            return Err(Refusal::new(EXHAUSTED, format!("module: blocks nested more than {NESTING} deep")));
        }
    }
    Ok(())
}

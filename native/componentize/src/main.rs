//! componentize IN OUT: makes a command component of a WASI preview 1 module, by
//! the adapter that Wasmtime publishes, or of the text of a component (.wat). It
//! serves the tests; nothing of it ships.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as ADAPTER,
};
use wit_component::ComponentEncoder;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = args.as_slice() else {
        eprintln!("usage: componentize IN OUT");
        return ExitCode::from(2);
    };
    match make(Path::new(from), Path::new(to)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("componentize {from}: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn make(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let component = if from.extension().is_some_and(|e| e == "wat") {
        wat::parse_file(from)?
    } else {
        let module = std::fs::read(from)?;
        ComponentEncoder::default().module(&module)?.adapter(NAME, ADAPTER)?.validate(true).encode()?
    };
    Ok(std::fs::write(to, component)?)
}

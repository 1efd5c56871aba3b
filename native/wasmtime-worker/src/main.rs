use std::process::ExitCode;

use axo_wasmtime::{compile, conn::Conn, conn::Gone, run};

fn main() -> ExitCode {
    let role = std::env::args().nth(1).unwrap_or_default();
    let serve: fn(Conn) -> Result<(), Gone> = match role.as_str() {
        "run" => run::serve,
        "compile" => compile::serve,
        _ => {
            eprintln!("axo-wasmtime: this program is started by the engine; its argument is run or compile");
            return ExitCode::from(2);
        }
    };
    let conn = match Conn::inherited() {
        Ok(c) => c,
        Err(e) => {
            eprintln!("axo-wasmtime: {e}");
            return ExitCode::from(2);
        }
    };
    match serve(conn) {
        Ok(()) | Err(Gone::Closed) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("axo-wasmtime: {e}");
            ExitCode::FAILURE
        }
    }
}

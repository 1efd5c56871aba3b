//! What the engine takes, and what is left out of it.

use axo_wasmtime::engine::{self, Settings};

fn compiles(sections: &[u8]) -> Result<(), String> {
    let engine = engine::compiler(Settings { fuel: false, component: false }).expect("an engine");
    let module = [b"\0asm\x01\0\0\0", sections].concat();
    engine.precompile_module(&module).map(drop).map_err(|e| format!("{e:#}"))
}

#[test]
fn proposals() {
    // Type, table and memory sections by their numbers, 1, 4 and 5; 13 is tags.
    for (what, sections) in [
        ("nothing", &[][..]),
        ("a function type", &[1, 4, 1, 0x60, 0, 0]),
        ("a table of externref", &[4, 4, 1, 0x6f, 0, 1]),
        ("a memory", &[5, 3, 1, 0, 1]),
    ] {
        assert_eq!(compiles(sections), Ok(()), "{what}");
    }
    for (what, sections, says) in [
        ("a struct of the GC proposal", &[1, 3, 1, 0x5f, 0][..], "gc"),
        ("a typed reference", &[1, 6, 1, 0x60, 1, 0x63, 0, 0], "function references"),
        ("an exception", &[1, 4, 1, 0x60, 0, 0, 13, 3, 1, 0, 0], "exceptions"),
        ("a shared memory", &[5, 4, 1, 3, 1, 1], "threads"),
        ("a memory of 64 bits", &[5, 3, 1, 4, 1], "memory64"),
        ("two memories", &[5, 5, 2, 0, 1, 0, 1], "multi"),
    ] {
        match compiles(sections) {
            Ok(()) => panic!("{what} is taken"),
            Err(e) => assert!(e.contains(says) && !e.contains("unexpected end"), "{what}: {e}"),
        }
    }
}

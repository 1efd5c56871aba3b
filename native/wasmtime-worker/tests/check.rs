//! What is refused before it is compiled, and why; and hostile bytes for what
//! judges that.

use axo_wasmtime::check::{EXHAUSTED, INVALID, UNSUPPORTED, check};

mod mutate;

/// The binary form of a text, by the tool that the host's tests use too.
fn wat(name: &str, text: &str) -> Vec<u8> {
    let tool = std::env::var_os("AXO_COMPONENTIZE").expect("scripts/wasmtime.sh test, which names the tool");
    let dir = std::env::temp_dir().join(format!("axo-check-{}-{name}", std::process::id()));
    std::fs::create_dir(&dir).expect("mkdir");
    let (from, to) = (dir.join("in.wat"), dir.join("out.wasm"));
    std::fs::write(&from, text).expect("write");
    let made = std::process::Command::new(tool).arg(from).arg(&to).status().expect("run the tool");
    assert!(made.success(), "{text}");
    let binary = std::fs::read(to).expect("read");
    std::fs::remove_dir_all(dir).expect("clean up");
    binary
}

/// The components that the host's tests run.
fn component(test: &str, name: &str) -> Vec<u8> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../internal/testprog/testdata/component/");
    let text = std::fs::read_to_string(format!("{dir}{name}.wat")).expect("text");
    wat(&format!("{test}-{name}"), &text)
}

#[test]
fn modules() {
    let start = r#"(memory (export "memory") 2 7) (func (export "_start"))"#;
    let info = check(&wat("start", &format!("(module {start})"))).expect("a command");
    assert!(!info.component && !info.has_start);
    assert_eq!((info.min_memory, info.max_memory), (2 << 16, 7 << 16));
    let info = check(&wat("started", &format!("(module {start} (func $s) (start $s))"))).expect("a command");
    assert!(info.has_start);
    let nested = "(block ".repeat(5001) + &")".repeat(5001);
    for (text, class, says) in [
        (r#"(module (func (export "run")))"#.into(), INVALID, "_start"),
        (r#"(module (import "env" "f" (func)) (func (export "_start")))"#.into(), UNSUPPORTED, "env.f"),
        (
            r#"(module (import "wasi_snapshot_preview1" "fd_read" (memory 1)) (func (export "_start")))"#.into(),
            UNSUPPORTED,
            "fd_read",
        ),
        (format!(r#"(module (func (export "_start") {nested}))"#), EXHAUSTED, "nested"),
        (format!("(module {} {start})", "(table 1 funcref) ".repeat(17)), EXHAUSTED, "17 tables"),
    ] {
        let e = check(&wat(&says.replace(' ', "-"), &text)).expect_err(says);
        assert!(e.class == class && e.text.contains(says), "{}: {e}", e.class);
    }
}

#[test]
fn components() {
    for name in ["spin", "fail", "socket", "newer"] {
        assert!(check(&component("components", name)).expect(name).component);
    }
    for (name, class, says) in
        [("library", INVALID, "wasi:cli/run"), ("http", UNSUPPORTED, "\"wasi:http/types@0.2.0\"")]
    {
        let e = check(&component("components", name)).expect_err(name);
        assert!(e.class == class && e.text.contains(says), "{name}: {}: {e}", e.class);
    }
    let parts = "(core module) ".repeat(1001);
    let e = check(&wat("parts", &format!("(component {parts})"))).expect_err("many parts");
    assert_eq!(e.class, EXHAUSTED, "{e}");
    // What a part exports does not make its whole a command.
    let inner = r#"(component (component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i))))"#;
    assert_eq!(check(&wat("inner", inner)).expect_err("no command").class, INVALID);
}

/// It must say yes or no, and must not panic, whatever it is given.
#[test]
fn mutated() {
    let mut seeds: Vec<_> =
        ["spin", "fail", "socket", "newer", "library", "http"].map(|n| component("mutated", n)).into();
    seeds.push(wat(
        "seed",
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (table 3 funcref) (global i64 (i64.const 9))
            (func $f (export "_start") (local i32) (loop (br_if 0 (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
            (elem (i32.const 0) $f) (data (i32.const 0) "text"))"#,
    ));
    let mut r = mutate::Random::new();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..200_000 {
        match check(&r.mutated(&seeds)) {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
    }
    assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
}

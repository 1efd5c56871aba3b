//! Holds this implementation to the vectors that bind every one, and its
//! decoder to hostile bytes.

use axo_wasmtime::wire::{
    Cause, Compile, Compiled, Exec, Exit, HEADER, Hello, Load, MAX_BODY, Walls, Window, append, fail, header, kind,
    parse_header,
};
use serde_json::Value;

mod mutate;

fn vectors() -> serde_json::Map<String, Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest/wire/testdata/vectors.json");
    let text = std::fs::read_to_string(path).expect("the vectors of guest/wire");
    serde_json::from_str(&text).expect("vectors are JSON")
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("frame is text");
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
}

fn num(v: &Value) -> u64 {
    v.as_u64().expect("a number")
}

fn list(v: &Value) -> Vec<Vec<u8>> {
    let Some(a) = v.as_array() else { return Vec::new() };
    a.iter().map(|s| s.as_str().expect("text").as_bytes().to_vec()).collect()
}

fn texts(v: &Value) -> Vec<String> {
    list(v).into_iter().map(|b| String::from_utf8(b).expect("UTF-8")).collect()
}

#[test]
fn golden_vectors() {
    let mut seen = Vec::new();
    for (name, v) in vectors() {
        let frame = bytes(&v["frame"]);
        let h = parse_header(&frame).expect("a good frame").expect("a whole header");
        assert_eq!(u64::from(h.kind), num(&v["number"]), "{name}");
        assert_eq!(u64::from(h.stream), num(&v["stream"]), "{name}");
        assert_eq!(h.len, frame.len() - HEADER, "{name}");
        if v["role"] == "guest" {
            continue; // only the header is this worker's business
        }
        let body = &frame[HEADER..];
        let f = &v["fields"];
        let again = match h.kind {
            // What the host sends is decoded.
            kind::EXEC => {
                let m = Exec::parse(body).expect("EXEC");
                let want = Exec {
                    args: list(&f["Args"]),
                    env: list(&f["Env"]),
                    memory: num(&f["Memory"]),
                    fuel: num(&f["Fuel"]),
                    files: num(&f["Files"]),
                    disk: num(&f["Disk"]),
                    no_stdin: f["NoStdin"] == true,
                    linger: num(&f["Linger"]),
                };
                assert_eq!(m, want, "{name}");
                None
            }
            kind::LOAD => {
                let m = Load::parse(body).expect("LOAD");
                assert_eq!(m.fuel, f["Fuel"] == true);
                assert_eq!(m.has_image, f["HasImage"] == true);
                assert_eq!(m.memory, num(&f["Memory"]));
                assert_eq!(m.by_path, f["ByPath"] == true);
                assert_eq!(m.jail, f["Jail"] == true);
                assert_eq!(m.has_start, f["HasStart"] == true);
                let want = f["Mounts"].as_array().expect("mounts");
                assert_eq!(m.mounts.len(), want.len());
                for (got, want) in m.mounts.iter().zip(want) {
                    assert_eq!(got.destination, want["Destination"].as_str().expect("text").as_bytes());
                    assert_eq!(got.read_only, want["ReadOnly"] == true);
                }
                None
            }
            kind::COMPILE => {
                let m = Compile::parse(body).expect("COMPILE");
                let want = Compile {
                    fuel: f["Fuel"] == true,
                    image: f["Image"] == true,
                    by_path: f["ByPath"] == true,
                    jail: f["Jail"] == true,
                };
                assert_eq!(m, want);
                None
            }
            kind::WINDOW => {
                let m = Window::parse(body).expect("WINDOW");
                assert_eq!((u64::from(m.of), m.bytes), (num(&f["Of"]), num(&f["Bytes"])));
                Some(m.body())
            }
            // What the worker sends is encoded.
            kind::HELLO => {
                let (execs, notes) = (texts(&f["Execs"]), texts(&f["Notes"]));
                let execs: Vec<_> = execs.iter().map(String::as_str).collect();
                let notes: Vec<_> = notes.iter().map(String::as_str).collect();
                assert_eq!(num(&f["Version"]), axo_wasmtime::wire::VERSION);
                let role = f["Role"].as_str().expect("text");
                let engine = f["Engine"].as_str().expect("text");
                Some(Hello { role, engine, execs: &execs, notes: &notes }.body())
            }
            kind::EXIT => {
                let cause = match num(&f["Cause"]) {
                    1 => Cause::Exited,
                    3 => Cause::Trap,
                    c => panic!("{name}: cause {c}"),
                };
                let e = Exit {
                    cause,
                    code: num(&f["Code"]),
                    signal: num(&f["Signal"]),
                    detail: f["Detail"].as_str().expect("text").into(),
                    cpu: num(&f["CPU"]),
                    peak_memory: num(&f["PeakMemory"]),
                    fuel: num(&f["Fuel"]),
                    stdout: num(&f["Stdout"]),
                    stderr: num(&f["Stderr"]),
                    memory_hits: num(&f["MemoryHits"]),
                    disk_hits: num(&f["DiskHits"]),
                    file_hits: num(&f["FileHits"]),
                    table_hits: num(&f["TableHits"]),
                    stack_hits: num(&f["StackHits"]),
                    read_bytes: num(&f["ReadBytes"]),
                    written_bytes: num(&f["WrittenBytes"]),
                };
                Some(e.body())
            }
            kind::LOADED => Some(Walls { walls: texts(&f["Walls"]), missing: texts(&f["Missing"]) }.body()),
            kind::COMPILED => {
                let c = Compiled {
                    has_image: f["HasImage"] == true,
                    image_base: num(&f["ImageBase"]),
                    min_memory: num(&f["MinMemory"]),
                    max_memory: num(&f["MaxMemory"]),
                    has_start: f["HasStart"] == true,
                };
                Some(c.body())
            }
            kind::FAIL => Some(fail(f["Class"].as_str().expect("text"), f["Message"].as_str().expect("text"))),
            kind::STDIN
            | kind::STDIN_EOF
            | kind::STDOUT
            | kind::STDERR
            | kind::PING
            | kind::PONG
            | kind::WAIT
            | kind::RUN => Some(body.to_vec()),
            k => panic!("{name}: frames of type {k} are neither the guest's alone nor known here"),
        };
        seen.push(h.kind);
        if let Some(body) = again {
            let mut out = Vec::new();
            append(&mut out, h.kind, h.stream, &body);
            assert_eq!(out, frame, "{name}");
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 17, "kinds of frames that the vectors have: {seen:?}");
}

#[test]
fn bad_headers() {
    assert!(parse_header(&header(kind::EXEC, 1, MAX_BODY)).is_ok_and(|h| h.is_some()));
    let mut long = header(kind::EXEC, 1, 0);
    long[..4].copy_from_slice(&(MAX_BODY as u32 + 1).to_be_bytes());
    assert!(parse_header(&long).is_err());
    assert!(parse_header(&header(0, 1, 0)).is_err());
    assert!(parse_header(&header(kind::LAST + 1, 1, 0)).is_err());
    assert!(parse_header(&header(kind::EXEC, 1, 0)[..8]).is_ok_and(|h| h.is_none()));
}

#[test]
fn bad_bodies() {
    for (what, body) in [
        ("unknown field", &[99, 0, 0, 0, 0][..]),
        ("short header", &[1, 0, 0]),
        ("length beyond the body", &[2, 0, 0, 0, 9, 1]),
        ("length of 4 GiB", &[2, 255, 255, 255, 255, 1]),
        ("integer of 7 bytes", &[6, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]),
        ("flag of 2", &[10, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2]),
    ] {
        assert!(Exec::parse(body).is_err(), "{what}");
    }
    let mut mounts = Vec::new();
    for _ in 0..201 {
        mounts.extend_from_slice(&[9, 0, 0, 0, 0]);
    }
    assert!(Load::parse(&mounts).is_err(), "201 mounts");
    assert!(Load::parse(&mounts[..200 * 5]).is_ok(), "200 mounts");
    let grant = |of, bytes| Window::parse(&Window { of, bytes }.body());
    assert!(grant(kind::STDOUT, 1 << 30).is_ok());
    assert!(grant(kind::STDOUT, (1 << 30) + 1).is_err());
    assert!(grant(kind::STDOUT, 0).is_err());
    assert!(grant(kind::EXIT, 1).is_err());
}

/// Changes what is good, a million times. The decoder must say yes or no, hold
/// no more than it was given, and must not panic.
#[test]
fn mutated_bodies() {
    let seeds: Vec<Vec<u8>> = vectors().values().map(|v| bytes(&v["frame"])).collect();
    let mut r = mutate::Random::new();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..1_000_000 {
        let b = r.mutated(&seeds);
        _ = parse_header(&b);
        let Some(body) = b.get(HEADER..) else { continue };
        let mut judge = |ok: bool| if ok { good += 1 } else { bad += 1 };
        let exec = Exec::parse(body);
        if let Ok(m) = &exec {
            let held: usize = m.args.iter().chain(&m.env).map(Vec::len).sum();
            assert!(held <= body.len());
        }
        judge(exec.is_ok());
        judge(Load::parse(body).is_ok());
        judge(Compile::parse(body).is_ok());
        judge(Window::parse(body).is_ok());
    }
    assert!(good > 10_000 && bad > 10_000, "{good} good, {bad} bad");
}

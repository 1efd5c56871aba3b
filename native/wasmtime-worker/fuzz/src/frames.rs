//! Hostile bytes on the worker's connection: what it makes of them is held against
//! what lies in them, read plainly.

#![no_main]
#![allow(dead_code)] // of the worker's sources not all is called here

#[path = "../../src/conn.rs"]
mod conn;
#[path = "../../src/wire.rs"]
mod wire;

use std::io::Write;
use std::os::unix::net::UnixStream;

use conn::{Conn, Gone};
use libfuzzer_sys::fuzz_target;
use wire::{Compile, Exec, HEADER, Load, MAX_BODY, Window, kind, parse_header};

fuzz_target!(|data: &[u8]| {
    let (mut host, worker) = UnixStream::pair().expect("a socket pair");
    host.write_all(data).expect("what fits a socket's buffer");
    drop(host);
    let mut c = Conn::new(worker.into());
    if data.first().is_some_and(|b| b & 1 == 1) {
        _ = c.descriptors(); // none are taken from here on: another way of reading
    }
    let mut rest = data;
    let end = loop {
        let h = match c.frame() {
            Ok(h) => h,
            Err(e) => break e,
        };
        let plain = parse_header(rest).expect("a good header").expect("a whole one");
        assert_eq!((plain.kind, plain.stream, plain.len), (h.kind, h.stream, h.len));
        assert!(h.kind > 0 && h.kind <= kind::LAST && h.len <= MAX_BODY);
        let body = c.body(h);
        assert_eq!(body, &rest[HEADER..HEADER + h.len]);
        parse(h.kind, body);
        rest = &rest[HEADER + h.len..];
    };
    match end {
        Gone::Closed => assert!(rest.is_empty()),
        Gone::Violation(_) => match parse_header(rest) {
            Ok(Some(h)) => assert!(rest.len() < HEADER + h.len),
            Ok(None) => assert!(!rest.is_empty() && rest.len() < HEADER),
            Err(_) => {}
        },
        Gone::Io(e) => panic!("{e}"),
    }
});

fn parse(kind: u8, body: &[u8]) {
    match kind {
        kind::EXEC => {
            if let Ok(m) = Exec::parse(body) {
                assert!(m.args.iter().chain(&m.env).map(Vec::len).sum::<usize>() <= body.len());
            }
        }
        kind::LOAD => {
            if let Ok(m) = Load::parse(body) {
                assert!(m.mounts.len() <= 200);
                assert!(m.mounts.iter().map(|m| m.destination.len()).sum::<usize>() <= body.len());
            }
        }
        kind::COMPILE => _ = Compile::parse(body),
        kind::WINDOW => {
            if let Ok(m) = Window::parse(body) {
                let again = Window::parse(&m.body()).expect("what was taken once");
                assert_eq!((again.of, again.bytes), (m.of, m.bytes));
            }
        }
        _ => {}
    }
}

//! wasi:clocks and wasi:random.

use std::time::Instant;

use wasmtime::component::{ComponentType, Lift, Linker, Lower};
use wasmtime::{Error, Result};

use super::interface;
use super::io::Pollable;
use crate::wasi::{HasView, MONOTONIC, REALTIME, fill_random, instant, now};

pub const INTERFACES: &[&str] = &["monotonic-clock", "wall-clock"];
pub const RANDOM: &[&str] = &["random", "insecure", "insecure-seed"];

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Datetime {
    pub seconds: u64,
    pub nanoseconds: u32,
}

impl Datetime {
    pub fn new(ns: u64) -> Datetime {
        Datetime { seconds: ns / 1_000_000_000, nanoseconds: (ns % 1_000_000_000) as u32 }
    }
}

pub fn add_to_linker<T: HasView>(l: &mut Linker<T>) -> Result<()> {
    interface(l, "clocks/monotonic-clock")?
        .func("now", |_, ()| time(MONOTONIC))?
        .func("resolution", |_, ()| Ok(1u64))?
        // A time that no clock reaches is never due.
        .func("subscribe-instant", |v, (when,): (u64,)| Ok(v.handles.push(Pollable::Clock(instant(when)))?))?
        .func("subscribe-duration", |v, (d,): (u64,)| {
            let due = Instant::now().checked_add(std::time::Duration::from_nanos(d));
            Ok(v.handles.push(Pollable::Clock(due))?)
        })?;
    interface(l, "clocks/wall-clock")?
        .func("now", |_, ()| Ok(Datetime::new(time(REALTIME)?)))?
        .func("resolution", |_, ()| Ok(Datetime { seconds: 0, nanoseconds: 1000 }))?;
    // The insecure ones have no use for less.
    interface(l, "random/random")?
        .func("get-random-bytes", |_, (len,): (u64,)| random_bytes(len))?
        .func("get-random-u64", |_, ()| random())?;
    interface(l, "random/insecure")?
        .func("get-insecure-random-bytes", |_, (len,): (u64,)| random_bytes(len))?
        .func("get-insecure-random-u64", |_, ()| random())?;
    interface(l, "random/insecure-seed")?.func("insecure-seed", |_, ()| Ok((random()?, random()?)))?;
    Ok(())
}

fn time(clock: u32) -> Result<u64> {
    now(clock).map_err(|e| Error::msg(format!("clock: errno {}", e.0)))
}

fn random_bytes(len: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|n| *n <= super::MAX_CALL);
    let Some(len) = len else {
        return Err(Error::msg(format!("more than {} random bytes in one call", super::MAX_CALL)));
    };
    let mut b = vec![0; len];
    fill_random(&mut b).map_err(|e| Error::msg(format!("random bytes: errno {}", e.0)))?;
    Ok(b)
}

fn random() -> Result<u64> {
    let mut b = [0; 8];
    fill_random(&mut b).map_err(|e| Error::msg(format!("random bytes: errno {}", e.0)))?;
    Ok(u64::from_ne_bytes(b))
}

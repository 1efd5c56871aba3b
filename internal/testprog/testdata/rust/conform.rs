//! Does what its first argument names, with Rust's standard library.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::{env, fs, process, thread, time};

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let rest: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match args.first().map(String::as_str) {
        Some("args") => println!("{:?}", rest),
        Some("env") => println!("{:?}", env::vars().collect::<BTreeMap<_, _>>()),
        Some("echo") => {
            let mut all = Vec::new();
            io::stdin().read_to_end(&mut all)?;
            io::stdout().write_all(&all)?;
        }
        Some("words") => words()?,
        Some("exit") => process::exit(rest[0].parse().unwrap_or(1)),
        Some("panic") => panic!("{}", rest[0]),
        Some("overflow") => println!("{}", depth(1)),
        Some("index") => println!("{}", rest[rest.len()]),
        Some("hog") => hog(),
        Some("spin") => loop {
            std::hint::spin_loop();
        },
        Some("thread") => println!("{:?}", thread::Builder::new().spawn(|| ()).is_err()),
        Some("dial") => println!("{:?}", std::net::TcpStream::connect("127.0.0.1:1").is_err()),
        Some("clock") => {
            let before = time::Instant::now();
            thread::sleep(time::Duration::from_millis(5));
            println!("{} {}", before.elapsed().as_millis() >= 5, time::SystemTime::now() > time::UNIX_EPOCH);
        }
        Some("files") => files(rest[0])?,
        Some("map") => {
            // The keys of a HashMap's hash are random.
            let map: HashMap<u32, u32> = (0..1000).map(|i| (i, i * i)).collect();
            println!("{}", map.values().map(|v| u64::from(*v)).sum::<u64>());
        }
        _ => {
            eprintln!("conform: what?");
            process::exit(2);
        }
    }
    Ok(())
}

fn words() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let mut counts = BTreeMap::new();
    for w in text.split_whitespace() {
        *counts.entry(w).or_insert(0u32) += 1;
    }
    for (w, n) in counts {
        println!("{n} {w}");
    }
    Ok(())
}

fn depth(n: u64) -> u64 {
    let frame = [n; 64];
    // SAFETY: it is in the array. The compiler may not leave it out.
    let seen = unsafe { std::ptr::read_volatile(&frame[(n % 64) as usize]) };
    if seen == u64::MAX { seen } else { depth(n + 1) + seen }
}

fn hog() {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(vec![1; 1 << 20]);
    }
}

/// Each step prints how it ended, by the kind of its error.
fn files(dir: &str) -> io::Result<()> {
    fn kind<T>(what: &str, r: io::Result<T>) -> Option<T> {
        match r {
            Ok(v) => {
                println!("{what}: ok");
                Some(v)
            }
            Err(e) => {
                println!("{what}: {:?}", e.kind());
                None
            }
        }
    }
    let at = |name: &str| format!("{dir}/{name}");
    kind("write", fs::write(at("a"), b"one two"));
    println!("{:?}", fs::read_to_string(at("a"))?);
    kind("create new", fs::OpenOptions::new().write(true).create_new(true).open(at("a")));
    if let Some(mut f) = kind("append", fs::OpenOptions::new().append(true).open(at("a"))) {
        f.write_all(b" three")?;
    }
    println!("{}", fs::metadata(at("a"))?.len());
    kind("mkdir", fs::create_dir_all(at("d/e")));
    kind("rename", fs::rename(at("a"), at("d/e/b")));
    kind("gone", fs::read(at("a")));
    kind("copy", fs::copy(at("d/e/b"), at("c")));
    kind("rmdir", fs::remove_dir(at("d")));
    let mut names: Vec<_> = fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    println!("{names:?}");
    kind("outside", fs::read(at("../../etc/passwd")));
    kind("absolute", fs::read("/etc/passwd"));
    kind("remove", fs::remove_dir_all(at("d")));
    Ok(())
}

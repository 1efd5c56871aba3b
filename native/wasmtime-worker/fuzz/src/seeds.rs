//! Writes the frames of guest/wire's golden vectors into a directory, a file each,
//! and all of them one after another, for the fuzzer to begin with. rustc alone
//! compiles it: in the fuzzer's own build it would have the fuzzer's instruments.

use std::{env, fs, path::Path};

fn main() {
    let [vectors, dir] = env::args().skip(1).collect::<Vec<_>>().try_into().expect("usage: seeds VECTORS DIRECTORY");
    let dir = Path::new(&dir);
    let text = fs::read_to_string(vectors).expect("the vectors");
    fs::create_dir_all(dir).expect("the directory");
    let (mut joined, mut n) = (Vec::new(), 0);
    for line in text.lines() {
        let Some(hex) = line.trim().strip_prefix("\"frame\": \"") else { continue };
        let hex = hex.trim_end_matches(',').trim_end_matches('"');
        let frame: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect();
        fs::write(dir.join(n.to_string()), &frame).expect("a seed");
        joined.extend(frame);
        n += 1;
    }
    assert!(n > 20, "{n} frames in the vectors");
    fs::write(dir.join("all"), joined).expect("a seed");
}

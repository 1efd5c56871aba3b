//! Hostile bytes, the same on every run, made of good ones.

/// A generator of numbers.
pub struct Random(u64);

impl Random {
    pub fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Takes one of the seeds, and cuts, flips, joins and repeats.
    pub fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut b = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(4) {
            let i = self.below(b.len().max(1));
            match self.below(5) {
                0 => b.truncate(i),
                1 if !b.is_empty() => b[i] ^= 1 << self.below(8),
                2 if !b.is_empty() => b[i] = self.next() as u8,
                3 => {
                    let other = &seeds[self.below(seeds.len())];
                    b.extend_from_slice(&other[self.below(other.len())..]);
                }
                _ => b.insert(i.min(b.len()), self.next() as u8),
            }
        }
        b
    }
}

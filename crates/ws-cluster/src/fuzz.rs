//! Hostile input for the parsers of this crate: a corpus of inputs as people and programs write them, with random
//! changes. Each parser states its properties beside its other tests and calls [`search`].
//!
//! By default a search tries the same inputs each time, so that a new failure comes from a change of the code.
//! `WS_CLUSTER_FUZZ_SECONDS=600` lets each search try new inputs for that long; `WS_CLUSTER_FUZZ_SEED` repeats one.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use ws_cluster_core::simulator::Random;

mod targets;

/// Number of inputs that are tried by default.
const INPUTS: u64 = 20_000;

/// Maximum number of changes to one input.
const MAX_CHANGES: u64 = 8;

/// Bytes that have a meaning in one parser or another.
const SPECIAL_BYTES: &[u8] =
    b"\0\x01\x7d\x7e\x7f\x80\x81\x88\x89\x8a\xc0\xc3\xed\xf0\xfe\xff\r\n\t \"'\\{}[]:;,=&%?#/@*.-+eE019uU\xef\xbb\xbf";

/// Calls `check` with the inputs of the corpus and with changed ones. On a panic or an error it fails with the seed,
/// the input and the property that does not hold.
pub(crate) fn search(corpus: &[&[u8]], check: impl Fn(&[u8]) -> Result<(), String>) {
    corpus.iter().for_each(|input| check_input(0, input, &check));
    if let Some(seed) = number("WS_CLUSTER_FUZZ_SEED") {
        return check_input(seed, &changed(seed, corpus), &check);
    }
    let (first, limit) = match number("WS_CLUSTER_FUZZ_SECONDS") {
        Some(seconds) => (fresh(), Some(Duration::from_secs(seconds))),
        None => (0, None),
    };
    let start = Instant::now();
    let mut tried = 0;
    while limit.map_or(tried < INPUTS, |limit| start.elapsed() < limit) {
        let seed = first.wrapping_add(tried);
        check_input(seed, &changed(seed, corpus), &check);
        tried += 1;
    }
    println!("{tried} inputs");
}

fn check_input(seed: u64, input: &[u8], check: &impl Fn(&[u8]) -> Result<(), String>) {
    let why = match catch_unwind(AssertUnwindSafe(|| check(input))) {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(_) => "it panicked".to_owned(),
    };
    panic!("WS_CLUSTER_FUZZ_SEED={seed}: {why}\ninput: {:?}", String::from_utf8_lossy(input));
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn fresh() -> u64 {
    // The standard library makes the keys of each new map random.
    RandomState::new().build_hasher().finish()
}

/// Returns the input of a seed.
fn changed(seed: u64, corpus: &[&[u8]]) -> Vec<u8> {
    let mut random = Random(seed);
    let mut input = random.pick(corpus).to_vec();
    for _ in 0..=random.below(MAX_CHANGES) {
        let at = random.below(input.len() as u64 + 1) as usize;
        let end = at + random.below((input.len() - at) as u64 + 1) as usize;
        match random.below(9) {
            0 => drop(input.drain(at..end)),
            1 => input.truncate(at),
            2 => input.insert(at, *random.pick(SPECIAL_BYTES)),
            3 if at < input.len() => input[at] = *random.pick(SPECIAL_BYTES),
            4 if at < input.len() => input[at] ^= 1 << random.below(8),
            5 => {
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            6 => {
                let other = *random.pick(corpus);
                let from = random.below(other.len() as u64 + 1) as usize;
                input.splice(at..end, other[from..].iter().copied());
            }
            7 => {
                let count = 1 << random.below(10);
                let byte = *random.pick(SPECIAL_BYTES);
                input.splice(at..at, std::iter::repeat_n(byte, count));
            }
            _ => input.splice(at..at, random.below(u64::MAX).to_string().into_bytes()).for_each(drop),
        }
    }
    input
}

//! Runs seeds on all threads. The run of a seed that fails is repeated with its story, which is too slow for all other
//! runs.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Returns why a run failed, or `None` if it did not. A run that fails ends by unwinding from the step that failed.
fn wrong(run: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).or_else(|| Some("it panicked".into()))
}

/// Ends the run with this failure.
pub(super) fn go_wrong(why: String) -> ! {
    // This prints no message of a panic on each thread. The caller of the run prints the failure.
    resume_unwind(Box::new(why))
}

/// Returns the first of the `count` seeds from `first` on whose run fails, and why. The threads take one seed after the
/// other until all are taken or one has failed.
pub(super) fn first_wrong(first: u64, count: u64, run: impl Fn(u64) + Sync) -> Option<(u64, String)> {
    let next = AtomicU64::new(first);
    let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get() as u64).min(count);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    if let Some(why) = wrong(|| run(seed)) {
                        // The other threads finish their present seed, which may be lower.
                        next.store(first + count, Ordering::Relaxed);
                        let mut found = found.lock().expect("no thread panics while it holds this");
                        if found.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *found = Some((seed, why));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().expect("no thread panics while it holds this")
}

/// Runs the seeds from 0 to `default`, so that two versions of the code run the same seeds. If `WS_CLUSTER_RUNS` is
/// set, runs that many fresh seeds instead. If `WS_CLUSTER_SEED` is set, runs that seed with its story. `run` gets the
/// seed, and true if the story is wanted.
pub fn search(default: u64, run: impl Fn(u64, bool) + Sync) {
    if let Some(seed) = number("WS_CLUSTER_SEED") {
        return run(seed, true);
    }
    let (first, count) = match number("WS_CLUSTER_RUNS") {
        Some(count) => {
            let first = fresh();
            println!("seeds {first} to {}", first + count - 1);
            (first, count)
        }
        None => (0, default),
    };
    if let Some((seed, why)) = first_wrong(first, count, |seed| run(seed, false)) {
        let again = wrong(|| run(seed, true));
        println!("replay with WS_CLUSTER_SEED={seed}");
        assert_eq!(again.as_ref(), Some(&why), "a run goes wrong again in the same way");
        panic!("seed {seed}: {why}");
    }
}

/// Returns a random first seed.
fn fresh() -> u64 {
    // The standard library draws the keys of each new map at random.
    (RandomState::new().build_hasher().finish() >> 32) << 20
}

//! Locks that a thread did not get at once, while both cores take and deliver messages. The slow paths of the locks are
//! counted by the kernel (uprobes), so the quick paths run as always. It needs root, `nm` and `readelf`.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use benches::Result;

use super::Stage;
use crate::{
    load::order::{FanOut, Order},
    peers::{Ours, Peer},
};

pub(crate) const CLIENTS: usize = 5_000;
const WARM_UP: usize = 20;
const ROUNDS: usize = 100;

/// Number of connections on which messages are published at the same time.
pub(crate) const PUBLISHERS: usize = 16;

/// The kernel's directory of trace points.
const TRACING: &str = "/sys/kernel/tracing";

/// The slow paths by the ends of their names: of parking_lot, of the standard library, and of jemalloc. Some compilers
/// write the name of a type in angle brackets, which are left out here.
const SLOW: [&str; 7] = [
    "RawMutex::lock_slow",
    "RawRwLock::lock_shared_slow",
    "RawRwLock::lock_exclusive_slow",
    "Mutex::lock_contended",
    "RwLock::read_contended",
    "RwLock::write_contended",
    "malloc_mutex_lock_slow",
];

/// Slow paths that every build of our server has.
const NEEDED: [&str; 3] = [SLOW[0], SLOW[2], SLOW[3]];

#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) deliveries: usize,
    /// Number of contended locks, by their slow paths.
    pub(crate) contended: Vec<(String, u64)>,
}

/// Measures with a server and a load generator that share all cores.
pub(crate) fn measure() -> Result<Figures> {
    let probes = Probes::add(&Ours::path()?)?;
    let ours = Ours::default();
    let mut stage = Stage::set_on(&ours, None, None)?;
    stage.connect(CLIENTS)?;
    stage.settle();
    // The load generator sleeps while nothing has come, so that the server has both cores.
    let order = |stage: &Stage, rounds| {
        let order = stage.all(ours.publish(1), PUBLISHERS, rounds);
        Order::FanOut(FanOut { connections: PUBLISHERS, spin: false, pause_micros: 0, ..order })
    };
    let mut deliver = |rounds| stage.cost(&order(&stage, rounds));
    deliver(WARM_UP)?;
    let before = probes.hits()?;
    let (_, report) = deliver(ROUNDS)?;
    let after = probes.hits()?;
    let hits = before.into_iter().zip(after).map(|(before, after)| after - before);
    let contended = probes.names.iter().cloned().zip(hits).collect();
    Ok(Figures { deliveries: report.done, contended })
}

/// The probes of this process, which are removed when it is dropped.
struct Probes {
    names: Vec<String>,
}

/// The group of the probes.
fn group() -> String {
    format!("benches{}", std::process::id())
}

impl Probes {
    fn add(program: &Path) -> Result<Self> {
        let symbols = output(Command::new("nm").arg("-C").arg(program))?;
        let shift = shift(&output(Command::new("readelf").arg("-SW").arg(program))?)
            .ok_or("the program has no section .text")?;
        let mut probes = Self { names: Vec::new() };
        for (name, address) in slow_paths(&symbols)? {
            let (group, event) = (group(), probes.event(probes.names.len()));
            let place = format!("{}:{:#x}", program.display(), address - shift);
            control("uprobe_events", &format!("p:{group}/{event} {place}"))?;
            probes.names.push(name);
        }
        control(&format!("events/{}/enable", group()), "1")?;
        Ok(probes)
    }

    /// Returns the name of a probe, which is unique.
    fn event(&self, number: usize) -> String {
        format!("slow{}_{number}", std::process::id())
    }

    /// Returns how often each probe was hit so far.
    fn hits(&self) -> Result<Vec<u64>> {
        let profile = fs::read_to_string(Path::new(TRACING).join("uprobe_profile"))?;
        let hits = |number: usize| {
            profile.lines().find_map(|line| {
                let mut words = line.split_whitespace().rev();
                // The number of missed hits, where the kernel shows it, comes last.
                let numbers: Vec<u64> = words.by_ref().map_while(|word| word.parse().ok()).collect();
                let event = self.event(number);
                numbers.last().copied().filter(|_| line.split_whitespace().any(|word| word == event))
            })
        };
        (0..self.names.len()).map(|number| hits(number).ok_or("the kernel does not count".into())).collect()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        // A probe that cannot be removed only costs what it counts.
        let _ = control(&format!("events/{}/enable", group()), "0");
        for number in 0..self.names.len() {
            let _ = control("uprobe_events", &format!("-:{}/{}", group(), self.event(number)));
        }
    }
}

/// Writes a line to a file of the kernel's trace points.
fn control(file: &str, line: &str) -> Result<()> {
    let path: PathBuf = Path::new(TRACING).join(file);
    let written = OpenOptions::new().append(true).open(&path).and_then(|mut file| {
        // In one write, since the kernel reads each as a command.
        file.write_all(format!("{line}\n").as_bytes())
    });
    written.map_err(|error| format!("{}: {error}", path.display()).into())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the names and addresses of slow paths in the output of `nm -C`. Fails if one is missing that must be there:
/// without it, the count would be too low.
fn slow_paths(symbols: &str) -> Result<Vec<(String, u64)>> {
    let path = |line: &str| {
        let (address, rest) = line.split_once(' ')?;
        let (_, name) = rest.split_once(' ')?;
        Some((name.replace(['<', '>'], ""), u64::from_str_radix(address, 16).ok()?))
    };
    let is_slow = |name: &str| SLOW.iter().any(|end| name.ends_with(end));
    let found: Vec<_> = symbols.lines().filter_map(path).filter(|(name, _)| is_slow(name)).collect();
    match NEEDED.iter().find(|end| found.iter().all(|(name, _)| !name.ends_with(*end))) {
        Some(missing) => Err(format!("the program has no symbol `{missing}`: is it stripped?").into()),
        None => Ok(found),
    }
}

/// Returns the difference of the addresses of code and its places in the file, from the output of `readelf -SW`.
fn shift(sections: &str) -> Option<u64> {
    let line = sections.lines().find(|line| line.contains(" .text "))?;
    let words: Vec<&str> = line.split_once(".text")?.1.split_whitespace().collect();
    let number = |index: usize| u64::from_str_radix(words.get(index)?, 16).ok();
    number(1)?.checked_sub(number(2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_paths_are_found_by_their_names() {
        let symbols = "0000000000b97e70 T parking_lot::raw_mutex::RawMutex::lock_slow\n\
                       0000000000b97b70 T parking_lot::raw_mutex::RawMutex::unlock_slow\n\
                       0000000000b98b40 T parking_lot_core::word_lock::WordLock::lock_slow\n\
                       0000000000b99000 T <parking_lot::raw_rwlock::RawRwLock>::lock_exclusive_slow\n\
                       0000000000c53530 T <std::sys::sync::mutex::futex::Mutex>::lock_contended\n";
        let expected = [
            ("parking_lot::raw_mutex::RawMutex::lock_slow", 0xb9_7e70),
            ("parking_lot::raw_rwlock::RawRwLock::lock_exclusive_slow", 0xb9_9000),
            ("std::sys::sync::mutex::futex::Mutex::lock_contended", 0xc5_3530),
        ];
        assert_eq!(slow_paths(symbols).unwrap(), expected.map(|(name, address)| (name.to_owned(), address)));
        let missing = slow_paths("0000000000b97e70 T parking_lot::raw_mutex::RawMutex::lock_slow\n").unwrap_err();
        assert!(missing.to_string().contains("RawRwLock::lock_exclusive_slow"), "{missing}");
        let sections = "  [16] .text             PROGBITS        0000000000356f00 355f00 936afc 00  AX  0   0 64";
        assert_eq!(shift(sections), Some(0x1000));
    }
}

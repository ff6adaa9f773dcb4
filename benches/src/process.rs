//! The processes of a server under test: started on one core, measured, stopped. The cost of a process tree is its CPU
//! time, with that of threads that have ended, and its anonymous memory, which is the memory that it asked the system for.
//! The kernel's own memory for sockets is the same for all servers.

use std::{
    ffi::OsStr,
    fs,
    iter::Sum,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use benches::Result;
use nix::{
    time::{ClockId, clock_getcpuclockid},
    unistd::Pid,
};

/// Time for a server to answer at its port.
const START: Duration = Duration::from_secs(20);

/// Time for a server to end after a signal.
const STOP: Duration = Duration::from_secs(3);

pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a program on this core, or on any core. Its output goes to files in `directory`.
    pub(crate) fn start(core: Option<usize>, command: &Command, directory: &Path) -> Result<Self> {
        let mut pinned = on_core(core, command.get_program());
        pinned.args(command.get_args());
        for (name, value) in command.get_envs() {
            value.map(|value| pinned.env(name, value));
        }
        command.get_current_dir().map(|directory| pinned.current_dir(directory));
        let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("log"))?;
        let child = pinned
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{:?} does not start: {error}", command.get_program()))?;
        Ok(Self { child })
    }

    /// Waits until a process listens at the port.
    pub(crate) fn listening(&mut self, port: u16, directory: &Path) -> Result<()> {
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || began.elapsed() > START {
                let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
                return Err(format!("nothing listens at {port} ({ended:?}): {log}").into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns the CPU time so far of the process and its descendants.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.sum(cpu)
    }

    /// Returns the bytes of anonymous memory of the process and its descendants.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.sum(memory)
    }

    /// Adds a figure of the process and its descendants.
    fn sum<T: Sum>(&self, of: impl Fn(u32) -> Result<T>) -> Result<T> {
        // A descendant may end meanwhile.
        let ended = |pid: u32| pid != self.child.id() && !exists(pid);
        let figures = tree(self.child.id()).into_iter().map(|pid| (pid, of(pid)));
        figures.filter(|(pid, figure)| figure.is_ok() || !ended(*pid)).map(|(_, figure)| figure).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let tree = tree(self.child.id());
        // A script removes its files on this signal. A process that has ended needs none.
        signal("-TERM", self.child.id());
        let began = Instant::now();
        while began.elapsed() < STOP && matches!(self.child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(10));
        }
        tree.into_iter().filter(|pid| exists(*pid)).for_each(|pid| signal("-KILL", pid));
        // The process has ended.
        let _ = self.child.wait();
    }
}

/// Returns the command of a program on this core, or on any core.
pub(crate) fn on_core(core: Option<usize>, program: impl AsRef<OsStr>) -> Command {
    match core {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(core.to_string()).arg(program);
            command
        }
        None => Command::new(program),
    }
}

fn signal(name: &str, pid: u32) {
    // It fails if the process is gone, which is the aim.
    let _ = Command::new("kill").arg(name).arg(pid.to_string()).stderr(Stdio::null()).status();
}

fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Returns the CPU time of one process, with that of its threads that have ended.
fn cpu(pid: u32) -> Result<Duration> {
    let clock: Result<ClockId> = Ok(clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?);
    let time = clock.and_then(|clock| Ok(clock.now()?));
    time.map(Duration::from).map_err(|error| format!("the CPU time of process {pid} cannot be read: {error}").into())
}

fn memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let anonymous = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB"));
    let kilobytes: u64 = anonymous.ok_or_else(|| format!("{path} has no line `Anonymous:`"))?.parse()?;
    Ok(kilobytes * 1024)
}

/// Returns a process and all its descendants.
fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name, in parentheses, may contain anything.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while next < tree.len() {
        let parent = tree[next];
        tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    tree
}

/// Returns ports that are free now.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All of them are taken before one is given back, so that they differ.
    let listeners: Vec<_> =
        (0..N).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<std::io::Result<_>>()?;
    let ports: Vec<_> = listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<_>>()?;
    ports.try_into().map_err(|_| "a port is missing".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_a_process_counts_threads_that_have_ended() {
        let own = std::process::id();
        let before = cpu(own).unwrap();
        let spent = std::thread::spawn(move || {
            while cpu(own).unwrap() < before + Duration::from_millis(20) {}
            cpu(own).unwrap()
        });
        let spent = spent.join().unwrap();
        assert!(cpu(own).unwrap() >= spent);
        assert!(memory(own).unwrap() > 0);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_figures() {
        // Beyond the largest process id of Linux.
        assert!(cpu(1 << 23).is_err() && memory(1 << 23).is_err());
    }

    #[test]
    fn free_ports_differ() {
        let [one, other] = free_ports().unwrap();
        assert_ne!(one, other);
    }
}

//! The machine and the build that figures are from, and what the benches need of the machine: two cores of their own,
//! and enough file descriptors.

use std::{
    fs,
    process::{Command, Stdio},
};

use benches::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Number of file descriptors of a process beyond one for each client.
const DESCRIPTORS: u64 = 1_000;

/// Describes the machine and the build in a line. Figures have no meaning without it.
pub(crate) fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map_or("?", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (compiler, commit) = (said("rustc", &["--version"]), said("git", &["describe", "--always", "--dirty"]));
    let commit = if commit.is_empty() { String::new() } else { format!(", ws-cluster {commit}") };
    format!("{}, {cores} cores, Linux {}, {compiler}{commit}", model.trim(), kernel.trim())
}

/// Returns what a program says in its first line, or nothing if it fails.
fn said(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::null()).output();
    let said = output.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
}

/// Returns the core of the server and that of the load generator: two that this process may use, and that are not threads
/// of one core if there is a choice.
pub(crate) fn cores() -> Result<[usize; 2]> {
    let status = fs::read_to_string("/proc/self/status")?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let allowed = list(allowed.ok_or("/proc/self/status does not say which cores may be used")?.trim())?;
    choose(&allowed, |core| {
        let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
        // Without this file, each is taken for a core of its own.
        fs::read_to_string(path).ok().and_then(|siblings| list(siblings.trim()).ok()).unwrap_or(vec![core])
    })
}

fn choose(allowed: &[usize], siblings: impl Fn(usize) -> Vec<usize>) -> Result<[usize; 2]> {
    let [server, other, ..] = *allowed else { return Err("the benches need two cores".into()) };
    let threads = siblings(server);
    let clients = allowed[1..].iter().copied().find(|core| !threads.contains(core));
    Ok([server, clients.unwrap_or(other)])
}

/// Returns the numbers of a list such as `0-3,8`.
fn list(text: &str) -> Result<Vec<usize>> {
    let ranges = text.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Ok((first.parse()?, last.parse()?))
    });
    let ranges: Vec<(usize, usize)> = ranges.collect::<Result<_>>()?;
    Ok(ranges.into_iter().flat_map(|(first, last)| first..=last).collect())
}

/// Allows this process and those that it starts as many file descriptors as possible. Fails if they are too few for so
/// many clients.
pub(crate) fn raise_descriptors(clients: usize) -> Result<()> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if now < most {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    }
    let needed = clients as u64 + DESCRIPTORS;
    if most < needed {
        let how = "raise the limit (`ulimit -Hn`), or measure fewer clients (`--clients`)";
        return Err(format!("{clients} clients need {needed} file descriptors, and {most} are allowed: {how}").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cores_are_chosen_that_are_no_threads_of_one() {
        assert_eq!(list("0-3,8").unwrap(), [0, 1, 2, 3, 8]);
        assert!(list("").is_err());
        let pairs = |core: usize| vec![core / 2 * 2, core / 2 * 2 + 1];
        assert_eq!(choose(&[0, 1, 2, 3], pairs).unwrap(), [0, 2]);
        assert_eq!(choose(&[4, 5], pairs).unwrap(), [4, 5]);
        assert_eq!(choose(&[5, 6], |core| vec![core]).unwrap(), [5, 6]);
        assert!(choose(&[7], pairs).is_err());
    }
}

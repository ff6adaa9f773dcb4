//! Closes the file descriptors that the process inherited, and raises the limit on their number.

use std::{env, fs, os::fd::RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Closes descriptors that the parent process left open by mistake, such as the listening socket of a PHP worker.
/// Standard input, output and error stay open, and so do descriptors that an argument names as a file (`/dev/fd/63`).
/// It must be called before anything is opened.
pub(crate) fn close_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd").or_else(|_| fs::read_dir("/dev/fd")) else { return };
    let numbers: Vec<RawFd> =
        open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(|number| *number > 2).collect();
    // The directory's own descriptor is in the list, but it is closed already.
    for number in numbers.into_iter().filter(|number| !is_named(*number)) {
        let _ = nix::unistd::close(number);
    }
}

fn is_named(number: RawFd) -> bool {
    let names = [format!("/dev/fd/{number}"), format!("/proc/self/fd/{number}")];
    env::args_os().any(|argument| {
        let argument = argument.to_string_lossy();
        names.iter().any(|name| argument.ends_with(name.as_str()))
    })
}

/// Raises the soft limit on descriptors to the hard limit, because each client needs a descriptor. If that fails, the
/// limits on connections are lower.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

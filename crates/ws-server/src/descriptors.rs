//! The file descriptors of the process: those that it inherited are closed, and their number is raised.

use std::{env, fs, os::fd::RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Closes the descriptors that whoever started this process left open by mistake, as the listening socket of a PHP
/// worker. Standard input, output and error stay, and those that an argument names as a file (`/dev/fd/63`). To be called
/// before anything is opened.
pub(crate) fn close_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd").or_else(|_| fs::read_dir("/dev/fd")) else { return };
    let numbers: Vec<RawFd> =
        open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(|number| *number > 2).collect();
    // That of the directory is among them, and closed by now.
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

/// Raises the soft limit on descriptors as far as the system lets it, since each client needs one. Where that fails, the
/// limits on connections are lower.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

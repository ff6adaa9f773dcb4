//! The server as a child process.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    net::SocketAddr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{self, ChildStdout, Command},
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{admin::SOCKET, say, stderr::Stderr, systemd};

/// Maximum size of a line of a log. A longer line is split.
const LINE_SIZE: u64 = 64 * 1024;
/// Time limit for the last lines of a log after the end of the process.
const LAST_LINES: Duration = Duration::from_secs(1);

pub(super) struct Child {
    process: process::Child,
    pub(super) started: Instant,
    /// The address at which it listens; `None` until it does.
    pub(super) address: watch::Receiver<Option<SocketAddr>>,
    log: JoinHandle<()>,
    last_line: Arc<Mutex<String>>,
}

impl Child {
    /// Starts `ws-server run` with the arguments of this process and these variables. It must be called on the main
    /// thread, because the system sends the parent-death signal when the thread that started the child ends.
    pub(super) fn start(variables: &[(&str, &OsStr)]) -> io::Result<Self> {
        let mut command = Command::new(program()?);
        command.args(arguments()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        set_environment(&mut command, variables);
        // Ctrl-c goes to all processes of the terminal's group. If the child were in it, it would get a second signal
        // from the supervisor, which ends it at once.
        let mut process = command.process_group(0).kill_on_drop(true).spawn()?;
        let (output, log) = (process.stdout.take(), process.stderr.take());
        let (output, log) = output.zip(log).ok_or(io::ErrorKind::BrokenPipe)?;
        let (tell, address) = watch::channel(None);
        tokio::spawn(pass_on(output, tell));
        let last_line = Arc::default();
        let log = tokio::spawn(follow(BufReader::new(log), Arc::clone(&last_line)));
        Ok(Self { process, started: Instant::now(), address, log, last_line })
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Returns the last line of its log.
    pub(super) fn last_line(&self) -> String {
        self.last_line.lock().clone()
    }

    /// Waits for its end and the end of its log.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.process.wait().await?;
        if !self.log.is_finished() {
            let _ = timeout(LAST_LINES, &mut self.log).await;
        }
        Ok(status)
    }

    /// Sends a signal, unless the process has ended.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(id) = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process(id, signal);
        }
    }
}

/// Sets these variables. Removes variables that are for this process only, or that another supervisor set for it.
fn set_environment(command: &mut Command, variables: &[(&str, &OsStr)]) {
    for variable in systemd::VARIABLES.iter().chain([&SOCKET]) {
        command.env_remove(variable);
    }
    command.envs(variables.iter().copied());
}

/// Passes each line of a log on, until the log ends.
async fn follow(mut log: impl AsyncBufRead + Unpin, last: Arc<Mutex<String>>) {
    let mut line = Vec::new();
    while let Ok(1..) = (&mut log).take(LINE_SIZE).read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        Stderr::get().line(&text);
        *last.lock() = text;
        line.clear();
    }
}

/// Passes the child's output on, and reads from its first line the address at which it listens.
async fn pass_on(output: ChildStdout, address: watch::Sender<Option<SocketAddr>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let url = line.split_once("://").and_then(|(_, url)| url.strip_suffix('/'));
        if address.borrow().is_none() {
            address.send_replace(url.and_then(|address| address.parse().ok()));
        }
        // The server does not depend on a reader of this output.
        let _ = say(&line);
    }
}

/// Returns the path of this program. After an upgrade the new program has the same path.
fn program() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    let replaced = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.unwrap_or(path))
}

fn arguments() -> Vec<OsString> {
    let supervisor = format!("--supervised-by={}", std::process::id());
    // The first argument is `supervise`.
    let given = env::args_os().skip(2);
    [OsString::from("run")].into_iter().chain(given).chain([supervisor.into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_inherits_no_socket_of_another_supervisor() {
        let socket = |variables: &[(&str, &OsStr)]| {
            let mut command = Command::new("ws-server");
            set_environment(&mut command, variables);
            let found = command.as_std().get_envs().find(|(name, _)| *name == SOCKET);
            found.map(|(_, value)| value.map(OsStr::to_owned))
        };
        assert_eq!(socket(&[]), Some(None), "removed");
        assert_eq!(socket(&[(SOCKET, OsStr::new("/a"))]), Some(Some("/a".into())));
    }
}

//! The real binary, as processes that are started, watched and killed.

use std::{
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::watch,
};

use crate::{
    client::{Client, soon},
    http_client, program,
};

/// Time between two looks at whether a node takes clients, since it sends no notice.
const LOOK: Duration = Duration::from_millis(20);

/// A running `ws-server`. It is killed when dropped.
#[derive(Debug)]
pub struct WsServer {
    child: Child,
    address: Option<SocketAddr>,
    /// Kept open, because the process's next line would fail otherwise.
    output: Lines<BufReader<ChildStdout>>,
    log: watch::Receiver<String>,
}

impl WsServer {
    /// Returns the command of a `ws-server` with its state in this directory and without this process's settings.
    pub fn command(state: &Path) -> Command {
        let mut command = Command::new(program("ws-server"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WS_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        // Only the tests of the drain wait for clients that are closed one after the other.
        command.env("WS_SERVER_DRAIN", "0");
        command.env("XDG_STATE_HOME", state).env("XDG_RUNTIME_DIR", state).kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Runs a `ws-server` to its end.
    pub async fn run(state: &Path, arguments: &[&str]) -> Output {
        soon(Self::command(state).args(arguments).output()).await.expect("the binary runs")
    }

    /// Starts a node on a free port, with the state of this directory, and waits until it listens.
    ///
    /// # Panics
    /// Panics with the node's log if it does not start.
    pub async fn start(state: &Path, arguments: &[&str]) -> Self {
        let mut command = Self::command(state);
        command.args(["run", "--listen", "127.0.0.1:0"]).args(arguments);
        Self::spawn(command).await
    }

    /// Starts a node like [`start`](Self::start), with the given command.
    pub async fn spawn(command: Command) -> Self {
        let mut server = Self::launch(command);
        let Some(url) = soon(server.output.next_line()).await.expect("text") else {
            let status = server.wait().await;
            panic!("ws-server ended ({status:?}):\n{}", server.log());
        };
        let address =
            url.split_once("://").and_then(|(_, url)| url.strip_suffix('/')).expect("the first line is a URL");
        server.address = Some(address.parse().expect("an address"));
        server
    }

    /// Starts a command that may listen later, or never.
    pub fn launch(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let (log, lines) = (child.stderr.take().expect("piped"), child.stdout.take().expect("piped"));
        let log = collect(BufReader::new(log).lines());
        Self { address: None, child, output: BufReader::new(lines).lines(), log }
    }

    /// Returns the address on which the node listens.
    ///
    /// # Panics
    /// Panics if it was only [launched](Self::launch).
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the node listens")
    }

    /// Waits until the admin page is there, and returns its address.
    pub async fn admin_address(&self) -> SocketAddr {
        let begin = "the admin page is at http://";
        self.logged_lines(1, |line| line.contains(begin) && line.contains("/admin/")).await;
        let log = self.log();
        let (_, rest) = log.split_once(begin).expect("the address of the page");
        let (address, _) = rest.split_once('/').expect("a path");
        address.parse().expect("an address")
    }

    /// Returns the next line of the node's standard output.
    pub async fn line(&mut self) -> String {
        soon(self.output.next_line()).await.expect("text").expect("a line")
    }

    /// Returns what has come of the node's log. The log comes after other signs of the same event, like an answer: use
    /// [`logged`](Self::logged) for a line that must be there, and [`end`](Self::end) for one that must not.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until the node has logged this text, and returns the log until then.
    pub async fn logged(&self, text: &str) -> String {
        self.log_when(|log| log.contains(text)).await
    }

    /// Waits until the node has logged this many lines that match, and returns the log until then.
    pub async fn logged_lines(&self, count: usize, matches: impl Fn(&str) -> bool) -> String {
        self.log_when(|log| log.lines().filter(|line| matches(line)).count() >= count).await
    }

    async fn log_when(&self, condition: impl Fn(&str) -> bool) -> String {
        let mut log = self.log.clone();
        let log = soon(log.wait_for(|log| condition(log))).await.expect("the process runs");
        log.clone()
    }

    /// Returns the first line of the node's log.
    pub async fn first_logged(&self) -> String {
        let log = self.logged_lines(1, |_| true).await;
        log.lines().next().expect("a line").to_owned()
    }

    /// Ends the node with SIGTERM, and returns its whole log.
    pub async fn end(mut self) -> String {
        self.terminate();
        self.wait().await;
        self.whole_log().await
    }

    /// Waits until no process writes to the log any more, and returns it.
    pub async fn whole_log(&self) -> String {
        let mut log = self.log.clone();
        soon(async { while log.changed().await.is_ok() {} }).await;
        self.log()
    }

    /// Waits until the node takes clients.
    pub async fn ready(&self) {
        soon(async {
            // Degraded nodes take clients as well.
            while self.http("GET", "/ready", &[], "").await.1.starts_with("not ready") {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await;
    }

    /// Connects a client of the demo as a user or a guest, once the node takes clients. The client gets `demo/node`,
    /// now and whenever the cluster changes.
    pub async fn client(&self, user: Option<&str>) -> Client {
        self.ready().await;
        let path = user.map_or("/WebSockets".to_owned(), |user| format!("/WebSockets?user={user}"));
        let mut client = Client::try_connect(self.address(), &path, &[]).await.expect("no refusal");
        if user.is_none() {
            // Users get it without asking.
            client.send("demo/node", serde_json::Value::Null).await;
        }
        client
    }

    /// Returns the answer to an HTTP request: its status and its text.
    pub async fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (StatusCode, String) {
        let answer = soon(http_client::request(self.address(), method, path, headers, body)).await.expect("an answer");
        (answer.status, answer.text)
    }

    /// Kills the node (SIGKILL), as a crash does, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGINT, like ctrl-c.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Freezes the node (SIGSTOP): its sockets stay open, and it does not answer.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a frozen node continue.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for the end of the process.
    pub async fn wait(&mut self) -> ExitStatus {
        soon(self.child.wait()).await.expect("a child")
    }

    /// Returns the process id.
    ///
    /// # Panics
    /// Panics if the process was waited for.
    pub fn id(&self) -> u32 {
        self.child.id().expect("the process was not waited for")
    }

    /// Sends any signal.
    pub fn signal(&self, signal: Signal) {
        let id =
            self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("the process was not waited for");
        kill_process(id, signal).expect("an own process");
    }
}

/// Collects the log of a process until the process ends.
fn collect(mut lines: Lines<BufReader<tokio::process::ChildStderr>>) -> watch::Receiver<String> {
    let (log, receiver) = watch::channel(String::new());
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            log.send_modify(|log| {
                log.push_str(&line);
                log.push('\n');
            });
        }
    });
    receiver
}

//! `ws-server supervise`: a server that dies or hangs is started again, one that cannot start is not, and none outlives
//! its supervisor. And what `run` tells a service manager.

use std::{fs, path::Path};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tempfile::TempDir;
use tests::{
    WsServer,
    client::{Client, eventually, soon},
    free_port,
    site::Site,
};
use tokio::{
    net::{TcpListener, TcpStream, UnixDatagram},
    process::Command,
};

fn state() -> TempDir {
    tempfile::Builder::new().prefix("ws-server-").tempdir().expect("a temporary directory")
}

/// A supervisor whose test connections come ten times a second, with a server on this port.
fn command(state: &Path, listen: &str) -> Command {
    let mut command = WsServer::command(state);
    command.args(["supervise", "--listen", listen, "--pool", "memory:"]);
    command.args(["--check-interval", "100ms", "--check-timeout", "2s"]);
    command
}

/// The process ids that the supervisor's log names, in order.
fn children(log: &str) -> Vec<Pid> {
    let plain = log.lines().filter(|line| line.contains("the server is started"));
    plain
        .filter_map(|line| {
            let digits: String = line.split_once("pid=")?.1.chars().take_while(char::is_ascii_digit).collect();
            Pid::from_raw(digits.parse().ok()?)
        })
        .collect()
}

/// Waits for the child after so many.
async fn child(supervisor: &WsServer, number: usize) -> Pid {
    eventually(async || children(&supervisor.log()).get(number).copied()).await
}

/// The address of the supervisor's next output line.
async fn address(supervisor: &mut WsServer) -> String {
    let line = supervisor.line().await;
    line.strip_prefix("http://").and_then(|line| line.strip_suffix('/')).expect("an address").to_owned()
}

/// A server that lived for five seconds is started again at once. Tests do not wait for that: they take the pause of a
/// second.
async fn comes_back(supervisor: &mut WsServer, former: Pid) -> Pid {
    let address = address(supervisor).await;
    let next = child(supervisor, 1).await;
    assert_ne!(next, former);
    soon(TcpStream::connect(&address)).await.expect("the new server listens");
    next
}

/// Waits until no process has this id any more, or it waits for its parent only.
async fn gone(process: Pid) {
    let state = format!("/proc/{}/stat", process.as_raw_nonzero());
    let is_gone = || fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z "));
    eventually(async || is_gone().then_some(())).await;
}

#[tokio::test]
async fn a_killed_server_is_started_again() {
    let state = state();
    let mut supervisor = WsServer::spawn(command(state.path(), "127.0.0.1:0")).await;
    let first = child(&supervisor, 0).await;
    kill_process(first, Signal::KILL).unwrap();
    let second = comes_back(&mut supervisor, first).await;
    supervisor.logged("the server ended (signal 9)").await;
    supervisor.terminate();
    assert_eq!(supervisor.wait().await.code(), Some(0));
    gone(second).await;
    let log = supervisor.whole_log().await;
    assert!(log.contains("shutting down"), "the server's log passes through: {log}");
}

#[tokio::test]
async fn a_frozen_server_is_killed_and_started_again() {
    let state = state();
    let mut supervisor = WsServer::spawn(command(state.path(), "127.0.0.1:0")).await;
    let first = child(&supervisor, 0).await;
    kill_process(first, Signal::STOP).unwrap();
    comes_back(&mut supervisor, first).await;
    supervisor.logged("the server was killed: a test connection got no answer in 2s").await;
    gone(first).await;
    supervisor.interrupt();
    assert_eq!(supervisor.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_without_descriptors_is_killed_and_started_again() {
    let state = state();
    let mut supervisor = WsServer::spawn(command(state.path(), "127.0.0.1:0")).await;
    let first = child(&supervisor, 0).await;
    prlimit(Some(first), Resource::Nofile, Rlimit { current: Some(3), maximum: Some(3) }).unwrap();
    comes_back(&mut supervisor, first).await;
    supervisor.logged("the server was killed").await;
    supervisor.terminate();
    assert_eq!(supervisor.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_site_that_hangs_is_no_reason_to_kill_its_node() {
    let (state, mut site) = (state(), Site::start().await);
    let mut command = command(state.path(), "127.0.0.1:0");
    // The command has a pool already.
    command.args(&site.arguments()[2..]).args(["--backend-connect", "--log-filter", "debug"]);
    let supervisor = WsServer::spawn(command).await;
    // The site answers no request. Test connections go on, and it is not even asked about them.
    supervisor.logged_lines(8, |line| line.contains("a client's handshake begins")).await;
    assert_eq!(site.waiting(), 0);
    let log = supervisor.end().await;
    assert_eq!(children(&log).len(), 1, "{log}");
}

#[tokio::test]
async fn a_taken_port_is_shown_and_not_tried_again() {
    let state = state();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = soon(command(state.path(), &listen).output()).await.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert_eq!(children(&log).len(), 1, "{log}");
    assert!(log.contains(&format!("the server cannot start, and is not tried again: {listen} is taken")), "{log}");
}

#[tokio::test]
async fn a_wrong_setting_is_found_without_a_start() {
    let state = state();
    let output = soon(command(state.path(), "127.0.0.1:0").args(["--allowed-origin", "nowhere"]).output()).await;
    let output = output.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.starts_with("error: --allowed-origin") && log.trim_end().lines().count() == 1, "{log}");
}

#[tokio::test]
async fn a_server_ends_with_its_supervisor_and_the_next_one_gets_the_port() {
    let state = state();
    let listen = format!("127.0.0.1:{}", free_port());
    let mut supervisor = WsServer::spawn(command(state.path(), &listen)).await;
    let first = child(&supervisor, 0).await;
    supervisor.kill().await;
    gone(first).await;
    let mut next = WsServer::spawn(command(state.path(), &listen)).await;
    assert_eq!(next.address().to_string(), listen);
    next.terminate();
    assert_eq!(next.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_that_another_process_stops_is_not_started_again() {
    let state = state();
    let mut supervisor = WsServer::spawn(command(state.path(), "127.0.0.1:0")).await;
    kill_process(child(&supervisor, 0).await, Signal::TERM).unwrap();
    assert_eq!(supervisor.wait().await.code(), Some(0));
    let log = supervisor.whole_log().await;
    assert_eq!(children(&log).len(), 1, "{log}");
}

/// Copies the server's program. Another process copies it: a child that another test starts meanwhile could inherit the
/// open file, and then the system does not start the copy.
async fn copy_program(to: &Path) {
    let copied = Command::new("cp").arg(tests::program("ws-server")).arg(to).status().await.expect("cp");
    assert!(copied.success(), "{copied}");
}

#[tokio::test]
async fn a_program_that_vanished_is_told_and_tried_again() {
    let state = state();
    let program = state.path().join("ws-server");
    copy_program(&program).await;
    let mut copied = Command::new(&program);
    let original = command(state.path(), "127.0.0.1:0");
    copied.args(original.as_std().get_args()).env("XDG_STATE_HOME", state.path()).kill_on_drop(true);
    let supervisor = WsServer::spawn(copied).await;
    let first = child(&supervisor, 0).await;
    fs::remove_file(&program).unwrap();
    kill_process(first, Signal::KILL).unwrap();
    supervisor.logged("the server cannot be started: ").await;
    // An upgrade puts the new program in the same place.
    copy_program(&program).await;
    child(&supervisor, 1).await;
    supervisor.terminate();
}

/// A supervisor with a drain of a second in this file.
async fn with_drain(state: &Path, file: &Path) -> WsServer {
    fs::write(file, "[connection]\ndrain = \"1s\"\n").unwrap();
    let mut command = command(state, "127.0.0.1:0");
    command.env_remove("WS_SERVER_DRAIN").env("WS_SERVER_CONFIG", file).args(["--log-filter", "debug"]);
    WsServer::spawn(command).await
}

#[tokio::test]
async fn a_drain_that_sighup_makes_longer_gives_the_shutdown_more_time() {
    let state = state();
    let file = state.path().join("ws-server.toml");
    let mut supervisor = with_drain(state.path(), &file).await;
    fs::write(&file, "[connection]\ndrain = \"2min\"\n").unwrap();
    supervisor.signal(Signal::HUP);
    supervisor.logged("SIGHUP: changed connection.drain").await;
    // A mistake changes nothing.
    fs::write(&file, "[connection]\ndrain = \"long\"\n").unwrap();
    supervisor.signal(Signal::HUP);
    supervisor.logged("the configuration is not read again, and nothing changes").await;
    supervisor.terminate();
    supervisor.logged("the shutdown may take 140s").await;
    assert_eq!(supervisor.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_that_is_started_again_shuts_down_over_the_drain_of_the_file() {
    let state = state();
    let file = state.path().join("ws-server.toml");
    let mut supervisor = with_drain(state.path(), &file).await;
    fs::write(&file, "[connection]\ndrain = \"2min\"\n").unwrap();
    let first = child(&supervisor, 0).await;
    kill_process(first, Signal::KILL).unwrap();
    comes_back(&mut supervisor, first).await;
    supervisor.terminate();
    supervisor.logged("the shutdown may take 140s").await;
    assert_eq!(supervisor.wait().await.code(), Some(0));
}

/// Waits for a message to the service manager with this line, and returns all messages until it.
async fn told(manager: &UnixDatagram, line: &str) -> Vec<String> {
    let mut messages = Vec::new();
    soon(async {
        loop {
            let mut buffer = vec![0; 4096];
            let count = manager.recv(&mut buffer).await.unwrap();
            messages.push(String::from_utf8(buffer[..count].to_vec()).unwrap());
            if messages.last().is_some_and(|message| message.lines().any(|told| told.starts_with(line))) {
                return;
            }
        }
    })
    .await;
    messages
}

#[tokio::test]
async fn a_service_manager_is_told_how_a_node_fares() {
    let state = state();
    let socket = state.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let mut command = WsServer::command(state.path());
    command.args(["run", "--listen", "127.0.0.1:0", "--pool", "memory:"]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let mut node = WsServer::spawn(command).await;
    let before = told(&manager, "READY=1").await;
    assert!(before.last().unwrap().contains("STATUS=master in term 1, 0 connections"), "{before:?}");
    assert!(before.iter().all(|message| !message.contains("WATCHDOG=1")), "{before:?}");
    told(&manager, "WATCHDOG=1").await;
    told(&manager, "WATCHDOG=1").await;
    node.terminate();
    told(&manager, "STOPPING=1").await;
    assert_eq!(node.wait().await.code(), Some(0));
}

#[tokio::test]
async fn the_watchdog_is_fed_while_the_site_hangs() {
    let (state, mut site) = (state(), Site::start().await);
    let socket = state.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let mut command = WsServer::command(state.path());
    command.args(["run", "--listen", "127.0.0.1:0", "--backend-connect", "--check-timeout", "10s"]);
    command.args(site.arguments()).env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let _node = WsServer::spawn(command).await;
    for _ in 0..3 {
        told(&manager, "WATCHDOG=1").await;
    }
    assert_eq!(site.waiting(), 0, "the site does not hear of test connections");
}

#[tokio::test]
async fn a_node_that_drains_does_not_complain_about_its_watchdog() {
    let state = state();
    let socket = state.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let mut command = WsServer::command(state.path());
    command.args(["run", "--listen", "127.0.0.1:0", "--pool", "memory:", "--drain", "2s"]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let node = WsServer::spawn(command).await;
    told(&manager, "WATCHDOG=1").await;
    // The second of two clients is closed after half of the time, in which the watchdog would be fed five times.
    let _clients = [Client::connect(node.address(), &[]).await, Client::connect(node.address(), &[]).await];
    let log = node.end().await;
    assert!(log.contains("shutting down") && !log.contains("the watchdog is not fed"), "{log}");
}

#[tokio::test]
async fn the_watchdog_is_not_fed_by_a_node_that_takes_no_connection() {
    let state = state();
    let socket = state.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let mut command = WsServer::command(state.path());
    command.args(["run", "--listen", "127.0.0.1:0", "--pool", "memory:", "--check-timeout", "500ms"]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let node = WsServer::spawn(command).await;
    told(&manager, "WATCHDOG=1").await;
    let process = Pid::from_raw(node.id().cast_signed());
    // Accepts fail from now on.
    prlimit(process, Resource::Nofile, Rlimit { current: Some(3), maximum: Some(3) }).unwrap();
    node.logged("the watchdog is not fed: ").await;
}

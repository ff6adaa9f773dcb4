//! Other servers, as their scripts in `benches/peers` start them. The README there describes one publish for each.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use benches::{Result, control, marked};

use super::{MESSAGE, Peer, Place};
use crate::{load::order::Recipe, scenario::fan_out::Way};

/// Returns the directory of the scripts.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

pub(super) fn script(name: &str, place: &Place) -> Command {
    let mut command = Command::new(scripts().join(name));
    command.arg(place.port.to_string());
    command
}

/// Returns true if a program is installed. An environment variable may name another one.
pub(crate) fn installed(variable: &str, program: &str) -> bool {
    let program = std::env::var(variable).unwrap_or_else(|_| program.to_owned());
    let found = Command::new("sh")
        .args(["-c", "command -v \"$1\"", "sh", &program])
        .env("PATH", format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdout(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}

/// Returns how to get the packages that `install` installs.
fn install(packages: &str) -> Option<String> {
    Some(format!("benches/peers/install, which takes {packages}"))
}

/// Bun's own server, which contains uWebSockets.
pub(crate) struct Bun;

impl Peer for Bun {
    fn name(&self) -> &'static str {
        "Bun"
    }

    fn missing(&self) -> Option<String> {
        let packages = fs::read_dir(scripts().join("node_modules/@oven")).into_iter().flatten().flatten();
        let mut programs = packages.map(|package| package.path().join("bin/bun"));
        if programs.any(|program| program.exists()) { None } else { install("it from npm") }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        Ok(script("bun", place))
    }

    fn recipe(&self) -> Recipe {
        Recipe { path: "/".to_owned(), ..Recipe::default() }
    }

    fn one_port(&self) -> bool {
        true
    }

    fn ways(&self) -> &'static [Way] {
        &Way::ALL
    }
}

/// Returns how to install nginx, if it is missing.
pub(super) fn nginx() -> Option<String> {
    if installed("NGINX", "nginx") { None } else { install("nginx of Debian") }
}

/// nginx with nchan.
pub(crate) struct Nchan;

impl Peer for Nchan {
    fn name(&self) -> &'static str {
        "nginx + nchan"
    }

    fn missing(&self) -> Option<String> {
        let module = std::env::var("NCHAN_MODULE").unwrap_or("/usr/lib/nginx/modules/ngx_nchan_module.so".to_owned());
        let there = installed("NGINX", "nginx") && Path::new(&module).exists();
        if there { None } else { install("nginx and libnginx-mod-nchan of Debian") }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        Ok(script("nchan", place))
    }

    fn recipe(&self) -> Recipe {
        Recipe { path: "/sub".to_owned(), ..Recipe::default() }
    }

    fn publish(&self, messages: usize) -> String {
        control::request("/pub?id=all", &marked(MESSAGE)).repeat(messages)
    }

    fn one_port(&self) -> bool {
        true
    }

    fn ways(&self) -> &'static [Way] {
        &Way::SEPARATE
    }
}

/// `ws` of npm.
pub(crate) struct NodeWs;

impl Peer for NodeWs {
    fn name(&self) -> &'static str {
        "ws (Node.js)"
    }

    fn missing(&self) -> Option<String> {
        node_modules("ws")
    }

    fn command(&self, place: &Place) -> Result<Command> {
        Ok(script("ws.js", place))
    }

    fn recipe(&self) -> Recipe {
        Recipe { path: "/".to_owned(), ..Recipe::default() }
    }

    fn one_port(&self) -> bool {
        true
    }
}

fn node_modules(package: &str) -> Option<String> {
    let there = installed("NODE", "node") && scripts().join("node_modules").join(package).exists();
    if there { None } else { install("nodejs and npm of Debian, and the rest of npm") }
}

/// Socket.IO, whose clients join its main namespace.
pub(crate) struct SocketIo;

impl Peer for SocketIo {
    fn name(&self) -> &'static str {
        "Socket.IO (Node.js)"
    }

    fn missing(&self) -> Option<String> {
        node_modules("socket.io")
    }

    fn command(&self, place: &Place) -> Result<Command> {
        Ok(script("socketio.js", place))
    }

    fn recipe(&self) -> Recipe {
        socket_io(2)
    }

    fn one_port(&self) -> bool {
        true
    }
}

/// Returns the recipe for clients of Socket.IO's protocol, which get `ready` packets before they have joined.
fn socket_io(ready: usize) -> Recipe {
    Recipe {
        path: "/socket.io/?EIO=4&transport=websocket".to_owned(),
        frames: vec!["40".to_owned()],
        ready,
        pings: vec![("2".to_owned(), "3".to_owned())],
        ..Recipe::default()
    }
}

/// The published socketioxide.
pub(crate) struct SocketIoxide;

impl SocketIoxide {
    fn program() -> PathBuf {
        scripts().join("socketioxide/target/release/bench-peer-socketioxide")
    }
}

impl Peer for SocketIoxide {
    fn name(&self) -> &'static str {
        "socketioxide"
    }

    fn missing(&self) -> Option<String> {
        if Self::program().exists() { None } else { install("it with cargo") }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = Command::new(Self::program());
        command.arg(place.port.to_string());
        Ok(command)
    }

    fn recipe(&self) -> Recipe {
        // Its first ping comes at once.
        socket_io(3)
    }

    fn one_port(&self) -> bool {
        true
    }
}

/// The NATS server, whose protocol goes through WebSocket as a stream.
pub(crate) struct Nats;

const NATS_CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";

impl Peer for Nats {
    fn name(&self) -> &'static str {
        "NATS websocket"
    }

    fn missing(&self) -> Option<String> {
        if installed("NATS_SERVER", "nats-server") { None } else { install("nats-server of Debian") }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = script("nats", place);
        command.arg(place.control.to_string());
        Ok(command)
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            path: "/".to_owned(),
            frames: vec![format!("{NATS_CONNECT}SUB all 1\r\nPING\r\n")],
            binary: true,
            ready: 2,
            pings: vec![("PING\r\n".to_owned(), "PONG\r\n".to_owned())],
            ..Recipe::default()
        }
    }

    fn introduction(&self) -> &'static str {
        NATS_CONNECT
    }

    fn publish(&self, messages: usize) -> String {
        format!("PUB all {MESSAGE}\r\n{}\r\n", marked(MESSAGE)).repeat(messages)
    }

    fn ways(&self) -> &'static [Way] {
        &Way::SEPARATE
    }
}

/// Centrifugo, with its JSON protocol.
#[derive(Default)]
pub(crate) struct Centrifugo {
    /// Settings beyond those of the script: the names of its environment variables without `CENTRIFUGO_`, and values.
    pub(crate) settings: Vec<(String, String)>,
    /// True if it may use all cores.
    pub(crate) all_cores: bool,
}

impl Centrifugo {
    /// Returns the request of a site that publishes one message.
    pub(crate) fn post() -> String {
        Self::request("/api/publish", &format!("{{\"channel\":\"all\",\"data\":\"{}\"}}", marked(MESSAGE)))
    }

    fn request(path: &str, body: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: bench\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

impl Peer for Centrifugo {
    fn name(&self) -> &'static str {
        "Centrifugo"
    }

    fn missing(&self) -> Option<String> {
        let there = scripts().join("bin/centrifugo").exists() || installed("CENTRIFUGO", "centrifugo");
        if there { None } else { install("the Go module, if Go is installed") }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = script("centrifugo", place);
        command.envs(self.settings.iter().map(|(name, value)| (format!("CENTRIFUGO_{name}"), value)));
        if self.all_cores {
            command.env("GOMAXPROCS", std::thread::available_parallelism()?.to_string());
        }
        Ok(command)
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            path: "/connection/websocket".to_owned(),
            frames: vec![
                "{\"id\":1,\"connect\":{}}".to_owned(),
                "{\"id\":2,\"subscribe\":{\"channel\":\"all\"}}".to_owned(),
            ],
            // Both answers come in one frame, or the second is right behind the first.
            ready: 1,
            pings: vec![("{}".to_owned(), "{}".to_owned())],
            ..Recipe::default()
        }
    }

    fn publish(&self, messages: usize) -> String {
        if messages == 1 {
            return Self::post();
        }
        let publish = format!("{{\"publish\":{{\"channel\":\"all\",\"data\":\"{}\"}}}}", marked(MESSAGE));
        Self::request("/api/batch", &format!("{{\"commands\":[{}]}}", vec![publish; messages].join(",")))
    }

    fn one_port(&self) -> bool {
        true
    }
}

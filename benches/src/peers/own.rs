//! The programs of this crate: one send() per socket, the plain server, and ours.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use benches::{PUBLISH_KEY, Result, control, marked};

use super::{Peer, Place};
use crate::{load::order::Recipe, scenario::fan_out::Way};

/// One `send()` per socket.
pub(crate) struct OneSend;

impl Peer for OneSend {
    fn name(&self) -> &'static str {
        "one-send"
    }

    fn command(&self, place: &Place) -> Result<Command> {
        own("one-send", place)
    }

    fn recipe(&self) -> Recipe {
        Recipe { path: "/".to_owned(), ..Recipe::default() }
    }

    fn ways(&self) -> &'static [Way] {
        // It joins the messages of a request, which is the least that can be done for them.
        &Way::USUAL
    }
}

/// tokio-tungstenite, with its defaults or with a read buffer of this size.
pub(crate) struct Plain {
    pub(crate) buffer: Option<usize>,
}

impl Peer for Plain {
    fn name(&self) -> &'static str {
        if self.buffer.is_some() { "tokio-tungstenite, 4 KB buffer" } else { "tokio-tungstenite, defaults" }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = own("plain", place)?;
        self.buffer.map(|size| command.arg("--buffer").arg(size.to_string()));
        Ok(command)
    }

    fn recipe(&self) -> Recipe {
        Recipe { path: "/".to_owned(), ..Recipe::default() }
    }

    fn echo(&self) -> Option<String> {
        Some(marked(super::MESSAGE))
    }
}

fn own(name: &str, place: &Place) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name).arg("--port").arg(place.port.to_string()).arg("--control").arg(place.control.to_string());
    Ok(command)
}

/// ws-cluster. Its clients are like browsers: authenticated by a cookie, resumable, in a group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ours {
    /// The URL of the pool in which several nodes find each other.
    pub(crate) pool: Option<String>,
    /// Another build of its program, such as one of an earlier commit.
    pub(crate) program: Option<PathBuf>,
}

impl Ours {
    /// Number of bytes around a text: `{"action":"m","details":[""],"at":"AQ1234567890123"}`.
    pub(crate) const AROUND: usize = 52;

    /// Returns the path of its program.
    pub(crate) fn path() -> Result<PathBuf> {
        program()
    }

    /// Returns the bytes that publish within the server's process, through its control port.
    pub(crate) fn publish_to(target: &str, messages: usize) -> String {
        control::request(&format!("/publish?count={messages}&to={target}"), &marked(super::MESSAGE - Self::AROUND))
    }

    /// Returns the request of a site that publishes one message, or a batch of several.
    pub(crate) fn post_to(target: &str, messages: usize) -> String {
        let text = marked(super::MESSAGE - Self::AROUND);
        let message = format!(r#"{{"action":"m","details":["{text}"],"to":"{target}"}}"#);
        let body = match messages {
            1 => message,
            several => format!("[{}]", vec![message; several].join(",")),
        };
        Self::post(&body)
    }

    /// Returns the request of a site that publishes a message with these details, a JSON array, to all.
    pub(crate) fn post_details(details: &str) -> String {
        Self::post(&format!(r#"{{"action":"m","details":{details},"to":"all"}}"#))
    }

    fn post(body: &str) -> String {
        let head = "POST /_publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json";
        format!("{head}\r\nAuthorization: Bearer {PUBLISH_KEY}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    /// Returns a client's action, of 100 bytes like its answer.
    pub(crate) fn action(name: &str) -> String {
        let around = format!("{{\"action\":\"{name}\",\"details\":[\"\"]}}").len();
        format!("{{\"action\":\"{name}\",\"details\":[\"{}\"]}}", marked(super::MESSAGE - around))
    }
}

impl Peer for Ours {
    fn name(&self) -> &'static str {
        "ws-cluster"
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = Command::new(self.program.clone().map_or_else(program, Ok)?);
        command.arg("--port").arg(place.port.to_string()).arg("--control").arg(place.control.to_string());
        self.pool.as_ref().map(|path| command.arg("--pool").arg(path));
        Ok(command)
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            path: "/WebSockets?resume=".to_owned(),
            headers: vec![("Cookie".to_owned(), "session={n}".to_owned())],
            ready: 1,
            ..Recipe::default()
        }
    }

    fn publish(&self, messages: usize) -> String {
        Self::post_to("all", messages)
    }

    fn one_port(&self) -> bool {
        true
    }

    fn ways(&self) -> &'static [Way] {
        &Way::ALL
    }

    fn echo(&self) -> Option<String> {
        Some(Self::action("echo"))
    }
}

/// Returns the path of our server's program. It is a program of its own because of its allocator, and `cargo run` only
/// builds the program that it runs.
fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|error| error.to_string())).clone().map_err(Into::into)
}

fn build() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().ok_or("a program stands in a directory")?;
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "benches", "--bin", "ours", "--profile", profile, "--target-dir"])
        .arg(directory.parent().ok_or("a profile's directory stands in another")?)
        .args(if cfg!(feature = "metrics") { &["--features", "metrics"][..] } else { &[] })
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if built.success() { Ok(directory.join("ours")) } else { Err("our server could not be built".into()) }
}

//! A site whose own code answers a node's backend requests, with the test in its place: each request comes to the test,
//! which answers with any bytes or not at all.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::client::soon;

/// The key of all backends in the tests.
pub const BACKEND_KEY: &str = "a key of the tests of thirty-two bytes or more";

/// A site that listens.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Asked>,
    connections: Arc<Mutex<usize>>,
}

/// A request, and the connection on which it came.
#[derive(Debug)]
pub struct Asked {
    /// The request line and the headers.
    pub head: String,
    /// The body as it came.
    pub text: String,
    /// The body as JSON.
    pub json: Value,
    /// The connection.
    pub stream: TcpStream,
    site: mpsc::UnboundedSender<Asked>,
}

impl Site {
    /// Starts a site on a free port.
    pub async fn start() -> Self {
        Self::over(TcpListener::bind("127.0.0.1:0").await.expect("a free port"))
    }

    /// Starts a site on a listener.
    pub fn over(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("a bound socket");
        let (sender, requests) = mpsc::unbounded_channel();
        let connections = Arc::new(Mutex::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *count.lock() += 1;
                tokio::spawn(read(stream, sender.clone()));
            }
        });
        Self { address, requests, connections }
    }

    /// Returns the URL of the site's code.
    pub fn url(&self) -> String {
        format!("http://{}/ws.php", self.address)
    }

    /// Returns the arguments with which `ws-server` uses the site's code.
    pub fn arguments(&self) -> Vec<String> {
        ["--pool", "memory:", "--backend", &self.url(), "--backend-key", BACKEND_KEY].map(str::to_owned).to_vec()
    }

    /// Returns the number of connections that were opened.
    pub fn connections(&self) -> usize {
        *self.connections.lock()
    }

    /// Returns the next request.
    pub async fn asked(&mut self) -> Asked {
        soon(self.requests.recv()).await.expect("the site listens")
    }

    /// Returns the next request, which is this event.
    pub async fn asked_for(&mut self, event: &str) -> Asked {
        let asked = self.asked().await;
        assert_eq!(asked.json["event"], event, "{}", asked.text);
        asked
    }

    /// Returns the requests that have come and were not taken.
    pub fn waiting(&mut self) -> usize {
        self.requests.len()
    }

    /// Answers all requests from now on. `answer` makes the JSON of the answer, or null for 204.
    pub fn answers(mut self, answer: impl Fn(&Value) -> Value + Send + 'static) {
        tokio::spawn(async move {
            while let Some(asked) = self.requests.recv().await {
                match answer(&asked.json) {
                    Value::Null => asked.nothing().await,
                    json => asked.json(json).await,
                }
            }
        });
    }
}

impl Asked {
    /// Returns the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Answers with JSON.
    pub async fn json(self, json: Value) {
        self.answer("200 OK", "application/json", &json.to_string()).await;
    }

    /// Answers with 204.
    pub async fn nothing(self) {
        self.raw("HTTP/1.1 204 No Content\r\n\r\n").await;
    }

    /// Answers, and reads the next request of the connection.
    pub async fn answer(self, status: &str, content_type: &str, body: &str) {
        let size = body.len();
        self.raw(&format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {size}\r\n\r\n{body}"))
            .await;
    }

    /// Writes any bytes, and reads the next request of the connection. The node may be gone.
    pub async fn raw(mut self, bytes: &str) {
        let _ = self.stream.write_all(bytes.as_bytes()).await;
        tokio::spawn(read(self.stream, self.site));
    }

    /// Answers with an error of an action, which the client gets.
    pub async fn error(self, code: u16, text: &str) {
        self.json(json!({ "error": [code, text] })).await;
    }
}

/// Reads one request.
async fn read(mut stream: TcpStream, site: mpsc::UnboundedSender<Asked>) {
    let mut bytes = Vec::new();
    let (head, size) = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let size = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok()).flatten()
            });
            break (head, end + 4 + size.unwrap_or_default());
        }
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
    };
    while bytes.len() < size {
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
    }
    let text = String::from_utf8_lossy(&bytes[head.len() + 4..size]).into_owned();
    let json = serde_json::from_str(&text).unwrap_or_default();
    // The test may be over.
    let _ = site.clone().send(Asked { head, text, json, stream, site });
}

//! A client that speaks the wire itself, so that tests see every frame.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

/// Longest wait for anything. Only a failing test waits as long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What comes within the time that a test has.
///
/// # Panics
/// Nothing comes.
pub async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing came in time")
}

/// One connection.
pub struct Client(pub WebSocketStream<TcpStream>);

impl Client {
    /// Connects, with headers; the status where the server refuses.
    pub async fn try_connect(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, StatusCode> {
        let mut request: Request<()> = format!("ws://{address}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        match soon(client_async(request, stream)).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(tungstenite::Error::Http(response)) => Err(response.status()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The same without headers.
    pub async fn connect_to(address: SocketAddr, path: &str) -> Self {
        Self::try_connect(address, path, &[]).await.expect("no refusal")
    }

    /// The same at the usual path.
    pub async fn connect(address: SocketAddr, headers: &[(&str, &str)]) -> Self {
        Self::try_connect(address, "/WebSockets", headers).await.expect("no refusal")
    }

    /// Sends a message of the object form.
    pub async fn send(&mut self, action: &str, details: Value) {
        self.text(&json!({ "action": action, "details": details }).to_string()).await;
    }

    /// Sends text as it is.
    pub async fn text(&mut self, text: &str) {
        self.message(Message::text(text)).await;
    }

    /// Sends any message or frame.
    pub async fn message(&mut self, message: Message) {
        soon(self.0.send(message)).await.expect("sent");
    }

    /// The next message that is no ping or pong.
    pub async fn message_in(&mut self) -> Message {
        loop {
            match soon(self.0.next()).await.expect("no end").expect("no error") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// The next message as it came.
    pub async fn text_in(&mut self) -> String {
        match self.message_in().await {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("no text: {other:?}"),
        }
    }

    /// The next message as JSON.
    pub async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text_in().await).unwrap()
    }

    /// The next message must be this, in the object form.
    #[track_caller]
    pub fn expect(&mut self, action: &str, details: Value) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let expected = json!({ "action": action, "details": details });
        async move {
            let came = self.json().await;
            assert_eq!(came, expected, "expected at {caller}");
        }
    }

    /// The next message must say that the client is authenticated. What it says besides.
    pub async fn authenticated(&mut self) -> Value {
        let mut came = self.json().await;
        assert_eq!((&came["action"], &came["details"][0]), (&json!("Client/authentication"), &json!("ok")), "{came}");
        came["details"][1].take()
    }

    /// The next message, which moves a place.
    pub async fn moved(&mut self, place: &mut Place) -> Value {
        let message = self.json().await;
        place.take(&message);
        message
    }

    /// The connection must be closed next; the code and the reason.
    pub async fn closed(&mut self) -> (u16, String) {
        match self.message_in().await {
            Message::Close(Some(frame)) => {
                // Answers; the server may have dropped the socket for good.
                let _ = soon(self.0.flush()).await;
                (frame.code.into(), frame.reason.to_string())
            }
            other => panic!("no close: {other:?}"),
        }
    }
}

/// What a client that keeps its position brings along when it comes back.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The position.
    pub at: String,
    /// What belongs to its connection.
    pub state: Option<String>,
}

impl Place {
    /// Goes on to a message.
    pub fn take(&mut self, message: &Value) {
        if let Some(at) = message["at"].as_str() {
            self.at = at.to_owned();
        }
        if let Some(state) = message["state"].as_str() {
            self.state = Some(state.to_owned());
        }
    }
}

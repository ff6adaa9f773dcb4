//! A client that speaks the protocol itself, so that tests see every frame.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

/// Maximum wait for anything. Only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at what sends no notice.
const LOOK: Duration = Duration::from_millis(20);

/// Waits for a future within the time that a test has.
///
/// # Panics
/// Panics if the time is over.
pub async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("the time of a test step is over")
}

/// Looks again and again until there is something to see, and returns it. This is for what sends no notice: tests sleep
/// nowhere else.
///
/// # Panics
/// Panics if the time is over.
pub async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    soon(async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(LOOK).await;
        }
    })
    .await
}

/// One connection.
pub struct Client(pub WebSocketStream<TcpStream>);

impl Client {
    /// Connects with headers. Fails with the status if the server refuses.
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

    /// Connects without headers.
    pub async fn connect_to(address: SocketAddr, path: &str) -> Self {
        Self::try_connect(address, path, &[]).await.expect("no refusal")
    }

    /// Connects at the usual path.
    pub async fn connect(address: SocketAddr, headers: &[(&str, &str)]) -> Self {
        Self::try_connect(address, "/WebSockets", headers).await.expect("no refusal")
    }

    /// Sends a message of the object form.
    pub async fn send(&mut self, action: &str, details: Value) {
        self.text(&json!({ "action": action, "details": details }).to_string()).await;
    }

    /// Sends text unchanged.
    pub async fn text(&mut self, text: &str) {
        self.message(Message::text(text)).await;
    }

    /// Sends any message or frame.
    pub async fn message(&mut self, message: Message) {
        soon(self.0.send(message)).await.expect("sent");
    }

    /// Returns the next message that is no ping or pong.
    pub async fn message_in(&mut self) -> Message {
        loop {
            match soon(self.0.next()).await.expect("no end").expect("no error") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// Returns the next message as text.
    pub async fn text_in(&mut self) -> String {
        match self.message_in().await {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("no text: {other:?}"),
        }
    }

    /// Returns the next message as JSON.
    pub async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text_in().await).unwrap()
    }

    /// Asserts that the next message is this one, in the object form. It may say that the server closes next.
    #[track_caller]
    pub fn expect(&mut self, action: &str, details: Value) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let expected = json!({ "action": action, "details": details });
        async move {
            let mut came = self.json().await;
            came.as_object_mut().and_then(|message| message.remove("close"));
            assert_eq!(came, expected, "expected at {caller}");
        }
    }

    /// Asserts that the next message says that the client is authenticated. Returns its second argument.
    pub async fn authenticated(&mut self) -> Value {
        let mut came = self.json().await;
        assert_eq!((&came["action"], &came["details"][0]), (&json!("Client/authentication"), &json!("ok")), "{came}");
        came["details"][1].take()
    }

    /// Returns the next message, and moves `place` to its position.
    pub async fn moved(&mut self, place: &mut Place) -> Value {
        let message = self.json().await;
        place.take(&message);
        message
    }

    /// Asserts that the connection is closed next. Returns the code and the reason.
    pub async fn closed(&mut self) -> (u16, String) {
        match self.message_in().await {
            Message::Close(Some(frame)) => {
                // Answers the close. The server may have dropped the socket already.
                let _ = soon(self.0.flush()).await;
                (frame.code.into(), frame.reason.to_string())
            }
            other => panic!("no close: {other:?}"),
        }
    }
}

/// The position and state that a client brings back to resume.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The position.
    pub at: String,
    /// The resume token.
    pub state: Option<String>,
}

impl Place {
    /// Moves to the position of a message.
    pub fn take(&mut self, message: &Value) {
        if let Some(at) = message["at"].as_str() {
            self.at = at.to_owned();
        }
        if let Some(state) = message["state"].as_str() {
            self.state = Some(state.to_owned());
        }
    }
}

//! How a client becomes somebody, at the upgrade and in messages, and how a session ends.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::StatusCode;
use serde_json::json;
use tests::{
    client::{Client, Place, soon},
    message,
};
use ws_cluster::{AuthenticationError, Authenticator, Config, Credentials, Handshake, Identity, Target};

use super::{App, Sessions};

#[tokio::test]
async fn a_valid_session_at_the_upgrade_authenticates() {
    let mut app = App::start().await;
    let mut client = Client::connect(app.address, &[("x-user", "ann")]).await;
    assert_eq!(app.told().await, "Client/authentication ann users");
    client.send("Client/authentication", json!([])).await;
    client.authenticated().await;
    client.send("Client/authentication", json!(["wrong"])).await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    drop(client);
    assert_eq!(app.told().await, "Client/disconnection ann users");
}

#[tokio::test]
async fn credentials_authenticate_in_band() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("Client/authentication", json!([])).await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    client.send("room", json!(["join", "blue"])).await;
    client.expect("room", json!([["blue"], null])).await;
    client.send("Client/authentication", json!(["secret", "ann"])).await;
    client.authenticated().await;
    assert_eq!(app.told().await, "Client/authentication ann blue");
    app.server.publish(message("for ann", (), Target::user("ann").except_user("bob"))).await.unwrap();
    client.expect("for ann", json!([])).await;

    let mut client = app.guest().await;
    client.send("Client/authentication", json!(["wrong"])).await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(client.closed().await.0, 4401);
}

#[tokio::test]
async fn a_store_that_is_down_refuses_the_upgrade() {
    let app = App::start().await;
    let refused = Client::try_connect(app.address, "/WebSockets", &[("x-user", "down")]).await;
    assert_eq!(refused.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn an_unwelcome_guest_gets_an_error_inside_and_is_closed() {
    let app = App::with(|builder| builder.guests(false)).await;
    let mut client = app.guest().await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(client.closed().await.0, 4401);
    let mut client = app.user("ann").await;
    client.send("echo", json!([1])).await;
    client.expect("echo", json!([1])).await;
}

/// [`Sessions`] that also takes credentials of clients without a session.
struct InBand;

#[async_trait]
impl Authenticator for InBand {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Sessions.authenticate(handshake, credentials).await
    }

    fn uses_cookies(&self) -> bool {
        false
    }

    fn in_band(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn an_unwelcome_guest_may_send_credentials_in_time() {
    let app = App::with(|builder| builder.guests(false).authenticator(InBand)).await;
    let mut client = app.guest().await;
    app.server.publish(message("not yet", (), Target::all())).await.unwrap();
    client.send("echo", json!([])).await;
    client.expect("echo:error", json!([403, "Forbidden"])).await;
    client.send("Client/authentication", json!(["secret", "ann"])).await;
    client.authenticated().await;
    client.send("echo", json!([])).await;
    client.expect("echo", json!([])).await;

    let mut config = Config::default();
    config.connection.handshake_timeout = Duration::from_millis(300);
    let app = App::with(|builder| builder.guests(false).authenticator(InBand).config(config)).await;
    for details in [json!([]), json!(["wrong"])] {
        let mut client = app.guest().await;
        client.send("Client/authentication", details).await;
        let error = json!({
            "action": "Client/authentication:error", "details": [403, "Forbidden"], "close": 4401,
        });
        assert_eq!(client.json().await, error);
        assert_eq!(client.closed().await.0, 4401);
    }
    // Credentials that are late are no reason to stay away.
    assert_eq!(app.guest().await.closed().await.0, 4002);
}

#[tokio::test]
async fn a_client_whose_credentials_cannot_be_looked_up_comes_again() {
    for (guests, path) in [(true, "/WebSockets"), (true, "/WebSockets?resume="), (false, "/WebSockets")] {
        let app = App::with(|builder| builder.guests(guests).authenticator(InBand)).await;
        let mut client = Client::try_connect(app.address, path, &[]).await.unwrap();
        client.send("Client/authentication", json!(["down"])).await;
        let error = json!({
            "action": "Client/authentication:error", "details": [503, "Service Unavailable"], "close": 4002,
        });
        assert_eq!(client.json().await, error, "{guests} {path}");
        assert_eq!(client.closed().await.0, 4002, "{guests} {path}");
        // A user stays, and so do the messages of the connection.
        let mut ann = app.user("ann").await;
        ann.send("Client/authentication", json!(["down"])).await;
        let error = json!({ "action": "Client/authentication:error", "details": [503, "Service Unavailable"] });
        assert_eq!(ann.json().await, error);
        ann.send("echo", json!([])).await;
        ann.expect("echo", json!([])).await;
    }
}

#[tokio::test]
async fn a_client_that_authenticates_in_band_is_told_its_position_afterwards() {
    for guests in [true, false] {
        let mut app = App::with(|builder| builder.guests(guests).authenticator(InBand)).await;
        let mut place = Place::default();
        for kind in [json!(["new"]), json!(["recovered", 1])] {
            let state = place.state.clone().unwrap_or_default();
            let path = format!("/WebSockets?resume={}&state={state}", place.at);
            let mut client = Client::try_connect(app.address, &path, &[]).await.unwrap();
            app.server.publish(message("before", (), Target::user("ann"))).await.unwrap();
            client.send("Client/authentication", json!(["secret", "ann"])).await;
            client.authenticated().await;
            let told = client.moved(&mut place).await;
            assert_eq!((&told["action"], &told["details"][0]), (&json!("Server/position"), &kind[0]));
            assert_eq!(app.told().await, "Client/authentication ann ");
            if kind[0] == "recovered" {
                // The messages that came while the client was away, and before it authenticated.
                assert_eq!(told["details"][1], 2);
                assert_eq!(client.moved(&mut place).await["action"], "missed");
                assert_eq!(client.moved(&mut place).await["action"], "before");
            }
            drop(client);
            assert_eq!(app.told().await, "Client/disconnection ann ");
            app.server.publish(message("missed", (), Target::user("ann"))).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_guest_that_sends_no_credentials_begins_with_its_first_message() {
    let app = App::with(|builder| builder.authenticator(InBand)).await;
    for first in ["echo", "Client/authentication"] {
        let mut client = Client::try_connect(app.address, "/WebSockets?resume=", &[]).await.unwrap();
        client.send(first, json!([])).await;
        if first == "Client/authentication" {
            client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        }
        assert_eq!(client.json().await["details"], json!(["new"]));
        if first == "echo" {
            client.expect("echo", json!([])).await;
        }
        app.server.publish(message("news", (), Target::all())).await.unwrap();
        assert_eq!(client.json().await["action"], "news");
    }
}

#[tokio::test]
async fn a_resume_token_with_the_changes_of_a_handler_comes_before_its_answer() {
    let app = App::start().await;
    let mut place = Place::default();
    let mut client = Client::try_connect(app.address, "/WebSockets?resume=", &[("x-user", "ann")]).await.unwrap();
    assert_eq!(client.moved(&mut place).await["details"], json!(["new"]));
    client.send("room", json!(["join", "blue"])).await;
    assert_eq!(client.moved(&mut place).await["details"], json!(["now"]));
    client.expect("room", json!([["blue", "users"], 7])).await;
    drop(client);
    // The session's own groups and properties are as the authenticator says.
    let path = format!("/WebSockets?resume={}&state={}", place.at, place.state.unwrap());
    let mut client = Client::try_connect(app.address, &path, &[("x-user", "ann")]).await.unwrap();
    assert_eq!(client.json().await["details"], json!(["recovered", 0]));
    client.send("room", json!(["colour", "red"])).await;
    assert_eq!(client.json().await["details"], json!(["now"]));
    client.expect("room", json!([["blue", "users"], "red"])).await;
}

#[tokio::test]
async fn a_session_or_a_user_is_closed_for_good() {
    let app = App::start().await;
    let (mut ann, mut bob, mut guest) = (app.user("ann").await, app.user("bob").await, app.guest().await);
    app.server.close_session("session of ann").await.unwrap();
    ann.expect("Server/close", json!([])).await;
    assert_eq!(ann.closed().await.0, 1000);
    app.server.publish(message("sentinel", (), Target::all())).await.unwrap();
    bob.expect("sentinel", json!([])).await;
    app.server.close_user("bob").await.unwrap();
    bob.expect("Server/close", json!([])).await;
    assert_eq!(bob.closed().await.0, 1000);
    guest.expect("sentinel", json!([])).await;
    guest.send("echo", json!([])).await;
    guest.expect("echo", json!([])).await;
}

#[tokio::test]
async fn a_session_that_ends_closes_its_connection() {
    let app = App::start().await;
    let soon_gone = SystemTime::now() + Duration::from_secs(4);
    let at = soon_gone.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis().to_string();
    let mut ending = Client::connect(app.address, &[("x-user", "ann"), ("x-expires", &at)]).await;
    let mut renewed = Client::connect(app.address, &[("x-user", "renewed"), ("x-expires", "20")]).await;
    assert_eq!(ending.closed().await.0, 4003);
    renewed.send("echo", json!([])).await;
    renewed.expect("echo", json!([])).await;
}

#[tokio::test]
async fn a_shutdown_closes_clients_that_have_not_authenticated() {
    let app = App::with(|builder| builder.guests(false).authenticator(InBand)).await;
    let mut client = app.guest().await;
    client.send("echo", json!([])).await;
    client.expect("echo:error", json!([403, "Forbidden"])).await;
    app.stop.send(()).unwrap();
    assert_eq!(client.closed().await.0, 1012);
    soon(app.task).await.unwrap().unwrap();
}

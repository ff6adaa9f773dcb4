//! Closes against look-ups that are under way, and which connections are closed.

use serde_json::json;
use tests::client::Client;
use ws_cluster::{Close, Identity};

use super::{App, dismissed, state_of, user_of};

#[tokio::test]
async fn a_close_wins_against_a_look_up_at_the_upgrade() {
    for close in [Close::session("a"), Close::user("ann"), Close::user("ann").except_session("b")] {
        let app = App::start().await;
        app.site.hold();
        let connecting = tokio::spawn({
            let address = app.address;
            async move { Client::connect(address, &[("x-session", "a")]).await }
        });
        app.site.asked(1).await;
        app.site.remove("a");
        app.server.close(close).await.unwrap();
        app.site.0.answers.add_permits(1);
        // The session is looked up again, and this answer counts.
        app.site.asked(2).await;
        app.site.release();
        let mut client = connecting.await.unwrap();
        assert_eq!(user_of(&mut client).await, None);
    }
}

#[tokio::test]
async fn a_look_up_of_others_is_not_repeated_for_a_close() {
    let app = App::start().await;
    app.site.hold();
    let connecting = tokio::spawn({
        let address = app.address;
        async move { Client::connect(address, &[("x-session", "b")]).await }
    });
    app.site.asked(1).await;
    app.server.close(Close::session("a")).await.unwrap();
    app.server.close(Close::user("bob")).await.unwrap();
    app.server.close(Close::user("ann").except_session("b")).await.unwrap();
    app.site.release();
    let mut client = connecting.await.unwrap();
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    assert_eq!(app.site.count(), 1);
}

#[tokio::test]
async fn a_session_that_is_still_valid_after_its_close_is_let_in() {
    let app = App::start().await;
    app.site.hold();
    let connecting = tokio::spawn({
        let address = app.address;
        async move { Client::connect(address, &[("x-session", "a")]).await }
    });
    app.site.asked(1).await;
    app.server.close_session("a").await.unwrap();
    app.site.0.answers.add_permits(1);
    app.site.asked(2).await;
    app.site.release();
    // The application has to end the session first, and did not end this one.
    assert_eq!(user_of(&mut connecting.await.unwrap()).await.as_deref(), Some("ann"));
}

#[tokio::test]
async fn closes_that_never_end_refuse_the_upgrade() {
    let app = App::start().await;
    app.site.hold();
    let connecting = tokio::spawn({
        let address = app.address;
        async move { Client::try_connect(address, "/WebSockets", &[("x-session", "a")]).await }
    });
    for attempt in 1..=3 {
        app.site.asked(attempt).await;
        app.server.close_session("a").await.unwrap();
        app.site.0.answers.add_permits(1);
    }
    assert_eq!(connecting.await.unwrap().err().map(|status| status.as_u16()), Some(503));
}

#[tokio::test]
async fn a_close_wins_against_a_look_up_of_credentials() {
    for close in [Close::session("a"), Close::user("ann")] {
        let app = App::start().await;
        let mut client = Client::connect(app.address, &[]).await;
        let before = app.site.count();
        app.site.hold();
        client.send("Client/authentication", json!(["a"])).await;
        app.site.asked(before + 1).await;
        app.site.remove("a");
        app.server.close(close).await.unwrap();
        app.site.0.answers.add_permits(1);
        app.site.asked(before + 2).await;
        app.site.release();
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        assert_eq!(client.closed().await.0, 4401);
    }
}

#[tokio::test]
async fn a_close_of_a_session_wins_against_its_renewal() {
    let app = App::start().await;
    let mut client = app.connect("b").await;
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    app.site.hold();
    client.send("Client/authentication", json!(["a"])).await;
    app.site.asked(2).await;
    app.site.remove("a");
    app.server.close_session("a").await.unwrap();
    app.site.0.answers.add_permits(1);
    app.site.asked(3).await;
    app.site.release();
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(state_of(&mut client).await[2], "b");
}

#[tokio::test]
async fn a_close_wins_against_a_recheck() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    app.site.hold();
    app.server.refresh_session("a").await.unwrap();
    app.site.asked(2).await;
    app.server.close_session("a").await.unwrap();
    dismissed(&mut client).await;
    app.site.release();
}

#[tokio::test]
async fn all_sessions_of_a_user_but_one_are_closed() {
    let app = App::start().await;
    app.site.set("none", Identity::user("ann"));
    let mut clients = Vec::new();
    for token in ["a", "b", "none", "c", ""] {
        let mut client = app.connect(token).await;
        state_of(&mut client).await;
        clients.push(client);
    }
    let (status, why) = app.post("/_close", json!({"user": "ann", "except_session": "b"})).await;
    assert_eq!((status, &*why), (204, ""));
    let [a, b, none, c, guest] = &mut clients[..] else { unreachable!() };
    for closed in [a, none] {
        dismissed(closed).await;
    }
    app.delivered().await;
    for open in [b, c, guest] {
        open.expect("delivered", json!([])).await;
    }
}

#[tokio::test]
async fn a_soft_close_lets_its_clients_come_back() {
    let app = App::start().await;
    for (order, token) in
        [(json!({"session": "a", "reconnect": true}), "a"), (json!({"user": "bob", "reconnect": true}), "c")]
    {
        let mut client = app.connect(token).await;
        state_of(&mut client).await;
        assert_eq!(app.post("/_close", order).await.0, 204);
        // There is no `Server/close` before the close.
        assert_eq!(client.closed().await.0, 4003);
        assert!(user_of(&mut app.connect(token).await).await.is_some());
    }
}

#[tokio::test]
async fn orders_without_or_with_too_many_subjects_are_refused() {
    let app = App::start().await;
    for (path, order) in [
        ("/_close", json!({})),
        ("/_close", json!({"user": null})),
        ("/_close", json!({"user": "ann", "session": "a"})),
        ("/_close", json!({"session": "a", "except_session": "b"})),
        ("/_close", json!({"except_session": "b"})),
        ("/_close", json!({"user": "ann", "soft": true})),
        ("/_refresh", json!({})),
        ("/_refresh", json!({"user": "ann", "session": "a"})),
        ("/_refresh", json!({"user": "ann", "reconnect": true})),
    ] {
        let (status, why) = app.post(path, order.clone()).await;
        assert_eq!(status, 400, "{order}");
        assert!(!why.is_empty(), "{order}");
    }
}

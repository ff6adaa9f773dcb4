//! Credentials on an open connection, and what authentication costs.

use std::{
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tests::{client::Client, message};
use ws_cluster::{Config, Identity, Target};

use super::{App, dismissed, state_of, user_of};

#[tokio::test]
async fn an_answer_says_who_the_client_is_and_for_how_long() {
    let app = App::start().await;
    app.site.set("a", Identity::user("ann").session("a").expires(SystemTime::now() + Duration::from_millis(99_500)));
    let mut client = app.connect("a").await;
    for _ in 0..20 {
        client.send("Client/authentication", json!([])).await;
        let answer = client.json().await;
        let details = &answer["details"];
        assert_eq!((&answer["action"], &details[0]), (&json!("Client/authentication"), &json!("ok")));
        assert_eq!(details[1]["user"], "ann");
        assert!(details[1]["connection"].as_str().is_some_and(|id| id.contains('-')), "{details}");
        assert!(details[1]["expires_in"].as_u64().is_some_and(|left| (60..=99).contains(&left)), "{details}");
    }
    // The authenticator was not asked about that.
    assert_eq!(app.site.count(), 1);
    let mut client = app.connect("c").await;
    client.send("Client/authentication", json!([])).await;
    let answer = client.json().await;
    assert_eq!(answer["details"][1].get("expires_in"), None, "its session has no end");
}

#[tokio::test]
async fn fresh_credentials_of_the_same_user_renew_the_connection() {
    let app = App::start().await;
    let soon_over = SystemTime::now() + Duration::from_secs(6);
    app.site.set("first", Identity::user("ann").session("first").groups(["old"]).expires(soon_over));
    let later = SystemTime::now() + Duration::from_secs(3_600);
    app.site
        .set("second", Identity::user("ann").session("second").groups(["new"]).property("colour", 1).expires(later));
    let mut client = Client::connect(app.address, &[]).await;
    client.send("Client/authentication", json!(["first"])).await;
    let answer = client.json().await;
    assert!(answer["details"][1]["expires_in"].as_u64().is_some_and(|left| left <= 6), "{answer}");
    client.send("join", json!(["room"])).await;
    client.json().await;
    client.send("Client/authentication", json!(["second"])).await;
    let answer = client.json().await;
    assert!(answer["details"][1]["expires_in"].as_u64().is_some_and(|left| left > 3_000), "{answer}");
    assert_eq!(state_of(&mut client).await, json!([["new", "room"], 1, "second"]));
    // Another connection lives beyond the end of this one's session, so this one would be closed by then.
    let mut other = Client::connect(app.address, &[]).await;
    other.send("Client/authentication", json!(["first"])).await;
    other.json().await;
    assert_eq!(other.closed().await.0, 4003);
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    // The connection is known by the session of its latest credentials.
    app.server.close_session("second").await.unwrap();
    dismissed(&mut client).await;
}

#[tokio::test]
async fn other_credentials_change_nothing() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    for wrong in [json!(["c"]), json!(["rubbish"]), json!(["a", "b"]), json!({"token": "a"})] {
        client.send("Client/authentication", wrong).await;
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    }
    app.site.0.down.store(true, Ordering::Relaxed);
    client.send("Client/authentication", json!(["a"])).await;
    client.expect("Client/authentication:error", json!([503, "Service Unavailable"])).await;
    assert_eq!(state_of(&mut client).await, json!([["editors"], "red", "a"]));
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
}

#[tokio::test]
async fn a_session_that_ends_without_a_close_lets_its_client_come_back() {
    let app = App::start().await;
    let over = SystemTime::now() + Duration::from_secs(4);
    app.site.set("a", Identity::user("ann").session("a").expires(over));
    let mut client = app.connect("a").await;
    assert_eq!(client.closed().await.0, 4003);
    // The site rotated the session, and the page comes back with the new cookie.
    assert_eq!(user_of(&mut app.connect("b").await).await.as_deref(), Some("ann"));
}

#[tokio::test]
async fn repeated_authentication_costs_few_look_ups() {
    let mut config = Config::default();
    // Longer than the test takes.
    config.connection.authentication_interval = Duration::from_secs(600);
    let app = App::with(None, |builder| builder.config(config)).await;
    let mut guests = Vec::new();
    for number in 0..60 {
        guests.push(app.connect(&format!("invented {number}")).await);
    }
    // The first message of a client might otherwise be answered with what the upgrade's look-up said.
    for guest in &mut guests {
        state_of(guest).await;
    }
    let upgrades = app.site.count();
    for _ in 0..20 {
        for guest in &mut guests {
            guest.send("Client/authentication", json!([])).await;
        }
    }
    for guest in &mut guests {
        for attempt in 0..20 {
            let error = if attempt < 5 { json!([403, "Forbidden"]) } else { json!([429, "Too Many Requests"]) };
            guest.expect("Client/authentication:error", error).await;
        }
        // The connection stays open.
        state_of(guest).await;
    }
    assert_eq!(app.site.count() - upgrades, 60 * 5);
}

#[tokio::test]
async fn credentials_on_an_open_connection_are_limited_as_well() {
    let mut config = Config::default();
    config.connection.authentication_interval = Duration::from_secs(600);
    config.connection.authentication_burst = 2;
    let app = App::with(None, |builder| builder.config(config)).await;
    let mut client = app.connect("a").await;
    for error in [[json!(403), json!("Forbidden")], [json!(403), json!("Forbidden")]] {
        client.send("Client/authentication", json!(["rubbish"])).await;
        client.expect("Client/authentication:error", json!(error)).await;
    }
    client.send("Client/authentication", json!(["a"])).await;
    client.expect("Client/authentication:error", json!([429, "Too Many Requests"])).await;
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    assert_eq!(app.site.count(), 3);
}

#[tokio::test]
async fn look_ups_of_one_address_wait_their_turn() {
    let mut config = Config::default();
    config.connection.look_ups_per_ip = 2;
    let app = App::with(None, |builder| builder.config(config)).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(app.connect("").await);
    }
    let upgrades = app.site.count();
    app.site.hold();
    for client in &mut clients {
        client.send("Client/authentication", json!(["a"])).await;
    }
    app.site.asked(upgrades + 2).await;
    // Published after all of them were sent: once a client gets it, its question is being asked or waits.
    app.server.publish(message("delivered", (), Target::all())).await.unwrap();
    for client in &mut clients {
        client.expect("delivered", json!([])).await;
    }
    assert_eq!(app.site.count(), upgrades + 2);
    app.site.release();
    for client in &mut clients {
        while client.json().await["details"][0] != "ok" {}
    }
    assert_eq!(app.site.count(), upgrades + 5);
}

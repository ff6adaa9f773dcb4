//! Refreshes and rechecks of open connections.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::{Value, json};
use tests::{client::Client, message};
use ws_cluster::{Identity, Target};

use super::{App, state_of, user_of};

#[tokio::test]
async fn a_refresh_replaces_what_the_site_said_and_keeps_what_handlers_changed() {
    for order in [json!({"user": "ann"}), json!({"session": "a"})] {
        let app = App::start().await;
        app.site
            .set("a", Identity::user("ann").session("a").groups(["editors", "staff", "all"]).property("colour", "red"));
        let mut client = app.connect("a").await;
        for (action, details) in [("join", json!(["room"])), ("leave", json!(["all"])), ("set", json!(["size", 7]))] {
            client.send(action, details).await;
            client.json().await;
        }
        let fresh = Identity::user("ann").session("a").groups(["staff", "admins", "all"]).property("colour", "blue");
        app.site.set("a", fresh.property("size", 1));
        assert_eq!(app.post("/_refresh", order).await.0, 204);
        // Once the authenticator was asked, the handler of the next message finds the answer.
        app.site.asked(2).await;
        while state_of(&mut client).await[1] != "blue" {}
        assert_eq!(state_of(&mut client).await, json!([["admins", "room", "staff"], "blue", "a"]));
        app.server.publish(message("for editors", (), Target::group("editors"))).await.unwrap();
        app.server.publish(message("for seven", (), Target::property("size", "7"))).await.unwrap();
        app.server.publish(message("for admins", (), Target::group("admins"))).await.unwrap();
        client.expect("for seven", json!([])).await;
        client.expect("for admins", json!([])).await;
    }
}

#[tokio::test]
async fn a_refresh_wins_against_a_look_up_that_began_before_it() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    state_of(&mut client).await;
    app.site.hold();
    app.server.refresh_session("a").await.unwrap();
    app.site.asked(2).await;
    app.site.set("a", Identity::user("ann").session("a").property("colour", "blue"));
    app.server.refresh_user("ann").await.unwrap();
    app.site.0.answers.add_permits(1);
    app.site.asked(3).await;
    app.site.release();
    while state_of(&mut client).await != json!([[], "blue", "a"]) {}
}

#[tokio::test]
async fn a_refresh_reaches_no_other_connection() {
    let app = App::start().await;
    let (mut ann, mut bob) = (app.connect("a").await, app.connect("c").await);
    state_of(&mut ann).await;
    state_of(&mut bob).await;
    app.server.refresh_user("bob").await.unwrap();
    app.site.asked(3).await;
    app.server.refresh_session("another").await.unwrap();
    app.delivered().await;
    assert_eq!(user_of(&mut ann).await.as_deref(), Some("ann"));
    // The witness is the fourth.
    assert_eq!(app.site.count(), 4);
}

#[tokio::test]
async fn a_refresh_ends_connections_whose_session_is_gone() {
    let app = App::start().await;
    let (mut gone, mut another) = (app.connect("a").await, app.connect("b").await);
    state_of(&mut gone).await;
    state_of(&mut another).await;
    app.site.remove("a");
    app.site.set("b", Identity::user("bob").session("b"));
    app.server.refresh_user("ann").await.unwrap();
    assert_eq!(gone.closed().await.0, 4003);
    assert_eq!(another.closed().await.0, 4003);
}

#[tokio::test]
async fn a_store_that_is_down_at_a_recheck_changes_nothing() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    state_of(&mut client).await;
    app.site.0.down.store(true, Ordering::Relaxed);
    app.server.refresh_user("ann").await.unwrap();
    app.site.asked(2).await;
    assert_eq!(state_of(&mut client).await, json!([["editors"], "red", "a"]));
}

#[tokio::test]
async fn groups_that_the_site_revokes_are_gone_after_the_next_recheck() {
    let app = App::with(Some(Duration::from_millis(20)), |builder| builder).await;
    let mut client = app.connect("a").await;
    client.send("join", json!(["room"])).await;
    client.json().await;
    app.site.set("a", Identity::user("ann").session("a").groups(["staff"]));
    let asked = app.site.count();
    app.site.asked(asked + 3).await;
    assert_eq!(state_of(&mut client).await, json!([["room", "staff"], null, "a"]));
    app.site.remove("a");
    assert_eq!(client.closed().await.0, 4003);
}

#[tokio::test]
async fn guests_and_clients_with_credentials_are_not_rechecked() {
    let app = App::with(Some(Duration::from_millis(5)), |builder| builder).await;
    let (mut guest, mut ann, mut witness) =
        (app.connect("").await, app.connect("").await, Client::connect(app.address, &[("x-session", "c")]).await);
    ann.send("Client/authentication", json!(["a"])).await;
    assert_eq!(ann.json().await["details"][0], "ok");
    state_of(&mut guest).await;
    let asked = app.site.count();
    app.site.asked(asked + 10).await;
    assert_eq!(user_of(&mut ann).await.as_deref(), Some("ann"));
    assert_eq!(user_of(&mut witness).await.as_deref(), Some("bob"));
    assert_eq!(state_of(&mut guest).await[2], Value::Null);
}

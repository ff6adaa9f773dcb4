//! Messages and their answers: dialects, errors, groups, and which publishes are refused.

use serde_json::json;
use tests::message;
use ws_cluster::Target;

use super::App;

#[tokio::test]
async fn details_come_back_normalised_in_the_clients_dialect() {
    let app = App::start().await;
    for (sent, back) in [
        (r#"{"action":"echo"}"#, json!({"action": "echo", "details": []})),
        (r#"{"action":"echo","details":null}"#, json!({"action": "echo", "details": []})),
        (r#"{"action":"echo","details":{"a":1}}"#, json!({"action": "echo", "details": [{"a": 1}]})),
        (r#"{"action":"echo","details":[1,"ü"]}"#, json!({"action": "echo", "details": [1, "ü"]})),
        (r#"["echo"]"#, json!(["echo", []])),
        (r#"["echo","x"]"#, json!(["echo", ["x"]])),
        (r#"["echo",[[1]]]"#, json!(["echo", [[1]]])),
        (r#"["nothing"]"#, json!(["nothing:error", [404, "Not Found"]])),
    ] {
        let mut client = app.guest().await;
        client.text(sent).await;
        assert_eq!(client.json().await, back, "{sent}");
    }
}

#[tokio::test]
async fn the_first_message_decides_the_dialect() {
    let app = App::start().await;
    let mut client = app.guest().await;
    app.server.publish(message("before", (), Target::all())).await.unwrap();
    client.expect("before", json!([])).await;
    client.text(r#"["echo",1]"#).await;
    assert_eq!(client.json().await, json!(["echo", [1]]));
    client.send("echo", json!([2])).await;
    assert_eq!(client.json().await, json!(["echo", [2]]));
    app.server.publish(message("after", "x", Target::all())).await.unwrap();
    assert_eq!(client.json().await, json!(["after", ["x"]]));
}

#[tokio::test]
async fn errors_are_answered_with_code_and_text() {
    let app = App::start().await;
    let mut client = app.user("ann").await;
    let reserved = json!([400, "this action is not for clients to send"]);
    for (action, details, error) in [
        ("nothing", json!([]), json!([404, "Not Found"])),
        ("hello", json!([]), json!([400, "No hello message:("])),
        ("fail", json!([]), json!([409, "no"])),
        ("panic", json!([]), json!([500, "Internal Server Error"])),
        ("Client/disconnection", json!([]), reserved.clone()),
        ("Server/close", json!([]), reserved.clone()),
        ("echo:error", json!([]), reserved),
    ] {
        client.send(action, details).await;
        client.expect(&format!("{action}:error"), error).await;
    }
    client.send("shape", json!([300, "x"])).await;
    let answer = client.json().await;
    assert_eq!((&answer["action"], &answer["details"][0]), (&json!("shape:error"), &json!(400)));
    assert!(answer["details"][1].as_str().unwrap().contains("expected u8"), "{answer}");
    client.send("shape", json!([1, "x", 2])).await;
    assert_eq!(client.json().await["details"][0], 400);
    client.send("shape", json!([1, "x"])).await;
    client.expect("shape", json!(["1x"])).await;
}

#[tokio::test]
async fn a_guest_gets_messages_to_all_and_calls_actions_for_guests() {
    let app = App::start().await;
    let mut guest = app.guest().await;
    let mut user = app.user("ann").await;
    guest.send("hello", json!(["x"])).await;
    guest.expect("hello:error", json!([403, "Forbidden"])).await;
    for (action, target) in [
        ("registered", Target::registered()),
        ("user", Target::user("ann")),
        ("group", Target::groups(["users", "others"])),
        ("session", Target::session("session of ann")),
        ("property", Target::property("colour", "7")),
    ] {
        app.server.publish(message(action, (), target)).await.unwrap();
        user.expect(action, json!([])).await;
    }
    for target in [
        Target::user("bob"),
        Target::group("others"),
        Target::session("s"),
        Target::property("colour", "8"),
        Target::user("ann").except_user("ann"),
        Target::all().except_user("ann"),
    ] {
        app.server.publish(message("not for ann", (), target)).await.unwrap();
    }
    app.server.publish(message("all", (), Target::all())).await.unwrap();
    user.expect("all", json!([])).await;
    guest.expect("not for ann", json!([])).await;
    guest.expect("all", json!([])).await;
}

#[tokio::test]
async fn a_reply_goes_to_every_tab_and_a_response_to_one() {
    let app = App::start().await;
    let (mut one, mut two) = (app.user("ann").await, app.user("ann").await);
    let mut other = app.user("bob").await;
    one.send("echo", json!(["only one"])).await;
    one.expect("echo", json!(["only one"])).await;
    one.send("hello", json!(["both"])).await;
    one.expect("hello", json!(["both"])).await;
    two.expect("hello", json!(["both"])).await;
    app.server.publish(message("sentinel", (), Target::all())).await.unwrap();
    other.expect("sentinel", json!([])).await;
}

#[tokio::test]
async fn handlers_change_groups_and_properties() {
    let mut app = App::start().await;
    let (mut one, mut two) = (app.guest().await, app.guest().await);
    for client in [&mut one, &mut two] {
        client.send("room", json!(["join", "blue"])).await;
        client.expect("room", json!([["blue"], null])).await;
    }
    one.send("room", json!(["others", "blue"])).await;
    one.expect("room", json!([["blue"], null])).await;
    two.expect("others", json!([])).await;
    two.send("room", json!(["leave", "blue"])).await;
    two.expect("room", json!([[], null])).await;
    two.send("room", json!(["colour", "red"])).await;
    two.expect("room", json!([[], "red"])).await;
    app.server.publish(message("in blue", (), Target::group("blue"))).await.unwrap();
    app.server.publish(message("in red", (), Target::property("colour", "red"))).await.unwrap();
    one.expect("in blue", json!([])).await;
    two.expect("in red", json!([])).await;
    drop(one);
    assert_eq!(app.told().await, "Client/disconnection guest blue");
}

#[tokio::test]
async fn publishes_that_cannot_be_sent_are_refused() {
    let app = App::start().await;
    let mut client = app.guest().await;
    for action in ["", &"x".repeat(256)] {
        assert!(app.server.publish(message(action, (), Target::all())).await.is_err());
    }
    assert!(app.server.publish(message("x", (), Target::all()).idempotency_key("x".repeat(65))).await.is_err());
    assert!(app.server.publish(message("x", "x".repeat(1024 * 1024), Target::all())).await.is_err());
    app.server.publish(message("x", "x".repeat(1024 * 1024 - 5), Target::all())).await.unwrap();
    assert_eq!(client.json().await["action"], "x");
}

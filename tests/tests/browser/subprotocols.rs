//! Pages that offer subprotocols of their own, as other clients than `ws-cluster.js` do.

use serde_json::json;
use tests::browser::Browser;

use crate::node::Node;

#[tokio::test]
async fn a_page_that_offers_subprotocols_gets_one_of_them_and_never_its_token() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let tab = browser.open(&node.page()).await;
    let select = "return new Promise((resolve) => {
            const socket = new WebSocket(`ws://${location.host}/WebSockets`, ...args);
            socket.onopen = () => resolve(socket.protocol);
            socket.onerror = () => resolve(null);
        });";
    for (offered, selected) in [
        (json!([]), json!("")),
        (json!(["json"]), json!("json")),
        (json!([["xml", "json"]]), json!("xml")),
        (json!([["json", "ws-cluster.v1"]]), json!("ws-cluster.v1")),
        (json!([["ws-cluster.v1", "bearer.eyJhbGciOiJIUzI1NiJ9.e30.c2ln"]]), json!("ws-cluster.v1")),
        (json!([["bearer.eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "json"]]), json!("json")),
    ] {
        assert_eq!(tab.run(select, offered.clone()).await, selected, "{offered}");
    }
}

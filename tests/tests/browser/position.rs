//! A page that embeds where the order of messages stood when it was rendered.

use serde_json::json;
use tests::{browser::Browser, message};
use ws_cluster::Target;

use crate::{Page, node::Node};

#[tokio::test]
async fn a_page_gets_what_was_published_while_it_loaded() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let say = async |text: &str| {
        node.server.publish(message("news", json!([text]), Target::user("ann"))).await.expect("accepted");
    };
    say("in the page").await;
    let position = node.server.position().expect("the node is ready");
    say("while it loaded").await;
    let page = Page::open(&browser, &node.page()).await;
    page.run(&format!(
        "window.ws = new WsCluster('/WebSockets?user=ann', {{ position: '{position}' }});
         ws.on('news', hear('news')).on('Client/reset', hear('reset'));"
    ))
    .await;
    page.expect(json!(["news", "while it loaded"])).await;
    say("live").await;
    page.expect(json!(["news", "live"])).await;
}

//! A page's messages arrive unchanged, and no message ends the connection.

use serde_json::json;
use tests::browser::Browser;

use crate::{Page, node::Node};

#[tokio::test]
async fn a_message_that_cannot_be_sent_as_it_is_does_not_end_the_client() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;
    page.run(
        "window.ws = new WsCluster('/WebSockets?user=ann');
         ws.on('echo', hear('echo'), hear('failed')).on('Client/close', hear('close'));
         ws.send('echo', '🎉'.slice(0, 1)).send('echo', [{ ['a' + '🎉'.slice(1)]: '🎉' }]).send('echo', [1, , 3]);
         ws.send('echo', 'ж'.repeat(32768)).send('echo', 'x'.repeat(65536)).send('echo', 'after');",
    )
    .await;
    // The client's own answers come before those of the server.
    for call in [
        json!(["failed", 413, "Larger than 65536 bytes"]),
        json!(["failed", 413, "Larger than 65536 bytes"]),
        json!(["echo", "\u{fffd}"]),
        json!(["echo", { "a\u{fffd}": "🎉" }]),
        json!(["echo", 1, null, 3]),
        json!(["echo", "after"]),
    ] {
        page.expect(call).await;
    }
    // The server answers what only the server can check.
    page.run("let deep = []; for (let i = 0; i < 130; i++) deep = [deep]; ws.send('echo', deep);").await;
    let call = page.expect_any("failed").await;
    assert_eq!(call[1], 400, "{call}");
    // A message of exactly the maximum size.
    page.run("ws.send('echo', 'x'.repeat(65536 - '{\"action\":\"echo\",\"details\":[\"\"]}'.length));").await;
    let call = page.expect_any("echo").await;
    assert_eq!(call[1].as_str().map(str::len), Some(65_536 - 32));
    assert_eq!(*node.upgrades.lock(), ["ann"], "one connection for all");
}

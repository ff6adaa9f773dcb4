//! A server that hangs: its sockets stay open, and no message comes.

use serde_json::json;
use tests::{WsServer, browser::Browser};

use crate::Page;

#[tokio::test]
async fn a_page_leaves_a_server_that_hangs_and_goes_on_at_the_next() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let hangs = WsServer::start(state.path(), &["--demo"]).await;
    hangs.ready().await;
    let next = WsServer::start(state.path(), &["--demo"]).await;
    next.ready().await;
    let browser = Browser::start().await;
    // The page is the next server's, because its script must load while the other one hangs.
    let page = Page::open(&browser, &format!("http://{}/health", next.address())).await;
    let urls = json!([hangs.address(), next.address()].map(|address| format!("ws://{address}/WebSockets?user=ann")));
    page.0
        .run(
            "window.ws = new WsCluster(args, { heartbeat: 5000 })
                 .on('Client/close', hear('close')).on('Client/recovered', hear('recovered'))
                 .once('Server/position', hear('position'));",
            urls.clone(),
        )
        .await;
    page.expect(json!(["position", "new"])).await;
    assert_eq!(page.run("return ws.url;").await, urls[0]);

    // A quiet connection to a live server stays open, because heartbeats come.
    page.run("for (let i = 0; i < 3; i++) await new Promise((resolve) => ws.once('Server/position', resolve));").await;
    hangs.stop();
    let close = page.expect_any("close").await;
    assert_eq!(close, json!(["close", 1006, "Nothing was heard from the server", true, close[4]]));
    page.expect_any("recovered").await;
    assert_eq!(page.run("return ws.url;").await, urls[1]);
    assert_eq!(page.run("return ws.connected;").await, true);
}

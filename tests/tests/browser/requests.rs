//! A page waits for the answers to its messages.

use serde_json::json;
use tests::browser::Browser;

use crate::{Page, node::Node};

#[tokio::test]
async fn a_page_gets_the_answer_to_each_of_its_requests() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;
    let answers = page
        .run(
            "window.ws = new WsCluster().on('echo', hear('echo'));
             window.outcome = (asked) => asked.then((details) => ['ok', ...details], ({ code, text }) => [code, text]);
             const asked = [
                 ws.request('echo', ['one', 1.5]), ws.request('fail'), ws.request('nowhere'), ws.request('echo', []),
                 ws.request('hello', 'all tabs'),
             ];
             return Promise.all(asked.map(outcome));",
        )
        .await;
    let expected = json!([["ok", "one", 1.5], [409, "no"], [404, "Not Found"], ["ok"], ["ok"],]);
    assert_eq!(answers, expected);

    // No answer went to a callback.
    page.run("ws.send('echo', 'plain');").await;
    page.expect(json!(["echo", "plain"])).await;

    page.run("window.lost = outcome(ws.request('never'));").await;
    // The messages of a connection are handled one after the other.
    let late = page.run("return outcome(ws.request('echo', [], { timeout: 50 }));").await;
    assert_eq!(late, json!([504, "No answer in time, the outcome is unknown"]));
    node.kill();
    let lost = page.run("return lost;").await;
    assert_eq!(lost, json!([499, "The connection was lost, the outcome is unknown"]));
}

//! The places in which a client may run, besides a page of the server's host.

use serde_json::json;
use tests::browser::Browser;

use crate::{Page, node::Node};

#[tokio::test]
async fn a_frame_or_worker_without_an_address_of_its_own_reaches_the_host_of_its_page() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;
    page.run("window.source = (await (await fetch('/ws-cluster.js')).text()).replaceAll('</', '<\\\\/');").await;
    // `hear` runs in the page, and the frame's script in the frame.
    page.run(
        "const frame = document.createElement('iframe');
         frame.srcdoc = `<script>${source}</scr` + `ipt><script>
             new WsCluster().on('echo', parent.hear('srcdoc')).send('echo', 1);</scr` + `ipt>`;
         document.body.append(frame);",
    )
    .await;
    page.expect(json!(["srcdoc", 1])).await;
    page.run(
        "const frame = document.createElement('iframe');
         document.body.append(frame);
         const script = frame.contentDocument.createElement('script');
         script.textContent = `${source}; new WsCluster().on('echo', parent.hear('blank')).send('echo', 2);`;
         frame.contentDocument.body.append(script);",
    )
    .await;
    page.expect(json!(["blank", 2])).await;
    page.run(
        "const script = `${source}; new WsCluster().on('echo', (...details) => postMessage(details)).send('echo', 3);`;
         const worker = new Worker(URL.createObjectURL(new Blob([script])));
         worker.onmessage = ({ data }) => hear('worker')(...data);
         worker.onerror = ({ message }) => hear('failed')(message);",
    )
    .await;
    page.expect(json!(["worker", 3])).await;
}

#[tokio::test]
async fn a_page_without_a_host_is_told_to_pass_a_url() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;
    let source = page.run("return (await fetch('/ws-cluster.js')).text();").await;
    let tab = browser.open("data:text/html,<p>A page").await;
    let run = "(0, eval)(args[0]);
         try {
             new WsCluster();
         } catch (error) {
             return String(error);
         }";
    let error = tab.run(run, json!([source])).await;
    assert!(error.as_str().is_some_and(|error| error.contains("pass an absolute URL")), "{error}");
}

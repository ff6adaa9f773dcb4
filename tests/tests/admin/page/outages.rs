//! The page while its server is away, is slow, or is another one.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::Request};
use http::{StatusCode, header};
use parking_lot::Mutex;
use serde_json::json;
use tests::{browser::Browser, client::soon, free_port, http_client};
use tokio::net::TcpListener;

use super::{Admin, Page, WsServer, state};

/// A node whose page is at this address, without a key.
async fn node(admin: &str) -> Admin {
    let directory = state();
    let mut command = WsServer::command(directory.path());
    command.args(["run", "--listen", "127.0.0.1:0", "--pool", "memory:", "--admin", admin]);
    Admin::of(command, directory).await
}

/// A proxy in front of a page without a key. It may answer in place of the page.
struct Proxy {
    address: SocketAddr,
    instead: Arc<Mutex<Option<StatusCode>>>,
}

impl Proxy {
    async fn start(admin: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let instead = Arc::<Mutex<Option<StatusCode>>>::default();
        let answers = instead.clone();
        let app = Router::new().fallback(move |request: Request| {
            let instead = *answers.lock();
            async move {
                if let Some(status) = instead {
                    return (status, [(header::CONTENT_TYPE, "text/html".to_owned())], "<h1>nginx</h1>".to_owned());
                }
                let path = request.uri().path_and_query().expect("a path").as_str();
                let answer = soon(http_client::request(admin, request.method().as_str(), path, &[], "")).await;
                let answer = answer.expect("an answer");
                let kind = answer.header("content-type").expect("a type").to_owned();
                (answer.status, [(header::CONTENT_TYPE, kind)], answer.text)
            }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, instead }
    }

    fn answer_instead(&self, status: Option<StatusCode>) {
        *self.instead.lock() = status;
    }
}

#[tokio::test]
async fn the_page_says_that_its_server_is_away_behind_a_proxy_and_comes_back() {
    let admin = Admin::run(&[]).await;
    let proxy = Proxy::start(admin.address).await;
    let browser = Browser::start().await;
    let page = Page::at(&browser, proxy.address).await;
    page.says("Running").await;
    // A login in front of the page answers with 200.
    for status in [StatusCode::BAD_GATEWAY, StatusCode::GATEWAY_TIMEOUT, StatusCode::OK] {
        proxy.answer_instead(Some(status));
        page.says("No connection").await;
        assert_eq!(page.run("return document.getElementById('stop').disabled;").await, true);
        page.run("await until(() => text('cluster-note').startsWith('Another program answers'));").await;
        proxy.answer_instead(None);
        page.says("Running").await;
        page.run("await until(() => document.getElementById('cluster-note').hidden);").await;
    }
}

#[tokio::test]
async fn an_order_without_a_key_is_taken_by_the_next_process_as_well() {
    let listen = format!("127.0.0.1:{}", free_port());
    let mut first = node(&listen).await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &first).await;
    page.says("Running").await;
    first.server.kill().await;
    let mut next = node(&listen).await;
    let shown = "await until(() => text('facts').includes(args));";
    page.0.run(shown, json!(format!("Process{}", next.server.id()))).await;
    page.press("stop").await;
    assert_eq!(next.server.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_question_is_asked_once_while_its_answer_is_awaited() {
    let admin = Admin::run(&[]).await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &admin).await;
    page.says("Running").await;
    let script = "const plain = fetch;
        const asked = [];
        let answer;
        const answered = new Promise((resolve) => { answer = resolve; });
        window.fetch = async (path, options) => {
            asked.push(path);
            const response = await plain(path, options);
            await answered;
            return response;
        };
        location.hash = 'clients';
        document.getElementById('by-user').value = 'half typ';
        for (let count = 0; count < 3; count++) document.dispatchEvent(new Event('visibilitychange'));
        await until(() => asked.some((path) => path.startsWith('api/connections')));
        answer();
        return asked.map((path) => path.replace(/after=.*/, '')).sort();";
    let asked = page.run(script).await;
    let mut asked: Vec<&str> = asked.as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert!(asked.iter().all(|path| !path.contains("half")), "{asked:?}");
    // The view asks for its connections, too.
    asked.retain(|path| !path.starts_with("api/connections"));
    let all = asked.len();
    asked.dedup();
    assert_eq!(asked.len(), all, "{asked:?}");
}

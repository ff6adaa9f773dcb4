//! What the admin page's listener answers.

use std::{net::SocketAddr, sync::Arc};

use http::{Method, Request, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use url::form_urlencoded;

use super::{
    Answer, Listeners, Order, Question, Service, answer,
    history::History,
    listener::serve,
    places::Place,
    sign_in::{Sender, SignIn},
    watched::Watched,
};
use crate::{Failure, Outcome, cli::AdminPage, stderr::Stderr, tail::Tail};

/// Maximum size of the body of a sign-in.
const SIGN_IN_BODY_SIZE: usize = 4 * 1024;
/// Maximum size of the body of any other order, such as a message to publish.
const BODY_SIZE: usize = 2 * 1024 * 1024;

/// The files of the page, by their names below `/admin/`.
const FILES: [(&str, &str, &str); 8] = [
    ("", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("charts.js", "text/javascript; charset=utf-8", include_str!("page/charts.js")),
    ("picture.js", "text/javascript; charset=utf-8", include_str!("page/picture.js")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("dom.js", "text/javascript; charset=utf-8", include_str!("page/dom.js")),
    ("log.js", "text/javascript; charset=utf-8", include_str!("page/log.js")),
];

/// The policy of the page: it loads nothing from elsewhere, uses no inline scripts or styles, and cannot be framed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(crate) struct Front {
    service: Arc<dyn Service>,
    sign_in: SignIn,
    history: Arc<History>,
    log: Tail,
    health: Watched,
    ready: Watched,
    metrics: Watched,
    metrics_open: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: String,
}

impl Front {
    /// Serves the page until the future is dropped.
    pub(crate) async fn serve(listeners: Listeners, page: &AdminPage, service: Arc<dyn Service>) -> Outcome {
        let address = listeners.address().ok_or_else(|| Failure::setup("the listener of the admin page is gone"))?;
        let sign_in = SignIn::new(page.admin_key.as_deref(), address.port())
            .map_err(|error| Failure::refused(format!("the system gives no random bytes: {error}")))?;
        match page.admin_key {
            Some(_) => tracing::info!("the admin page is at http://{address}/admin/"),
            None => tracing::warn!(
                "the admin page is at http://{address}/admin/, and every user of this machine may use it"
            ),
        }
        let history = Arc::new(History::default());
        let (metrics_open, log) = (page.metrics_open, Stderr::get().keep());
        let (health, ready, metrics) = Default::default();
        let front = Arc::new(Self { service, sign_in, history, log, health, ready, metrics, metrics_open });
        let recording = front.history.clone().record(front.service.clone());
        let mut all = tokio::task::JoinSet::new();
        for listener in listeners.into_iter() {
            let front = front.clone();
            all.spawn(serve(listener, move |request, peer, place| front.clone().handle(request, peer, place)));
        }
        // The listeners end when the set is dropped.
        recording.await;
        Ok(())
    }

    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Option<SocketAddr>,
        place: Arc<Place>,
    ) -> Answer {
        let mut answer = self.route(request, peer, &place).await.unwrap_or_else(|refusal| *refusal);
        if !place.is_known() {
            answer::set(&mut answer, header::CONNECTION, "close");
        }
        for (name, value) in [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            answer::set(&mut answer, name, value);
        }
        answer
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        peer: Option<SocketAddr>,
        place: &Place,
    ) -> Result<Answer, Box<Answer>> {
        let (head, body) = request.into_parts();
        self.sign_in.check_host(&head)?;
        let path = head.uri.path().to_owned();
        let Some(allowed) = method(&path) else { return Err(answer::text(StatusCode::NOT_FOUND, "not found").into()) };
        let is_read = matches!(head.method, Method::GET | Method::HEAD);
        if allowed == Method::GET && !is_read || allowed == Method::POST && head.method != Method::POST {
            let mut refusal = answer::text(StatusCode::METHOD_NOT_ALLOWED, &format!("only {allowed}"));
            answer::set(&mut refusal, header::ALLOW, allowed.as_str());
            return Err(refusal.into());
        }
        let sender = self.sender(&head, peer);
        let file = path.strip_prefix("/admin/");
        if let Some((_, content_type, text)) = FILES.iter().find(|(name, ..)| Some(*name) == file) {
            return Ok(answer::document(content_type, *text));
        }
        match &*path {
            // The location is relative, because a proxy may add a prefix to the path.
            "/" | "/admin" => {
                let mut answer = answer::text(StatusCode::SEE_OTHER, "the page is at admin/");
                answer::set(&mut answer, header::LOCATION, "admin/");
                return Ok(answer);
            }
            "/health" => return Ok(self.health.ask(&self.service, &path).await),
            "/ready" => return Ok(self.ready.ask(&self.service, &path).await),
            "/metrics" if self.metrics_open => return Ok(self.metrics.ask(&self.service, &path).await),
            "/admin/login" => {
                check_type(&head)?;
                let Key { key } = answer::parse(&answer::read(body, SIGN_IN_BODY_SIZE).await?)?;
                return self.sign_in.sign_in(&key, &sender);
            }
            "/admin/api/session" => return Ok(self.sign_in.session_answer(&head)),
            _ => {}
        }
        self.sign_in.authorize(&head, &sender)?;
        place.admit();
        Ok(match &*path {
            "/admin/logout" => self.sign_in.sign_out(&head, &sender),
            "/admin/api/state" => answer::json(StatusCode::OK, &self.state()),
            "/admin/api/start" => self.order(Order::Start),
            "/admin/api/stop" => self.order(Order::Stop),
            "/admin/api/restart" => self.order(Order::Restart),
            "/admin/api/log" => self.log(&head)?,
            "/admin/api/history" => answer::json(StatusCode::OK, &self.history.after(number(&head, "after")?)),
            _ => {
                let body = if is_read { Default::default() } else { answer::read(body, BODY_SIZE).await? };
                let whole = head.uri.path_and_query().map_or(&*path, |whole| whole.as_str());
                let method = if is_read { Method::GET } else { Method::POST };
                self.service.ask(Question { method, path: whole.to_owned(), body }).await
            }
        })
    }

    fn sender(&self, head: &Parts, peer: Option<SocketAddr>) -> Sender {
        let trusted_proxies = self.service.trusted_proxies();
        let address = trusted_proxies.remote_ip(peer, &head.headers);
        let is_proxy = peer.is_some_and(|peer| trusted_proxies.contains(peer.ip()));
        let scheme = head.headers.get("x-forwarded-proto").and_then(|scheme| scheme.to_str().ok());
        let is_secure = is_proxy && scheme.is_some_and(|scheme| scheme.trim().eq_ignore_ascii_case("https"));
        Sender { address: address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()), is_secure }
    }

    fn state(&self) -> serde_json::Value {
        self.service.state().json(self.service.is_supervised())
    }

    fn order(&self, order: Order) -> Answer {
        match self.service.order(order) {
            Ok(()) => answer::json(StatusCode::ACCEPTED, &self.state()),
            Err(why) => answer::error(StatusCode::CONFLICT, &why),
        }
    }

    fn log(&self, head: &Parts) -> Result<Answer, Box<Answer>> {
        let part = self.log.after(number(head, "after")?);
        let lines = part.lines.into_iter().zip(part.first..);
        let lines: Vec<_> = lines.map(|(text, number)| json!({ "number": number, "text": text })).collect();
        Ok(answer::json(StatusCode::OK, &json!({ "lines": lines, "last": part.last })))
    }
}

/// Returns the method of a path, or `None` if there is no such path.
fn method(path: &str) -> Option<Method> {
    let is_file = path.strip_prefix("/admin/").is_some_and(|file| FILES.iter().any(|(name, ..)| *name == file));
    match path {
        "/" | "/admin" | "/health" | "/ready" | "/metrics" => Some(Method::GET),
        _ if is_file => Some(Method::GET),
        "/admin/login" | "/admin/logout" => Some(Method::POST),
        _ => match path.strip_prefix("/admin/api/")? {
            "session" | "state" | "log" | "history" | "cluster" | "connections" | "config" => Some(Method::GET),
            "start" | "stop" | "restart" | "close" | "publish" => Some(Method::POST),
            _ => None,
        },
    }
}

/// Returns a number in a request's query, or 0 if the query does not have it.
fn number(head: &Parts, name: &str) -> Result<u64, Box<Answer>> {
    let query = head.uri.query().unwrap_or_default();
    let value = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value);
    let number = value.as_ref().map_or(Some(0), |value| value.parse().ok());
    number.ok_or_else(|| answer::error(StatusCode::BAD_REQUEST, &format!("{name} is a whole number")).into())
}

/// Refuses a body that is not declared as JSON. So a form on another site's page, which cannot send JSON, signs nobody
/// in.
fn check_type(head: &Parts) -> Result<(), Box<Answer>> {
    let given = head.headers.get(header::CONTENT_TYPE).and_then(|given| given.to_str().ok()).unwrap_or_default();
    match given.split(';').next().is_some_and(|given| given.trim().eq_ignore_ascii_case("application/json")) {
        true => Ok(()),
        false => {
            let why = "the body is JSON: send Content-Type: application/json";
            Err(answer::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, why).into())
        }
    }
}

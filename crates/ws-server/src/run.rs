//! `run`: a node, from its flags to the end of its shutdown.

use std::{
    env,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use url::{Host, Url};
use ws_cluster::{ClusterConfig, Origin, ServeError, Server, ServerBuilder, TrustedProxies, pool::PoolView};

use crate::{
    Failure, Outcome,
    admin::{self, Alone, Front, Listeners, Node},
    authentication::{self, Authenticators},
    cli::{AdminPage, Run},
    config::Settings,
    demo::Demo,
    logs, metrics, outbox, parent,
    pool::{self, Kind, Opened},
    probe::reachable,
    say,
    signals::Signals,
    stderr::Stderr,
    systemd,
    tls::Certificate,
    values::items,
};

/// Finds the mistakes in the settings that show without a database and a listener.
pub(crate) fn check(settings: &Settings) -> Outcome {
    let Settings { run, config, .. } = settings;
    config.check().map_err(Failure::setup)?;
    if run.publish_key.as_deref() == Some("") {
        return Err(Failure::setup("--publish-key is empty: give a long random key, or leave it out"));
    }
    trusted_proxies(&run.trusted_proxy)?;
    allowed_origins(&run.allowed_origin)?;
    logs::check(run.log_filter.as_deref())?;
    authentication::tokens(&run.tokens)?;
    authentication::backend(&run.backend)?;
    outbox::check(run)?;
    Certificate::open(&run.tls)?;
    pool::check_keys(&run.place.keys)?;
    admin::check(&run.admin_page)
}

/// Runs a node until it is told to stop. `read_again` is called at SIGHUP.
pub(crate) async fn run(settings: Settings, mut read_again: impl FnMut(&Server) + Send + 'static) -> Outcome {
    if let Some(supervisor) = settings.run.supervision.supervised_by {
        parent::follow(supervisor)?;
    }
    let signals = Signals::catch().map_err(|error| Failure::setup(format!("signals cannot be caught: {error}")))?;
    check(&settings)?;
    let Settings { run, config, shown } = settings;
    let trusted_proxies = trusted_proxies(&run.trusted_proxy)?;
    let allowed_origins = allowed_origins(&run.allowed_origin)?;
    let opened = Opened::for_node(&run.place).await?;
    let keys = opened.keys(&run.place.keys)?;
    let backend = authentication::backend(&run.backend)?;
    let authenticators = Authenticators::new(&run, &opened, backend.as_ref())?;
    let outbox = outbox::open(&run, &opened)?;
    let certificate = Certificate::open(&run.tls)?.map(Arc::new);
    let listener = listen(&run.listen).await?;
    let page = AdminListener::bind(&run).await?;
    let bound = listener.local_addr().map_err(|error| Failure::setup(format!("the listener is gone: {error}")))?;
    let address = address(run.address.as_deref(), bound, opened.kind);
    let reach = Reach::of(&address);
    if reach == Reach::Nobody {
        return Err(Failure::setup(format!(
            "no other node can reach this one at {address}: give --address ws://HOST:PORT with a host of its own"
        )));
    }
    // A node waits for a database that goes down under it. But one that was not there at the start is most likely
    // a mistake in its URL, which nobody reads in a log.
    let view = opened.read(&run.place.cluster).await?;
    tell_pool(&run, &opened, bound);
    if let Some(other) = apart(&address, &view) {
        tracing::warn!(
            address,
            other,
            "one of these nodes cannot be reached from other hosts: give each an --address that all reach"
        );
    }

    let mut builder = Server::builder(opened.pool)
        .cluster(&run.place.cluster)
        .address(address)
        .path(&run.path)
        .guests(!run.no_guests)
        .dialect(run.dialect)
        .allowed_origins(allowed_origins)
        .own_origin(!run.no_own_origin)
        .trusted_proxies(trusted_proxies.clone())
        .config(config);
    builder = keys.into_iter().fold(builder, ServerBuilder::key);
    if let Some(key) = run.publish_key {
        builder = builder.publish_key(key);
    }
    if let Some(authenticator) = authenticators.checked().await? {
        builder = builder.authenticator(authenticator);
    }
    if let Some(backend) = &backend {
        builder = match run.backend.no_backend_disconnect {
            true => backend.add_actions_to(builder),
            false => backend.add_to(builder),
        };
    }
    if let Some(outbox) = outbox {
        outbox::prepare(&*outbox).await?;
        builder = builder.outbox(outbox);
    }
    let demo = run.demo.then(Demo::new);
    if let Some(demo) = &demo {
        if !bound.ip().is_loopback() {
            tracing::warn!("the demo believes everybody's name, and everybody who reaches {bound} can use it");
        }
        builder = demo.add_to(builder, &run.path);
    }
    let server = builder.start().await.map_err(Failure::setup)?;

    // A node does not depend on who reads this.
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let _ = say(format_args!("{scheme}://{bound}/"));
    if let Some(demo) = demo {
        let _ = say(format_args!("Open {scheme}://{}/?user=ann in a browser", reachable(bound)));
        tokio::spawn(demo.show(server.clone()));
    }
    tokio::spawn(systemd::report(server.clone(), bound, run.path.clone(), run.supervision.check_timeout));
    if !matches!(page, AdminListener::Nowhere)
        && let Err(error) = metrics::install()
    {
        tracing::error!(%error, "there are no metrics");
    }
    let page = page.serve(&run.admin_page, Node::new(server.clone(), shown), bound, trusted_proxies);
    if let Some(certificate) = certificate.clone() {
        certificate.warn();
        tokio::spawn(async move { certificate.follow().await });
    }
    let (own, again) = (server.clone(), certificate.clone());
    let stop = async move {
        let drained = own.clone();
        let read_again = move || {
            read_again(&own);
            again.iter().for_each(|certificate| certificate.reload());
        };
        let mut told = tokio::spawn(async move { signals.stop(read_again).await });
        tokio::select! {
            _ = &mut told => {}
            // A signal that follows does not cut the drain off, and the one after it does.
            () = drained.drain_requested() => {}
            () = ordered(page.as_deref()) => {}
        }
        page.inspect(|page| page.shut_down());
        systemd::tell(&[NotifyState::Stopping, NotifyState::Status("shutting down")]);
    };
    let mut serve = server.serve(listener);
    if let Some(certificate) = certificate {
        serve = serve.with_tls(certificate.certificate.clone());
    }
    serve.with_graceful_shutdown(stop).await.map_err(|error| match error {
        ServeError::AddressTaken { .. } => Failure::setup(error),
        // The node ended by itself.
        _ => Failure::refused(error),
    })
}

/// Where an administrator asks the node.
enum AdminListener {
    Nowhere,
    /// At the supervisor, which asks the node on this socket.
    Supervisor(std::path::PathBuf),
    Own(Listeners),
}

impl AdminListener {
    async fn bind(run: &Run) -> Outcome<Self> {
        if run.supervision.supervised_by.is_some() {
            return Ok(env::var_os(admin::SOCKET).map_or(Self::Nowhere, |path| Self::Supervisor(path.into())));
        }
        match &run.admin_page.admin {
            Some(address) => {
                // From the first line on.
                Stderr::get().keep();
                Ok(Self::Own(Listeners::bind(address, run.admin_page.admin_key.is_some()).await?))
            }
            None => Ok(Self::Nowhere),
        }
    }

    /// Serves the page, or the supervisor.
    fn serve(
        self,
        page: &AdminPage,
        node: Node,
        bound: SocketAddr,
        trusted_proxies: TrustedProxies,
    ) -> Option<Arc<Alone>> {
        match self {
            Self::Nowhere => None,
            Self::Supervisor(path) => {
                tokio::spawn(admin::serve_supervisor(path, Arc::new(node)));
                None
            }
            Self::Own(listeners) => {
                let alone = Arc::new(Alone::new(Arc::new(node), bound));
                let (page, service) = (page.clone(), alone.clone());
                tokio::spawn(async move {
                    if let Err(why) = Front::serve(listeners, &page, service, trusted_proxies).await {
                        tracing::error!("there is no admin page: {}", why.text);
                    }
                });
                Some(alone)
            }
        }
    }
}

/// Waits until the admin page orders the node to stop; for ever without one.
async fn ordered(page: Option<&Alone>) {
    match page {
        Some(page) => page.stopped().await,
        None => std::future::pending().await,
    }
}

/// Says which pool is used, before anything else is logged. A node that was started without its environment is a
/// cluster of its own, and nothing else shows it.
fn tell_pool(run: &Run, opened: &Opened, bound: SocketAddr) {
    let (pool, cluster) = (opened.name(), &run.place.cluster);
    if !opened.is_default {
        tracing::info!(pool, cluster, "starting");
        return;
    }
    let belongs_to_others = !bound.ip().is_loopback()
        || run.address.is_some()
        || run.session_cookie.is_some()
        || run.publish_key.is_some()
        || run.no_guests
        || !run.allowed_origin.is_empty()
        || !run.trusted_proxy.is_empty();
    if belongs_to_others {
        tracing::warn!(
            pool,
            cluster,
            "no pool was given (--pool, WS_SERVER_POOL): only nodes of this user find this one"
        );
    } else {
        tracing::info!(pool, cluster, "starting; no pool was given (--pool, WS_SERVER_POOL)");
    }
}

/// A living node of the pool that cannot reach this one, or that this one cannot reach, because one of the two has a
/// loopback address and the other has not.
fn apart<'a>(own: &str, view: &'a PoolView) -> Option<&'a str> {
    let timeout = ClusterConfig::default().member_timeout;
    let living = view.nodes.iter().filter(|node| node.age <= timeout && node.address != own);
    let mut addresses = living.map(|node| node.address.as_str());
    addresses.find(|address| Reach::of(address) != Reach::of(own))
}

async fn listen(address: &str) -> Outcome<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::setup(match error.kind() {
            ErrorKind::AddrInUse => {
                format!("{address} is taken: stop what listens there, or give another --listen (port 0 picks one)")
            }
            ErrorKind::InvalidInput => format!("{address:?} is no HOST:PORT: give --listen 127.0.0.1:8080"),
            ErrorKind::PermissionDenied => {
                format!("{address} may not be listened at: give --listen with a port above 1023")
            }
            _ => format!("{address} cannot be listened at ({error}): give another --listen"),
        })
    })
}

pub(crate) fn trusted_proxies(given: &[String]) -> Outcome<TrustedProxies> {
    let given = items(given, "--trusted-proxy")?;
    if given.is_empty() {
        return Ok(TrustedProxies::default());
    }
    given.join(",").parse().map_err(|error| Failure::setup(format!("--trusted-proxy: {error}")))
}

pub(crate) fn allowed_origins(given: &[String]) -> Outcome<Vec<Origin>> {
    let parsed = |origin: String| origin.parse().map_err(|error| Failure::setup(format!("--allowed-origin: {error}")));
    items(given, "--allowed-origin")?.into_iter().map(parsed).collect()
}

/// Where other nodes reach this one.
fn address(given: Option<&str>, bound: SocketAddr, kind: Kind) -> String {
    match given {
        Some(address) => address.to_owned(),
        None if kind == Kind::MySql => format!("ws://{bound}"),
        None => format!("ws://{}", reachable(bound)),
    }
}

/// Who can reach an address, as far as it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Nobody,
    ThisHost,
    Others,
}

impl Reach {
    /// A malformed address is left to the library, which says what is wrong with it.
    fn of(address: &str) -> Self {
        let url = Url::parse(address).ok();
        let ip = match url.as_ref().and_then(Url::host) {
            Some(Host::Ipv4(ip)) => IpAddr::from(ip),
            Some(Host::Ipv6(ip)) => IpAddr::from(ip),
            Some(Host::Domain("localhost")) => return Self::ThisHost,
            Some(Host::Domain(_)) | None => return Self::Others,
        };
        match () {
            () if ip.is_unspecified() => Self::Nobody,
            () if ip.is_loopback() => Self::ThisHost,
            () => Self::Others,
        }
    }
}

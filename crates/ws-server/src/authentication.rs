//! Makes the authenticators that the flags name: for the site's sessions, its tokens, its own code, or several of them.

use std::{fs, path::Path};

use ws_cluster::{AuthenticationError, AuthenticatorChain, Backend, BackendError, JwtAuthenticator, SessionTable};

use crate::{
    Failure, Outcome,
    cli::{BackendFlags, Run, Tokens},
    pool::{Kind, Opened},
    values::items,
};

/// The authenticators that the flags name, in the order in which they are asked.
pub(crate) struct Authenticators {
    sessions: Option<SessionTable>,
    tokens: Option<JwtAuthenticator>,
    backend: Option<Backend>,
}

impl Authenticators {
    /// Makes them. `backend` is the site's own code, if the flags name it.
    pub(crate) fn new(run: &Run, opened: &Opened, backend: Option<&Backend>) -> Outcome<Self> {
        let (sessions, tokens) = (sessions(run, opened)?, tokens(&run.tokens)?);
        let backend = backend.filter(|_| run.backend.backend_connect).cloned();
        if run.demo && (sessions.is_some() || tokens.is_some() || backend.is_some()) {
            return Err(Failure::setup(
                "--demo has users of its own: leave it out, or the flags of sessions and tokens and --backend-connect",
            ));
        }
        Ok(Self { sessions, tokens, backend })
    }

    /// Returns them as one, or `None` if there are none. Checks the queries of the sessions first.
    pub(crate) async fn checked(self) -> Outcome<Option<AuthenticatorChain>> {
        let Self { sessions, tokens, backend } = self;
        let is_any = sessions.is_some() || tokens.is_some() || backend.is_some();
        let mut chain = AuthenticatorChain::new();
        if let Some(sessions) = sessions {
            check_queries(&sessions).await?;
            chain = chain.then(sessions);
        }
        if let Some(tokens) = tokens {
            chain = chain.then(tokens);
        }
        // The backend comes last, because its answer is final: a client that it does not know is a guest.
        if let Some(backend) = backend {
            chain = chain.then(backend);
        }
        Ok(is_any.then_some(chain))
    }
}

/// Makes the authenticator of the site's tokens, if the flags name a key.
pub(crate) fn tokens(given: &Tokens) -> Outcome<Option<JwtAuthenticator>> {
    let files = items(&given.jwt_public_key, "--jwt-public-key")?;
    let sets = items(&given.jwt_jwks, "--jwt-jwks")?;
    let issuers = items(&given.jwt_issuer, "--jwt-issuer")?;
    let audiences = items(&given.jwt_audience, "--jwt-audience")?;
    if given.jwt_secret.is_empty() && files.is_empty() && sets.is_empty() {
        return match issuers.is_empty() && audiences.is_empty() && given.jwt_cookie.is_none() {
            true => Ok(None),
            false => Err(Failure::setup("tokens need a key: give --jwt-secret, --jwt-public-key or --jwt-jwks")),
        };
    }
    let mut tokens = JwtAuthenticator::new();
    // A secret may contain a comma.
    for secret in &given.jwt_secret {
        tokens = tokens.secret(secret).map_err(|error| Failure::setup(format!("--jwt-secret: {error}")))?;
    }
    for file in files {
        let unusable = |why: String| Failure::setup(format!("--jwt-public-key {file}: {why}"));
        let pem = fs::read(&file).map_err(|error| unusable(format!("it cannot be read ({error})")))?;
        tokens = tokens.public_key(pem).map_err(|error| unusable(error.to_string()))?;
    }
    for set in sets {
        let is_url = ["http://", "https://"].iter().any(|scheme| set.to_ascii_lowercase().starts_with(scheme));
        tokens = match is_url {
            true => tokens.jwks_url(set).map_err(Failure::setup)?,
            // A URL may be unavailable for a while, but a missing file is a mistake.
            false if !Path::new(&set).is_file() => {
                return Err(Failure::setup(format!("--jwt-jwks: {set} is neither a file nor an http(s) URL")));
            }
            false => tokens.jwks_file(set),
        };
    }
    tokens = issuers.into_iter().fold(tokens, JwtAuthenticator::issuer);
    tokens = audiences.into_iter().fold(tokens, JwtAuthenticator::audience);
    Ok(Some(match &given.jwt_cookie {
        Some(name) => tokens.cookie(name),
        None => tokens,
    }))
}

/// Makes the backend, which is the site's own code, if the flags name it.
pub(crate) fn backend(given: &BackendFlags) -> Outcome<Option<Backend>> {
    let actions = items(&given.backend_actions, "--backend-actions")?;
    let Some(url) = &given.backend else {
        let needs =
            given.backend_key.is_some() || given.backend_connect || given.no_backend_disconnect || !actions.is_empty();
        return match needs {
            true => Err(Failure::setup("a backend needs its URL: give --backend http://HOST/PATH")),
            false => Ok(None),
        };
    };
    let Some(key) = &given.backend_key else {
        return Err(Failure::setup(
            "--backend needs --backend-key, which signs the requests: make one with `openssl rand -hex 32`",
        ));
    };
    let builder = Backend::builder(url, key)
        .concurrency(given.backend_concurrency)
        .queue(given.backend_queue)
        .timeout(given.backend_timeout);
    let builder = if actions.is_empty() { builder } else { builder.actions(actions) };
    let named = |error: BackendError| {
        let flag = match error {
            BackendError::Key(_) => "--backend-key",
            BackendError::Setting(_) => "--backend-timeout",
            _ => "--backend",
        };
        Failure::setup(format!("{flag}: {error}"))
    };
    builder.build().map(Some).map_err(named)
}

/// Makes the authenticator of the site's sessions, if the flags name them.
fn sessions(run: &Run, opened: &Opened) -> Outcome<Option<SessionTable>> {
    let (cookie, query) = match (&run.session_cookie, &run.session_query) {
        (Some(cookie), Some(query)) => (cookie, query),
        (None, None) if run.groups_query.is_none() && run.session_database.is_none() => return Ok(None),
        _ => return Err(Failure::setup("sessions need both --session-cookie and --session-query")),
    };
    let url = match &run.session_database {
        Some(url) => url,
        None if opened.kind == Kind::MySql => &opened.url,
        None => return Err(Failure::setup("give --session-database mysql://user:password@host:port/database")),
    };
    let mut sessions = SessionTable::new(url, cookie, query).map_err(Failure::setup)?;
    if let Some(query) = &run.groups_query {
        sessions = sessions.groups_query(query).map_err(Failure::setup)?;
    }
    Ok(Some(sessions))
}

/// Checks the queries before clients need them. If the database does not answer, this only warns.
async fn check_queries(sessions: &SessionTable) -> Outcome {
    match sessions.check().await {
        Ok(()) => Ok(()),
        Err(error @ AuthenticationError::Unavailable(_)) => {
            tracing::warn!("{error}; clients with a session are refused until the database answers");
            Ok(())
        }
        Err(error) => Err(Failure::setup(format!("{error}; see --session-query and --groups-query"))),
    }
}

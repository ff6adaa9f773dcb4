//! Several authenticators, one after the other.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use super::{AuthenticationError, Authenticator, Credentials, Handshake, Identity, Inquiry, Revoked};

/// Asks several authenticators in turn: the first that knows the client decides who it is.
///
/// If none knows the client and one of them cannot answer, the chain cannot answer either. If one of them
/// [refuses](AuthenticationError::Refused) the client, those after it are not asked. A user is rechecked at the interval
/// of the authenticator that knew it ([`Identity::recheck`]). The chain's own interval is the shortest of all.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ws_cluster::{AuthenticatorChain, Identity, SessionCookie};
///
/// let sessions = SessionCookie::new("session", |id: String| async move {
///     Ok((id == "e4d909").then(|| Identity::user("ann")))
/// });
/// let guests = SessionCookie::new("visitor", |id: String| async move { Ok(Some(Identity::guest().session(id))) });
/// let authenticator = AuthenticatorChain::new().then(sessions).then(guests);
/// # Ok(()) }
/// ```
#[derive(Default)]
#[must_use = "an authenticator is used by `ServerBuilder::authenticator`"]
pub struct AuthenticatorChain(Vec<Box<dyn Authenticator>>);

impl AuthenticatorChain {
    /// Returns a chain without authenticators, for which every client is a guest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an authenticator, which is asked after those before it.
    pub fn then(mut self, next: impl Authenticator) -> Self {
        self.0.push(Box::new(next));
        self
    }

    /// Asks one after the other, and returns the first answer that knows or refuses the client. If there is none, the
    /// first failure counts. After a failure only a user counts: whoever failed may know the client that a later one
    /// takes for a guest or refuses.
    async fn first<'a, F>(
        &'a self,
        ask: impl Fn(&'a dyn Authenticator) -> F,
    ) -> Result<Option<Identity>, AuthenticationError>
    where
        F: Future<Output = Result<Option<Identity>, AuthenticationError>>,
    {
        let mut failure = None;
        for authenticator in &self.0 {
            match ask(&**authenticator).await {
                Ok(None) => {}
                Err(error) if !matches!(error, AuthenticationError::Refused) => drop(failure.get_or_insert(error)),
                Ok(Some(mut identity)) if identity.user.is_some() => {
                    // Zero is "never". `None` would mean the interval of the chain.
                    let interval = || authenticator.recheck_interval().unwrap_or_default();
                    identity.recheck = identity.recheck.or_else(|| Some(interval()));
                    return Ok(Some(identity));
                }
                decided => return failure.map_or(decided, Err),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

impl fmt::Debug for AuthenticatorChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthenticatorChain").field(&self.0.len()).finish()
    }
}

#[async_trait]
impl Authenticator for AuthenticatorChain {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        self.first(|authenticator| authenticator.authenticate(handshake, credentials)).await
    }

    async fn recheck(&self, handshake: &Handshake) -> Result<Option<Identity>, AuthenticationError> {
        self.first(|authenticator| authenticator.recheck(handshake)).await
    }

    async fn identify(&self, inquiry: Inquiry<'_>) -> Result<Option<Identity>, AuthenticationError> {
        self.first(|authenticator| authenticator.identify(inquiry)).await
    }

    /// The shortest of all: an authenticator that wraps the chain and makes its own identities may forward it.
    fn recheck_interval(&self) -> Option<Duration> {
        let intervals = self.0.iter().filter_map(|authenticator| authenticator.recheck_interval());
        intervals.filter(|interval| !interval.is_zero()).min()
    }

    fn uses_cookies(&self) -> bool {
        self.0.iter().any(|authenticator| authenticator.uses_cookies())
    }

    fn in_band(&self) -> bool {
        self.0.iter().any(|authenticator| authenticator.in_band())
    }

    fn headers(&self) -> Vec<&str> {
        self.0.iter().flat_map(|authenticator| authenticator.headers()).collect()
    }

    fn logs_failures(&self) -> bool {
        self.0.iter().all(|authenticator| authenticator.logs_failures())
    }

    fn forget(&self, closed: Revoked<'_>) {
        self.0.iter().for_each(|authenticator| authenticator.forget(closed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TrustedProxies, auth::InquiryReason};

    /// Answers each question alike. The user "" is a guest, and the error "refused" refuses the client.
    struct Always(Result<Option<&'static str>, &'static str>);

    #[async_trait]
    impl Authenticator for Always {
        async fn authenticate(
            &self,
            _handshake: &Handshake,
            _credentials: Option<Credentials<'_>>,
        ) -> Result<Option<Identity>, AuthenticationError> {
            match self.0 {
                Ok(Some("")) => Ok(Some(Identity::guest())),
                Ok(user) => Ok(user.map(Identity::user)),
                Err("refused") => Err(AuthenticationError::Refused),
                Err(why) => Err(AuthenticationError::Unavailable(why.into())),
            }
        }

        fn uses_cookies(&self) -> bool {
            self.0 == Ok(None)
        }

        fn headers(&self) -> Vec<&str> {
            vec!["x-own"]
        }
    }

    #[tokio::test]
    async fn the_first_that_knows_the_client_decides() {
        let request = http::Request::get("/").body(()).unwrap();
        let handshake = Handshake::new(&request.into_parts().0, None, &TrustedProxies::none());
        let (ann, bob, guest, down) = (Ok(Some("ann")), Ok(Some("bob")), Ok(None), Err("down"));
        let (visitor, refused) = (Ok(Some("")), Err("refused"));
        for (answers, known) in [
            (vec![], Ok(None)),
            (vec![guest, ann, bob], Ok(Some("ann"))),
            (vec![down, ann], Ok(Some("ann"))),
            (vec![guest, guest], Ok(None)),
            (vec![guest, down, guest], Err(())),
            (vec![down, visitor], Err(())),
            (vec![down, visitor, ann], Err(())),
            (vec![visitor, down], Ok(None)),
            (vec![down, refused, ann], Err(())),
            (vec![ann, refused], Ok(Some("ann"))),
        ] {
            let chain = answers.iter().fold(AuthenticatorChain::new(), |chain, answer| chain.then(Always(*answer)));
            let user = |answer: Result<Option<Identity>, AuthenticationError>| {
                answer.map(|identity| identity.and_then(|identity| identity.user)).map_err(drop)
            };
            let known = known.map(|user| user.map(str::to_owned));
            assert_eq!(user(chain.authenticate(&handshake, None).await), known, "{answers:?}");
            assert_eq!(user(chain.recheck(&handshake).await), known, "{answers:?}");
            let connection = "0123456789abcdef0123456789abcdef-7".parse().unwrap();
            for reason in [InquiryReason::Handshake, InquiryReason::Recheck { user: None, session: None }] {
                let inquiry = Inquiry { handshake: &handshake, connection, reason };
                assert_eq!(user(chain.identify(inquiry).await), known, "{answers:?}");
            }
            assert_eq!(chain.uses_cookies(), answers.contains(&guest));
            assert_eq!(chain.headers().len(), answers.len());
        }
    }
    /// Knows one user, and wants to be asked about it at an interval.
    struct Knows(&'static str, Option<Duration>);

    #[async_trait]
    impl Authenticator for Knows {
        async fn authenticate(
            &self,
            handshake: &Handshake,
            _credentials: Option<Credentials<'_>>,
        ) -> Result<Option<Identity>, AuthenticationError> {
            Ok((handshake.header("x-user") == Some(self.0)).then(|| Identity::user(self.0)))
        }

        fn recheck_interval(&self) -> Option<Duration> {
            self.1
        }
    }

    #[tokio::test]
    async fn a_user_is_rechecked_at_the_interval_of_the_authenticator_that_knew_it() {
        let (often, never) = (Some(Duration::from_secs(20)), Some(Duration::ZERO));
        let inner = AuthenticatorChain::new().then(Knows("bob", None)).then(Knows("carl", Some(Duration::MAX)));
        let chain = AuthenticatorChain::new().then(Knows("ann", often)).then(inner);
        for (user, interval) in [("ann", often), ("bob", never), ("carl", Some(Duration::MAX))] {
            let request = http::Request::get("/").header("x-user", user).body(()).unwrap();
            let handshake = Handshake::new(&request.into_parts().0, None, &TrustedProxies::none());
            let identity = chain.recheck(&handshake).await.unwrap().expect("a user");
            assert_eq!((identity.user.as_deref(), identity.recheck), (Some(user), interval));
        }
    }

    #[test]
    fn an_authenticator_that_wraps_a_chain_forwards_the_shortest_interval() {
        let knows = |seconds| Knows("ann", seconds);
        let (often, rarely) = (Some(Duration::from_secs(20)), Some(Duration::from_secs(60)));
        let inner = AuthenticatorChain::new().then(knows(rarely)).then(knows(often));
        let chain = AuthenticatorChain::new().then(knows(None)).then(knows(Some(Duration::ZERO))).then(inner);
        assert_eq!(chain.recheck_interval(), often);
        assert_eq!(AuthenticatorChain::new().then(knows(None)).recheck_interval(), None);
    }
}

//! When the authenticator is asked about a client's identity, and when an identity ends.

use super::*;
use crate::connection::auth::refresh_wait;

#[tokio::test(start_paused = true)]
async fn a_session_end_that_cannot_be_confirmed_closes_after_a_minute() {
    let mut config = Config::default();
    config.connection.ping_interval = Duration::from_secs(1000);
    let mut peer = Peer::connect(config, Some(Duration::from_secs(100)), 1000).await;
    assert_eq!(peer.closed().await, (4002, 160));
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_once_its_store_says_so() {
    let mut peer = Peer::connect(Config::default(), Some(Duration::from_secs(10)), 1000).await;
    assert_eq!(peer.frame().await, (0x89, vec![], 25));
    peer.down.store(false, Ordering::Relaxed);
    for second in [45, 70, 95] {
        peer.send(r#"["echo"]"#).await;
        let (_, answer, _) = peer.frame().await;
        assert_eq!(answer, br#"["echo",[]]"#);
        let (first, _, at) = peer.frame().await;
        // Each answer postpones the next ping. Nothing closed it at the session's end.
        assert!(first == 0x89 && at >= second, "{at}");
    }
}

/// Ann's session in a store that notes when it is asked. The answer depends on how often it was asked before.
struct Noting {
    asked: Arc<Mutex<Vec<Instant>>>,
    answer: fn(usize) -> Option<Identity>,
}

#[async_trait]
impl Authenticator for Noting {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let mut asked = self.asked.lock();
        asked.push(Instant::now());
        Ok((self.answer)(asked.len() - 1))
    }
}

/// Returns Ann for some seconds. The wall clock does not follow the virtual time, so they count from the question.
fn ann_for(seconds: u64) -> Option<Identity> {
    Some(Identity::user("ann").expires(SystemTime::now() + Duration::from_secs(seconds)))
}

/// Connects a client that is never pinged. Returns it with the times at which its store is asked.
async fn noting(
    identity: Identity,
    session: Option<u64>,
    answer: fn(usize) -> Option<Identity>,
) -> (Peer, Arc<Mutex<Vec<Instant>>>) {
    let (peer, asked, _) = noting_client(identity, session, answer).await;
    (peer, asked)
}

/// Does the same, and also returns the client as the hub knows it.
async fn noting_client(
    identity: Identity,
    session: Option<u64>,
    answer: fn(usize) -> Option<Identity>,
) -> (Peer, Arc<Mutex<Vec<Instant>>>, Arc<Client>) {
    let mut config = Config::default();
    config.connection.ping_interval = Duration::from_secs(1_000_000);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let authenticator = Noting { asked: asked.clone(), answer };
    let builder = Server::builder(MemoryPool::default()).authenticator(authenticator).action("echo", Echo);
    let server = builder.config(config).start().await.unwrap();
    let (client, accepted) = upgraded(&server, identity, session.map(Duration::from_secs));
    let (stream, far) = duplex(100_000);
    tokio::spawn(serve(server, accepted, far, &[]));
    (Peer { stream, start: Instant::now(), down: Arc::default() }, asked, client)
}

/// Returns the seconds between the questions.
fn gaps(start: Instant, asked: &[Instant]) -> Vec<u64> {
    let before = [&[start], asked].concat();
    asked.iter().zip(before).map(|(at, before)| (*at - before).as_secs()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_the_site_extends_is_asked_about_in_time_and_never_ends() {
    let (mut peer, asked) = noting(Identity::user("ann"), Some(300), |_| ann_for(300)).await;
    tokio::time::sleep(Duration::from_secs(10_000)).await;
    peer.send(r#"["echo"]"#).await;
    assert_eq!(peer.frame().await.1, br#"["echo",[]]"#);
    let gaps = gaps(peer.start, &asked.lock());
    assert!(gaps.len() > 30 && gaps.iter().all(|gap| (179..=240).contains(gap)), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_the_site_does_not_extend_is_asked_about_once_more_at_its_end() {
    // The first answer is no later end, and the second that the session has ended.
    let answer = |asked| if asked == 0 { ann_for(60) } else { None };
    let (mut peer, asked) = noting(Identity::user("ann"), Some(300), answer).await;
    let (code, at) = peer.closed().await;
    let gaps = gaps(peer.start, &asked.lock());
    assert!((179..=240).contains(&gaps[0]) && (59..=61).contains(&gaps[1]), "{gaps:?}");
    assert_eq!((code, gaps.len()), (4003, 2));
    assert!((238..=302).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_that_does_not_extend_an_identity_leaves_the_question_before_its_end() {
    // Refreshed a minute after the upgrade, with the same end. Later, the site extends the identity.
    let answer = |asked| if asked == 0 { ann_for(240) } else { ann_for(100_000) };
    let (mut peer, asked, client) = noting_client(Identity::user("ann"), Some(300), answer).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.refresh();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    peer.send(r#"["echo"]"#).await;
    assert_eq!(peer.frame().await.1, br#"["echo",[]]"#);
    let asked: Vec<_> = asked.lock().iter().map(|at| (*at - peer.start).as_secs()).collect();
    assert!(asked.len() == 2 && asked[0] <= 62 && (179..=242).contains(&asked[1]), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn an_early_question_without_an_answer_is_repeated_at_the_pace_of_the_node_and_not_together() {
    let mut config = Config::default();
    config.connection.ping_interval = Duration::from_secs(1_000_000);
    // Thirty connections have a turn each in 30 s.
    config.connection.rechecks_per_second = 1;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let builder = Server::builder(MemoryPool::default()).authenticator(Failing(asked.clone()));
    let server = builder.config(config).start().await.unwrap();
    let start = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..30 {
        let (_, accepted) = upgraded(&server, Identity::user("ann"), Some(Duration::from_secs(400)));
        let (stream, far) = duplex(1000);
        tokio::spawn(serve(server.clone(), accepted, far, &[]));
        streams.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(399)).await;
    let asked = asked.lock();
    let mut waits = Vec::new();
    for (client, at) in &*asked {
        let later = asked.iter().filter(|(other, next)| other == client && next > at).map(|(_, next)| *next - *at);
        waits.extend(later.min());
    }
    let (least, most) = (waits.iter().min().expect("a wait"), waits.iter().max().expect("a wait"));
    assert!(*least >= Duration::from_secs(30) && *most <= Duration::from_secs(38), "{least:?} to {most:?}");
    assert!(*most - *least >= Duration::from_secs(1), "{least:?} to {most:?}");
    assert!(asked.iter().all(|(_, at)| (*at - start).as_secs() < 400));
}

/// A store that is down, and notes about which connection it is asked, and when.
struct Failing(Arc<Mutex<Vec<(ConnectionId, Instant)>>>);

#[async_trait]
impl Authenticator for Failing {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Err(AuthenticationError::Unavailable("down".into()))
    }

    async fn identify(&self, inquiry: Inquiry<'_>) -> Result<Option<Identity>, AuthenticationError> {
        self.0.lock().push((inquiry.connection, Instant::now()));
        Err(AuthenticationError::Unavailable("down".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_the_site_revokes_ends_when_it_says_so() {
    for answer in [|_| None, |_| Some(Identity::user("bob"))] as [fn(usize) -> Option<Identity>; 2] {
        let (mut peer, _asked) = noting(Identity::user("ann"), Some(300), answer).await;
        let (code, at) = peer.closed().await;
        assert!(code == 4003 && (179..=241).contains(&at), "{code} {at}");
    }
}

#[test]
fn identities_that_end_together_are_not_asked_about_together() {
    let minute = Duration::from_secs(60);
    let wait = |left, fraction| refresh_wait(Duration::from_secs(left), minute, fraction).map(|wait| wait.as_secs());
    assert_eq!((wait(3600, 0.0), wait(3600, 1.0)), (Some(3540), Some(3480)));
    assert_eq!((wait(60, 0.0), wait(60, 1.0)), (Some(45), Some(30)));
    assert_eq!((wait(2, 0.0), wait(2, 1.0)), (Some(1), Some(1)));
    assert_eq!((wait(1, 0.0), wait(0, 1.0)), (None, None));
    // With very many connections, the node's limit on questions makes the time longer.
    assert_eq!(refresh_wait(minute * 60, minute * 10, 1.0), Some(minute * 40));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_authenticates_first_is_not_asked_about_again() {
    let (mut peer, asked) = noting(Identity::guest(), None, |_| None).await;
    for questions in 0..3 {
        peer.send(r#"["Client/authentication"]"#).await;
        assert_eq!(peer.frame().await.1, br#"["Client/authentication:error",[403,"Forbidden"]]"#);
        // Later, the session may have got a user.
        assert_eq!(asked.lock().len(), questions);
    }
    let (mut peer, asked) = noting(Identity::guest(), None, |_| None).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    peer.send(r#"["Client/authentication"]"#).await;
    assert_eq!(peer.frame().await.1, br#"["Client/authentication:error",[403,"Forbidden"]]"#);
    assert_eq!(asked.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_pings_and_authenticates_later_is_asked_about_again() {
    let (mut peer, asked) = noting(Identity::guest(), None, |_| None).await;
    for _ in 0..10 {
        peer.stream.write_all(&small(0x89, "")).await.unwrap();
        assert_eq!(peer.frame().await.0, 0x8a);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    peer.send(r#"["Client/authentication"]"#).await;
    assert_eq!(peer.frame().await.1, br#"["Client/authentication:error",[403,"Forbidden"]]"#);
    assert_eq!(asked.lock().len(), 1);
}

/// An authenticator that never answers about credentials.
struct Hanging;

#[async_trait]
impl Authenticator for Hanging {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        std::future::pending().await
    }

    fn in_band(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cannot_be_identified_in_time_is_closed_and_comes_again() {
    let builder = Server::builder(MemoryPool::default()).authenticator(Hanging);
    let server = builder.guests(false).start().await.unwrap();
    for (credentials, seconds) in [(true, 19), (false, 10)] {
        let (_, accepted) = upgraded(&server, Identity::guest(), None);
        let (stream, far) = duplex(1000);
        tokio::spawn(serve(server.clone(), Accepted { may_join: false, ..accepted }, far, &[]));
        let mut peer = Peer { stream, start: Instant::now(), down: Arc::default() };
        // Credentials that come just in time are asked about for as long as any others.
        tokio::time::sleep(Duration::from_secs(9)).await;
        peer.send(r#"{"action":"echo"}"#).await;
        assert_eq!(peer.text().await.0, r#"{"action":"echo:error","details":[403,"Forbidden"]}"#);
        if credentials {
            peer.send(r#"{"action":"Client/authentication","details":["a"]}"#).await;
            let (text, at) = peer.text().await;
            assert!(text.ends_with(r#""details":[503,"Service Unavailable"],"close":4002}"#), "{text}");
            assert_eq!(at, seconds);
        }
        assert_eq!(peer.closed().await, (4002, seconds));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_the_same_end_does_not_put_off_the_next_renewal() {
    // The sixth question is a recheck, after 10 of 30 s.
    let answer = |asked| ann_for(if asked == 5 { 20 } else { 30 });
    let (mut peer, asked, client) = noting_client(Identity::guest(), None, answer).await;
    let renewed = async |peer: &mut Peer| {
        peer.send(r#"["Client/authentication",["a"]]"#).await;
        peer.text().await.0.contains(r#"["ok","#)
    };
    // All attempts that are allowed at once.
    for _ in 0..5 {
        assert!(renewed(&mut peer).await);
    }
    assert!(!renewed(&mut peer).await);
    tokio::time::sleep(Duration::from_secs(10)).await;
    client.refresh();
    while asked.lock().len() < 6 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Two attempts have come back, and a renewal in time does not count.
    for expected in [true, true, true, false] {
        assert_eq!(renewed(&mut peer).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_last_a_few_seconds_may_be_renewed_as_often_as_they_need() {
    let (mut peer, asked) = noting(Identity::guest(), None, |_| ann_for(3)).await;
    for number in 0..50 {
        peer.send(r#"["Client/authentication",["a"]]"#).await;
        let (text, _) = peer.text().await;
        assert!(text.contains(r#"["ok","#), "{number}: {text}");
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    assert_eq!(asked.lock().len(), 50);
    // Those that come sooner are limited.
    for _ in 0..10 {
        peer.send(r#"["Client/authentication",["a"]]"#).await;
        peer.text().await;
    }
    assert!(asked.lock().len() < 58, "{}", asked.lock().len());
}

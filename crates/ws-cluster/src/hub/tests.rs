//! The hub with clients that have no socket: which client gets which message, and what the hub keeps.

use serde_json::json;

use super::*;
use crate::{
    Authenticator, Handshake, Identity, Target, TrustedProxies,
    hub::resume::{ResumeState, StateSealer, history::Missing},
    message::{client::Dialect, close::Close, content::Content, position::Position},
    node::{Delivery, DeliverySink},
};
use ws_cluster_core::{LogPosition, PublishId, simulator::Random};

#[cfg(feature = "deflate")]
mod compression;
mod together;

const NODE: NodeId = NodeId::from_bytes([7; 16]);

struct Node {
    hub: Arc<Hub>,
    sealer: StateSealer,
    /// The counter of the next publish, and the sequence number of the next entry.
    next: std::cell::Cell<(u64, Seq)>,
}

impl Node {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(forget: impl Fn(&Subject) + Send + Sync + 'static) -> Self {
        let hub = Arc::new(Hub::new(NODE, &Config::default(), forget));
        Self { hub, sealer: StateSealer::new("default", &[b"key".to_vec()]), next: (1, 1).into() }
    }

    fn arrive(&self, identity: Identity, tracks: bool) -> (Arc<Client>, ClientHandle) {
        self.arrive_offering(&[], identity, tracks)
    }

    /// Lets a client arrive that offers these extensions.
    fn arrive_offering(&self, offers: &[&[u8]], identity: Identity, tracks: bool) -> (Arc<Client>, ClientHandle) {
        self.arrive_with(offers, identity, tracks, 1024)
    }

    fn arrive_with(
        &self,
        offers: &[&[u8]],
        identity: Identity,
        tracks: bool,
        queue_size: usize,
    ) -> (Arc<Client>, ClientHandle) {
        let request = http::Request::new(()).into_parts().0;
        let handshake = Handshake::new(&request, None, &TrustedProxies::none());
        let deflate = crate::ws::deflate::answer(offers.iter().copied(), 256).map(|(deflate, _)| deflate);
        let client = Arc::new(Client::new(self.hub.next_id(), handshake, queue_size, tracks).with_deflate(deflate));
        let mut slot = self.hub.admission().admit(None, 1, usize::MAX).ok();
        let now = self.hub.closes().now();
        let handle = self.hub.arrive(client.clone(), Membership::of(identity), &mut slot, now).unwrap();
        (client, handle)
    }

    fn connect(&self, identity: Identity) -> (Arc<Client>, ClientHandle) {
        let (client, handle) = self.arrive(identity, false);
        self.hub.begin_delivery(&client);
        (client, handle)
    }

    /// Connects a client that tracks its position from now on.
    fn track(&self, identity: Identity) -> (Arc<Client>, ClientHandle) {
        let (client, handle) = self.arrive(identity, true);
        self.hub.begin(&client, &["new".into()], &self.sealer, 0);
        take_all(&client, &mut Vec::new());
        (client, handle)
    }

    /// Delivers the next publish at the next log position.
    fn deliver(&self, target: Target) -> PublishId {
        let (counter, seq) = self.next.get();
        self.next.set((counter + 1, seq));
        let publish = PublishId { origin: NODE, counter };
        self.deliver_at(publish, target, false);
        publish
    }

    /// Delivers a publish at the next log position.
    fn deliver_at(&self, publish: PublishId, target: Target, repeated: bool) {
        self.deliver_content_at(
            publish,
            Content::Message { target, action: "x".into(), details: "[]".into(), volatile: false },
            repeated,
        );
    }

    /// Delivers an entry that is no message.
    fn content(&self, content: Content) {
        let (counter, seq) = self.next.get();
        self.next.set((counter + 1, seq));
        self.deliver_content_at(PublishId { origin: NODE, counter }, content, false);
    }

    fn deliver_content_at(&self, publish: PublishId, content: Content, repeated: bool) {
        let (counter, seq) = self.next.get();
        self.next.set((counter, seq + 1));
        let content = content.encode();
        let log_position = LogPosition { term: 1, master: NODE, seq };
        let repeated = repeated.then_some(publish);
        self.hub.deliver(vec![Delivery {
            position: log_position,
            id: publish,
            size: 0,
            repeated,
            content: Some(content),
        }]);
    }

    fn cut(&self, after: Seq) {
        self.next.set((self.next.get().0, after + 1));
        self.hub.cut(after);
    }
}

/// Returns the number of messages that wait.
fn waiting(client: &Client) -> usize {
    client.queue.take().len() / br#"..{"action":"x","details":[]}"#.len()
}

/// Returns the frames that wait as text, without their heads.
fn said(client: &Client) -> String {
    let bytes = client.queue.take();
    String::from_utf8_lossy(&bytes).chars().filter(|one| (' '..='~').contains(one)).collect()
}

#[test]
fn a_target_of_several_groups_reaches_each_connection_once() {
    let node = Node::new();
    let (both, _both) = node.connect(Identity::user("ann").groups(["a", "b"]));
    let (one, _one) = node.connect(Identity::user("bob").groups(["b"]));
    let (guest, _guest) = node.connect(Identity::guest());
    node.deliver(Target::groups(["a", "b", "c", "b"]));
    assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [1, 1, 0]);
    node.deliver(Target::users(["ann", "ann", "carl"]));
    assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [1, 0, 0]);
    node.deliver(Target::groups(["a", "b"]).except_connection(both.id));
    assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [0, 1, 0]);
    node.deliver(Target::connection(guest.id).except_user("ann"));
    assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [0, 0, 1]);
    node.deliver(Target::registered());
    assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [1, 1, 0]);
}

#[test]
fn the_index_follows_membership_and_keeps_nothing() {
    let node = Node::new();
    let hub = node.hub.clone();
    let identity = Identity::user("ann").session("s").groups(["a"]).property("n", 1);
    let (client, handle) = node.connect(identity);
    assert!(hub.join(&client, "b"));
    assert!(!hub.join(&client, "b"));
    assert!(hub.leave(&client, "a"));
    hub.set_property(&client, "n", json!({"k": 2}));
    for target in [Target::group("a"), Target::property("n", "1")] {
        node.deliver(target);
    }
    assert_eq!(waiting(&client), 0);
    for target in [Target::group("b"), Target::property("n", "{\"k\":2}"), Target::session("s")] {
        node.deliver(target);
    }
    assert_eq!(waiting(&client), 3);
    handle.leave();
    node.deliver(Target::all());
    assert_eq!(waiting(&client), 0);
    assert!(hub.index.read().is_empty());
    let (_, handle) = node.connect(Identity::user("ann").groups(["a"]));
    drop(handle);
    hub.tick();
    assert!(hub.index.read().is_empty(), "a client whose handle was dropped");
}

/// Returns the state of a client of which nothing was changed.
fn state(id: ConnectionId, version: u64) -> ResumeState {
    let given = crate::hub::membership::GivenHashes::Each(Vec::new());
    let (changes, since) = Default::default();
    ResumeState { id, changes, version, began: 0, since, given, at: Position::START, time: 0 }
}

#[test]
fn a_revoked_token_gives_nothing_back() {
    let node = Node::new();
    let id = ConnectionId { node: NodeId::from_bytes([8; 16]), local: 1 };
    let (fork, _fork) = node.arrive(Identity::guest(), true);
    assert_eq!(node.hub.resume(&fork, state(id, 2)), Ok(()));
    node.hub.begin(&fork, &["reset".into()], &node.sealer, 0);
    let (other, _other) = node.arrive(Identity::guest(), true);
    assert_eq!(node.hub.resume(&other, state(ConnectionId { local: 2, ..id }, 2)), Ok(()));
    node.content(Content::TokenRevoked { connection: id, version: 3 });
    assert!(fork.queue.is_sealed(), "a second connection with the same token");
    assert!(!other.queue.is_sealed());
    let (client, _client) = node.arrive(Identity::guest(), true);
    assert!(node.hub.resume(&client, state(id, 2)).is_err());
    assert_eq!(client.known_as(), client.id, "nothing is given back");
    assert_eq!(node.hub.resume(&client, state(id, 3)), Ok(()));
    assert_eq!(client.known_as(), id);
}

#[test]
fn messages_older_than_a_membership_are_not_replayed() {
    let node = Node::new();
    let (ann, handle) = node.track(Identity::guest().groups(["given"]).property("colour", "red"));
    node.deliver(Target::group("room"));
    node.deliver(Target::property("page", "7"));
    node.deliver(Target::user("ann"));
    node.deliver(Target::groups(["given", "room"]));
    node.hub.join(&ann, "room");
    node.hub.set_property(&ann, "page", 7.into());
    let user = Membership::of(Identity::user("ann").groups(["later"]));
    assert_eq!(node.hub.identify(&ann, user, node.hub.closes().now(), Membership::identify), Ok(()));
    node.deliver(Target::registered());
    node.deliver(Target::groups(["room", "later"]));
    let state = {
        let sealed = ann.seal(&ann.membership(), node.hub.position(), &node.sealer);
        node.sealer.open(Some("ann"), None, &sealed).unwrap()
    };
    handle.leave();
    node.deliver(Target::groups(["new"]));
    let back = Identity::user("ann").groups(["given", "later", "new"]).property("colour", "red");
    let (ann, _ann) = node.arrive(back, true);
    assert_eq!(node.hub.resume(&ann, state), Ok(()));
    let epoch = node.hub.replay_log.lock().epoch();
    let missed = |after| {
        let missed = node.hub.missed(&ann, after, epoch, 10).ok().unwrap();
        missed.messages.iter().map(|(log_position, _)| log_position.seq).collect::<Vec<_>>()
    };
    // Up to 4 the client was a guest outside of the room. Earlier messages of the new group are not for it.
    assert_eq!(missed(0), [4, 5, 6]);
    node.deliver(Target::groups(["new"]));
    node.deliver(Target::property("page", "7"));
    node.deliver(Target::property("colour", "red"));
    assert_eq!(missed(5), [6, 8, 9, 10]);
}

#[test]
fn many_groups_can_be_compared_only_if_they_are_the_same() {
    let node = Node::new();
    let identity = |count| Identity::user("ann").groups((0..count).map(|number| format!("group {number}")));
    let (ann, _first) = node.track(identity(300));
    let sealed = ann.seal(&ann.membership(), node.hub.position(), &node.sealer);
    assert!(sealed.len() < 300, "{}", sealed.len());
    let state = node.sealer.open(Some("ann"), None, &sealed).unwrap();
    let (same, _same) = node.arrive(identity(300), true);
    assert_eq!(node.hub.resume(&same, state.clone()), Ok(()));
    let (other, _other) = node.arrive(identity(299), true);
    assert!(node.hub.resume(&other, state).is_err());
}

#[test]
fn a_client_that_came_back_is_known_by_its_former_id() {
    let node = Node::new();
    let former = ConnectionId { node: NodeId::from_bytes([8; 16]), local: 1 };
    let (other, _other) = node.connect(Identity::guest());
    let (client, handle) = node.arrive(Identity::guest(), false);
    assert_eq!(node.hub.resume(&client, state(former, 0)), Ok(()));
    node.hub.begin_delivery(&client);
    node.deliver(Target::connection(former));
    assert_eq!([waiting(&other), waiting(&client)], [0, 1]);
    node.deliver(Target::all().except_connection(former));
    assert_eq!([waiting(&other), waiting(&client)], [1, 0]);
    // A connection of another node with the same local id as one of this node.
    node.deliver(Target::connection(ConnectionId { node: former.node, local: other.id.local + 1 }));
    assert_eq!([waiting(&other), waiting(&client)], [0, 0]);
    drop(handle);
    node.deliver(Target::connection(former));
    assert_eq!([waiting(&other), waiting(&client)], [0, 0]);
}

#[test]
fn a_closed_session_also_closes_arriving_clients() {
    a_close_of_s_reaches_all(Node::new());
}

/// An authenticator whose `forget` panics.
struct Forgetful;

#[async_trait::async_trait]
impl Authenticator for Forgetful {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<crate::Credentials<'_>>,
    ) -> Result<Option<Identity>, crate::AuthenticationError> {
        Ok(None)
    }

    fn forget(&self, _: crate::Revoked<'_>) {
        panic!("as the test wants it");
    }
}

#[test]
fn an_authenticator_that_panics_does_not_prevent_a_close() {
    a_close_of_s_reaches_all(Node::with(|subject| crate::connection::forget(&Forgetful, subject)));
}

fn a_close_of_s_reaches_all(node: Node) {
    let (here, _here) = node.connect(Identity::user("ann").session("s"));
    let (arriving, _arriving) = node.arrive(Identity::user("ann").session("s"), true);
    let (other, _other) = node.arrive(Identity::user("ann").session("t"), true);
    let log_position = LogPosition { term: 1, master: NODE, seq: 1 };
    let publish = PublishId { origin: NODE, counter: 1 };
    let content = Some(Content::Close(Close::session("s")).encode());
    node.hub.deliver(vec![Delivery { position: log_position, id: publish, size: 0, repeated: None, content }]);
    assert!(said(&here).contains("Server/close") && said(&arriving).contains("Server/close"));
    assert_eq!(said(&other), "");
}

#[test]
fn a_repeated_message_reaches_only_clients_that_came_after_the_cut() {
    let node = Node::new();
    let (old, _old) = node.connect(Identity::guest());
    let publish = node.deliver(Target::all());
    let (between, _between) = node.connect(Identity::guest());
    node.cut(0);
    let (new, _new) = node.connect(Identity::guest());
    node.deliver(Target::all());
    assert_eq!([&old, &between, &new].map(|client| waiting(client)), [2, 1, 1]);
    node.deliver_at(publish, Target::all(), true);
    // `between` came after the first delivery of the message, so the message was not for it.
    assert_eq!([&old, &between, &new].map(|client| waiting(client)), [0, 0, 1]);
    // By now every client has had the message.
    node.cut(1);
    node.deliver_at(publish, Target::all(), true);
    assert_eq!([&old, &between, &new].map(|client| waiting(client)), [0, 0, 0]);
}

#[test]
fn clients_that_got_cut_entries_are_reset() {
    let node = Node::new();
    let (ann, _ann) = node.track(Identity::user("ann"));
    let (bob, _bob) = node.track(Identity::user("bob"));
    let (plain, _plain) = node.connect(Identity::user("bob"));
    node.deliver(Target::all());
    node.deliver(Target::user("bob"));
    [&ann, &bob, &plain].iter().for_each(|client| drop(client.queue.take()));
    node.cut(1);
    assert_eq!(said(&ann), "", "this client got none of the cut entries");
    let reset = r#""details":["reset","the order of messages was cut by a failover"],"at":"#;
    assert!(said(&bob).contains(reset));
    // A client that began inside the part that is cut has only a part of it.
    node.deliver(Target::all());
    let (carl, _carl) = node.track(Identity::user("carl"));
    node.deliver(Target::all());
    node.cut(1);
    assert!(said(&bob).contains(reset) && !said(&carl).contains(reset));
    assert!(carl.queue.is_sealed());
    assert!(!said(&plain).contains("reset"), "this client does not track its position");
}

#[test]
fn quiet_clients_are_told_their_position() {
    let node = Node::new();
    let (ann, _ann) = node.track(Identity::user("ann"));
    let (bob, _bob) = node.track(Identity::user("bob"));
    let (_plain, _handle) = node.connect(Identity::user("bob"));
    node.deliver(Target::user("bob"));
    said(&bob);
    node.hub.tick();
    assert_eq!(said(&ann), "", "the interval is not over");
    node.hub.replay_log.lock().send_positions_at_once();
    node.hub.tick();
    assert!(said(&ann).contains(r#"{"action":"Server/position","details":["now"],"at":"#));
    assert_eq!(said(&bob), "", "its position is up to date");
    node.hub.replay_log.lock().send_positions_at_once();
    node.hub.tick();
    assert_eq!(said(&ann), "", "no entry was delivered since");
}

#[test]
fn missed_messages_come_before_new_ones() {
    let node = Node::new();
    node.deliver(Target::all());
    node.deliver(Target::user("bob"));
    node.deliver(Target::user("ann").except_user("ann"));
    node.deliver(Target::users(["bob", "ann", "ann"]));
    let (ann, _ann) = node.arrive(Identity::user("ann"), true);
    let epoch = node.hub.replay_log.lock().epoch();
    let missed = node.hub.missed(&ann, 1, epoch, 10).ok().unwrap();
    assert_eq!((missed.messages.len(), missed.messages[0].0.seq, missed.until), (1, 4, 4));
    node.deliver(Target::all());
    assert_eq!(waiting(&ann), 0);
    assert_eq!(node.hub.catch_up(&ann, 4, epoch), Ok(true));
    node.deliver(Target::all());
    let said = said(&ann);
    assert_eq!(said.matches(r#""action":"x""#).count(), 2, "{said}");
    assert_eq!(node.hub.missed(&ann, 0, epoch, 1).err(), Some(Missing::TooMany));
    node.hub.trimmed(2);
    assert_eq!(node.hub.missed(&ann, 1, epoch, 10).err(), Some(Missing::Trimmed));
    node.cut(4);
    assert!(node.hub.missed(&ann, 2, epoch, 10).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_drain_closes_the_clients_evenly_and_ends_when_the_last_is_gone() {
    let node = Node::new();
    let mut clients: Vec<_> = (0..4).map(|_| node.connect(Identity::guest())).collect();
    let hub = node.hub.clone();
    let draining = tokio::spawn(async move { hub.close_evenly(Duration::from_secs(8)).await });
    for closed in 1..=4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(clients.iter().filter(|(client, _)| client.queue.is_sealed()).count(), closed);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    draining.await.unwrap();

    let hub = node.hub.clone();
    let start = tokio::time::Instant::now();
    let draining = tokio::spawn(async move { hub.close_evenly(Duration::from_secs(8)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    clients.clear();
    draining.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 1);
}

#[test]
fn what_a_delivery_looks_at_is_in_one_line_of_the_cache() {
    // The counts of the `Arc` are before the client. The queue begins with its lock, its run and its flags.
    let end = 2 * size_of::<usize>() + std::mem::offset_of!(Client, queue) + 24;
    assert!(end <= 64, "{end}");
}

#[test]
fn a_client_fits_into_a_quarter_of_a_kilobyte() {
    // With the two counts of its `Arc`.
    let size = size_of::<Client>() + 2 * size_of::<usize>();
    assert!(size <= 256, "{size} bytes: every connection has one, and the next size of the allocator is 320");
}

/// Takes everything from a client's queue, as its connection's task does.
fn take_all(client: &Client, got: &mut Vec<u8>) {
    while !client.queue.is_empty() {
        let mut taken = client.queue.take();
        got.extend_from_slice(&taken);
        let size = taken.len();
        client.queue.written(&mut taken, size);
    }
}

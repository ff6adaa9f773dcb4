//! Clients of the simulated nodes that keep their position, with the hub and the history of the real server between:
//! they come, hop, are lost and come back, and whatever happens each sees the one order without a gap and nothing
//! twice, or is told that it begins anew.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use crate::{
    Config, Handshake, Identity, Target, TrustedProxies,
    hub::{
        Client, Hub, Membership, Registration,
        resume::{StateSealer, history::PositionStatus, replay},
    },
    message::{content::Content, position::Position},
    node::{Delivery, DeliverySink},
};
use ws_cluster_core::{
    LogConfig, LogPosition, NodeId, Output, PublishId, Seq,
    simulator::{Checks, Clients, PublishName, Random, search, storm_with_clients},
};

/// Clients of one world.
const CLIENTS: usize = 3;
/// How long a client waits for its node to come as far as it has come itself.
const RESUME_TIME: Duration = Duration::from_secs(10);
/// Most messages that are replayed; few, so that it comes to resets.
const REPLAYED: usize = 40;

/// The clients, and the hubs of the nodes that live.
struct Crowd {
    config: Config,
    sealer: StateSealer,
    hubs: BTreeMap<usize, (NodeId, Arc<Hub>)>,
    clients: Vec<Guest>,
    /// Places at which there was nothing to deliver.
    empty: HashSet<(u64, NodeId, Seq)>,
    resumed: u64,
    resets: u64,
}

/// A client.
#[derive(Default)]
struct Guest {
    at: Option<Position>,
    connection: Option<Connection>,
    /// What it has got since it began, and on this connection since ever.
    seen: HashSet<PublishId>,
    had: HashSet<PublishId>,
}

/// Its connection to the node at a place.
struct Connection {
    place: usize,
    client: Arc<Client>,
    _registration: Registration,
    coming: Coming,
}

/// How far a client is that comes back.
enum Coming {
    Waits(Duration),
    CatchesUp { after: Seq, epoch: u64 },
    Here,
}

impl Crowd {
    fn new(log: &LogConfig) -> Self {
        let config = Config { log: log.clone(), ..Config::default() };
        Self {
            config,
            sealer: StateSealer::new("default", &[b"key".to_vec()]),
            hubs: BTreeMap::new(),
            clients: std::iter::repeat_with(Guest::default).take(CLIENTS).collect(),
            empty: HashSet::new(),
            resumed: 0,
            resets: 0,
        }
    }
}

impl Clients for Crowd {
    fn boot(&mut self, place: usize, id: NodeId) {
        self.hubs.insert(place, (id, Arc::new(Hub::new(id, &self.config, |_| {}))));
    }

    fn lose(&mut self, place: usize) {
        self.hubs.remove(&place);
        for guest in &mut self.clients {
            if guest.connection.as_ref().is_some_and(|connection| connection.place == place) {
                guest.connection = None;
            }
        }
    }

    fn output(&mut self, place: usize, output: &Output) {
        let Some((_, hub)) = self.hubs.get(&place) else { return };
        match output {
            Output::Deliver { position, proposal, repeated } => {
                let content = proposal.content.as_ref().map(|_| message(proposal.id));
                if content.is_none() {
                    self.empty.insert((position.term, position.master, position.seq));
                }
                let (id, size) = (proposal.id, proposal.size());
                hub.deliver(Delivery { position: *position, id, size, repeated: *repeated, content });
            }
            Output::Cut { after } => hub.cut(*after),
            Output::Trimmed { base } => hub.trimmed(*base),
            Output::Restarted { base, missed } => hub.restarted(*base, *missed),
            _ => {}
        }
    }

    fn step(
        &mut self,
        now: Duration,
        rng: &mut Random,
        ready: &[usize],
        calm: bool,
        checks: &Checks,
    ) -> Result<(), String> {
        self.hubs.values().for_each(|(_, hub)| hub.tick());
        for number in 0..self.clients.len() {
            let mut guest = std::mem::take(&mut self.clients[number]);
            let before = self.read(&mut guest, checks);
            self.act(&mut guest, now, rng, ready, calm);
            let done = before.and_then(|()| self.read(&mut guest, checks));
            self.clients[number] = guest;
            done?;
        }
        Ok(())
    }

    fn is_settled(&self, end: Seq) -> bool {
        let here = |guest: &Guest| guest.connection.as_ref().is_some_and(|one| matches!(one.coming, Coming::Here));
        self.clients.iter().all(|guest| here(guest) && guest.at.is_some_and(|at| at.seq == end))
    }
}

impl Crowd {
    fn act(&mut self, guest: &mut Guest, now: Duration, rng: &mut Random, ready: &[usize], calm: bool) {
        match &guest.connection {
            None if ready.is_empty() || rng.below(3) > 0 => {}
            None => {
                let place = ready[rng.below(ready.len() as u64) as usize];
                self.connect(guest, now, place);
            }
            // Whatever was on its way to it is lost.
            Some(_) if !calm && rng.below(20) == 0 => guest.connection = None,
            Some(_) => self.come(guest, now, rng.below(2) == 0),
        }
    }

    fn connect(&mut self, guest: &mut Guest, now: Duration, place: usize) {
        let Some((_, hub)) = self.hubs.get(&place) else { return };
        let request = http::Request::new(()).into_parts().0;
        let handshake = Handshake::new(&request, None, &TrustedProxies::none());
        let client = Arc::new(Client::new(hub.next_id(), handshake, usize::MAX / 4, true));
        let mut slot = hub.admission().admit(None, 1, usize::MAX).ok();
        let (guest_now, now_closed) = (Membership::of(Identity::guest()), hub.closes().now());
        let registration = hub.arrive(client.clone(), guest_now, &mut slot, now_closed);
        let registration = registration.expect("nobody closes a guest");
        let coming = match guest.at {
            Some(_) => Coming::Waits(now),
            None => {
                hub.begin(&client, &["new".into()], &self.sealer, 0);
                Coming::Here
            }
        };
        guest.had.clear();
        guest.connection = Some(Connection { place, client, _registration: registration, coming });
    }

    /// Brings a client that comes back a step further, as [`recover`](crate::connection) does.
    fn come(&mut self, guest: &mut Guest, now: Duration, pauses: bool) {
        let (Some(connection), Some(position)) = (&mut guest.connection, guest.at) else { return };
        let Some((_, hub)) = self.hubs.get(&connection.place) else { return };
        let client = &connection.client;
        let mut lost = false;
        if let Coming::Waits(since) = connection.coming {
            match hub.position_status(&position) {
                (PositionStatus::Known, epoch) => match hub.missed(client, position.seq, epoch, REPLAYED) {
                    Ok(missed) => {
                        let first = ["recovered".into(), missed.messages.len().into()];
                        client.begin_behind(position.seq);
                        client.begin(&first, position, "", 0);
                        missed.messages.iter().for_each(|(place, content)| replay(client, *place, content));
                        connection.coming = Coming::CatchesUp { after: missed.until, epoch };
                        self.resumed += 1;
                        if pauses {
                            return;
                        }
                    }
                    Err(_) => lost = true,
                },
                (PositionStatus::Ahead, _) if now - since < RESUME_TIME => return,
                (PositionStatus::Ahead | PositionStatus::Lost(_), _) => lost = true,
            }
        }
        if let Coming::CatchesUp { after, epoch } = connection.coming {
            match hub.catch_up(client, after, epoch) {
                Ok(true) => connection.coming = Coming::Here,
                Ok(false) => match hub.missed(client, after, epoch, REPLAYED) {
                    Ok(missed) => {
                        missed.messages.iter().for_each(|(place, content)| replay(client, *place, content));
                        connection.coming = Coming::CatchesUp { after: missed.until, epoch };
                    }
                    Err(_) => lost = true,
                },
                Err(_) => lost = true,
            }
        }
        if lost {
            hub.begin(client, &["reset".into(), "lost".into()], &self.sealer, 0);
            connection.coming = Coming::Here;
        }
    }

    /// Reads what waits for a client, and judges it.
    fn read(&mut self, guest: &mut Guest, checks: &Checks) -> Result<(), String> {
        let Some(connection) = &guest.connection else { return Ok(()) };
        let client = connection.client.clone();
        let closed = client.queue.is_sealed();
        loop {
            let frames = client.queue.take();
            if frames.is_empty() {
                break;
            }
            for message in messages(&frames) {
                self.judge(guest, &message, checks)?;
            }
        }
        if closed {
            guest.connection = None;
        }
        Ok(())
    }

    fn judge(&mut self, guest: &mut Guest, message: &Value, checks: &Checks) -> Result<(), String> {
        let at = message["at"].as_str().and_then(|text| text.parse::<Position>().ok());
        if message["action"] != "Server/position" {
            let (Some(at), Some(publish)) = (at, published(message)) else {
                return Err("a message has no place".into());
            };
            if !guest.seen.insert(publish) {
                return Err(format!("a client gets {} twice", PublishName(publish)));
            }
            guest.had.insert(publish);
            self.goes_on(guest, at, Some(publish), checks)?;
        } else if message["details"][0] == "new" || message["details"][0] == "reset" {
            self.resets += u64::from(message["details"][0] == "reset");
            guest.seen.clear();
        } else if let Some(at) = at.filter(|_| message["details"][0] == "now") {
            self.goes_on(guest, at, None, checks)?;
        }
        guest.at = at.or(guest.at);
        Ok(())
    }

    /// A client goes on to a place: all between it and the last one is nothing, or it has had it.
    fn goes_on(&self, guest: &Guest, at: Position, comes: Option<PublishId>, checks: &Checks) -> Result<(), String> {
        let Some(last) = guest.at.filter(|last| last.seq > 0) else { return Ok(()) };
        if at.seq <= last.seq {
            return Err(format!("a client goes from place {} to {}", last.seq, at.seq));
        }
        let mut place = place_of(&at);
        while place.2 > last.seq {
            // Not known where a node began behind a snapshot: there is nothing more to compare.
            let Some((publish, before)) = checks.at(place) else { return Ok(()) };
            let comes = place.2 == at.seq && comes == Some(publish);
            if !comes && !self.empty.contains(&place) && !guest.had.contains(&publish) {
                return Err(format!(
                    "a client goes to place {} without {} at {}",
                    at.seq,
                    PublishName(publish),
                    place.2
                ));
            }
            let Some(before) = before else { return Ok(()) };
            place = before;
        }
        let (same, seq) = (place == place_of(&last), last.seq);
        if same { Ok(()) } else { Err(format!("what a client has up to {seq} is not what comes before {}", at.seq)) }
    }
}

/// What stands for a publish.
fn message(publish: PublishId) -> bytes::Bytes {
    let details = format!("[\"{}\",{}]", publish.origin, publish.counter);
    Content::Message { target: Target::all(), action: "published".into(), details: details.into() }.encode()
}

fn published(message: &Value) -> Option<PublishId> {
    let text = message["details"][0].as_str()?;
    let mut origin = [0; 16];
    for (index, byte) in origin.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(PublishId { origin: NodeId::from_bytes(origin), counter: message["details"][1].as_u64()? })
}

/// The place that a position means: simulated nodes have ids that fit into it.
fn place_of(position: &Position) -> (u64, NodeId, Seq) {
    let LogPosition { term, master, seq } = position.place();
    (term, master, seq)
}

/// The texts of a server's frames.
fn messages(mut frames: &[u8]) -> Vec<Value> {
    let mut messages = Vec::new();
    while let [first, size, rest @ ..] = frames {
        let (size, rest) = match size {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            size => (usize::from(*size), rest),
        };
        let (payload, behind) = rest.split_at(size);
        // Close frames are of no interest here.
        messages.extend((*first == 0x81).then(|| serde_json::from_slice(payload).expect("a message is JSON")));
        frames = behind;
    }
    messages
}

#[test]
fn clients_that_hop_see_one_order_or_are_told() {
    search(1_000, |seed, story| storm_with_clients(seed, story, |log| Box::new(Crowd::new(log))));
}

//! Simulated clients that track their position, on the real hubs and histories of simulated nodes. They connect, change
//! nodes, are lost and come back. Whatever happens, each of them sees the one order without a gap and without a repeat,
//! or is told `reset`.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use crate::ws::frame::texts;
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

/// Number of clients in one simulated world.
const CLIENTS: usize = 3;
/// Maximum time for which a client waits for its node to reach the client's position.
const RESUME_TIME: Duration = Duration::from_secs(10);
/// Maximum number of replayed messages. It is small, so that resets happen.
const REPLAYED: usize = 40;

/// The clients, and the hubs of the running nodes.
struct SimulatedClients {
    config: Config,
    sealer: StateSealer,
    hubs: BTreeMap<usize, (NodeId, Arc<Hub>)>,
    clients: Vec<SimulatedClient>,
    /// Log positions that had nothing to deliver.
    empty: HashSet<(u64, NodeId, Seq)>,
    resumed: u64,
    resets: u64,
}

/// One simulated client.
#[derive(Default)]
struct SimulatedClient {
    at: Option<Position>,
    connection: Option<Connection>,
    /// The publishes that the client has got since it began, and those on this connection.
    seen: HashSet<PublishId>,
    had: HashSet<PublishId>,
}

/// The client's connection to the node with the index `node_index`.
struct Connection {
    node_index: usize,
    client: Arc<Client>,
    _registration: Registration,
    progress: Progress,
}

/// The progress of a client that comes back.
enum Progress {
    Waits(Duration),
    CatchesUp { after: Seq, epoch: u64 },
    Joined,
}

impl SimulatedClients {
    fn new(log: &LogConfig) -> Self {
        let config = Config { log: log.clone(), ..Config::default() };
        Self {
            config,
            sealer: StateSealer::new("default", &[b"key".to_vec()]),
            hubs: BTreeMap::new(),
            clients: std::iter::repeat_with(SimulatedClient::default).take(CLIENTS).collect(),
            empty: HashSet::new(),
            resumed: 0,
            resets: 0,
        }
    }
}

impl Clients for SimulatedClients {
    fn boot(&mut self, node_index: usize, id: NodeId) {
        self.hubs.insert(node_index, (id, Arc::new(Hub::new(id, &self.config, |_| {}))));
    }

    fn lose(&mut self, node_index: usize) {
        self.hubs.remove(&node_index);
        for client_state in &mut self.clients {
            if client_state.connection.as_ref().is_some_and(|connection| connection.node_index == node_index) {
                client_state.connection = None;
            }
        }
    }

    fn output(&mut self, node_index: usize, output: &Output) {
        let Some((_, hub)) = self.hubs.get(&node_index) else { return };
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
            let mut client_state = std::mem::take(&mut self.clients[number]);
            let before = self.read(&mut client_state, checks);
            self.act(&mut client_state, now, rng, ready, calm);
            let done = before.and_then(|()| self.read(&mut client_state, checks));
            self.clients[number] = client_state;
            done?;
        }
        Ok(())
    }

    fn is_settled(&self, end: Seq) -> bool {
        let here = |client_state: &SimulatedClient| {
            client_state.connection.as_ref().is_some_and(|one| matches!(one.progress, Progress::Joined))
        };
        self.clients.iter().all(|client_state| here(client_state) && client_state.at.is_some_and(|at| at.seq == end))
    }
}

impl SimulatedClients {
    fn act(
        &mut self,
        client_state: &mut SimulatedClient,
        now: Duration,
        rng: &mut Random,
        ready: &[usize],
        calm: bool,
    ) {
        match &client_state.connection {
            None if ready.is_empty() || rng.below(3) > 0 => {}
            None => {
                let node_index = ready[rng.below(ready.len() as u64) as usize];
                self.connect(client_state, now, node_index);
            }
            // Frames that were under way to the client are lost.
            Some(_) if !calm && rng.below(20) == 0 => client_state.connection = None,
            Some(_) => self.take_step(client_state, now, rng.below(2) == 0),
        }
    }

    fn connect(&mut self, client_state: &mut SimulatedClient, now: Duration, node_index: usize) {
        let Some((_, hub)) = self.hubs.get(&node_index) else { return };
        let request = http::Request::new(()).into_parts().0;
        let handshake = Handshake::new(&request, None, &TrustedProxies::none());
        let client = Arc::new(Client::new(hub.next_id(), handshake, usize::MAX / 4, true));
        let mut slot = hub.admission().admit(None, 1, usize::MAX).ok();
        let (guest_now, now_closed) = (Membership::of(Identity::guest()), hub.closes().now());
        let registration = hub.arrive(client.clone(), guest_now, &mut slot, now_closed);
        let registration = registration.expect("a guest is never closed");
        let progress = match client_state.at {
            Some(_) => Progress::Waits(now),
            None => {
                hub.begin(&client, &["new".into()], &self.sealer, 0);
                Progress::Joined
            }
        };
        client_state.had.clear();
        client_state.connection = Some(Connection { node_index, client, _registration: registration, progress });
    }

    /// Takes the next step for a client that comes back, as the join of [`resume`](super::resume) does.
    fn take_step(&mut self, client_state: &mut SimulatedClient, now: Duration, pauses: bool) {
        let (Some(connection), Some(position)) = (&mut client_state.connection, client_state.at) else { return };
        let Some((_, hub)) = self.hubs.get(&connection.node_index) else { return };
        let client = &connection.client;
        let mut lost = false;
        if let Progress::Waits(since) = connection.progress {
            match hub.position_status(&position) {
                (PositionStatus::Known, epoch) => match hub.missed(client, position.seq, epoch, REPLAYED) {
                    Ok(missed) => {
                        let first = ["recovered".into(), missed.messages.len().into()];
                        client.begin_behind(position.seq);
                        client.begin(&first, position, "", 0);
                        missed
                            .messages
                            .iter()
                            .for_each(|(log_position, content)| replay(client, *log_position, content));
                        connection.progress = Progress::CatchesUp { after: missed.until, epoch };
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
        if let Progress::CatchesUp { after, epoch } = connection.progress {
            match hub.catch_up(client, after, epoch) {
                Ok(true) => connection.progress = Progress::Joined,
                Ok(false) => match hub.missed(client, after, epoch, REPLAYED) {
                    Ok(missed) => {
                        missed
                            .messages
                            .iter()
                            .for_each(|(log_position, content)| replay(client, *log_position, content));
                        connection.progress = Progress::CatchesUp { after: missed.until, epoch };
                    }
                    Err(_) => lost = true,
                },
                Err(_) => lost = true,
            }
        }
        if lost {
            hub.begin(client, &["reset".into(), "lost".into()], &self.sealer, 0);
            connection.progress = Progress::Joined;
        }
    }

    /// Reads the frames that wait for a client, and checks them.
    fn read(&mut self, client_state: &mut SimulatedClient, checks: &Checks) -> Result<(), String> {
        let Some(connection) = &client_state.connection else { return Ok(()) };
        let client = connection.client.clone();
        let closed = client.queue.is_sealed();
        loop {
            let frames = client.queue.take();
            if frames.is_empty() {
                break;
            }
            for text in texts(&frames) {
                let message: Value = serde_json::from_str(&text).expect("a message is JSON");
                self.check(client_state, &message, checks)?;
            }
        }
        if closed {
            client_state.connection = None;
        }
        Ok(())
    }

    fn check(&mut self, client_state: &mut SimulatedClient, message: &Value, checks: &Checks) -> Result<(), String> {
        let at = message["at"].as_str().and_then(|text| text.parse::<Position>().ok());
        if message["action"] != "Server/position" {
            let (Some(at), Some(publish)) = (at, published(message)) else {
                return Err("a message has no position".into());
            };
            if !client_state.seen.insert(publish) {
                return Err(format!("a client gets {} twice", PublishName(publish)));
            }
            client_state.had.insert(publish);
            self.check_continuity(client_state, at, Some(publish), checks)?;
        } else if message["details"][0] == "new" || message["details"][0] == "reset" {
            self.resets += u64::from(message["details"][0] == "reset");
            client_state.seen.clear();
        } else if let Some(at) = at.filter(|_| message["details"][0] == "now") {
            self.check_continuity(client_state, at, None, checks)?;
        }
        client_state.at = at.or(client_state.at);
        Ok(())
    }

    /// Checks that a client may continue at `at`: every entry between its last position and `at` had nothing to
    /// deliver, or the client has had it.
    fn check_continuity(
        &self,
        client_state: &SimulatedClient,
        at: Position,
        comes: Option<PublishId>,
        checks: &Checks,
    ) -> Result<(), String> {
        let Some(last) = client_state.at.filter(|last| last.seq > 0) else { return Ok(()) };
        if at.seq <= last.seq {
            return Err(format!("a client goes from position {} to {}", last.seq, at.seq));
        }
        let mut log_position = log_position_of(&at);
        while log_position.2 > last.seq {
            // The predecessor is unknown if the node began after a snapshot. There is nothing more to compare.
            let Some((publish, before)) = checks.at(log_position) else { return Ok(()) };
            let comes = log_position.2 == at.seq && comes == Some(publish);
            if !comes && !self.empty.contains(&log_position) && !client_state.had.contains(&publish) {
                return Err(format!(
                    "a client goes to position {} without {} at {}",
                    at.seq,
                    PublishName(publish),
                    log_position.2
                ));
            }
            let Some(before) = before else { return Ok(()) };
            log_position = before;
        }
        let (same, seq) = (log_position == log_position_of(&last), last.seq);
        if same { Ok(()) } else { Err(format!("what a client has up to {seq} is not what comes before {}", at.seq)) }
    }
}

/// Returns a message that names its publish.
fn message(publish: PublishId) -> bytes::Bytes {
    let details = format!("[\"{}\",{}]", publish.origin, publish.counter);
    Content::Message { target: Target::all(), action: "published".into(), details: details.into(), volatile: false }
        .encode()
}

fn published(message: &Value) -> Option<PublishId> {
    let text = message["details"][0].as_str()?;
    let mut origin = [0; 16];
    for (index, byte) in origin.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(PublishId { origin: NodeId::from_bytes(origin), counter: message["details"][1].as_u64()? })
}

/// Returns the log position that a client's position stands for. The ids of simulated nodes fit into it without loss.
fn log_position_of(position: &Position) -> (u64, NodeId, Seq) {
    let LogPosition { term, master, seq } = position.log_position();
    (term, master, seq)
}

#[test]
fn clients_that_change_nodes_see_one_order_or_a_reset() {
    search(1_000, |seed, story| storm_with_clients(seed, story, |log| Box::new(SimulatedClients::new(log))));
}

//! Simulated clients that track their position, on the real hubs and histories of simulated nodes. They connect, change
//! nodes, are lost and come back. Whatever happens, each of them sees the one order without a gap and without a repeat,
//! or is told `reset`. Some entries are commands of the site to change the groups of a client. A client that comes back
//! has exactly the groups of the commands since it began, each of them in its place.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use crate::ws::frame::texts;
use crate::{
    Config, Handshake, Identity, Target, TrustedProxies,
    hub::{
        Client, ClientHandle, Hub, Membership,
        resume::{StateSealer, history::PositionStatus, replay},
    },
    message::{content::Content, groups::GroupChange, position::Position, target::ConnectionId},
    node::{Delivery, DeliverySink},
};
use ws_cluster_core::{
    LogConfig, LogPosition, NodeId, Output, PublishId, Seq,
    simulator::{Checks, Clients, PublishName, Random, search, storm_with_clients},
};

/// Number of clients in one simulated world.
const CLIENTS: usize = 3;
/// Of so many entries, one is a command to change groups.
const COMMANDS: u64 = 4;
/// Number of groups.
const GROUPS: u64 = 3;
/// Maximum time for which a client waits for its node to reach the client's position.
const RESUME_TIME: Duration = Duration::from_secs(10);
/// Maximum number of replayed messages. It is small, so that resets happen.
const REPLAYED: usize = 40;

/// The clients, and the hubs of the running nodes.
struct SimulatedClients {
    config: Config,
    sealer: StateSealer,
    hubs: BTreeMap<usize, (NodeId, Arc<Hub>)>,
    /// The deliveries of each node that its hub gets together.
    gathered: BTreeMap<usize, Vec<Delivery>>,
    clients: Vec<SimulatedClient>,
    /// Log positions that had nothing to deliver.
    empty: HashSet<Place>,
    /// The commands at their log positions.
    commands: BTreeMap<Place, GroupChange>,
    resumed: u64,
    resets: u64,
}

/// One simulated client, whose user is its own.
#[derive(Default)]
struct SimulatedClient {
    user: String,
    at: Option<Position>,
    /// Its latest resume token.
    token: String,
    /// Its groups as the commands say. `None` if it has what a command did that has lost its place since, or if it has
    /// not begun.
    groups: Option<Groups>,
    connection: Option<Connection>,
    /// The publishes that the client has got since it began, and those on this connection.
    seen: HashSet<PublishId>,
    had: HashSet<PublishId>,
}

/// The groups of a client after the commands up to a log position.
struct Groups {
    place: Place,
    names: BTreeSet<String>,
    /// The connection that had them when they were last compared.
    compared: Option<ConnectionId>,
}

/// A log position.
type Place = (u64, NodeId, Seq);

/// The client's connection to the node with the index `node_index`.
struct Connection {
    node_index: usize,
    client: Arc<Client>,
    _handle: ClientHandle,
    /// The position of the node when the client came, and the epoch of its order.
    came: (Place, u64),
    progress: Progress,
}

/// The progress of a client that comes back.
enum Progress {
    /// The node verifies its resume token.
    Proves(Duration),
    /// The token was valid, and the node looks up the position.
    Waits(Duration),
    CatchesUp {
        after: Seq,
        epoch: u64,
    },
    Joined,
}

impl SimulatedClients {
    fn new(log: &LogConfig) -> Self {
        let config = Config { log: log.clone(), ..Config::default() };
        Self {
            config,
            sealer: StateSealer::new("default", &[b"key".to_vec()]),
            hubs: BTreeMap::new(),
            gathered: BTreeMap::new(),
            clients: (0..CLIENTS).map(|number| SimulatedClient { user: user(number), ..Default::default() }).collect(),
            empty: HashSet::new(),
            commands: BTreeMap::new(),
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
        self.gathered.remove(&node_index);
        for client_state in &mut self.clients {
            if client_state.connection.as_ref().is_some_and(|connection| connection.node_index == node_index) {
                client_state.connection = None;
            }
        }
    }

    fn output(&mut self, node_index: usize, output: &Output) {
        // The driver hands over what it has gathered before it carries these out.
        if let Output::Trimmed { .. }
        | Output::Cut { .. }
        | Output::Restarted { .. }
        | Output::CutOff
        | Output::ShutDown = output
        {
            self.hand_over(node_index);
        }
        let Some((_, hub)) = self.hubs.get(&node_index) else { return };
        match output {
            Output::Deliver { position, proposal, repeated } => {
                let place = (position.term, position.master, position.seq);
                // The world waits until all clients have got the last message.
                let command = |content: &[u8]| command(proposal.id).filter(|_| content != b"the last one");
                let content = proposal.content.as_ref().map(|content| match command(content) {
                    Some(change) => {
                        self.commands.insert(place, change.clone());
                        Content::Groups(change).encode()
                    }
                    None => message(proposal.id),
                });
                if content.is_none() || self.commands.contains_key(&place) {
                    self.empty.insert(place);
                }
                let (id, size) = (proposal.id, proposal.size());
                let delivery = Delivery { position: *position, id, size, repeated: *repeated, content };
                self.gathered.entry(node_index).or_default().push(delivery);
            }
            Output::Cut { after } => {
                let is_cut = hub.position().seq > *after;
                hub.cut(*after);
                // What was carried out for its connections stays, although it may never be in the order again.
                let here = |client_state: &SimulatedClient| {
                    client_state.connection.as_ref().is_some_and(|connection| connection.node_index == node_index)
                };
                for client_state in self.clients.iter_mut().filter(|client_state| is_cut && here(client_state)) {
                    client_state.groups = None;
                }
            }
            Output::Trimmed { base } => hub.trimmed(*base),
            Output::Restarted { base, missed } => hub.restarted(*base, *missed),
            _ => {}
        }
    }

    fn outputs_end(&mut self, node_index: usize) {
        self.hand_over(node_index);
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
            let done = done.and_then(|()| self.check_groups(&mut client_state, checks));
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
    /// Delivers what was gathered for a node's clients, in one call, as the driver does.
    fn hand_over(&mut self, node_index: usize) {
        let deliveries = self.gathered.remove(&node_index).unwrap_or_default();
        if let Some((_, hub)) = self.hubs.get(&node_index).filter(|_| !deliveries.is_empty()) {
            hub.deliver(deliveries);
        }
    }

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
            Some(connection) => {
                // The connection's task may be late with a new token.
                if let Some((_, hub)) = self.hubs.get(&connection.node_index).filter(|_| rng.below(2) == 0) {
                    connection.client.send_new_token(hub, &self.sealer);
                }
                self.take_step(client_state, now, rng.below(2) == 0);
            }
        }
    }

    fn connect(&mut self, client_state: &mut SimulatedClient, now: Duration, node_index: usize) {
        let Some((_, hub)) = self.hubs.get(&node_index) else { return };
        let request = http::Request::new(()).into_parts().0;
        let handshake = Handshake::new(&request, None, &TrustedProxies::none());
        let client = Arc::new(Client::new(hub.next_id(), handshake, usize::MAX / 4, true));
        let mut slot = hub.admission().admit(None, 1, usize::MAX).ok();
        let (user_now, asked) = (Membership::of(Identity::user(&*client_state.user)), hub.closes().now());
        let handle = hub.arrive(client.clone(), user_now, &mut slot, asked);
        let handle = handle.expect("no command came since the question");
        let (_, epoch) = hub.position_status(&Position::START);
        let came = (log_position_of(&hub.position()), epoch);
        let progress = match client_state.at {
            Some(_) => Progress::Proves(now),
            None => {
                hub.begin(&client, &["new".into()], &self.sealer, 0);
                client_state.groups = Some(Groups::none_at(came.0));
                Progress::Joined
            }
        };
        client_state.had.clear();
        client_state.connection = Some(Connection { node_index, client, _handle: handle, came, progress });
    }

    /// Takes the next step for a client that comes back, as the join of [`resume`](super::resume) does.
    fn take_step(&mut self, client_state: &mut SimulatedClient, now: Duration, pauses: bool) {
        let (Some(connection), Some(position)) = (&mut client_state.connection, client_state.at) else { return };
        let Some((_, hub)) = self.hubs.get(&connection.node_index) else { return };
        let client = &connection.client;
        let mut lost = false;
        if let Progress::Proves(since) = connection.progress {
            let state = self.sealer.open(Some(&client_state.user), None, &client_state.token).ok();
            let status = state.as_ref().map(|state| hub.seal_status(&state.at));
            if status == Some(PositionStatus::Ahead) && now - since < RESUME_TIME {
                return;
            }
            let state = state.filter(|_| status == Some(PositionStatus::Known));
            if state.is_some_and(|state| hub.resume(client, state).is_ok()) {
                connection.progress = Progress::Waits(since);
            } else {
                lost = true;
                let (place, epoch) = connection.came;
                let is_same = hub.position_status(&position).1 == epoch;
                client_state.groups = is_same.then(|| Groups::none_at(place));
            }
        }
        if let Progress::Waits(since) = connection.progress {
            match hub.position_status(&position) {
                (PositionStatus::Known, epoch) => match hub.missed(client, position.seq, epoch, REPLAYED) {
                    Ok(missed) => {
                        let first = ["recovered".into(), missed.messages.len().into()];
                        client.begin_behind(position.seq);
                        let token = {
                            let mut membership = client.membership_lock().write();
                            membership.note_token_sent();
                            client.seal(&membership, hub.position(), &self.sealer)
                        };
                        client.begin(&first, position, &token, 0);
                        missed
                            .messages
                            .iter()
                            .for_each(|(log_position, content)| _ = replay(client, *log_position, content));
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
                            .for_each(|(log_position, content)| _ = replay(client, *log_position, content));
                        connection.progress = Progress::CatchesUp { after: missed.until, epoch };
                    }
                    Err(_) => lost = true,
                },
                Err(_) => lost = true,
            }
        }
        if lost {
            if !matches!(connection.progress, Progress::Proves(_)) {
                // The order may have been cut since the token was verified, with commands that were carried out.
                client_state.groups = None;
            }
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
            // Entries that it got have lost their places, and commands may be among them.
            if message["details"][1] != "lost" && message["details"][0] == "reset" {
                client_state.groups = None;
            }
        } else if let Some(at) = at.filter(|_| message["details"][0] == "now") {
            self.check_continuity(client_state, at, None, checks)?;
        }
        client_state.at = at.or(client_state.at);
        if let Some(token) = message["state"].as_str() {
            client_state.token = token.to_owned();
        }
        Ok(())
    }

    /// Checks that a client that has joined has the groups of the commands since it began.
    fn check_groups(&self, client_state: &mut SimulatedClient, checks: &Checks) -> Result<(), String> {
        let (Some(connection), Some(groups)) = (&client_state.connection, &mut client_state.groups) else {
            return Ok(());
        };
        let Some((_, hub)) = self.hubs.get(&connection.node_index) else { return Ok(()) };
        let (here, before) = (log_position_of(&hub.position()), groups.place);
        // This node may be behind the one that the client was on.
        if !matches!(connection.progress, Progress::Joined) || here.2 < before.2 {
            return Ok(());
        }
        let id = Some(connection.client.id);
        if here == before && groups.compared == id {
            return Ok(());
        }
        let mut commands = Vec::new();
        let mut place = here;
        while place.2 > before.2 {
            commands
                .extend(self.commands.get(&place).filter(|change| change.subject.is(Some(&client_state.user), None)));
            // The predecessor is unknown if the node began after a snapshot.
            let Some((_, Some(previous))) = checks.at(place) else { break };
            place = previous;
        }
        if place != before && before.2 > 0 {
            client_state.groups = None;
            return Ok(());
        }
        for GroupChange { join, leave, .. } in commands.into_iter().rev() {
            groups.names.extend(join.iter().cloned());
            groups.names.retain(|group| !leave.contains(group));
        }
        (groups.place, groups.compared) = (here, id);
        let own = connection.client.membership().groups.iter().map(|group| group.to_string()).collect::<BTreeSet<_>>();
        if own == groups.names {
            return Ok(());
        }
        Err(format!("{} is in the groups {own:?}, and the commands say {:?}", client_state.user, groups.names))
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

impl Groups {
    fn none_at(place: Place) -> Self {
        Self { place, names: BTreeSet::new(), compared: None }
    }
}

fn user(number: usize) -> String {
    format!("user {number}")
}

/// Returns the command that a publish is, if it is one. It depends on the publish only, so that all nodes agree.
fn command(publish: PublishId) -> Option<GroupChange> {
    let (number, kind) = (publish.counter / COMMANDS, publish.counter % COMMANDS);
    let change = GroupChange::user(user(number as usize % CLIENTS));
    let number = number / CLIENTS as u64;
    let group = (number % GROUPS).to_string();
    (kind == 0).then(|| if (number / GROUPS).is_multiple_of(2) { change.join(group) } else { change.leave(group) })
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
fn log_position_of(position: &Position) -> Place {
    let LogPosition { term, master, seq } = position.log_position();
    (term, master, seq)
}

#[test]
fn clients_that_change_nodes_see_one_order_or_a_reset() {
    search(1_000, |seed, story| storm_with_clients(seed, story, |log| Box::new(SimulatedClients::new(log))));
}

//! The clients of a run: they resume, change nodes, and record what they see.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use ws_cluster::{
    Client,
    client::{Event, Events},
};

use super::recorder::Recorder;
use crate::{
    history::{Kind, Record, SENTINEL},
    random::Random,
};

/// The action of all messages that are recorded.
pub(super) const ACTION: &str = "count";

/// The last argument of all messages. It makes them large enough to be compressed, if the clients negotiate that.
pub(super) const PADDING: &str = "This text is here so that the message is large enough to be compressed. It repeats \
    itself, so that the message also shrinks: this text is here so that the message is large enough to be compressed. \
    It repeats itself, so that the message also shrinks: this text is here so that the message is large enough.";

/// Number of users. The other clients are guests.
pub(super) const USERS: u64 = 40;

/// All clients.
pub(super) struct Crowd {
    clients: Vec<Client>,
    names: Vec<String>,
    /// For each client, true if it saw the last message. A watch, since the end of a run waits for it.
    ended: watch::Receiver<Vec<bool>>,
}

impl Crowd {
    /// Connects clients to the nodes at these addresses. Each begins with another one.
    pub(super) fn connect(
        count: usize,
        addresses: &[SocketAddr],
        processes: &Arc<Mutex<Vec<String>>>,
        recorder: &Arc<Recorder>,
    ) -> Self {
        let (ends, ended) = watch::channel(vec![false; count]);
        let ends = Arc::new(ends);
        let mut crowd = Self { clients: Vec::new(), names: Vec::new(), ended };
        for number in 0..count {
            // Every fifth client is a guest. The clients of one user begin on different nodes.
            let user = (!number.is_multiple_of(5)).then(|| format!("u{}", number as u64 % USERS));
            let query = user.as_ref().map(|user| format!("?user={user}")).unwrap_or_default();
            let first = number / USERS as usize + number;
            let around = (0..addresses.len()).map(|step| addresses[(first + step) % addresses.len()]);
            let urls: Vec<String> = around.map(|address| format!("ws://{address}/WebSockets{query}")).collect();
            let (client, events) = Client::builder(&urls)
                // Faults come every few seconds, so clients reconnect as quickly.
                .reconnect_delay_max(Duration::from_secs(2))
                .connect_timeout(Duration::from_secs(5))
                .connect()
                .expect("URLs");
            let name = format!("client {number}");
            recorder.add(&Record::Client { client: (&*name).into(), user: user.map(Into::into) });
            let seen = Seen {
                name: name.clone(),
                addresses: addresses.to_vec(),
                processes: processes.clone(),
                recorder: recorder.clone(),
            };
            let ends = ends.clone();
            tokio::spawn(seen.follow(events, move || ends.send_modify(|ended| ended[number] = true)));
            crowd.clients.push(client);
            crowd.names.push(name);
        }
        crowd
    }

    /// Sends `percent` of a hundred clients to their next node.
    pub(super) fn hop(&self, percent: u64, random: &mut Random) {
        self.clients.iter().filter(|_| random.percent(percent)).for_each(Client::reconnect);
    }

    /// Sends one client to its next node.
    pub(super) fn hop_one(&self, random: &mut Random) {
        random.choose(&self.clients).reconnect();
    }

    /// Waits until all clients have seen the last message. Returns those that have not in time.
    pub(super) async fn ended(&mut self, patience: Duration) -> Vec<String> {
        let all = self.ended.wait_for(|ended| ended.iter().all(|ended| *ended));
        if matches!(timeout(patience, all).await, Ok(Ok(_))) {
            return Vec::new();
        }
        let ended = self.ended.borrow();
        self.names.iter().zip(&*ended).filter(|(_, ended)| !**ended).map(|(name, _)| name.clone()).collect()
    }

    /// Closes all clients.
    pub(super) fn close(&self) {
        self.clients.iter().for_each(Client::close);
    }
}

/// The recorder of one client.
struct Seen {
    name: String,
    addresses: Vec<SocketAddr>,
    processes: Arc<Mutex<Vec<String>>>,
    recorder: Arc<Recorder>,
}

impl Seen {
    async fn follow(self, mut events: Events, end: impl Fn()) {
        while let Some(event) = events.next().await {
            self.note(event, &end);
        }
    }

    fn note(&self, event: Event, end: &impl Fn()) {
        let (t, client) = (self.recorder.now(), (&*self.name).into());
        let position = |kind, count, why| Record::Position { t, client: (&*self.name).into(), kind, count, why };
        let mut ended = false;
        let record = match event {
            Event::Open { url } => Record::Open { t, client, node: self.process(&url).into() },
            Event::New => position(Kind::New, 0, "".into()),
            Event::Recovered(count) => position(Kind::Recovered, count, "".into()),
            Event::Reset(why) => position(Kind::Reset, 0, why.into()),
            Event::Message(message) if message.action == ACTION => {
                let Ok((by, number, _)) = message.parse::<(String, u64, String)>() else {
                    panic!("{}: not what was published: {message:?}", self.name)
                };
                ended = by == SENTINEL;
                Record::Message { t, client, by: by.into(), number, at: message.at.map(Into::into) }
            }
            Event::Closed { code, reason, .. } => Record::Closed { t, client, code, reason: reason.into() },
            // Other messages from servers are not recorded.
            _ => return,
        };
        self.recorder.add(&record);
        // Sent after the record, because the history may be read then.
        if ended {
            end();
        }
    }

    /// Returns the process behind a URL.
    fn process(&self, url: &str) -> String {
        let here = |address: &SocketAddr| url.contains(&format!("//{address}/"));
        let node = self.addresses.iter().position(here);
        node.map_or_else(|| url.to_owned(), |node| self.processes.lock()[node].clone())
    }
}

//! The database behind the pool: the tables of the pool in memory, with the faults of databases.

use std::time::Duration;

use super::{Happening, World, story::Name};
use crate::{Answer, NodeId, Query};

/// The maximum time that the database usually takes for an answer, in milliseconds.
pub(super) const USUAL_DELAY: u64 = 5;

impl World {
    pub(super) fn stop_database(&mut self, down: bool) {
        self.db_down = down;
        self.tell(|| (if down { "the database stops" } else { "the database is back" }).to_owned());
    }

    /// From now on the database refuses every write and answers every read, as a replica does.
    pub(super) fn refuse_writes(&mut self, read_only: bool) {
        self.db_read_only = read_only;
        self.tell(|| format!("the database {} writes", if read_only { "refuses" } else { "takes" }));
    }

    /// From now on the clock of the database server that this node writes to is `behind` or `ahead` of the clock of the
    /// server that is read.
    pub(super) fn skew_database(&mut self, place: usize, behind: Duration, ahead: Duration) {
        self.db_skew.insert(place, (behind, ahead));
        let name = self.letter(place);
        self.tell(|| {
            let (behind, ahead) = (behind.as_secs(), ahead.as_secs());
            format!("the clock for {name} is {behind} s behind and {ahead} s ahead")
        });
    }

    pub(super) fn cut_database(&mut self, place: usize, cut: bool) {
        self.nodes[place].db_cut = cut;
        let name = self.letter(place);
        self.tell(|| format!("{name} {} the database", if cut { "no longer reaches" } else { "reaches" }));
    }

    /// From now on `percent` of the queries take effect and lose their answer.
    pub(super) fn lose_answers(&mut self, percent: u64) {
        self.lost_answers = percent;
        self.tell(|| format!("the database loses {percent} of 100 answers"));
    }

    /// From now on `percent` of the queries are reported as failed and take effect up to twelve seconds later.
    pub(super) fn delay_statements(&mut self, percent: u64) {
        self.late_statements = percent;
        self.tell(|| format!("the database carries out {percent} of 100 statements after it said that they failed"));
    }

    /// From now on the database takes up to `delay` milliseconds for an answer.
    pub(super) fn slow_database(&mut self, delay: u64) {
        self.db_delay = delay;
        self.tell(|| format!("the database takes {delay} ms"));
    }

    /// From now on the replica gets no writes.
    pub(super) fn hold_replica_back(&mut self) {
        self.replica = Some(self.tables.clone());
        self.tell(|| "the replica lags from here on".to_owned());
    }

    /// Makes the replica the database. The writes since the beginning of its lag are lost.
    pub(super) fn fail_over(&mut self) {
        let Some(replica) = self.replica.take() else { return };
        self.tables.fall_back(replica);
        self.checks.rows_lost();
        self.tell(|| "the database fails over to the replica".to_owned());
    }

    pub(super) fn empty_tables(&mut self) {
        self.tables.clear();
        self.checks.rows_lost();
        self.tell(|| "the tables are emptied".to_owned());
    }

    pub(super) fn query(&mut self, place: usize, query: Query) {
        let id = self.nodes[place].id;
        if self.db_down || self.nodes[place].db_cut {
            let delay = self.delay(0, 2000);
            return self.schedule(delay, place, Happening::Answer(Answer::Failed));
        }
        if self.db_read_only && query != Query::Read {
            let delay = self.delay(0, 5);
            return self.schedule(delay, place, Happening::Answer(Answer::Failed));
        }
        if self.rng.below(100) < self.late_statements {
            let (told, done) = (self.delay(0, 2000), self.delay(2000, 12_000));
            self.schedule(told, place, Happening::Answer(Answer::Failed));
            return self.schedule(done, place, Happening::Statement(query));
        }
        let answer = self.take_effect(id, query);
        let lost = self.rng.below(100) < self.lost_answers;
        let (delay, answer) = if lost {
            (Duration::from_secs(2), Answer::Failed)
        } else {
            let longer = if self.steady { self.db_delay.saturating_sub(USUAL_DELAY) } else { 0 };
            (self.delay(self.db_delay * 9 / 10, self.db_delay) + Duration::from_millis(longer), answer)
        };
        self.schedule(delay, place, Happening::Answer(answer));
    }

    /// Carries out the query of a node, which may have ended since.
    pub(super) fn take_effect(&mut self, id: NodeId, query: Query) -> Answer {
        let asked = self.story.is_some().then(|| query.clone());
        let stride = if self.counts_beats { 1 } else { 1 + self.rng.below(1 << 30) };
        let before = self.tables.read(self.now).lease;
        let answer = match query {
            Query::Read => Answer::View(self.tables.read(self.now)),
            Query::Announce(announcement) => {
                let place = self.nodes.iter().position(|node| node.id == id);
                let skew = place.and_then(|place| self.db_skew.get(&place)).copied().unwrap_or_default();
                self.tables.announce(self.now.saturating_sub(skew.0) + skew.1, &announcement);
                Answer::Done
            }
            Query::Renew { term, master } => Answer::Applied(self.tables.renew(term, master, stride)),
            Query::TakeOver { seen, max_seen } => Answer::Term(self.tables.take_over(&seen, max_seen, id, stride)),
            Query::HandOver { term, successor } => Answer::Applied(self.tables.hand_over(term, id, successor, stride)),
            Query::Restore { term, master } => {
                self.tables.restore(term, master, stride);
                Answer::Done
            }
            Query::ClearJoined(node) => {
                self.tables.clear_joined(node);
                Answer::Done
            }
            Query::Remove(node) => {
                self.tables.remove(node);
                Answer::Done
            }
        };
        let after = self.tables.read(self.now).lease;
        if let Some(lease) = after.filter(|_| after != before)
            && let Err(wrong) = self.checks.lease_written(lease)
        {
            self.fail(&wrong);
        }
        if let Some(told) = asked.and_then(|query| tell(&query, &answer)) {
            self.tell(|| format!("{} {told}", Name(id)));
        }
        answer
    }
}

/// Returns what the database did for a node, if it is part of the story.
fn tell(query: &Query, answer: &Answer) -> Option<String> {
    Some(match (query, answer) {
        (Query::TakeOver { seen, .. }, Answer::Term(Some(term))) => {
            let from = seen.master.map_or("free".to_owned(), |master| format!("{}'s", Name(master)));
            format!("takes the lease, which was {from}: term {term}")
        }
        (Query::TakeOver { .. }, Answer::Term(None)) => "stands, but the lease has changed".to_owned(),
        (Query::HandOver { term, successor: Some(successor) }, Answer::Applied(true)) => {
            format!("hands the lease over to {}: term {}", Name(*successor), term + 1)
        }
        (Query::HandOver { successor: None, .. }, Answer::Applied(true)) => "releases the lease".to_owned(),
        (Query::HandOver { .. }, Answer::Applied(false)) => "hands over, but the lease is another's".to_owned(),
        (Query::Renew { master, .. }, Answer::Applied(false)) => {
            format!("renews for {}, but the lease is another's", Name(*master))
        }
        (Query::Restore { .. }, _) => "finds no lease and puts one there".to_owned(),
        _ => return None,
    })
}

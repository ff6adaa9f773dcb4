//! The sessions and users that were closed or refreshed lately. An authenticator may answer with what it read before
//! the close. Such an answer does not count.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::{hub::Membership, message::close::Subject};

/// Number of commands that are remembered. A look-up is bounded by the handshake's time limit (10 s by default), so
/// this is enough for 400 commands a second. If there are more, a look-up that began before all of them is repeated.
const REMEMBERED: usize = 4096;

/// The commands to close or refresh that this node has delivered.
#[derive(Default)]
pub(crate) struct Closes(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    /// Number of commands so far.
    count: u64,
    /// The latest of them, the oldest first.
    subjects: VecDeque<Subject>,
}

/// The moment at which a question was put to the authenticator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u64);

/// The error for an answer that does not count, because a command about this client was delivered after the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale;

impl Closes {
    /// The present moment. Read before a question is put.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.0.lock().count)
    }

    /// Notes a command. Called under the hub's lock and before the connections concerned are looked up, so that each
    /// client either finds the command here or is found by it. A command about one connection concerns no answer.
    pub(super) fn note(&self, subject: Subject) {
        if matches!(subject, Subject::Connection(_)) {
            return;
        }
        let mut recent = self.0.lock();
        recent.count += 1;
        if recent.subjects.len() == REMEMBERED {
            recent.subjects.pop_front();
        }
        recent.subjects.push_back(subject);
    }

    /// Fails if a command that concerns this client was delivered after `asked`.
    pub(crate) fn check(&self, asked: Moment, who: &Membership) -> Result<(), Stale> {
        if who.user.is_none() && who.session.is_none() {
            // Commands do not name guests.
            return Ok(());
        }
        let recent = self.0.lock();
        let since = (recent.count - asked.0) as usize;
        let concerned = |subject: &Subject| subject.is(who.user.as_deref(), who.session.as_deref());
        if since > recent.subjects.len() || recent.subjects.iter().rev().take(since).any(concerned) {
            return Err(Stale);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    fn ann() -> Membership {
        Membership::of(Identity::user("ann").session("s"))
    }

    #[test]
    fn an_answer_counts_unless_a_command_came_after_its_question() {
        let closes = Closes::default();
        for (subject, concerns) in [
            (Subject::session("s"), true),
            (Subject::user("ann"), true),
            (Subject::session("t"), false),
            (Subject::user("bob"), false),
            (Subject::user("s"), false),
            (Subject::user("ann").except("t"), true),
            (Subject::user("ann").except("s"), false),
        ] {
            let before = closes.now();
            closes.note(subject.clone());
            assert_eq!(closes.check(before, &ann()).is_err(), concerns, "{subject:?}");
            assert_eq!(closes.check(closes.now(), &ann()), Ok(()));
            assert_eq!(closes.check(before, &Membership::of(Identity::guest())), Ok(()));
        }
    }

    #[test]
    fn commands_about_single_connections_do_not_make_answers_stale() {
        let closes = Closes::default();
        let before = closes.now();
        let connection: crate::ConnectionId = "0123456789abcdef0123456789abcdef-7".parse().unwrap();
        for _ in 0..=REMEMBERED {
            closes.note(Subject::Connection(connection));
        }
        assert_eq!(closes.check(before, &ann()), Ok(()));
    }

    #[test]
    fn an_answer_older_than_all_that_is_remembered_does_not_count() {
        let closes = Closes::default();
        let before = closes.now();
        for number in 0..REMEMBERED {
            closes.note(Subject::session(number.to_string()));
        }
        assert_eq!(closes.check(before, &ann()), Ok(()));
        closes.note(Subject::session("another"));
        assert_eq!(closes.check(before, &ann()), Err(Stale));
        assert_eq!(closes.0.lock().subjects.len(), REMEMBERED);
    }
}

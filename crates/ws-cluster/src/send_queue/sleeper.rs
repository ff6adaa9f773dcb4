//! The task or the parked connection that is woken if there is something to do outside of the fan-out.

use std::task::Waker;

/// A connection without a task. Its queue keeps it until something wakes it.
pub(crate) trait Parked: Send {
    /// Gives the connection a task again.
    fn unpark(self: Box<Self>);
}

pub(super) enum Sleeper {
    /// The waker of the connection's task, which sleeps.
    Task(Waker),
    /// The connection that is parked without a task, or `None` if its task is awake. Two boxes make a pointer of one
    /// word, which saves a word for each queue.
    Parked(Option<Box<Box<dyn Parked>>>),
}

impl Default for Sleeper {
    fn default() -> Self {
        Self::Parked(None)
    }
}

impl Sleeper {
    pub(super) fn parked(connection: Box<dyn Parked>) -> Self {
        Self::Parked(Some(Box::new(connection)))
    }

    #[cfg(test)]
    pub(super) fn is_parked(&self) -> bool {
        matches!(self, Self::Parked(Some(_)))
    }

    pub(super) fn wake(self) {
        match self {
            Self::Task(task) => task.wake(),
            Self::Parked(connection) => connection.into_iter().for_each(|connection| connection.unpark()),
        }
    }
}

//! Who is woken when there is something to do that is not the hub's.

use std::task::Waker;

/// A connection without a task, which its queue keeps until something wakes it.
pub(crate) trait Parked: Send {
    /// Gives it a task again.
    fn unpark(self: Box<Self>);
}

pub(super) enum Sleeper {
    /// The connection's task, which sleeps.
    Task(Waker),
    /// The connection, which is parked without a task; nobody if its task is awake. In two boxes, since a pointer of one
    /// word makes each queue smaller by one.
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

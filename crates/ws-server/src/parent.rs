//! Ends a server with the supervisor that started it.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::{Failure, Outcome};

/// Makes the system kill this server when its supervisor ends, so that two servers never listen on one port.
pub(crate) fn follow(supervisor: u32) -> Outcome {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::refused(format!("the server cannot be tied to its supervisor: {error}")))?;
    // The supervisor may have ended already.
    match getppid() == Pid::from_raw(supervisor.cast_signed()) {
        true => Ok(()),
        false => Err(Failure::refused("the supervisor is gone")),
    }
}

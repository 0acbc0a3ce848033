//! What keeps a node's data well. In a running node: the snapshots that it makes and serves ([`shelf`]), and the state
//! that is computed again from all accounts now and then ([`audit`]). On the database of a node, running or stopped:
//! backups, checks and repair ([`database`]).

pub mod audit;
pub mod database;
pub mod shelf;

/// Lets everything else on the machine go first, as far as the system knows such a thing: for threads that are in no hurry.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        const NICENESS: i32 = 10;
        // SAFETY: a call without pointers; on Linux 0 means the calling thread alone.
        let lowered = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } == 0;
        tracing::trace!(lowered, "a background thread's priority");
    }
}

//! What keeps a node's data well. In a running node: the snapshots that it makes and serves ([`shelf`]), and the state
//! that is computed again from all accounts now and then ([`audit`]). On the database of a node, running or stopped:
//! backups, checks and repair ([`database`]).

pub mod audit;
pub mod database;
pub mod shelf;

/// How soon to look again whether there is time for what is due.
const LATER: std::time::Duration = std::time::Duration::from_secs(1);

/// Waits for [`LATER`], or for ever where nothing is due.
async fn later(due: bool) {
    if due {
        tokio::time::sleep(LATER).await;
    } else {
        std::future::pending().await
    }
}

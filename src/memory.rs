//! Memory that the node no longer uses and yet holds: given back to the machine when a burst of work is over, which is the
//! start and every catch-up. glibc keeps freed memory below the last block in use, some 25 MB after a start with 100,000
//! accounts; readers of the database keep what they have mapped of it, some 7 MB then.

use tokio::sync::watch;

use crate::storage::Storage;
use crate::sync::{SyncState, SyncStatus};

/// Gives memory back now and after every catch-up, until `stop` says true.
pub async fn run(storage: Storage, mut sync: watch::Receiver<SyncStatus>, mut stop: watch::Receiver<bool>) {
    let bursts = async {
        loop {
            // It takes milliseconds, too long for a thread that serves.
            let storage = storage.clone();
            let _ = tokio::task::spawn_blocking(move || {
                storage.close_idle();
                give_back();
            })
            .await;
            let ends = [SyncState::Syncing, SyncState::Live];
            for state in ends {
                if sync.wait_for(|status| status.state == state).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        // An error means that whoever could say it is gone, which is a stop as well.
        _ = stop.wait_for(|stop| *stop) => {}
        () = bursts => {}
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    // SAFETY: may be called at any time from any thread; it touches nothing but the allocator's own lists, under its
    // locks.
    let some = unsafe { libc::malloc_trim(0) } == 1;
    tracing::debug!(some, "memory that is no longer used has been given back");
}

/// Other allocators do it by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

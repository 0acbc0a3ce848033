//! Tells sync of the peers: who can be asked, who is gone, and what each is known to have.

use std::collections::BTreeMap;
use std::sync::Arc;

use libp2p::PeerId;
use tokio::sync::watch;

use super::handle::{Met, MetPeer};
use crate::sync::follower::Peers;
use crate::sync::source::Source as _;

/// Keeps `peers` at what `met` says, until `stop` says true. However fast peers come and go, sync hears of the last
/// state of each.
pub async fn join(mut met: watch::Receiver<Met>, peers: Peers, mut stop: watch::Receiver<bool>) {
    let mut told: BTreeMap<PeerId, MetPeer> = BTreeMap::new();
    loop {
        let now = met.borrow_and_update().clone();
        // One that has come back is another one, though it has the same name.
        let same = |peer: &PeerId, known: &MetPeer| {
            now.get(peer).is_some_and(|there| Arc::ptr_eq(&there.source, &known.source))
        };
        for (_, gone) in told.extract_if(.., |peer, known| !same(peer, known)) {
            peers.leave(gone.source.name()).await;
        }
        for (peer, there) in now {
            let known = told.get(&peer);
            if known.is_none() {
                peers.join(there.source.clone()).await;
            }
            if let Some((height, hash)) = there.head
                && known.is_none_or(|known| known.head != there.head)
            {
                peers.announce(there.source.name(), height, hash).await;
            }
            told.insert(peer, there);
        }
        tokio::select! {
            changed = met.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

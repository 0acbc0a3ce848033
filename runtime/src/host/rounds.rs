//! The thread that looks after trials, probations and journals, and writes down what came of them.

use std::{
    sync::{Weak, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use super::Inner;
use crate::{priority, slot::News};

impl Inner {
    /// One round of looking after trials and probations; when the next is due, if any. Writing is slow: it waits for
    /// more to write, but for what must not be forgotten.
    pub(super) fn round(&self, written: &mut Instant) -> Option<Duration> {
        let receivers = self.receivers();
        let mut next = receivers.iter().filter_map(|receiver| receiver.tick()).min();
        let news: Vec<_> = receivers.iter().filter_map(|receiver| Some((receiver, receiver.news()?))).collect();
        let urgent = news.iter().any(|(_, news)| *news == News::Urgent);
        if urgent || written.elapsed() >= WRITE_INTERVAL {
            for (receiver, _) in &news {
                self.keep(&mut self.control(), &***receiver);
            }
            *written = Instant::now();
        } else if !news.is_empty() {
            next = next.or(Some(WRITE_INTERVAL));
        }
        next.filter(|_| !self.stopped.load(Ordering::Acquire))
    }
}

/// How long news that are not urgent wait to be written at most.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);

/// Looks after trials and probations as long as the host is there; sleeps while there are none.
pub(super) fn look_after(host: &Weak<Inner>, woken: &mpsc::Receiver<()>) {
    priority::stand_back();
    let mut written = Instant::now();
    while woken.recv().is_ok() {
        loop {
            while woken.try_recv().is_ok() {}
            let Some(host) = host.upgrade() else {
                return;
            };
            let Some(next) = host.round(&mut written) else {
                break;
            };
            drop(host);
            if let Err(mpsc::RecvTimeoutError::Disconnected) = woken.recv_timeout(next) {
                return;
            }
        }
    }
}

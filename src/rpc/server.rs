//! Connections: accepted up to a number in all and for each caller, closed when they idle or dawdle over a request's
//! head, and finished in peace when the node stops.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{counter, gauge};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::Service;

use super::RpcConfig;
use super::limit::Limiter;
use crate::rate_limit::{Caller, Trust};
use crate::telemetry;

/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long to leave the listener alone after an error that is ours, as a rule too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often samples of histograms are merged.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Tells a task that the node stops.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Stops once `stop` says true, or nobody is left who could.
    pub fn new(stop: watch::Receiver<bool>) -> Self {
        Self(stop)
    }

    /// Resolves when it is time.
    pub async fn stopped(&mut self) {
        // An error means that the sender is gone, which is a stop as well.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Connections of each caller.
type Open = Arc<Mutex<HashMap<u64, usize>>>;

/// One of them; counted off when dropped.
struct Counted {
    open: Open,
    client: u64,
}

impl Counted {
    /// None where the caller has `max` already.
    fn new(open: &Open, client: u64, max: usize) -> Option<Self> {
        let mut counts = open.lock().expect("nobody panics while counting");
        let count = counts.entry(client).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        gauge!(telemetry::RPC_CONNECTIONS).increment(1);
        Some(Self { open: Arc::clone(open), client })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.open.lock().expect("nobody panics while counting");
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
        gauge!(telemetry::RPC_CONNECTIONS).decrement(1);
    }
}

/// Serves `router`, with a [`Caller`] beside every request.
pub(super) async fn run(listener: TcpListener, router: Router, limiter: Arc<Limiter>, config: RpcConfig, stop: Stop) {
    let open = Open::default();
    let admit = move |address: SocketAddr| {
        let caller = limiter.caller(address.ip());
        let max = if caller.trust == Trust::Public { config.connections_per_client_max } else { usize::MAX };
        let counted = Counted::new(&open, caller.client, max);
        if counted.is_none() {
            counter!(telemetry::RPC_CONNECTIONS_REFUSED).increment(1);
        }
        Some((Some(caller), counted?))
    };
    let (idle, stopping) =
        (Duration::from_millis(config.idle_timeout_ms), Duration::from_millis(config.stop_timeout_ms));
    accept(listener, router, config.connections_max, idle, stopping, admit, stop).await;
}

/// Serves `router` to operators: few connections, and nobody is told apart.
pub(super) async fn run_plain(listener: TcpListener, router: Router, stop: Stop) {
    let config = RpcConfig::default();
    let (idle, stopping) =
        (Duration::from_millis(config.idle_timeout_ms), Duration::from_millis(config.stop_timeout_ms));
    accept(listener, router, 64, idle, stopping, |_| Some((None, ())), stop).await;
}

/// Merges the samples of histograms now and then, for as long as it is polled.
pub(super) async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

async fn accept<K: Send + 'static>(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    idle: Duration,
    stopping: Duration,
    admit: impl Fn(SocketAddr) -> Option<(Option<Caller>, K)>,
    mut stop: Stop,
) {
    let room = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    let for_connections = stop.clone();
    loop {
        let next = async {
            // Waiting for room first leaves the others in the kernel's queue.
            let room = Arc::clone(&room).acquire_owned().await.expect("never closed");
            (room, listener.accept().await)
        };
        tokio::select! {
            biased;
            () = stop.stopped() => break,
            Some(_) = connections.join_next() => {}
            (room, accepted) = next => match accepted {
                Ok((stream, address)) => {
                    let Some((caller, kept)) = admit(address) else { continue };
                    let serving = connection(stream, router.clone(), caller, idle, for_connections.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop((room, kept));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(stopping, all).await.is_err() {
        tracing::warn!("requests that were still under way have been cut off");
    }
}

async fn connection(stream: TcpStream, router: Router, caller: Option<Caller>, idle: Duration, mut stop: Stop) {
    // Small answers must not wait for each other; an error here means that the connection is gone.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let mut router = router.clone();
        async move { Service::call(&mut router, request.map(Body::new)).await }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.stopped() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // A caller that hangs up or sends nonsense is no event for the operator.
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_so_many_connections_and_no_more() {
        let open = Open::default();
        let first = Counted::new(&open, 1, 2).unwrap();
        let _second = Counted::new(&open, 1, 2).unwrap();
        assert!(Counted::new(&open, 1, 2).is_none());
        assert!(Counted::new(&open, 2, 2).is_some(), "others are not affected");
        drop(first);
        assert!(Counted::new(&open, 1, 2).is_some());
        assert_eq!(open.lock().unwrap().len(), 1, "callers who are gone are forgotten");
    }
}

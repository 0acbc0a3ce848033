//! A load of requests: several callers with connections of their own, each asking as fast as it is answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

/// Callers at a time.
const CALLERS: u64 = 8;

/// Callers under way.
pub struct Load {
    counts: Arc<Counts>,
    callers: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    first_failure: Mutex<Option<String>>,
    stop: AtomicBool,
}

/// What came of it.
pub struct Outcome {
    /// Requests in all.
    pub requests: u64,
    /// Those that were not answered with success.
    pub failed: u64,
    /// What happened to the first of them.
    pub first_failure: Option<String>,
}

impl Load {
    /// Begins to ask the node at `url`, which has `blocks` blocks.
    pub fn start(url: &str, blocks: u64) -> Result<Self> {
        let counts = Arc::new(Counts::default());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
            callers.spawn(call(client, url.to_owned(), caller, blocks, Arc::clone(&counts)));
        }
        Ok(Self { counts, callers })
    }

    /// Requests so far.
    pub fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    /// Waits until there were so many. Errors: they do not come.
    pub async fn until(&self, requests: u64) -> Result<()> {
        let started = Instant::now();
        while self.answered() < requests {
            ensure!(
                started.elapsed() < Duration::from_secs(60),
                "the node does not answer {requests} requests in 60 s"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends it, with every request answered.
    pub async fn stop(mut self) -> Result<Outcome> {
        self.counts.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended?;
        }
        let counts = &self.counts;
        Ok(Outcome {
            requests: self.answered(),
            failed: counts.failed.load(Ordering::Relaxed),
            first_failure: counts.first_failure.lock().ok().and_then(|mut first| first.take()),
        })
    }
}

async fn call(client: reqwest::Client, url: String, caller: u64, blocks: u64, counts: Arc<Counts>) {
    for turn in caller.. {
        if counts.stop.load(Ordering::Relaxed) {
            return;
        }
        let height = turn.wrapping_mul(7_919) % blocks.max(1);
        let path = match turn % 5 {
            0..=2 => "/rpc/head".to_owned(),
            3 => format!("/rpc/blocks/{height}"),
            _ => format!("/rpc/blocks-range?start={height}&end={}", height + 4),
        };
        if let Err(reason) = ask(&client, &format!("{url}{path}")).await {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            let mut first = counts.first_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            first.get_or_insert_with(|| format!("{path}: {reason}"));
        }
        counts.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// One request, read to its end.
async fn ask(client: &reqwest::Client, url: &str) -> Result<(), String> {
    let response = client.get(url).send().await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.bytes().await.map_err(|error| error.to_string())?;
    if status.is_success() { Ok(()) } else { Err(format!("{status} {}", String::from_utf8_lossy(&body))) }
}

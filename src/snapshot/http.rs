//! A source of snapshots over HTTP: another node's public routes. Every answer is bounded, in bytes and in time.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, Url};

use super::MANIFEST_BYTES_MAX;
use super::source::{ChunkSource, Failure, Offer};
use crate::chain::Hash;

/// Bytes of a list of snapshots at most.
const LIST_BYTES_MAX: u64 = 256 << 10;
/// How long a source may be silent.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes a second below which an answer that has taken longer than that is given up.
const THROUGHPUT_MIN: u64 = 16 << 10;
/// How long a source may ask to be left alone at most.
const RETRY_AFTER_MAX_MS: u64 = 60_000;

/// A node reached over HTTP.
pub struct HttpChunks {
    client: Client,
    base: Url,
    name: String,
}

#[derive(serde::Deserialize)]
struct List {
    snapshots: Vec<Offer>,
}

impl HttpChunks {
    /// A source at `base`, such as `http://10.0.0.1:8006`. Errors name the URL.
    pub fn new(base: &str) -> Result<Self, String> {
        let url: Url = base.parse().map_err(|error| format!("source `{base}`: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || url.query().is_some() {
            return Err(format!("source `{base}`: expected http://HOST:PORT or https://HOST:PORT"));
        }
        let mut shown = url.clone();
        // Never fails for a URL with a host; where it did, the name would be the longer one.
        let _ = (shown.set_username(""), shown.set_password(None));
        // The process's provider of cryptography for TLS. Whoever set it first has set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| format!("source `{base}`: {error}"))?;
        Ok(Self { client, base: url, name: shown.as_str().trim_end_matches('/').to_owned() })
    }

    /// The node at `base`, reached through a client that is there already, which follows no redirects.
    pub fn over(client: Client, base: Url, name: String) -> Self {
        Self { client, base, name }
    }

    /// At most `max` bytes from `path`.
    async fn read(&self, path: &str, max: u64) -> Result<Vec<u8>, Failure> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        let started = Instant::now();
        let answer = tokio::time::timeout(TIMEOUT, self.client.get(url).send()).await.map_err(|_| silent())?;
        let answer = answer.map_err(|error| unreachable(&error))?;
        let status = answer.status().as_u16();
        if !answer.status().is_success() {
            let retry_after_ms = retry_after_ms(&answer);
            let text = bounded(answer, 4 << 10, started).await.unwrap_or_default();
            let text: String = String::from_utf8_lossy(&text).chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(match (status, retry_after_ms) {
                (429 | 503, Some(retry_after_ms)) => Failure::Limited { retry_after_ms },
                (404 | 410, _) => Failure::Missing(text),
                _ => Failure::Unreachable(format!("{status}: {text}")),
            });
        }
        bounded(answer, max, started).await
    }
}

async fn bounded(mut answer: Response, max: u64, started: Instant) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    loop {
        let chunk = tokio::time::timeout(TIMEOUT, answer.chunk()).await.map_err(|_| silent())?;
        let Some(chunk) = chunk.map_err(|error| unreachable(&error))? else { return Ok(body) };
        body.extend_from_slice(&chunk);
        if body.len() as u64 > max {
            return Err(Failure::Lied(format!("sends more than the {max} bytes that were asked for")));
        }
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = (body.len() as u64).saturating_mul(1_000) / ms;
        if started.elapsed() > TIMEOUT && rate < THROUGHPUT_MIN {
            return Err(Failure::Unreachable(format!(
                "sends {rate} bytes a second, expected {THROUGHPUT_MIN} or more"
            )));
        }
    }
}

fn silent() -> Failure {
    Failure::Unreachable(format!("silent for {} s", TIMEOUT.as_secs()))
}

fn unreachable(error: &reqwest::Error) -> Failure {
    // The innermost cause is what an operator can act on: "connection refused".
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Failure::Unreachable(cause.to_string().chars().take(200).collect())
}

fn retry_after_ms(answer: &Response) -> Option<u64> {
    let seconds: u64 = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(seconds.saturating_mul(1_000).min(RETRY_AFTER_MAX_MS))
}

impl ChunkSource for HttpChunks {
    fn name(&self) -> &str {
        &self.name
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, Failure>> {
        async {
            let body = self.read("/rpc/snapshots", LIST_BYTES_MAX).await?;
            let list: List = serde_json::from_slice(&body)
                .map_err(|error| Failure::Lied(format!("/rpc/snapshots is not what a Tenon node answers: {error}")))?;
            Ok(list.snapshots)
        }
        .boxed()
    }

    fn manifest(&self, id: Hash) -> BoxFuture<'_, Result<Vec<u8>, Failure>> {
        async move { self.read(&format!("/rpc/snapshot/{id}/manifest"), MANIFEST_BYTES_MAX as u64).await }.boxed()
    }

    fn chunk(&self, id: Hash, index: usize, bytes: u64) -> BoxFuture<'_, Result<Vec<u8>, Failure>> {
        async move { self.read(&format!("/rpc/snapshot/{id}/{index}"), bytes).await }.boxed()
    }
}

//! A source over HTTP: another node's public routes. Every answer is bounded, in bytes and in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, Url};

use super::budget::Reservation;
use super::source::{FrameScan, RangeAnswer, Source, SourceError, SourceHead, SourceInfo};
use super::{HeightRange, SyncConfig};
use crate::chain::{Hash, Height};
use crate::mempool::Pending;
use crate::snapshot::http::HttpChunks;
use crate::snapshot::source::{ChunkSource, Offer};

/// The media type of blocks as [`super::source::frames`].
pub const BLOCKS_MEDIA_TYPE: &str = "application/vnd.tenon.blocks";

/// The response header that carries the server's head: `<height> <hash>`.
pub const HEAD_HEADER: &str = "x-tenon-head";

/// The header of a head's answer that carries the newest snapshot there: `<height> <id> <hash of its block>`.
pub const SNAPSHOT_HEADER: &str = "x-tenon-snapshot";

/// Bytes of an answer in JSON at most: those we ask for have a few hundred.
const JSON_BYTES_MAX: usize = 64 << 10;

/// Bytes of a range that are taken in at a time: by so many, at most, more is taken than there is room for.
const READ_BYTES: usize = 16 << 10;

/// How long a source may ask to be left alone at most.
const RETRY_AFTER_MAX_MS: u64 = 60_000;

/// A node reached over HTTP.
pub struct HttpSource {
    client: Client,
    base: Url,
    name: String,
    timeout: Duration,
    throughput_min: u64,
}

#[derive(serde::Deserialize)]
struct HeadJson {
    height: Height,
    hash: Hash,
}

impl HttpSource {
    /// A source at `base`, such as `http://10.0.0.1:8006`. Errors name the URL.
    pub fn new(base: &str, config: &SyncConfig) -> Result<Self, String> {
        let url: Url = base.parse().map_err(|error| format!("source `{base}`: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("source `{base}`: expected http://HOST:PORT or https://HOST:PORT"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("source `{base}`: a base address has no query and no fragment"));
        }
        let mut shown = url.clone();
        // Never fails for a URL with a host; where it did, the name would be the longer one.
        let _ = (shown.set_username(""), shown.set_password(None));
        // The process's provider of cryptography for TLS. Whoever set it first has set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .pool_max_idle_per_host(config.in_flight_per_peer_max as usize + 2)
            .redirect(reqwest::redirect::Policy::none())
            // A source is named by address; a proxy from the environment would be somebody else's answer.
            .no_proxy()
            .build()
            .map_err(|error| format!("source `{base}`: {error}"))?;
        let name = shown.as_str().trim_end_matches('/').to_owned();
        let timeout = Duration::from_millis(config.request_timeout_ms);
        Ok(Self { client, base: url, name, timeout, throughput_min: config.throughput_min })
    }

    /// All of a configuration's sources. Errors: a URL that is none, or one that stands there twice.
    pub fn all(config: &SyncConfig) -> Result<Vec<Arc<dyn Source>>, String> {
        let mut sources: Vec<Arc<dyn Source>> = Vec::with_capacity(config.sources.len());
        for base in &config.sources {
            let source = Self::new(base, config)?;
            if sources.iter().any(|known| known.name() == source.name) {
                return Err(format!("source `{base}` stands there twice"));
            }
            sources.push(Arc::new(source));
        }
        Ok(sources)
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    fn timed_out(&self) -> SourceError {
        SourceError::Timeout { ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Sends a request and waits for the head of its answer. Errors: also every status but success.
    async fn send(&self, request: RequestBuilder) -> Result<Response, SourceError> {
        let answer = tokio::time::timeout(self.timeout, request.send()).await.map_err(|_| self.timed_out())?;
        let answer = answer.map_err(|error| self.failure(&error))?;
        let status = answer.status().as_u16();
        if status == 429 || (status == 503 && answer.headers().contains_key(RETRY_AFTER)) {
            return Err(SourceError::Limited { retry_after_ms: retry_after_ms(answer.headers()) });
        }
        if !answer.status().is_success() {
            let body = self.read_small(answer).await.unwrap_or_default();
            return Err(SourceError::Status { status, detail: detail(&body) });
        }
        Ok(answer)
    }

    async fn read_small(&self, mut answer: Response) -> Result<Vec<u8>, SourceError> {
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|error| self.failure(&error))? {
                if body.len() + chunk.len() > JSON_BYTES_MAX {
                    return Err(SourceError::Malformed(format!("an answer of more than {JSON_BYTES_MAX} bytes")));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        tokio::time::timeout(self.timeout, read).await.map_err(|_| self.timed_out())?
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, SourceError> {
        self.read_json(path, self.send(self.client.get(self.url(path))).await?).await
    }

    async fn read_json<T: serde::de::DeserializeOwned>(&self, path: &str, answer: Response) -> Result<T, SourceError> {
        let body = self.read_small(answer).await?;
        serde_json::from_slice(&body)
            .map_err(|error| SourceError::Malformed(format!("{path} is not what a Tenon node answers: {error}")))
    }

    async fn read_range(&self, range: HeightRange, mut room: Reservation) -> Result<RangeAnswer, SourceError> {
        let started = Instant::now();
        let query = [("start", range.first), ("end", range.last)];
        let request = self.client.get(self.url("/rpc/blocks-range")).query(&query).header(ACCEPT, BLOCKS_MEDIA_TYPE);
        let mut answer = self.send(request).await?;
        let first_byte = started.elapsed();
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if media_type != BLOCKS_MEDIA_TYPE {
            let got: String = media_type.chars().take(80).collect();
            return Err(SourceError::Malformed(format!("blocks come as {BLOCKS_MEDIA_TYPE}, got `{got}`")));
        }
        let head = answer.headers().get(HEAD_HEADER).and_then(|value| parse_head(value.to_str().ok()?));
        let mut body = Vec::new();
        let mut scan = FrameScan::new(range.count());
        let announced = answer.content_length().unwrap_or(0).min(room.bytes());
        body.reserve_exact(usize::try_from(announced).unwrap_or(0));
        'read: loop {
            let chunk = tokio::time::timeout(self.timeout, answer.chunk()).await.map_err(|_| self.timed_out())?;
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) if error.is_timeout() => return Err(self.timed_out()),
                // The connection closed before the announced length.
                Err(_) => return Err(SourceError::Truncated { got: body.len() }),
            };
            for part in chunk.chunks(READ_BYTES) {
                body.extend_from_slice(part);
                scan.advance(&body)?;
                if room.grow(body.len() as u64) {
                    continue;
                }
                // No room for more: what is whole is a shorter answer, the rest is asked for later.
                if scan.whole() > 0 {
                    body.truncate(scan.whole());
                    break 'read;
                }
                if !room.may_exceed() {
                    return Err(SourceError::NoRoom { got: body.len() });
                }
                room.settle(body.len() as u64);
            }
            self.check_rate(body.len(), started.elapsed())?;
        }
        if scan.whole() < body.len() {
            return Err(SourceError::Truncated { got: body.len() });
        }
        room.settle(body.len() as u64);
        Ok(RangeAnswer { body, blocks: scan.count(), room, head, first_byte })
    }

    /// A source that sends a byte now and then keeps no request for ever.
    fn check_rate(&self, bytes: usize, elapsed: Duration) -> Result<(), SourceError> {
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = (bytes as u64).saturating_mul(1_000) / ms;
        if elapsed > self.timeout && rate < self.throughput_min {
            return Err(SourceError::Slow { rate, min: self.throughput_min });
        }
        Ok(())
    }

    fn failure(&self, error: &reqwest::Error) -> SourceError {
        if error.is_timeout() && !error.is_connect() {
            return self.timed_out();
        }
        // The innermost cause is what an operator can act on: "connection refused".
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        SourceError::Unreachable(cause.to_string().chars().take(200).collect())
    }
}

impl Source for HttpSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&self) -> BoxFuture<'_, Result<SourceInfo, SourceError>> {
        self.json("/rpc/info").boxed()
    }

    fn head(&self) -> BoxFuture<'_, Result<SourceHead, SourceError>> {
        async {
            let path = "/rpc/head";
            let answer = match self.send(self.client.get(self.url(path))).await {
                Err(SourceError::Status { status: 404, .. }) => return Ok(SourceHead::default()),
                answer => answer?,
            };
            let offer = answer.headers().get(SNAPSHOT_HEADER);
            let snapshot = offer.and_then(|value| parse_offer(value.to_str().ok()?));
            let HeadJson { height, hash } = self.read_json(path, answer).await?;
            Ok(SourceHead { head: Some((height, hash)), snapshot })
        }
        .boxed()
    }

    fn range(&self, range: HeightRange, room: Reservation) -> BoxFuture<'_, Result<RangeAnswer, SourceError>> {
        self.read_range(range, room).boxed()
    }

    fn submit<'a>(&'a self, chain_id: &'a str, pending: &'a Pending) -> BoxFuture<'a, Result<(), SourceError>> {
        async move {
            let body = pending.transaction.to_submission(chain_id);
            let request = self.client.post(self.url("/rpc/transaction")).header(CONTENT_TYPE, "application/json");
            self.send(request.body(body)).await.map(|_| ())
        }
        .boxed()
    }

    fn chunks(&self) -> Option<Arc<dyn ChunkSource>> {
        Some(Arc::new(HttpChunks::over(self.client.clone(), self.base.clone(), self.name.clone())))
    }
}

fn parse_head(value: &str) -> Option<(Height, Hash)> {
    let (height, hash) = value.split_once(' ')?;
    Some((height.parse().ok()?, hash.parse().ok()?))
}

/// Reads [`SNAPSHOT_HEADER`]; none where it is something else.
fn parse_offer(value: &str) -> Option<Offer> {
    let mut parts = value.split(' ');
    let offer = Offer {
        height: parts.next()?.parse().ok()?,
        id: parts.next()?.parse().ok()?,
        hash: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(offer)
}

/// Writes [`SNAPSHOT_HEADER`].
pub fn write_offer(offer: &Offer) -> String {
    format!("{} {} {}", offer.height, offer.id, offer.hash)
}

fn retry_after_ms(headers: &HeaderMap) -> u64 {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    seconds.unwrap_or(1).saturating_mul(1_000).min(RETRY_AFTER_MAX_MS)
}

/// What an error answer says: its `detail`, or its text.
fn detail(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let named = serde_json::from_str::<serde_json::Value>(&text).ok();
    let named = named.as_ref().and_then(|value| value["detail"].as_str()).unwrap_or(&text);
    named.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Kind, Payload, SecretKey, Submission, Transaction};

    #[test]
    fn an_address_that_is_no_base_is_refused_by_name() {
        let config = SyncConfig::default();
        for bad in ["", "10.0.0.1:8006", "ftp://a:1", "http://", "http://a:1?x=1", "http://a:1/#x"] {
            let error = HttpSource::new(bad, &config).err().unwrap();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
        let source = HttpSource::new("http://user:secret@a:1/base/", &config).unwrap();
        assert_eq!(source.name(), "http://a:1/base");
        assert_eq!(source.url("/rpc/head").as_str(), "http://user:secret@a:1/base/rpc/head");
        let twice = SyncConfig { sources: vec!["http://a:1".into(), "http://a:1/".into()], ..config };
        assert!(HttpSource::all(&twice).err().unwrap().contains("twice"));
    }

    #[test]
    fn an_offer_reads_back_and_anything_else_is_none() {
        let offer = Offer { id: Hash([7; 32]), height: 1_000, hash: Hash([9; 32]) };
        let text = write_offer(&offer);
        assert_eq!(parse_offer(&text), Some(offer));
        for wrong in ["", "1000", &text[..text.len() - 1], &format!("{text} 1"), &text.replacen("1000", "-1", 1)] {
            assert_eq!(parse_offer(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_transaction_handed_on_is_read_as_the_same_one() {
        let key = SecretKey::from_seed([3; 32]);
        let payloads = [
            Payload::Absent,
            Payload::Text("a \"quote\" and é".into()),
            Payload::object(r#"{"n": 1e2, "deep": [1.0, {"a": null}]}"#).unwrap(),
        ];
        for payload in payloads {
            for kind in [Kind::Unsaid, Kind::Transfer, Kind::Message] {
                let to = crate::chain::Address([7; 20]);
                let transaction = Transaction::new(kind, to, 0, u64::MAX, 1, payload.clone()).signed("c", &key);
                let read = Submission::parse(&transaction.to_submission("c")).unwrap();
                assert_eq!(read.into_transaction(None).unwrap(), transaction);
            }
        }
    }

    #[test]
    fn what_a_source_asks_for_is_bounded() {
        let header = |text: &str| HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        assert_eq!(retry_after_ms(&header("2")), 2_000);
        assert_eq!(retry_after_ms(&header("99999999999999999999")), 1_000);
        assert_eq!(retry_after_ms(&header("999999")), RETRY_AFTER_MAX_MS);
        assert_eq!(retry_after_ms(&HeaderMap::new()), 1_000);
    }
}

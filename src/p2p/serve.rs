//! Answers what peers ask: from the same readers as HTTP, under the same rate-limit policy, within a budget of bytes.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::codec::Answered;
use super::wire::{Answer, HeadRef, Request};
use crate::chain::{Hash, Height, Time, Transaction};
use crate::ledger::Ledger;
use crate::mempool::{Mempool, SubmitError};
use crate::rate_limit::{self, Callers, Class, Policy, Trust, Verdict};
use crate::storage::{BelowBase, Reader, StorageError};
use crate::sync::HeightRange;

/// Blocks in one range at most.
pub const RANGE_BLOCKS_MAX: u64 = 1_000;
/// Bytes of one range at most; a single block that is larger is still served.
pub const RANGE_BYTES_MAX: usize = 8 << 20;

/// Bytes in one permit of the budget.
const PERMIT_BYTES: usize = 1 << 10;

/// What a request costs in the rate limit: what the same costs over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// The number under which policies know the route.
    pub route: u32,
    /// Its class.
    pub class: Class,
    /// Units of every request.
    pub base: u64,
    /// Blocks for one unit more; 0: they are not counted.
    pub blocks_per_unit: u64,
}

/// The prices of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// Of a head.
    pub head: Price,
    /// Of a range.
    pub range: Price,
    /// Of a transaction.
    pub submit: Price,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Where from.
    pub ip: Option<IpAddr>,
    /// Whether the operator named it.
    pub configured: bool,
}

/// Answers requests.
pub struct Server {
    ledger: Ledger,
    mempool: Mempool,
    policy: Arc<dyn Policy>,
    callers: Callers,
    prices: Prices,
    budget: Arc<Semaphore>,
}

/// An answer, and the part of the budget that it holds until it is sent.
pub struct Served {
    /// The answer.
    pub answered: Answered,
    /// Given back when it is dropped.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Server {
    /// With `bytes_max` for ranges, at least [`RANGE_BYTES_MAX`].
    pub fn new(
        ledger: Ledger,
        mempool: Mempool,
        policy: Arc<dyn Policy>,
        callers: Callers,
        prices: Prices,
        bytes_max: u64,
    ) -> Self {
        let permits = usize::try_from(bytes_max).unwrap_or(usize::MAX).max(RANGE_BYTES_MAX) / PERMIT_BYTES;
        let budget = Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self { ledger, mempool, policy, callers, prices, budget }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request, asker: Asker) -> Served {
        let plain = |answer| Served { answered: Answered::plain(answer), permit: None };
        if let Err(refusal) = self.check(&request, asker) {
            return plain(refusal);
        }
        match request {
            Request::Head => plain(Answer::Head(self.head())),
            Request::Range(range) => self.range(range).await.unwrap_or_else(plain),
            Request::Submit(bytes) => plain(self.submit(&bytes).await),
        }
    }

    /// The node's head.
    pub fn head(&self) -> HeadRef {
        let head = self.ledger.head();
        (head.height, head.hash)
    }

    /// What the policy says.
    fn check(&self, request: &Request, asker: Asker) -> Result<(), Answer> {
        let (price, blocks) = match request {
            Request::Head => (self.prices.head, 0),
            Request::Range(range) => (self.prices.range, range.count()),
            Request::Submit(_) => (self.prices.submit, 0),
        };
        let caller = asker.ip.map(|ip| self.callers.at(ip));
        let trust = match caller.map_or(Trust::Public, |caller| caller.trust) {
            // Its key says who it is, wherever it calls from.
            Trust::Public if asker.configured => Trust::Peer,
            trust => trust,
        };
        let request = rate_limit::Request {
            client: caller.map_or(0, |caller| caller.client),
            route: price.route,
            class: price.class,
            trust,
            cost: price.base.saturating_add(blocks.checked_div(price.blocks_per_unit).unwrap_or(0)).max(1),
            now: Time::now().0,
        };
        match self.policy.check(&request) {
            Verdict::Allow { .. } | Verdict::Pass => Ok(()),
            Verdict::Throttle { retry_after_ms, .. } => {
                let retry_after_ms = u32::try_from(retry_after_ms).unwrap_or(u32::MAX).max(1);
                Err(Answer::Limited { retry_after_ms })
            }
            Verdict::Deny(rate_limit::Denial::Forbidden) => Err(refused(403, "requests of this class are not for you")),
            Verdict::Deny(rate_limit::Denial::TooExpensive) => {
                Err(refused(413, "this request costs more than you can ever have; ask for less"))
            }
        }
    }

    async fn range(&self, range: HeightRange) -> Result<Served, Answer> {
        if range.count() > RANGE_BLOCKS_MAX {
            return Err(refused(400, &format!("at most {RANGE_BLOCKS_MAX} blocks in one range")));
        }
        // Before it is read nobody knows how large it is.
        let most = u32::try_from(RANGE_BYTES_MAX / PERMIT_BYTES).expect("some thousands");
        let mut permit = Arc::clone(&self.budget).acquire_many_owned(most).await.expect("never closed");
        // Taken before the blocks are read: what is said to be there is there.
        let head = self.head();
        let read = framed(&self.ledger, range.first, range.last.min(head.0)).await;
        let body = read.map_err(|error| {
            tracing::error!(%error, "a range could not be read for a peer");
            refused(500, "internal error")
        })?;
        let body = body.map_err(|below| refused(404, &below.to_string()))?;
        let held = (body.len() / PERMIT_BYTES + 1).min(permit.num_permits());
        let held = permit.split(held).expect("no more than there are");
        Ok(Served { answered: Answered::blocks(head, body), permit: Some(held) })
    }

    async fn submit(&self, bytes: &[u8]) -> Answer {
        let transaction = match Transaction::from_bytes(bytes) {
            Ok(transaction) => transaction,
            Err(error) => return refused(400, &error.to_string()),
        };
        match self.mempool.submit_transaction(transaction).await {
            Ok(hash) => Answer::Submitted(hash),
            Err(error) => submit_refused(&error),
        }
    }
}

async fn framed(ledger: &Ledger, first: Height, last: Height) -> Result<Result<Vec<u8>, BelowBase>, StorageError> {
    if last < first {
        return Ok(Ok(Vec::new()));
    }
    let read = move |reader: &Reader<'_>| reader.framed_blocks(first, last, RANGE_BYTES_MAX);
    Ok(ledger.storage().read_async(read).await?.map(|frames| frames.body))
}

fn refused(status: u16, reason: &str) -> Answer {
    Answer::Refused { status, reason: reason.to_owned() }
}

fn submit_refused(error: &SubmitError) -> Answer {
    match error {
        SubmitError::Full { .. } | SubmitError::SenderFull { .. } => Answer::Limited { retry_after_ms: 1_000 },
        SubmitError::Storage(error) => {
            tracing::error!(%error, "a transaction could not be kept");
            refused(500, "internal error")
        }
        error => refused(400, &error.to_string()),
    }
}

/// The first words of this node.
pub fn hello(ledger: &Ledger, node_id: &str) -> super::wire::Hello {
    let head = ledger.head();
    super::wire::Hello {
        genesis_hash: ledger.genesis_hash(),
        chain_id: ledger.genesis().chain_id.clone(),
        node_id: node_id.to_owned(),
        head: (head.height, head.hash),
    }
}

/// Why a peer with these first words is none of ours; nothing where it is.
pub fn foreign(theirs: &super::wire::Hello, ours_id: &str, ours: &Hash) -> Option<String> {
    (theirs.genesis_hash != *ours || theirs.chain_id != ours_id).then(|| {
        let chain: String = theirs.chain_id.chars().filter(|character| !character.is_control()).collect();
        format!("is on chain `{chain}` with genesis {}, this node is on `{ours_id}` with {ours}", theirs.genesis_hash)
    })
}

//! What is made of messages that peers push: a first look, cheap enough for the task that owns the swarm, and then a
//! worker for each topic, which says whether a message goes on, and takes in what is good.
//!
//! | a block that | goes on | is taken in | costs its sender |
//! |---|---|---|---|
//! | is malformed, not by the authority whose turn it was, or breaks a rule | no | no | yes |
//! | builds on our head | yes | yes | no |
//! | builds on one that is not here, or has a rival here | no | sync is told that its sender has it | no |
//! | is known, old, or ahead of our clock | no | no | no |
//!
//! A transaction goes on when the mempool takes it; it costs its sender when it is wrong whatever the state of the
//! chain.

use std::sync::Arc;
use std::time::Instant;

use libp2p::PeerId;
use libp2p::gossipsub::{MessageAcceptance, MessageId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::gossip::Topic;
use super::handle::{Command, Commands};
use super::recent::{Recent, Way};
use super::wire::HeadRef;
use crate::chain::{Block, BlockError, Genesis, Hash, Head, Header, Time, Transaction, VerifiedBlock, rules, verify};
use crate::ledger::{ImportError, Ledger};
use crate::mempool::{Mempool, SubmitError};
use crate::telemetry;

/// Blocks that wait to be judged; more are not looked at.
pub const BLOCKS_WAITING_MAX: usize = 16;

/// Transactions that wait to be judged; more are not looked at.
pub const TRANSACTIONS_WAITING_MAX: usize = 4_096;

/// Transactions that are judged at a time: what waits for a commit goes into one.
const TRANSACTIONS_AT_ONCE: usize = 256;

/// How far ahead of our clock a block may be that is just early, beyond its slot: after that its sender has no clock.
const EARLY_MS: u64 = 60_000;

/// A block that has passed the first look.
pub struct IncomingBlock {
    /// The message.
    pub id: MessageId,
    /// Who pushed it.
    pub from: PeerId,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its header, which the authority whose turn it was has signed.
    pub header: Header,
    /// Its hash.
    pub hash: Hash,
}

/// A transaction that nobody has looked at.
pub struct IncomingTransaction {
    /// The message.
    pub id: MessageId,
    /// Who pushed it.
    pub from: PeerId,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Good, and new: it goes on.
    Accept,
    /// Of no use here; nobody is to blame.
    Ignore(&'static str),
    /// Wrong, and its sender should have seen that.
    Reject(String),
}

impl Verdict {
    /// As gossip takes it.
    pub fn acceptance(&self) -> MessageAcceptance {
        match self {
            Self::Accept => MessageAcceptance::Accept,
            Self::Ignore(_) => MessageAcceptance::Ignore,
            Self::Reject(_) => MessageAcceptance::Reject,
        }
    }

    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accept => "accepted",
            Self::Ignore(_) => "ignored",
            Self::Reject(_) => "rejected",
        }
    }
}

/// Where a block with a good header stands, seen from our head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On top of our head.
    Next,
    /// Blocks below it are not here, or others are.
    Elsewhere,
    /// At or below our head.
    Old,
}

/// The header of a block that came as `bytes`, and its hash. Errors: not a header that the authority whose turn it was
/// has signed, or one ahead of the clock.
pub fn first_look(bytes: &[u8], genesis: &Genesis, now: Time) -> Result<(Header, Hash), Verdict> {
    let (header, signature) = Header::decode_start(bytes).map_err(|error| Verdict::Reject(error.to_string()))?;
    let hash =
        verify::verify_header(&header, &signature, genesis).map_err(|error| Verdict::Reject(error.to_string()))?;
    let latest = now.plus_ms(genesis.slot_ms);
    if header.timestamp > latest.plus_ms(EARLY_MS) {
        let error = BlockError::InFuture { now, got: header.timestamp };
        return Err(Verdict::Reject(error.to_string()));
    }
    if header.timestamp > latest {
        return Err(Verdict::Ignore("ahead of our clock"));
    }
    Ok((header, hash))
}

/// Where a block stands.
pub fn place(header: &Header, head: &Head) -> Place {
    if header.height <= head.height {
        Place::Old
    } else if header.height == head.height + 1 && header.parent_hash == head.hash {
        Place::Next
    } else {
        Place::Elsewhere
    }
}

/// Checks all of a block that builds on `head` but what only its execution shows. Errors: what is made of it then.
pub fn check(bytes: &[u8], head: &Head, genesis: &Genesis, now: Time) -> Result<VerifiedBlock, Verdict> {
    let reject = |error: &dyn std::fmt::Display| Verdict::Reject(error.to_string());
    let block = Block::decode(bytes).map_err(|error| reject(&error))?;
    rules::check_child(head, &block.header, genesis, now).map_err(|error| match error {
        // The clock may have been set back since the first look.
        BlockError::InFuture { .. } => Verdict::Ignore("ahead of our clock"),
        error => reject(&error),
    })?;
    verify::verify(block, genesis).map_err(|error| reject(&error))
}

/// Judges blocks and takes in the good ones, one after the other, until `stop` says true.
pub(super) async fn blocks(
    ledger: Ledger,
    recent: Arc<Recent>,
    commands: Commands,
    mut incoming: mpsc::Receiver<IncomingBlock>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let message = tokio::select! {
            message = incoming.recv() => message,
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let Some(message) = message else { return };
        let IncomingBlock { id, from, bytes, header, hash } = message;
        let head = ledger.head();
        let shown: HeadRef = (header.height, hash);
        let (verdict, verified) = match place(&header, &head) {
            Place::Next => {
                let (genesis, now) = (Arc::clone(ledger.genesis()), ledger.clock().now());
                let checked = tokio::task::spawn_blocking(move || check(&bytes, &head, &genesis, now)).await;
                match checked {
                    Ok(Ok(verified)) => (Verdict::Accept, Some(verified)),
                    Ok(Err(verdict)) => (verdict, None),
                    Err(error) => {
                        tracing::error!(%error, "a block could not be checked");
                        (Verdict::Ignore("could not be checked"), None)
                    }
                }
            }
            Place::Elsewhere => (Verdict::Ignore("does not build on our head"), None),
            Place::Old => (Verdict::Ignore("at or below our head"), None),
        };
        if let Verdict::Reject(reason) = &verdict {
            tracing::warn!(%from, height = header.height, reason, "a peer pushed a block that is not valid");
        }
        // Whoever passes a block on has its parent, and will have the block as soon as we.
        let wrong = matches!(verdict, Verdict::Reject(_));
        let head = (verified.is_none() && !wrong).then_some(shown);
        let judge = judged(id, from, Topic::Blocks, &verdict, head);
        if commands.tell(judge).await.is_err() {
            return;
        }
        let Some(verified) = verified else { continue };
        // Before it is the head, or it would be published as ours.
        recent.insert(hash, Way::In, Instant::now());
        match ledger.import(vec![verified]).await.pop().expect("one block in, one answer out") {
            Ok(_) => {}
            Err(ImportError::Stopped) => return,
            // Sync or an operator was faster, with this block or another one; sync finds out which.
            Err(error @ (ImportError::Conflict { .. } | ImportError::Gap { .. })) => {
                tracing::debug!(height = header.height, %error, "the chain has moved on meanwhile");
            }
            Err(error) => {
                metrics::counter!(telemetry::P2P_IMPORTS_FAILED).increment(1);
                tracing::error!(height = header.height, %hash, %error, "a block of an authority cannot be executed");
                continue;
            }
        }
        if commands.tell(Command::Shown { peer: from, head: shown }).await.is_err() {
            return;
        }
    }
}

/// Judges transactions, many at a time, until `stop` says true; the mempool keeps the good ones.
pub(super) async fn transactions(
    mempool: Mempool,
    chain_id: String,
    recent: Arc<Recent>,
    commands: Commands,
    mut incoming: mpsc::Receiver<IncomingTransaction>,
    mut stop: watch::Receiver<bool>,
) {
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            message = incoming.recv(), if under_way.len() < TRANSACTIONS_AT_ONCE => {
                let Some(message) = message else { return };
                let (mempool, recent, commands) = (mempool.clone(), Arc::clone(&recent), commands.clone());
                let chain_id = chain_id.clone();
                under_way.spawn(async move {
                    let verdict = judge_transaction(&mempool, &chain_id, &recent, &message.bytes).await;
                    if let Verdict::Reject(reason) = &verdict {
                        tracing::debug!(from = %message.from, reason, "a peer pushed a transaction that is not valid");
                    }
                    // An error means that the node is stopping.
                    let _ = commands.tell(judged(message.id, message.from, Topic::Transactions, &verdict, None)).await;
                });
            }
            Some(ended) = under_way.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a transaction could not be judged");
                }
            }
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn judge_transaction(mempool: &Mempool, chain_id: &str, recent: &Recent, bytes: &[u8]) -> Verdict {
    let transaction = match Transaction::from_bytes(bytes) {
        Ok(transaction) => transaction,
        Err(error) => return Verdict::Reject(error.to_string()),
    };
    let hash = transaction.hash(chain_id);
    // Before the mempool tells of it, or it would be published as ours.
    let fresh = recent.insert(hash, Way::In, Instant::now());
    match mempool.submit_transaction(transaction).await {
        Ok(_) => Verdict::Accept,
        Err(error) => {
            if fresh {
                recent.remove(&hash);
            }
            verdict_on(&error)
        }
    }
}

/// What the mempool's refusal says of whoever pushed the transaction.
fn verdict_on(error: &SubmitError) -> Verdict {
    match error {
        error if error.is_for_good() => Verdict::Reject(error.to_string()),
        SubmitError::Storage(error) => {
            tracing::error!(%error, "a transaction could not be kept");
            Verdict::Ignore("could not be kept")
        }
        SubmitError::Full { .. } | SubmitError::SenderFull { .. } => Verdict::Ignore("no room in the mempool"),
        _ => Verdict::Ignore("cannot happen now"),
    }
}

/// The command that tells gossip.
fn judged(id: MessageId, from: PeerId, topic: Topic, verdict: &Verdict, head: Option<HeadRef>) -> Command {
    metrics::counter!(telemetry::P2P_MESSAGES_IN, "topic" => topic.name(), "verdict" => verdict.name()).increment(1);
    Command::Judge { id, from, acceptance: verdict.acceptance(), head }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::TransactionError;
    use crate::sample::Sample;
    use proptest::prelude::*;

    fn bytes(block: &Block) -> Vec<u8> {
        let mut bytes = Vec::new();
        block.encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_block_is_placed_by_its_parent() {
        let mut sample = Sample::new(1, 3);
        let genesis = Head::from(&sample.genesis().block().header);
        let blocks = sample.blocks(3, 1);
        let heads: Vec<Head> = blocks.iter().map(|block| Head::from(&block.header)).collect();
        assert_eq!(place(&blocks[0].header, &genesis), Place::Next);
        assert_eq!(place(&blocks[1].header, &genesis), Place::Elsewhere);
        assert_eq!(place(&blocks[1].header, &heads[0]), Place::Next);
        assert_eq!(place(&blocks[1].header, &heads[1]), Place::Old);
        assert_eq!(place(&blocks[1].header, &heads[2]), Place::Old);
        let mut rival = blocks[1].header.clone();
        rival.parent_hash = Hash::ZERO;
        assert_eq!(place(&rival, &heads[0]), Place::Elsewhere);
    }

    #[test]
    fn the_first_look_sees_who_signed_and_when() {
        let mut sample = Sample::new(1, 3);
        let genesis = Arc::clone(sample.genesis());
        let block = sample.blocks(1, 3).remove(0);
        let at = |ms: u64| Time(block.header.timestamp.0 - ms * 1_000);
        let look = |block: &Block, now| first_look(&bytes(block), &genesis, now).map(|(_, hash)| hash);
        assert_eq!(look(&block, at(0)), Ok(block.hash()));
        assert_eq!(look(&block, at(2_000)), Ok(block.hash()), "one slot ahead");
        assert_eq!(look(&block, at(2_001)), Err(Verdict::Ignore("ahead of our clock")));
        assert_eq!(look(&block, at(62_000)), Err(Verdict::Ignore("ahead of our clock")));
        assert!(matches!(look(&block, at(62_001)), Err(Verdict::Reject(_))));
        let mut forged = block.clone();
        forged.signature.0[3] ^= 1;
        assert_eq!(look(&forged, at(0)), Err(Verdict::Reject(BlockError::Signature.to_string())));
        let other = Sample::new(2, 3).blocks(1, 0).remove(0);
        assert!(matches!(look(&other, at(0)), Err(Verdict::Reject(_))), "another chain's");
    }

    #[test]
    fn a_good_header_does_not_make_a_good_block() {
        let mut sample = Sample::new(1, 3);
        let genesis = Arc::clone(sample.genesis());
        let head = Head::from(&genesis.block().header);
        let block = sample.blocks(1, 3).remove(0);
        let check = |block: &Block| check(&bytes(block), &head, &genesis, Time::now());
        assert_eq!(check(&block).unwrap().hash(), block.hash());
        let mut without = block.clone();
        without.transactions.pop();
        assert!(matches!(check(&without), Err(Verdict::Reject(_))));
        let mut forged = block.clone();
        forged.transactions[1].signature.0[0] ^= 1;
        assert!(matches!(check(&forged), Err(Verdict::Reject(_))));
        let mut early = block.header.clone();
        early.timestamp = head.timestamp;
        let early = Block::signed(early, block.transactions.clone(), sample.authority());
        assert!(matches!(check(&early), Err(Verdict::Reject(_))));
    }

    #[test]
    fn only_what_is_wrong_for_good_costs_its_sender() {
        let from = crate::chain::Address([1; 20]);
        let wrong = [
            SubmitError::Signature("it does not verify"),
            SubmitError::Payload { got: 9, max: 8 },
            SubmitError::Transaction(TransactionError::FeeTooLow { got: 0, min: 1 }),
            SubmitError::Transaction(TransactionError::MessageAmount(1)),
            SubmitError::Transaction(TransactionError::NonceExhausted(u64::MAX)),
        ];
        let unlucky = [
            SubmitError::Transaction(TransactionError::NonceTooLow { from, got: 0, lowest: 1 }),
            SubmitError::Transaction(TransactionError::NonceNotNext { from, got: 5, next: 1 }),
            SubmitError::Transaction(TransactionError::Insufficient { from, balance: 0, needed: 1 }),
            SubmitError::Confirmed { hash: Hash::ZERO, height: 3 },
            SubmitError::NonceTaken { pending: Hash::ZERO, nonce: 1 },
            SubmitError::SenderFull { max: 1 },
            SubmitError::Full { max: 1 },
        ];
        assert!(wrong.iter().all(|error| verdict_on(error).name() == "rejected"));
        assert!(unlucky.iter().all(|error| verdict_on(error).name() == "ignored"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The authority signs the header and the header commits to the transactions: every changed byte shows.
        #[test]
        fn a_block_with_one_changed_byte_is_never_accepted(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let mut sample = Sample::new(1, 3);
            let genesis = Arc::clone(sample.genesis());
            let head = Head::from(&genesis.block().header);
            let mut bytes = bytes(&sample.blocks(1, 3)[0]);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let now = Time::now();
            let accepted = first_look(&bytes, &genesis, now).is_ok_and(|(header, _)| {
                place(&header, &head) == Place::Next && check(&bytes, &head, &genesis, now).is_ok()
            });
            prop_assert!(!accepted);
        }

        #[test]
        fn any_bytes_are_looked_at_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let genesis = crate::sample::genesis(1, 1);
            prop_assert!(first_look(&bytes, &genesis, Time::now()).is_err());
        }
    }
}

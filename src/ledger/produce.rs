//! A block of our own: chosen from the candidates, and checked as anybody else's.

use super::group::Group;
use super::thread::Thread;
use super::{ProduceError, ProduceRequest, Produced};
use crate::chain::execute::Execution;
use crate::chain::{
    Address, Block, Change, Hash, Header, Time, Transaction, TransactionError, format, merkle, rules, verify,
};
use crate::storage::{StorageError, Writer};

impl Thread {
    /// Makes a block and puts it on top of the head. Errors: the database's; the group is lost.
    pub fn produce(
        &mut self,
        request: ProduceRequest,
        group: &mut Group,
    ) -> Result<Result<Produced, ProduceError>, StorageError> {
        let ProduceRequest { candidates, key, now, allow_empty } = request;
        // Two blocks within a microsecond still need different times, also when one of them was taken back.
        let signed = self.signed.unwrap_or_default();
        let timestamp = Time(now.0.max(self.head.timestamp.0 + 1).max(signed.0 + 1));
        let proposer = Address::of(&key.public_key());
        let turn = self.genesis.authority_at(timestamp).address;
        if turn != proposer {
            return Ok(Err(ProduceError::NotOurTurn(turn)));
        }
        let slot = self.genesis.slot(timestamp);
        let used = |time| slot <= self.genesis.slot(time);
        let several = self.genesis.authorities.len() > 1;
        if several && (self.signed.is_some_and(used) || self.head.height > 0 && used(self.head.timestamp)) {
            return Ok(Err(ProduceError::SlotUsed(slot)));
        }
        let (transactions, hashes, changes, dropped) = self.choose(candidates);
        if transactions.is_empty() && !allow_empty {
            return Ok(Ok(Produced { head: None, dropped }));
        }
        let leaves: Vec<_> = transactions
            .iter()
            .zip(&hashes)
            .map(|(transaction, hash)| format::transaction_leaf(hash, transaction))
            .collect();
        self.state.apply(&changes);
        let header = Header {
            version: format::VERSION,
            chain_id: self.genesis.chain_id.clone(),
            height: self.head.height + 1,
            parent_hash: self.head.hash,
            timestamp,
            proposer,
            tx_count: u32::try_from(transactions.len()).expect("at most block_txs_max"),
            tx_root: merkle::root(&leaves),
            state_root: self.state.root(),
        };
        // A block of our own passes the same checks as anybody else's, before it is stored.
        let valid = rules::check_child(&self.head, &header, &self.genesis, now)
            .and_then(|()| verify::verify(Block::signed(header, transactions, &key), &self.genesis));
        match valid {
            Ok(verified) => {
                self.store(verified, changes, group)?;
                // Durable with the block: whatever becomes of it, nothing else is ever signed for its slot.
                Writer::of(&self.connection).put_signed(timestamp)?;
                self.signed = Some(timestamp);
                Ok(Ok(Produced { head: Some(self.head.clone()), dropped }))
            }
            Err(error) => {
                self.state.revert(&changes);
                Ok(Err(error.into()))
            }
        }
    }

    /// Those candidates that can happen one after the other, as many as a block holds; what they change; and the others,
    /// with their reasons. One that no longer fits waits for the next block.
    #[expect(clippy::type_complexity, reason = "four parts of one block, taken apart at once by the only caller")]
    fn choose(
        &self,
        candidates: Vec<(Transaction, Hash)>,
    ) -> (Vec<Transaction>, Vec<Hash>, Vec<Change>, Vec<(Hash, TransactionError)>) {
        let mut execution = Execution::new(&self.state, &self.genesis);
        let (mut transactions, mut hashes, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut waiting: Vec<_> = (0_usize..).zip(candidates).collect();
        // What one spends may come with another that pays less and so stands behind it: who is short is tried once more.
        for last in [false, true] {
            let mut short = Vec::new();
            for (place, (transaction, hash)) in waiting {
                let size = verify::block_share(&transaction);
                if transactions.len() >= self.genesis.block_txs_max as usize {
                    break;
                }
                if bytes + size > self.genesis.block_bytes_max as usize {
                    continue;
                }
                match execution.apply(&transaction) {
                    Ok(()) => {
                        bytes += size;
                        transactions.push(transaction);
                        hashes.push(hash);
                    }
                    Err(TransactionError::Insufficient { .. }) if !last => short.push((place, (transaction, hash))),
                    Err(error) => dropped.push((place, hash, error)),
                }
            }
            waiting = short;
        }
        dropped.sort_unstable_by_key(|(place, ..)| *place);
        let dropped = dropped.into_iter().map(|(_, hash, error)| (hash, error)).collect();
        (transactions, hashes, execution.into_changes(), dropped)
    }
}

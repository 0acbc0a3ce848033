//! The accounts, made anew from the blocks: for a switch that goes back further than the undo records, and for repairing
//! a database whose accounts are damaged.

use std::collections::{BTreeMap, VecDeque};

use super::LedgerOptions;
use crate::chain::{Address, Block, Change, Genesis, Hash, Head, Height, PublicKey, State, execute, verify};
use crate::storage::{Reader, StorageError, UNDO_DEPTH, WriteConnection, Writer};

/// What the blocks up to one of them make.
pub(super) struct Rebuilt {
    pub state: State,
    pub head: Head,
    keys: BTreeMap<Address, PublicKey>,
    /// What the last blocks changed, the lowest first.
    changes: VecDeque<(Height, Vec<Change>)>,
}

/// Executes the stored blocks from genesis up to `last`. Signatures are not checked again: the blocks were verified when
/// they came in. Errors: the lowest block that is missing, does not follow its parent, or does not make its state root.
pub(super) fn rebuild(reader: &Reader<'_>, genesis: &Genesis, last: Height) -> Result<Rebuilt, StorageError> {
    let mut rebuilt = Rebuilt {
        state: genesis.state(),
        head: Head::from(&genesis.block().header),
        keys: genesis.known_keys(),
        changes: VecDeque::new(),
    };
    let mut outcome = Ok(());
    reader.each_encoded_block(1, last, |body| {
        let height = rebuilt.head.height + 1;
        let damaged = |error| StorageError::Damaged { what: format!("block {height}"), error };
        outcome = Block::decode(body).map_err(damaged).and_then(|block| rebuilt.add(block, genesis));
        outcome.is_ok()
    })?;
    outcome?;
    if rebuilt.head.height != last {
        return Err(StorageError::Inconsistent(format!("block {} is not there", rebuilt.head.height + 1)));
    }
    Ok(rebuilt)
}

impl Rebuilt {
    fn add(&mut self, block: Block, genesis: &Genesis) -> Result<(), StorageError> {
        let (header, height) = (&block.header, self.head.height + 1);
        let wrong = |what: String| Err(StorageError::Inconsistent(format!("block {height} {what}")));
        if header.height != height || header.parent_hash != self.head.hash {
            return wrong(format!("does not follow block {}, {}", self.head.height, self.head.hash));
        }
        let changes = match execute::execute(&self.state, genesis, &block.transactions) {
            Ok(changes) => changes,
            Err((index, error)) => return wrong(format!("has a transaction {index} that cannot happen: {error}")),
        };
        self.state.apply(&changes);
        let root = self.state.root();
        if root != header.state_root {
            return wrong(format!("says the state root {}, its transactions make {root}", header.state_root));
        }
        for transaction in &block.transactions {
            self.keys.entry(transaction.from()).or_insert(transaction.public_key);
        }
        self.head = Head::from(header);
        self.changes.push_back((height, changes));
        if self.changes.len() as u64 > UNDO_DEPTH {
            self.changes.pop_front();
        }
        Ok(())
    }

    /// Puts accounts and undo records in the place of those that are stored.
    pub fn store(&self, writer: &Writer<'_>) -> Result<(), StorageError> {
        writer.replace_accounts(self.state.accounts(), &self.keys)?;
        writer.replace_undo(self.changes.iter().map(|(height, changes)| (*height, &changes[..])))
    }
}

/// Makes the accounts and undo records of a database that no ledger has open anew from its blocks, in one transaction.
/// Answers the head, whose state root the accounts make then.
///
/// Errors: the database is another chain's, in use, or a block is damaged; then nothing has changed. Takes as long as
/// executing every block once; memory for one block at a time and all accounts.
pub fn rebuild_accounts(options: &LedgerOptions) -> Result<Head, StorageError> {
    let genesis_hash: Hash = verify::genesis_block(&options.genesis).hash();
    let (connection, _storage) = WriteConnection::open(&options.path, &genesis_hash)?;
    let rebuilt = {
        let writer = connection.begin()?;
        let head = writer.reader().head()?;
        let head = head.ok_or_else(|| StorageError::Inconsistent("there are no blocks".into()))?;
        let rebuilt = rebuild(&writer.reader(), &options.genesis, head.height)?;
        rebuilt.store(&writer)?;
        rebuilt
    };
    connection.commit()?;
    Ok(rebuilt.head)
}

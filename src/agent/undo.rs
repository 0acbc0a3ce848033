//! What a reorg means for agents: a message is handled once, on whichever branch it comes first and however often the
//! chain moves.
//!
//! What an agent has done stays done: its memory, its timers and its replies outlive the block that caused them. What it
//! has not done yet is taken back with the block, and comes again where the message does. Which messages of a block an
//! agent has handled need not be written down while the block is there: all that concern it up to its place in the chain,
//! but for those that wait or are set aside. Only when the block is taken back are they remembered by their hashes, until a
//! block holds them again, or none can.
//!
//! A reply goes back into the outbox with the block that held it. One that had to be signed again on one branch, since its
//! nonce was used there, cannot be recalled where the chain goes back to the other.

use std::collections::HashMap;

use super::dispatcher::concerns;
use crate::chain::{Hash, Height, State};
use crate::storage::{AgentId, HandledMessage, StorageError, TakenBlock, UNDO_DEPTH, Writer};

/// Messages that are remembered for one agent at most.
const HANDLED_MAX: usize = 65_536;

/// How often, in blocks, it is looked for remembered messages that cannot come again.
const PRUNE_EVERY: u64 = 64;

/// The messages that an agent has handled and that no block holds now; none but after a reorg.
#[derive(Default)]
pub(super) struct Handled(HashMap<Hash, HandledMessage>);

/// Takes a block back for every agent that the database knows, configured or not.
pub(super) fn undo(writer: &Writer<'_>, block: &TakenBlock) -> Result<(), StorageError> {
    let (reader, height, time) = (writer.reader(), block.height(), block.block.header.timestamp);
    for agent in reader.agents_beyond(height)? {
        let open = reader.open_messages(agent.id, height)?;
        let (mut skipped, mut handled) = (0, 0);
        for ((position, transaction), hash) in (0..).zip(&block.block.transactions).zip(&block.transaction_hashes) {
            match concerns(agent.since, &agent.wallet, transaction, time) {
                None => {}
                Some(false) => skipped += 1,
                Some(true) if open.contains(&position) => {}
                Some(true) => {
                    let message = HandledMessage { sender: transaction.from(), nonce: transaction.nonce, passed: None };
                    writer.put_handled(agent.id, hash, &message)?;
                    handled += 1;
                }
            }
        }
        writer.set_agent_back(agent.id, height, skipped)?;
        let forgotten = if handled > 0 { writer.trim_handled(agent.id, HANDLED_MAX)? } else { 0 };
        if forgotten > 0 {
            tracing::warn!(forgotten, wallet = %agent.wallet, "too many handled messages were taken off the chain");
        }
    }
    writer.unpass_handled(height)?;
    writer.unsettle_outgoing(height, time)
}

impl Handled {
    pub fn new(messages: HashMap<Hash, HandledMessage>) -> Self {
        Self(messages)
    }

    /// Whether the agent has handled the message `hash`, which a block at hand has. From now on its place in the chain
    /// says so.
    pub fn take(&mut self, writer: &Writer<'_>, agent: AgentId, hash: &Hash) -> Result<bool, StorageError> {
        if self.0.is_empty() || self.0.remove(hash).is_none() {
            return Ok(false);
        }
        writer.take_handled(agent, hash)?;
        Ok(true)
    }

    /// Forgets what no block can ever hold: the sender's nonce is beyond it, and has been for as many blocks as can be
    /// undone.
    pub fn prune(
        &mut self,
        writer: &Writer<'_>,
        agent: AgentId,
        height: Height,
        state: &State,
    ) -> Result<(), StorageError> {
        if self.0.is_empty() || !height.is_multiple_of(PRUNE_EVERY) {
            return Ok(());
        }
        let mut over = Vec::new();
        for (hash, message) in &mut self.0 {
            match message.passed {
                Some(passed) if height - passed > UNDO_DEPTH => over.push(*hash),
                Some(_) => {}
                None if state.account(&message.sender).is_some_and(|account| account.nonce > message.nonce) => {
                    message.passed = Some(height);
                    writer.put_handled(agent, hash, message)?;
                }
                None => {}
            }
        }
        for hash in over {
            self.0.remove(&hash);
            writer.take_handled(agent, &hash)?;
        }
        Ok(())
    }
}

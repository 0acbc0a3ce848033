//! From [`Block`] to [`VerifiedBlock`]: all that can be checked of a block without its parent, off the ordered path and
//! on every core. Signatures of many blocks are checked in one batch, which costs a third of checking them singly.

use super::{Block, BlockError, Genesis, Hash, Header, Signature, Transaction, VerifiedBlock, format, merkle, rules};
use ed25519_zebra::batch;

/// Signatures in one batch; larger ones gain nothing more.
const BATCH_MAX: usize = 512;

/// Checks one block. Errors: the first rule broken.
pub fn verify(block: Block, genesis: &Genesis) -> Result<VerifiedBlock, BlockError> {
    verify_all(vec![block], genesis).pop().expect("one block in, one answer out")
}

/// Checks a header alone: that it is of this chain, and made by the authority whose turn it was. Cheap, and says nothing
/// of the transactions. Answers the block's hash.
pub fn verify_header(header: &Header, signature: &Signature, genesis: &Genesis) -> Result<Hash, BlockError> {
    rules::check_header(header, genesis)?;
    let hash = header.hash();
    check_proposal(header, &hash, signature, genesis)?;
    Ok(hash)
}

/// Whether the authority whose turn it was has signed the block with this hash.
fn check_proposal(header: &Header, hash: &Hash, signature: &Signature, genesis: &Genesis) -> Result<(), BlockError> {
    let authority = genesis.authority_at(header.timestamp);
    let signed = authority.public_key.verifies(&format::proposal(hash), signature);
    if signed { Ok(()) } else { Err(BlockError::Signature) }
}

/// Checks many blocks; answers in their order. The signatures are checked together, in batches; where a batch does not
/// hold, each of its blocks is checked singly, so a bad block spoils no other.
pub fn verify_all(blocks: Vec<Block>, genesis: &Genesis) -> Vec<Result<VerifiedBlock, BlockError>> {
    let mut answers = Vec::with_capacity(blocks.len());
    let mut batch = Batch::default();
    for block in blocks {
        match check_form(block, genesis) {
            Ok(form) => batch.add(answers.len(), form, genesis, &mut answers),
            Err(error) => answers.push(Err(error)),
        }
    }
    batch.finish(genesis, &mut answers);
    answers
}

/// As [`verify_all`], but every signature singly: the measure that batches are held against.
pub fn verify_singly(blocks: Vec<Block>, genesis: &Genesis) -> Vec<Result<VerifiedBlock, BlockError>> {
    let single = |block| check_form(block, genesis).and_then(|form| check_signatures(form, genesis));
    blocks.into_iter().map(single).collect()
}

/// A block that is well formed, with the texts that its signatures are over.
struct Form {
    verified: VerifiedBlock,
    texts: Vec<String>,
}

/// Everything but the signatures.
fn check_form(block: Block, genesis: &Genesis) -> Result<Form, BlockError> {
    rules::check_header(&block.header, genesis)?;
    if block.header.tx_count as usize != block.transactions.len() {
        return Err(BlockError::TxCount { expected: block.transactions.len(), got: block.header.tx_count });
    }
    let bytes: usize = block.transactions.iter().map(block_share).sum();
    if bytes > genesis.block_bytes_max as usize {
        return Err(BlockError::TooLarge { field: "block", got: bytes, max: genesis.block_bytes_max });
    }
    let mut texts = Vec::with_capacity(block.transactions.len());
    let mut transaction_hashes = Vec::with_capacity(block.transactions.len());
    let mut leaves = Vec::with_capacity(block.transactions.len());
    for (index, transaction) in block.transactions.iter().enumerate() {
        transaction
            .public_key
            .check_order()
            .map_err(|_| BlockError::TransactionSignature { index, reason: "the key has low order" })?;
        let text = format::signing_text(&block.header.chain_id, transaction);
        let hash = format::transaction_hash(&text);
        leaves.push(format::transaction_leaf(&hash, transaction));
        transaction_hashes.push(hash);
        texts.push(text);
    }
    let tx_root = merkle::root(&leaves);
    if tx_root != block.header.tx_root {
        return Err(BlockError::TxRoot { expected: tx_root, got: block.header.tx_root });
    }
    let hash = block.hash();
    Ok(Form { verified: VerifiedBlock { block, hash, transaction_hashes }, texts })
}

/// The signatures of one block, one by one, so that the error can name the wrong one.
fn check_signatures(form: Form, genesis: &Genesis) -> Result<VerifiedBlock, BlockError> {
    let Form { verified, texts } = form;
    check_proposal(&verified.block.header, &verified.hash, &verified.block.signature, genesis)?;
    for (index, (transaction, text)) in verified.block.transactions.iter().zip(&texts).enumerate() {
        if !transaction.public_key.verifies(text.as_bytes(), &transaction.signature) {
            return Err(BlockError::TransactionSignature { index, reason: "it does not verify" });
        }
    }
    Ok(verified)
}

/// Blocks whose signatures wait to be checked together, with their places among the answers.
#[derive(Default)]
struct Batch {
    waiting: Vec<(usize, Form)>,
    verifier: batch::Verifier,
    signatures: usize,
}

impl Batch {
    fn add(
        &mut self,
        place: usize,
        form: Form,
        genesis: &Genesis,
        answers: &mut Vec<Result<VerifiedBlock, BlockError>>,
    ) {
        let block = &form.verified.block;
        let authority = genesis.authority_at(block.header.timestamp);
        let proposal = format::proposal(&form.verified.hash);
        self.verifier.queue((authority.public_key.zebra(), block.signature.zebra(), &proposal));
        for (transaction, text) in block.transactions.iter().zip(&form.texts) {
            self.verifier.queue((transaction.public_key.zebra(), transaction.signature.zebra(), text.as_bytes()));
        }
        self.signatures += 1 + form.texts.len();
        self.waiting.push((place, form));
        // The place is kept by an answer that `finish` overwrites.
        answers.push(Err(BlockError::Signature));
        if self.signatures >= BATCH_MAX {
            std::mem::take(self).finish(genesis, answers);
        }
    }

    fn finish(self, genesis: &Genesis, answers: &mut [Result<VerifiedBlock, BlockError>]) {
        let valid = self.signatures == 0 || self.verifier.verify(rand::rng()).is_ok();
        for (place, form) in self.waiting {
            answers[place] = if valid { Ok(form.verified) } else { check_signatures(form, genesis) };
        }
    }
}

/// What a transaction counts against a block's `block_bytes_max`: a little more than its encoding takes.
pub fn block_share(transaction: &Transaction) -> usize {
    160 + transaction.payload.len()
}

/// Whether `signature` over a transaction with `text` holds: for a transaction on its way into the mempool.
pub fn verify_transaction(transaction: &Transaction, text: &str) -> Result<(), &'static str> {
    transaction.public_key.check_order().map_err(|_| "the key has low order")?;
    if transaction.public_key.verifies(text.as_bytes(), &transaction.signature) {
        Ok(())
    } else {
        Err("it does not verify")
    }
}

/// A genesis block is valid by being the genesis: nobody signs it.
pub fn genesis_block(genesis: &Genesis) -> VerifiedBlock {
    let block = genesis.block();
    let hash: Hash = block.hash();
    VerifiedBlock { block, hash, transaction_hashes: Vec::new() }
}

//! What transactions do to accounts. Integers only, every sum checked; a transaction happens in full or not at all.

use std::collections::BTreeMap;

use super::{Address, Genesis, Kind, NonceRule, State, Transaction};

/// What the chain knows of an address that something was ever sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Account {
    /// What it has.
    pub balance: u64,
    /// The lowest nonce that it accepts next.
    pub nonce: u64,
}

/// What one block did to one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub address: Address,
    /// Before the block; none if the account was not there.
    pub before: Option<Account>,
    /// After the block.
    pub after: Account,
}

/// Why a transaction cannot happen in a given state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// Used before, or below one that was.
    #[error("nonce {got} was used or passed already, the lowest that {from} accepts is {lowest}")]
    NonceTooLow {
        /// Whose transaction.
        from: Address,
        /// Its nonce.
        got: u64,
        /// The account's.
        lowest: u64,
    },
    /// A nonce left out, on a chain that does not allow it.
    #[error("nonce {got} is not the next one of {from}, which is {next}")]
    NonceNotNext {
        /// Whose transaction.
        from: Address,
        /// Its nonce.
        got: u64,
        /// The account's.
        next: u64,
    },
    /// There is no nonce after the largest.
    #[error("nonce {0} is the largest there is; nothing could follow it")]
    NonceExhausted(u64),
    /// Pays too little.
    #[error("fee {got} is below the minimum {min}")]
    FeeTooLow {
        /// Its fee.
        got: u64,
        /// The chain's.
        min: u64,
    },
    /// A message that would move an amount.
    #[error("a message moves no amount, got {0}")]
    MessageAmount(u64),
    /// The sender cannot pay.
    #[error("{from} has {balance}, the transaction takes {needed}")]
    Insufficient {
        /// Whose transaction.
        from: Address,
        /// What the sender has.
        balance: u64,
        /// Amount and fee; the largest number where their sum is above it.
        needed: u64,
    },
    /// Somebody would have more than 2^64 - 1.
    #[error("the balance of {0} would be above the largest number")]
    Overflow(Address),
}

/// A run of transactions on top of a state, which it leaves as it is.
pub struct Execution<'a> {
    state: &'a State,
    genesis: &'a Genesis,
    touched: BTreeMap<Address, (Option<Account>, Account)>,
}

impl<'a> Execution<'a> {
    /// Nothing done yet.
    pub fn new(state: &'a State, genesis: &'a Genesis) -> Self {
        Self { state, genesis, touched: BTreeMap::new() }
    }

    /// What `address` has after the transactions so far.
    pub fn account(&self, address: &Address) -> Account {
        self.touched
            .get(address)
            .map_or_else(|| self.state.account(address).unwrap_or_default(), |&(_, account)| account)
    }

    /// Lets one transaction happen. On an error nothing has changed.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<(), TransactionError> {
        let Transaction { to, amount, fee, nonce, .. } = *transaction;
        let from = transaction.from();
        let mut sender = self.account(&from);
        if nonce < sender.nonce {
            return Err(TransactionError::NonceTooLow { from, got: nonce, lowest: sender.nonce });
        }
        if self.genesis.nonce_rule == NonceRule::Sequential && nonce != sender.nonce {
            return Err(TransactionError::NonceNotNext { from, got: nonce, next: sender.nonce });
        }
        if transaction.kind == Kind::Message && amount != 0 {
            return Err(TransactionError::MessageAmount(amount));
        }
        if fee < self.genesis.min_fee {
            return Err(TransactionError::FeeTooLow { got: fee, min: self.genesis.min_fee });
        }
        sender.nonce = nonce.checked_add(1).ok_or(TransactionError::NonceExhausted(nonce))?;
        let needed = amount.checked_add(fee);
        let poor =
            || TransactionError::Insufficient { from, balance: sender.balance, needed: needed.unwrap_or(u64::MAX) };
        sender.balance = needed.and_then(|needed| sender.balance.checked_sub(needed)).ok_or_else(poor)?;
        // One after the other on a small list, since sender, receiver and fee recipient may be the same account.
        let mut after = vec![(from, sender)];
        if amount > 0 {
            self.credit(&mut after, to, amount)?;
        }
        if let Some(recipient) = self.genesis.fee_recipient.filter(|_| fee > 0) {
            self.credit(&mut after, recipient, fee)?;
        }
        for (address, account) in after {
            let before = self.state.account(&address);
            self.touched.entry(address).or_insert((before, account)).1 = account;
        }
        Ok(())
    }

    /// The net changes, by address.
    pub fn into_changes(self) -> Vec<Change> {
        self.touched.into_iter().map(|(address, (before, after))| Change { address, before, after }).collect()
    }

    fn credit(
        &self,
        after: &mut Vec<(Address, Account)>,
        address: Address,
        amount: u64,
    ) -> Result<(), TransactionError> {
        let at = after.iter().position(|(known, _)| *known == address).unwrap_or_else(|| {
            after.push((address, self.account(&address)));
            after.len() - 1
        });
        let account = &mut after[at].1;
        account.balance = account.balance.checked_add(amount).ok_or(TransactionError::Overflow(address))?;
        Ok(())
    }
}

/// What `transactions` do to `state`, by address. Errors: the first that cannot happen, with its place in the list.
pub fn execute(
    state: &State,
    genesis: &Genesis,
    transactions: &[Transaction],
) -> Result<Vec<Change>, (usize, TransactionError)> {
    let mut execution = Execution::new(state, genesis);
    for (index, transaction) in transactions.iter().enumerate() {
        execution.apply(transaction).map_err(|error| (index, error))?;
    }
    Ok(execution.into_changes())
}

//! The tables, as numbered migrations that only go forward. `PRAGMA user_version` says how far a file is.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use super::{Result, StorageError};
use crate::chain::Hash;

/// One entry a version; never changed once released.
const MIGRATIONS: &[&str] = &[
    // 1: the chain. `prefix` columns hold the first 8 bytes of a hash or address as an integer: a third of the space of
    // the whole, and two that share it are told apart by the block itself. `place` is height * 2^14 + position.
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
     CREATE TABLE block (height INTEGER PRIMARY KEY, body BLOB NOT NULL);
     CREATE TABLE undo (height INTEGER PRIMARY KEY, changes BLOB NOT NULL);
     CREATE TABLE block_index (prefix INTEGER, height INTEGER, PRIMARY KEY (prefix, height)) WITHOUT ROWID;
     CREATE TABLE transaction_index (prefix INTEGER, place INTEGER, PRIMARY KEY (prefix, place)) WITHOUT ROWID;
     CREATE TABLE account_transaction (prefix INTEGER, place INTEGER, PRIMARY KEY (prefix, place)) WITHOUT ROWID;
     CREATE TABLE account_message (prefix INTEGER, place INTEGER, PRIMARY KEY (prefix, place)) WITHOUT ROWID;
     CREATE TABLE account (
         address BLOB PRIMARY KEY, balance INTEGER NOT NULL, nonce INTEGER NOT NULL, public_key BLOB
     ) WITHOUT ROWID;
     CREATE TABLE mempool (hash BLOB PRIMARY KEY, body BLOB NOT NULL, received INTEGER NOT NULL) WITHOUT ROWID;",
    // 2: agents. An agent is a name and a wallet. `agent_event` has what waits to be handled (no reason) or is set aside
    // (a reason): a message by its place in the chain, or a timer by its tag.
    "CREATE TABLE agent (
         id INTEGER PRIMARY KEY, name TEXT NOT NULL, wallet BLOB NOT NULL, since INTEGER NOT NULL,
         cursor INTEGER NOT NULL, memory BLOB NOT NULL DEFAULT x'', handled INTEGER NOT NULL DEFAULT 0,
         skipped INTEGER NOT NULL DEFAULT 0, refused INTEGER NOT NULL DEFAULT 0, UNIQUE (name, wallet)
     );
     CREATE TABLE agent_event (
         id INTEGER PRIMARY KEY, agent INTEGER NOT NULL REFERENCES agent (id), height INTEGER NOT NULL,
         position INTEGER NOT NULL, tag TEXT, reason TEXT
     );
     CREATE INDEX agent_event_waiting ON agent_event (agent, id) WHERE reason IS NULL;
     CREATE INDEX agent_event_parked ON agent_event (agent, id) WHERE reason IS NOT NULL;
     CREATE TABLE agent_timer (
         agent INTEGER NOT NULL REFERENCES agent (id), tag TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (agent, tag)
     ) WITHOUT ROWID;
     CREATE INDEX agent_timer_at ON agent_timer (agent, at);
     CREATE TABLE agent_outbox (
         id INTEGER PRIMARY KEY, agent INTEGER NOT NULL REFERENCES agent (id), body BLOB NOT NULL
     );
     CREATE INDEX agent_outbox_agent ON agent_outbox (agent, id);
     CREATE TABLE agent_spending (
         id INTEGER PRIMARY KEY, agent INTEGER NOT NULL REFERENCES agent (id), at INTEGER NOT NULL, fee INTEGER NOT NULL
     );
     CREATE INDEX agent_spending_at ON agent_spending (agent, at);",
    // 3: reorgs. `undone_block` has the parents of blocks that were taken back, so that a list can say where a cursor into
    // one of them leaves our chain. `agent_handled`: messages that an agent has handled and that no block holds now;
    // `passed` is where the sender's nonce was first seen beyond. A reply keeps its row, with the height of its block,
    // as long as that can be undone.
    "CREATE TABLE undone_block (
         id INTEGER PRIMARY KEY, height INTEGER NOT NULL, prefix INTEGER NOT NULL, parent INTEGER NOT NULL,
         UNIQUE (prefix, height)
     );
     CREATE TABLE agent_handled (
         agent INTEGER NOT NULL REFERENCES agent (id), hash BLOB NOT NULL, sender BLOB NOT NULL,
         nonce INTEGER NOT NULL, passed INTEGER, PRIMARY KEY (agent, hash)
     ) WITHOUT ROWID;
     ALTER TABLE agent_outbox ADD COLUMN height INTEGER;
     DROP INDEX agent_outbox_agent;
     CREATE INDEX agent_outbox_waiting ON agent_outbox (agent, id) WHERE height IS NULL;
     CREATE INDEX agent_outbox_held ON agent_outbox (height) WHERE height IS NOT NULL;
     CREATE INDEX agent_event_height ON agent_event (height) WHERE tag IS NULL;",
    // 4: headers without their blocks.
    super::history::MIGRATION,
    // 5: what is set aside since there was no handler, which comes again when there is one. Before, only its text told it.
    "ALTER TABLE agent_event ADD COLUMN unheard INTEGER NOT NULL DEFAULT 0;
     UPDATE agent_event SET unheard = 1 WHERE reason LIKE 'no handler is loaded;%';
     CREATE INDEX agent_event_unheard ON agent_event (agent) WHERE unheard;",
    // 6: the indexes in two runs each.
    super::index::TWO_RUNS,
    // 7: the longer of them in as many as it takes.
    super::index::MANY_RUNS,
];

/// The version of a file.
pub(super) fn version(connection: &Connection) -> Result<u32> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// The version that this program makes.
pub(super) fn known() -> u32 {
    u32::try_from(MIGRATIONS.len()).expect("a handful")
}

/// Brings the file to the newest version, each step in a transaction of its own. Errors: a file from a newer program.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<()> {
    let (found, known) = (version(connection)?, known());
    if found > known {
        return Err(StorageError::Newer { path: path.display().to_string(), found, known });
    }
    for (version, sql) in (1..).zip(MIGRATIONS).skip(found as usize) {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {version}; COMMIT;"))?;
    }
    Ok(())
}

/// The genesis that this file was made for; `genesis` if it is new.
pub(super) fn genesis(connection: &Connection, genesis: &Hash) -> Result<Hash> {
    if let Some(found) = found_genesis(connection)? {
        return Ok(found);
    }
    connection.execute("INSERT INTO meta (key, value) VALUES ('genesis', ?)", [&genesis.0[..]])?;
    Ok(*genesis)
}

/// The genesis that this file was made for, if it says so.
pub(super) fn found_genesis(connection: &Connection) -> Result<Option<Hash>> {
    let found: Option<[u8; 32]> =
        connection.query_row("SELECT value FROM meta WHERE key = 'genesis'", [], |row| row.get(0)).optional()?;
    Ok(found.map(Hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_program_set_aside_for_want_of_a_handler_comes_again() {
        let connection = Connection::open_in_memory().unwrap();
        for (version, sql) in (1..).zip(&MIGRATIONS[..4]) {
            connection.execute_batch(&format!("{sql} PRAGMA user_version = {version};")).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO agent (id, name, wallet, since, cursor) VALUES (1, 'bob', x'00', 0, 0);
                 INSERT INTO agent_event (id, agent, height, position, reason) VALUES
                     (1, 1, 1, 0, 'no handler is loaded; the message waits here until it is retried'),
                     (2, 1, 1, 1, 'trapped: no handler is loaded'), (3, 1, 2, 0, NULL);",
            )
            .unwrap();
        migrate(&connection, Path::new("chain.db")).unwrap();
        assert_eq!(version(&connection).unwrap(), known());
        let mut statement = connection.prepare("SELECT id FROM agent_event WHERE unheard").unwrap();
        let ids: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(|id| id.unwrap()).collect();
        assert_eq!(ids, [1]);
    }
}

//! Journals of any of the three kinds, replayed: which kind it is, the journal says.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tenon_runtime::Kind;
use tenon_runtime::journal::{GenerationInfo, RecordId, Source};
use tenon_runtime::replay::{self, Against, Explanation, Listed, Options, Replay, Report};

use super::{AgentHandler, RateLimit, SyncStrategy};

/// Runs `candidate` over the journal at `journal`: a directory of segments, or one file.
///
/// Errors: there is no journal, or it is of a kind that this node has not; a component is not taken, or does not take its
/// configuration; a budget names an answer that there is none of.
pub fn replay(journal: &Path, candidate: &[u8], against: Against<'_>, options: &Options) -> Result<Report> {
    fn run<K: Kind>(source: &Source, candidate: &[u8], against: Against<'_>, options: &Options) -> Result<Report> {
        let scratch = tempfile::tempdir().context("creating a folder")?;
        with_room::<K>(scratch.path(), source, options)?.run(source, candidate, against, options)
    }
    let source = Source::open(journal)?;
    match source.about().kind.as_str() {
        RateLimit::NAME => run::<RateLimit>(&source, candidate, against, options),
        SyncStrategy::NAME => run::<SyncStrategy>(&source, candidate, against, options),
        AgentHandler::NAME => run::<AgentHandler>(&source, candidate, against, options),
        kind => unknown(kind),
    }
}

/// Shows the call `id` of the journal at `journal`, and makes it again on what `component` finds for its generation.
///
/// Errors: as for [`replay`]; there is no such call.
pub fn explain(
    journal: &Path,
    id: RecordId,
    component: impl FnOnce(Option<&GenerationInfo>) -> Result<Option<Vec<u8>>>,
    options: &Options,
) -> Result<Explanation> {
    fn run<K: Kind>(
        source: &Source,
        id: RecordId,
        component: impl FnOnce(Option<&GenerationInfo>) -> Result<Option<Vec<u8>>>,
        options: &Options,
    ) -> Result<Explanation> {
        let scratch = tempfile::tempdir().context("creating a folder")?;
        with_room::<K>(scratch.path(), source, options)?.explain(source, id, component, options)
    }
    let source = Source::open(journal)?;
    match source.about().kind.as_str() {
        RateLimit::NAME => run::<RateLimit>(&source, id, component, options),
        SyncStrategy::NAME => run::<SyncStrategy>(&source, id, component, options),
        AgentHandler::NAME => run::<AgentHandler>(&source, id, component, options),
        kind => unknown(kind),
    }
}

/// A replay in `scratch` with room for what the calls of `source` might use.
fn with_room<K: Kind>(scratch: &Path, source: &Source, options: &Options) -> Result<Replay<K>> {
    Replay::with_room(scratch, &options.limits_for(source).unwrap_or_default())
}

/// The latest `limit` calls of the journal at `journal`, the newest first. Errors: as for [`replay`].
pub fn latest(journal: &Path, limit: usize) -> Result<Vec<Listed>> {
    let source = Source::open(journal)?;
    match source.about().kind.as_str() {
        RateLimit::NAME => replay::latest::<RateLimit>(&source, limit),
        SyncStrategy::NAME => replay::latest::<SyncStrategy>(&source, limit),
        AgentHandler::NAME => replay::latest::<AgentHandler>(&source, limit),
        kind => unknown(kind),
    }
}

fn unknown<T>(kind: &str) -> Result<T> {
    let known = [RateLimit::NAME, SyncStrategy::NAME, AgentHandler::NAME].join(", ");
    bail!("a journal of kind {kind:?}, known: {known}")
}

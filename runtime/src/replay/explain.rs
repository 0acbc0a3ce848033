//! One recorded call in full, and made again: on the component that answered it, or on another.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{Answer, MemoryMode, Options, Replay, as_ref, is_same, json, recorded_answer, report::Side};
use crate::{
    differ::differences,
    journal::{Call, GenerationInfo, Reader, RecordId, Recorded, Source},
    kind::Kind,
};

/// One recorded call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Which call.
    pub call: RecordId,
    /// The slot.
    pub slot: String,
    /// Its kind.
    pub kind: String,
    /// The generation that was asked; its description, if that can be read.
    pub generation: u64,
    /// The generation's plugin, version, digest and configuration.
    pub about: Option<GenerationInfo>,
    /// Whose memory.
    pub key: Value,
    /// What was asked.
    pub request: Value,
    /// The memory before.
    pub memory_before: Value,
    /// The memory after; where the call failed, as before.
    pub memory_after: Value,
    /// The answer, or why there was none.
    pub answer: Value,
    /// The same call, made again; none: no component was at hand.
    pub again: Option<Again>,
}

/// A recorded call, made again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Again {
    /// On which component.
    pub on: Side,
    /// With which configuration.
    pub settings: Value,
    /// With which memory: the recorded one, or the component's own after all earlier calls for that key.
    pub memory: MemoryMode,
    /// That memory, where it is the component's own.
    pub memory_before: Option<Value>,
    /// The answer, or why there was none.
    pub answer: Value,
    /// The memory after, if it answered.
    pub memory_after: Option<Value>,
    /// Fuel used.
    pub fuel: u64,
    /// Whether the answer is the recorded one.
    pub is_same: bool,
    /// The fields in which it differs.
    pub fields: Vec<String>,
}

impl<K: Kind> Replay<K> {
    /// Finds the call `id`, and makes it again on the component that `component` gives; nothing: it is only shown.
    ///
    /// Errors: the journal is of another kind or has no such call that can be read; the component is not taken, or does
    /// not take its configuration.
    pub fn explain(
        &self,
        source: &Source,
        id: RecordId,
        component: impl FnOnce(Option<&GenerationInfo>) -> anyhow::Result<Option<Vec<u8>>>,
        options: &Options,
    ) -> anyhow::Result<Explanation> {
        let call = find::<K>(source, id)?;
        let bytes = component(call.about.as_deref())?;
        let again = match bytes {
            Some(bytes) => Some(self.again(source, &call, &bytes, options)?),
            None => None,
        };
        let memory_before = json(&call.before);
        let memory_after = match &call.outcome {
            Recorded::Answered { memory, .. } => json(memory),
            Recorded::Failed { .. } => memory_before.clone(),
        };
        Ok(Explanation {
            call: id,
            slot: source.about().slot.clone(),
            kind: source.about().kind.clone(),
            generation: call.generation,
            key: json(&call.key),
            request: json(&call.request),
            memory_before,
            memory_after,
            answer: match &call.outcome {
                Recorded::Answered { answer, .. } => json(answer),
                Recorded::Failed { cause, message } => failed(cause, message),
            },
            about: call.about.as_deref().cloned(),
            again,
        })
    }

    fn again(&self, source: &Source, call: &Call<K>, bytes: &[u8], options: &Options) -> anyhow::Result<Again> {
        let Some(about) = &call.about else {
            anyhow::bail!(
                "the description of generation {} is broken: its configuration is not known",
                call.generation
            );
        };
        let mut runner = self.runner(bytes, options.limits_for(source).as_ref())?;
        let mode = runner.mode(about, options.memory);
        let mut memory_before = None;
        if mode == MemoryMode::Own {
            for earlier in Reader::<K>::new(source)?.flatten() {
                if earlier.id == call.id {
                    break;
                }
                if earlier.key == call.key
                    && let Some(about) = &earlier.about
                {
                    runner.sit(about, options.settings.as_ref())?;
                    // Only for the memory that it leaves; where it fails, that stays.
                    let _ = runner.step_on(&earlier.key, &earlier.request);
                }
            }
            memory_before = Some(json(&runner.memory_of(&call.key)));
        }
        runner.sit(about, options.settings.as_ref())?;
        let (answered, fuel) = match mode {
            MemoryMode::Recorded => runner.step_from(about, &call.request, &call.before),
            MemoryMode::Own => runner.step_on(&call.key, &call.request),
        };
        let recorded: Answer<'_, K> = recorded_answer(call);
        let shown = |answer: Answer<'_, K>| answer.map_or_else(Value::from, json);
        let is_same = is_same::<K>(recorded, as_ref::<K>(&answered));
        let fields = if is_same { Vec::new() } else { differences(&shown(recorded), &shown(as_ref::<K>(&answered))) };
        let (answer, memory_after) = match &answered {
            Ok((answer, memory)) => (json(answer), Some(json(memory))),
            Err(error) => (failed(error.cause, &error.message), None),
        };
        let (on, settings) = (runner.side(), runner.settings());
        Ok(Again { on, settings, memory: mode, memory_before, answer, memory_after, fuel, is_same, fields })
    }
}

/// A recorded call in a line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// Which call.
    pub call: RecordId,
    /// The request's moment in microseconds since 1970 UTC.
    pub at_us: u64,
    /// Whose memory.
    pub key: Value,
    /// The generation that was asked, and its plugin where that is described.
    pub generation: u64,
    /// The plugin's name.
    pub plugin: Option<String>,
    /// The request in one word; empty where a kind's are all alike.
    pub class: &'static str,
    /// The answer in one word, or why there was none.
    pub answer: String,
}

/// The latest `limit` calls of `source` that can be read, the newest first. Errors: the journal is of another kind.
pub fn latest<K: Kind>(source: &Source, limit: usize) -> anyhow::Result<Vec<Listed>> {
    // By their time: shards are written one after the other, and segments may begin before the last one has ended.
    let mut latest: BTreeMap<(u64, RecordId), Listed> = BTreeMap::new();
    for call in Reader::<K>::new(source)?.flatten() {
        let at_us = K::now_us(&call.request);
        let place = (at_us, call.id);
        if latest.len() >= limit && latest.first_key_value().is_none_or(|(oldest, _)| *oldest >= place) {
            continue;
        }
        let answer = match &call.outcome {
            Recorded::Answered { answer, .. } => K::label(answer).to_owned(),
            Recorded::Failed { cause, .. } => format!("failed: {cause}"),
        };
        let listed = Listed {
            call: call.id,
            at_us,
            key: json(&call.key),
            generation: call.generation,
            plugin: call.about.as_ref().map(|about| about.plugin.clone()),
            class: K::class(&call.request),
            answer,
        };
        latest.insert(place, listed);
        if latest.len() > limit {
            latest.pop_first();
        }
    }
    Ok(latest.into_values().rev().collect())
}

fn find<K: Kind>(source: &Source, id: RecordId) -> anyhow::Result<Call<K>> {
    let mut reader = Reader::<K>::new(source)?;
    for item in &mut reader {
        match item {
            Ok(call) if call.id == id => return Ok(call),
            Err(fault) if fault.call == Some(id) => anyhow::bail!("{fault}"),
            _ => {}
        }
    }
    let summary = reader.summary();
    anyhow::bail!(
        "the journal has no call {id}; it has {} that can be read, and {} that cannot (without a call, `explain` lists \
         the latest)",
        summary.calls,
        summary.skipped + summary.missing
    )
}

fn failed(cause: &str, message: &str) -> Value {
    serde_json::json!({ "failed": cause, "message": message })
}

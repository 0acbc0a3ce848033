//! Recording a slot's calls: switched on and off while they go on, and written to the slot's journal.
//!
//! A call records under its shard's lock, if there is a recorder, and knows nothing else of it. So switching is a matter of
//! putting recorders into the shards, or of taking them out with what they hold; no call waits for a file.

use std::{
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError, atomic::Ordering},
};

use serde::Serialize;

use super::Inner;
use crate::{
    event::Change,
    journal::{Chunk, Journal, JournalConfig, Recorder},
    kind::Kind,
};

/// How the recording of a slot's calls goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JournalStatus {
    /// Whether calls are recorded now.
    pub recording: bool,
    /// Where its segment files are.
    pub dir: PathBuf,
    /// The segment that is written now, or would be next.
    pub segment: u32,
    /// Calls written since the start.
    pub records: u64,
    /// Calls left out since the start.
    pub dropped: u64,
    /// How it is recorded, or was last.
    #[serde(flatten)]
    pub config: JournalConfig,
}

/// Where a slot's calls are recorded.
#[derive(Default)]
pub(super) struct Recording {
    is_on: bool,
    /// There from the first recording on: segments' numbers go on.
    journal: Option<Journal>,
    /// As it was configured last.
    config: JournalConfig,
}

impl<K: Kind> Inner<K> {
    /// The share of keys that is recorded; 0: nothing is.
    pub(super) fn sample(&self) -> f64 {
        f64::from_bits(self.sample.load(Ordering::Relaxed))
    }

    /// Records from now on, in a journal below `dir`, as `config` says; none: as last time, or by default. What is recorded
    /// already in another way is ended first.
    ///
    /// Errors: the configuration is out of range, or the folder cannot be written; then all stays as it was.
    pub(super) fn begin_recording(&self, dir: &Path, config: Option<JournalConfig>) -> anyhow::Result<()> {
        let recording = &mut *self.recording();
        let config = config.unwrap_or_else(|| recording.config.clone());
        if recording.is_on && recording.config == config {
            return Ok(());
        }
        config.check().map_err(|reason| anyhow::anyhow!("journal of slot {}: {reason}", self.name))?;
        self.end(recording);
        let journal = match &mut recording.journal {
            Some(journal) => {
                journal.reopen(config.clone())?;
                journal
            }
            None => {
                let journal = Journal::open::<K>(dir, &self.name, config.clone())?;
                recording.journal.insert(journal.under(&self.limits))
            }
        };
        {
            // Whatever becomes live from here on makes itself known.
            let mut control = self.control();
            control.to_journal = control.infos();
            self.sample.store(config.sample.to_bits(), Ordering::Relaxed);
        }
        let recorder = |shard: usize| Some(journal.recorder(u32::try_from(shard).unwrap_or(u32::MAX)));
        for (number, shard) in self.shards.iter().enumerate() {
            let recorder = recorder(number);
            shard.lock().recorder = recorder;
        }
        self.steps().recorder = recorder(self.shards.len());
        (recording.is_on, recording.config) = (true, config);
        let sample = recording.config.sample;
        let live = self.live.load_full();
        self.events.send(self.event(live.now().live.as_deref(), Change::RecordingStarted { sample }));
        // The thread that writes sleeps until somebody has something for it. An error means that the host is gone.
        let _ = self.wake.send(());
        Ok(())
    }

    /// Writes what was recorded, and records no more.
    pub(super) fn end_recording(&self) {
        self.end(&mut self.recording());
    }

    fn end(&self, recording: &mut Recording) {
        if !std::mem::take(&mut recording.is_on) {
            return;
        }
        self.sample.store(0_f64.to_bits(), Ordering::Relaxed);
        let mut chunks = Vec::new();
        for shard in &self.shards {
            let mut recorder = shard.lock().recorder.take();
            drain(recorder.as_mut(), &mut chunks);
        }
        let mut recorder = self.steps().recorder.take();
        drain(recorder.as_mut(), &mut chunks);
        let Some(journal) = &mut recording.journal else { return };
        self.write(journal, chunks);
        journal.close();
        let records = journal.records();
        let live = self.live.load_full();
        self.events.send(self.event(live.now().live.as_deref(), Change::RecordingStopped { records }));
    }

    /// Writes what was recorded.
    pub(super) fn flush(&self) {
        let mut recording = self.recording();
        let Recording { is_on: true, journal: Some(journal), .. } = &mut *recording else {
            return;
        };
        let mut chunks = Vec::new();
        for shard in &self.shards {
            drain(shard.lock().recorder.as_mut(), &mut chunks);
        }
        drain(self.steps().recorder.as_mut(), &mut chunks);
        self.write(journal, chunks);
    }

    /// How it goes, with all that was recorded until now written.
    pub(super) fn journal_status(&self) -> Option<JournalStatus> {
        self.flush();
        let recording = self.recording();
        recording.journal.as_ref().map(|journal| JournalStatus {
            recording: recording.is_on,
            dir: journal.dir().to_owned(),
            segment: journal.segment(),
            records: journal.records(),
            dropped: journal.dropped(),
            config: recording.config.clone(),
        })
    }

    /// Writes `chunks`. They were taken before the generations are: those of any call that is here are then known.
    fn write(&self, journal: &mut Journal, chunks: Vec<Chunk>) {
        for generation in std::mem::take(&mut self.control().to_journal) {
            journal.generation(generation);
        }
        if let Err(error) = journal.write_all(chunks) {
            let dir = journal.dir().display();
            tracing::warn!(slot = %self.name, %dir, %error, "calls could not be recorded, and are counted");
        }
    }

    fn recording(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what a recorder holds.
fn drain<K: Kind>(recorder: Option<&mut Recorder<K>>, chunks: &mut Vec<Chunk>) {
    let Some(recorder) = recorder else { return };
    chunks.extend(std::iter::from_fn(|| recorder.take()));
}

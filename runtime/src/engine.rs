//! The wasmtime engine: its settings, the clock that stops runaway calls, and the compiled-code cache.
//!
//! Used by `host` (one engine a host) and `load` (compiles). What a single call may use is in `limits`.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig, component::Component};

use crate::{HostConfig, digest::Digest, limits::Limits, priority, store};

/// One tick of the epoch clock. Deadlines are rounded up to whole ticks, and one more is added, so no call gets less
/// than its deadline; a finer clock would only wake an idle node more often.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// The engine with everything that belongs to it. Dropping it ends the clock.
pub(crate) struct Engine {
    wasm: wasmtime::Engine,
    ticker: Ticker,
    compilers: rayon::ThreadPool,
    compiled: PathBuf,
    /// Differs between wasmtime versions, settings and processor features: code compiled under another is of no use.
    compatibility: String,
    alive: Arc<AtomicUsize>,
    instance_memory_max_bytes: u64,
    stop: Stop,
}

/// What stops a call that does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The clock: the cheaper way, and what an operator thinks in. For serving.
    Clock,
    /// Fuel: after the same instruction on any machine, at any load. For replay, together with everything else that makes
    /// one run like the other.
    Fuel,
}

/// Fuel for instantiating and configuring: seconds of work, which is what an interpreter takes to start.
const START_FUEL: u64 = 20_000_000_000;

/// Elements of a table at most, whatever a slot's limit says.
pub(crate) const TABLE_ELEMENTS_MAX: u32 = 20_000;

impl Engine {
    /// An engine that serves.
    pub(crate) fn new(config: &HostConfig) -> anyhow::Result<Engine> {
        Engine::with(config, Stop::Clock)
    }

    pub(crate) fn with(config: &HostConfig, stop: Stop) -> anyhow::Result<Engine> {
        let wasm = wasmtime::Engine::new(&settings(config, stop)).map_err(anyhow::Error::from)?;
        let compilers = rayon::ThreadPoolBuilder::new()
            .num_threads(config.compile_threads)
            .thread_name(|number| format!("tenon-compile-{number}"))
            .build()
            .context("starting the threads that compile")?;
        let compiled = config.state_dir.join("compiled");
        store::private_dir(&compiled)?;
        let alive = Arc::default();
        Ok(Engine {
            ticker: Ticker::start(&wasm, Arc::clone(&alive))?,
            compilers,
            compiled,
            compatibility: compatibility(&wasm),
            wasm,
            alive,
            instance_memory_max_bytes: config.instance_memory_max_bytes,
            stop,
        })
    }

    /// From now on compiling stands back behind those that answer calls. Before, nobody is served, and whoever starts a node
    /// waits for what is compiled first.
    pub(crate) fn stand_back(&self) {
        self.compilers.broadcast(|_| priority::stand_back());
    }

    /// What an instance begins with, where fuel is what stops it.
    pub(crate) fn start_fuel(&self) -> Option<u64> {
        (self.stop == Stop::Fuel).then_some(START_FUEL)
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.wasm
    }

    /// What the most generous slot could allow an instance.
    pub(crate) fn widest_limits(&self) -> Limits {
        Limits {
            memory_max_bytes: self.instance_memory_max_bytes,
            table_max_elements: TABLE_ELEMENTS_MAX.into(),
            ..Limits::default()
        }
    }

    /// Live instances of all slots.
    pub(crate) fn instances(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// Counts one instance for as long as the guard lives.
    pub(crate) fn count_instance(&self) -> Alive {
        self.alive.fetch_add(1, Ordering::Relaxed);
        Alive(Arc::clone(&self.alive))
    }

    /// Ends the clock once no instance is left to be stopped by it.
    pub(crate) fn wind_down(&self) {
        self.ticker.winding_down.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn clock_runs(&self) -> bool {
        self.ticker.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Compiles `bytes`, whose SHA-256 is `digest`, or takes the compiled code from the cache.
    pub(crate) fn component(&self, bytes: &[u8], digest: Digest) -> wasmtime::Result<Component> {
        let path = self.compiled.join(format!("{digest}-{}.cwasm", &self.compatibility[..16]));
        if let Some(code) = self.read_cached(&path, digest) {
            // SAFETY: the code was written by this program: it stands in a directory that only this user can write,
            // and its checksum covers the code, the component's digest and the engine's compatibility hash.
            match unsafe { Component::deserialize(&self.wasm, code) } {
                Ok(component) => return Ok(component),
                Err(error) => tracing::debug!(path = %path.display(), %error, "recompiling"),
            }
        }
        let component = self.compilers.install(|| Component::from_binary(&self.wasm, bytes))?;
        let code = component.serialize()?;
        let sum = self.checksum(digest, &code);
        if let Err(error) = store::write_atomically(&path, &[&sum, &code]) {
            // A full disk costs the next start time, nothing else.
            tracing::warn!(path = %path.display(), %error, "cannot keep compiled code");
        }
        Ok(component)
    }

    /// Drops compiled code of components other than `wanted`.
    pub(crate) fn forget_compiled(&self, wanted: impl Fn(&str) -> bool) {
        store::remove_files(&self.compiled, |name| !wanted(name.split('-').next().unwrap_or_default()));
    }

    fn read_cached(&self, path: &Path, digest: Digest) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(path).ok()?;
        if bytes.len() < SUM_BYTES {
            return None;
        }
        let code = bytes.split_off(SUM_BYTES);
        (bytes[..] == self.checksum(digest, &code)).then_some(code)
    }

    fn checksum(&self, digest: Digest, code: &[u8]) -> [u8; SUM_BYTES] {
        let mut sum = Sha256::new();
        sum.update(b"tenon compiled code 1\n");
        sum.update(digest.as_bytes());
        sum.update(self.compatibility.as_bytes());
        sum.update(code);
        sum.finalize().into()
    }
}

const SUM_BYTES: usize = 32;

/// One live instance, while it exists.
pub(crate) struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Raises the epoch every [`TICK`]. A thread of its own: a busy async runtime must not stop the clock that stops others.
struct Ticker {
    /// Dropping it wakes and ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    winding_down: Arc<AtomicBool>,
}

impl Ticker {
    fn start(engine: &wasmtime::Engine, alive: Arc<AtomicUsize>) -> anyhow::Result<Ticker> {
        let (stop, stopped) = mpsc::channel::<()>();
        let winding_down = Arc::new(AtomicBool::new(false));
        let (engine, ending) = (engine.weak(), Arc::clone(&winding_down));
        let thread = std::thread::Builder::new()
            .name("tenon-epoch".into())
            .spawn(move || {
                while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
                    let Some(engine) = engine.upgrade() else {
                        return;
                    };
                    engine.increment_epoch();
                    if ending.load(Ordering::Relaxed) && alive.load(Ordering::Relaxed) == 0 {
                        return;
                    }
                }
            })
            .context("starting the epoch clock")?;
        Ok(Ticker { stop: Some(stop), thread: Some(thread), winding_down })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The thread never panics: it only counts. Joining keeps "ends with its owner" exact.
            let _ = thread.join();
        }
    }
}

/// Ticks after which a call that may take `deadline` is stopped.
pub(crate) fn ticks(deadline: Duration) -> u64 {
    let ticks = deadline.as_nanos().div_ceil(TICK.as_nanos());
    u64::try_from(ticks).unwrap_or(u64::MAX / 2).saturating_add(1)
}

fn settings(host: &HostConfig, stop: Stop) -> Config {
    let instances = host.instances_max;
    let mut pool = PoolingAllocationConfig::default();
    // A component is often three core instances (its module, a shim, a fix-up), an interpreter up to forty.
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(4))
        .max_core_instances_per_component(64)
        .total_memories(instances.saturating_add(instances / 4))
        .max_memories_per_component(4)
        .total_tables(instances.saturating_mul(4))
        .max_tables_per_component(16)
        .max_memory_size(usize::try_from(host.instance_memory_max_bytes).unwrap_or(usize::MAX))
        .table_elements(TABLE_ELEMENTS_MAX as usize)
        // Clearing what a small guest touched is cheaper than giving the pages back and faulting them in again.
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_init_cow(true)
        .epoch_interruption(stop == Stop::Clock)
        // Reserving 4 GiB an instance, the default, runs into address-space limits long before it runs out of memory.
        .memory_reservation(host.instance_memory_max_bytes)
        .parallel_compilation(host.compile_threads > 1)
        .wasm_backtrace_max_frames(None);
    if stop == Stop::Fuel {
        // The bits of a NaN, and what relaxed SIMD leaves open, differ between processors otherwise.
        config.consume_fuel(true).cranelift_nan_canonicalization(true).relaxed_simd_deterministic(true);
    }
    config
}

fn compatibility(engine: &wasmtime::Engine) -> String {
    /// Feeds what wasmtime hashes into SHA-256, whose result is the same in every process.
    struct Sink(Sha256);
    impl std::hash::Hasher for Sink {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut sink = Sink(Sha256::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut sink);
    const_hex::encode(sink.0.finalize())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const BYTES: &[u8] = b"\0asm\x0d\0\x01\0";

    fn engine(dir: &Path) -> Engine {
        let mut config = HostConfig::new(dir.join("plugins"), dir.join("state"));
        config.instances_max = 4;
        Engine::new(&config).expect("an engine")
    }

    fn cached(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir.join("state/compiled")).expect("the cache");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn whoever_starts_waits_for_the_first_components_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine(dir.path());
        let niceness = || engine.compilers.broadcast(|_| priority::tests::niceness());
        assert!(niceness().iter().all(|nice| *nice == priority::tests::niceness()), "{:?}", niceness());
        engine.stand_back();
        assert!(niceness().iter().all(|nice| *nice == 10), "{:?}", niceness());
    }

    #[test]
    fn code_is_compiled_once_and_bad_entries_are_replaced_silently() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine(dir.path());
        let digest = Digest::of(BYTES);
        engine.component(BYTES, digest).expect("the empty component");
        let path = cached(dir.path()).pop().expect("one entry");
        let good = fs::read(&path).expect("the entry");
        // From the cache: the bytes are not even looked at.
        engine.component(b"", digest).expect("cached");

        for at in [0, SUM_BYTES, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("damaging");
            engine.component(BYTES, digest).expect("compiled anew");
            assert_eq!(fs::read(&path).expect("the entry"), good);
        }
        fs::write(&path, &good[..SUM_BYTES - 1]).expect("truncating");
        engine.component(BYTES, digest).expect("compiled anew");

        // Good code under another component's name is not that component's.
        let other = Digest::of(b"other");
        let renamed = path.with_file_name(
            path.file_name().expect("a name").to_string_lossy().replace(&digest.to_string(), &other.to_string()),
        );
        fs::write(&renamed, &good).expect("copying");
        engine.component(b"other", other).expect_err("not taken from the cache");
    }

    #[test]
    fn code_compiled_under_other_settings_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let digest = Digest::of(BYTES);
        engine(dir.path()).component(BYTES, digest).expect("compiled");
        let mut config = HostConfig::new(dir.path().join("plugins"), dir.path().join("state"));
        config.instance_memory_max_bytes = 1 << 20;
        let other = Engine::new(&config).expect("an engine");
        other.component(BYTES, digest).expect("compiled again");
        assert_eq!(cached(dir.path()).len(), 2);
        other.forget_compiled(|_| false);
        assert_eq!(cached(dir.path()).len(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn only_this_user_can_write_what_is_loaded_as_code() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let _engine = engine(dir.path());
        let mode = |path: &str| fs::metadata(dir.path().join(path)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("state"), mode("state/compiled")), (0o700, 0o700));
    }

    #[test]
    fn the_clock_ends_with_its_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine(dir.path());
        let ending = Arc::downgrade(&engine.ticker.winding_down);
        assert!(engine.clock_runs());
        drop(engine);
        // The thread held the other reference; dropping joined it.
        assert!(ending.upgrade().is_none());
    }

    #[test]
    fn the_clock_goes_on_while_an_instance_may_need_stopping() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut engine = engine(dir.path());
        let instance = engine.count_instance();
        engine.wind_down();
        let now = engine.wasm.weak();
        assert!(now.upgrade().is_some() && engine.clock_runs());
        drop(instance);
        // Ends by itself: joining without asking it to stop.
        let thread = engine.ticker.thread.take().expect("it runs");
        thread.join().expect("it never panics");
    }

    #[test]
    fn no_deadline_is_shorter_than_asked_for() {
        assert_eq!(ticks(Duration::from_millis(50)), 6);
        assert_eq!(ticks(Duration::from_millis(51)), 7);
        assert_eq!(ticks(Duration::ZERO), 1);
    }
}

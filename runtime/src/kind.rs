//! What a kind of plugin is: one WIT world as one typed, pure step.

use std::hash::Hash;

use serde::{Serialize, de::DeserializeOwned};
use wasmtime::{
    Store,
    component::{ComponentType, Instance, InstancePre, Lift, Lower},
};

use crate::{context::Context, limits::Limits, limits::Refusal};

/// A kind of plugin: the role it plays, typed by one WIT world whose interface is one pure step,
/// `(request, memory) -> (answer, memory)`.
///
/// The runtime does everything that all kinds share: the `tenon:host` lifecycle, the log import, loading, limits, swaps,
/// memory. A kind translates between its WIT types and the types its callers use, and says which answers are sound.
///
/// The two associated types and functions that [`world!`](crate::world!) writes come from `wasmtime::component::bindgen!`:
/// a kind may instead hold an enum of several versions' worlds.
pub trait Kind: Sized + Send + Sync + 'static {
    /// The kind's name: `rate-limit`.
    const NAME: &'static str;
    /// The interface that makes a component one of this kind: `tenon:rate-limit/policy@0.1.0`.
    const INTERFACE: &'static str;
    /// The world in full: `tenon:rate-limit/rate-limit-policy@0.1.0`.
    const WORLD: &'static str;
    /// The text of the world's WIT packages, dependencies first; `tenon:host` is known already. Components are compared
    /// with it before anything of them runs.
    const WIT: &'static [&'static str];

    /// Whose memory: one step at a time runs for one key.
    type Key: Hash + Eq + Clone + Serialize + DeserializeOwned + Send + 'static;
    /// What is asked.
    type Request: Clone + Serialize + DeserializeOwned + Send + 'static;
    /// What comes back.
    type Answer: Clone + PartialEq + Serialize + DeserializeOwned + Send + 'static;
    /// What is remembered for a key from step to step; the default at first.
    type Memory: Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + 'static;
    /// The memory as the kind's WIT has it, in its `migration` interface.
    type Wire: ComponentType + Lift + Lower + Send + Sync + 'static;
    /// Where the world's functions are in a component; found once a generation.
    type Indices: Send + Sync + 'static;
    /// The world's functions in one instance.
    type World: Send + 'static;

    /// The optional interface by which a version takes over another's memory, in full: `tenon:sync/migration@0.1.0`.
    const MIGRATION: Option<&'static str> = None;

    /// Whether a step begins with an empty memory where a version of the plugin cannot read the one that there is. Where not,
    /// that is a failure like any other: the memory stays as it was, and another version that can read it answers, or
    /// whoever stands in for a plugin. An operator who promotes the version by force lets it begin anew.
    const FORGETS: bool = true;

    /// Whether what is asked next follows from what was answered, as the blocks that arrive follow from those that a strategy
    /// asked for. What a candidate in the shadow answers nobody carries out, so its own memory would soon be of another
    /// world than the one it is asked about: with this it is handed the live version's memory for every call, where the
    /// caller keeps it and the candidate can read it.
    const STEERS: bool = false;

    /// A memory on its way to the guest.
    fn to_wire(memory: &Self::Memory) -> Self::Wire;

    /// A memory on its way back.
    fn from_wire(wire: Self::Wire) -> Self::Memory;

    /// Finds the world's functions. Errors: the component lacks one.
    fn prepare(component: &InstancePre<Context>) -> wasmtime::Result<Self::Indices>;

    /// Takes the world's functions from a fresh instance. Errors: one has another type than the world's.
    fn load(indices: &Self::Indices, store: &mut Store<Context>, instance: &Instance) -> wasmtime::Result<Self::World>;

    /// Calls the guest. Errors: whatever wasmtime reports; the instance is then dropped and the memory stays as it was.
    fn step(
        world: &Self::World,
        store: &mut Store<Context>,
        request: &Self::Request,
        memory: &Self::Memory,
    ) -> wasmtime::Result<(Self::Answer, Self::Memory)>;

    /// Whether the answer is one that the host may act on: the single place where that is decided, whatever version of
    /// the interface it came through. Errors: the rule it breaks; the call then counts as failed.
    fn check(request: &Self::Request, answer: &Self::Answer, limits: &Limits) -> Result<(), Refusal> {
        let _ = (request, answer, limits);
        Ok(())
    }

    /// The answer in one word, like `allow` or `throttle`: what differing answers are grouped by, and what budgets of a
    /// replay name.
    fn label(answer: &Self::Answer) -> &'static str;

    /// Whether two answers to one request that are not equal differ in what they decide: then they count against a
    /// candidate in the shadow. Where they only say it otherwise they are counted apart. By default any difference counts.
    fn diverges(live: &Self::Answer, candidate: &Self::Answer) -> bool {
        let _ = (live, candidate);
        true
    }

    /// Every word that [`label`](Self::label) can say, so that a budget which names another is refused at once. Empty:
    /// they are not known ahead.
    fn labels() -> &'static [&'static str] {
        &[]
    }

    /// What kind of request it is, in one word; what differing answers are grouped by. Empty: all are alike.
    fn class(request: &Self::Request) -> &'static str {
        let _ = request;
        ""
    }

    /// Whose request it is, as a number: requests of one subject are set aside together when a plugin keeps failing on
    /// them. None: they cannot be told apart.
    fn subject(request: &Self::Request) -> Option<u64> {
        let _ = request;
        None
    }

    /// The key under which steps are recorded whose memory the caller keeps; none: they are not recorded.
    fn step_key() -> Option<Self::Key> {
        None
    }

    /// Bytes of answer and memory beyond their own size in Rust; compared with [`Limits::answer_max_bytes`]. A kind
    /// whose answers and memories are plain values leaves it at 0.
    fn size_bytes(answer: &Self::Answer, memory: &Self::Memory) -> usize {
        let _ = (answer, memory);
        0
    }

    /// Whether the plugin leaves this one to the built-in.
    fn passes(answer: &Self::Answer) -> bool {
        let _ = answer;
        false
    }

    /// The answer of a failed plugin in a slot that fails open; none: the built-in answers.
    fn open(request: &Self::Request) -> Option<Self::Answer> {
        let _ = request;
        None
    }

    /// The answer of a failed plugin in a slot that fails closed; none: the built-in answers.
    fn closed(request: &Self::Request) -> Option<Self::Answer> {
        let _ = request;
        None
    }

    /// A harmless request that every candidate must answer before it goes live; none: configuring is the last check.
    fn probe() -> Option<Self::Request> {
        None
    }

    /// The request's moment in microseconds since 1970 UTC: what a guest that imports a WASI clock sees.
    fn now_us(request: &Self::Request) -> u64 {
        let _ = request;
        0
    }
}

/// Fills in the part of a [`Kind`] that `bindgen!` has generated: `world!(RateLimitPolicy, RateLimitPolicyIndices);`.
#[macro_export]
macro_rules! world {
    ($world:ty, $indices:ty) => {
        type World = $world;
        type Indices = $indices;

        fn prepare(
            component: &$crate::wasmtime::component::InstancePre<$crate::Context>,
        ) -> $crate::wasmtime::Result<Self::Indices> {
            <$indices>::new(component)
        }

        fn load(
            indices: &Self::Indices,
            store: &mut $crate::wasmtime::Store<$crate::Context>,
            instance: &$crate::wasmtime::component::Instance,
        ) -> $crate::wasmtime::Result<Self::World> {
            indices.load(store, instance)
        }
    };
}

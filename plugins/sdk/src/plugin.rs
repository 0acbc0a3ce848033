//! What every plugin says of itself, whatever its kind.

use serde::de::DeserializeOwned;

/// A configured plugin: made from its settings, then asked again and again.
///
/// It is never changed: between two calls only the memory that the node hands in is kept, and any instance may get any
/// call.
pub trait Plugin: Sized + 'static {
    /// The configuration, as the operator writes it under `[plugins.<slot>.config]`.
    type Settings: DeserializeOwned;

    /// JSON Schema of [`Settings`](Self::Settings). The node checks a configuration against it before the plugin sees it.
    const SCHEMA: &'static str = "{}";

    /// Which form the memory has: raise it when an older version's memory must not be read as it is. The node hands
    /// memory on to a new version of this plugin when the number is the same, or through its kind's `Migrate`; else
    /// memory begins anew, but for an agent's, which stays as it is and waits for a version that can read it.
    const MEMORY_VERSION: u32 = 1;

    /// Makes the plugin.
    ///
    /// Errors: what is wrong with the settings, in words for an operator; the node then keeps what it had.
    fn new(settings: Self::Settings) -> Result<Self, String>;
}

/// Reads the settings of `P` from a configuration, as `configure` does.
///
/// Errors: what does not fit, and where in the text.
pub fn settings<P: Plugin>(config: &str) -> Result<P::Settings, String> {
    serde_json::from_str(config).map_err(|error| error.to_string())
}

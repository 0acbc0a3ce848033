//! What the plugins and built-ins of a configuration say to their settings, found out without a node: a plugin host takes
//! the configured components from the plugin directory, as that of a starting node would, and is thrown away.
//!
//! `tenon config check` asks. A starting node does not: its own host finds out the same, and where a plugin is refused the
//! node runs with what served before, or with the built-in.

use std::path::Path;

use anyhow::{Context as _, Result};
use tenon_runtime::{Host, HostConfig, PluginConfig, PluginFile, Rollout, Stage, Status};

use crate::bindings::{AgentHandler, RateLimit, SyncStrategy, builtin};
use crate::config::{Config, Problem};
use crate::node;

/// A slot, and where it is configured.
struct Place {
    slot: String,
    /// Its section: `plugins.sync`, `agents[0]`.
    section: String,
    /// The knob there that names its plugin: `use`, `handler`.
    knob: &'static str,
    config: PluginConfig,
}

/// Adds to `problems` what the slots' plugins and built-ins say to their settings: an error where they are refused, a
/// warning where no file holds the plugin, in the place of what the files' names alone had suggested.
///
/// Errors: not about the configuration; the machine has no room for a plugin host.
pub fn rehearse(config: &Config, problems: &mut Vec<Problem>) -> Result<()> {
    let places = places(config);
    if let Err(reason) = node::rate_limit_builtin(&config.plugins.rate_limit) {
        problems.push(Problem::found("plugins.rate-limit.config", format!("slot rate-limit: {reason}")));
    }
    problems.extend(places.iter().filter_map(idle_settings));
    // With keys wanted and none given no component is taken at all, which has been told.
    let directory = &config.plugins.directory;
    let takes_none = directory.require_signature && directory.trusted_keys.is_empty();
    if !takes_none && places.iter().any(|place| place.config.plugin.is_some()) {
        // A component's name is what it says of itself, and that is known from here on.
        problems.retain(|problem| !places.iter().any(|place| problem.key == place.key(place.knob)));
        problems.extend(plugin_problems(config, &places)?);
    }
    // Stable: within a severity the order stays.
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    Ok(())
}

impl Place {
    fn key(&self, knob: &str) -> String {
        format!("{}.{knob}", self.section)
    }
}

fn places(config: &Config) -> Vec<Place> {
    let place = |slot: String, section: String, knob, config: PluginConfig| {
        // Taken or not taken is what is asked, and nobody calls it.
        let config = PluginConfig { rollout: Rollout::Immediate, journal: None, ..config };
        Place { slot, section, knob, config }
    };
    let plugins = &config.plugins;
    let named = [("rate-limit", &plugins.rate_limit), ("sync", &plugins.sync)]
        .map(|(name, slot)| place(name.to_owned(), format!("plugins.{name}"), "use", slot.plugin_config()));
    let agents = config.agents.iter().enumerate();
    let agents =
        agents.map(|(at, agent)| place(agent.slot(), format!("agents[{at}]"), "handler", agent.plugin_config()));
    named.into_iter().chain(agents).collect()
}

/// Settings of a slot whose built-in serves and has none.
fn idle_settings(place: &Place) -> Option<Problem> {
    let is_idle = place.config.plugin.is_none() && place.slot != "rate-limit";
    let has_any = place.config.settings.as_object().is_some_and(|settings| !settings.is_empty());
    let text = format!("slot {} has no plugin, and its built-in takes no settings: these change nothing", place.slot);
    (is_idle && has_any).then(|| Problem::warning(&place.key("config"), text))
}

fn plugin_problems(config: &Config, places: &[Place]) -> Result<Vec<Problem>> {
    let scratch = tempfile::tempdir().context("creating a folder")?;
    let of_node = node::host_config(config, &scratch.path().join("state"));
    let dir = of_node.plugin_dir.clone();
    // A host makes the folder where it is missing, and who checks changes nothing.
    let plugin_dir = if dir.is_dir() { dir.clone() } else { scratch.path().join("plugins") };
    // Each is judged by itself, whatever else would switch with it.
    let host = Host::new(HostConfig { plugin_dir, sets: Vec::new(), ..of_node }).context("starting Wasm")?;
    host.kind::<AgentHandler>()?;
    let mut problems = Vec::new();
    for Place { slot, section, config: plugin, .. } in places {
        let added = match slot.as_str() {
            "rate-limit" => match node::rate_limit_builtin(&config.plugins.rate_limit) {
                Ok(builtin) => host.slot::<RateLimit>(slot, plugin.clone(), builtin).map(drop),
                // It has been told.
                Err(_) => host.kind::<RateLimit>(),
            },
            "sync" => host.slot::<SyncStrategy>(slot, plugin.clone(), builtin::OnePeer).map(drop),
            _ => host.slot::<AgentHandler>(slot, plugin.clone(), builtin::Park).map(drop),
        };
        if let Err(error) = added {
            problems.push(Problem::found(section, format!("{error:#}")));
        }
    }
    let report = host.open();
    host.stop();
    let problem = |place: &Place| {
        let status = report.slots.iter().find(|status| status.slot == place.slot)?;
        plugin_problem(place, status, &report.plugins, &dir)
    };
    problems.extend(places.iter().filter_map(problem));
    Ok(problems)
}

/// Why the plugin of a slot would not serve.
fn plugin_problem(place: &Place, status: &Status, files: &[PluginFile], dir: &Path) -> Option<Problem> {
    let (slot, plugin) = (&place.slot, place.config.plugin.as_deref()?);
    let reason = status.refused.as_deref()?;
    let is_its = |file: &&PluginFile| {
        file.kind == Some(status.kind) && file.name.as_deref() == Some(plugin) && file.shadowed_by.is_none()
    };
    let Some(file) = files.iter().find(is_its) else {
        let text = format!("slot {slot}: in {}, {reason}; the built-in serves until there is one", dir.display());
        return Some(Problem::warning(&place.key(place.knob), text));
    };
    let about_settings = |stage| matches!(stage, Stage::Settings | Stage::Configure);
    let of_settings = status.candidate.as_ref().is_none_or(|rejection| about_settings(rejection.stage));
    let key = place.key(if of_settings { "config" } else { place.knob });
    let file = dir.join(&file.path);
    Some(Problem::found(&key, format!("slot {slot}: plugin {plugin} of {} is refused: {reason}", file.display())))
}

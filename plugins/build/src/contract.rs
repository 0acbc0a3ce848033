//! The WIT packages of this release, as a build tool that has left the repository needs them: inside.

use anyhow::{Context, Result, bail};
use wit_parser::{Resolve, WorldId};

const PACKAGES: [(&str, &str); 5] = [
    ("host.wit", include_str!("../../../wit/host/host.wit")),
    ("chain.wit", include_str!("../../../wit/chain/chain.wit")),
    ("policy.wit", include_str!("../../../wit/rate-limit/policy.wit")),
    ("strategy.wit", include_str!("../../../wit/sync/strategy.wit")),
    ("handler.wit", include_str!("../../../wit/agent/handler.wit")),
];

/// The world a kind is, and the interface by which a component shows that it means to be of that kind.
const KINDS: [(&str, &str, &str); 3] = [
    ("tenon:rate-limit", "rate-limit-policy", "tenon:rate-limit/policy@"),
    ("tenon:sync", "sync-strategy", "tenon:sync/strategy@"),
    ("tenon:agent", "agent-handler", "tenon:agent/handler@"),
];

/// All packages, parsed.
pub fn resolve() -> Result<Resolve> {
    let mut resolve = Resolve::default();
    for (name, text) in PACKAGES {
        resolve.push_str(name, text).with_context(|| format!("parsing {name}"))?;
    }
    Ok(resolve)
}

/// The world `world` of `package`, which is written without a version.
pub fn world(resolve: &Resolve, package: &str, world: &str) -> Result<WorldId> {
    let found = resolve.packages.iter().find(|(_, candidate)| {
        let name = &candidate.name;
        format!("{}:{}", name.namespace, name.name) == package
    });
    let (_, found) = found.with_context(|| format!("no WIT package {package}"))?;
    found.worlds.get(world).copied().with_context(|| format!("no world {world} in {package}"))
}

/// What the names of the worlds end in that export the kind's `migration` as well.
const MIGRATING: &str = "-migrating";

/// Checks `component` against the world of its kind; one that exports `migration`, against the world with it.
///
/// Errors: it is of no kind, or it lacks, mistypes or imports something; the text says what.
pub fn check(component: &[u8]) -> Result<()> {
    let decoded = wit_component::decode(component).context("reading the component's own world")?;
    let wit_component::DecodedWasm::Component(own, own_world) = decoded else {
        bail!("this is a WIT package, not a component");
    };
    let exports: Vec<String> = own.worlds[own_world].exports.keys().map(|key| own.name_world_key(key)).collect();
    let kind = KINDS.iter().find(|(_, _, interface)| exports.iter().any(|name| name.starts_with(interface)));
    let Some((package, name, _)) = kind else {
        let known: Vec<&str> = KINDS.iter().map(|(_, world, _)| *world).collect();
        bail!("exports {exports:?}: none of the worlds {}", known.join(", "));
    };
    let migration = format!("{package}/migration@");
    let migrates = exports.iter().any(|name| name.starts_with(&migration));
    let name = if migrates { format!("{name}{MIGRATING}") } else { (*name).to_owned() };
    let resolve = resolve()?;
    let world = world(&resolve, package, &name)?;
    wit_component::targets(&resolve, world, component).with_context(|| format!("does not fit the world {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_names_a_world_of_the_contract() {
        let resolve = resolve().unwrap();
        for (package, name, interface) in KINDS {
            let world = world(&resolve, package, name).unwrap();
            let exports = &resolve.worlds[world].exports;
            assert!(exports.keys().any(|key| resolve.name_world_key(key).starts_with(interface)), "{name}");
            let migrating = super::world(&resolve, package, &format!("{name}{MIGRATING}")).unwrap();
            assert_eq!(resolve.worlds[migrating].exports.len(), exports.len() + 1, "{name}");
        }
    }
}

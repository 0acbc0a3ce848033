//! Components made without a compiler, for tests of hosts: they fit a world, or miss it in one respect, and every function
//! of theirs traps.

use anyhow::{Context, Result};
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve, WorldId};

use crate::contract;

/// A world that no host of Tenon has.
pub const FOREIGN_WORLD: &str = r"
package someone:elses@1.0.0;
interface work { run: func(n: u32) -> u32; }
world worker { export work; }
";

/// The world `rate-limit-policy` without its `lifecycle`.
pub const MISSING_EXPORT: &str = r"
package someone:policy@1.0.0;
world no-lifecycle { export tenon:rate-limit/policy@0.1.0; }
";

/// The world `rate-limit-policy` and something from outside: a permission that no host gives.
pub const FOREIGN_IMPORT: &str = r"
package someone:policy@1.0.0;
interface files { read: func(path: string) -> list<u8>; }
world reads-files {
  include tenon:rate-limit/rate-limit-policy@0.1.0;
  import files;
}
";

/// A component of the world `name` (`rate-limit-policy`, `sync-strategy`, `agent-handler`) whose functions all trap.
pub fn idle(name: &str) -> Result<Vec<u8>> {
    let resolve = contract::resolve()?;
    let (_, found) = resolve
        .packages
        .iter()
        .find(|(_, package)| package.worlds.contains_key(name))
        .with_context(|| format!("no world {name} in the contract"))?;
    let world = found.worlds[name];
    component(&resolve, world)
}

/// A component of the only world in `wit`, a package that may use those of Tenon ([`FOREIGN_WORLD`] and the others here
/// are such texts). Its functions all trap; it imports all that its world imports.
pub fn of_world(wit: &str) -> Result<Vec<u8>> {
    let mut resolve = contract::resolve()?;
    let package = resolve.push_str("fixture.wit", wit).context("parsing the fixture's WIT")?;
    let world = resolve.select_world(&[package], None).context("choosing the fixture's world")?;
    component(&resolve, world)
}

fn component(resolve: &Resolve, world: WorldId) -> Result<Vec<u8>> {
    let mut module = dummy_module(resolve, world, ManglingAndAbi::Standard32);
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8)?;
    ComponentEncoder::default().module(&module)?.validate(true).encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_world_has_an_idle_component_that_fits() {
        for world in ["rate-limit-policy", "sync-strategy", "agent-handler"] {
            contract::check(&idle(world).unwrap()).unwrap();
        }
        assert!(idle("no-such-world").is_err());
    }

    #[test]
    fn wrong_worlds_are_components_that_do_not_fit() {
        for wit in [FOREIGN_WORLD, MISSING_EXPORT, FOREIGN_IMPORT] {
            let component = of_world(wit).unwrap();
            assert!(contract::check(&component).is_err(), "{wit}");
        }
    }
}

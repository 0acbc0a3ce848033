//! Components made without a compiler, for tests of hosts: they fit a world, or miss it in one respect, and every function
//! of theirs traps.

use anyhow::{Context, Result};
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve, WorldId};

use crate::component::encode;
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

/// A component of the world `name` (`rate-limit-policy`, `sync-strategy`, `agent-handler`, or one of these and
/// `-migrating`) whose functions all trap.
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

/// What a component made by [`describing`] says about itself. The default is in order.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its summary.
    pub summary: String,
    /// The schema of its configuration.
    pub config_schema: String,
    /// The form of its memory.
    pub memory_version: u32,
}

impl Default for Description {
    fn default() -> Self {
        Self {
            name: "described".to_owned(),
            version: "0.1.0".to_owned(),
            summary: "Says what it is told to say".to_owned(),
            config_schema: "{}".to_owned(),
            memory_version: 1,
        }
    }
}

/// A rate-limit policy that describes itself like this, takes any configuration, has no opinion on any request
/// (`pass`), and keeps every cell as it is.
pub fn describing(description: &Description) -> Result<Vec<u8>> {
    let resolve = contract::resolve()?;
    let world = contract::world(&resolve, "tenon:rate-limit", "rate-limit-policy")?;
    let mut module = wat::parse_str(policy_text(description)).context("assembling the fixture")?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    encode(&module)
}

/// The core module of [`describing`], by the canonical ABI: results that are more than one word lie in memory.
fn policy_text(description: &Description) -> String {
    /// Where the description, four texts by address and length and a number, lies.
    const RECORD: usize = 64;
    /// Where its texts begin.
    const TEXTS: usize = 128;
    const PAGE: usize = 65_536;
    let Description { name, version, summary, config_schema, memory_version } = description;
    let (mut record, mut texts) = (Vec::new(), String::new());
    for text in [name, version, summary, config_schema] {
        record.extend(((TEXTS + texts.len()) as u32).to_le_bytes());
        record.extend((text.len() as u32).to_le_bytes());
        texts += text;
    }
    record.extend(memory_version.to_le_bytes());
    let heap = (TEXTS + texts.len()).next_multiple_of(8);
    let pages = heap / PAGE + 2;
    let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>();
    let (record, texts) = (escaped(&record), escaped(texts.as_bytes()));
    format!(
        r#"(module
  (memory (export "memory") {pages})
  (data (i32.const {RECORD}) "{record}")
  (data (i32.const {TEXTS}) "{texts}")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
    ;; Nothing is kept from call to call, so every text may lie at the same place.
    (local.set $at (i32.const {heap}))
    (block $fits
      (br_if $fits (i32.le_u (i32.add (local.get $at) (local.get 3)) (i32.mul (memory.size) (i32.const {PAGE}))))
      (drop (memory.grow (i32.add (i32.div_u (local.get 3) (i32.const {PAGE})) (i32.const 1)))))
    (local.get $at))
  (func (export "tenon:host/lifecycle@0.1.0#describe") (result i32) (i32.const {RECORD}))
  (func (export "tenon:host/lifecycle@0.1.0#configure") (param i32 i32) (result i32)
    (i32.store8 (i32.const 0) (i32.const 0))
    (i32.const 0))
  (func (export "tenon:rate-limit/policy@0.1.0#check")
    (param i64 i32 i32 i32 i64 i64 i64 i64 i64 i64) (result i32)
    (i32.store8 (i32.const 0) (i32.const 3))
    (i64.store (i32.const 32) (local.get 6))
    (i64.store (i32.const 40) (local.get 7))
    (i64.store (i32.const 48) (local.get 8))
    (i64.store (i32.const 56) (local.get 9))
    (i32.const 0)))"#
    )
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
            contract::check(&idle(&format!("{world}-migrating")).unwrap()).unwrap();
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

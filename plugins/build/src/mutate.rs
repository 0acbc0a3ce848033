//! Components that are nearly right: one instruction differs, in type and size the same, as if an author had slipped.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use wasmparser::{Encoding, ExternalKind, FunctionBody, Operator, Parser, Payload, TypeRef};
use wit_parser::decoding::{DecodedWasm, decode};
use wit_parser::{LiftLowerAbi, ManglingAndAbi, WasmExport, WasmExportKind, WorldItem};

/// Up to `count` versions of `component`, each with one other instruction (`<` for `<=` or for `>`, `+` for `-`, a constant
/// that is off by one) in what runs when `export` is called; the same ones for the same `seed`, fewer where there are fewer
/// slips to make.
///
/// `export` is an interface and one of its functions: `tenon:rate-limit/policy@0.1.0#check`. What runs is the core function
/// behind it, by the names that encoders of components give those, and all that it calls directly. Two kinds of calls are
/// not followed: those through a table, and those that are known to trap (an `unreachable` stands behind them), since
/// neither the text of a panic nor how it is formatted is an answer. A comparison by which a `select` chooses is turned
/// round and not moved by one: that is a least or a most nearly always, and `<` and `<=` choose the same then.
///
/// Errors: it is no component, it does not export that function, or none of its modules has it by a known name.
pub fn mutants(component: &[u8], export: &str, seed: u64, count: usize) -> Result<Vec<Vec<u8>>> {
    let mut slips = slips(component, export)?;
    let mut state = seed;
    let mut mutants = Vec::new();
    while mutants.len() < count && !slips.is_empty() {
        // Knuth's multiplier; the upper bits are the random ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let chosen = (state >> 33) as usize % slips.len();
        let (at, byte) = slips.swap_remove(chosen);
        let mut mutant = component.to_vec();
        mutant[at] = byte;
        mutants.push(mutant);
    }
    Ok(mutants)
}

/// A core module, as far as it matters who calls whom.
#[derive(Default)]
struct Module {
    imported: u32,
    /// By name, the number of the function.
    exports: BTreeMap<String, u32>,
    /// Those that it defines, in order; their numbers follow those of the imported ones.
    functions: Vec<Function>,
}

#[derive(Default)]
struct Function {
    calls: BTreeSet<u32>,
    /// Where a byte of the component can be another one, and which.
    slips: Vec<(usize, u8)>,
}

/// Where a byte can differ in what `export` runs, and which byte it is then.
fn slips(component: &[u8], export: &str) -> Result<Vec<(usize, u8)>> {
    let names = core_names(component, export)?;
    let modules = modules(component).context("reading the component")?;
    let root = |module: &Module| names.iter().find_map(|name| module.exports.get(name).copied());
    let found = modules.iter().find_map(|module| Some((module, root(module)?)));
    let (module, root) = found.with_context(|| format!("no module exports {}", names.join(" or ")))?;
    let mut waiting = vec![root];
    let (mut met, mut slips) = (BTreeSet::new(), Vec::new());
    while let Some(number) = waiting.pop() {
        // One that is imported has no body here.
        let own = number.checked_sub(module.imported).and_then(|own| module.functions.get(own as usize));
        if let Some(function) = own
            && met.insert(number)
        {
            waiting.extend(&function.calls);
            slips.extend(&function.slips);
        }
    }
    Ok(slips)
}

/// What the core function behind `export` is called: there are two ways to write it.
fn core_names(component: &[u8], export: &str) -> Result<[String; 2]> {
    let (resolve, world) = match decode(component).context("reading the component's types")? {
        DecodedWasm::Component(resolve, world) => (resolve, world),
        DecodedWasm::WitPackage(..) => bail!("an encoded WIT package, not a component"),
    };
    let (interface, function) = export.split_once('#').with_context(|| format!("{export} has no #"))?;
    let exports = &resolve.worlds[world].exports;
    let found = exports.iter().find_map(|(key, item)| match item {
        WorldItem::Interface { id, .. } if resolve.name_world_key(key) == interface => {
            Some((key, resolve.interfaces[*id].functions.get(function)?))
        }
        _ => None,
    });
    let (key, func) = found.with_context(|| {
        let names: Vec<String> = exports.keys().map(|key| resolve.name_world_key(key)).collect();
        format!("no function {function} in an exported interface {interface}, but the interfaces {}", names.join(", "))
    })?;
    let name = |mangling| {
        let kind = WasmExportKind::Normal;
        resolve.wasm_export_name(mangling, WasmExport::Func { interface: Some(key), func, kind })
    };
    Ok([name(ManglingAndAbi::Legacy(LiftLowerAbi::Sync)), name(ManglingAndAbi::Standard32)])
}

/// The core modules in `component`, at any depth.
fn modules(component: &[u8]) -> Result<Vec<Module>> {
    let mut modules = Vec::new();
    // What is open: modules, and (none) components around them.
    let mut open: Vec<Option<Module>> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match (payload?, open.last_mut()) {
            (Payload::Version { encoding, .. }, _) => {
                open.push((encoding == Encoding::Module).then(Module::default));
            }
            (Payload::End(_), _) => modules.extend(open.pop().flatten()),
            (Payload::ImportSection(section), Some(Some(module))) => {
                for import in section.into_imports() {
                    module.imported += u32::from(matches!(import?.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)));
                }
            }
            (Payload::ExportSection(section), Some(Some(module))) => {
                for export in section {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        module.exports.insert(export.name.to_owned(), export.index);
                    }
                }
            }
            (Payload::CodeSectionEntry(body), Some(Some(module))) => module.functions.push(function(&body)?),
            _ => {}
        }
    }
    Ok(modules)
}

fn function(body: &FunctionBody<'_>) -> Result<Function> {
    let mut function = Function::default();
    // A call, until it is known whether it comes back; a bound, until it is known whether it is the least's or the most's.
    let (mut called, mut bound) = (None, None);
    for operator in body.get_operators_reader()?.into_iter_with_offsets() {
        let (operator, at) = operator?;
        if !matches!(operator, Operator::Unreachable) {
            function.calls.extend(called);
        }
        function.slips.extend(bound.take().filter(|_| !matches!(operator, Operator::Select)));
        called = match operator {
            Operator::Call { function_index } | Operator::ReturnCall { function_index } => Some(function_index),
            _ => None,
        };
        bound = bound_moved(&operator).map(|other| (at, other));
        function.slips.extend(replaced(&operator).iter().map(|&other| (at, other)));
        // A constant's value stands behind its opcode.
        function.slips.extend(constants_beside(&operator).map(|other| (at + 1, other)));
    }
    Ok(function)
}

/// The opcode of the same comparison that takes equal numbers for the other case.
fn bound_moved(operator: &Operator<'_>) -> Option<u8> {
    Some(match operator {
        Operator::I64LtU => 0x58,
        Operator::I64LeU => 0x54,
        Operator::I64GtU => 0x5a,
        Operator::I64GeU => 0x56,
        Operator::I32LtU => 0x4d,
        Operator::I32LeU => 0x49,
        Operator::I32GtU => 0x4f,
        Operator::I32GeU => 0x4b,
        _ => return None,
    })
}

/// The opcodes of other instructions of the same type that may be written in the place of `operator` by mistake.
fn replaced(operator: &Operator<'_>) -> &'static [u8] {
    match operator {
        // One operation for another.
        Operator::I64Add => &[0x7d, 0x7e],
        Operator::I64Sub => &[0x7c],
        Operator::I64Mul => &[0x7c, 0x80],
        Operator::I64DivU => &[0x82, 0x7e],
        Operator::I64RemU => &[0x80],
        Operator::I64Shl => &[0x88],
        Operator::I64ShrU => &[0x86],
        Operator::I32Add => &[0x6b],
        Operator::I32Sub => &[0x6a],
        Operator::I32Mul => &[0x6a],
        // Both for either.
        Operator::I64And => &[0x84],
        Operator::I64Or => &[0x83],
        Operator::I32And => &[0x72],
        Operator::I32Or => &[0x71],
        // The sides of a comparison changed over.
        Operator::I64LtU => &[0x56],
        Operator::I64LeU => &[0x5a],
        Operator::I64GtU => &[0x54],
        Operator::I64GeU => &[0x58],
        Operator::I32LtU => &[0x4b],
        Operator::I32LeU => &[0x4f],
        Operator::I32GtU => &[0x49],
        Operator::I32GeU => &[0x4d],
        // A condition turned into its contrary.
        Operator::I64Eq => &[0x52],
        Operator::I64Ne => &[0x51],
        Operator::I32Eq => &[0x47],
        Operator::I32Ne => &[0x46],
        _ => &[],
    }
}

/// The constants one above and one below, where either is written in one byte and stays in one.
fn constants_beside(operator: &Operator<'_>) -> impl Iterator<Item = u8> {
    let value = match operator {
        Operator::I64Const { value } => Some(*value),
        Operator::I32Const { value } => Some(i64::from(*value)),
        _ => None,
    };
    let value = value.and_then(|value| u8::try_from(value).ok()).filter(|value| *value < 64);
    let above = value.filter(|value| *value < 63).map(|value| value + 1);
    above.into_iter().chain(value.and_then(|value| value.checked_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: &str = "tenon:rate-limit/policy@0.1.0#check";

    /// Every place is a constant of its own, which says in which function it is.
    const CALLS: &str = r#"
(component
  (core module $other
    (func (export "log"))
    (func (export "cm32p2|x:y/z|check") i64.const 50 drop))
  (core module $main
    (import "host" "log" (func $log))
    (type $nothing (func))
    (table 1 funcref)
    (elem (i32.const 0) $by-table)
    (func $check (export "tenon:rate-limit/policy@0.1.0#check")
      i64.const 1 drop
      call $log
      call $direct
      i32.const -1
      call_indirect (type $nothing))
    (func $configure (export "tenon:host/lifecycle@0.1.0#configure")
      i64.const 20 drop
      call $shared
      call $only-configure)
    (func $direct
      i64.const 2 drop
      call $shared
      call $direct
      block call $panic unreachable end)
    (func $shared i64.const 3 drop)
    (func $only-configure i64.const 21 drop)
    (func $panic i64.const 22 drop call $formats unreachable)
    (func $formats i64.const 23 drop)
    (func $by-table i64.const 24 drop))
  (core instance $host (instantiate $other))
  (core instance $plugin (instantiate $main (with "host" (instance $host))))
  (func $z (canon lift (core func $host "cm32p2|x:y/z|check")))
  (instance $the-z (export "check" (func $z)))
  (export "x:y/z" (instance $the-z))
  (func $check (canon lift (core func $plugin "tenon:rate-limit/policy@0.1.0#check")))
  (instance $policy (export "check" (func $check)))
  (export "tenon:rate-limit/policy@0.1.0" (instance $policy))
  (func $configure (canon lift (core func $plugin "tenon:host/lifecycle@0.1.0#configure")))
  (instance $lifecycle (export "configure" (func $configure)))
  (export "tenon:host/lifecycle@0.1.0" (instance $lifecycle)))"#;

    /// The values of all 64-bit constants in `component`.
    fn constants(component: &[u8]) -> Vec<i64> {
        let mut constants = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            if let Payload::CodeSectionEntry(body) = payload.unwrap() {
                for operator in body.get_operators_reader().unwrap() {
                    if let Operator::I64Const { value } = operator.unwrap() {
                        constants.push(value);
                    }
                }
            }
        }
        constants
    }

    #[test]
    fn only_what_the_export_runs_is_changed() {
        let component = wat::parse_str(CALLS).unwrap();
        let before = constants(&component);
        let changed = |export: &str| -> BTreeSet<i64> {
            let mutants = mutants(&component, export, 1, 100).unwrap();
            let constants = mutants.iter().map(|mutant| constants(mutant));
            let changes: Vec<Vec<i64>> = constants
                .map(|after| {
                    before
                        .iter()
                        .zip(after)
                        .filter(|(before, after)| *before != after)
                        .map(|(before, _)| *before)
                        .collect()
                })
                .collect();
            assert!(changes.iter().all(|values| values.len() == 1), "{changes:?}");
            changes.into_iter().flatten().collect()
        };
        assert_eq!(changed(CHECK), BTreeSet::from([1, 2, 3]));
        assert_eq!(changed("tenon:host/lifecycle@0.1.0#configure"), BTreeSet::from([3, 20, 21]));
        assert_eq!(changed("x:y/z#check"), BTreeSet::from([50]));
        let error = |export: &str| mutants(&component, export, 1, 1).unwrap_err().to_string();
        let there = "but the interfaces x:y/z, tenon:rate-limit/policy@0.1.0, tenon:host/lifecycle@0.1.0";
        assert_eq!(error("x:y/z#chek"), format!("no function chek in an exported interface x:y/z, {there}"));
        assert_eq!(error("x:y/a#check"), format!("no function check in an exported interface x:y/a, {there}"));
        let renamed = wat::parse_str(CALLS.replace("cm32p2|x:y/z|check", "run")).unwrap();
        let error = mutants(&renamed, "x:y/z#check", 1, 1).unwrap_err().to_string();
        assert_eq!(error, "no module exports x:y/z#check or cm32p2|x:y/z|check");
    }

    #[test]
    fn the_least_of_two_numbers_may_become_the_most_and_no_other_least() {
        let body = |condition: &str, chooses: &str| {
            let text = format!(
                "(module (func $check (param i64 i64) (result i64)
                   local.get 0 local.get 1 local.get 0 local.get 1 {condition} {chooses}))"
            );
            let slips = &modules(&wat::parse_str(text).unwrap()).unwrap()[0].functions[0].slips;
            slips.iter().map(|(_, other)| *other).collect::<Vec<_>>()
        };
        let (greater, at_most, differs) = (0x56, 0x58, 0x52);
        assert_eq!(body("i64.lt_u", "select"), [greater]);
        assert_eq!(body("i64.eq", "select"), [differs]);
        let branches = "if (result i64) i64.const 1 else i64.const 63 end return";
        assert_eq!(body("i64.lt_u", branches), [greater, at_most, 2, 0, 62]);
    }

    #[test]
    fn each_mutant_differs_in_one_byte_and_is_still_a_component() {
        let component = crate::fixture::idle("rate-limit-policy").unwrap();
        assert!(mutants(&component, CHECK, 1, 10).unwrap().len() <= 10, "there may be nothing to change in it");
        let component = std::fs::read(crate::path("token-bucket")).unwrap();
        let some = mutants(&component, CHECK, 1, 50).unwrap();
        assert_eq!(some.len(), 50);
        assert_eq!(some, mutants(&component, CHECK, 1, 50).unwrap());
        assert_ne!(some, mutants(&component, CHECK, 2, 50).unwrap());
        for mutant in &some {
            let differing = component.iter().zip(mutant).filter(|(one, other)| one != other).count();
            assert_eq!((differing, mutant.len()), (1, component.len()));
            Parser::new(0).parse_all(mutant).for_each(|payload| drop(payload.unwrap()));
        }
        let all = |export: &str| slips(&component, export).unwrap().len();
        let configure = all("tenon:host/lifecycle@0.1.0#configure");
        assert!(all(CHECK) * 4 < configure, "{} slips in check, {configure} in configure", all(CHECK));
        println!("{} slips in check, {configure} in configure", all(CHECK));
        assert!(all(CHECK) >= 200, "{}: as many as the bench replays", all(CHECK));
    }
}

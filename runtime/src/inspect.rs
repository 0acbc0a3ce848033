//! Compares a component with a kind's world before anything of it is compiled or run, and names every difference.

use std::{fmt::Write as _, sync::Arc};

use anyhow::Context as _;
use wasmtime::{
    Store,
    component::{Instance, InstancePre},
};
use wit_parser::{
    Function, InterfaceId, Resolve, Type, TypeDefKind, WorldId, WorldItem, WorldKey,
    decoding::{DecodedWasm, decode},
};

use crate::{context::Context, kind::Kind};

/// The text of `tenon:host`.
pub(crate) const HOST_WIT: &str = include_str!("../../wit/host/host.wit");

/// Interfaces of foreign toolchains; the host answers them, but gives nothing away.
pub(crate) const WASI: &str = "wasi:";

/// The preamble of a core module; a component's differs in the version.
const CORE_MODULE: [u8; 8] = *b"\0asm\x01\0\0\0";
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";

/// A kind without its types.
pub(crate) struct KindInfo {
    pub(crate) name: &'static str,
    pub(crate) interface: &'static str,
    pub(crate) world: &'static str,
    resolve: Resolve,
    world_id: WorldId,
    /// What it may export beyond its world.
    migration: Option<(&'static str, InterfaceId)>,
    /// Whether the kind's functions can be taken from an instance.
    pub(crate) check: fn(&InstancePre<Context>, &mut Store<Context>, &Instance) -> wasmtime::Result<()>,
}

impl KindInfo {
    /// Errors: the kind's own WIT is wrong, or lacks what the kind names.
    pub(crate) fn of<K: Kind>() -> anyhow::Result<KindInfo> {
        let mut resolve = Resolve::default();
        let mut package = resolve.push_source("host.wit", HOST_WIT)?;
        for (number, text) in K::WIT.iter().enumerate() {
            package = resolve.push_source(&format!("{}-{number}.wit", K::NAME), text)?;
        }
        let world_id = resolve.select_world(&[package], Some(K::WORLD))?;
        let migration = match K::MIGRATION {
            None => None,
            Some(name) => {
                let mut interfaces = resolve.interfaces.iter().map(|(id, _)| id);
                let found = interfaces.find(|id| resolve.id_of(*id).as_deref() == Some(name));
                Some((name, found.with_context(|| format!("the WIT of {} lacks {name}", K::NAME))?))
            }
        };
        Ok(KindInfo {
            name: K::NAME,
            interface: K::INTERFACE,
            world: K::WORLD,
            resolve,
            world_id,
            migration,
            check: |component, store, instance| K::load(&K::prepare(component)?, store, instance).map(drop),
        })
    }
}

/// The kind that `bytes` is a component of. Errors: everything that is wrong, one line each.
pub(crate) fn inspect(kinds: &[Arc<KindInfo>], bytes: &[u8]) -> Result<Arc<KindInfo>, Vec<String>> {
    let (resolve, world) = component_of(bytes).map_err(|problem| vec![problem])?;
    let kind = kind_of(kinds, &resolve, world).map_err(|problem| vec![problem])?;
    let problems = differences(kind, &resolve, world);
    if problems.is_empty() { Ok(Arc::clone(kind)) } else { Err(problems) }
}

fn component_of(bytes: &[u8]) -> Result<(Resolve, WorldId), String> {
    if bytes.starts_with(&CORE_MODULE) {
        return Err("a core module, not a component: build it with `tenon plugin build`, or encode it \
             with `wasm-tools component new`"
            .into());
    }
    if !bytes.starts_with(&COMPONENT) {
        return Err("not a WebAssembly component".into());
    }
    // The bytes are anybody's: whatever the decoder does with them must not take the control thread along.
    match std::panic::catch_unwind(|| decode(bytes)) {
        Ok(Ok(DecodedWasm::Component(resolve, world))) => Ok((resolve, world)),
        Ok(Ok(DecodedWasm::WitPackage(..))) => Err("an encoded WIT package, not a component".into()),
        Ok(Err(error)) => Err(format!("not a valid component: {error:#}")),
        Err(_) => Err("not a valid component: its types cannot be decoded".into()),
    }
}

fn kind_of<'a>(kinds: &'a [Arc<KindInfo>], resolve: &Resolve, world: WorldId) -> Result<&'a Arc<KindInfo>, String> {
    let exports = names(resolve, resolve.worlds[world].exports.keys());
    let fits = |kind: &&Arc<KindInfo>| {
        let mut exports = exports.iter();
        exports.any(|export| same_interface(export, kind.interface) == Some(true))
    };
    let mut fitting = kinds.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(kind), None) => Ok(kind),
        (Some(one), Some(other)) => {
            Err(format!("exports {} and {}: a component is of one kind", one.interface, other.interface))
        }
        (None, _) => {
            for kind in kinds {
                for export in &exports {
                    if same_interface(export, kind.interface) == Some(false) {
                        return Err(format!("exports {export}, this host serves {}", kind.interface));
                    }
                }
            }
            let served: Vec<&str> = kinds.iter().map(|kind| kind.interface).collect();
            Err(format!(
                "exports none of the interfaces that this host serves ({}), but {}",
                served.join(", "),
                if exports.is_empty() { "nothing".into() } else { exports.join(", ") }
            ))
        }
    }
}

/// Every import and export of `world` that does not fit `kind`.
fn differences(kind: &KindInfo, resolve: &Resolve, world: WorldId) -> Vec<String> {
    let (actual, expected) = (&resolve.worlds[world], &kind.resolve.worlds[kind.world_id]);
    let mut problems = Vec::new();
    let mut export = |name: &str, expected: InterfaceId, must: bool| {
        let is_it = |(key, _): &(&WorldKey, _)| same_interface(&resolve.name_world_key(key), name) == Some(true);
        match actual.exports.iter().find(is_it).map(|(_, item)| item) {
            None => {
                let exports = names(resolve, actual.exports.keys());
                match exports.iter().find(|export| same_interface(export, name) == Some(false)) {
                    // Also of one that need not be there: who brings it means it to be used.
                    Some(other) => problems.push(format!("exports {other}, this host serves {name}")),
                    None if must => problems.push(format!("missing export {name}")),
                    None => {}
                }
            }
            Some(WorldItem::Interface { id, .. }) => {
                functions(name, "lacks", &kind.resolve, expected, resolve, *id, &mut problems);
            }
            Some(_) => problems.push(format!("export {name} is not an interface")),
        }
    };
    for (key, item) in &expected.exports {
        if let WorldItem::Interface { id, .. } = item {
            export(&kind.resolve.name_world_key(key), *id, true);
        }
    }
    if let Some((name, interface)) = kind.migration {
        export(name, interface, false);
    }
    let given = names(&kind.resolve, expected.imports.keys());
    for (key, item) in &actual.imports {
        let name = resolve.name_world_key(key);
        if name.starts_with(WASI) {
            continue;
        }
        let found =
            given.iter().zip(expected.imports.values()).find(|(given, _)| same_interface(&name, given).is_some());
        match (item, found) {
            (_, Some((given, _))) if same_interface(&name, given) == Some(false) => {
                problems.push(format!("imports {name}, this host gives {given}"));
            }
            // What it imports it must be given: the component's functions are the expected ones here.
            (WorldItem::Interface { id: actual, .. }, Some((_, WorldItem::Interface { id: expected, .. }))) => {
                functions(&name, "is not given", resolve, *actual, &kind.resolve, *expected, &mut problems)
            }
            (WorldItem::Type { .. }, _) => {}
            _ => problems.push(format!(
                "imports {name}, which a {} plugin is not given (it may import {})",
                kind.name,
                given.join(", ")
            )),
        }
    }
    problems
}

/// Names each function of `wanted` that `offered` lacks or types otherwise.
fn functions(
    interface: &str,
    lacks: &str,
    wanted_in: &Resolve,
    wanted: InterfaceId,
    offered_in: &Resolve,
    offered: InterfaceId,
    problems: &mut Vec<String>,
) {
    let offered = &offered_in.interfaces[offered];
    for (name, function) in &wanted_in.interfaces[wanted].functions {
        match offered.functions.get(name) {
            None => problems.push(format!("{interface} {lacks} {}", signature(wanted_in, function))),
            Some(other) => {
                if let Some(difference) = mistyped(offered_in, other, wanted_in, function) {
                    problems.push(format!("{interface}: {name}: {difference}"));
                }
            }
        }
    }
}

fn mistyped(actual_in: &Resolve, actual: &Function, expected_in: &Resolve, expected: &Function) -> Option<String> {
    if actual.params.len() != expected.params.len()
        || actual.result.is_some() != expected.result.is_some()
        || actual.kind.is_async() != expected.kind.is_async()
    {
        return Some(format!("is {}, expected {}", signature(actual_in, actual), signature(expected_in, expected)));
    }
    for (a, e) in actual.params.iter().zip(&expected.params) {
        if let Some(difference) = unlike(actual_in, &a.ty, expected_in, &e.ty) {
            return Some(format!("parameter {}: {difference}", e.name));
        }
    }
    let difference = unlike(actual_in, actual.result.as_ref()?, expected_in, expected.result.as_ref()?)?;
    Some(format!("result: {difference}"))
}

/// The first difference of two types by structure, as wasmtime compares them.
fn unlike(ar: &Resolve, actual: &Type, er: &Resolve, expected: &Type) -> Option<String> {
    let (actual, expected) = (plain(ar, actual), plain(er, expected));
    let is_not = || Some(format!("is {}, expected {}", show(ar, &actual), show(er, &expected)));
    let (Type::Id(a), Type::Id(e)) = (actual, expected) else {
        return if actual == expected { None } else { is_not() };
    };
    let inner =
        |place: &str, a: &Type, e: &Type| unlike(ar, a, er, e).map(|difference| format!("{place}: {difference}"));
    let optional = |place: &str, a: &Option<Type>, e: &Option<Type>| match (a, e) {
        (None, None) => None,
        (Some(a), Some(e)) => inner(place, a, e),
        _ => is_not(),
    };
    let named = |what: &str, actual: Vec<&str>, expected: Vec<&str>| {
        (actual != expected).then(|| format!("has {what} {}, expected {}", actual.join(", "), expected.join(", ")))
    };
    match (&ar.types[a].kind, &er.types[e].kind) {
        (TypeDefKind::Record(a), TypeDefKind::Record(e)) => named(
            "fields",
            a.fields.iter().map(|field| &*field.name).collect(),
            e.fields.iter().map(|field| &*field.name).collect(),
        )
        .or_else(|| {
            let mut fields = a.fields.iter().zip(&e.fields);
            fields.find_map(|(a, e)| inner(&format!("field {}", e.name), &a.ty, &e.ty))
        }),
        (TypeDefKind::Variant(a), TypeDefKind::Variant(e)) => named(
            "cases",
            a.cases.iter().map(|case| &*case.name).collect(),
            e.cases.iter().map(|case| &*case.name).collect(),
        )
        .or_else(|| {
            let mut cases = a.cases.iter().zip(&e.cases);
            cases.find_map(|(a, e)| optional(&format!("case {}", e.name), &a.ty, &e.ty))
        }),
        (TypeDefKind::Enum(a), TypeDefKind::Enum(e)) => named(
            "cases",
            a.cases.iter().map(|case| &*case.name).collect(),
            e.cases.iter().map(|case| &*case.name).collect(),
        ),
        (TypeDefKind::Flags(a), TypeDefKind::Flags(e)) => named(
            "flags",
            a.flags.iter().map(|flag| &*flag.name).collect(),
            e.flags.iter().map(|flag| &*flag.name).collect(),
        ),
        (TypeDefKind::Tuple(a), TypeDefKind::Tuple(e)) if a.types.len() == e.types.len() => {
            let mut types = a.types.iter().zip(&e.types).enumerate();
            types.find_map(|(at, (a, e))| inner(&format!("tuple item {at}"), a, e))
        }
        (TypeDefKind::List(a), TypeDefKind::List(e)) => inner("list item", a, e),
        (TypeDefKind::Option(a), TypeDefKind::Option(e)) => inner("option", a, e),
        (TypeDefKind::Result(a), TypeDefKind::Result(e)) => {
            optional("ok", &a.ok, &e.ok).or_else(|| optional("err", &a.err, &e.err))
        }
        (TypeDefKind::Resource, TypeDefKind::Resource) => None,
        _ => is_not(),
    }
}

/// `ty` without the names given to it by `use` and `type`.
fn plain(resolve: &Resolve, ty: &Type) -> Type {
    let mut ty = *ty;
    while let Type::Id(id) = ty {
        match resolve.types[id].kind {
            TypeDefKind::Type(aliased) => ty = aliased,
            _ => break,
        }
    }
    ty
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let mut text = format!("{}: func(", function.name);
    for (at, param) in function.params.iter().enumerate() {
        let comma = if at > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{}: {}", param.name, show(resolve, &param.ty));
    }
    text.push(')');
    if let Some(result) = &function.result {
        let _ = write!(text, " -> {}", show(resolve, result));
    }
    text
}

fn show(resolve: &Resolve, ty: &Type) -> String {
    let optional = |ty: &Option<Type>| ty.as_ref().map_or("_".into(), |ty| show(resolve, ty));
    let Type::Id(id) = ty else {
        return format!("{ty:?}").to_lowercase();
    };
    let def = &resolve.types[*id];
    if let Some(name) = &def.name {
        return name.clone();
    }
    match &def.kind {
        TypeDefKind::Tuple(tuple) => {
            let types: Vec<String> = tuple.types.iter().map(|ty| show(resolve, ty)).collect();
            format!("tuple<{}>", types.join(", "))
        }
        TypeDefKind::List(ty) => format!("list<{}>", show(resolve, ty)),
        TypeDefKind::Option(ty) => format!("option<{}>", show(resolve, ty)),
        TypeDefKind::Result(result) => {
            format!("result<{}, {}>", optional(&result.ok), optional(&result.err))
        }
        TypeDefKind::Type(ty) => show(resolve, ty),
        other => other.as_str().into(),
    }
}

fn names<'a>(resolve: &Resolve, keys: impl Iterator<Item = &'a WorldKey>) -> Vec<String> {
    keys.map(|key| resolve.name_world_key(key)).collect()
}

/// Whether two interface names mean the same interface: `Some(true)` when their versions are compatible too.
fn same_interface(one: &str, other: &str) -> Option<bool> {
    let split = |name: &str| -> (String, Option<semver::Version>) {
        match name.split_once('@') {
            Some((name, version)) => (name.to_owned(), version.parse().ok()),
            None => (name.to_owned(), None),
        }
    };
    let ((one, a), (other, b)) = (split(one), split(other));
    (one == other).then(|| match (a, b) {
        (Some(a), Some(b)) => {
            a.major == b.major && (a.major > 0 || (a.minor == b.minor && (a.minor > 0 || a.patch == b.patch)))
        }
        (a, b) => a == b,
    })
}

//! How a section of knobs is declared, read and described. A knob stands in the source once: its name, type, default,
//! range and meaning; reading, checking, writing and the reference table all come from there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::given::{Given, Origin};
use super::{Problem, Severity};

/// A knob, for the reference table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Its name, with its section: `rpc.listen`.
    pub name: String,
    /// What it takes.
    pub expected: String,
    /// What it is when it is not given; JSON.
    pub default: String,
    /// What it means.
    pub meaning: String,
}

/// The type of a knob.
pub trait Knob: Serialize + DeserializeOwned {
    /// What it takes, for people: `a whole number`.
    fn expected() -> String;

    /// As a number, where it is one and has a range.
    fn number(&self) -> Option<u64> {
        None
    }

    /// Whether it can be used, beyond its type. Errors: what is wrong.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Makes a relative path one below `dir`.
    fn resolve(&mut self, _dir: &Path) {}

    /// The knobs in it, where it is a section of its own.
    fn keys(_section: &str) -> Option<Vec<Key>> {
        None
    }

    /// Reads it where it is a section of its own, and notes what is wrong in it.
    fn read_section(_given: &Given, _section: &str, _problems: &mut Vec<Problem>) -> Option<Self> {
        None
    }
}

/// Declares a section: `struct Name("section") { /// meaning … key: Type = default, low..=high; }`.
macro_rules! section {
    (
        $(#[$outer:meta])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ $key:ident $(as $wire:literal)?: $type:ty = $default:expr $(, $range:expr)?; )+
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $name {
            $( $(#[doc = $doc])+ $(#[serde(rename = $wire)])? pub $key: $type, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )+ }
            }
        }

        impl $name {
            /// The knobs of the section, in order.
            pub fn keys(section: &str) -> Vec<$crate::config::Key> {
                let default = Self::default();
                [$( $crate::config::section::keys(
                    section,
                    $crate::config::section::name(stringify!($key), [$($wire)?].first().copied()),
                    &default.$key,
                    $crate::config::section::range([$($range)?].first()),
                    concat!($($doc),+),
                ), )+].concat()
            }

            /// Reads the section, and notes what is wrong in it; `more` are the tables inside that somebody else reads.
            pub(crate) fn read(
                given: Option<&$crate::config::Given>,
                section: &str,
                more: &[&str],
                problems: &mut Vec<$crate::config::Problem>,
            ) -> Self {
                let mut this = Self::default();
                let Some(given) = given else { return this };
                let names = [$( $crate::config::section::name(stringify!($key), [$($wire)?].first().copied()), )+];
                $crate::config::section::unknown(given, section, &names, more, problems);
                $( $crate::config::section::take(
                    given,
                    section,
                    $crate::config::section::name(stringify!($key), [$($wire)?].first().copied()),
                    [$($range)?].first(),
                    &mut this.$key,
                    problems,
                ); )+
                this
            }

            /// Whether every knob is within its range, where it was not read but set. Errors: the first that is not.
            pub fn check(&self) -> Result<(), String> {
                $( $crate::config::section::in_range(
                    $crate::config::section::name(stringify!($key), [$($wire)?].first().copied()),
                    &self.$key,
                    [$($range)?].first(),
                )?; )+
                Ok(())
            }

            /// Makes its relative paths ones below `dir`.
            pub fn resolve(&mut self, dir: &std::path::Path) {
                $( $crate::config::Knob::resolve(&mut self.$key, dir); )+
            }
        }
    };
}
pub(crate) use section;

/// A range of numbers, as a section declares it.
pub type Range = std::ops::RangeInclusive<u64>;

/// The name of a field in the file.
pub fn name(field: &'static str, wire: Option<&'static str>) -> &'static str {
    wire.unwrap_or(field)
}

/// The text of a range, after what is expected: `, 1 to 10`.
pub fn range(range: Option<&Range>) -> String {
    range.map_or_else(String::new, |range| format!(", {} to {}", range.start(), range.end()))
}

/// Whether a knob is within its range. Errors: its name, its range and what it is.
pub fn in_range<T: Knob>(name: &str, value: &T, range: Option<&Range>) -> Result<(), String> {
    match (value.number(), range) {
        (Some(number), Some(range)) if !range.contains(&number) => {
            Err(format!("`{name}`: expected {}{}, got {number}", T::expected(), self::range(Some(range))))
        }
        _ => value.check(),
    }
}

/// Describes one knob, or those in it where it is a section.
pub fn keys<T: Knob>(section: &str, name: &str, default: &T, range: String, meaning: &str) -> Vec<Key> {
    let name = format!("{section}.{name}");
    T::keys(&name).unwrap_or_else(|| vec![key(name, default, range, meaning)])
}

/// Describes one knob that is a single value.
pub fn key<T: Knob>(name: String, default: &T, range: String, meaning: &str) -> Key {
    Key {
        name,
        expected: T::expected() + &range,
        default: serde_json::to_string(default).expect("knobs are plain data"),
        meaning: meaning.trim().replace("  ", " "),
    }
}

/// Reads the knob `name` of `section` into `into`, which keeps its default when it is absent or wrong.
pub fn take<T: Knob>(
    given: &Given,
    section: &str,
    name: &str,
    range: Option<&Range>,
    into: &mut T,
    problems: &mut Vec<Problem>,
) {
    let Some(given) = given.get(name) else { return };
    let key = format!("{section}.{name}");
    if let Some(value) = T::read_section(given, &key, problems) {
        *into = value;
        return;
    }
    match read::<T>(given) {
        Ok(value) if range.is_some_and(|range| value.number().is_some_and(|number| !range.contains(&number))) => {
            let got = value.number().expect("tested in the guard");
            problems.push(Problem::error(
                &given.origin,
                &key,
                format!("expected {}{}, got {got}", T::expected(), self::range(range)),
            ));
        }
        Ok(value) => match value.check() {
            Ok(()) => *into = value,
            Err(why) => problems.push(Problem::error(&given.origin, &key, why)),
        },
        Err(why) => {
            let got = shown(given);
            let expected = T::expected() + &self::range(range);
            problems.push(Problem::error(&given.origin, &key, format!("expected {expected}, got {got}{why}")));
        }
    }
}

/// Reads a value. Errors: what the type's own reader says beyond "wrong type", with a colon before it.
fn read<T: Knob>(given: &Given) -> Result<T, String> {
    // These say in serde's words what `expected … got …` says already.
    let is_told = |why: &String| why.starts_with("invalid ") || why.starts_with("unknown variant");
    let mut why = None;
    for reading in given.readings() {
        match T::deserialize(reading) {
            Ok(value) => return Ok(value),
            Err(error) => why = why.or(Some(error.to_string()).filter(|why| !is_told(why))),
        }
    }
    Err(why.map_or_else(String::new, |why| format!(": {why}")))
}

fn shown(given: &Given) -> String {
    let text = given.to_json().to_string();
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

/// Notes the keys that nobody reads, each with the nearest one that exists.
pub fn unknown(given: &Given, section: &str, known: &[&str], more: &[&str], problems: &mut Vec<Problem>) {
    if !matches!(given.content, super::given::Content::Table(_)) {
        let text = format!("expected a section, got {}", shown(given));
        problems.push(Problem::error(&given.origin, section, text));
        return;
    }
    let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
    for (key, value) in given.entries() {
        let all = known.iter().chain(more);
        if !all.clone().any(|name| name == key) {
            problems.push(unknown_key(&value.origin, &prefix, key, all.copied()));
        }
    }
}

/// The problem of a key that does not exist.
pub fn unknown_key<'a>(origin: &Origin, prefix: &str, key: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    // Few slips of the finger, two letters that changed places being one; of equals the one that looks most alike.
    let slips = |name: &str| strsim::damerau_levenshtein(name, key);
    let likeness = |name: &str| strsim::jaro_winkler(name, key);
    let nearest = known.min_by(|a, b| slips(a).cmp(&slips(b)).then_with(|| likeness(b).total_cmp(&likeness(a))));
    let hint = nearest.map_or_else(String::new, |name| format!("; did you mean `{prefix}{name}`?"));
    Problem {
        severity: Severity::Error,
        origin: origin.clone(),
        key: format!("{prefix}{key}"),
        text: format!("unknown key{hint}"),
    }
}

macro_rules! knobs {
    ($($type:ty: $expected:expr;)+) => {
        $(impl Knob for $type {
            fn expected() -> String {
                $expected.into()
            }
        })+
    };
}
knobs! {
    bool: "true or false";
    String: "a text";
    Vec<String>: "a list of texts";
    Vec<Vec<String>>: "a list of lists of texts";
    SocketAddr: "an IP address and a port, like \"127.0.0.1:8006\"";
    Vec<ipnet::IpNet>: "a list of networks, like [\"10.0.0.0/8\"]";
    Vec<tenon_runtime::TrustedKey>: "a list of public keys, like [\"RW…\"]";
    BTreeMap<String, u64>: "a table of whole numbers";
    serde_json::Map<String, Value>: "a table";
}

impl Knob for u64 {
    fn expected() -> String {
        "a whole number".into()
    }

    fn number(&self) -> Option<u64> {
        Some(*self)
    }
}

impl Knob for u32 {
    fn expected() -> String {
        "a whole number".into()
    }

    fn number(&self) -> Option<u64> {
        Some((*self).into())
    }
}

impl Knob for usize {
    fn expected() -> String {
        "a whole number".into()
    }

    fn number(&self) -> Option<u64> {
        u64::try_from(*self).ok()
    }
}

impl Knob for PathBuf {
    fn expected() -> String {
        "a path".into()
    }

    fn resolve(&mut self, dir: &Path) {
        *self = dir.join(&*self);
    }
}

impl<T: Knob> Knob for Option<T> {
    fn expected() -> String {
        T::expected()
    }

    fn number(&self) -> Option<u64> {
        self.as_ref().and_then(Knob::number)
    }

    fn check(&self) -> Result<(), String> {
        self.as_ref().map_or(Ok(()), Knob::check)
    }

    fn resolve(&mut self, dir: &Path) {
        if let Some(value) = self {
            value.resolve(dir);
        }
    }
}

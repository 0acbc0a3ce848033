//! What the operator gave: `tenon.toml` as a tree whose every node knows its line, with the environment laid over it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Origin {
    /// Nowhere: the default.
    #[default]
    Default,
    /// On this line of the file, counted from 1.
    Line(usize),
    /// In this environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str(super::FILE),
            Self::Line(line) => write!(f, "{}:{line}", super::FILE),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// A value and where it was given.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Given {
    /// Where.
    pub origin: Origin,
    /// What.
    pub content: Content,
}

/// The value itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text, a number, a truth value or a date, as JSON has it.
    Plain(Value),
    /// From an environment variable, whose type only the reader knows.
    Untyped(String),
    /// `[…]`.
    Array(Vec<Given>),
    /// `{…}` or `[…]` as a heading.
    Table(BTreeMap<String, Given>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Table(BTreeMap::new())
    }
}

impl Given {
    /// Reads TOML. Errors: line and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let line = |offset: usize| text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1;
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(1, |span| line(span.start));
            (at, error.message().to_owned())
        })?;
        Ok(Self { origin: Origin::Line(1), content: Content::Table(entries(table.get_ref(), &line)) })
    }

    /// What stands under `key`; none where this is no table.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.content {
            Content::Table(entries) => entries.get(key),
            _ => None,
        }
    }

    /// Its entries; none where this is no table.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Self)> {
        let entries = match &self.content {
            Content::Table(entries) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten()
    }

    /// Puts `value` at `path`, making tables on the way and replacing what is no table.
    pub fn set(&mut self, path: &[&str], value: Self) {
        let Some((key, rest)) = path.split_first() else {
            *self = value;
            return;
        };
        if !matches!(self.content, Content::Table(_)) {
            *self = Self { origin: value.origin.clone(), content: Content::default() };
        }
        let Content::Table(entries) = &mut self.content else { unreachable!("made a table above") };
        let fresh = || Self { origin: value.origin.clone(), content: Content::default() };
        entries.entry((*key).to_owned()).or_insert_with(fresh).set(rest, value);
    }

    /// Every JSON value that this may stand for, the likeliest first: an environment variable may be a text, a number
    /// or a list.
    pub fn readings(&self) -> Vec<Value> {
        let Content::Untyped(text) = &self.content else { return vec![self.to_json()] };
        let mut readings = vec![Value::String(text.clone())];
        if let Ok(typed) = DeValue::parse(text) {
            readings.push(from_toml(&typed, &|_| 0).to_json());
        }
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        readings.push(items.map(|item| Value::String(item.to_owned())).collect());
        readings
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Plain(value) => value.clone(),
            Content::Untyped(text) => Value::String(text.clone()),
            Content::Array(items) => items.iter().map(Self::to_json).collect(),
            Content::Table(entries) => entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect(),
        }
    }
}

fn entries(table: &DeTable<'_>, line: &impl Fn(usize) -> usize) -> BTreeMap<String, Given> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        let mut given = from_toml(value, line);
        // The key's line, not the value's: that is where one looks for it.
        given.origin = Origin::Line(line(key.span().start));
        (name.clone().into_owned(), given)
    };
    table.iter().map(entry).collect()
}

fn from_toml(value: &Spanned<DeValue<'_>>, line: &impl Fn(usize) -> usize) -> Given {
    let content = match value.get_ref() {
        DeValue::String(text) => Content::Plain(Value::String(text.clone().into_owned())),
        DeValue::Integer(digits) => Content::Plain(
            i64::from_str_radix(digits.as_str(), digits.radix())
                .map_or_else(|_| Value::String(digits.as_str().to_owned()), Value::from),
        ),
        DeValue::Float(digits) => Content::Plain(digits.as_str().parse::<f64>().map_or(Value::Null, Value::from)),
        DeValue::Boolean(truth) => Content::Plain(Value::Bool(*truth)),
        DeValue::Datetime(moment) => Content::Plain(Value::String(moment.to_string())),
        DeValue::Array(items) => Content::Array(items.iter().map(|item| from_toml(item, line)).collect()),
        DeValue::Table(table) => Content::Table(entries(table, line)),
    };
    Given { origin: Origin::Line(line(value.span().start)), content }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_its_line() {
        let given = Given::parse("[rpc]\nlisten = \"x\"\n\n[[agents]]\nname = \"bob\"\n").unwrap();
        let listen = given.get("rpc").and_then(|rpc| rpc.get("listen")).unwrap();
        assert_eq!((listen.origin.clone(), listen.to_json()), (Origin::Line(2), "x".into()));
        assert_eq!(given.get("agents").unwrap().origin, Origin::Line(4));
        assert_eq!(Given::parse("a = 1\nb = \n").unwrap_err().0, 2);
    }

    #[test]
    fn a_variable_may_be_a_text_a_number_or_a_list() {
        let readings =
            |text: &str| Given { origin: Origin::Default, content: Content::Untyped(text.to_owned()) }.readings();
        assert!(readings("7").contains(&7.into()));
        assert!(readings("a, b").contains(&serde_json::json!(["a", "b"])));
        assert!(readings("").contains(&serde_json::json!([])));
    }
}

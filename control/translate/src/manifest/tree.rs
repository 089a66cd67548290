//! A YAML document as values with their lines.
//!
//! Plain scalars become what `kubectl` takes them for (YAML 1.1 booleans and octal numbers included), so that a
//! manifest means here what it means there.

/// A value and its line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tree {
    /// The line where it begins, from 1.
    pub line: u32,
    /// What it is.
    pub value: Value,
}

/// What YAML and JSON can say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    /// In the order written; a key once.
    Map(Vec<Entry>),
}

/// A key of a mapping and what it maps to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    /// The key's line.
    pub line: u32,
    pub tree: Tree,
}

impl Tree {
    /// The entries, where this is a mapping.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The entry of this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The text under this key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &self.entry(key)?.tree.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// How many values it has, itself included.
    pub fn count(&self) -> usize {
        match &self.value {
            Value::List(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
            Value::Map(entries) => 1 + entries.iter().map(|entry| entry.tree.count()).sum::<usize>(),
            _ => 1,
        }
    }
}

impl Value {
    /// What a scalar that is written without quotes stands for.
    pub fn of_plain(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Self::Null,
            "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Self::Bool(true),
            "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Self::Bool(false),
            _ => {}
        }
        if let Some(number) = integer(text) {
            return Self::Int(number);
        }
        let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
        match text.parse::<f64>() {
            Ok(number) if numeric && number.is_finite() => Self::Float(number),
            _ => Self::Text(text.to_owned()),
        }
    }

    /// The value as a message shows it, with the article that its type needs.
    pub fn described(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the boolean `{value}`"),
            Self::Int(value) => format!("the number `{value}`"),
            Self::Float(value) => format!("the number `{value}`"),
            Self::Text(value) => format!("the text `{}`", shortened(value)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// As much of a text as a finding has room for.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Decimal, `0x`, `0o`, `0b` and, as YAML 1.1 has it, a leading zero for octal.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        Some(octal) if octal.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) => (8, &digits[1..]),
        _ => (10, digits),
    };
    i64::from_str_radix(&digits.replace('_', ""), radix).ok().map(|number| sign * number)
}

impl From<&Tree> for serde_json::Value {
    fn from(tree: &Tree) -> Self {
        match &tree.value {
            Value::Null => Self::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(value) => value.clone().into(),
            Value::List(items) => Self::Array(items.iter().map(Self::from).collect()),
            // A field that is null is one that is not written.
            Value::Map(entries) => Self::Object(
                entries
                    .iter()
                    .filter(|entry| entry.tree.value != Value::Null)
                    .map(|entry| (entry.key.clone(), Self::from(&entry.tree)))
                    .collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_the_beginning_of_a_long_text() {
        let long = Value::Text("é".repeat(1_000_000)).described();
        assert!(long.chars().count() < 100 && long.ends_with("…`"), "{}", long.len());
        assert_eq!(Value::Text("short".into()).described(), "the text `short`");
    }

    #[test]
    fn plain_scalars_mean_what_kubectl_takes_them_for() {
        let cases = [
            ("80", Value::Int(80)),
            ("-1", Value::Int(-1)),
            ("0x1F", Value::Int(31)),
            ("010", Value::Int(8)),
            ("1_000", Value::Int(1000)),
            ("0", Value::Int(0)),
            ("1.5", Value::Float(1.5)),
            ("on", Value::Bool(true)),
            ("False", Value::Bool(false)),
            ("~", Value::Null),
            ("", Value::Null),
            ("80 // http", Value::Text("80 // http".into())),
            ("1.2.3.4", Value::Text("1.2.3.4".into())),
            ("nan", Value::Text("nan".into())),
            ("xxx", Value::Text("xxx".into())),
        ];
        for (text, value) in cases {
            assert_eq!(Value::of_plain(text), value, "{text}");
        }
    }
}

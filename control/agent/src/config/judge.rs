//! Judging YAML: a document as values with their lines and paths, and the findings about them.

use std::fmt::Display;
use std::str::FromStr;

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use translate::{Finding, Severity};

/// How alike an unknown key and a known one must be for a hint (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.75;

/// A value, where it stands and which field it is.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub line: u32,
    pub path: String,
    pub value: Value,
}

/// What YAML can say, numbers as their text.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Value {
    /// What it is, for findings.
    fn described(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("`{value}`"),
            Self::Text(text) => format!("`{text}`"),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Gathers findings about one file.
#[derive(Debug)]
pub(super) struct Judge {
    file: String,
    /// The last line with something in it: what ends too early is told there, not past the end.
    last: u32,
    pub findings: Vec<Finding>,
}

impl Judge {
    pub fn new(file: &str) -> Self {
        Self { file: file.to_owned(), last: u32::MAX, findings: Vec::new() }
    }

    /// The first document as a tree; `None` with a finding where it is no YAML.
    pub fn parse(&mut self, text: &str) -> Option<Node> {
        let last = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).last();
        self.last = last.map_or(1, |(at, _)| u32::try_from(at + 1).unwrap_or(u32::MAX));
        match MarkedYaml::load_from_str(text) {
            Ok(documents) if documents.len() > 1 => {
                let line = u32::try_from(documents[1].span.start.line()).unwrap_or(0);
                self.error(line, "", "a second document, expected one");
                None
            }
            Ok(documents) => Some(
                documents
                    .first()
                    .map_or(Node { line: 1, path: String::new(), value: Value::Map(Vec::new()) }, |document| {
                        self.node(document, String::new())
                    }),
            ),
            Err(error) => {
                let line = u32::try_from(error.marker().line()).unwrap_or(0);
                self.error(line, "", &format!("no YAML: {}, expected a mapping of settings", error.info()));
                None
            }
        }
    }

    fn node(&mut self, yaml: &MarkedYaml<'_>, path: String) -> Node {
        let line = u32::try_from(yaml.span.start.line()).unwrap_or(0).min(self.last);
        let value = match &yaml.data {
            YamlData::Value(scalar) => scalar_value(scalar),
            YamlData::Representation(text, ..) => Value::Text(text.clone().into_owned()),
            YamlData::Sequence(items) => {
                Value::List(items.iter().enumerate().map(|(i, item)| self.node(item, format!("{path}[{i}]"))).collect())
            }
            YamlData::Mapping(entries) => Value::Map(
                entries
                    .iter()
                    .map(|(key, value)| {
                        let key = match &key.data {
                            YamlData::Value(Scalar::String(key)) => key.clone().into_owned(),
                            YamlData::Value(other) => format!("{other:?}"),
                            _ => "?".to_owned(),
                        };
                        let child = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                        let node = self.node(value, child);
                        (key, node)
                    })
                    .collect(),
            ),
            YamlData::Tagged(_, inner) => return self.node(inner, path),
            YamlData::Alias(_) | YamlData::BadValue => {
                self.error(line, &path, "an alias or a bad value, expected it written out");
                Value::Null
            }
        };
        Node { line, path, value }
    }

    /// An error at a place.
    pub fn error(&mut self, line: u32, field: &str, message: &str) {
        let field = if field.is_empty() { "configuration" } else { field };
        self.findings.push(Finding {
            file: self.file.clone(),
            // Editors count from 1; an empty document has no line of its own.
            line: line.clamp(1, self.last.max(1)),
            field: field.to_owned(),
            message: message.to_owned(),
            severity: Severity::Error,
        });
    }

    /// An error at a value.
    pub fn wrong(&mut self, node: &Node, message: impl AsRef<str>) {
        self.error(node.line, &node.path, message.as_ref());
    }

    /// The value is there and is not what was expected.
    pub fn unexpected(&mut self, node: &Node, expected: &str) {
        self.wrong(node, format!("{}, expected {expected}", node.value.described()));
    }

    /// The fields of a mapping; each key that is not `known` is an error with a hint.
    pub fn fields<'n>(&mut self, node: &'n Node, known: &[&str]) -> Fields<'n> {
        let entries = match &node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            _ => {
                self.unexpected(node, &format!("a mapping with {}", known.join(", ")));
                &[]
            }
        };
        for (key, value) in entries {
            if !known.contains(&key.as_str()) {
                let hint = nearest(key, known).map_or_else(
                    || format!("expected one of {}", known.join(", ")),
                    |k| format!("did you mean `{k}`?"),
                );
                self.wrong(value, format!("unknown key, {hint}"));
            }
        }
        Fields { entries }
    }

    /// The items of a list; one value alone is a list of one.
    pub fn items<'n>(&mut self, node: &'n Node) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            Value::Null => &[],
            Value::Text(_) => std::slice::from_ref(node),
            _ => {
                self.unexpected(node, "a list");
                &[]
            }
        }
    }

    /// A text.
    pub fn text<'n>(&mut self, node: &'n Node, expected: &str) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) if !text.trim().is_empty() => Some(text.trim()),
            _ => {
                self.unexpected(node, expected);
                None
            }
        }
    }

    /// A value that is made of a text.
    pub fn parsed<T: FromStr>(&mut self, node: &Node, expected: &str) -> Option<T> {
        let value = self.text(node, expected)?.parse().ok();
        if value.is_none() {
            self.unexpected(node, expected);
        }
        value
    }

    /// Every item of a list, made of its text.
    pub fn parsed_list<T: FromStr>(&mut self, node: &Node, expected: &str) -> Vec<T>
    where
        T::Err: Display,
    {
        self.items(node).iter().filter_map(|item| self.parsed(item, expected)).collect()
    }

    /// One of some words.
    pub fn word<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let text = match &node.value {
            Value::Bool(value) => if *value { "on" } else { "off" }.to_owned(),
            Value::Text(text) => text.trim().to_owned(),
            _ => String::new(),
        };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = nearest(&text, &known).map_or_else(String::new, |word| format!(" (did you mean `{word}`?)"));
            self.unexpected(node, &format!("{}{hint}", known.join(" or ")));
        }
        found
    }
}

fn scalar_value(scalar: &Scalar<'_>) -> Value {
    match scalar {
        Scalar::Null => Value::Null,
        Scalar::Boolean(value) => Value::Bool(*value),
        Scalar::Integer(value) => Value::Text(value.to_string()),
        Scalar::FloatingPoint(value) => Value::Text(value.to_string()),
        // YAML 1.1's words, which people still write.
        Scalar::String(text) => Value::Text(text.clone().into_owned()),
    }
}

/// The known word most like this one, if any is like it.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(&word.to_lowercase(), &k.to_lowercase()), *k))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// The fields of a mapping.
pub(super) struct Fields<'n> {
    entries: &'n [(String, Node)],
}

impl<'n> Fields<'n> {
    /// The value of a key, where it is written and not null.
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(k, v)| k == key && !matches!(v.value, Value::Null)).map(|(_, value)| value)
    }

    /// Whether the key is written, be it without a value.
    pub fn has(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }
}

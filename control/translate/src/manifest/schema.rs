//! Judging a tree against the fields that the API knows, before it becomes a typed object.
//!
//! The API server's strict validation is the measure: an unknown field, a wrong type or a number out of range is an
//! error with its line, never silently dropped or zero.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::finding::{Finding, Severity};

use super::tree::{Entry, Tree, Value};

/// What a value must look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Anything: fields that translation never reads.
    Any,
    /// A text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number, both ends included.
    Number(i64, i64),
    /// A port number or a port's name.
    NumberOrText,
    /// `true` or `false`.
    Boolean,
    /// An IP address.
    Address,
    /// Texts by key.
    Texts,
    /// A list of these.
    List(&'static Shape),
    /// A mapping with these fields, of which some are required.
    Fields(&'static [(&'static str, Shape)], &'static [&'static str]),
}

/// Judges one document and notes the line of every field.
pub(super) struct Judge<'f> {
    pub file: &'f str,
    pub findings: &'f mut Vec<Finding>,
    pub lines: BTreeMap<String, u32>,
}

impl Judge<'_> {
    pub fn error(&mut self, line: u32, field: &str, message: impl Into<String>) {
        self.findings.push(Finding {
            file: self.file.to_owned(),
            line,
            field: field.to_owned(),
            message: message.into(),
            severity: Severity::Error,
        });
    }

    /// Judges a value; `field` is its path. A value that is null counts as not written.
    pub fn judge(&mut self, tree: &Tree, shape: &Shape, field: &str) {
        let expected = match (shape, &tree.value) {
            (Shape::Any, _) | (_, Value::Null) | (Shape::Text, Value::Text(_)) | (Shape::Boolean, Value::Bool(_)) => {
                return;
            }
            (Shape::NumberOrText, Value::Int(_) | Value::Text(_)) => return,
            (Shape::Number(min, max), Value::Int(number)) if (min..=max).contains(&number) => return,
            (Shape::Word(words), Value::Text(text)) if words.contains(&text.as_str()) => return,
            (Shape::Address, Value::Text(text)) if text.is_empty() || text.parse::<IpAddr>().is_ok() => return,
            (Shape::List(item), Value::List(items)) => return self.judge_list(items, item, field),
            (Shape::Texts, Value::Map(entries)) => return self.judge_texts(entries, field),
            (Shape::Fields(fields, required), Value::Map(entries)) => {
                return self.judge_fields(tree.line, entries, fields, required, field);
            }
            (Shape::Word(words), _) => one_of(words, &tree.value),
            (Shape::Number(min, max), _) => format!("expected a number from {min} to {max}"),
            (Shape::Text, Value::Bool(_) | Value::Int(_) | Value::Float(_)) => {
                "expected a text: put it in quotes".to_owned()
            }
            (Shape::Text, _) => "expected a text".to_owned(),
            (Shape::NumberOrText, _) => "expected a port number or a port's name".to_owned(),
            (Shape::Boolean, _) => "expected true or false".to_owned(),
            (Shape::Address, _) => "expected an IP address".to_owned(),
            (Shape::List(_), _) => "expected a list".to_owned(),
            (Shape::Texts | Shape::Fields(..), _) => "expected a mapping".to_owned(),
        };
        let hint = if let Value::Text(text) = &tree.value { comment_hint(text) } else { "" };
        self.error(tree.line, field, format!("{}, {expected}{hint}", tree.value.described()));
    }

    fn judge_list(&mut self, items: &[Tree], shape: &Shape, field: &str) {
        for (index, item) in items.iter().enumerate() {
            let path = format!("{field}[{index}]");
            self.lines.insert(path.clone(), item.line);
            match item.value {
                Value::Null => self.error(item.line, &path, "nothing, expected an item of the list"),
                _ => self.judge(item, shape, &path),
            }
        }
    }

    fn judge_texts(&mut self, entries: &[Entry], field: &str) {
        for entry in entries {
            let path = format!("{field}[{}]", entry.key);
            self.lines.insert(path.clone(), entry.line);
            self.judge(&entry.tree, &Shape::Text, &path);
        }
    }

    fn judge_fields(
        &mut self,
        line: u32,
        entries: &[Entry],
        fields: &'static [(&'static str, Shape)],
        required: &[&str],
        field: &str,
    ) {
        for entry in entries {
            let path = if field.is_empty() { entry.key.clone() } else { format!("{field}.{}", entry.key) };
            self.lines.insert(path.clone(), entry.line);
            match fields.iter().find(|(name, _)| *name == entry.key) {
                Some((_, shape)) => self.judge(&entry.tree, shape, &path),
                None => {
                    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
                    self.error(entry.line, &path, format!("unknown field, {}", did_you_mean(&entry.key, &names)));
                }
            }
        }
        for name in required {
            let written = entries.iter().find(|entry| entry.key == *name && entry.tree.value != Value::Null);
            let path = if field.is_empty() { (*name).to_owned() } else { format!("{field}.{name}") };
            // A field that is there under a wrong name has its finding already.
            let meant = |entry: &Entry| {
                let known = fields.iter().any(|(field, _)| *field == entry.key);
                !known && nearest(&entry.key, &[*name]).is_some()
            };
            if written.is_none() && !entries.iter().any(meant) {
                let line = self.lines.get(field).copied().unwrap_or(line);
                self.error(line, &path, format!("missing, expected `{name}` here"));
            }
        }
    }
}

/// "did you mean" the nearest name, or the names that there are.
pub(super) fn did_you_mean(written: &str, names: &[&str]) -> String {
    match nearest(written, names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("expected one of {}", listed(names)),
    }
}

/// The name that was probably meant: two slips at most, and fewer than half of it.
pub(crate) fn nearest<'n>(written: &str, names: &[&'n str]) -> Option<&'n str> {
    let lower = written.to_lowercase();
    // A file has room for very many wrong names, or a very long one: what differs by more in length alone is not compared.
    let length = lower.chars().count();
    let near = names.iter().copied().filter(|name| name.chars().count().abs_diff(length) <= 2);
    let distance = |name: &str| strsim::damerau_levenshtein(&lower, &name.to_lowercase());
    let (slips, best) = near.map(|name| (distance(name), name)).min_by_key(|(slips, _)| *slips)?;
    (slips <= 2 && slips * 2 < best.len().max(2)).then_some(best)
}

fn one_of(words: &[&str], value: &Value) -> String {
    let hint = match value {
        Value::Text(text) => nearest(text, words).map(|word| format!(": did you mean `{word}`?")),
        _ => None,
    };
    format!("expected one of {}{}", listed(words), hint.unwrap_or_default())
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A hint where a value has swallowed what was meant as a comment.
pub(super) fn comment_hint(text: &str) -> &'static str {
    if text.contains(" //") || text.contains("\t//") { " (a comment begins with `#`, not `//`)" } else { "" }
}

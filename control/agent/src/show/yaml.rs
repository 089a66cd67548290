//! A JSON value as YAML.

use std::borrow::Cow;

use saphyr::{Mapping, Scalar, Yaml, YamlEmitter};
use serde_json::Value;

/// One document, its last newline included.
pub(super) fn text(value: &Value) -> String {
    let mut text = String::new();
    // Writing to a string never fails.
    let _ = YamlEmitter::new(&mut text).dump(&node(value));
    let body = text.strip_prefix("---\n").unwrap_or(&text);
    format!("{body}\n")
}

fn node(value: &Value) -> Yaml<'_> {
    match value {
        Value::Null => Yaml::Value(Scalar::Null),
        Value::Bool(value) => Yaml::Value(Scalar::Boolean(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Yaml::Value(Scalar::Integer(integer)),
            (None, Some(float)) if number.is_f64() => Yaml::Value(Scalar::FloatingPoint(float.into())),
            // Beyond what the library takes for an integer.
            _ => Yaml::Representation(Cow::Owned(number.to_string()), saphyr::ScalarStyle::Plain, None),
        },
        Value::String(text) => string(text),
        Value::Array(items) => Yaml::Sequence(items.iter().map(node).collect()),
        Value::Object(fields) => {
            Yaml::Mapping(fields.iter().map(|(key, value)| (string(key), node(value))).collect::<Mapping<'_>>())
        }
    }
}

fn string(text: &str) -> Yaml<'_> {
    Yaml::Value(Scalar::String(Cow::Borrowed(text)))
}

#[cfg(test)]
mod tests {
    use saphyr::LoadableYamlNode;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_reads_back_as_what_it_was() {
        let value = json!({
            "text": "plain", "number-like": "80", "yes": "true", "address": "[fd00::1]:80", "lines": "a\nb",
            "empty": "", "list": [1, -2, {"a": [], "b": {}}], "ratio": 0.25, "large": u64::MAX, "flag": true,
        });
        let text = text(&value);
        assert!(text.ends_with('\n') && !text.starts_with("---"));
        let read = Yaml::load_from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let read = &read[0];
        for key in ["text", "number-like", "yes", "address", "lines", "empty"] {
            assert_eq!(read[key].as_str(), value[key].as_str(), "{key} in\n{text}");
        }
        assert_eq!(read["list"][1].as_integer(), Some(-2));
        assert_eq!(read["ratio"].as_floating_point(), Some(0.25));
        assert_eq!(read["flag"].as_bool(), Some(true));
        assert!(text.contains("18446744073709551615"), "{text}");
    }
}

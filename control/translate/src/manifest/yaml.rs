//! YAML text to trees: all documents of a file, each fault with its line.
//!
//! The events are those of `saphyr-parser`. Added here: an alias that multiplies without end, a key twice in one
//! mapping and a tab in the indentation are faults (YAML 1.2 section 6.1 forbids the last; a tab before a comment is
//! legal). After a fault, reading goes on at the next `---`.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use super::tree::{Entry, Tree, Value};

/// How deep values may nest, and how many there may be in a file once aliases are expanded.
const MAX_DEPTH: u32 = 64;
const MAX_VALUES: usize = 2_000_000;

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// The documents of a text that hold something, and the faults of those that cannot be read.
pub(super) fn documents(text: &str) -> (Vec<Tree>, Vec<Fault>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split('\n').collect();
    let (mut trees, mut faults) = (Vec::new(), Vec::new());
    let (mut first, mut values) = (0, 0);
    while first < lines.len() && values <= MAX_VALUES {
        // A separator in the first column ends whatever stands before it (YAML 1.2 section 9.1.2).
        let end = (first + 1..lines.len()).find(|&at| separates(lines[at])).unwrap_or(lines.len());
        let part = lines[first..end].join("\n");
        let offset = u32::try_from(first).unwrap_or(u32::MAX);
        if !part.lines().all(|line| line.starts_with(['%', '#']) || line.trim().is_empty())
            && let Err(mut fault) = Reader::new(&part, &lines[first..end], &mut values).read_all(&mut trees, offset)
        {
            fault.line += offset;
            faults.push(fault);
        }
        first = end;
    }
    (trees, faults)
}

fn separates(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r']))
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    lines: &'t [&'t str],
    /// The last line with something in it, from 1: what ends too early is told there, not past the end.
    last: usize,
    anchors: HashMap<usize, Tree>,
    /// Of all documents so far.
    values: &'t mut usize,
}

type Read<T> = Result<T, Fault>;

impl<'t> Reader<'t> {
    fn new(text: &'t str, lines: &'t [&'t str], values: &'t mut usize) -> Self {
        let last = lines.iter().rposition(|line| !line.trim().is_empty()).map_or(1, |at| at + 1);
        Self { parser: Parser::new_from_str(text), lines, last, anchors: HashMap::new(), values }
    }

    /// Reads until the end or a fault; `offset` is how many lines of the file come before this text.
    fn read_all(mut self, trees: &mut Vec<Tree>, offset: u32) -> Read<()> {
        while let Some((event, _)) = self.next()? {
            match event {
                Event::DocumentStart(_) => {
                    self.anchors.clear();
                    let (event, span) = self.expect()?;
                    let mut tree = self.tree(event, span, 0, false)?;
                    shift(&mut tree, offset);
                    if tree.value != Value::Null {
                        trees.push(tree);
                    }
                }
                Event::StreamEnd => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// The number of a line that the parser names.
    fn line(&self, line: usize) -> u32 {
        u32::try_from(line.clamp(1, self.last)).unwrap_or(u32::MAX)
    }

    fn next(&mut self) -> Read<Option<(Event<'t>, Span)>> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => Err(self.explained(error.marker().line(), error.info())),
        }
    }

    fn expect(&mut self) -> Read<(Event<'t>, Span)> {
        let last = self.line(self.last);
        let end = || Fault { line: last, message: "the text ends early, expected a value".to_owned() };
        self.next()?.ok_or_else(end)
    }

    /// A value; `flow`: inside brackets, where indentation means nothing.
    fn tree(&mut self, event: Event<'t>, span: Span, depth: u32, flow: bool) -> Read<Tree> {
        let line = self.line(span.start.line());
        *self.values += 1;
        if depth > MAX_DEPTH || *self.values > MAX_VALUES {
            let message = format!("too much, expected at most {MAX_DEPTH} levels and {MAX_VALUES} values");
            return Err(Fault { line, message });
        }
        let flow = flow || self.in_flow(span);
        let (value, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, line),
            Event::Scalar(text, style, anchor, tag) => (scalar(&text, style, tag.as_deref()), anchor),
            Event::SequenceStart(anchor, _) => (self.list(depth, flow)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth, flow)?, anchor),
            other => return Err(Fault { line, message: format!("unexpected {other:?}, expected a value") }),
        };
        let tree = Tree { line, value };
        if anchor != 0 {
            self.anchors.insert(anchor, tree.clone());
        }
        Ok(tree)
    }

    fn alias(&mut self, anchor: usize, line: u32) -> Read<Tree> {
        let unknown = || Fault { line, message: "unknown alias, expected one of an anchor before it".to_owned() };
        let tree = self.anchors.get(&anchor).cloned().ok_or_else(unknown)?;
        *self.values += tree.count();
        Ok(Tree { line, value: tree.value })
    }

    fn list(&mut self, depth: u32, flow: bool) -> Read<Value> {
        let mut items = Vec::new();
        loop {
            match self.expect()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.tree(event, span, depth + 1, flow)?),
            }
        }
    }

    fn map(&mut self, depth: u32, flow: bool) -> Read<Value> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: HashMap<String, u32> = HashMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.expect()?;
            let line = self.line(span.start.line());
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(Fault { line, message: "a key that is no text, expected a field's name".to_owned() }),
            };
            if !flow && self.indented_by_tab(span) {
                return Err(tab(line));
            }
            let (event, span) = self.expect()?;
            let tree = self.tree(event, span, depth + 1, flow)?;
            if key == "<<" {
                merged.extend(merge_sources(tree));
                continue;
            }
            if let Some(before) = lines.insert(key.clone(), line) {
                let message = format!("`{key}` a second time, expected it once (first at line {before})");
                return Err(Fault { line, message });
            }
            entries.push(Entry { key, line, tree });
        }
        for entry in merged {
            if lines.insert(entry.key.clone(), entry.line).is_none() {
                entries.push(entry);
            }
        }
        Ok(Value::Map(entries))
    }

    /// Whether the value begins with a bracket, so that indentation means nothing inside it.
    fn in_flow(&self, span: Span) -> bool {
        let line = self.lines.get(span.start.line().saturating_sub(1));
        matches!(line.and_then(|line| line.chars().nth(span.start.col())), Some('{' | '['))
    }

    fn indented_by_tab(&self, span: Span) -> bool {
        let Some(line) = self.lines.get(span.start.line().saturating_sub(1)) else { return false };
        line.chars().take(span.start.col()).take_while(|c| c.is_whitespace()).any(|c| c == '\t')
    }

    /// The parser's own complaint, unless a tab or a comment of another language is the cause.
    fn explained(&self, line: usize, info: &str) -> Fault {
        let upto = (line + 1).min(self.lines.len());
        let tabbed = |text: &str| {
            let indent = &text[..text.len() - text.trim_start().len()];
            indent.contains('\t') && !text.trim().is_empty()
        };
        if let Some(last) = (0..upto).rev().find(|&at| tabbed(self.lines[at])) {
            let before = self.lines[..last].iter().rev().take_while(|text| tabbed(text)).count();
            return tab(u32::try_from(last - before + 1).unwrap_or(u32::MAX));
        }
        let slashes = (line.saturating_sub(2)..upto).find(|&at| self.lines[at].trim_start().starts_with("//"));
        let line = self.line(slashes.map_or(line, |at| at + 1));
        let hint = if slashes.is_some() { ": a comment begins with `#`, not `//`" } else { "" };
        Fault { line, message: format!("{info}, expected YAML{hint}") }
    }
}

fn tab(line: u32) -> Fault {
    Fault { line, message: "a tab in the indentation, expected spaces".to_owned() }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    if style == ScalarStyle::Plain && !is_text { Value::of_plain(text) } else { Value::Text(text.to_owned()) }
}

/// What `<<:` brings in: the entries of a mapping, or of a list of them, first come first.
fn merge_sources(tree: Tree) -> Vec<Entry> {
    match tree.value {
        Value::Map(entries) => entries,
        Value::List(items) => items.into_iter().flat_map(merge_sources).collect(),
        _ => Vec::new(),
    }
}

fn shift(tree: &mut Tree, offset: u32) {
    if offset == 0 {
        return;
    }
    tree.line += offset;
    match &mut tree.value {
        Value::List(items) => items.iter_mut().for_each(|item| shift(item, offset)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| {
            entry.line += offset;
            shift(&mut entry.tree, offset);
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_fault(text: &str) -> Fault {
        let (_, mut faults) = documents(text);
        assert_eq!(faults.len(), 1, "{faults:?} in {text:?}");
        faults.remove(0)
    }

    #[test]
    fn a_tab_in_the_indentation_is_named_with_its_line() {
        let cases = [
            ("kind: Service\nmetadata:\n\tname: x\n", 3),
            ("kind: Service\nspec:\n  ports:\n  \t- port: 80\n", 4),
            ("kind: Service\nspec:\n  ports:\n  - port: 80\n\t  name: x\n", 5),
            ("kind: Service\nspec:\n  type: A\n\tports: []\n", 4),
            ("---\na: 1\n---\nkind: Service\nmetadata:\n\t\tname: x\n\t\tnamespace: y\n", 6),
        ];
        for (text, line) in cases {
            assert_eq!(one_fault(text), tab(line), "{text:?}");
        }
    }

    #[test]
    fn what_ends_too_early_is_told_on_the_last_line_that_says_something() {
        for text in ["a: [1", "a: [1\n", "a: {b: 1\n\n  \n"] {
            assert_eq!(one_fault(text).line, 1, "{text:?}");
        }
        assert_eq!(one_fault("a: 1\n---\nb: [1\n\n").line, 3);
    }

    #[test]
    fn tabs_elsewhere_are_legal() {
        for text in [
            "spec:\n  nodePort: 32143\t# out\n  port: 80 \t # in\n",
            "{\n\t\"kind\": \"Service\",\n\t\"spec\": {\n\t\t\"ports\": [\n\t\t\t{\"port\": 80}\n\t\t]\n\t}\n}\n",
            "data:\n  conf: |\n    server {\n    \tlisten 80;\n    }\n",
            "a: 1\n\t\nb: 2\n",
            "a: 1\n\t# comment\nb: 2\n",
        ] {
            let (trees, faults) = documents(text);
            assert_eq!((trees.len(), faults), (1, vec![]), "{text:?}");
        }
    }

    #[test]
    fn reading_goes_on_at_the_next_document_after_a_fault() {
        let (trees, faults) = documents("a: 1\n---\nb: [1\n---\nc: 3\n");
        assert_eq!(faults.len(), 1);
        assert_eq!(trees.len(), 2);
        assert_eq!((trees[1].entries()[0].key.as_str(), trees[1].entries()[0].line), ("c", 5));
    }

    #[test]
    fn a_key_twice_is_a_fault_naming_both_lines() {
        let fault = one_fault("a: 1\nb: 2\na: 3\n");
        assert_eq!(fault.line, 3);
        assert!(fault.message.contains("first at line 1"), "{}", fault.message);
    }

    #[test]
    fn anchors_and_merges_are_expanded_and_bounded() {
        let (trees, _) = documents("a: &x {p: 1}\nb:\n  <<: *x\n  q: 2\n");
        let keys: Vec<_> = trees[0].entries()[1].tree.entries().iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["q", "p"]);
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(one_fault(&bomb).message.contains("too much"));
        assert_eq!(one_fault(&"[".repeat(10_000)).line, 1);
    }

    #[test]
    fn what_is_large_takes_no_more_than_its_size() {
        let begun = std::time::Instant::now();
        let mut bomb = String::from("---\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..6 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(one_fault(&bomb.repeat(50)).message.contains("too much"));
        let keys: String = (0..100_000).map(|key| format!("k{key}: v\n")).collect();
        assert_eq!(documents(&keys).0[0].entries().len(), 100_000);
        // All in one line, as programs write JSON.
        let line = format!("[{}]", "{\"a\": 1},".repeat(100_000));
        assert_eq!(documents(&line).0[0].count(), 200_001);
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_comment_of_another_language_gets_a_hint() {
        let fault = one_fault("kind: Service\n// a comment\nmetadata: {}\n");
        assert_eq!(fault.line, 2);
        assert!(fault.message.contains("begins with `#`"), "{}", fault.message);
    }
}

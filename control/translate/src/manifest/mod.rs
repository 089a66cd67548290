//! Manifests: text to judged, typed objects, each finding with its line.
//!
//! Order of work: text to trees (`yaml`), trees to kinds (`kinds`), fields against the API's (`schema`, `shapes`),
//! then typed objects against the API's rules (`service_rules`, `endpoint_rules`). What fails a step is left out, and
//! takes nothing else with it.

mod duplicates;
mod endpoint_rules;
mod files;
mod kinds;
mod names;
mod schema;
mod service_rules;
mod shapes;
mod tree;
mod yaml;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use crate::annotations::PREFIX;
use crate::finding::{Finding, Severity};
use crate::given::Given;
use crate::objects::{Located, Objects};
use duplicates::Unsound;
use kinds::{Kind, Recognised, recognise};
use schema::{Judge, Shape};
use tree::{Tree, Value};

pub use files::{Read, read_after};
pub(crate) use schema::nearest;
pub(crate) use service_rules::{is_headless, name_of, protocol_of, type_of};

/// A manifest's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path, as findings are to name it.
    pub path: Arc<str>,
    /// YAML or JSON, any number of documents.
    pub text: Arc<str>,
}

/// Reads and judges manifests. An object with an error is left out, the others stay; findings are ordered. Of sound
/// objects of one name that of the file which had it before stays, else the first by path and line; the others are
/// errors. `given` says which file that is.
#[must_use]
pub fn read(sources: &[Source], given: &Given) -> (Objects, Vec<Finding>) {
    let Read { objects, findings, .. } = read_after(None, sources, given);
    (objects, findings)
}

fn key(metadata: &ObjectMeta) -> (String, String) {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// One file while it is read.
#[derive(Default)]
struct Reading {
    objects: Objects,
    findings: Vec<Finding>,
    /// Objects with errors: they have no name, but it is told where another has theirs.
    unsound: Vec<Unsound>,
}

impl Reading {
    fn of(source: &Source) -> Self {
        let mut reading = Self::default();
        let (trees, faults) = yaml::documents(&source.text);
        for fault in faults {
            reading.error(&source.path, fault.line, "yaml", fault.message);
        }
        for tree in &trees {
            reading.document(&source.path, tree, "", None);
        }
        reading
    }

    fn error(&mut self, file: &str, line: u32, field: &str, message: impl Into<String>) {
        let (file, field, message) = (file.to_owned(), field.to_owned(), message.into());
        self.findings.push(Finding { file, line, field, message, severity: Severity::Error });
    }

    /// One document, or an item of a list; `inside` is its path in the document, `kind` what the list implies.
    fn document(&mut self, file: &str, tree: &Tree, inside: &str, implied: Option<&str>) {
        let field = |name: &str| if inside.is_empty() { name.to_owned() } else { format!("{inside}.{name}") };
        if !matches!(tree.value, Value::Map(_)) {
            let message = format!("{}, expected an object with apiVersion and kind", tree.value.described());
            return self.error(file, tree.line, if inside.is_empty() { "kind" } else { inside }, message);
        }
        let Some(kind) = tree.text("kind").or(implied) else {
            let message = "missing, expected Service, Endpoints or EndpointSlice";
            return self.error(file, tree.line, &field("kind"), message);
        };
        let implied_version = implied.and_then(Kind::api_version_of);
        if let Some(entry) = tree.entry("apiVersion").filter(|entry| !matches!(entry.tree.value, Value::Text(_))) {
            let message = format!("{}, expected a text such as `v1`", entry.tree.value.described());
            return self.error(file, entry.line, &field("apiVersion"), message);
        }
        match recognise(kind, tree.text("apiVersion").or(implied_version)) {
            Recognised::Skip => *self.objects.skipped.entry(kind.to_owned()).or_default() += 1,
            Recognised::Nearly(name, message) => {
                let line = tree.entry(name).map_or(tree.line, |entry| entry.line);
                self.error(file, line, &field(name), message);
            }
            Recognised::Ours(Kind::List(of)) => self.list(file, tree, inside, of),
            Recognised::Ours(kind) => self.object(file, tree, kind),
        }
    }

    fn list(&mut self, file: &str, tree: &Tree, inside: &str, of: Option<&str>) {
        let path =
            |index| if inside.is_empty() { format!("items[{index}]") } else { format!("{inside}.items[{index}]") };
        match tree.entry("items").map(|entry| &entry.tree.value) {
            Some(Value::List(items)) => {
                items.iter().enumerate().for_each(|(index, item)| self.document(file, item, &path(index), of));
            }
            None | Some(Value::Null) => {}
            Some(other) => self.error(file, tree.line, "items", format!("{}, expected a list", other.described())),
        }
    }

    fn object(&mut self, file: &str, tree: &Tree, kind: Kind) {
        let errors_before = self.errors();
        let (shape, namespaced) = match kind {
            Kind::Service => (&shapes::SERVICE, true),
            Kind::Endpoints => (&shapes::ENDPOINTS, true),
            Kind::EndpointSlice => (&shapes::ENDPOINT_SLICE, true),
            _ => (&shapes::NODE, false),
        };
        let lines = self.judge(file, tree, shape);
        if kind == Kind::Service && self.errors() > errors_before {
            self.port_names(file, tree);
        }
        let Some(metadata) = tree.entry("metadata") else { return };
        let Some(name) = metadata.tree.text("name") else { return };
        let namespace = metadata.tree.text("namespace").unwrap_or("default").to_owned();
        let namespace = if namespaced { namespace } else { String::new() };
        if self.errors() == errors_before {
            match kind {
                Kind::Service => self.service(file, tree, lines.clone(), namespace.clone()),
                Kind::Endpoints => self.endpoints(file, tree, lines.clone(), namespace.clone()),
                Kind::EndpointSlice => self.slice(file, tree, lines.clone(), namespace.clone()),
                _ => self.node(file, tree, lines.clone()),
            }
        }
        if self.errors() > errors_before {
            let at = Located { object: (), file: file.to_owned(), line: tree.line, lines };
            self.unsound.push(Unsound { kind, namespace, name: name.to_owned(), at });
        }
    }

    /// The rule on names of several ports, for a Service that fails before it becomes a typed object.
    fn port_names(&mut self, file: &str, tree: &Tree) {
        let ports = tree.entry("spec").and_then(|spec| spec.tree.entry("ports")).map(|ports| &ports.tree.value);
        let Some(Value::List(ports)) = ports.filter(|value| matches!(value, Value::List(list) if list.len() > 1))
        else {
            return;
        };
        for (at, port) in ports.iter().enumerate().filter(|(_, port)| port.entry("name").is_none()) {
            let message = "missing, expected a name since there are several ports";
            self.error(file, port.line, &format!("spec.ports[{at}].name"), message);
        }
    }

    fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_error()).count()
    }

    fn judge(&mut self, file: &str, tree: &Tree, shape: &Shape) -> BTreeMap<String, u32> {
        let mut judge = Judge { file, findings: &mut self.findings, lines: BTreeMap::new() };
        judge.judge(tree, shape, "");
        judge.lines
    }

    fn service(&mut self, file: &str, tree: &Tree, lines: BTreeMap<String, u32>, namespace: String) {
        let mut json = plain(tree, &["apiVersion", "kind", "metadata", "spec", "status"]);
        let mut lines = lines;
        take_topology_keys(&mut json, &mut lines);
        let Some(mut located) = self.typed::<Service>(file, tree, lines, json) else { return };
        located.object.metadata.namespace = Some(namespace);
        let found = service_rules::judge(&located);
        let sound = !found.iter().any(Finding::is_error);
        self.findings.extend(found);
        if sound {
            Arc::make_mut(&mut self.objects.services).push(Arc::new(located));
        }
    }

    fn endpoints(&mut self, file: &str, tree: &Tree, lines: BTreeMap<String, u32>, namespace: String) {
        let json = plain(tree, &["apiVersion", "kind", "metadata", "subsets"]);
        let Some(mut located) = self.typed::<Endpoints>(file, tree, lines, json) else { return };
        located.object.metadata.namespace = Some(namespace);
        let found = endpoint_rules::judge_endpoints(&located);
        let sound = !found.iter().any(Finding::is_error);
        self.findings.extend(found);
        if sound {
            Arc::make_mut(&mut self.objects.endpoints).push(Arc::new(located));
        }
    }

    fn slice(&mut self, file: &str, tree: &Tree, lines: BTreeMap<String, u32>, namespace: String) {
        let json = plain(tree, &["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"]);
        let Some(mut located) = self.typed::<EndpointSlice>(file, tree, lines, json) else { return };
        located.object.metadata.namespace = Some(namespace);
        let found = endpoint_rules::judge_slice(&located);
        let sound = !found.iter().any(Finding::is_error);
        self.findings.extend(found);
        if sound {
            Arc::make_mut(&mut self.objects.slices).push(Arc::new(located));
        }
    }

    fn node(&mut self, file: &str, tree: &Tree, lines: BTreeMap<String, u32>) {
        let json = plain(tree, &["apiVersion", "kind", "metadata"]);
        if let Some(located) = self.typed::<Node>(file, tree, lines, json) {
            Arc::make_mut(&mut self.objects.nodes).push(Arc::new(located));
        }
    }

    fn typed<T: DeserializeOwned>(
        &mut self,
        file: &str,
        tree: &Tree,
        lines: BTreeMap<String, u32>,
        json: serde_json::Value,
    ) -> Option<Located<T>> {
        match serde_json::from_value(json) {
            Ok(object) => Some(Located { object, file: file.to_owned(), line: tree.line, lines }),
            Err(error) => {
                self.error(file, tree.line, "kind", format!("{error}, expected an object as the API takes it"));
                None
            }
        }
    }
}

/// The tree as JSON with these fields alone, and of the metadata what translation reads.
fn plain(tree: &Tree, fields: &[&str]) -> serde_json::Value {
    let mut json = serde_json::Value::from(tree);
    if let Some(object) = json.as_object_mut() {
        object.retain(|field, _| fields.contains(&field.as_str()));
        if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
            metadata.retain(|field, _| ["name", "namespace", "labels", "annotations"].contains(&field.as_str()));
        }
    }
    json
}

/// The legacy field has no place in the typed object any more: it becomes the annotation, which wins where both are.
fn take_topology_keys(json: &mut serde_json::Value, lines: &mut BTreeMap<String, u32>) {
    let Some(serde_json::Value::Array(keys)) =
        json.get_mut("spec").and_then(|spec| spec.as_object_mut()?.remove("topologyKeys"))
    else {
        return;
    };
    let text = keys.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(",");
    let annotation = format!("{PREFIX}topology-keys");
    let path = format!("metadata.annotations[{annotation}]");
    if keys.is_empty() || lines.contains_key(&path) {
        return;
    }
    let line = lines.get("spec.topologyKeys").copied();
    let Some(metadata) = json.get_mut("metadata").and_then(serde_json::Value::as_object_mut) else { return };
    let annotations =
        metadata.entry("annotations").or_insert_with(|| serde_json::Value::Object(serde_json::Map::new()));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(annotation, text.into());
        lines.insert(path, line.unwrap_or_default());
    }
}

//! The typed objects that translation works on, each with where it came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::context::Place;
use crate::finding::{self, Finding, Severity};
use crate::given::object_key;

/// An object and its place in a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Located<T> {
    /// The object, judged; its namespace is always set.
    pub object: T,
    /// The file's path as given in [`Source`](crate::Source), or what [`Located::of_api`] says.
    pub file: String,
    /// The line where the object begins, from 1; 0 where it stands in no file.
    pub line: u32,
    /// The line of each field that is written, by path (`spec.ports[0].port`).
    pub lines: BTreeMap<String, u32>,
}

impl<T> Located<T> {
    /// An object that an API server gave, judged by it: its place is its kind and name.
    #[must_use]
    pub fn of_api(object: T, kind: &str, namespace: Option<&str>, name: &str) -> Self {
        let file = match namespace {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        Self { object, file, line: 0, lines: BTreeMap::new() }
    }

    /// The line of a field, or of the nearest one around it that is written.
    #[must_use]
    pub fn line_of(&self, field: &str) -> u32 {
        let mut path = field;
        loop {
            if let Some(&line) = self.lines.get(path) {
                return line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.line,
            }
        }
    }

    /// A finding at one of its fields.
    #[must_use]
    pub fn finding(&self, severity: Severity, field: &str, message: impl Into<String>) -> Finding {
        Finding {
            file: self.file.clone(),
            line: self.line_of(field),
            field: field.to_owned(),
            message: message.into(),
            severity,
        }
    }

    /// `file:line`; of an object of an API server its kind and name.
    #[must_use]
    pub fn place(&self) -> String {
        finding::place(&self.file, self.line)
    }
}

/// All objects of a kind; shared as a whole too, for most changes leave most kinds as they were.
pub type All<T> = Arc<Vec<Arc<Located<T>>>>;

/// Everything that was read and is sound, ordered by namespace and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// `v1 Service`.
    pub services: All<Service>,
    /// `v1 Endpoints`.
    pub endpoints: All<Endpoints>,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    pub slices: All<EndpointSlice>,
    /// `v1 Node`: its labels alone are used.
    pub nodes: All<Node>,
    /// Documents of kinds that are not ours, by kind.
    pub skipped: BTreeMap<String, u64>,
}

impl Objects {
    /// Which file each is in, as [`Given::objects`](crate::Given::objects) has it. An API server has each object once:
    /// on a node there is nothing to keep.
    pub(crate) fn files(&self, place: Place) -> BTreeMap<String, String> {
        if place == Place::Node {
            return BTreeMap::new();
        }
        fn of<T>(kind: &str, all: &[Arc<Located<T>>], metadata: fn(&T) -> &ObjectMeta) -> Vec<(String, String)> {
            let entry = |located: &Arc<Located<T>>| {
                let metadata = metadata(&located.object);
                let namespace = metadata.namespace.as_deref().unwrap_or_default();
                let name = metadata.name.as_deref().unwrap_or_default();
                (object_key(kind, namespace, name), located.file.clone())
            };
            all.iter().map(entry).collect()
        }
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        files.extend(of("Service", &self.services, |object| &object.metadata));
        files.extend(of("Endpoints", &self.endpoints, |object| &object.metadata));
        files.extend(of("EndpointSlice", &self.slices, |object| &object.metadata));
        files.extend(of("Node", &self.nodes, |object| &object.metadata));
        files
    }
}

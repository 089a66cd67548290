//! What was seen of each kind, and how lists and events change it. Pure.
//!
//! An event counts at once, and so does what a list has more or newer. What a list lacks, or has older than it was seen,
//! may be an API server's that starts from a backup or is not whole yet: it counts once a later list says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use translate::{Located, Objects};

use super::kinds::Kind;

/// Namespace and name.
pub(super) type Key = (String, String);

/// An object, and the version that it was seen in.
#[derive(Clone, Debug)]
pub(super) struct Entry<K> {
    pub version: u64,
    pub object: Arc<Located<K>>,
}

/// All objects of a kind.
#[derive(Clone, Debug)]
pub(super) struct Store<K> {
    entries: BTreeMap<Key, Entry<K>>,
    /// What the last list lacked or had older.
    doubted: BTreeSet<Key>,
    /// Whether it was listed whole, with nothing in doubt.
    listed: bool,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), doubted: BTreeSet::new(), listed: false }
    }
}

impl<K: Kind> Store<K> {
    /// Whether it was listed whole once.
    pub fn listed(&self) -> bool {
        self.listed
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// In order of their keys.
    pub fn objects(&self) -> Vec<Arc<Located<K>>> {
        self.entries.values().map(|entry| Arc::clone(&entry.object)).collect()
    }

    /// With the versions they were seen in.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<K>> {
        self.entries.values()
    }

    /// Takes an object as it is now. Whether that changes anything that counts.
    pub fn put(&mut self, object: K) -> bool {
        let (key, version) = (key_of(&object), version_of(&object));
        self.doubted.remove(&key);
        let object = object.slimmed();
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.object.object == object
        {
            entry.version = version;
            return false;
        }
        let namespace = Some(key.0.as_str()).filter(|namespace| !namespace.is_empty());
        let located = Located::of_api(object, K::KIND, namespace, &key.1);
        self.entries.insert(key, Entry { version, object: Arc::new(located) });
        true
    }

    /// As it was kept.
    pub fn restore(&mut self, version: u64, object: K) {
        let key = key_of(&object);
        self.put(object);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.version = version;
        }
    }

    /// Lets go of an object. Whether there was one.
    pub fn remove(&mut self, object: &K) -> bool {
        let key = key_of(object);
        self.doubted.remove(&key);
        self.entries.remove(&key).is_some()
    }

    /// Takes a whole list: (whether anything changed, how much is in doubt until another list says the same).
    pub fn take_list(&mut self, list: Vec<K>) -> (bool, usize) {
        let before = std::mem::take(&mut self.doubted);
        let mut doubted = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut changed = false;
        for object in list {
            let key = key_of(&object);
            let older = self.entries.get(&key).is_some_and(|entry| version_of(&object) < entry.version);
            seen.insert(key.clone());
            if older && !before.contains(&key) {
                doubted.insert(key);
            } else {
                changed |= self.put(object);
            }
        }
        self.entries.retain(|key, _| {
            if seen.contains(key) {
                return true;
            }
            if before.contains(key) {
                changed = true;
                return false;
            }
            doubted.insert(key.clone());
            true
        });
        let count = doubted.len();
        self.doubted = doubted;
        self.listed |= count == 0;
        (changed, count)
    }
}

fn key_of<K: Kind>(object: &K) -> Key {
    let metadata = object.meta();
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// Versions are numbers that grow (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>);
/// of what is none nothing can be said, so that it counts as the newest.
pub(super) fn version_of<K: Kind>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(u64::MAX)
}

/// All kinds.
#[derive(Clone, Debug, Default)]
pub(super) struct Stores {
    pub services: Store<Service>,
    pub slices: Store<EndpointSlice>,
    pub endpoints: Store<Endpoints>,
    pub nodes: Store<Node>,
}

impl Stores {
    /// Whether every kind was listed whole.
    pub fn all_listed(&self) -> bool {
        self.services.listed() && self.slices.listed() && self.endpoints.listed() && self.nodes.listed()
    }

    /// As translation takes them.
    pub fn objects(&self) -> Objects {
        Objects {
            services: self.services.objects(),
            endpoints: self.endpoints.objects(),
            slices: self.slices.objects(),
            nodes: self.nodes.objects(),
            skipped: BTreeMap::new(),
        }
    }

    /// How many of each there are, for people.
    pub fn count(&self) -> impl fmt::Display {
        format!(
            "{} Services, {} EndpointSlices, {} Endpoints, {} Nodes",
            self.services.len(),
            self.slices.len(),
            self.endpoints.len(),
            self.nodes.len()
        )
    }
}

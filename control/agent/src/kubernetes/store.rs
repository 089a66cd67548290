//! What was seen of each kind, and how lists and events change it. Pure.
//!
//! An event counts at once, and so does what a list has more or newer. What a list lacks, or has older than it was seen,
//! may be an API server's that starts from a backup or is not whole yet: it counts once a later list says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use translate::{All, Labels, Located, Objects};

use super::access::ApiServer;
use super::address_pool::AddressPool;
use super::kinds::Kind;

/// Namespace and name.
pub(super) type Key = (String, String);

/// An object, and the version that it was seen in.
#[derive(Clone, Debug)]
pub(super) struct Entry<K> {
    pub version: u64,
    pub object: Arc<Located<K>>,
}

/// An object as a list or an event has it: what of it is of use, so that the rest goes as soon as it was read.
#[derive(Clone, Debug)]
pub(super) struct Seen<K> {
    key: Key,
    version: u64,
    object: K,
}

impl<K: Kind> From<K> for Seen<K> {
    fn from(object: K) -> Self {
        Self { key: key(object.meta()), version: version_of(&object), object: object.slimmed() }
    }
}

/// All objects of a kind.
#[derive(Clone, Debug)]
pub(super) struct Store<K> {
    entries: BTreeMap<Key, Entry<K>>,
    /// What the last list lacked or had older.
    doubted: BTreeSet<Key>,
    /// Whether it was listed whole, with nothing in doubt.
    listed: bool,
    /// Counts changes.
    revision: u64,
    /// All objects, since the last change.
    all: OnceLock<All<K>>,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), doubted: BTreeSet::new(), listed: false, revision: 0, all: OnceLock::new() }
    }
}

impl<K: Kind> Store<K> {
    /// Whether it was listed whole once.
    pub fn listed(&self) -> bool {
        self.listed
    }

    /// Another one after each change of an object.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// In order of their keys; the same ones as long as nothing changes.
    pub fn objects(&self) -> All<K> {
        let all = || self.entries.values().map(|entry| Arc::clone(&entry.object)).collect();
        Arc::clone(self.all.get_or_init(|| Arc::new(all())))
    }

    fn changed(&mut self) {
        self.revision += 1;
        self.all.take();
    }

    /// With the versions they were seen in.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<K>> {
        self.entries.values()
    }

    /// Takes an object as it is now. Whether that changes anything that counts.
    pub fn put(&mut self, object: impl Into<Seen<K>>) -> bool {
        let Seen { key, version, object } = object.into();
        self.doubted.remove(&key);
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.object.object == object
        {
            entry.version = version;
            return false;
        }
        let namespace = Some(key.0.as_str()).filter(|namespace| !namespace.is_empty());
        let located = Located::of_api(object, K::KIND, namespace, &key.1);
        self.entries.insert(key, Entry { version, object: Arc::new(located) });
        self.changed();
        true
    }

    /// Takes an object that is known, where this is a newer one of it. Whether that changes anything that counts.
    pub fn put_newer(&mut self, object: K) -> bool {
        let known = self.entries.get(&key_of(&object));
        known.is_some_and(|entry| entry.version < version_of(&object)) && self.put(object)
    }

    /// Takes an event's object: one that is older than what was written meanwhile and stored says nothing new.
    pub fn put_event(&mut self, object: K) -> bool {
        let known = self.entries.get(&key_of(&object));
        known.is_none_or(|entry| entry.version <= version_of(&object)) && self.put(object)
    }

    /// Counts as listed with what is there: the API server does not let it be read.
    pub fn do_without(&mut self) {
        self.listed = true;
    }

    /// The version of an object.
    pub fn version(&self, key: &Key) -> Option<u64> {
        self.entries.get(key).map(|entry| entry.version)
    }

    /// An object.
    pub fn get(&self, key: &Key) -> Option<&Entry<K>> {
        self.entries.get(key)
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
        let was_there = self.entries.remove(&key).is_some();
        if was_there {
            self.changed();
        }
        was_there
    }

    /// Takes a whole list: (whether anything changed, how much is in doubt until another list says the same).
    pub fn take_list(&mut self, list: Vec<Seen<K>>) -> (bool, usize) {
        let before = std::mem::take(&mut self.doubted);
        let mut doubted = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let (mut changed, mut gone) = (false, 0);
        for object in list {
            let older = self.entries.get(&object.key).is_some_and(|entry| object.version < entry.version);
            seen.insert(object.key.clone());
            if older && !before.contains(&object.key) {
                doubted.insert(object.key);
            } else {
                changed |= self.put(object);
            }
        }
        self.entries.retain(|key, _| {
            if seen.contains(key) {
                return true;
            }
            if before.contains(key) {
                gone += 1;
                return false;
            }
            doubted.insert(key.clone());
            true
        });
        if gone > 0 {
            changed = true;
            self.changed();
        }
        let count = doubted.len();
        self.doubted = doubted;
        self.listed |= count == 0;
        (changed, count)
    }
}

fn key_of<K: Kind>(object: &K) -> Key {
    key(object.meta())
}

/// What tells an object from others of its kind.
pub(super) fn key(metadata: &ObjectMeta) -> Key {
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
    pub namespaces: Store<Namespace>,
    pub service_ranges: Store<ServiceCIDR>,
    pub pools: Store<AddressPool>,
    /// As it was known last.
    pub api_server: ApiServer,
}

impl Stores {
    /// Each kind, and whether it was listed whole.
    pub fn listed(&self) -> [(&'static str, bool); 7] {
        [
            (Service::PLURAL, self.services.listed()),
            (EndpointSlice::PLURAL, self.slices.listed()),
            (Endpoints::PLURAL, self.endpoints.listed()),
            (Node::PLURAL, self.nodes.listed()),
            (Namespace::PLURAL, self.namespaces.listed()),
            (ServiceCIDR::PLURAL, self.service_ranges.listed()),
            (AddressPool::PLURAL, self.pools.listed()),
        ]
    }

    /// Whether every kind was listed whole.
    pub fn all_listed(&self) -> bool {
        self.listed().iter().all(|(_, listed)| *listed)
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

    /// What addresses depend on: Services and Nodes, and the namespaces' labels.
    pub fn allocatable(&self) -> (Objects, BTreeMap<String, Labels>) {
        let (services, nodes) = (self.services.objects(), self.nodes.objects());
        let labelled = self.namespaces.entries().filter_map(|entry| {
            let metadata = &entry.object.object.metadata;
            Some((metadata.name.clone()?, metadata.labels.clone().unwrap_or_default()))
        });
        (Objects { services, nodes, ..Objects::default() }, labelled.collect())
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

//! All files together, read again as far as their texts changed.
//!
//! An object that says the same as before, at the same place, is the same by pointer.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::duplicates::{Names, Unsound};
use super::kinds::Kind;
use super::{Reading, Source, key};
use crate::finding::Finding;
use crate::given::Given;
use crate::objects::{All, Located, Objects};

/// What manifests say, and what is kept of it for the next reading.
#[derive(Clone, Debug, Default)]
pub struct Read {
    /// What is sound.
    pub objects: Objects,
    /// What is wrong, ordered.
    pub findings: Vec<Finding>,
    /// By path.
    files: Vec<Arc<File>>,
    /// Whether each object is sound and the only one of its name.
    plain: bool,
}

/// What one file says.
#[derive(Debug)]
struct File {
    source: Source,
    objects: Objects,
    findings: Vec<Finding>,
    unsound: Vec<Unsound>,
}

/// The same as [`read`](super::read) gives, with what did not change taken from the former reading.
#[must_use]
pub fn read_after(former: Option<&Read>, sources: &[Source], given: &Given) -> Read {
    let mut ordered: Vec<&Source> = sources.iter().collect();
    ordered.sort_by(|a, b| a.path.cmp(&b.path));
    let known = former.map(|former| former.files.as_slice()).unwrap_or_default();
    let mut known = known.iter().peekable();
    let mut changed = Vec::new();
    let mut alike = former.is_some_and(|former| former.plain && former.files.len() == ordered.len());
    let mut files = Vec::with_capacity(ordered.len());
    for source in ordered {
        while known.next_if(|file| file.source.path < source.path).is_some() {}
        let file = known.next_if(|file| file.source.path == source.path);
        if let Some(file) = file.filter(|file| file.says(source)) {
            files.push(Arc::clone(file));
            continue;
        }
        let new = Arc::new(File::read(source, file.map(Arc::as_ref)));
        alike &= file.is_some_and(|file| file.names_the_same(&new));
        changed.push(Arc::clone(&new));
        files.push(new);
    }
    match former.filter(|_| alike) {
        Some(former) => former.with(&changed, files),
        None => Read::of(files, given),
    }
}

impl Read {
    fn of(files: Vec<Arc<File>>, given: &Given) -> Self {
        let mut objects = Objects::default();
        for file in &files {
            Arc::make_mut(&mut objects.services).extend(file.objects.services.iter().cloned());
            Arc::make_mut(&mut objects.endpoints).extend(file.objects.endpoints.iter().cloned());
            Arc::make_mut(&mut objects.slices).extend(file.objects.slices.iter().cloned());
            Arc::make_mut(&mut objects.nodes).extend(file.objects.nodes.iter().cloned());
            for (kind, count) in &file.objects.skipped {
                *objects.skipped.entry(kind.clone()).or_default() += count;
            }
        }
        let mut findings: Vec<Finding> = files.iter().flat_map(|file| file.findings.iter().cloned()).collect();
        let unsound: Vec<&Unsound> = files.iter().flat_map(|file| &file.unsound).collect();
        let sound = unsound.is_empty();
        let mut names = Names { given, unsound, findings: &mut findings, disputed: false };
        names.settle(Kind::Service, Arc::make_mut(&mut objects.services), of_service);
        names.settle(Kind::Endpoints, Arc::make_mut(&mut objects.endpoints), of_endpoints);
        names.settle(Kind::EndpointSlice, Arc::make_mut(&mut objects.slices), of_slice);
        names.settle(Kind::Node, Arc::make_mut(&mut objects.nodes), of_node);
        let plain = sound && !names.disputed;
        Arc::make_mut(&mut objects.services).sort_by_cached_key(|located| key(&located.object.metadata));
        Arc::make_mut(&mut objects.endpoints).sort_by_cached_key(|located| key(&located.object.metadata));
        Arc::make_mut(&mut objects.slices).sort_by_cached_key(|located| key(&located.object.metadata));
        Arc::make_mut(&mut objects.nodes).sort_by_cached_key(|located| key(&located.object.metadata));
        findings.sort();
        findings.dedup();
        Self { objects, findings, files, plain }
    }

    /// With these files in the place of others that have objects of the same names.
    fn with(&self, changed: &[Arc<File>], files: Vec<Arc<File>>) -> Self {
        let mut objects = self.objects.clone();
        for file in changed {
            replace(&mut objects.services, &file.objects.services, of_service);
            replace(&mut objects.endpoints, &file.objects.endpoints, of_endpoints);
            replace(&mut objects.slices, &file.objects.slices, of_slice);
            replace(&mut objects.nodes, &file.objects.nodes, of_node);
        }
        let mut findings: Vec<Finding> = files.iter().flat_map(|file| file.findings.iter().cloned()).collect();
        findings.sort();
        findings.dedup();
        Self { objects, findings, files, plain: true }
    }
}

impl File {
    fn read(source: &Source, former: Option<&Self>) -> Self {
        let Reading { mut objects, findings, unsound } = Reading::of(source);
        if let Some(former) = former {
            share(&mut objects.services, &former.objects.services, of_service);
            share(&mut objects.endpoints, &former.objects.endpoints, of_endpoints);
            share(&mut objects.slices, &former.objects.slices, of_slice);
            share(&mut objects.nodes, &former.objects.nodes, of_node);
        }
        Self { source: source.clone(), objects, findings, unsound }
    }

    fn says(&self, source: &Source) -> bool {
        Arc::ptr_eq(&self.source.text, &source.text) || self.source.text == source.text
    }

    /// Whether all is sound in both, and the same as far as names go.
    fn names_the_same(&self, other: &Self) -> bool {
        let (a, b) = (&self.objects, &other.objects);
        self.unsound.is_empty()
            && other.unsound.is_empty()
            && a.skipped == b.skipped
            && same_names(&a.services, &b.services, of_service)
            && same_names(&a.endpoints, &b.endpoints, of_endpoints)
            && same_names(&a.slices, &b.slices, of_slice)
            && same_names(&a.nodes, &b.nodes, of_node)
    }
}

type Metadata<T> = fn(&T) -> &ObjectMeta;

/// Namespace and name, in the order of [`key`].
fn name<T>(located: &Located<T>, metadata: Metadata<T>) -> (&str, &str) {
    let metadata = metadata(&located.object);
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn same_names<T>(a: &[Arc<Located<T>>], b: &[Arc<Located<T>>], metadata: Metadata<T>) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| name(a, metadata) == name(b, metadata))
}

/// Puts former objects in the place of equal ones.
fn share<T: PartialEq>(now: &mut All<T>, former: &[Arc<Located<T>>], metadata: Metadata<T>) {
    let known: HashMap<_, _> = former.iter().map(|located| (name(located, metadata), located)).collect();
    for located in Arc::make_mut(now) {
        let same = known.get(&name(located, metadata)).filter(|former| ***former == *located);
        if let Some(same) = same.map(|former| Arc::clone(former)) {
            *located = same;
        }
    }
}

/// Puts objects in the place of those of their names, of which each is there once.
fn replace<T>(all: &mut All<T>, new: &[Arc<Located<T>>], metadata: Metadata<T>) {
    for located in new {
        let order = |other: &Arc<Located<T>>| -> Ordering { name(other, metadata).cmp(&name(located, metadata)) };
        if let Ok(at) = all.binary_search_by(order) {
            Arc::make_mut(all)[at] = Arc::clone(located);
        }
    }
}

fn of_service(service: &Service) -> &ObjectMeta {
    &service.metadata
}

fn of_endpoints(endpoints: &Endpoints) -> &ObjectMeta {
    &endpoints.metadata
}

fn of_slice(slice: &EndpointSlice) -> &ObjectMeta {
    &slice.metadata
}

fn of_node(node: &Node) -> &ObjectMeta {
    &node.metadata
}

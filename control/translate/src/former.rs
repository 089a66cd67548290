//! What a translation may take from the one before it, and how it tells that it may.
//!
//! Objects are compared by pointer: who reads again only what changed shares the rest. A pointer that differs costs time
//! alone, for then it is made anew.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::context::Context;
use crate::endpoints::{Index, service_of_endpoints, service_of_slice};
use crate::frontends::{Owners, Reached};
use crate::given::Given;
use crate::join::Outcome;
use crate::objects::{Located, Objects};
use crate::service::ServiceView;
use crate::settled::Settled;

/// A former translation and what it was made of.
#[derive(Clone, Debug)]
pub struct Former {
    pub(crate) objects: Objects,
    pub(crate) context: Arc<Context>,
    pub(crate) settled: Arc<Settled>,
    /// What each Service came to.
    pub(crate) outcomes: Vec<Arc<Outcome>>,
    /// What was given.
    pub(crate) given: Given,
}

/// Which Services differ (by their place in [`Settled::services`]), if nothing but slices, Endpoints and health does;
/// else all is to be looked at.
pub(crate) fn change_of(
    former: &Former,
    objects: &Objects,
    context: &Context,
    given: &Given,
) -> Option<BTreeSet<usize>> {
    let settled = &former.settled;
    let same = same_all(&former.objects.services, &objects.services)
        && same_all(&former.objects.nodes, &objects.nodes)
        && former.objects.skipped == objects.skipped
        && former.context.rules_like(context)
        && settled.is_after(given)
        && former.given.table_sizes == given.table_sizes;
    if !same {
        return None;
    }
    let place = |(namespace, name): (&str, &str)| {
        let order = |service: &ServiceView| (service.namespace.as_str(), service.name.as_str()).cmp(&(namespace, name));
        settled.services.binary_search_by(order).ok()
    };
    let mut changed = BTreeSet::new();
    for slice in differing(&former.objects.slices, &objects.slices) {
        changed.insert(place(service_of_slice(slice)?)?);
    }
    for endpoints in differing(&former.objects.endpoints, &objects.endpoints) {
        if let Some(service) = service_of_endpoints(endpoints) {
            changed.insert(place(service)?);
        }
    }
    if former.context.health != context.health {
        let other = former.outcomes.iter().enumerate().filter(|(_, outcome)| former.health_differs(outcome, context));
        changed.extend(other.map(|(at, _)| at));
    }
    Some(changed)
}

/// What may be taken from a former translation although more than endpoints changed.
pub(crate) struct Keeps<'f> {
    former: &'f Former,
    index: Index<'f>,
    /// Addresses with a frontend that another Service has now, or none.
    moved: HashSet<IpAddr>,
    context: &'f Context,
}

impl Former {
    /// What may be taken; `None`: nothing.
    pub(crate) fn keeps<'f>(
        &'f self,
        settled: &Settled,
        objects: &Objects,
        context: &'f Context,
        given: &Given,
    ) -> Option<Keeps<'f>> {
        let same = same_all(&self.objects.nodes, &objects.nodes)
            && self.context.rules_like(context)
            && self.given.table_sizes == given.table_sizes;
        let moved = || moved(&self.settled.owners, &settled.owners).chain(moved(&settled.owners, &self.settled.owners));
        same.then(|| Keeps { former: self, index: Index::new(&self.objects), moved: moved().collect(), context })
    }

    /// What names endpoints of these Services. Objects are ordered by namespace.
    pub(crate) fn index_of<'o>(&self, services: &BTreeSet<usize>, objects: &'o Objects) -> Index<'o> {
        let names = services.iter().map(|&at| &self.settled.services[at]);
        let names: BTreeSet<(&str, &str)> = names.map(|s| (s.namespace.as_str(), s.name.as_str())).collect();
        let namespaces: BTreeSet<&str> = names.iter().map(|(namespace, _)| *namespace).collect();
        let slices = namespaces.iter().flat_map(|namespace| in_namespace(&objects.slices, namespace, of_slice));
        let slices = slices.filter(|slice| service_of_slice(slice).is_some_and(|service| names.contains(&service)));
        let endpoints =
            namespaces.iter().flat_map(|namespace| in_namespace(&objects.endpoints, namespace, of_endpoints));
        let endpoints =
            endpoints.filter(|all| service_of_endpoints(all).is_some_and(|service| names.contains(&service)));
        Index::of(slices.map(Arc::as_ref), endpoints.map(Arc::as_ref), objects)
    }

    /// Whether each object is in the file where it was, given that Services and Nodes are the same.
    pub(crate) fn same_files(&self, objects: &Objects) -> bool {
        same_places(&self.objects.slices, &objects.slices, of_slice)
            && same_places(&self.objects.endpoints, &objects.endpoints, of_endpoints)
    }

    fn health_differs(&self, outcome: &Outcome, context: &Context) -> bool {
        outcome.probes.iter().any(|probe| self.context.health.get(probe) != context.health.get(probe))
    }
}

impl Keeps<'_> {
    /// What a Service came to, if it comes to the same now.
    pub fn outcome(&self, service: &ServiceView, reached: &[Reached], index: &Index<'_>) -> Option<Arc<Outcome>> {
        let settled = &self.former.settled;
        let order = |other: &ServiceView| (&other.namespace, &other.name).cmp(&(&service.namespace, &service.name));
        let at = settled.services.binary_search_by(order).ok()?;
        let outcome = &self.former.outcomes[at];
        let (slices, endpoints) = index.objects_of((&service.namespace, &service.name));
        let (former_slices, former_endpoints) = self.index.objects_of((&service.namespace, &service.name));
        let same = settled.services[at].has_the_same(service)
            && same_reached(&settled.reached[at], reached)
            && slices.len() == former_slices.len()
            && slices.iter().zip(former_slices).all(|(a, b)| std::ptr::eq(*a, *b))
            && endpoints.map(std::ptr::from_ref) == former_endpoints.map(std::ptr::from_ref)
            && outcome.candidates.iter().all(|address| !self.moved.contains(address))
            && !self.former.health_differs(outcome, self.context);
        same.then(|| Arc::clone(outcome))
    }
}

fn same_reached(former: &[Reached], now: &[Reached]) -> bool {
    let same = |(a, b): (&Reached, &Reached)| (a.at, a.ipv6) == (b.at, b.ipv6) && a.frontends == b.frontends;
    former.len() == now.len() && former.iter().zip(now).all(same)
}

/// Addresses of frontends whose owner another has not.
fn moved<'o>(owners: &'o Owners, other: &'o Owners) -> impl Iterator<Item = IpAddr> + 'o {
    owners.iter().filter(|(key, owner)| other.get(*key) != Some(owner)).map(|(key, _)| key.0)
}

fn same_all<T>(former: &[Arc<T>], now: &[Arc<T>]) -> bool {
    former.len() == now.len() && former.iter().zip(now).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// Those that only one of both has.
fn differing<'a, T>(former: &'a [Arc<T>], now: &'a [Arc<T>]) -> Vec<&'a Arc<T>> {
    let front = former.iter().zip(now).take_while(|(a, b)| Arc::ptr_eq(a, b)).count();
    let (former, now) = (&former[front..], &now[front..]);
    let back = former.iter().rev().zip(now.iter().rev()).take_while(|(a, b)| Arc::ptr_eq(a, b)).count();
    let (former, now) = (&former[..former.len() - back], &now[..now.len() - back]);
    let had: HashSet<*const T> = former.iter().map(Arc::as_ptr).collect();
    let has: HashSet<*const T> = now.iter().map(Arc::as_ptr).collect();
    let gone = former.iter().filter(|object| !has.contains(&Arc::as_ptr(object)));
    gone.chain(now.iter().filter(|object| !had.contains(&Arc::as_ptr(object)))).collect()
}

fn same_places<T>(former: &[Arc<Located<T>>], now: &[Arc<Located<T>>], metadata: fn(&T) -> &ObjectMeta) -> bool {
    let name = |located: &Located<T>| {
        let metadata = metadata(&located.object);
        (metadata.namespace.clone(), metadata.name.clone(), located.file.clone())
    };
    former.len() == now.len() && former.iter().zip(now).all(|(a, b)| Arc::ptr_eq(a, b) || name(a) == name(b))
}

/// Those of a namespace, of objects that are ordered by it.
fn in_namespace<'o, T>(
    all: &'o [Arc<Located<T>>],
    namespace: &str,
    metadata: fn(&T) -> &ObjectMeta,
) -> &'o [Arc<Located<T>>] {
    let order =
        |located: &Arc<Located<T>>| metadata(&located.object).namespace.as_deref().unwrap_or("default").cmp(namespace);
    let start = all.partition_point(|located| order(located).is_lt());
    let rest = &all[start..];
    &rest[..rest.partition_point(|located| order(located).is_eq())]
}

fn of_slice(slice: &EndpointSlice) -> &ObjectMeta {
    &slice.metadata
}

fn of_endpoints(endpoints: &Endpoints) -> &ObjectMeta {
    &endpoints.metadata
}

//! What a translation may take from the one before it, and how it tells that it may.
//!
//! Objects are compared by pointer: who reads again only what changed shares the rest. A pointer that differs costs time
//! alone, for then it is made anew.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb::list::List;

use crate::combined::Combined;
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
    pub(crate) outcomes: List<Arc<Outcome>>,
    /// The same put together.
    pub(crate) combined: Combined,
    /// What was given.
    pub(crate) given: Given,
}

/// What became of a Service's slices and Endpoints.
#[derive(Debug, Default)]
pub(crate) struct Change<'o> {
    gone: Vec<*const Located<EndpointSlice>>,
    new: Vec<&'o Arc<Located<EndpointSlice>>>,
    /// Whether its Endpoints are others, or none; and which.
    endpoints: Option<Option<&'o Arc<Located<Endpoints>>>>,
}

/// Changes by the Service's place in [`Settled::services`].
pub(crate) type Changes<'o> = BTreeMap<usize, Change<'o>>;

/// Which Services differ, and in what, if nothing but slices, Endpoints and health does; else all is to be looked at.
pub(crate) fn change_of<'o>(
    former: &Former,
    objects: &'o Objects,
    context: &Context,
    given: &Given,
) -> Option<Changes<'o>> {
    let settled = &former.settled;
    let same = same_all(&former.objects.services, &objects.services)
        && same_all(&former.objects.nodes, &objects.nodes)
        && former.objects.skipped == objects.skipped
        && former.context.same_rules(context)
        && settled.is_after(given)
        && former.given.table_sizes == given.table_sizes;
    if !same {
        return None;
    }
    let place = |(namespace, name): (&str, &str)| {
        let order = |service: &ServiceView| (service.namespace.as_str(), service.name.as_str()).cmp(&(namespace, name));
        settled.services.binary_search_by(order).ok()
    };
    let mut changed = Changes::new();
    let (gone, new) = differing(&former.objects.slices, &objects.slices);
    for slice in gone {
        changed.entry(place(service_of_slice(slice)?)?).or_default().gone.push(Arc::as_ptr(slice));
    }
    for slice in new {
        changed.entry(place(service_of_slice(slice)?)?).or_default().new.push(slice);
    }
    let (gone, new) = differing(&former.objects.endpoints, &objects.endpoints);
    for (endpoints, now) in gone.into_iter().map(|gone| (gone, None)).chain(new.into_iter().map(|new| (new, Some(new))))
    {
        if let Some(service) = service_of_endpoints(endpoints) {
            changed.entry(place(service)?).or_default().endpoints = Some(now);
        }
    }
    if former.context.health != context.health {
        let other = former.outcomes.iter().enumerate().filter(|(_, outcome)| former.health_differs(outcome, context));
        for (at, _) in other {
            changed.entry(at).or_default();
        }
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
            && self.context.same_rules(context)
            && self.given.table_sizes == given.table_sizes;
        let moved = || moved(&self.settled.owners, &settled.owners).chain(moved(&settled.owners, &self.settled.owners));
        same.then(|| Keeps { former: self, index: Index::new(&self.objects), moved: moved().collect(), context })
    }

    /// What names endpoints of these Services.
    pub(crate) fn index_of<'o>(&'o self, changes: &Changes<'o>, objects: &'o Objects) -> Index<'o> {
        let slices = changes.iter().flat_map(|(&at, change)| {
            let former = self.outcomes[at].slices.iter();
            former.filter(|slice| !change.gone.contains(&Arc::as_ptr(slice))).chain(change.new.iter().copied())
        });
        let endpoints = changes
            .iter()
            .filter_map(|(&at, change)| change.endpoints.unwrap_or(self.outcomes[at].of_endpoints.as_ref()));
        Index::of(slices, endpoints, objects)
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
            && slices.iter().zip(former_slices).all(|(a, b)| Arc::ptr_eq(a, b))
            && endpoints.map(Arc::as_ptr) == former_endpoints.map(Arc::as_ptr)
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

fn same_all<T>(former: &Arc<Vec<Arc<T>>>, now: &Arc<Vec<Arc<T>>>) -> bool {
    Arc::ptr_eq(former, now)
        || former.len() == now.len() && former.iter().zip(now.iter()).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// Those that only one of both has.
fn differing<'f, 'n, T>(former: &'f [Arc<T>], now: &'n [Arc<T>]) -> (Vec<&'f Arc<T>>, Vec<&'n Arc<T>>) {
    let front = former.iter().zip(now).take_while(|(a, b)| Arc::ptr_eq(a, b)).count();
    let (former, now) = (&former[front..], &now[front..]);
    let back = former.iter().rev().zip(now.iter().rev()).take_while(|(a, b)| Arc::ptr_eq(a, b)).count();
    let (former, now) = (&former[..former.len() - back], &now[..now.len() - back]);
    let had: HashSet<*const T> = former.iter().map(Arc::as_ptr).collect();
    let has: HashSet<*const T> = now.iter().map(Arc::as_ptr).collect();
    let gone = former.iter().filter(|object| !has.contains(&Arc::as_ptr(object)));
    (gone.collect(), now.iter().filter(|object| !had.contains(&Arc::as_ptr(object))).collect())
}

fn same_places<T>(former: &[Arc<Located<T>>], now: &[Arc<Located<T>>], metadata: fn(&T) -> &ObjectMeta) -> bool {
    let name = |located: &Located<T>| {
        let metadata = metadata(&located.object);
        (metadata.namespace.clone(), metadata.name.clone(), located.file.clone())
    };
    former.len() == now.len() && former.iter().zip(now).all(|(a, b)| Arc::ptr_eq(a, b) || name(a) == name(b))
}

fn of_slice(slice: &EndpointSlice) -> &ObjectMeta {
    &slice.metadata
}

fn of_endpoints(endpoints: &Endpoints) -> &ObjectMeta {
    &endpoints.metadata
}

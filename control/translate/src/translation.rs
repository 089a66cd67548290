//! The whole translation: objects, context and what was given before, to what is to be done.
//!
//! Two steps. The first settles what Services have between them: addresses, numbers, frontends. The second makes of each
//! Service what it comes to. Given a former result, the first is done again only where something it depends on changed,
//! the second for the Services whose own changed; what did not change is shared with the former result, so that who
//! builds on it can tell by pointer.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb::list::List;
use lb::model::DesiredState;

use crate::combined::Combined;
use crate::context::{Context, Place};
use crate::endpoints::Index;
use crate::finding::Finding;
use crate::former::{Changes, Former, change_of};
use crate::given::{Endpoints, Given};
use crate::join::{Joined, Outcome};
use crate::listing::{BackendListing, Counters, HealthCheckNodePort, Probe, ServiceListing};
use crate::objects::Objects;
use crate::settled::Settled;

/// What comes of the objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translation {
    /// What the dataplane is to do.
    pub desired: DesiredState,
    /// What to keep for the next start; entries of Services that are gone are left out.
    pub given: Given,
    /// What is wrong or surprising, ordered.
    pub findings: Vec<Finding>,
    /// Every Service, ordered by namespace and name.
    pub services: List<Arc<ServiceListing>>,
    /// Every endpoint of every Service port, ordered, by Service.
    pub backends: List<Arc<Vec<BackendListing>>>,
    /// What is to be probed, ordered, each once.
    pub probes: Vec<Probe>,
    /// Every `healthCheckNodePort` that is this node's to answer, ordered by Service; none on a gateway.
    pub health_check_node_ports: Vec<HealthCheckNodePort>,
    /// What was left out.
    pub counters: Counters,
}

impl Translation {
    /// Every endpoint of every Service port.
    pub fn all_backends(&self) -> impl Iterator<Item = &BackendListing> {
        self.backends.iter().flat_map(|of_service| of_service.iter())
    }
}

/// Applies the rules of the Service API. Deterministic: the order of objects does not matter.
#[must_use]
pub fn translate(objects: &Objects, context: &Context, given: &Given) -> Translation {
    translate_after(None, objects, context, given).0
}

/// The same, with what is the same as in the former result taken from there. Whatever that is, the result is what
/// [`translate`] gives.
#[must_use]
pub fn translate_after(
    former: Option<&Former>,
    objects: &Objects,
    context: &Context,
    given: &Given,
) -> (Translation, Former) {
    if let Some(former) = former
        && let Some(changes) = change_of(former, objects, context, given)
    {
        return in_part(former, &changes, objects, (context, given));
    }
    let index = Index::new(objects);
    let settled = Arc::new(Settled::of(objects, context, given, &index));
    let keeps = former.and_then(|former| former.keeps(&settled, objects, context, given));
    let joined = Joined { context, given, index: &index, owners: &settled.owners };
    let outcomes = settled.services.iter().zip(&settled.reached).map(|(service, reached)| {
        let kept = keeps.as_ref().and_then(|keeps| keeps.outcome(service, reached, &index));
        kept.unwrap_or_else(|| Arc::new(joined.outcome(service, reached)))
    });
    let outcomes: List<Arc<Outcome>> = outcomes.collect();
    let combined = Combined::of(&outcomes, &settled.findings);
    let files = Arc::new(objects.files(context.place));
    let context = Arc::new(context.clone());
    let table_sizes = Arc::new(table_sizes(&outcomes));
    let given = Given { table_sizes, objects: files, endpoints: endpoints(&outcomes), ..settled.given.clone() };
    finish(objects, context, settled, (outcomes, combined), given)
}

/// Only slices and Endpoints of these Services changed.
fn in_part(
    former: &Former,
    changes: &Changes<'_>,
    objects: &Objects,
    (context, given): (&Context, &Given),
) -> (Translation, Former) {
    let settled = Arc::clone(&former.settled);
    let index = former.index_of(changes, objects);
    let same_health = former.context.health == context.health;
    let context = if same_health { Arc::clone(&former.context) } else { Arc::new(context.clone()) };
    let joined = Joined { context: &context, given, index: &index, owners: &settled.owners };
    let mut outcomes = former.outcomes.clone();
    let mut table_sizes = Arc::clone(&former.given.table_sizes);
    let mut same_places = true;
    for &at in changes.keys() {
        let outcome = joined.outcome(&settled.services[at], &settled.reached[at]);
        if outcome.table_sizes != outcomes[at].table_sizes {
            let sizes = Arc::make_mut(&mut table_sizes);
            for (key, _) in &outcomes[at].table_sizes {
                sizes.remove(key);
            }
            sizes.extend(outcome.table_sizes.iter().cloned());
        }
        same_places &= outcome.endpoints == outcomes[at].endpoints;
        outcomes.set(at, Arc::new(outcome));
    }
    let before = (&former.combined, &former.outcomes);
    let combined = Combined::after(before, changes.keys().copied(), &outcomes, &settled.findings);
    let same_files = context.place == Place::Node || former.same_files(objects);
    let files = if same_files { Arc::clone(&former.given.objects) } else { Arc::new(objects.files(context.place)) };
    let endpoints = if same_places { Arc::clone(&former.given.endpoints) } else { endpoints(&outcomes) };
    let given = Given { table_sizes, objects: files, endpoints, ..settled.given.clone() };
    finish(objects, context, settled, (outcomes, combined), given)
}

fn table_sizes(outcomes: &List<Arc<Outcome>>) -> BTreeMap<String, usize> {
    outcomes.iter().flat_map(|outcome| outcome.table_sizes.iter().cloned()).collect()
}

/// Where each Service has endpoints.
fn endpoints(outcomes: &List<Arc<Outcome>>) -> Arc<Endpoints> {
    let placed = outcomes.iter().filter(|outcome| !outcome.endpoints.is_empty());
    Arc::new(placed.map(|outcome| (Arc::clone(&outcome.key), Arc::clone(&outcome.endpoints))).collect())
}

/// What comes of it, and what the next translation may take from this one.
fn finish(
    objects: &Objects,
    context: Arc<Context>,
    settled: Arc<Settled>,
    (outcomes, combined): (List<Arc<Outcome>>, Combined),
    given: Given,
) -> (Translation, Former) {
    let whole = combined.clone();
    let translation = Translation {
        desired: DesiredState { service_ports: whole.service_ports, addresses: settled.addresses.clone() },
        given: given.clone(),
        findings: whole.findings,
        services: whole.services,
        backends: whole.backends,
        probes: whole.probes,
        health_check_node_ports: whole.health_checks,
        counters: Counters {
            skipped_kinds: objects.skipped.clone(),
            fqdn_slices: settled.fqdn,
            endpoints_waiting: settled.waiting,
            loops_refused: whole.loops_refused,
        },
    };
    (translation, Former { objects: objects.clone(), context, settled, outcomes, combined, given })
}

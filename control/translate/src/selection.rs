//! Which endpoints get new flows, which only keep theirs: readiness, health, drain, policies, topology.

use std::net::SocketAddr;

use lb::model::{Endpoint, EndpointState, NoEndpoint};

use crate::context::{Context, Drained, Place};
use crate::endpoints::Candidate;
use crate::listing::{BackendState, Probe};
use crate::service::ServiceView;
use crate::topology;

/// The endpoints of one Service port under one policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selected {
    pub endpoints: Vec<Endpoint>,
    pub no_endpoint: NoEndpoint,
}

/// How an endpoint is to be probed: where the Service asks for it, nobody says whether it is ready, and probes can tell.
pub(crate) fn probe(service: &ServiceView, candidate: &Candidate) -> Option<Probe> {
    let asked = candidate.takes_probes && !candidate.has_readiness;
    let check = service.notes.health_check.clone().filter(|_| asked)?;
    Some(Probe { endpoint: SocketAddr::new(candidate.address, candidate.port), check })
}

/// Whether new flows are kept from it by order.
pub(crate) fn drained(context: &Context, candidate: &Candidate) -> bool {
    let is = |port| context.drained.contains(&Drained { address: candidate.address, port });
    is(None) || is(Some(candidate.port))
}

fn healthy(service: &ServiceView, context: &Context, candidate: &Candidate) -> bool {
    probe(service, candidate).is_none_or(|probe| context.health.get(&probe).copied().unwrap_or(true))
}

/// Whether it is on this node and gets new flows for being ready: what serves while it terminates is not told to load
/// balancers outside. Source: KEP-1669.
pub(crate) fn is_ready_here(service: &ServiceView, context: &Context, candidate: &Candidate) -> bool {
    let here = context.node.hostname.is_some() && candidate.node == context.node.hostname;
    here && candidate.ready && !drained(context, candidate) && healthy(service, context, candidate)
}

/// Ready ones; if none, those serving and terminating; never those that do not serve.
fn usable_set<'c>(service: &ServiceView, context: &Context, among: &[&'c Candidate]) -> Vec<&'c Candidate> {
    let open = |candidate: &&&Candidate| !drained(context, candidate) && healthy(service, context, candidate);
    let ready = |candidate: &&&Candidate| candidate.ready;
    let found: Vec<&Candidate> = among.iter().filter(open).filter(ready).copied().collect();
    if !found.is_empty() {
        return found;
    }
    let leaving = |candidate: &&&Candidate| candidate.serving && candidate.terminating;
    among.iter().filter(open).filter(leaving).copied().collect()
}

/// Applies a traffic policy (`local`: Local, else Cluster).
pub(crate) fn select(service: &ServiceView, context: &Context, all: &[Candidate], local: bool) -> Selected {
    let all: Vec<&Candidate> = all.iter().collect();
    let (chosen, no_endpoint) = if local {
        let here = |candidate: &&&Candidate| context.node.hostname.is_some() && candidate.node == context.node.hostname;
        let locals: Vec<&Candidate> = all.iter().filter(here).copied().collect();
        if locals.is_empty() && context.place == Place::Gateway {
            (usable_set(service, context, &all), NoEndpoint::Reject)
        } else {
            // Another node may serve it; where none does, whoever asks is told.
            let elsewhere = !usable_set(service, context, &all).is_empty();
            let none_here = if elsewhere { NoEndpoint::Drop } else { NoEndpoint::Reject };
            (usable_set(service, context, &locals), none_here)
        }
    } else {
        let usable = usable_set(service, context, &all);
        let keys = service.notes.topology_keys.as_deref();
        match topology::restrict(usable, keys, service.spec.traffic_distribution.as_deref(), &context.node) {
            Some(near) => (near, NoEndpoint::Reject),
            None => (Vec::new(), NoEndpoint::Drop),
        }
    };
    let endpoints = all.iter().filter_map(|candidate| {
        let is_chosen = chosen.iter().any(|other| std::ptr::eq(*other, *candidate));
        // What is not ready any more counts as removed; what leaves, is drained or lies elsewhere keeps its flows.
        let keeps = candidate.terminating || candidate.ready && healthy(service, context, candidate);
        let state = if is_chosen { EndpointState::Usable } else { EndpointState::Draining };
        (is_chosen || keeps).then(|| endpoint(service, candidate, state))
    });
    Selected { endpoints: endpoints.collect(), no_endpoint }
}

fn endpoint(service: &ServiceView, candidate: &Candidate, state: EndpointState) -> Endpoint {
    Endpoint {
        address: candidate.address,
        port: candidate.port,
        weight: weight(service, candidate),
        state,
        node: candidate.node.clone(),
        zone: candidate.zone.clone(),
        target: candidate.target.clone(),
    }
}

/// The annotation's weight, 1 where it says nothing.
pub(crate) fn weight(service: &ServiceView, candidate: &Candidate) -> u16 {
    service.notes.weights.get(&candidate.address).copied().unwrap_or(1)
}

/// The state and reason that `millrace backends` shows.
pub(crate) fn listed_state(
    service: &ServiceView,
    context: &Context,
    candidate: &Candidate,
    in_use: Option<EndpointState>,
) -> (BackendState, Option<String>) {
    let state = match in_use {
        Some(EndpointState::Usable) => return (BackendState::Usable, None),
        Some(EndpointState::Draining) => BackendState::Draining,
        None => BackendState::Out,
    };
    let reason = if drained(context, candidate) {
        "drained"
    } else if candidate.terminating {
        "terminating"
    } else if !candidate.ready {
        "not ready"
    } else if !healthy(service, context, candidate) {
        "health check fails"
    } else {
        "policy or topology"
    };
    (state, Some(reason.to_owned()))
}

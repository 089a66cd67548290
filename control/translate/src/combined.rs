//! What Services come to, put together.

use std::sync::Arc;

use lb::list::List;
use lb::model::ServicePort;

use crate::finding::Finding;
use crate::join::Outcome;
use crate::listing::{BackendListing, HealthCheckNodePort, Probe, ServiceListing};

/// What all Services come to.
#[derive(Clone, Debug)]
pub(crate) struct Combined {
    /// By key.
    pub service_ports: List<Arc<ServicePort>>,
    /// By namespace and name, as what follows.
    pub services: List<Arc<ServiceListing>>,
    pub backends: List<Arc<Vec<BackendListing>>>,
    pub health_checks: Vec<HealthCheckNodePort>,
    /// Ordered, each once, as what follows.
    pub probes: Vec<Probe>,
    pub findings: Vec<Finding>,
    pub loops_refused: u64,
}

impl Combined {
    /// Of these, with what was found between Services.
    pub fn of(outcomes: &List<Arc<Outcome>>, between: &[Finding]) -> Self {
        Self {
            service_ports: service_ports(outcomes),
            services: outcomes.iter().map(|outcome| Arc::clone(&outcome.listing)).collect(),
            backends: outcomes.iter().map(|outcome| Arc::clone(&outcome.backends)).collect(),
            health_checks: health_checks(outcomes),
            probes: probes(outcomes),
            findings: findings(outcomes, between),
            loops_refused: outcomes.iter().map(|outcome| outcome.loops_refused).sum(),
        }
    }

    /// The same after the Services at these places came to something else: what they leave as it was is shared with
    /// `former`, and not looked at.
    pub fn after(
        former: (&Self, &List<Arc<Outcome>>),
        changed: impl Iterator<Item = usize>,
        outcomes: &List<Arc<Outcome>>,
        between: &[Finding],
    ) -> Self {
        let (mut now, former) = (former.0.clone(), former.1);
        let (mut same_ports, mut same_checks, mut same_probes, mut same_findings) = (true, true, true, true);
        for at in changed {
            let (old, new) = (&former[at], &outcomes[at]);
            now.services.set(at, Arc::clone(&new.listing));
            now.backends.set(at, Arc::clone(&new.backends));
            same_ports &= old.ports.len() == new.ports.len();
            if same_ports && let Some(first) = old.ports.first() {
                let from = now.service_ports.partition_point(|port| port.key < first.key);
                new.ports.iter().zip(from..).for_each(|(port, at)| now.service_ports.set(at, Arc::clone(port)));
            }
            same_checks &= old.health_check == new.health_check;
            same_probes &= old.probes == new.probes;
            same_findings &= old.findings == new.findings;
            now.loops_refused = now.loops_refused + new.loops_refused - old.loops_refused;
        }
        if !same_ports {
            now.service_ports = service_ports(outcomes);
        }
        if !same_checks {
            now.health_checks = health_checks(outcomes);
        }
        if !same_probes {
            now.probes = probes(outcomes);
        }
        if !same_findings {
            now.findings = findings(outcomes, between);
        }
        now
    }
}

/// Ordered by key: Services are by namespace and name, which keys begin with, and so are the ports of each.
fn service_ports(outcomes: &List<Arc<Outcome>>) -> List<Arc<ServicePort>> {
    let ports: List<Arc<ServicePort>> = outcomes.iter().flat_map(|outcome| outcome.ports.iter().cloned()).collect();
    debug_assert!(ports.iter().is_sorted_by(|a, b| a.key < b.key), "in order, and each once");
    ports
}

fn health_checks(outcomes: &List<Arc<Outcome>>) -> Vec<HealthCheckNodePort> {
    outcomes.iter().filter_map(|outcome| outcome.health_check.clone()).collect()
}

fn probes(outcomes: &List<Arc<Outcome>>) -> Vec<Probe> {
    let mut probes: Vec<Probe> = outcomes.iter().flat_map(|outcome| outcome.probes.iter().cloned()).collect();
    probes.sort();
    probes.dedup();
    probes
}

fn findings(outcomes: &List<Arc<Outcome>>, between: &[Finding]) -> Vec<Finding> {
    let found = outcomes.iter().flat_map(|outcome| &outcome.findings);
    let mut findings: Vec<Finding> = between.iter().chain(found).cloned().collect();
    findings.sort();
    findings.dedup();
    findings
}

//! What one Service comes to: its frontends joined with its endpoints, listed and judged.
//!
//! A function of that Service, its slices, Endpoints and Nodes, its frontends, and who has the addresses that its
//! endpoints are at; so it is made anew only where one of these changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb::model::{
    Endpoint, EndpointState, Frontend, FrontendKind, Mode, Scope, ServicePort, ServicePortKey, TABLE_SIZES,
};
use wire::Protocol;

use crate::annotations::{algorithm_name, mode_name};
use crate::context::{Context, Place};
use crate::endpoints::{Candidate, Index, Join};
use crate::finding::{self, Finding, Severity};
use crate::frontends::{self, Owners, Reached};
use crate::given::Given;
use crate::listing::{BackendListing, HealthCheckNodePort, PortListing, Probe, ServiceKind, ServiceListing};
use crate::manifest::{name_of, protocol_of};
use crate::objects::Located;
use crate::selection::{self, Selected};
use crate::service::ServiceView;

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where none is written.
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10800);

/// What one Service comes to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its Service ports that have a frontend, by key.
    pub ports: Vec<Arc<ServicePort>>,
    pub listing: Arc<ServiceListing>,
    pub backends: Arc<Vec<BackendListing>>,
    pub probes: Vec<Probe>,
    pub health_check: Option<HealthCheckNodePort>,
    pub findings: Vec<Finding>,
    pub loops_refused: u64,
    /// Its key in [`Given`], and the addresses of its endpoints there.
    pub key: Arc<str>,
    pub endpoints: Arc<BTreeSet<IpAddr>>,
    /// By their keys in [`Given`].
    pub table_sizes: Vec<(String, usize)>,
    /// Addresses of endpoints, those that were refused too.
    pub candidates: BTreeSet<IpAddr>,
    /// What names its endpoints.
    pub slices: Vec<Arc<Located<EndpointSlice>>>,
    pub of_endpoints: Option<Arc<Located<Endpoints>>>,
}

/// What Services are joined with.
pub(crate) struct Joined<'t, 'o> {
    pub context: &'t Context,
    pub given: &'t Given,
    pub index: &'t Index<'o>,
    pub owners: &'t Owners,
}

/// An [`Outcome`] while it is put together.
struct Making<'t, 'o> {
    joined: &'t Joined<'t, 'o>,
    key: Arc<str>,
    ports: Vec<Arc<ServicePort>>,
    backends: Vec<BackendListing>,
    probes: Vec<Probe>,
    findings: Vec<Finding>,
    loops_refused: u64,
    table_sizes: Vec<(String, usize)>,
    candidates: BTreeSet<IpAddr>,
}

impl Joined<'_, '_> {
    /// What a Service comes to that is reached so.
    pub fn outcome(&self, service: &ServiceView, reached: &[Reached]) -> Outcome {
        let making = Making {
            joined: self,
            key: service.key().into(),
            ports: Vec::new(),
            backends: Vec::new(),
            probes: Vec::new(),
            findings: Vec::new(),
            loops_refused: 0,
            table_sizes: Vec::new(),
            candidates: BTreeSet::new(),
        };
        making.service(service, reached)
    }
}

impl Making<'_, '_> {
    fn service(mut self, service: &ServiceView, reached: &[Reached]) -> Outcome {
        let mut seen: BTreeMap<(String, IpAddr, u16), bool> = BTreeMap::new();
        let mut frontends = BTreeSet::new();
        let mut endpoints = BTreeSet::new();
        let mut here = BTreeSet::new();
        for &Reached { at, ipv6, frontends: ref own, .. } in reached {
            let mut candidates = self.candidates(service, at, ipv6);
            if own.iter().any(|frontend| frontend.kind != FrontendKind::NodePort) {
                self.refuse_other_ports(service, at, &mut candidates);
            }
            endpoints.extend(candidates.iter().map(|candidate| candidate.address));
            let ready = candidates.iter().filter(|one| selection::is_ready_here(service, self.joined.context, one));
            here.extend(ready.map(|candidate| candidate.address));
            let parts = scoped(service, self.joined.context, &candidates, own.clone());
            let state_of = |candidate: &Candidate| {
                let same = |e: &&Endpoint| (e.address, e.port) == (candidate.address, candidate.port);
                parts.iter().flat_map(|part| &part.selected.endpoints).filter(same).map(|e| e.state).min()
            };
            for candidate in &candidates {
                let state = state_of(candidate);
                let key = (name_of(&service.ports()[at]).to_owned(), candidate.address, candidate.port);
                seen.insert(key, state == Some(EndpointState::Usable));
                self.backend(service, at, candidate, state);
            }
            for part in parts.into_iter().filter(|part| !part.frontends.is_empty()) {
                frontends.extend(part.frontends.iter().map(|frontend| (frontend.kind, frontend.address)));
                self.port(service, at, ipv6, part);
            }
        }
        let kinds = |kind: &FrontendKind| *kind != FrontendKind::NodePort;
        let addresses: BTreeSet<IpAddr> = frontends.iter().filter(|(kind, _)| kinds(kind)).map(|(_, ip)| *ip).collect();
        let served: BTreeSet<bool> = frontends.iter().map(|(_, ip)| ip.is_ipv6()).collect();
        let not_served = self.judge(service, &served);
        let ready = seen.values().filter(|ready| **ready).count();
        let listing = listing(service, self.joined.context, addresses, (ready, seen.len()), not_served);
        self.ports.sort_by(|a, b| a.key.cmp(&b.key));
        let (slices, of_endpoints) = self.joined.index.objects_of((&service.namespace, &service.name));
        Outcome {
            slices: slices.iter().map(|slice| Arc::clone(slice)).collect(),
            of_endpoints: of_endpoints.cloned(),
            ports: self.ports,
            listing: Arc::new(listing),
            backends: Arc::new(self.backends),
            probes: self.probes,
            health_check: health_check(service, self.joined.context, &here),
            findings: self.findings,
            loops_refused: self.loops_refused,
            key: self.key,
            endpoints: Arc::new(endpoints),
            table_sizes: self.table_sizes,
            candidates: self.candidates,
        }
    }

    /// The endpoints of a port, without those that are frontends of ours.
    fn candidates(&mut self, service: &ServiceView, at: usize, ipv6: bool) -> Vec<Candidate> {
        let port = &service.ports()[at];
        let (port_name, protocol) = (name_of(port), protocol_of(port));
        let join = Join { namespace: &service.namespace, service: &service.name, port_name, protocol, ipv6 };
        let publish = service.spec.publish_not_ready_addresses == Some(true);
        let mut candidates = self.joined.index.join(join, publish);
        if protocol == "SCTP" {
            candidates.iter_mut().for_each(|candidate| candidate.takes_probes = false);
        }
        self.candidates.extend(candidates.iter().map(|candidate| candidate.address));
        candidates.retain(|candidate| {
            let key = (candidate.address, candidate.port, protocol.to_owned());
            let Some(owner) = self.joined.owners.get(&key) else { return true };
            let what = format!("{}:{}", candidate.address, candidate.port);
            let message = format!("{what} of {} is a frontend of {owner}: a loop, expected a backend", service.named());
            self.findings.push(Finding { message, ..candidate.place.clone() });
            self.loops_refused += 1;
            false
        });
        candidates
    }

    /// Where endpoints answer clients themselves, they must serve the Service's own port: nothing translates it.
    fn refuse_other_ports(&mut self, service: &ServiceView, at: usize, candidates: &mut Vec<Candidate>) {
        let mode = service.mode(self.joined.context);
        if !mode.is_direct() {
            return;
        }
        let port = service.ports()[at].port;
        candidates.retain(|candidate| {
            if i32::from(candidate.port) == port {
                return true;
            }
            let (endpoint, mode) = (std::net::SocketAddr::new(candidate.address, candidate.port), mode_name(mode));
            let of = service.named();
            let message = format!(
                "{endpoint} serves another port than {port} of {of}: mode {mode} translates none, expected {port}"
            );
            self.findings.push(Finding { message, ..candidate.place.clone() });
            false
        });
    }

    fn port(&mut self, service: &ServiceView, at: usize, ipv6: bool, part: Part) {
        let port = &service.ports()[at];
        let notes = &service.notes;
        let scope = part.scope;
        let protocol = match protocol_of(port) {
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            _ => Protocol::TCP,
        };
        let (namespace, name) = (service.namespace.clone(), service.name.clone());
        let key = ServicePortKey { namespace, name, port_name: name_of(port).to_owned(), protocol, ipv6, scope };
        let min_table_size = self.table_size(service, at, &part);
        self.ports.push(Arc::new(ServicePort {
            key,
            port: u16::try_from(port.port).unwrap_or_default(),
            frontends: part.frontends,
            endpoints: part.selected.endpoints,
            algorithm: notes.algorithm.unwrap_or(self.joined.context.defaults.algorithm),
            mode: part.mode,
            affinity: affinity(service),
            source_ranges: Arc::clone(&service.source_ranges),
            no_endpoint: part.selected.no_endpoint,
            udp_timeout: notes.udp_timeout,
            drain: notes.drain,
            min_table_size,
        }));
    }

    /// The smallest of the ladder that is at least 100 times the endpoints; the size once reached is kept.
    fn table_size(&mut self, service: &ServiceView, at: usize, part: &Part) -> usize {
        let port = &service.ports()[at];
        let family = if part.frontends.iter().any(|frontend| frontend.address.is_ipv6()) { "ipv6" } else { "ipv4" };
        let scope = match part.scope {
            Scope::All => "",
            Scope::External => "/external",
            Scope::Internal => "/internal",
        };
        let key = format!("{}/{}/{}/{family}{scope}", service.key(), protocol_of(port), name_of(port));
        let needed = part.selected.endpoints.len() * 100;
        let [.., largest] = TABLE_SIZES;
        let size = TABLE_SIZES.into_iter().find(|&size| size >= needed).unwrap_or(largest);
        let before = self.joined.given.table_sizes.get(&key).copied().filter(|size| TABLE_SIZES.contains(size));
        let size = size.max(before.unwrap_or(0)).max(service.notes.table_size.unwrap_or(0));
        self.table_sizes.push((key, size));
        size
    }

    fn backend(&mut self, service: &ServiceView, at: usize, candidate: &Candidate, used: Option<EndpointState>) {
        let (state, reason) = selection::listed_state(service, self.joined.context, candidate, used);
        let probe = selection::probe(service, candidate);
        let port = &service.ports()[at];
        let source = finding::place(&candidate.place.file, candidate.place.line);
        let same = self.backends.last().map(|last| &last.source).filter(|last| ***last == *source);
        let source = same.map_or_else(|| source.as_str().into(), Arc::clone);
        self.backends.push(BackendListing {
            service: Arc::clone(&self.key),
            port_name: name_of(port).to_owned(),
            protocol: protocol_of(port).to_owned(),
            address: candidate.address,
            port: candidate.port,
            weight: selection::weight(service, candidate),
            mode: service.external_mode(self.joined.context),
            pod: candidate.target.clone(),
            node: candidate.node.clone(),
            zone: candidate.zone.clone(),
            ready: candidate.ready,
            serving: candidate.serving,
            terminating: candidate.terminating,
            state,
            reason,
            healthy: probe.as_ref().and_then(|probe| self.joined.context.health.get(probe).copied()),
            health_check: probe.as_ref().map(|probe| probe.check.clone()),
            source,
        });
        self.probes.extend(probe);
    }

    /// Why nothing of a Service is served; and what its manifest should say instead.
    /// `served`: the families (whether IPv6) that have a frontend.
    fn judge(&mut self, service: &ServiceView, served: &BTreeSet<bool>) -> Option<String> {
        let mut warn = |field: &str, message: String| {
            self.findings.push(service.located.finding(Severity::Warning, field, message));
        };
        let selects = service.spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
        let external_name = service.kind == ServiceKind::ExternalName;
        let on_node = self.joined.context.place == Place::Node;
        // Pods that are still to come are nothing to be told of in a cluster.
        if selects && !external_name && !on_node && !self.joined.index.knows(&service.namespace, &service.name) {
            let message = "finds no pods here, expected EndpointSlices or Endpoints of the Service's name";
            warn("spec.selector", message.to_owned());
        }
        for (at, ip) in service.external_ips().enumerate() {
            if self.joined.context.serve.external_ips && !frontends::external_ip_allowed(self.joined.context, ip) {
                let message = format!("`{ip}` is not served, expected one of the configuration's externalIPs");
                warn(&format!("spec.externalIPs[{at}]"), message);
            }
        }
        if service.notes.mode == Some(Mode::Nat) && service.external_mode(self.joined.context) != Mode::Nat {
            let message = "`nat` counts for ClusterIPs alone, expected preserve with externalTrafficPolicy Local";
            warn("metadata.annotations[millrace.dev/mode]", message.to_owned());
        }
        if service.notes.health_check.is_some() && service.ports().iter().any(|port| protocol_of(port) == "SCTP") {
            let message = "nothing probes SCTP ports: their endpoints are taken for healthy, expected other protocols";
            warn("metadata.annotations[millrace.dev/health-check]", message.to_owned());
        }
        match service.kind {
            ServiceKind::Headless => return Some("headless: nothing to balance".to_owned()),
            ServiceKind::ExternalName => return Some("a DNS name: nothing to balance".to_owned()),
            _ if !served.is_empty() => {
                for ipv6 in service.demanded_families().filter(|ipv6| !served.contains(ipv6)) {
                    let family = if ipv6 { "IPv6" } else { "IPv4" };
                    let field =
                        if service.spec.ip_families.is_some() { "spec.ipFamilies" } else { "spec.ipFamilyPolicy" };
                    warn(
                        field,
                        format!("no {family} address to serve it on, expected one in `pools` or `serviceRange`"),
                    );
                }
                return None;
            }
            ServiceKind::LoadBalancer if !service.class_is_ours() => {
                return Some("its loadBalancerClass is another's".to_owned());
            }
            ServiceKind::ClusterIp | ServiceKind::NodePort if service.is_another_proxys(self.joined.context) => {
                return Some("its label service-proxy-name names another proxy".to_owned());
            }
            ServiceKind::ClusterIp | ServiceKind::NodePort if on_node && !self.joined.context.serve.cluster_ip => {
                return Some(format!("type {}: kube-proxy's", service.kind));
            }
            _ => {}
        }
        let (field, missing) = what_to_set(service, self.joined.context);
        warn(field, format!("no address to serve it on, expected {missing}"));
        Some(format!("no address: set {missing}"))
    }
}

/// What gives a Service an address: (the field, what to set).
fn what_to_set(service: &ServiceView, context: &Context) -> (&'static str, &'static str) {
    match service.kind {
        ServiceKind::LoadBalancer if !context.serve.load_balancer => ("spec.type", "`loadBalancer` in `serve`"),
        ServiceKind::LoadBalancer if context.place == Place::Node => {
            ("status.loadBalancer.ingress", "an address of `pools`; the Service's events say why none is given")
        }
        ServiceKind::LoadBalancer => ("spec.type", "a free address of its family in `pools`, or `loadBalancerIP`"),
        ServiceKind::NodePort if !context.serve.node_port => {
            ("spec.type", "`nodePort` in `serve`, or `type: LoadBalancer`")
        }
        _ if service.cluster_ips.is_empty() => {
            ("spec.clusterIP", "`serviceRange` with `clusterIP` in `serve`, `externalIPs`, or `type: LoadBalancer`")
        }
        _ => ("spec.type", "`clusterIP` in `serve`, `externalIPs`, or `type: LoadBalancer`"),
    }
}

/// The frontends of a Service port that one set of endpoints serves.
struct Part {
    scope: Scope,
    frontends: Vec<Frontend>,
    selected: Selected,
    mode: Mode,
}

/// External and internal policy are judged apart: two parts where they differ and both have frontends. Without any
/// frontend there is one part, for the listing.
fn scoped(service: &ServiceView, context: &Context, all: &[Candidate], frontends: Vec<Frontend>) -> Vec<Part> {
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let local_external = is_local(&service.spec.external_traffic_policy);
    let local_internal = is_local(&service.spec.internal_traffic_policy);
    let (mode, external_mode) = (service.mode(context), service.external_mode(context));
    let part = |scope, frontends, local, mode| {
        let selected = selection::select(service, context, all, local);
        Part { scope, frontends, selected, mode }
    };
    // What the node itself and its pods ask for is of the cluster, whatever address they use.
    let from_within = |frontend: &Frontend| {
        let way = frontend.kind == FrontendKind::NodePort && !context.node_addresses.contains(&frontend.address);
        frontend.kind == FrontendKind::ClusterIp || way && local_external && !local_internal
    };
    let (internal, external): (Vec<Frontend>, Vec<Frontend>) = frontends.into_iter().partition(from_within);
    if internal.is_empty() {
        return vec![part(Scope::All, external, local_external, external_mode)];
    }
    if external.is_empty() {
        return vec![part(Scope::All, internal, local_internal, mode)];
    }
    let mut outer = part(Scope::External, external, local_external, external_mode);
    let inner = part(Scope::Internal, internal, local_internal, mode);
    if outer.selected == inner.selected && outer.mode == inner.mode {
        outer.scope = Scope::All;
        outer.frontends.extend(inner.frontends);
        outer.frontends.sort();
        return vec![outer];
    }
    vec![outer, inner]
}

/// The `healthCheckNodePort` that is to be answered on this node, of which a Service has `here`. A node that has NodePorts
/// has those of other load balancers' Services too, but for those that another proxy has.
fn health_check(service: &ServiceView, context: &Context, here: &BTreeSet<IpAddr>) -> Option<HealthCheckNodePort> {
    let is_local = service.spec.external_traffic_policy.as_deref() == Some("Local");
    let is_ours = service.class_is_ours() || context.serve.node_port && !service.is_another_proxys(context);
    if context.place != Place::Node || service.kind != ServiceKind::LoadBalancer || !is_local || !is_ours {
        return None;
    }
    let port =
        service.spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?;
    // A pod of both families is one endpoint.
    let ipv6 = here.iter().filter(|address| address.is_ipv6()).count();
    let endpoints = ipv6.max(here.len() - ipv6);
    Some(HealthCheckNodePort { namespace: service.namespace.clone(), name: service.name.clone(), port, endpoints })
}

fn affinity(service: &ServiceView) -> Option<Duration> {
    (service.spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = service.spec.session_affinity_config.as_ref();
        let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(AFFINITY_TIMEOUT, Duration::from_secs)
    })
}

fn listing(
    service: &ServiceView,
    context: &Context,
    addresses: BTreeSet<IpAddr>,
    (endpoints_ready, endpoints_total): (usize, usize),
    not_served: Option<String>,
) -> ServiceListing {
    let ports = service.ports().iter().enumerate().map(|(at, port)| PortListing {
        name: name_of(port).to_owned(),
        protocol: protocol_of(port).to_owned(),
        port: u16::try_from(port.port).unwrap_or_default(),
        node_port: service.node_ports[at],
    });
    ServiceListing {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        kind: service.kind,
        addresses: addresses.into_iter().collect(),
        cluster_ips: service.cluster_ips.clone(),
        external_name: service.spec.external_name.clone().filter(|_| service.kind == ServiceKind::ExternalName),
        ports: ports.collect(),
        endpoints_ready,
        endpoints_total,
        algorithm: algorithm_name(service.notes.algorithm.unwrap_or(context.defaults.algorithm)).to_owned(),
        mode: mode_name(if service.balances() { service.external_mode(context) } else { service.mode(context) })
            .to_owned(),
        not_served,
        source: service.located.place(),
    }
}

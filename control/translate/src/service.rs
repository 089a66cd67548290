//! A Service as translation sees it: its defaults filled in, its annotations read, its families decided.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use lb::model::Mode;

use crate::annotations::{self, Annotations};
use crate::context::{Context, Place};
use crate::listing::ServiceKind;
use crate::manifest::{is_headless, type_of};
use crate::objects::Located;

/// The label of a Service whose ClusterIPs and NodePorts another than the node's proxy serves.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The class that asks for Millrace by name.
const CLASS: &str = "millrace.dev/millrace";

#[derive(Clone, Debug)]
pub(crate) struct ServiceView {
    pub located: Arc<Located<Service>>,
    pub spec: ServiceSpec,
    pub namespace: String,
    pub name: String,
    pub kind: ServiceKind,
    pub notes: Annotations,
    /// Whether each family is IPv6, the primary one first.
    pub families: Vec<bool>,
    /// Written or given.
    pub cluster_ips: Vec<IpAddr>,
    /// Of the LoadBalancer.
    pub addresses: Vec<IpAddr>,
    /// One for each port, written or given.
    pub node_ports: Vec<Option<u16>>,
    /// External IPs that are another's.
    pub refused_external_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`, which may be many, as networks: read once, for all ports and families.
    pub source_ranges: Arc<[(IpAddr, u8)]>,
}

impl ServiceView {
    pub fn new(located: &Arc<Located<Service>>, context: &Context) -> Self {
        let metadata = &located.object.metadata;
        let spec = located.object.spec.clone().unwrap_or_default();
        let kind = match type_of(&spec) {
            "ExternalName" => ServiceKind::ExternalName,
            _ if is_headless(&spec) => ServiceKind::Headless,
            "NodePort" => ServiceKind::NodePort,
            "LoadBalancer" => ServiceKind::LoadBalancer,
            _ => ServiceKind::ClusterIp,
        };
        let notes = metadata.annotations.as_ref().map(|all| annotations::parse(all).0).unwrap_or_default();
        let listed = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.as_ref());
        let mut cluster_ips: Vec<IpAddr> = Vec::new();
        for ip in listed.filter_map(|ip| ip.parse().ok()) {
            if !cluster_ips.contains(&ip) {
                cluster_ips.push(ip);
            }
        }
        let mut view = Self {
            located: Arc::clone(located),
            namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            name: metadata.name.clone().unwrap_or_default(),
            kind,
            notes,
            families: Vec::new(),
            cluster_ips,
            addresses: Vec::new(),
            refused_external_ips: Vec::new(),
            source_ranges: networks(spec.load_balancer_source_ranges.iter().flatten()),
            node_ports: spec.ports.iter().flatten().map(written_node_port).collect(),
            spec,
        };
        view.families = view.decide_families(context);
        view
    }

    /// Whether this is the same object with the same addresses and numbers.
    pub fn has_the_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.located, &other.located)
            && self.cluster_ips == other.cluster_ips
            && self.addresses == other.addresses
            && self.node_ports == other.node_ports
            && self.refused_external_ips == other.refused_external_ips
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// `namespace/name (file:line)`, for findings of other Services.
    pub fn named(&self) -> String {
        format!("{} ({})", self.key(), self.located.place())
    }

    /// The mode of ClusterIPs: the annotation's, else the configuration's.
    pub fn mode(&self, context: &Context) -> Mode {
        self.notes.mode.unwrap_or(context.defaults.mode)
    }

    /// The mode of everything else: policy Local keeps the client's address, as all but `nat` do.
    pub fn external_mode(&self, context: &Context) -> Mode {
        let local = self.spec.external_traffic_policy.as_deref() == Some("Local");
        match self.mode(context) {
            Mode::Nat if local => Mode::Preserve,
            mode => mode,
        }
    }

    pub fn ports(&self) -> &[ServicePort] {
        self.spec.ports.as_deref().unwrap_or_default()
    }

    /// Whether it is a LoadBalancer of ours.
    pub fn is_our_load_balancer(&self) -> bool {
        self.kind == ServiceKind::LoadBalancer && self.class_is_ours()
    }

    /// Whether it is to be deleted, and waits for that until its finalizers are gone.
    pub fn goes(&self) -> bool {
        self.located.object.metadata.deletion_timestamp.is_some()
    }

    /// Whether there is something to balance.
    pub fn balances(&self) -> bool {
        !matches!(self.kind, ServiceKind::Headless | ServiceKind::ExternalName)
    }

    /// Whether its load balancer is to be Millrace.
    pub fn class_is_ours(&self) -> bool {
        self.spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS)
    }

    /// Whether its ClusterIPs and NodePorts are left, on a node, to who the label names.
    pub fn is_another_proxys(&self, context: &Context) -> bool {
        let labels = self.located.object.metadata.labels.as_ref();
        context.place == Place::Node && labels.is_some_and(|labels| labels.contains_key(PROXY_NAME))
    }

    pub fn external_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok())
    }

    /// What the manifest asks for: the annotation, else `spec.loadBalancerIP`.
    pub fn requested(&self) -> Vec<IpAddr> {
        if !self.notes.addresses.is_empty() {
            return self.notes.addresses.clone();
        }
        self.spec.load_balancer_ip.iter().filter_map(|ip| ip.parse().ok()).collect()
    }

    /// The families (whether IPv6) that the manifest insists on.
    pub fn demanded_families(&self) -> impl Iterator<Item = bool> {
        let insists = self.spec.ip_families.as_ref().is_some_and(|families| families.len() > 1)
            || self.spec.ip_family_policy.as_deref() == Some("RequireDualStack");
        self.families.iter().copied().filter(move |_| insists)
    }

    /// `ipFamilies`, else those of the addresses written, else IPv4 (IPv6 where only that is to be had); a dual-stack
    /// policy adds the other one.
    fn decide_families(&self, context: &Context) -> Vec<bool> {
        let mut families: Vec<bool> = self.spec.ip_families.iter().flatten().map(|family| family == "IPv6").collect();
        if families.is_empty() {
            let requested = self.requested();
            let written: Vec<&IpAddr> = if self.cluster_ips.is_empty() {
                requested.iter().collect()
            } else {
                self.cluster_ips.iter().collect()
            };
            for family in written.iter().map(|ip| ip.is_ipv6()) {
                if !families.contains(&family) {
                    families.push(family);
                }
            }
            if families.is_empty() {
                families.extend(self.external_ips().map(|ip| ip.is_ipv6()));
                families.sort_unstable();
                families.dedup();
            }
        }
        let available = |ipv6: bool| {
            let pools = context.pools.iter().flat_map(|pool| &pool.addresses).any(|range| range.is_ipv6() == ipv6);
            pools || context.service_ranges.iter().any(|net| net.addr().is_ipv6() == ipv6)
        };
        if families.is_empty() {
            families.push(!available(false) && available(true));
        }
        let other = !families[0];
        let wanted = match self.spec.ip_family_policy.as_deref() {
            Some("RequireDualStack") => true,
            Some("PreferDualStack") => available(other),
            _ => false,
        };
        if families.len() == 1 && wanted {
            families.push(other);
        }
        families
    }
}

/// Ranges such as `192.0.2.0/24`, sorted; what is none was found wrong before.
fn networks<'a>(ranges: impl Iterator<Item = &'a String>) -> Arc<[(IpAddr, u8)]> {
    let parsed = ranges.filter_map(|range| range.trim().parse::<ipnet::IpNet>().ok());
    let mut networks: Vec<(IpAddr, u8)> = parsed.map(|net| (net.network(), net.prefix_len())).collect();
    networks.sort_unstable();
    networks.dedup();
    networks.into()
}

/// The NodePort that the manifest says.
pub(crate) fn written_node_port(port: &ServicePort) -> Option<u16> {
    port.node_port.and_then(|number| u16::try_from(number).ok()).filter(|&number| number != 0)
}

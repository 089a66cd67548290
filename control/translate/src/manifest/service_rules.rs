//! What the API demands of a Service beyond the shape of its fields: one function a rule.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::addresses::is_no_address;
use crate::annotations;
use crate::finding::{Finding, Severity};
use crate::objects::Located;

use super::endpoint_rules::bad_label;
use super::names::{is_label, is_letter_label, is_port_name, is_subdomain};

/// Judges a Service.
pub(super) fn judge(located: &Located<Service>) -> Vec<Finding> {
    let Some(spec) = &located.object.spec else { return Vec::new() };
    let mut judge = Judge { located, spec, found: Vec::new() };
    judge.names();
    judge.annotations();
    judge.type_and_ports();
    judge.ports();
    judge.affinity();
    judge.cluster_ips();
    judge.families();
    judge.addresses();
    judge.policies();
    judge.found
}

struct Judge<'s> {
    located: &'s Located<Service>,
    spec: &'s ServiceSpec,
    found: Vec<Finding>,
}

/// The type, ClusterIP where none is written.
pub(crate) fn type_of(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().filter(|name| !name.is_empty()).unwrap_or("ClusterIP")
}

/// Whether it is headless.
pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
        || spec.cluster_ips.as_deref().is_some_and(|ips| ips.first().is_some_and(|ip| ip == "None"))
}

impl Judge<'_> {
    fn error(&mut self, field: &str, message: impl Into<String>) {
        self.found.push(self.located.finding(Severity::Error, field, message));
    }

    fn names(&mut self) {
        let metadata = &self.located.object.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        if !is_letter_label(name) {
            let rule = "at most 63 lower-case letters, digits and `-`, a letter first (RFC 1035)";
            self.error("metadata.name", format!("`{name}`, expected {rule}"));
        }
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        if !is_label(namespace) {
            self.error("metadata.namespace", bad_label(namespace));
        }
    }

    fn annotations(&mut self) {
        let metadata = &self.located.object.metadata;
        let Some(all) = &metadata.annotations else { return };
        let name = metadata.name.as_deref().unwrap_or_default();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        for (key, message) in annotations::parse(all).1 {
            // The legacy field has been made the annotation on its way here.
            let legacy = key.ends_with("/topology-keys") && self.located.lines.contains_key("spec.topologyKeys");
            let written = format!("metadata.annotations[{key}]");
            let field = if legacy && self.located.line_of(&written) == self.located.line_of("spec.topologyKeys") {
                "spec.topologyKeys".to_owned()
            } else {
                written
            };
            self.error(&field, format!("Service {namespace}/{name}: {message}"));
        }
    }

    fn type_and_ports(&mut self) {
        let ports = self.spec.ports.as_deref().unwrap_or_default();
        let cluster_ip = self.spec.cluster_ip.as_deref().unwrap_or_default();
        match type_of(self.spec) {
            "ExternalName" => {
                let name = self.spec.external_name.as_deref().unwrap_or_default();
                if !is_subdomain(name.strip_suffix('.').unwrap_or(name)) {
                    self.error("spec.externalName", format!("`{name}`, expected a DNS name"));
                }
                if !cluster_ip.is_empty() {
                    self.error("spec.clusterIP", format!("`{cluster_ip}`, expected none with type ExternalName"));
                }
            }
            "ClusterIP" if is_headless(self.spec) => {}
            other => {
                if is_headless(self.spec) {
                    self.error("spec.clusterIP", format!("`None`, expected an address with type {other}"));
                }
                if ports.is_empty() {
                    self.error("spec.ports", "missing, expected at least one port");
                }
            }
        }
    }

    fn ports(&mut self) {
        let spec = self.spec;
        let ports = spec.ports.as_deref().unwrap_or_default();
        // There may be as many as a file has room for, so those before are not looked through for each.
        let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (at, port) in ports.iter().enumerate() {
            let path = format!("spec.ports[{at}]");
            let name = name_of(port);
            let again = !names.insert(name);
            if name.is_empty() && ports.len() > 1 {
                self.error(&format!("{path}.name"), "missing, expected a name since there are several ports");
            } else if !name.is_empty() && !is_label(name) {
                self.error(&format!("{path}.name"), bad_label(name));
            } else if !name.is_empty() && again {
                self.error(&format!("{path}.name"), format!("`{name}` a second time, expected each name once"));
            }
            if !numbers.insert((port.port, protocol_of(port))) {
                let what = format!("{}/{}", port.port, protocol_of(port));
                self.error(&format!("{path}.port"), format!("{what} a second time, expected each once"));
            }
            self.target_port(&path, port);
            self.node_port(&path, port, &mut node_ports);
        }
    }

    fn target_port(&mut self, path: &str, port: &ServicePort) {
        let wrong = match &port.target_port {
            Some(IntOrString::Int(number)) if !(1..=65535).contains(number) => number.to_string(),
            Some(IntOrString::String(name)) if !is_port_name(name) => name.clone(),
            _ => return,
        };
        let rule = "a number from 1 to 65535 or a port's name (at most 15 lower-case letters, digits and `-`)";
        let hint = super::schema::comment_hint(&wrong);
        self.error(&format!("{path}.targetPort"), format!("`{wrong}`, expected {rule}{hint}"));
    }

    /// `before` are those of earlier ports, with their protocols.
    fn node_port<'p>(&mut self, path: &str, port: &'p ServicePort, before: &mut HashSet<(i32, &'p str)>) {
        let Some(number) = port.node_port.filter(|&number| number != 0) else { return };
        let field = format!("{path}.nodePort");
        let type_name = type_of(self.spec);
        if !matches!(type_name, "NodePort" | "LoadBalancer") {
            self.error(&field, format!("`{number}`, expected none with type {type_name}"));
        }
        if !before.insert((number, protocol_of(port))) {
            self.error(&field, format!("`{number}` a second time, expected each once"));
        }
    }

    fn affinity(&mut self) {
        let client_ip = self.spec.session_affinity.as_deref() == Some("ClientIP");
        if self.spec.session_affinity_config.is_some() && !client_ip {
            self.error("spec.sessionAffinityConfig", "set, expected `sessionAffinity: ClientIP` beside it");
        }
    }

    fn cluster_ips(&mut self) {
        let (first, all) = (self.spec.cluster_ip.as_deref(), self.spec.cluster_ips.as_deref().unwrap_or_default());
        let written: Vec<(String, &str)> = first
            .map(|ip| ("spec.clusterIP".to_owned(), ip))
            .into_iter()
            .chain(all.iter().enumerate().map(|(at, ip)| (format!("spec.clusterIPs[{at}]"), ip.as_str())))
            .collect();
        for (field, ip) in written {
            if !matches!(ip, "" | "None") && ip.parse::<IpAddr>().is_err() {
                self.error(&field, format!("`{ip}`, expected an IP address or None"));
            }
        }
        if let (Some(first), Some(listed)) = (first.filter(|ip| !ip.is_empty()), all.first())
            && first != listed
        {
            self.error("spec.clusterIPs[0]", format!("`{listed}`, expected `{first}` as in clusterIP"));
        }
        let families: Vec<bool> = all.iter().filter_map(|ip| ip.parse().ok()).map(|ip: IpAddr| ip.is_ipv6()).collect();
        if all.len() > 2 || families.len() == 2 && families[0] == families[1] {
            self.error("spec.clusterIPs", "too many, expected at most one address of each family");
        }
    }

    fn families(&mut self) {
        let families = self.spec.ip_families.as_deref().unwrap_or_default();
        let ips = self.spec.cluster_ips.as_deref().unwrap_or_default();
        if families.len() > 2 || families.len() == 2 && families[0] == families[1] {
            self.error("spec.ipFamilies", "too many, expected each of IPv4 and IPv6 once at most");
        }
        let first = self.spec.cluster_ip.iter().filter(|_| ips.is_empty());
        for (family, ip) in families.iter().zip(ips.iter().chain(first)) {
            let Ok(address) = ip.parse::<IpAddr>() else { continue };
            if address.is_ipv6() != (family == "IPv6") {
                self.error("spec.ipFamilies", format!("`{family}` for clusterIP `{ip}`, expected its family"));
            }
        }
        if self.spec.ip_family_policy.as_deref() == Some("SingleStack") && families.len() > 1 {
            self.error(
                "spec.ipFamilyPolicy",
                "`SingleStack`, expected PreferDualStack or RequireDualStack for two families",
            );
        }
    }

    fn addresses(&mut self) {
        let spec = self.spec;
        for (at, ip) in spec.external_ips.iter().flatten().enumerate() {
            self.reachable(&format!("spec.externalIPs[{at}]"), ip);
        }
        if let Some(ip) = &spec.load_balancer_ip {
            self.reachable("spec.loadBalancerIP", ip);
        }
        let annotations = self.located.object.metadata.annotations.iter().flatten();
        for (key, ips) in annotations.filter(|(key, _)| *key == "millrace.dev/addresses") {
            ips.split(',').for_each(|ip| self.reachable(&format!("metadata.annotations[{key}]"), ip.trim()));
        }
        for (at, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
            if range.trim().parse::<IpNet>().is_err() {
                let message = format!("`{range}`, expected a range such as 192.0.2.0/24");
                self.error(&format!("spec.loadBalancerSourceRanges[{at}]"), message);
            }
        }
        let type_name = type_of(spec);
        let ranges = spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty());
        if ranges && type_name != "LoadBalancer" {
            self.error("spec.loadBalancerSourceRanges", format!("set, expected none with type {type_name}"));
        }
    }

    fn reachable(&mut self, field: &str, ip: &str) {
        if ip.parse().is_ok_and(is_no_address) {
            self.error(field, format!("`{ip}`, expected an address that can be routed to"));
        }
    }

    fn policies(&mut self) {
        let spec = self.spec;
        let external = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
        let type_name = type_of(spec);
        let reached = matches!(type_name, "NodePort" | "LoadBalancer") || type_name == "ClusterIP" && external;
        if spec.external_traffic_policy.is_some() && !reached {
            let message = "set, expected type NodePort or LoadBalancer, or externalIPs, beside it";
            self.error("spec.externalTrafficPolicy", message);
        }
        let is_balanced = type_name == "LoadBalancer";
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        if spec.health_check_node_port.is_some_and(|number| number != 0) && !(is_balanced && local) {
            let message = "set, expected type LoadBalancer and externalTrafficPolicy Local beside it";
            self.error("spec.healthCheckNodePort", message);
        }
        if spec.allocate_load_balancer_node_ports.is_some() && !is_balanced {
            self.error("spec.allocateLoadBalancerNodePorts", format!("set, expected none with type {type_name}"));
        }
        if spec.load_balancer_class.is_some() && !is_balanced {
            self.error("spec.loadBalancerClass", format!("set, expected none with type {type_name}"));
        }
    }
}

/// A port's name, empty if it has none.
pub(crate) fn name_of(port: &ServicePort) -> &str {
    port.name.as_deref().unwrap_or_default()
}

/// A port's protocol, TCP where none is written.
pub(crate) fn protocol_of(port: &ServicePort) -> &str {
    port.protocol.as_deref().filter(|name| !name.is_empty()).unwrap_or("TCP")
}

//! NodePorts: those written, warned about outside their range, and those given from it.

use std::collections::BTreeSet;

use crate::context::Place;
use crate::finding::Severity;
use crate::listing::ServiceKind;
use crate::manifest::{name_of, protocol_of};
use crate::service::{ServiceView, written_node_port};

use super::{Giving, hash};

/// (protocol, number)s that are taken.
type Used = BTreeSet<(String, u16)>;

/// A port that is to get a number.
struct Lacking {
    service: usize,
    at: usize,
    protocol: String,
    /// Its key in [`Given`](crate::Given).
    key: String,
}

impl Giving<'_> {
    pub(super) fn node_ports(&mut self, services: &mut [ServiceView]) {
        let mut used: Used = self.unwritten_holders();
        let mut lacking = Vec::new();
        for (index, service) in services.iter_mut().enumerate() {
            self.written_node_ports(service, &mut used);
            if self.context.place == Place::Gateway && self.wants_node_ports(service) {
                lacking.extend(without_number(index, service));
            }
        }
        lacking.retain(|port| !self.kept_node_port(port, services, &mut used));
        for port in lacking {
            self.free_node_port(port, services, &mut used);
        }
    }

    /// What those had that write none: no newcomer may be given it.
    fn unwritten_holders(&self) -> Used {
        let unwritten = self.former.node_ports.iter().filter(|(_, (_, _, written))| !written);
        unwritten.map(|(place, _)| place.clone()).collect()
    }

    fn wants_node_ports(&self, service: &ServiceView) -> bool {
        match service.kind {
            ServiceKind::NodePort => true,
            ServiceKind::LoadBalancer => {
                self.context.serve.node_port && service.spec.allocate_load_balancer_node_ports != Some(false)
            }
            _ => false,
        }
    }

    fn written_node_ports(&mut self, service: &mut ServiceView, used: &mut Used) {
        let (range, served) = (&self.context.node_port_range, self.context.serve.node_port);
        let mut refused = Vec::new();
        for (at, port) in service.ports().iter().enumerate() {
            let Some(number) = service.node_ports[at] else { continue };
            let field = format!("spec.ports[{at}].nodePort");
            let place = (protocol_of(port).to_owned(), number);
            let key = format!("{}/{}/{}", service.key(), place.0, name_of(port));
            // Of two that are written, the frontends decide: where none is served there is no clash.
            let clashes = |(of, _, written): &&(String, String, bool)| *of != key && (served || !*written);
            if let Some((_, owner, _)) = self.former.node_ports.get(&place).filter(clashes) {
                let message = format!(
                    "{number}/{} of {} is the nodePort of {owner}, expected another number",
                    place.0,
                    service.key()
                );
                self.findings.push(service.located.finding(Severity::Error, &field, message));
                refused.push(at);
                continue;
            }
            used.insert(place);
            self.kept.node_ports.insert(key, number);
            if !range.contains(&number) {
                let (first, last) = (range.start(), range.end());
                let message = format!("`{number}` is outside nodePortRange, expected {first} to {last}");
                self.findings.push(service.located.finding(Severity::Warning, &field, message));
            }
        }
        refused.into_iter().for_each(|at| service.node_ports[at] = None);
    }

    /// Whether the port has the number again that it had before.
    fn kept_node_port(&mut self, port: &Lacking, services: &mut [ServiceView], used: &mut Used) -> bool {
        let range = &self.context.node_port_range;
        let before = self.before.node_ports.get(&port.key).copied().filter(|number| range.contains(number));
        let Some(number) = before.filter(|&number| {
            let place = (port.protocol.clone(), number);
            let own = self.former.node_ports.get(&place).is_some_and(|(of, _, written)| !written && *of == port.key);
            used.insert(place) || own
        }) else {
            return false;
        };
        services[port.service].node_ports[port.at] = Some(number);
        self.kept.node_ports.insert(port.key.clone(), number);
        true
    }

    fn free_node_port(&mut self, port: Lacking, services: &mut [ServiceView], used: &mut Used) {
        let range = &self.context.node_port_range;
        let Lacking { service, at, protocol, key } = port;
        let size = u128::from(*range.end()).saturating_sub(u128::from(*range.start())) + 1;
        let start = hash(&key);
        let number = |step: u128| {
            let offset = u16::try_from((start + step) % size).unwrap_or(0);
            range.start().saturating_add(offset)
        };
        let free = (0..size).map(number).find(|&number| !used.contains(&(protocol.clone(), number)));
        if let Some(number) = free {
            used.insert((protocol, number));
            services[service].node_ports[at] = Some(number);
            self.kept.node_ports.insert(key, number);
        } else {
            let field = format!("spec.ports[{at}].nodePort");
            let message = "none is free in nodePortRange, expected a wider range";
            self.findings.push(services[service].located.finding(Severity::Error, &field, message));
        }
    }
}

fn without_number(index: usize, service: &ServiceView) -> Vec<Lacking> {
    let ports = service.ports().iter().enumerate().filter(|(_, port)| written_node_port(port).is_none());
    let lacking = ports.map(|(at, port)| {
        let protocol = protocol_of(port).to_owned();
        let key = format!("{}/{protocol}/{}", service.key(), name_of(port));
        Lacking { service: index, at, protocol, key }
    });
    lacking.collect()
}

//! `millrace explain`: what would happen to the first packet of a flow, rule by rule. A function of tables and names.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use lb::affinity::Affinity;
use lb::model::{Algorithm, Mode, NoEndpoint, ServicePortKey};
use lb::select::{Opening, selection_hash, source_hash};
use lb::tables::{HopState, OurAddress, ServiceTable};
use lb::{BackendId, ServiceId, Tables, Tick};
use serde::{Deserialize, Serialize};
use wire::{Addr, Port, Protocol};

use crate::view::{Explanation, Step};

/// The packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// From where.
    pub source: SocketAddr,
    /// To where.
    pub destination: SocketAddr,
    /// TCP, else UDP.
    pub tcp: bool,
}

/// What explaining reads.
pub struct Known<'a> {
    /// In force.
    pub tables: &'a Tables,
    /// Names of Service ports.
    pub names: &'a HashMap<ServiceId, ServicePortKey>,
    /// Session affinity, with the time.
    pub affinity: Option<(&'a Affinity, Tick)>,
}

/// Goes through the rules.
#[must_use]
pub fn explain(question: &Question, known: &Known<'_>) -> Explanation {
    let mut steps = Vec::new();
    let (verdict, endpoint) = decide(question, known, &mut steps);
    let service = known.tables.frontends.get(
        &question.destination.ip().into(),
        Port::new(question.destination.port()),
        question.protocol(),
    );
    let service = service.and_then(|row| known.names.get(&row.service));
    Explanation {
        packet: format!("{} > {}/{}", question.source, question.destination, question.protocol()),
        steps,
        verdict: verdict.to_owned(),
        drop_reason: None,
        endpoint,
        service: service.map(|key| format!("{}/{}", key.namespace, key.name)),
    }
}

fn step(rule: &str, outcome: &str, why: String) -> Step {
    Step { rule: rule.to_owned(), outcome: outcome.to_owned(), why }
}

type Decision = (&'static str, Option<SocketAddr>);

fn decide(question: &Question, known: &Known<'_>, steps: &mut Vec<Step>) -> Decision {
    let tables = known.tables;
    let destination = Addr::from(question.destination.ip());
    let source = Addr::from(question.source.ip());
    if question.source.is_ipv4() != question.destination.is_ipv4() {
        steps.push(step("family", "dropped", "source and destination are of different families: no such packet".to_owned()));
        return ("drop", None);
    }
    let ours = tables.addresses.get(&destination);
    let address = question.destination.ip();
    match ours {
        None => {
            steps.push(step("address", "not ours", format!("{address} is no address of ours: not steered, the kernel has it")));
            return ("kernel", None);
        }
        Some(OurAddress::Snat { .. }) => {
            steps.push(step("address", "SNAT", format!("{address} is a SNAT address: only replies of flows that exist are taken there")));
            return ("drop", None);
        }
        Some(OurAddress::Vip { .. }) => steps.push(step("address", "ours", format!("{address} is a VIP, steered wholly"))),
        Some(OurAddress::HostOwned) => steps.push(step("address", "ours", format!("{address} is the host's own, steered on served ports alone"))),
    }
    let protocol = question.protocol();
    let port = Port::new(question.destination.port());
    let Some(frontend) = tables.frontends.get(&destination, port, protocol) else {
        if ours == Some(OurAddress::HostOwned) {
            steps.push(step("frontend", "none", format!("no Service has {protocol} port {port} there: the kernel has it")));
            return ("kernel", None);
        }
        let how = if question.tcp { "RST" } else { "port unreachable" };
        steps.push(step("frontend", "none", format!("no Service has {protocol} port {port} there: rejected ({how})")));
        return ("reject", None);
    };
    let Some(service) = tables.service(frontend.service) else {
        steps.push(step("frontend", "none", "its Service port is being removed: rejected".to_owned()));
        return ("reject", None);
    };
    let name = known.names.get(&service.id).map_or_else(|| "a Service".to_owned(), service_name);
    steps.push(step("frontend", "found", format!("{protocol} port {port} is a frontend of {name}")));
    if frontend.check_source_ranges {
        if !service.ranges.admits(&source) {
            steps.push(step("source ranges", "refused", format!("{} is outside loadBalancerSourceRanges: dropped", question.source.ip())));
            return ("drop", None);
        }
        steps.push(step("source ranges", "admitted", "loadBalancerSourceRanges admit the source".to_owned()));
    }
    if service.usable.is_empty() {
        return none_usable(service, question.tcp, steps);
    }
    choose(question, service, known, steps)
}

/// A Service port as people name it.
#[must_use]
pub fn service_name(key: &ServicePortKey) -> String {
    let port = if key.port_name.is_empty() { String::new() } else { format!(", port {}", key.port_name) };
    format!("{}/{}{port}", key.namespace, key.name)
}

fn none_usable(service: &ServiceTable, tcp: bool, steps: &mut Vec<Step>) -> Decision {
    match service.no_endpoint {
        NoEndpoint::Reject => {
            let how = if tcp { "RST" } else { "port unreachable" };
            steps.push(step("endpoints", "none", format!("no endpoint is usable: rejected ({how})")));
            ("reject", None)
        }
        NoEndpoint::Drop => {
            steps.push(step("endpoints", "none", "no endpoint is usable here by its policy or topology keys: dropped".to_owned()));
            ("drop", None)
        }
    }
}

fn choose(question: &Question, service: &ServiceTable, known: &Known<'_>, steps: &mut Vec<Step>) -> Decision {
    let tables = known.tables;
    let count = service.usable.len();
    let opening = Opening {
        source: question.source.ip().into(),
        source_port: Port::new(question.source.port()),
        destination: question.destination.ip().into(),
        destination_port: Port::new(question.destination.port()),
        protocol: service.protocol,
    };
    let by_hash = |hash: u64| service.maglev.lookup(hash).and_then(|at| service.usable.get(at)).map(|usable| usable.id);
    let usable = |id: BackendId| service.usable.iter().any(|usable| usable.id == id);
    let chosen = if service.affinity.is_some() {
        let kept = known.affinity.and_then(|(affinity, now)| affinity.get(&opening.source, service.id, now));
        if let Some(id) = kept.filter(|id| usable(*id)) {
            steps.push(step("session affinity", "known", "session affinity remembers this source".to_owned()));
            Some(id)
        } else {
            steps.push(step("session affinity", "unknown", format!("session affinity does not know this source: hash of it over {count} endpoints")));
            by_hash(source_hash(&opening.source, tables.seed))
        }
    } else {
        match service.algorithm {
            Algorithm::Maglev => {
                let size = service.table_size;
                steps.push(step("algorithm", "maglev", format!("Maglev: hash of the 5-tuple over {count} endpoints in a table of {size}")));
                by_hash(selection_hash(&opening, tables.seed))
            }
            Algorithm::SourceHash => {
                steps.push(step("algorithm", "source-hash", format!("source-hash: hash of the source over {count} endpoints")));
                by_hash(source_hash(&opening.source, tables.seed))
            }
            other => {
                steps.push(step("algorithm", "any", format!("{}: any of {count} endpoints", algorithm_name(other))));
                (count == 1).then(|| service.usable[0].id)
            }
        }
    };
    let Some(row) = chosen.and_then(|id| tables.backend(id)) else { return ("forward", None) };
    let endpoint = SocketAddr::new(IpAddr::from(row.address), row.port.number());
    steps.push(step("endpoint", "chosen", format!("endpoint {endpoint}")));
    match row.hop.state {
        HopState::Resolved => {
            let mac = row.hop.dst_mac;
            steps.push(step("next hop", "resolved", format!("next hop {mac} by port {}", row.hop.port.0)));
        }
        HopState::Unresolved => {
            steps.push(step("next hop", "unresolved", "its next hop has no link-layer address yet: dropped until it answers".to_owned()));
            return ("drop", Some(endpoint));
        }
        HopState::NoRoute => {
            steps.push(step("next hop", "no route", "the kernel has no route to it by one of our interfaces: dropped".to_owned()));
            return ("drop", Some(endpoint));
        }
    }
    match service.mode {
        Mode::Nat => {
            let v4 = question.source.is_ipv4();
            let pool: Vec<String> = tables.snat.family(v4).iter().map(|s| s.address.to_string()).collect();
            if pool.is_empty() {
                steps.push(step("mode", "nat", "no SNAT address of this family: dropped".to_owned()));
                return ("drop", Some(endpoint));
            }
            let why = format!("destination becomes {endpoint}, source a port of {}", pool.join(" or "));
            steps.push(step("mode", "nat", why));
        }
        Mode::Preserve => {
            steps.push(step("mode", "preserve", format!("destination becomes {endpoint}, the source stays")));
        }
    }
    ("forward", Some(endpoint))
}

/// The word of the annotation.
#[must_use]
pub const fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Maglev => "maglev",
        Algorithm::RoundRobin => "round-robin",
        Algorithm::Random => "random",
        Algorithm::LeastConnections => "least-connections",
        Algorithm::SourceHash => "source-hash",
    }
}

impl Question {
    fn protocol(&self) -> Protocol {
        if self.tcp { Protocol::TCP } else { Protocol::UDP }
    }

    /// From `SRC:PORT` and `DST:PORT/tcp`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(source: &str, destination: &str) -> Result<Self, String> {
        let (place, protocol) = destination.rsplit_once('/').unwrap_or((destination, "tcp"));
        let tcp = match protocol {
            "tcp" => true,
            "udp" => false,
            other => return Err(format!("`{other}` is no protocol: tcp or udp, as in 192.0.2.1:80/tcp")),
        };
        let socket = |text: &str| {
            text.parse().map_err(|_| format!("`{text}` is no ADDRESS:PORT (IPv6 as [ADDRESS]:PORT)"))
        };
        Ok(Self { source: socket(source)?, destination: socket(place)?, tcp })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lb::build::{BuildConfig, build};
    use lb::flow::{FlowFile, FlowFileConfig};
    use lb::model::{
        DesiredState, Endpoint, EndpointState, Frontend, FrontendKind, Scope, ServicePort, VipAddress,
    };
    use lb::tables::{Hop, SnatAddress};
    use wire::MacAddr;

    use super::*;

    fn service_port(endpoints: usize) -> ServicePort {
        let endpoint = |i: usize| Endpoint {
            address: format!("10.0.0.{}", i + 1).parse().unwrap(),
            port: 8080,
            weight: 1,
            state: EndpointState::Usable,
            node: None,
            zone: None,
            target: None,
        };
        ServicePort {
            key: ServicePortKey {
                namespace: "default".into(),
                name: "web".into(),
                port_name: String::new(),
                protocol: Protocol::TCP,
                ipv6: false,
                scope: Scope::All,
            },
            port: 80,
            frontends: vec![Frontend {
                address: "192.0.2.1".parse().unwrap(),
                port: 80,
                kind: FrontendKind::LoadBalancer,
            }],
            endpoints: (0..endpoints).map(endpoint).collect(),
            algorithm: Algorithm::Maglev,
            mode: Mode::Nat,
            affinity: None,
            source_ranges: vec![("198.51.100.0".parse().unwrap(), 24)],
            no_endpoint: NoEndpoint::Reject,
            udp_timeout: None,
            drain: None,
            min_table_size: 1021,
        }
    }

    fn explained(endpoints: usize, source: &str, destination: &str) -> Explanation {
        let mut opened =
            FlowFile::in_memory(&FlowFileConfig { flows: 1024, services: 16, backends: 16, affinity_sources: 64, ..FlowFileConfig::default() })
                .unwrap();
        let address = "192.0.2.1".parse().unwrap();
        let desired = DesiredState {
            service_ports: vec![service_port(endpoints)],
            addresses: vec![VipAddress { address, host_owned: false, echo: true }],
        };
        let snat = SnatAddress {
            address: Addr::from_v4([192, 0, 2, 9]),
            index: 0,
            first_port: 1024,
            last_port: 65535,
            dedicated: true,
        };
        let hop = Hop { state: HopState::Resolved, dst_mac: MacAddr([2; 6]), ..Hop::NO_ROUTE };
        let config = BuildConfig { snat: vec![snat], ..BuildConfig::default() };
        let built = build(None, &desired, &mut opened.registry, &|_| hop, &config);
        let names: HashMap<_, _> = built
            .tables
            .services
            .iter()
            .flatten()
            .map(|table: &Arc<ServiceTable>| (table.id, desired.service_ports[0].key.clone()))
            .collect();
        let known = Known { tables: &built.tables, names: &names, affinity: None };
        explain(&Question::parse(source, destination).unwrap(), &known)
    }

    #[test]
    fn a_packet_to_a_frontend_gets_an_endpoint() {
        let explanation = explained(3, "198.51.100.7:4000", "192.0.2.1:80/tcp");
        assert_eq!(explanation.verdict, "forward");
        assert!(explanation.endpoint.is_some_and(|e| e.port() == 8080));
        assert!(explanation.steps.iter().any(|s| s.why.contains("default/web")), "{explanation:?}");
        assert_eq!(explanation, explained(3, "198.51.100.7:4000", "192.0.2.1:80/tcp"));
    }

    #[test]
    fn each_rule_that_stops_a_packet_says_so() {
        for (source, destination, verdict, why) in [
            ("203.0.113.1:1", "192.0.2.1:80", "drop", "loadBalancerSourceRanges"),
            ("198.51.100.7:1", "192.0.2.1:81", "reject", "no Service has tcp port 81"),
            ("198.51.100.7:1", "192.0.2.1:80/udp", "reject", "no Service has udp port 80"),
            ("198.51.100.7:1", "192.0.2.2:80", "kernel", "no address of ours"),
            ("198.51.100.7:1", "192.0.2.9:80", "drop", "SNAT address"),
        ] {
            let explanation = explained(3, source, destination);
            assert_eq!(explanation.verdict, verdict, "{explanation:?}");
            assert!(explanation.steps.last().unwrap().why.contains(why), "{explanation:?}");
        }
        assert_eq!(explained(0, "198.51.100.7:1", "192.0.2.1:80").verdict, "reject");
    }

    #[test]
    fn questions_are_read_as_people_write_them() {
        assert!(Question::parse("[2001:db8::1]:5", "[2001:db8::2]:53/udp").is_ok_and(|q| !q.tcp));
        assert!(Question::parse("1.2.3.4", "1.2.3.5:80/tcp").is_err());
        assert!(Question::parse("1.2.3.4:1", "1.2.3.5:80/sctp").is_err());
    }
}

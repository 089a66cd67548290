//! `millrace explain`: what would happen to the first packet of a flow, rule by rule. A function of tables and names.
//!
//! The rules come in the order of `lb::process`. Nothing is changed by asking: no turn is taken, no affinity noted.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use lb::health::Standing;
use lb::model::{Algorithm, Mode, NoEndpoint, ServicePortKey};
use lb::select::{Opening, next_by_hash};
use lb::shared::Shared;
use lb::tables::{BackendRow, BackendState, FrontendRow, HopState, OurAddress, ServiceTable};
use lb::{BackendId, DropReason, ServiceId, Tables, Tick};
use serde::{Deserialize, Serialize};
use wire::tunnel::Outer;
use wire::{Addr, Port, Protocol};

use translate::mode_name;

use crate::view::{Explanation, Step};

/// The packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// From where.
    pub source: SocketAddr,
    /// To where.
    pub destination: SocketAddr,
    /// Its protocol: `tcp`, `udp` or `sctp`.
    pub protocol: Carried,
}

/// What a packet is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carried {
    /// TCP: a SYN.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: an INIT.
    Sctp,
}

/// What explaining reads.
pub struct Known<'a> {
    /// In force.
    pub tables: &'a Tables,
    /// Names of Service ports.
    pub names: &'a HashMap<ServiceId, &'a ServicePortKey>,
    /// What workers share, with the time.
    pub shared: Option<(&'a Shared, Tick)>,
}

/// Goes through the rules for a packet that opens a flow: of TCP a SYN, of SCTP an INIT.
#[must_use]
pub fn explain(question: &Question, known: &Known<'_>) -> Explanation {
    let mut walk = Walk { question, known, steps: Vec::new(), service: None, endpoint: None };
    let Err(end) = walk.rules();
    Explanation {
        packet: format!("{} {}/{}", question.source, question.destination, question.protocol()),
        steps: walk.steps,
        verdict: end.verdict,
        drop_reason: end.reason.map(|reason| reason.label().to_owned()),
        endpoint: walk.endpoint,
        service: walk.service,
    }
}

/// What becomes of the packet.
struct End {
    verdict: String,
    reason: Option<DropReason>,
}

impl End {
    fn new(verdict: impl Into<String>) -> Self {
        Self { verdict: verdict.into(), reason: None }
    }

    fn drop(reason: DropReason) -> Self {
        Self { verdict: format!("dropped and counted as {}", reason.label()), reason: Some(reason) }
    }

    fn reject(packet: &Question) -> Self {
        Self::new(match packet.protocol {
            Carried::Tcp => "rejected with a TCP RST",
            Carried::Udp => "rejected with an ICMP port unreachable",
            Carried::Sctp => "rejected with an SCTP ABORT",
        })
    }
}

struct Walk<'a> {
    question: &'a Question,
    known: &'a Known<'a>,
    steps: Vec<Step>,
    service: Option<String>,
    endpoint: Option<SocketAddr>,
}

impl<'a> Walk<'a> {
    fn note(&mut self, rule: &str, outcome: impl Into<String>, why: impl Into<String>) {
        self.steps.push(Step { rule: rule.to_owned(), outcome: outcome.into(), why: why.into() });
    }

    /// Every rule in turn; the one that decides ends it.
    fn rules(&mut self) -> Result<std::convert::Infallible, End> {
        self.family()?;
        let frontend = self.address()?;
        self.source()?;
        let service = self.frontend(frontend)?;
        self.source_ranges(frontend.check_source_ranges, service)?;
        self.any_endpoint(service)?;
        self.service_loop()?;
        self.source_limit();
        let Some(row) = self.choose(service) else {
            let (mode, count) = (mode_name(service.mode), service.usable.len());
            return Err(End::new(format!("sent on to one of {count} endpoints in mode {mode}")));
        };
        self.next_hop(row)?;
        Err(self.way(service, row))
    }

    fn family(&mut self) -> Result<(), End> {
        if self.question.source.is_ipv4() == self.question.destination.is_ipv4() {
            return Ok(());
        }
        self.note("family", "mixed", "source and destination are of different families");
        Err(End::new("there is no such packet"))
    }

    /// Whether the packet comes here at all, and to which frontend.
    fn address(&mut self) -> Result<FrontendRow, End> {
        let (tables, address, port) =
            (self.known.tables, self.question.destination.ip(), self.question.destination.port());
        let (destination, protocol) = (Addr::from(address), self.question.protocol());
        let Some(ours) = tables.addresses.get(&destination) else {
            self.note("steering", "not steered", format!("{address} is not an address of ours"));
            return Err(End::new("left to the kernel"));
        };
        let frontend = tables.frontends.get(&destination, Port::new(port), protocol);
        if let Some(frontend) = frontend {
            let what = match ours {
                OurAddress::HostOwned => "the host's own, served on this port",
                OurAddress::Vip { .. } => "a VIP",
                OurAddress::Snat { .. } => "a SNAT address that is served on this port",
            };
            self.note("steering", "steered", format!("{address} is {what}"));
            return Ok(frontend);
        }
        if tables.snat.get(&destination).is_some_and(|snat| (snat.first_port..=snat.last_port).contains(&port)) {
            let why =
                format!("{address} port {port} is for SNAT: taken for a reply, and only flows that exist have replies");
            self.note("steering", "steered", why);
            return Err(End::drop(DropReason::NoFlow));
        }
        let nobody = format!("no Service is reached at {} {protocol}", self.question.destination);
        match ours {
            OurAddress::Vip { .. } => {
                self.note("steering", "steered", format!("{address} is a VIP"));
                self.source()?;
                self.note("frontend", "none", nobody);
                Err(End::reject(self.question))
            }
            OurAddress::HostOwned | OurAddress::Snat { dedicated: false } => {
                let why = format!("{address} is the host's own, and {nobody}");
                self.note("steering", "not steered", why);
                Err(End::new("left to the kernel"))
            }
            OurAddress::Snat { dedicated: true } => {
                self.note("steering", "steered", format!("{address} is a SNAT address, and {nobody}"));
                Err(End::drop(DropReason::NoFlow))
            }
        }
    }

    /// RFC 1812 section 5.3.7, RFC 4291 section 2.7, and the land attack.
    fn source(&mut self) -> Result<(), End> {
        let source = self.question.source.ip();
        let no_machine = source.is_multicast()
            || match source {
                IpAddr::V4(v4) => matches!(v4.octets()[0], 0 | 127 | 224..),
                IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback(),
            };
        let why = if no_machine {
            format!("{source} is no machine's address")
        } else if self.known.tables.addresses.get(&source.into()).is_some() {
            format!("{source} is an address of ours")
        } else {
            return Ok(());
        };
        self.note("source", "martian", why);
        Err(End::drop(DropReason::Martian))
    }

    fn frontend(&mut self, frontend: FrontendRow) -> Result<&'a ServiceTable, End> {
        let known = self.known;
        let Some(service) = known.tables.service(frontend.service) else {
            self.note("frontend", "none", "its Service port is being removed");
            return Err(End::reject(self.question));
        };
        let key = known.names.get(&service.id);
        self.service = key.map(|key| format!("{}/{}", key.namespace, key.name));
        let name = key.map_or_else(|| "a Service".to_owned(), |key| service_name(key));
        let why = format!("{} {} is a frontend of {name}", self.question.destination, self.question.protocol());
        self.note("frontend", self.service.clone().unwrap_or_else(|| "found".to_owned()), why);
        Ok(service)
    }

    /// Whether the source is where an endpoint answers whatever comes.
    fn service_loop(&mut self) -> Result<(), End> {
        let (source, protocol) = (self.question.source, self.question.protocol());
        if !self.known.tables.answering.has(&source.ip().into(), Port::new(source.port()), protocol) {
            return Ok(());
        }
        let why =
            format!("{source} is an endpoint's own port: it and the Service's would answer each other without end");
        self.note("source", "an endpoint", why);
        Err(End::drop(DropReason::ServiceLoop))
    }

    fn source_ranges(&mut self, checked: bool, service: &ServiceTable) -> Result<(), End> {
        let source = self.question.source.ip();
        if !checked {
            self.note("source ranges", "not asked", "they apply to LoadBalancer and external IPs alone");
        } else if service.ranges.admits(&source.into()) {
            self.note(
                "source ranges",
                "admitted",
                format!("{source} is within loadBalancerSourceRanges, or there are none"),
            );
        } else {
            self.note("source ranges", "refused", format!("{source} is outside loadBalancerSourceRanges"));
            return Err(End::drop(DropReason::SourceRange));
        }
        Ok(())
    }

    fn any_endpoint(&mut self, service: &ServiceTable) -> Result<(), End> {
        let count = service.usable.len();
        if count > 0 {
            self.note(
                "endpoints",
                format!("{count} usable"),
                "those that are ready, healthy, not drained and of a weight",
            );
            return Ok(());
        }
        match service.no_endpoint {
            NoEndpoint::Reject => {
                self.note("endpoints", "none", "no endpoint is usable, and the Service rejects then");
                Err(End::reject(self.question))
            }
            NoEndpoint::Drop => {
                self.note("endpoints", "none", "no endpoint is usable here by the Service's policy or topology keys");
                Err(End::drop(DropReason::NoEndpoint))
            }
        }
    }

    fn source_limit(&mut self) {
        match self.known.tables.flows_per_source {
            0 => {}
            most => self.note("source limit", "not known", format!("a source may have {most} flows; more are refused")),
        }
        match self.known.tables.new_flows_per_source {
            0 => {}
            most => {
                let why = format!("a source may open {most} flows a second; more are dropped");
                self.note("source rate", "not known", why);
            }
        }
    }

    /// The endpoint, where it is certain.
    fn choose(&mut self, service: &ServiceTable) -> Option<&'a BackendRow> {
        let tables = self.known.tables;
        let id = if service.affinity.is_some() { self.by_affinity(service) } else { self.by_algorithm(service) };
        let row = tables.backend(self.unless_aside(service, id?))?;
        self.endpoint = Some(SocketAddr::new(row.address.into(), row.port.number()));
        Some(row)
    }

    /// The next endpoint where the one that was chosen is set aside, unless all are.
    fn unless_aside(&mut self, service: &ServiceTable, chosen: BackendId) -> BackendId {
        let Some((shared, now)) = self.known.shared.filter(|_| self.question.protocol != Carried::Udp) else {
            return chosen;
        };
        let Standing::Aside { left } = shared.health.standing(chosen, now) else { return chosen };
        let mut well = |id| shared.health.standing(id, now) == Standing::Well;
        let next = next_by_hash(service, &self.known.tables.selection, &self.opening(), &mut well);
        let seconds = (u64::from(left) << Tick::SHIFT).div_ceil(1_000_000_000);
        let (outcome, how) = match next {
            Some(_) => ("the next", "the next of the table that is not set aside gets it"),
            None => ("stays", "there is no other"),
        };
        let why = format!("the endpoint failed connections and is set aside for {seconds} s: {how}");
        self.note("set aside", outcome, why);
        next.unwrap_or(chosen)
    }

    fn opening(&self) -> Opening {
        let question = self.question;
        Opening {
            source: question.source.ip().into(),
            source_port: Port::new(question.source.port()),
            destination: question.destination.ip().into(),
            destination_port: Port::new(question.destination.port()),
            protocol: question.protocol(),
        }
    }

    fn by_affinity(&mut self, service: &ServiceTable) -> Option<BackendId> {
        let (tables, source) = (self.known.tables, self.question.source.ip());
        let kept = self.known.shared.and_then(|(shared, now)| shared.affinity.get(&source.into(), service.id, now));
        let takes_flows = |id: &BackendId| tables.backend(*id).is_some_and(|row| row.state == BackendState::Usable);
        if let Some(id) = kept.filter(takes_flows) {
            self.note(
                "session affinity",
                "remembered",
                format!("{source} was given an endpoint that still gets flows"),
            );
            return Some(id);
        }
        let why = if kept.is_some() { "its endpoint gets no new flows any more" } else { "no endpoint is remembered" };
        self.note("session affinity", "new", format!("for {source} {why}: chosen by a hash of the source alone"));
        by_hash(service, tables.selection.of_source(&source.into()))
    }

    fn by_algorithm(&mut self, service: &ServiceTable) -> Option<BackendId> {
        let (tables, opening) = (self.known.tables, self.opening());
        let name = algorithm_name(service.algorithm);
        let size = service.maglev.size();
        let why = match service.algorithm {
            Algorithm::Maglev => format!("a hash of addresses, ports and protocol, in a table of {size}"),
            Algorithm::SourceHash => format!("a hash of the source's address, in a table of {size}"),
            Algorithm::RoundRobin => "each worker's next turn decides".to_owned(),
            Algorithm::Random => "chance decides, by weight".to_owned(),
            Algorithm::LeastConnections => "the fewest connections for its weight decide when it comes".to_owned(),
        };
        self.note("algorithm", name, why);
        match service.algorithm {
            Algorithm::Maglev => by_hash(service, tables.selection.of(&opening)),
            Algorithm::SourceHash => by_hash(service, tables.selection.of_source(&opening.source)),
            _ => service.usable.first().filter(|_| service.usable.len() == 1).map(|only| only.id),
        }
    }

    fn next_hop(&mut self, row: &BackendRow) -> Result<(), End> {
        let (address, hop) = (row.address, &row.hop);
        match hop.state {
            HopState::Resolved => {
                let why = format!("{address} is reached by {} on port {}, MTU {}", hop.dst_mac, hop.port.0, hop.mtu);
                self.note("next hop", "resolved", why);
                Ok(())
            }
            HopState::Unresolved => {
                self.note("next hop", "unresolved", format!("the neighbour towards {address} has not answered yet"));
                Err(End::drop(DropReason::NextHopUnresolved))
            }
            HopState::NoRoute => {
                let why = format!("the kernel has no route to {address} by an interface of ours");
                self.note("next hop", "no route", why);
                Err(End::drop(DropReason::NoRoute))
            }
        }
    }

    /// How it gets to the endpoint that was chosen.
    fn way(&mut self, service: &ServiceTable, row: &BackendRow) -> End {
        let endpoint = SocketAddr::new(row.address.into(), row.port.number());
        let itself = row.address == Addr::from(self.question.source.ip());
        let nat = self.must_be_translated(service, row);
        let by_kernel = self.known.tables.is_by_kernel(&row.hop);
        if service.mode == Mode::Preserve && !itself && !self.known.tables.brings_back(&row.hop) {
            self.note("mode", "preserve", "only the kernel reaches the endpoint, and does not bring its replies back");
            return End::drop(DropReason::NoRoute);
        }
        if service.mode == Mode::Preserve && !itself {
            self.note("mode", "preserve", "the destination becomes the endpoint, the source stays");
            return End::new(format!("sent on to {endpoint} in mode preserve"));
        }
        if service.mode.is_direct() && nat.is_none() {
            return self.directly(service.mode, row, endpoint);
        }
        let supply = self.known.tables.snat.supply(row.address.is_v4(), by_kernel);
        let pool: Vec<_> = supply.addresses.iter().map(|snat| snat.address.to_string()).collect();
        if pool.is_empty() {
            self.note("mode", "nat", "there is no SNAT address of this family");
            return End::drop(DropReason::SnatExhausted);
        }
        let because = nat.map(|why| format!(" ({why})")).unwrap_or_default();
        let why = format!("the destination becomes the endpoint, the source a port of {}{because}", pool.join(" or "));
        self.note("mode", "nat", why);
        End::new(format!("sent on to {endpoint} in mode nat"))
    }
}

impl Walk<'_> {
    /// Why the Service's mode does not do for this packet.
    fn must_be_translated(&self, service: &ServiceTable, row: &BackendRow) -> Option<&'static str> {
        let destination = &self.question.destination;
        let host = self.known.tables.addresses.get(&destination.ip().into()) == Some(OurAddress::HostOwned);
        match service.mode {
            _ if row.address == Addr::from(self.question.source.ip()) => Some("the endpoint is its own client"),
            mode if !mode.is_direct() => None,
            _ if row.port.number() != destination.port() => Some("the endpoint serves another port"),
            _ if host => Some("the endpoint cannot have the host's own address"),
            _ => None,
        }
    }

    /// In a mode where the endpoint answers the client itself.
    fn directly(&mut self, mode: Mode, row: &BackendRow, endpoint: SocketAddr) -> End {
        let name = mode_name(mode);
        if mode == Mode::DsrL2 && !row.hop.on_link {
            let why =
                format!("{} is behind a router, and {name} reaches endpoints on a link of ours alone", row.address);
            self.note("mode", name, why);
            return End::drop(DropReason::NotOnLink);
        }
        if mode.wrapping().is_some() {
            return self.tunnelled(mode, row, endpoint);
        }
        self.note(
            "mode",
            name,
            "the packet stays as it is, the endpoint has its destination too and answers the client",
        );
        End::new(format!("sent on to {endpoint} in mode {name}"))
    }
}

impl Walk<'_> {
    /// In a mode where the packet goes within another.
    fn tunnelled(&mut self, mode: Mode, row: &BackendRow, endpoint: SocketAddr) -> End {
        let name = mode_name(mode);
        let tunnels = &self.known.tables.tunnels;
        let sources = tunnels.iter().filter(|source| source.is_v4() == row.address.is_v4()).count();
        let (Some(wrapping), Some(src)) = (mode.wrapping(), tunnels.towards(&row.address, 0)) else {
            self.note("mode", name, format!("there is no address for tunnels to {}: set `tunnel`", row.address));
            return End::drop(DropReason::NoTunnelSource);
        };
        let len = Outer { src, dst: row.address, wrapping, entropy: 0 }.len();
        let why = format!(
            "the packet stays as it is within one to {}, {len} octets longer, from one of {sources} addresses; the endpoint \
             answers the client",
            row.address
        );
        self.note("mode", name, why);
        End::new(format!("sent on to {endpoint} in mode {name}"))
    }
}

fn by_hash(service: &ServiceTable, hash: u64) -> Option<BackendId> {
    service.maglev.lookup(hash).and_then(|at| service.usable.get(at)).map(|usable| usable.id)
}

/// A Service port as people name it.
#[must_use]
pub fn service_name(key: &ServicePortKey) -> String {
    let port = if key.port_name.is_empty() { String::new() } else { format!(", port {}", key.port_name) };
    format!("{}/{}{port}", key.namespace, key.name)
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
        match self.protocol {
            Carried::Tcp => Protocol::TCP,
            Carried::Udp => Protocol::UDP,
            Carried::Sctp => Protocol::SCTP,
        }
    }

    /// From `SRC:PORT` and `DST:PORT/tcp`, `/udp` or `/sctp`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(source: &str, destination: &str) -> Result<Self, String> {
        let (place, protocol) = destination.rsplit_once('/').unwrap_or((destination, "tcp"));
        let protocol = match protocol {
            "tcp" => Carried::Tcp,
            "udp" => Carried::Udp,
            "sctp" => Carried::Sctp,
            other => return Err(format!("`{other}` is no protocol: tcp, udp or sctp, as in 192.0.2.1:80/tcp")),
        };
        let socket =
            |text: &str| text.parse().map_err(|_| format!("`{text}` is no ADDRESS:PORT (IPv6 as [ADDRESS]:PORT)"));
        Ok(Self { source: socket(source)?, destination: socket(place)?, protocol })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb::build::{BuildConfig, build};
    use lb::flow::{FlowFile, FlowFileConfig};
    use lb::model::{DesiredState, Endpoint, Frontend, FrontendKind, ServicePort, VipAddress};
    use lb::select::Selector;
    use lb::tables::{Hop, SnatAddress};
    use wire::MacAddr;

    use super::*;
    use crate::fixture;

    fn service_port(endpoints: usize) -> ServicePort {
        let endpoint = |i: usize| Endpoint::new(format!("10.0.0.{}", i + 1).parse().unwrap(), 8080);
        let address = "192.0.2.1".parse().unwrap();
        ServicePort {
            frontends: vec![Frontend { address, port: 80, kind: FrontendKind::LoadBalancer }],
            endpoints: (0..endpoints).map(endpoint).collect(),
            source_ranges: [("198.51.100.0".parse().unwrap(), 24)].into(),
            ..fixture::service_port("web")
        }
    }

    fn desired(endpoints: usize, change: impl Fn(&mut ServicePort)) -> DesiredState {
        let mut port = service_port(endpoints);
        change(&mut port);
        let address = "192.0.2.1".parse().unwrap();
        DesiredState {
            service_ports: vec![port.into()].into(),
            addresses: vec![
                VipAddress { address, host_owned: false, echo: true, internal: false },
                VipAddress { address: "192.0.2.3".parse().unwrap(), host_owned: true, echo: true, internal: false },
            ],
        }
    }

    fn with_tables<T>(desired: &DesiredState, state: HopState, check: impl Fn(&Tables, &Shared, &Known<'_>) -> T) -> T {
        let sizes = FlowFileConfig {
            flows: 1024,
            services: 16,
            backends: 16,
            affinity_sources: 64,
            ..FlowFileConfig::default()
        };
        let mut opened = FlowFile::in_memory(&sizes).unwrap();
        let snat = SnatAddress {
            address: Addr::from_v4([192, 0, 2, 9]),
            index: 0,
            first_port: 1024,
            last_port: 65535,
            dedicated: true,
        };
        let hop = Hop { state, dst_mac: MacAddr([2; 6]), ..Hop::NO_ROUTE };
        let config = BuildConfig { snat: vec![snat], ..BuildConfig::default() };
        let built = build(None, desired, &mut opened.registry, &|_| hop, &config);
        let tables = built.tables.services.iter().flatten();
        let names = tables.map(|table| (table.id, &desired.service_ports[0].key)).collect();
        let shared = Some((&*opened.shared, Tick(5)));
        check(&built.tables, &opened.shared, &Known { tables: &built.tables, names: &names, shared })
    }

    fn explained(endpoints: usize, source: &str, destination: &str) -> Explanation {
        let question = Question::parse(source, destination).unwrap();
        with_tables(&desired(endpoints, |_| {}), HopState::Resolved, |_, _, known| explain(&question, known))
    }

    fn to_service(desired: &DesiredState, state: HopState) -> Explanation {
        let question = Question::parse("198.51.100.7:4000", "192.0.2.1:80").unwrap();
        with_tables(desired, state, |_, _, known| explain(&question, known))
    }

    #[test]
    fn a_packet_to_a_frontend_meets_every_rule_in_order() {
        let explanation = explained(3, "198.51.100.7:4000", "192.0.2.1:80/tcp");
        let rules: Vec<_> = explanation.steps.iter().map(|step| step.rule.as_str()).collect();
        assert_eq!(rules, ["steering", "frontend", "source ranges", "endpoints", "algorithm", "next hop", "mode"]);
        assert_eq!(explanation.service.as_deref(), Some("default/web"));
        assert_eq!(explanation.verdict, format!("sent on to {} in mode nat", explanation.endpoint.unwrap()));
        assert_eq!(explanation.drop_reason, None);
    }

    #[test]
    fn the_endpoint_is_the_one_that_a_worker_chooses() {
        for (algorithm, affinity) in [
            (Algorithm::Maglev, None),
            (Algorithm::SourceHash, None),
            (Algorithm::Random, Some(Duration::from_secs(9))),
        ] {
            let desired = desired(5, |port| (port.algorithm, port.affinity) = (algorithm, affinity));
            with_tables(&desired, HopState::Resolved, |tables, shared, known| {
                for port in 1..100 {
                    let source = SocketAddr::from(([198, 51, 100, port as u8], port));
                    let question = Question { source, ..Question::parse("1.1.1.1:1", "192.0.2.1:80").unwrap() };
                    let told = explain(&question, known).endpoint.unwrap();
                    let opening = Opening {
                        source: source.ip().into(),
                        source_port: Port::new(port),
                        destination: Addr::from_v4([192, 0, 2, 1]),
                        destination_port: Port::new(80),
                        protocol: Protocol::TCP,
                    };
                    let service = tables.services.iter().flatten().next().unwrap();
                    let id = Selector::new(1).select(service, tables, shared, &opening, Tick(5)).unwrap();
                    assert_eq!(IpAddr::from(tables.backend(id).unwrap().address), told.ip(), "{algorithm:?}");
                }
            });
        }
    }

    #[test]
    fn an_endpoint_that_affinity_remembers_is_told() {
        let desired = desired(5, |port| port.affinity = Some(Duration::from_secs(60)));
        with_tables(&desired, HopState::Resolved, |tables, shared, known| {
            let question = Question::parse("198.51.100.7:4000", "192.0.2.1:80").unwrap();
            let service = tables.services.iter().flatten().next().unwrap();
            for usable in &service.usable {
                shared.affinity.put(&question.source.ip().into(), service.id, usable.id, Tick(1), 1000);
                let explanation = explain(&question, known);
                assert_eq!(
                    explanation.endpoint.unwrap().ip(),
                    IpAddr::from(tables.backend(usable.id).unwrap().address)
                );
                assert!(explanation.steps.iter().any(|step| step.outcome == "remembered"), "{explanation:?}");
            }
        });
    }

    #[test]
    fn an_endpoint_that_is_set_aside_gives_way_to_the_next_of_the_table() {
        with_tables(&desired(3, |_| {}), HopState::Resolved, |tables, shared, known| {
            let question = Question::parse("198.51.100.7:4000", "192.0.2.1:80").unwrap();
            let mut told = Vec::new();
            for _ in 0..3 {
                let endpoint = explain(&question, known).endpoint.unwrap();
                told.push(endpoint);
                let row = tables.backends.iter().find(|row| IpAddr::from(row.address) == endpoint.ip()).unwrap();
                while !shared.health.failed(row.id, Tick(5)) {}
            }
            let last = explain(&question, known);
            assert_eq!(last.endpoint, Some(told[0]), "where all are set aside, none is");
            assert!(last.steps.iter().any(|step| step.rule == "set aside" && step.outcome == "stays"), "{last:?}");
            told.sort_unstable();
            told.dedup();
            assert_eq!(told.len(), 3);
        });
    }

    #[test]
    fn chance_names_no_endpoint_unless_there_is_one_alone() {
        for algorithm in [Algorithm::RoundRobin, Algorithm::Random, Algorithm::LeastConnections] {
            let explained = |n| to_service(&desired(n, |port| port.algorithm = algorithm), HopState::Resolved);
            assert_eq!(explained(3).endpoint, None);
            assert_eq!(explained(3).verdict, "sent on to one of 3 endpoints in mode nat");
            assert_eq!(explained(1).endpoint, Some("10.0.0.1:8080".parse().unwrap()));
        }
    }

    #[test]
    fn each_rule_that_stops_a_packet_says_so() {
        for (source, destination, verdict, reason, why) in [
            ("203.0.113.1:1", "192.0.2.1:80", "dropped", Some("source_range"), "loadBalancerSourceRanges"),
            ("198.51.100.7:1", "192.0.2.1:81", "rejected with a TCP RST", None, "no Service"),
            ("198.51.100.7:1", "192.0.2.1:80/sctp", "rejected with an SCTP ABORT", None, "192.0.2.1:80 sctp"),
            ("198.51.100.7:1", "192.0.2.1:80/udp", "rejected with an ICMP port unreachable", None, "192.0.2.1:80 udp"),
            ("198.51.100.7:1", "192.0.2.2:80", "left to the kernel", None, "not an address of ours"),
            ("198.51.100.7:1", "192.0.2.3:22", "left to the kernel", None, "the host's own"),
            ("198.51.100.7:1", "192.0.2.9:8000", "dropped", Some("no_flow"), "is for SNAT"),
            ("198.51.100.7:1", "192.0.2.9:80", "dropped", Some("no_flow"), "SNAT address"),
            ("192.0.2.1:1", "192.0.2.1:80", "dropped", Some("martian"), "an address of ours"),
            ("127.0.0.1:1", "192.0.2.1:80", "dropped", Some("martian"), "no machine's"),
            ("[2001:db8::1]:1", "192.0.2.1:80", "there is no such packet", None, "different families"),
        ] {
            let explanation = explained(3, source, destination);
            assert!(explanation.verdict.starts_with(verdict), "{explanation:?}");
            assert_eq!(explanation.drop_reason.as_deref(), reason, "{explanation:?}");
            assert!(explanation.steps.last().unwrap().why.contains(why), "{explanation:?}");
        }
    }

    #[test]
    fn without_an_endpoint_the_service_says_what_happens() {
        assert_eq!(to_service(&desired(0, |_| {}), HopState::Resolved).verdict, "rejected with a TCP RST");
        let dropping = desired(0, |port| port.no_endpoint = NoEndpoint::Drop);
        assert_eq!(to_service(&dropping, HopState::Resolved).drop_reason.as_deref(), Some("no_endpoint"));
    }

    #[test]
    fn the_next_hop_and_the_mode_are_told() {
        let nat = desired(1, |_| {});
        let reason = |state| to_service(&nat, state).drop_reason;
        assert_eq!(reason(HopState::Unresolved).as_deref(), Some("next_hop_unresolved"));
        assert_eq!(reason(HopState::NoRoute).as_deref(), Some("no_route"));
        let preserve = to_service(&desired(1, |port| port.mode = Mode::Preserve), HopState::Resolved);
        assert_eq!(preserve.verdict, "sent on to 10.0.0.1:8080 in mode preserve");
        // Another port than the Service's needs translation, whatever the mode.
        let moved = to_service(&desired(1, |port| port.mode = Mode::DsrIpip), HopState::Resolved);
        assert_eq!(moved.verdict, "sent on to 10.0.0.1:8080 in mode nat");
        let direct = |mode| {
            let change = |port: &mut ServicePort| {
                port.mode = mode;
                port.endpoints[0].port = 80;
            };
            to_service(&desired(1, change), HopState::Resolved).drop_reason
        };
        assert_eq!(direct(Mode::DsrL2).as_deref(), Some("not_on_link"));
        assert_eq!(direct(Mode::DsrGue).as_deref(), Some("no_tunnel_source"));
        let own = desired(1, |port| {
            port.mode = Mode::Preserve;
            port.endpoints[0].address = "198.51.100.7".parse().unwrap();
        });
        assert_eq!(to_service(&own, HopState::Resolved).verdict, "sent on to 198.51.100.7:8080 in mode nat");
    }

    #[test]
    fn questions_are_read_as_people_write_them() {
        assert!(Question::parse("[2001:db8::1]:5", "[2001:db8::2]:53/udp").is_ok_and(|q| q.protocol == Carried::Udp));
        assert!(Question::parse("1.2.3.4:1", "1.2.3.5:80/sctp").is_ok_and(|q| q.protocol == Carried::Sctp));
        assert!(Question::parse("1.2.3.4", "1.2.3.5:80/tcp").is_err());
        assert!(Question::parse("1.2.3.4:1", "1.2.3.5:80/dccp").is_err());
    }
}

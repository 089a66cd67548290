//! What a running instance tells about itself: the answers of the admin socket, as JSON, and what people ask for.
//!
//! The agent fills these and sends them; the commands read them back and show them (`crate::show`). Fields may be
//! added; a field's meaning stays.

mod filters;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb::Tick;
use lb::flow::FlowRecord;
use serde::{Deserialize, Serialize};
use translate::{BackendListing, ServiceListing, mode_name};
use worker::{HandOffCounters, WorkerSnapshot};
use xsk::QueueStatistics;

pub use filters::{BackendFilter, Filters};

/// `millrace status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Millrace's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Whether tables are published, workers run and new flows are taken.
    pub ready: bool,
    /// Whether no new flows are taken, for it is to stop (`millrace stop --drain`).
    pub draining: bool,
    /// How long it runs, in seconds.
    pub uptime_seconds: u64,
    /// How often tables were published.
    pub generation: u64,
    /// Services that have an address here.
    pub services: usize,
    /// Endpoints that get new flows.
    pub endpoints: usize,
    /// Flows over all workers.
    pub flows: u64,
    /// Most flows over all workers.
    pub flow_limit: u64,
    /// NICs.
    pub ports: Vec<PortStatus>,
    /// Workers.
    pub workers: Vec<WorkerStatus>,
    /// Frames dropped, by reason; reasons that did not occur are left out.
    pub drops: BTreeMap<String, u64>,
    /// Frames that crossed between workers.
    pub handoff: HandOff,
    /// Where the frames are.
    pub frames: Frames,
    /// What is wrong with the manifests or the configuration.
    pub errors: Vec<String>,
    /// What is surprising in them.
    pub warnings: Vec<String>,
    /// Addresses of ours that other machines answer for.
    pub conflicts: Vec<Conflict>,
    /// Documents of kinds that are not handled, by kind.
    pub skipped_kinds: BTreeMap<String, u64>,
    /// The nodes that settle between them who announces which VIP, this one first; empty where nobody settles that.
    #[serde(default)]
    pub members: Vec<MemberView>,
    /// Which of them announces each VIP; none where none does.
    #[serde(default)]
    pub owners: BTreeMap<IpAddr, Option<String>>,
}

/// A node that may announce VIPs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// `member`; or `joining`, `draining`, `excluded`, `handing-over`.
    pub standing: String,
    /// How many VIPs it announces.
    pub owned: usize,
    /// How long it was not heard, milliseconds; none of this node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub silent_ms: Option<u64>,
}

/// A NIC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortStatus {
    /// The interface's name.
    pub name: String,
    /// How the steering program is attached: `native` or `generic`.
    pub mode: String,
    /// Whether the driver moves frames without copying on every queue.
    pub zero_copy: bool,
    /// Queues.
    pub queues: usize,
    /// The link-layer address.
    pub mac: String,
    /// Largest IP packet, octets.
    pub mtu: u16,
    /// Packets that came in.
    pub received_packets: u64,
    /// Octets that came in.
    pub received_bytes: u64,
    /// Packets that went out.
    pub sent_packets: u64,
    /// Octets that went out.
    pub sent_bytes: u64,
    /// The kernel's counters of the sockets, summed over queues.
    pub xdp: XdpStatistics,
}

/// The kernel's counters of AF_XDP sockets (`XDP_STATISTICS`, `linux/if_xdp.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct XdpStatistics {
    /// Dropped for other reasons than those below.
    pub rx_dropped: u64,
    /// Invalid fill descriptors.
    pub rx_invalid_descs: u64,
    /// Invalid TX descriptors.
    pub tx_invalid_descs: u64,
    /// Dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that there was no fill descriptor.
    pub rx_fill_ring_empty_descs: u64,
    /// Times that there was no TX descriptor.
    pub tx_ring_empty_descs: u64,
    /// Wake-ups that failed.
    pub kick_errors: u64,
}

impl XdpStatistics {
    /// With their names, as in the kernel.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("rx_dropped", self.rx_dropped),
            ("rx_invalid_descs", self.rx_invalid_descs),
            ("tx_invalid_descs", self.tx_invalid_descs),
            ("rx_ring_full", self.rx_ring_full),
            ("rx_fill_ring_empty_descs", self.rx_fill_ring_empty_descs),
            ("tx_ring_empty_descs", self.tx_ring_empty_descs),
            ("kick_errors", self.kick_errors),
        ]
    }

    /// Adds those of another queue.
    pub fn add(&mut self, other: &QueueStatistics) {
        self.rx_dropped += other.rx_dropped;
        self.rx_invalid_descs += other.rx_invalid_descs;
        self.tx_invalid_descs += other.tx_invalid_descs;
        self.rx_ring_full += other.rx_ring_full;
        self.rx_fill_ring_empty_descs += other.rx_fill_ring_empty_descs;
        self.tx_ring_empty_descs += other.tx_ring_empty_descs;
        self.kick_errors += other.kick_errors;
    }
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u8,
    /// The core that it is pinned to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<usize>,
    /// Share of the last second or so that it worked, 0 to 1.
    pub busy_ratio: f64,
    /// Flows that it owns.
    pub flows: u64,
    /// Packets that came in by its queues.
    pub received_packets: u64,
    /// Packets that went out by its queues.
    pub sent_packets: u64,
    /// Frames that it dropped.
    pub drops: u64,
    /// Its queues.
    pub queues: usize,
    /// Times that it blocked for want of work.
    pub sleeps: u64,
    /// Frames of its own at hand.
    pub spare_frames: u64,
    /// What it did beside forwarding, by name.
    pub counters: BTreeMap<String, u64>,
}

impl WorkerStatus {
    /// From what it counted.
    #[must_use]
    pub fn of(worker: &WorkerSnapshot) -> Self {
        Self {
            id: worker.id.0,
            core: worker.core,
            busy_ratio: worker.busy_ratio,
            flows: worker.flows,
            received_packets: worker.queues.iter().map(|queue| queue.received.packets).sum(),
            sent_packets: worker.queues.iter().map(|queue| queue.sent.packets).sum(),
            drops: worker.drops.iter().map(|(_, count)| count).sum(),
            queues: worker.queues.len(),
            sleeps: worker.sleeps,
            spare_frames: worker.spare_frames,
            counters: worker.counters.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
        }
    }
}

/// Frames that crossed between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandOff {
    /// Given to other workers.
    pub sent: u64,
    /// Taken from other workers.
    pub received: u64,
    /// Refused by a full ring, and dropped.
    pub full: u64,
    /// Went home.
    pub home: u64,
}

impl From<HandOffCounters> for HandOff {
    fn from(c: HandOffCounters) -> Self {
        Self { sent: c.sent, received: c.received, full: c.full, home: c.home }
    }
}

/// Where the frames are. What is not `lost` is accounted for; while workers run, `held` is about a second old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Frames {
    /// All frames.
    pub total: u64,
    /// In workers' hands and between them.
    pub at_hand: u64,
    /// In the kernel's.
    pub held: u64,
    /// Nowhere.
    pub lost: u64,
}

/// Another machine answers for an address of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The interface where it was seen.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Who else has it.
    pub mac: String,
}

/// A row of `millrace services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What sort it is: `LoadBalancer`, `ClusterIP`…
    pub kind: String,
    /// Where it is served here, NodePorts left out.
    pub addresses: Vec<IpAddr>,
    /// Its ClusterIPs, served or not.
    pub cluster_ips: Vec<IpAddr>,
    /// The DNS name of an ExternalName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// Endpoints that get new flows.
    pub endpoints_ready: usize,
    /// All its endpoints.
    pub endpoints_total: usize,
    /// How an endpoint is chosen.
    pub algorithm: String,
    /// How packets get there.
    pub mode: String,
    /// Why nothing of it is served here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_served: Option<String>,
    /// `file:line` of its manifest.
    pub source: String,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// Its name, empty if it has none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `spec.ports[].port`.
    pub port: u16,
    /// Its NodePort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

impl From<&ServiceListing> for ServiceView {
    fn from(listing: &ServiceListing) -> Self {
        let port = |port: &translate::PortListing| PortView {
            name: port.name.clone(),
            protocol: port.protocol.clone(),
            port: port.port,
            node_port: port.node_port,
        };
        Self {
            namespace: listing.namespace.clone(),
            name: listing.name.clone(),
            kind: listing.kind.as_str().to_owned(),
            addresses: listing.addresses.clone(),
            cluster_ips: listing.cluster_ips.clone(),
            external_name: listing.external_name.clone(),
            ports: listing.ports.iter().map(port).collect(),
            endpoints_ready: listing.endpoints_ready,
            endpoints_total: listing.endpoints_total,
            algorithm: listing.algorithm.clone(),
            mode: listing.mode.clone(),
            not_served: listing.not_served.clone(),
            source: listing.source.clone(),
        }
    }
}

/// The state of an endpoint that is usable but gets no connections now, for it failed some.
pub const SET_ASIDE: &str = "set-aside";

/// A row of `millrace backends`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// The Service, `namespace/name`.
    pub service: String,
    /// The Service port's name, empty if it has none.
    pub port_name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port.
    pub port: u16,
    /// Its weight.
    pub weight: u16,
    /// How packets get there, as in `millrace.dev/mode`.
    pub mode: String,
    /// `usable`, `set-aside`, `draining` or `out`.
    pub state: String,
    /// Why it gets no new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Flows that it has.
    pub connections: u64,
    /// Whether `millrace drain` named it.
    pub drained: bool,
    /// The condition `ready`.
    pub ready: bool,
    /// The condition `serving`.
    pub serving: bool,
    /// The condition `terminating`.
    pub terminating: bool,
    /// Its health check, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<String>,
    /// What the health check found; absent before the first result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// The last probe's result in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_probe: Option<String>,
    /// Its pod, `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `file:line` of the object that names it.
    pub source: String,
}

impl BackendView {
    /// From its listing, with what only the running instance knows.
    #[must_use]
    pub fn new(listing: &BackendListing, connections: u64, drained: bool, last_probe: Option<String>) -> Self {
        Self {
            service: listing.service.to_string(),
            port_name: listing.port_name.clone(),
            protocol: listing.protocol.clone(),
            address: listing.address,
            port: listing.port,
            weight: listing.weight,
            mode: mode_name(listing.mode).to_owned(),
            state: listing.state.as_str().to_owned(),
            reason: listing.reason.clone(),
            connections,
            drained,
            ready: listing.ready,
            serving: listing.serving,
            terminating: listing.terminating,
            health_check: listing.health_check.as_ref().map(ToString::to_string),
            healthy: listing.healthy,
            last_probe,
            pod: listing.pod.clone(),
            node: listing.node.clone(),
            zone: listing.zone.clone(),
            source: listing.source.to_string(),
        }
    }
}

/// A row of `millrace flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client.
    pub client: SocketAddr,
    /// The frontend.
    pub vip: SocketAddr,
    /// What the endpoint sees as the client.
    pub snat: SocketAddr,
    /// The endpoint.
    pub backend: SocketAddr,
    /// How far it has come: `established`, `replied`…
    pub state: String,
    /// `nat`, `preserve` or one of `dsr-`.
    pub mode: String,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// Seconds since it was opened.
    pub age_seconds: u64,
    /// The worker that owns it.
    pub worker: u8,
    /// The Service, `namespace/name`; empty if it is gone.
    pub service: String,
    /// The link-layer hop that the client's packets come from.
    pub client_mac: String,
    /// The NIC that they come in by: its number in the configuration.
    pub client_port: u8,
}

impl FlowView {
    /// From a record, at this time; `service` is its Service's `namespace/name`, empty if it is gone.
    #[must_use]
    pub fn new(record: &FlowRecord, now: Tick, service: &str) -> Self {
        let socket = |(address, port): (wire::Addr, wire::Port)| SocketAddr::new(address.into(), port.number());
        Self {
            protocol: record.protocol.to_string(),
            client: socket(record.client),
            vip: socket(record.vip),
            snat: socket(record.snat),
            backend: socket(record.backend),
            state: record.state.label().to_owned(),
            mode: mode_name(record.mode).to_owned(),
            idle_seconds: seconds(now.since(record.last_seen)),
            age_seconds: seconds(now.since(record.opened_at)),
            worker: record.worker.0,
            service: service.to_owned(),
            client_mac: record.client_mac.to_string(),
            client_port: record.client_nic.0,
        }
    }
}

/// Ticks in whole seconds.
#[must_use]
pub const fn seconds(ticks: u32) -> u64 {
    ((ticks as u64) << Tick::SHIFT) / 1_000_000_000
}

/// `millrace explain`: what would happen to a packet, rule by rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The packet, as asked for.
    pub packet: String,
    /// The rules that it meets, in their order, up to the one that decides.
    pub steps: Vec<Step>,
    /// What becomes of it, in a sentence.
    pub verdict: String,
    /// The reason of a drop, as in `millrace_drops_total{reason}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<String>,
    /// The endpoint that it would get, where that is certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// The Service, `namespace/name`, where one serves the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// A rule that a packet meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The rule.
    pub rule: String,
    /// What it says about the packet, in a word or two.
    pub outcome: String,
    /// Why.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_seconds() {
        assert_eq!(seconds(Tick::from_millis(2500)), 2);
        assert_eq!(seconds(u32::MAX), 4_503_599);
    }
}

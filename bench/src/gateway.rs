//! A gateway in memory: one worker, one TCP Service with ten endpoints, no NIC.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use lb::build::{BuildConfig, build};
use lb::flow::{FlowFile, FlowFileConfig};
use lb::model::{
    Algorithm, DesiredState, Endpoint, EndpointState, Frontend, FrontendKind, Mode, NoEndpoint, Scope, ServicePort,
    ServicePortKey, VipAddress,
};
use lb::state::WorkerState;
use lb::tables::{Hop, HopState, PortRow, SelectionSeed, SnatAddress};
use lb::{PortId, Tables, WorkerId};
use wire::{MacAddr, Protocol};

/// The Service's address, port 80.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const ENDPOINTS: u8 = 10;

/// Tables and a worker with room for so many flows.
pub fn make(flows: usize) -> (Tables, WorkerState) {
    // 64,512 ports towards each of ten endpoints from each address: enough for the flows, half used at most.
    let addresses = (flows / (usize::from(ENDPOINTS) * 64_512 / 2) + 1).min(200) as u8;
    let snat: Vec<SnatAddress> = (0..addresses)
        .map(|n| SnatAddress {
            address: IpAddr::V4(Ipv4Addr::new(10, 2, 0, n + 1)).into(),
            index: u16::from(n),
            first_port: 1024,
            last_port: 65535,
            dedicated: true,
        })
        .collect();
    let opened = FlowFile::in_memory(&FlowFileConfig {
        workers: 1,
        flows: flows + flows / 8 + 64,
        services: 16,
        backends: 64,
        snat: snat.iter().map(|s| s.address).collect(),
        affinity_sources: 64,
        secret: *b"measured in runs",
        ..FlowFileConfig::default()
    })
    .expect("memory for the flow table");
    let mut registry = opened.registry;
    let port = |last| PortRow { mac: MacAddr([2, 0, 0, 0, 0, last]), mtu: 1500, virtual_device: false };
    let config = BuildConfig { ports: vec![port(1), port(2)], snat, seed: SelectionSeed(1, 2), ..Default::default() };
    let hop = |_: IpAddr| Hop {
        state: HopState::Resolved,
        port: PortId(1),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        src_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
    };
    let tables = build(None, &desired(), &mut registry, &hop, &config).tables;
    let table = opened.tables.into_iter().next().expect("one worker's flows");
    (tables, WorkerState::new(WorkerId(0), table, Arc::clone(&opened.shared), [7; 16]))
}

fn desired() -> DesiredState {
    let endpoint = |n| Endpoint {
        address: IpAddr::V4(Ipv4Addr::new(10, 1, 0, n)),
        port: 8080,
        weight: 1,
        state: EndpointState::Usable,
        node: None,
        zone: None,
        target: None,
    };
    let service = ServicePort {
        key: ServicePortKey {
            namespace: "default".into(),
            name: "bench".into(),
            port_name: String::new(),
            protocol: Protocol::TCP,
            ipv6: false,
            scope: Scope::All,
        },
        port: 80,
        frontends: vec![Frontend { address: VIP.into(), port: 80, kind: FrontendKind::LoadBalancer }],
        endpoints: (1..=ENDPOINTS).map(endpoint).collect(),
        algorithm: Algorithm::Maglev,
        mode: Mode::Nat,
        affinity: None,
        source_ranges: Vec::new(),
        no_endpoint: NoEndpoint::Reject,
        udp_timeout: None,
        drain: None,
        min_table_size: 0,
    };
    DesiredState {
        service_ports: vec![service],
        addresses: vec![VipAddress { address: VIP.into(), host_owned: false, echo: true }],
    }
}

//! A gateway in memory: one TCP or UDP Service with ten endpoints, no NIC.

use std::net::IpAddr;
use std::sync::Arc;

use lb::build::{BuildConfig, build};
use lb::flow::{FlowFile, FlowFileConfig, Pages};
use lb::model::{DesiredState, Endpoint, Frontend, FrontendKind, ServicePort, ServicePortKey, VipAddress};
use lb::state::WorkerState;
use lb::tables::{Hop, HopState, PortRow, SelectionSeed, SnatAddress};
use lb::{PortId, Tables, WorkerId};
use wire::{Addr, MacAddr, Protocol};

/// The Service's port.
pub const VIP_PORT: u16 = 80;
/// The endpoints' port.
pub const BACKEND_PORT: u16 = 8080;
const ENDPOINTS: u8 = 10;

/// What packets are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// IPv6, or IPv4.
    pub ipv6: bool,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// What a variant's name ends with that is on such pages.
pub fn suffix(pages: Pages) -> &'static str {
    if pages == Pages::Huge { " huge" } else { "" }
}

/// An address of ours or of an endpoint: which net, which host.
fn address(shape: Shape, net: u8, host: u8) -> Addr {
    if shape.ipv6 {
        Addr::from_v6([0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host])
    } else {
        Addr::from_v4([10, net, 0, host])
    }
}

/// The Service's address.
pub fn vip(shape: Shape) -> Addr {
    address(shape, 0, 10)
}

/// A SNAT address by its last octet.
pub fn snat_address(shape: Shape, host: u8) -> Addr {
    address(shape, 2, host)
}

/// An endpoint's address by its last octet.
pub fn backend_address(shape: Shape, host: u8) -> Addr {
    address(shape, 1, host)
}

/// Tables, and a worker with room for so many flows and some more.
pub fn make(shape: Shape, flows: usize, pages: Pages) -> (Tables, WorkerState) {
    with_limit(shape, flows + flows / 8 + 64, pages)
}

/// The same with room for exactly so many.
pub fn with_limit(shape: Shape, flows: usize, pages: Pages) -> (Tables, WorkerState) {
    let (tables, mut states) = with_workers(shape, 1, flows, pages);
    (tables, states.pop().expect("one worker"))
}

/// Tables, and so many workers with room for so many flows together.
pub fn with_workers(shape: Shape, workers: usize, flows: usize, pages: Pages) -> (Tables, Vec<WorkerState>) {
    // 64,512 ports towards each of ten endpoints from each address: enough for the flows, half used at most.
    let addresses = (flows / (usize::from(ENDPOINTS) * 64_512 / 2) + 1).min(200) as u8;
    let snat: Vec<SnatAddress> = (0..addresses)
        .map(|n| SnatAddress {
            address: snat_address(shape, n + 1),
            index: u16::from(n),
            first_port: 1024,
            last_port: 65535,
            dedicated: true,
        })
        .collect();
    let opened = FlowFile::in_memory(&FlowFileConfig {
        workers,
        flows,
        services: 16,
        backends: 64,
        snat: snat.iter().map(|s| s.address).collect(),
        affinity_sources: 64,
        secret: *b"measured in runs",
        pages,
        ..FlowFileConfig::default()
    })
    .expect("memory for the flow table");
    let mut registry = opened.registry;
    let port = |last| PortRow { mac: MacAddr([2, 0, 0, 0, 0, last]), mtu: 1500, virtual_device: false };
    let config = BuildConfig { ports: vec![port(1)], snat, seed: SelectionSeed(1, 2), ..Default::default() };
    let hop = |_: IpAddr| Hop {
        state: HopState::Resolved,
        port: PortId(0),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        on_link: true,
        tags: wire::Tags::NONE,
    };
    let tables = build(None, &desired(shape), &mut registry, &hop, &config).tables;
    let states = opened.tables.into_iter().enumerate();
    let states = states
        .map(|(id, table)| WorkerState::new(WorkerId(id as u8), table, Arc::clone(&opened.shared), [7 + id as u8; 16]));
    (tables, states.collect())
}

fn desired(shape: Shape) -> DesiredState {
    let endpoint = |n| Endpoint::new(backend_address(shape, n).into(), BACKEND_PORT);
    let vip = IpAddr::from(vip(shape));
    let service = ServicePort {
        frontends: vec![Frontend { address: vip, port: VIP_PORT, kind: FrontendKind::LoadBalancer }],
        endpoints: (1..=ENDPOINTS).map(endpoint).collect(),
        ..ServicePort::new(ServicePortKey::new("default", "bench", shape.protocol, shape.ipv6), VIP_PORT)
    };
    DesiredState {
        service_ports: vec![service.into()].into(),
        addresses: vec![VipAddress { address: vip, host_owned: false, echo: true, internal: false }],
    }
}

//! Real flows through `lb`, on NICs in memory: requests and replies, by however many queues and workers, also where a
//! flow's packets move to another queue.

mod rig;

use std::{collections::HashMap, net::IpAddr, path::PathBuf, sync::Arc};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use lb::{
    DropReason, PortId, Tables,
    build::{BuildConfig, build},
    flow::{FlowFile, FlowFileConfig},
    model::{DesiredState, Endpoint, Frontend, FrontendKind, ServicePort, ServicePortKey, VipAddress},
    state::WorkerState,
    tables::{Hop, HopState, PortRow, SnatAddress},
};
use millrace_worker::{DataplaneConfig, Snapshot};
use publish::Slot;
use rig::{NARROW, Rig, inject, until};
use wire::{Addr, MacAddr, Protocol};
use xsk::memory::{Wire, WireLimits};

const VIP: [u8; 4] = [198, 51, 100, 1];
const SNAT: [u8; 4] = [198, 51, 100, 250];
const BACKENDS: [[u8; 4]; 3] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// A folder for the flow file, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("millrace-worker-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the folder for temporary files harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn desired() -> DesiredState {
    let endpoint = |address| Endpoint::new(IpAddr::from(address), 5353);
    let key = ServicePortKey::new("default", "dns", Protocol::UDP, false);
    let address = IpAddr::from(VIP);
    DesiredState {
        service_ports: [Arc::new(ServicePort {
            frontends: vec![Frontend { address, port: 53, kind: FrontendKind::LoadBalancer }],
            endpoints: BACKENDS.into_iter().map(endpoint).collect(),
            ..ServicePort::new(key, 53)
        })]
        .into(),
        addresses: vec![VipAddress { address, host_owned: false, echo: true, internal: false }],
    }
}

/// Workers whose queues are all of NIC 0, with the Service in their tables.
fn start(queues: &[&[(u8, WireLimits)]], name: &str) -> (Rig<WorkerState>, Folder) {
    let folder = Folder::new(name);
    let config = FlowFileConfig {
        workers: queues.len(),
        flows: 65_536,
        services: 64,
        backends: 256,
        snat: vec![Addr::from_v4(SNAT)],
        affinity_sources: 1024,
        boot_id: [1; 16],
        secret: [2; 16],
        ..FlowFileConfig::default()
    };
    let mut opened = FlowFile::open(&folder.0, &config).unwrap();
    let mac = MacAddr(GATEWAY_MAC);
    let build_config = BuildConfig {
        ports: vec![PortRow { mac, mtu: 1500, virtual_device: false }],
        snat: vec![SnatAddress {
            address: Addr::from_v4(SNAT),
            index: 0,
            first_port: 1024,
            last_port: 65_535,
            dedicated: true,
        }],
        ..BuildConfig::default()
    };
    let hop = |_: IpAddr| Hop {
        state: HopState::Resolved,
        port: PortId(0),
        dst_mac: MacAddr(BACKEND_MAC),
        src_mac: mac,
        mtu: 1500,
        on_link: true,
        tags: wire::Tags::NONE,
    };
    let tables: Tables = build(None, &desired(), &mut opened.registry, &hop, &build_config).tables;
    let mut flows = opened.tables.into_iter();
    let shared = opened.shared;
    let rig = Rig::with(queues, 512, DataplaneConfig::default(), Arc::new(Slot::new(tables)), |id| {
        WorkerState::new(id, flows.next().unwrap(), Arc::clone(&shared), [id.0; 16])
    });
    (rig, folder)
}

/// An address and a port.
type Place = ([u8; 4], u16);

fn datagram(from_mac: [u8; 6], src: Place, dst: Place, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from_mac, GATEWAY_MAC).ipv4(src.0, dst.0, 64).udp(src.1, dst.1);
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// Source, destination and payload of what was sent.
fn read(packet: &[u8]) -> (Place, Place, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(packet).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
    let header = ip.header();
    let whole = udp.to_header();
    let sum = whole.calc_checksum_ipv4_raw(header.source(), header.destination(), udp.payload()).unwrap();
    assert_eq!(whole.checksum, sum, "the checksum is the one of the rewritten packet");
    ((header.source(), udp.source_port()), (header.destination(), udp.destination_port()), udp.payload().to_vec())
}

fn client(n: u16) -> Place {
    ([192, 0, 2, (n % 200) as u8 + 1], 10_000 + n)
}

/// Sends `count` requests by wires that `by` picks, answers each as its backend would by another wire, and says what
/// clients received, by client number.
fn exchange(wires: &[&Wire], count: u16, turn: usize) -> HashMap<u16, Vec<u8>> {
    let mut answers = HashMap::new();
    let mut serve = || {
        for packet in wires.iter().flat_map(|wire| wire.collect()) {
            let (src, dst, payload) = read(&packet);
            let n = u16::from_be_bytes([payload[0], payload[1]]);
            if BACKENDS.contains(&dst.0) {
                assert_eq!((src.0, dst.1, &packet[..6]), (SNAT, 5353, &BACKEND_MAC[..]));
                let reply = datagram(BACKEND_MAC, dst, src, &[payload[0], payload[1], b'!']);
                inject(wires[(usize::from(n) + turn) % wires.len()], &reply);
            } else {
                assert_eq!((src, dst, &packet[..6]), ((VIP, 53), client(n), &CLIENT_MAC[..]));
                assert_eq!(answers.insert(n, payload), None, "answered twice");
            }
        }
        answers.len()
    };
    for n in 0..count {
        let request = datagram(CLIENT_MAC, client(n), (VIP, 53), &n.to_be_bytes());
        inject(wires[(usize::from(n) + turn) % wires.len()], &request);
        serve();
    }
    until("every request was answered", || serve() == usize::from(count));
    answers
}

fn no_drops(snapshot: &Snapshot) {
    for &reason in DropReason::ALL {
        assert_eq!(snapshot.drops(reason), 0, "{reason:?}");
    }
}

#[test]
fn requests_and_replies_flow_with_1_2_and_4_queues_and_1_and_2_workers() {
    let one: &[(u8, WireLimits)] = &[(0, NARROW)];
    let two: &[(u8, WireLimits)] = &[(0, NARROW), (0, NARROW)];
    let four: &[(u8, WireLimits)] = &[(0, NARROW), (0, NARROW), (0, NARROW), (0, NARROW)];
    for (case, queues) in [vec![one], vec![two], vec![four], vec![one, one], vec![two, two]].into_iter().enumerate() {
        let (rig, _folder) = start(&queues, &format!("flow-{case}"));
        let wires: Vec<&Wire> = rig.wires.iter().flatten().collect();
        let answers = exchange(&wires, 1_000, 0);
        assert!((0..1_000).all(|n: u16| answers[&n] == [n.to_be_bytes()[0], n.to_be_bytes()[1], b'!']));
        no_drops(&rig.dataplane.snapshot());
        let flows = rig.dataplane.export_flows(5_000, &mut |_| true);
        assert_eq!(flows.len(), 1_000);
        assert_eq!(rig.dataplane.export_flows(10, &mut |flow| flow.client.1.number() == 10_007).len(), 1);
        let report = rig.stop();
        assert_eq!(report.workers.iter().map(|worker| worker.state.flows.len()).sum::<usize>(), 1_000);
    }
}

#[test]
fn a_flow_whose_packets_move_to_another_queue_stays_one_flow() {
    let one: &[(u8, WireLimits)] = &[(0, NARROW)];
    let (rig, _folder) = start(&[one, one], "move");
    let wires: Vec<&Wire> = rig.wires.iter().flatten().collect();
    exchange(&wires, 500, 0);
    assert_eq!(rig.dataplane.snapshot().hand_off().sent, 0, "while requests and replies stay, nothing crosses");
    // Now every packet of every flow, in both directions, comes by the other worker's queue.
    exchange(&wires, 500, 1);
    let snapshot = rig.dataplane.snapshot();
    no_drops(&snapshot);
    assert_eq!(snapshot.hand_off().sent, 1_000);
    let report = rig.stop();
    assert_eq!(report.workers.iter().map(|worker| worker.state.flows.len()).sum::<usize>(), 500);
}

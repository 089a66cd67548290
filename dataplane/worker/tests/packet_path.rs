//! Real workers with `lb`'s own state, real tables and NICs in memory: opening, forwarding, replying, rejecting,
//! answering and handing over cost no allocation in a worker's thread.

mod counting;
mod rig;

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    sync::Arc,
};

use counting::{COUNTED, allocations};
use etherparse::{Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use lb::{
    DropReason, Emission, Now, PortId, Tables, Verdict, WorkerId,
    build::{BuildConfig, build},
    counters::Counters,
    flow::{FlowFile, FlowFileConfig, FlowRecord},
    handshake::Handshakes,
    model::{DesiredState, Endpoint, Frontend, FrontendKind, ServicePort, ServicePortKey, VipAddress},
    state::WorkerState,
    tables::{Hop, HopState, PortRow, SnatAddress},
};
use millrace_worker::{Dataplane, DataplaneConfig, Decide, PlannedQueue, WorkerPlan};
use publish::Slot;
use rig::{NARROW, inject, plans, until};
use wire::{MacAddr, Protocol};
use xsk::{
    Frame, Queue, QueueStatistics,
    memory::{MemoryQueue, Wire},
};

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Flows of each kind in a round.
const FLOWS: u16 = 64;

/// `lb`'s state; its first burst makes the thread one that is counted.
struct Counted(WorkerState);

impl Decide for Counted {
    fn process(&mut self, burst: &mut [lb::Frame<'_>], now: Now, tables: &Tables, verdicts: &mut [Verdict]) {
        COUNTED.set(true);
        Decide::process(&mut self.0, burst, now, tables, verdicts);
    }

    fn housekeep(&mut self, now: Now, tables: &Tables) -> bool {
        Decide::housekeep(&mut self.0, now, tables)
    }

    fn set_overloaded(&mut self, overloaded: bool) {
        Decide::set_overloaded(&mut self.0, overloaded);
    }

    fn emit(&mut self, now: Now, tables: &Tables, room: &mut [u8]) -> Option<Emission> {
        Decide::emit(&mut self.0, now, tables, room)
    }

    fn next_emission(&self) -> Option<Now> {
        Decide::next_emission(&self.0)
    }

    fn flows(&self) -> usize {
        Decide::flows(&self.0)
    }

    fn worker(&self) -> WorkerId {
        Decide::worker(&self.0)
    }

    fn counters(&self) -> Counters {
        Decide::counters(&self.0)
    }

    fn handshakes(&self) -> Handshakes {
        Decide::handshakes(&self.0)
    }

    fn export(&self, from: u32, slots: u32, into: &mut Vec<FlowRecord>) -> Option<u32> {
        Decide::export(&self.0, from, slots, into)
    }
}

/// A NIC in memory whose copies of what it sent are not the worker's allocations.
struct Nic(MemoryQueue);

impl Nic {
    fn uncounted<T>(&mut self, work: impl FnOnce(&mut MemoryQueue) -> T) -> T {
        let counted = COUNTED.replace(false);
        let result = work(&mut self.0);
        COUNTED.set(counted);
        result
    }
}

impl Queue for Nic {
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize) -> usize {
        self.0.receive(into, max)
    }

    fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        self.uncounted(|queue| queue.send(frames))
    }

    fn reclaim(&mut self, pool: &mut Vec<Frame>) -> usize {
        self.0.reclaim(pool)
    }

    fn refill(&mut self, pool: &mut Vec<Frame>) -> usize {
        self.uncounted(|queue| queue.refill(pool))
    }

    fn kick(&mut self) -> bool {
        self.uncounted(MemoryQueue::kick)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn held(&self) -> usize {
        self.0.held()
    }

    fn statistics(&self) -> QueueStatistics {
        self.0.statistics()
    }

    fn zero_copy(&self) -> bool {
        self.0.zero_copy()
    }

    fn can_send(&self) -> bool {
        self.0.can_send()
    }
}

/// One of the four kinds of traffic.
#[derive(Clone, Copy, Debug)]
struct Kind {
    ipv6: bool,
    tcp: bool,
}

const KINDS: [Kind; 4] = [
    Kind { ipv6: false, tcp: true },
    Kind { ipv6: false, tcp: false },
    Kind { ipv6: true, tcp: true },
    Kind { ipv6: true, tcp: false },
];

impl Kind {
    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        if self.ipv6 { v6 } else { v4 }.parse().unwrap()
    }

    fn vip(self) -> IpAddr {
        self.pick("198.51.100.1", "2001:db8::1")
    }

    fn snat(self) -> IpAddr {
        self.pick("198.51.100.250", "2001:db8::250")
    }

    fn client(self) -> IpAddr {
        self.pick("192.0.2.1", "2001:db8:c::1")
    }

    fn service_port(self) -> ServicePort {
        let backend = |n: u8| self.pick(&format!("10.0.0.{n}"), &format!("2001:db8:b::{n}"));
        let endpoint = |n| Endpoint::new(backend(n), 8080);
        let key =
            ServicePortKey::new("default", "web", if self.tcp { Protocol::TCP } else { Protocol::UDP }, self.ipv6);
        ServicePort {
            frontends: vec![Frontend { address: self.vip(), port: 80, kind: FrontendKind::LoadBalancer }],
            endpoints: (1..=3).map(endpoint).collect(),
            ..ServicePort::new(key, 80)
        }
    }

    /// A packet; `flags` are SYN and ACK.
    fn packet(self, mac: [u8; 6], src: SocketAddr, dst: SocketAddr, flags: (bool, bool)) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(mac, GATEWAY_MAC);
        let ip = match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
            _ => panic!("one family"),
        };
        let mut packet = Vec::new();
        if self.tcp {
            let mut step = ip.tcp(src.port(), dst.port(), 1000, 4096);
            step = if flags.0 { step.syn() } else { step };
            step = if flags.1 { step.ack(1001) } else { step };
            step.write(&mut packet, &[]).unwrap();
        } else {
            ip.udp(src.port(), dst.port()).write(&mut packet, b"question?").unwrap();
        }
        packet
    }
}

/// Source and destination of what was sent, where it is TCP or UDP.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let sliced = SlicedPacket::from_ethernet(packet).unwrap();
    let (src, dst): (IpAddr, IpAddr) = match sliced.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let (from, to) = match sliced.transport? {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        _ => return None,
    };
    Some((SocketAddr::new(src, from), SocketAddr::new(dst, to)))
}

fn arp_request() -> Vec<u8> {
    let (IpAddr::V4(client), IpAddr::V4(vip)) = (KINDS[0].client(), KINDS[0].vip()) else { panic!("IPv4") };
    let (client, vip) = (client.octets(), vip.octets());
    [&[0xff; 6][..], &CLIENT_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &CLIENT_MAC, &client, &[0; 6], &vip].concat()
}

fn solicitation() -> Vec<u8> {
    let (IpAddr::V6(client), IpAddr::V6(vip)) = (KINDS[2].client(), KINDS[2].vip()) else { panic!("IPv6") };
    let vip = vip.octets();
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&vip[13..]);
    let body = [&vip[..], &[1, 1], &CLIENT_MAC].concat();
    let kind = Icmpv6Type::Unknown { type_u8: 135, code_u8: 0, bytes5to8: [0; 4] };
    let link = PacketBuilder::ethernet2(CLIENT_MAC, [0x33, 0x33, 0xff, group[13], group[14], group[15]]);
    let mut packet = Vec::new();
    link.ipv6(client.octets(), group, 255).icmpv6(kind).write(&mut packet, &body).unwrap();
    packet
}

/// Two workers with a queue each and a Service of each kind.
struct Gateway {
    dataplane: Dataplane<Counted>,
    wires: Vec<Wire>,
    injected: usize,
    settled: usize,
}

impl Gateway {
    fn start() -> Self {
        let snat = [KINDS[0], KINDS[2]].map(|kind| kind.snat().into());
        let config = FlowFileConfig {
            workers: 2,
            flows: 65_536,
            services: 64,
            backends: 256,
            snat: snat.to_vec(),
            affinity_sources: 1024,
            secret: [2; 16],
            ..FlowFileConfig::default()
        };
        let mut opened = FlowFile::in_memory(&config).unwrap();
        let rows = snat.into_iter().enumerate().map(|(index, address)| SnatAddress {
            address,
            index: index as u16,
            first_port: 1024,
            last_port: 65_535,
            dedicated: true,
        });
        let mac = MacAddr(GATEWAY_MAC);
        let build_config = BuildConfig {
            ports: vec![PortRow { mac, mtu: 1500, virtual_device: false }],
            snat: rows.collect(),
            ..BuildConfig::default()
        };
        let desired = DesiredState {
            service_ports: KINDS.iter().map(|kind| kind.service_port().into()).collect(),
            addresses: [KINDS[0], KINDS[2]]
                .map(|kind| VipAddress { address: kind.vip(), host_owned: false, echo: true, internal: false })
                .to_vec(),
        };
        let dst_mac = MacAddr(BACKEND_MAC);
        let hop = |_: IpAddr| Hop {
            state: HopState::Resolved,
            port: PortId(0),
            dst_mac,
            src_mac: mac,
            mtu: 1500,
            on_link: true,
            tags: wire::Tags::NONE,
        };
        let tables = build(None, &desired, &mut opened.registry, &hop, &build_config).tables;
        let mut flows = opened.tables.into_iter();
        let (umem, plans, wires) = plans(&[&[(0, NARROW)], &[(0, NARROW)]], 512, |id| {
            Counted(WorkerState::new(id, flows.next().unwrap(), Arc::clone(&opened.shared), [id.0; 16]))
        });
        let plans = plans.into_iter().map(|WorkerPlan { core, queues, state, frames }| {
            let queues =
                queues.into_iter().map(|planned| PlannedQueue { port: planned.port, queue: Nic(planned.queue) });
            WorkerPlan { core, queues: queues.collect(), state, frames }
        });
        let tables = Arc::new(Slot::new(tables));
        let dataplane = Dataplane::start(umem, plans.collect(), tables, DataplaneConfig::default()).unwrap();
        Self { dataplane, wires: wires.into_iter().flatten().collect(), injected: 0, settled: 0 }
    }

    fn inject(&mut self, worker: usize, packet: &[u8]) {
        inject(&self.wires[worker % 2], packet);
        self.injected += 1;
    }

    fn dropped(&self) -> usize {
        let snapshot = self.dataplane.snapshot();
        DropReason::ALL.iter().map(|&reason| snapshot.drops(reason) as usize).sum()
    }

    /// What was sent until every packet so far was sent on, answered or dropped.
    fn settle(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        until("every packet was decided on", || {
            sent.extend(self.wires.iter().flat_map(Wire::collect));
            self.settled + sent.len() + self.dropped() >= self.injected
        });
        self.settled += sent.len();
        sent
    }

    /// New flows of a kind from ports `first` on, with all that comes of them, each also by the other worker's queue.
    fn round(&mut self, kind: Kind, first: u16) {
        let client = |n| SocketAddr::new(kind.client(), first + n);
        let vip = SocketAddr::new(kind.vip(), 80);
        for n in 0..FLOWS {
            self.inject(n.into(), &kind.packet(CLIENT_MAC, client(n), vip, (true, false)));
        }
        let opened: Vec<_> = self.settle().iter().map(|packet| ends(packet).unwrap()).collect();
        assert_eq!(opened.len(), usize::from(FLOWS), "{kind:?}");
        assert!(opened.iter().all(|(src, dst)| (src.ip(), dst.port()) == (kind.snat(), 8080)), "{kind:?}: {opened:?}");
        for worker in [0, 1] {
            for (src, dst) in &opened {
                self.inject(worker, &kind.packet(BACKEND_MAC, *dst, *src, (true, true)));
            }
            let replies = self.settle();
            assert!(replies.iter().all(|packet| ends(packet).unwrap().0 == vip), "{kind:?}");
            assert_eq!(replies.len(), opened.len(), "{kind:?}");
            for n in 0..FLOWS {
                self.inject(worker, &kind.packet(CLIENT_MAC, client(n), vip, (false, true)));
            }
            assert_eq!(self.settle().len(), opened.len(), "{kind:?}");
            for n in 0..FLOWS {
                let nowhere = SocketAddr::new(kind.vip(), 99);
                self.inject(worker, &kind.packet(CLIENT_MAC, client(n), nowhere, (true, false)));
            }
            assert!(!self.settle().is_empty(), "{kind:?} is not rejected");
            self.inject(worker, &arp_request());
            self.inject(worker, &solicitation());
            assert_eq!(self.settle().len(), 2, "an address is not answered for");
        }
    }
}

#[test]
fn every_kind_of_packet_through_two_workers_allocates_nothing() {
    let mut gateway = Gateway::start();
    for kind in KINDS {
        gateway.round(kind, 2000);
    }
    let (before, dropped) = (allocations(), gateway.dropped());
    let handed = gateway.dataplane.snapshot().hand_off().sent;
    for turn in 1..=5 {
        for kind in KINDS {
            gateway.round(kind, 2000 + turn * FLOWS);
        }
    }
    assert_eq!(allocations() - before, 0, "workers allocate");
    let crossed = gateway.dataplane.snapshot().hand_off().sent - handed;
    println!("{} packets, {crossed} of them crossed, {} dropped", gateway.injected, gateway.dropped() - dropped);
    // Of the two passes of replies and of data one half each is not the owner's.
    assert!(crossed >= 5 * 4 * 2 * u64::from(FLOWS), "only {crossed} packets crossed");
    let report = gateway.dataplane.stop();
    assert!(report.frames.balanced(), "{:?}", report.frames);
    let flows: usize = report.workers.iter().map(|worker| worker.state.0.flows.len()).sum();
    assert_eq!(flows, 6 * 4 * usize::from(FLOWS));
    // The counter counts.
    COUNTED.set(true);
    drop(std::hint::black_box(vec![1u8]));
    COUNTED.set(false);
    assert!(allocations() > before);
}

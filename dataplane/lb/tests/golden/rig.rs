//! A gateway without NICs: real tables, a real flow file, one or more workers that share it.
//!
//! Port 0 is outside, where clients are; port 1 is inside, where endpoints are. Each endpoint and each client is a
//! neighbour with a MAC of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lb::build::{BuildConfig, build, rehop};
use lb::counters::Counters;
use lb::flow::{FlowFile, FlowFileConfig, Opened};
use lb::model::{DesiredState, Endpoint, Frontend, FrontendKind, ServicePort, ServicePortKey, VipAddress};
use lb::process::process;
use lb::registry::Registry;
use lb::shared::Shared;
use lb::state::WorkerState;
use lb::tables::{Hop, HopState, PortRow, SelectionSeed, SnatAddress};
use lb::{DropReason, Emission, Frame, Now, PortId, Tables, Verdict, WorkerId, emit};
use wire::{Addr, MacAddr, Protocol};

use crate::packet::{SYN, Segment, Tcp};

pub const OUTSIDE: PortId = PortId(0);
pub const INSIDE: PortId = PortId(1);
pub const OUTSIDE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub const INSIDE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xc, 1]);
/// Room of a frame.
pub const ROOM: usize = 2048;

/// One of the four kinds of traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    pub ipv6: bool,
    pub protocol: Protocol,
}

/// Both families, both protocols.
pub const KINDS: [Kind; 4] = [
    Kind { ipv6: false, protocol: Protocol::TCP },
    Kind { ipv6: false, protocol: Protocol::UDP },
    Kind { ipv6: true, protocol: Protocol::TCP },
    Kind { ipv6: true, protocol: Protocol::UDP },
];
pub const TCP4: Kind = KINDS[0];
pub const UDP4: Kind = KINDS[1];
pub const TCP6: Kind = KINDS[2];
pub const UDP6: Kind = KINDS[3];

impl Kind {
    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        if self.ipv6 { v6 } else { v4 }.parse().unwrap()
    }

    pub fn vip(self) -> IpAddr {
        self.pick("10.0.0.10", "2001:db8::10")
    }

    /// An address of the host, served on port 30080.
    pub fn host(self) -> IpAddr {
        self.pick("10.0.0.1", "2001:db8::1")
    }

    /// A VIP that does not answer ping.
    pub fn silent_vip(self) -> IpAddr {
        self.pick("10.0.0.11", "2001:db8::11")
    }

    pub fn snat(self) -> IpAddr {
        self.pick("10.1.0.100", "2001:db8:b::100")
    }

    pub fn backend(self, n: u8) -> SocketAddr {
        SocketAddr::new(self.pick(&format!("10.1.0.{n}"), &format!("2001:db8:b::{n}")), 8080)
    }

    pub fn client(self, n: u8) -> IpAddr {
        self.pick(&format!("192.0.2.{n}"), &format!("2001:db8:c:{n}::1"))
    }

    /// A client's first packet to the Service.
    pub fn opening(self, port: u16) -> Segment {
        self.opening_of(7, port)
    }

    pub fn opening_of(self, client: u8, port: u16) -> Segment {
        Segment {
            src_mac: CLIENT_MAC,
            dst_mac: OUTSIDE_MAC,
            src: SocketAddr::new(self.client(client), port),
            dst: SocketAddr::new(self.vip(), 80),
            ttl: 64,
            tcp: (self.protocol == Protocol::TCP).then_some(Tcp { flags: SYN, seq: 1000, ack: 0 }),
            payload: if self.protocol == Protocol::TCP { vec![] } else { b"question?".to_vec() },
        }
    }
}

pub fn backend_mac(address: IpAddr) -> MacAddr {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    MacAddr([2, 0, 0, 0, 0xb, last])
}

/// How an endpoint is reached.
pub fn usual_hop(address: IpAddr) -> Hop {
    Hop {
        state: HopState::Resolved,
        port: INSIDE,
        dst_mac: backend_mac(address),
        src_mac: INSIDE_MAC,
        mtu: 1500,
        on_link: true,
        tags: wire::Tags::NONE,
    }
}

/// How the gateway is set up.
pub struct Rig {
    pub desired: DesiredState,
    pub config: BuildConfig,
    /// Endpoints that are reached otherwise than over a resolved neighbour.
    pub hops: Vec<(IpAddr, Hop)>,
    pub tables: Tables,
    pub workers: Vec<WorkerState>,
    pub shared: Arc<Shared>,
    pub now: Now,
    registry: Registry,
}

/// What becomes of a frame, and the frame.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub frame: Vec<u8>,
}

impl Outcome {
    pub fn sent(&self, port: PortId) -> Segment {
        assert_eq!(self.verdict, Verdict::Tx(port));
        Segment::read(&self.frame)
    }

    pub fn dropped(&self, reason: DropReason) {
        assert_eq!(self.verdict, Verdict::Drop(reason));
    }

    pub fn handed_to(&self, worker: u8) {
        assert_eq!(self.verdict, Verdict::HandOff(WorkerId(worker)));
    }
}

pub fn service_port(kind: Kind, name: &str, backends: &[u8]) -> ServicePort {
    let endpoint = |&n: &u8| Endpoint::new(kind.backend(n).ip(), kind.backend(n).port());
    ServicePort {
        frontends: vec![
            Frontend { address: kind.vip(), port: 80, kind: FrontendKind::LoadBalancer },
            Frontend { address: kind.host(), port: 30080, kind: FrontendKind::NodePort },
        ],
        endpoints: backends.iter().map(endpoint).collect(),
        ..ServicePort::new(ServicePortKey::new("default", name, kind.protocol, kind.ipv6), 80)
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(1, 1024)
    }

    /// One Service port for each kind of traffic, three endpoints each.
    pub fn with(workers: usize, flows: usize) -> Self {
        Self::with_snat(workers, flows, Self::snat())
    }

    /// A SNAT address of each family, with all its ports.
    pub fn snat() -> Vec<SnatAddress> {
        let address = |(index, kind): (usize, &Kind)| SnatAddress {
            address: kind.snat().into(),
            index: index as u16,
            first_port: 1024,
            last_port: 65535,
            dedicated: true,
        };
        [TCP4, TCP6].iter().enumerate().map(address).collect()
    }

    pub fn with_snat(workers: usize, flows: usize, snat: Vec<SnatAddress>) -> Self {
        let opened = FlowFile::in_memory(&Self::file_config(workers, flows, &snat)).unwrap();
        Self::over(opened, snat)
    }

    /// The sizes of a flow file for this gateway.
    pub fn file_config(workers: usize, flows: usize, snat: &[SnatAddress]) -> FlowFileConfig {
        FlowFileConfig {
            workers,
            flows,
            services: 64,
            backends: 256,
            snat: snat.iter().map(|snat| snat.address).collect(),
            affinity_sources: 1024,
            secret: *b"nobody knows it.",
            ..FlowFileConfig::default()
        }
    }

    /// Over a flow file that is open.
    pub fn over(opened: Opened, snat: Vec<SnatAddress>) -> Self {
        let port = |mac| PortRow { mac, mtu: 1500, virtual_device: false };
        let config = BuildConfig {
            ports: vec![port(OUTSIDE_MAC), port(INSIDE_MAC)],
            snat,
            seed: SelectionSeed(1, 2),
            ..BuildConfig::default()
        };
        let addresses = [TCP4, TCP6].iter().flat_map(|kind| {
            [
                VipAddress { address: kind.vip(), host_owned: false, echo: true, internal: false },
                VipAddress { address: kind.silent_vip(), host_owned: false, echo: false, internal: false },
                VipAddress { address: kind.host(), host_owned: true, echo: false, internal: false },
            ]
        });
        let desired = DesiredState {
            service_ports: KINDS.iter().map(|&kind| service_port(kind, "web", &[1, 2, 3]).into()).collect(),
            addresses: addresses.collect(),
        };
        let states = opened.tables.into_iter().enumerate().map(|(n, table)| {
            WorkerState::new(WorkerId(n as u8), table, Arc::clone(&opened.shared), [n as u8 + 1; 16])
        });
        let mut rig = Self {
            desired,
            config,
            hops: vec![],
            tables: Tables::default(),
            workers: states.collect(),
            shared: opened.shared,
            now: Now(1_000_000_000_000),
            registry: opened.registry,
        };
        rig.rebuild();
        rig
    }

    /// Publishes what `desired` and `config` say now.
    pub fn rebuild(&mut self) {
        let special = self.hops.clone();
        let hops = move |address: IpAddr| {
            special.iter().find(|(special, _)| *special == address).map_or(usual_hop(address), |(_, hop)| *hop)
        };
        let built = build(Some(&self.tables), &self.desired, &mut self.registry, &hops, &self.config);
        assert_eq!(built.refused, 0);
        self.tables = rehop(&built.tables, &hops);
    }

    /// Changes every Service port, and publishes.
    pub fn change(&mut self, change: impl Fn(&mut ServicePort)) {
        self.desired.service_ports.iter_mut().map(Arc::make_mut).for_each(change);
        self.rebuild();
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        self.now = Now(self.now.0 + time.as_nanos() as u64);
    }

    pub fn process(&mut self, worker: u8, port: PortId, handed: bool, bytes: &[u8]) -> Outcome {
        let mut room = [0; ROOM];
        room[..bytes.len()].copy_from_slice(bytes);
        let mut burst = [Frame { room: &mut room, len: bytes.len(), port, handed }];
        let mut verdicts = [Verdict::Pass];
        process(&mut burst, self.now, &self.tables, &mut self.workers[usize::from(worker)], &mut verdicts);
        let len = burst[0].len;
        Outcome { verdict: verdicts[0], frame: room[..len].to_vec() }
    }

    /// Frames of one burst, to worker 0.
    pub fn burst(&mut self, frames: &[(PortId, Vec<u8>)]) -> Vec<Verdict> {
        let mut rooms = vec![[0; ROOM]; frames.len()];
        let filled = rooms.iter_mut().zip(frames).map(|(room, (port, bytes))| {
            room[..bytes.len()].copy_from_slice(bytes);
            Frame { room, len: bytes.len(), port: *port, handed: false }
        });
        let mut burst: Vec<Frame<'_>> = filled.collect();
        let mut verdicts = vec![Verdict::Pass; frames.len()];
        process(&mut burst, self.now, &self.tables, &mut self.workers[0], &mut verdicts);
        verdicts
    }

    /// A frame from outside, to worker 0.
    pub fn outside(&mut self, segment: &Segment) -> Outcome {
        self.process(0, OUTSIDE, false, &segment.bytes())
    }

    /// A frame from inside, to worker 0.
    pub fn inside(&mut self, segment: &Segment) -> Outcome {
        self.process(0, INSIDE, false, &segment.bytes())
    }

    /// The next packet that worker 0 sends of itself.
    pub fn emitted(&mut self) -> Option<(PortId, Segment)> {
        let mut room = [0; ROOM];
        let Emission { len, port, .. } = emit(self.now, &self.tables, &mut self.workers[0], &mut room)?;
        Some((port, Segment::read(&room[..len])))
    }

    /// The count of an event of worker 0.
    pub fn event(&self, name: &str) -> u64 {
        let place = Counters::NAMES.iter().position(|n| *n == name).unwrap();
        self.workers[0].counters().values()[place]
    }

    /// Opens a flow: what the client sent and what the endpoint got.
    pub fn open(&mut self, kind: Kind, port: u16) -> (Segment, Segment) {
        let sent = kind.opening(port);
        let got = self.outside(&sent).sent(INSIDE);
        (sent, got)
    }

    pub fn addr(ip: IpAddr) -> Addr {
        ip.into()
    }
}

//! Flows of a gateway, opened by real handshakes, and their packets.
//!
//! A flow's packets are written from its number when they are needed, so that what is measured shares its caches with
//! little else.

use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use lb::process::process;
use lb::state::WorkerState;
use lb::{Frame, Now, PortId, Tables, Verdict};
use nix::time::{ClockId, clock_gettime};
use wire::nat::{ChecksumMode, Rewrite};
use wire::{Addr, Packet, Port, Protocol, Transport};

use crate::gateway::{self, Shape};

/// Client ports of a client address.
const PORTS: usize = 60_000;
const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 1]);

/// Where an endpoint's packets of a flow come from and go to: SNAT address and port, endpoint by number.
#[derive(Clone, Copy)]
struct Ends {
    snat: u8,
    backend: u8,
    port: Port,
}

/// Packets of one flow at a time, in either direction. A clone draws by itself.
#[derive(Clone)]
pub struct Traffic {
    shape: Shape,
    /// The first flow's client by number; the others' follow.
    first: usize,
    ends: Arc<[Ends]>,
    plain: Template,
    random: u64,
}

/// A packet to be made into a flow's own.
#[derive(Clone)]
pub struct Template {
    bytes: Vec<u8>,
    parsed: Transport,
}

/// A client's address and port.
pub fn client(shape: Shape, n: usize) -> (Addr, Port) {
    let host = (n / PORTS) as u32 + 1;
    let address = if shape.ipv6 {
        let mut octets = [0xfd, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        octets[12..].copy_from_slice(&host.to_be_bytes());
        Addr::from_v6(octets)
    } else {
        Addr::from_v4((0xc000_0000 + host).to_be_bytes())
    };
    (address, Port::new((n % PORTS) as u16 + 1024))
}

impl Template {
    /// A packet of `size` octets without the frame check sequence, from and to anybody.
    pub fn new(shape: Shape, size: usize, syn: bool, ack: bool) -> Self {
        let address: (IpAddr, IpAddr) = (gateway::snat_address(shape, 0).into(), gateway::vip(shape).into());
        let ethernet = PacketBuilder::ethernet2(MACS.0, MACS.1);
        let ip = match address {
            (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 65),
            (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 65),
            _ => unreachable!("one family"),
        };
        let payload = |header: usize| vec![0x5a; size.saturating_sub(header)];
        let mut bytes = Vec::new();
        if shape.protocol == Protocol::TCP {
            let mut tcp = ip.tcp(1, 2, 1, 65535);
            if syn {
                tcp = tcp.syn();
            }
            if ack {
                // The SYN takes one number.
                tcp = tcp.ack(2);
            }
            let header = tcp.size(0);
            tcp.write(&mut bytes, &payload(header)).expect("memory");
        } else {
            let udp = ip.udp(1, 2);
            let header = udp.size(0);
            udp.write(&mut bytes, &payload(header)).expect("memory");
        }
        bytes.resize(bytes.len().max(60), 0);
        let Ok(Packet::Transport(parsed)) = wire::parse(&bytes) else { unreachable!("etherparse's packet is sound") };
        Self { bytes, parsed }
    }

    /// Its length.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the packet from and to these ends into a frame; gives its length.
    pub fn write(&self, room: &mut [u8], src: (Addr, Port), dst: (Addr, Port)) -> usize {
        let t = &self.parsed;
        room[..self.bytes.len()].copy_from_slice(&self.bytes);
        let old = (t.src, t.dst, t.sport(), t.dport());
        let rewrite = Rewrite::new(old, (src.0, dst.0, src.1, dst.1));
        wire::nat::rewrite(room, t, &rewrite, ChecksumMode::Incremental);
        self.bytes.len()
    }
}

impl Traffic {
    /// Opens so many flows, each by its handshake; packets thereafter are of `size` octets without the frame check
    /// sequence.
    ///
    /// # Panics
    /// If a flow cannot be opened.
    pub fn open(shape: Shape, flows: usize, size: usize, tables: &Tables, state: &mut WorkerState) -> Self {
        Self::open_from(0, shape, flows, size, tables, state)
    }

    /// The same with other clients, from number `first` on: a worker's among several.
    ///
    /// # Panics
    /// If a flow cannot be opened.
    pub fn open_from(
        first: usize,
        shape: Shape,
        flows: usize,
        size: usize,
        tables: &Tables,
        state: &mut WorkerState,
    ) -> Self {
        let [syn, syn_ack] = [false, true].map(|ack| Template::new(shape, 0, true, ack));
        let plain = Template::new(shape, size, false, true);
        let mut room = vec![0; 2048];
        let mut handshake = |n| {
            let client = client(shape, first + n);
            let out = decide(&mut room, tables, state, |room| syn.write(room, client, vip(shape)));
            let ends = Ends { snat: last_octet(out.src), backend: last_octet(out.dst), port: out.sport() };
            decide(&mut room, tables, state, |room| syn_ack.write(room, ends.backend(shape), ends.snat(shape)));
            decide(&mut room, tables, state, |room| plain.write(room, client, vip(shape)));
            ends
        };
        let ends = (0..flows).map(&mut handshake).collect();
        Self { shape, first, ends, plain, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Starts the same sequence of packets over.
    pub fn restart(&mut self, seed: u64) {
        self.random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }

    /// Writes the next packet: a flow drawn at random, either direction as likely. Gives its length.
    pub fn next(&mut self, room: &mut [u8]) -> usize {
        // xorshift64: cheap, and the same in every run.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let n = ((u128::from(self.random) * self.ends.len() as u128) >> 64) as usize;
        let reply = self.random & 1 == 1;
        let (src, dst) = self.pair(n, reply);
        self.plain.write(room, src, dst)
    }

    /// Source and destination of a flow's packets.
    pub fn pair(&self, n: usize, reply: bool) -> ((Addr, Port), (Addr, Port)) {
        let ends = self.ends[n];
        if reply {
            (ends.backend(self.shape), ends.snat(self.shape))
        } else {
            (client(self.shape, self.first + n), vip(self.shape))
        }
    }

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.ends.len()
    }
}

impl Ends {
    fn backend(self, shape: Shape) -> (Addr, Port) {
        (gateway::backend_address(shape, self.backend), Port::new(gateway::BACKEND_PORT))
    }

    fn snat(self, shape: Shape) -> (Addr, Port) {
        (gateway::snat_address(shape, self.snat), self.port)
    }
}

/// The time that workers read: flows are to be as young as they will seem.
pub fn now() -> Now {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
    Now(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn vip(shape: Shape) -> (Addr, Port) {
    (gateway::vip(shape), Port::new(gateway::VIP_PORT))
}

fn last_octet(address: Addr) -> u8 {
    address.octets()[15]
}

/// Has one packet decided; gives what it became.
fn decide(
    room: &mut [u8],
    tables: &Tables,
    state: &mut WorkerState,
    write: impl FnOnce(&mut [u8]) -> usize,
) -> Transport {
    let len = write(room);
    let mut frames = [Frame { room, len, port: PortId(0), handed: false }];
    let mut verdicts = [Verdict::Pass];
    process(&mut frames, now(), tables, state, &mut verdicts);
    assert!(matches!(verdicts[0], Verdict::Tx(_)), "a flow could not be opened: {:?}", verdicts[0]);
    let [frame] = frames;
    match wire::parse(&frame.room[..frame.len]) {
        Ok(Packet::Transport(t)) => t,
        other => panic!("what was sent is no packet: {other:?}"),
    }
}

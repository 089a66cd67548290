//! Case `core`: the whole decision about established packets, in memory.
//!
//! Every packet is written whole into its frame before it is processed, as a NIC would; that writing is timed alone in
//! the same run and taken off.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Instant;

use etherparse::PacketBuilder;
use lb::process::process;
use lb::state::WorkerState;
use lb::{Frame, Now, PortId, Tables, Verdict};

use crate::{Figure, gateway};

const BURST: usize = 64;
const FRAME: usize = 2048;
const FRAMES: usize = 4096;
const SIZE: usize = 60;

/// A packet of each direction, as it arrives.
struct Flow {
    packets: [[u8; SIZE]; 2],
}

/// Nanoseconds a packet.
pub fn run(flows: usize, packets: usize, runs: usize) -> Figure {
    let (tables, mut state) = gateway::make(flows);
    let flows_made: Vec<Flow> = (0..flows).map(|n| open(n, &tables, &mut state)).collect();
    let mut memory = vec![0; FRAME * FRAMES];
    let mut values: Vec<f64> = (0..runs)
        .map(|turn| {
            let seed = turn as u64 + 1;
            let fill = pass(&flows_made, packets, &mut memory, seed, |_, _| {});
            let whole = pass(&flows_made, packets, &mut memory, seed, |frames, verdicts| {
                process(frames, Now(2_000_000_000), &tables, &mut state, verdicts);
                debug_assert!(verdicts.iter().all(|v| matches!(v, Verdict::Tx(_))));
            });
            whole - fill
        })
        .collect();
    values.sort_by(f64::total_cmp);
    Figure { case: "core", flows, name: "ns_per_packet", unit: "ns", values }
}

fn pass(
    flows: &[Flow],
    packets: usize,
    memory: &mut [u8],
    mut random: u64,
    mut work: impl FnMut(&mut [Frame<'_>], &mut [Verdict]),
) -> f64 {
    let mut verdicts = [Verdict::Pass; BURST];
    let start = Instant::now();
    for burst in 0..packets / BURST {
        let first = burst * BURST % FRAMES;
        let rooms = memory[first * FRAME..(first + BURST) * FRAME].chunks_exact_mut(FRAME);
        let mut frames: Vec<Frame<'_>> = Vec::with_capacity(BURST);
        frames.extend(rooms.enumerate().map(|(n, room)| {
            // xorshift64: cheap, and the same in both passes.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let flow = &flows[(random % flows.len() as u64) as usize];
            room[..SIZE].copy_from_slice(&flow.packets[n % 2]);
            Frame { room, len: SIZE, port: PortId((n % 2) as u8), handed: false }
        }));
        work(&mut frames, &mut verdicts);
        black_box(&mut frames);
    }
    start.elapsed().as_nanos() as f64 / packets as f64
}

/// Opens a flow by a SYN and a SYN-ACK, and makes its packets.
fn open(n: usize, tables: &Tables, state: &mut WorkerState) -> Flow {
    let client = Ipv4Addr::from(0xc0a8_0000 + (n / 60_000) as u32 + 1);
    let port = (n % 60_000) as u16 + 1024;
    let from_client = |syn: bool| packet(client, gateway::VIP, port, 80, syn, !syn);
    let out = decide(&from_client(true), 0, tables, state);
    let octets = |at: usize| -> [u8; 4] { out[at..at + 4].try_into().expect("four octets") };
    let (snat, backend) = (Ipv4Addr::from(octets(26)), Ipv4Addr::from(octets(30)));
    let number = |at: usize| u16::from_be_bytes([out[at], out[at + 1]]);
    let reply = |syn: bool| packet(backend, snat, number(36), number(34), syn, true);
    decide(&reply(true), 1, tables, state);
    decide(&from_client(false), 0, tables, state);
    Flow { packets: [from_client(false), reply(false)] }
}

fn decide(bytes: &[u8; SIZE], port: u8, tables: &Tables, state: &mut WorkerState) -> Vec<u8> {
    let mut room = vec![0; FRAME];
    room[..SIZE].copy_from_slice(bytes);
    let mut frames = [Frame { room: &mut room, len: SIZE, port: PortId(port), handed: false }];
    let mut verdicts = [Verdict::Pass];
    process(&mut frames, Now(1_000_000_000), tables, state, &mut verdicts);
    assert!(matches!(verdicts[0], Verdict::Tx(_)), "a flow could not be opened: {:?}", verdicts[0]);
    room
}

fn packet(src: Ipv4Addr, dst: Ipv4Addr, sport: u16, dport: u16, syn: bool, ack: bool) -> [u8; SIZE] {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 1]).ipv4(src.octets(), dst.octets(), 64);
    let mut builder = builder.tcp(sport, dport, 1, 65535);
    if syn {
        builder = builder.syn();
    }
    if ack {
        builder = builder.ack(1);
    }
    let mut bytes = Vec::with_capacity(SIZE);
    builder.write(&mut bytes, &[0; SIZE - 54]).expect("memory");
    bytes.try_into().expect("60 octets")
}

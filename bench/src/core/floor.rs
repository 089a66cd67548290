//! The floor: what the least loop that could be called a balancer costs on this machine.
//!
//! Thrown away and kept to compare with: parse, a lookup of one cache line, rewrite, two checksums; bursts of 64 whose
//! lines are asked for ahead. One family and one shape of packet; no states, no timeouts but a timestamp, nothing is ever
//! opened or closed, and anybody can aim at its hash.

use arena::{Pages, Slab, prefetch};
use wire::nat::Rewrite;
use wire::{Addr, Delta, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Frames of a burst.
pub const BURST: usize = 64;

/// One direction of a flow: a cache line.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Line {
    /// Addresses and ports as they stand in the packet; all zero is free.
    key: [u8; 12],
    new: [u8; 12],
    ip_delta: u16,
    l4_delta: u16,
    last_seen: u32,
    packets: u64,
    macs: [u8; 12],
    reserved: [u8; 12],
}

/// The table, and the loop over it.
pub struct Floor {
    lines: Slab<Line>,
}

type Ends = (Addr, Port);

impl Floor {
    /// With room for both directions of so many flows, two thirds used.
    pub fn new(flows: usize, pages: Pages) -> Self {
        Self { lines: Slab::anonymous(3 * flows.max(1), pages).expect("memory for the floor's table") }
    }

    /// Adds one direction: what its packets have, and what they become.
    pub fn insert(&mut self, old: (Ends, Ends), new: (Ends, Ends)) {
        let octets = |(src, dst): (Ends, Ends)| {
            let mut out = [0; 12];
            out[..4].copy_from_slice(&src.0.v4_octets());
            out[4..8].copy_from_slice(&dst.0.v4_octets());
            out[8..10].copy_from_slice(&src.1.octets());
            out[10..].copy_from_slice(&dst.1.octets());
            out
        };
        let tuple = |(src, dst): (Ends, Ends)| (src.0, dst.0, src.1, dst.1);
        let rewrite = Rewrite::new(tuple(old), tuple(new));
        let key = octets(old);
        let mut at = self.place(&key);
        while self.lines[at].key != [0; 12] {
            at = if at + 1 == self.lines.len() { 0 } else { at + 1 };
        }
        let line = &mut self.lines[at];
        line.key = key;
        line.new = octets(new);
        line.ip_delta = rewrite.ip_delta.and(Delta::TTL_DECREMENT).to_bits();
        line.l4_delta = rewrite.l4_delta.to_bits();
        line.macs = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
    }

    #[inline]
    fn place(&self, key: &[u8; 12]) -> usize {
        let word = |at: usize| u64::from(u32::from_le_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]));
        let mixed = (word(0) << 32 | word(8)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word(4);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((u128::from(mixed) * self.lines.len() as u128) >> 64) as usize
    }

    /// Rewrites a burst of IPv4 frames in place; says how many had a flow.
    pub fn process(&mut self, frames: &mut [&mut [u8]], now: u32) -> usize {
        let mut places = [0; BURST];
        let mut keys = [[0; 12]; BURST];
        let count = frames.len().min(BURST);
        for i in 0..count {
            if let Some(first) = frames.get(i + 4).and_then(|ahead| ahead.first()) {
                prefetch(first);
            }
            let Some(header) = frames[i].first_chunk::<54>() else { continue };
            let is_tcp_or_udp = header[23] == 6 || header[23] == 17;
            if header[12..14] != [8, 0] || header[14] != 0x45 || !is_tcp_or_udp || header[22] < 2 {
                continue;
            }
            keys[i].copy_from_slice(&header[26..38]);
            places[i] = self.place(&keys[i]);
            prefetch(&self.lines[places[i]]);
        }
        (0..count).filter(|&i| self.rewrite(frames[i], &keys[i], places[i], now)).count()
    }

    #[inline]
    fn rewrite(&mut self, frame: &mut [u8], key: &[u8; 12], mut at: usize, now: u32) -> bool {
        while self.lines[at].key != *key {
            if self.lines[at].key == [0; 12] {
                return false;
            }
            at = if at + 1 == self.lines.len() { 0 } else { at + 1 };
        }
        let line = &mut self.lines[at];
        line.last_seen = now;
        line.packets += 1;
        let Some(header) = frame.first_chunk_mut::<54>() else { return false };
        header[..12].copy_from_slice(&line.macs);
        header[22] -= 1;
        header[26..38].copy_from_slice(&line.new);
        let sum = if header[23] == 6 { 50 } else { 40 };
        for (at, delta) in [(24, line.ip_delta), (sum, line.l4_delta)] {
            let checksum = Delta::from_bits(delta).apply(u16::from_be_bytes([header[at], header[at + 1]]));
            header[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        true
    }
}

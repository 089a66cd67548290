//! What a packet is looked up by, and the keyed hash of it.
//!
//! The hash is SipHash-1-3 with a secret key that lives in the flow file: an outsider cannot aim at a bucket, and all
//! workers, before and after a restart, agree.

use siphasher::sip::SipHasher13;
use wire::{Addr, Port, Protocol};

/// A direction's addresses and ports, as they stand in its packets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// The keyed hash of a [`FlowKey`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowHash(pub u64);

impl FlowHash {
    /// What an index compares before it looks at an entry; never 0, which marks a free place.
    #[inline]
    pub(crate) fn tag(self) -> u16 {
        ((self.0 >> 32) as u16).max(1)
    }
}

/// Hashes flow keys with the flow file's secret.
#[derive(Clone, Copy)]
pub struct FlowHasher(SipHasher13);

impl FlowHasher {
    /// With the two halves of the secret.
    #[must_use]
    pub fn new(secret: [u64; 2]) -> Self {
        Self(SipHasher13::new_with_keys(secret[0], secret[1]))
    }

    /// The hash of a key.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> FlowHash {
        // The lengths differ between the families and the length is part of SipHash, so neither can pose as the other.
        let [s0, s1] = key.sport.octets();
        let [d0, d1] = key.dport.octets();
        let last = [s0, s1, d0, d1, key.protocol.0];
        if key.dst.is_v4() {
            let mut bytes = [0; 13];
            bytes[..4].copy_from_slice(&key.src.v4_octets());
            bytes[4..8].copy_from_slice(&key.dst.v4_octets());
            bytes[8..].copy_from_slice(&last);
            FlowHash(self.0.hash(&bytes))
        } else {
            let mut bytes = [0; 37];
            bytes[..16].copy_from_slice(key.src.octets());
            bytes[16..32].copy_from_slice(key.dst.octets());
            bytes[32..].copy_from_slice(&last);
            FlowHash(self.0.hash(&bytes))
        }
    }
}

impl core::fmt::Debug for FlowHasher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // The secret stays one.
        f.write_str("FlowHasher")
    }
}

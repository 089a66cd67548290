//! What a packet is looked up by, and the keyed hash of it.
//!
//! The hash is multilinear with secret numbers, drawn by SipHash-1-3 from the secret in the flow file, and then mixed. To
//! whoever sees none of its values, the upper 33 bits of any two keys' sums are independent and even, so that two keys have
//! one sum with a probability of 2⁻³³ at most; that buckets and tags, which are bits of the mixed sum, are even too is
//! measured and not proven. Families share numbers: what tells them apart is in a word that both have. No value leaves the
//! process. All workers, before and after a restart, agree. Source: Lemire and Kaser, "Strongly universal string hashing is
//! fast", The Computer Journal 57 (2014), section 3, of which this is MULTILINEAR-HM (half the multiplications, by pairs of
//! words).

use siphasher::sip::SipHasher13;
use wire::{Addr, Head, Kind, Plain, Port, Ports, Protocol};

/// A direction's addresses and ports, as they stand in its packets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source and destination port.
    pub ports: Ports,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl FlowKey {
    /// The last words of source and destination: for IPv4, the addresses.
    #[must_use]
    #[inline]
    pub(crate) fn last_words(&self) -> u64 {
        u64::from(self.src.last_word()) | u64::from(self.dst.last_word()) << 32
    }

    /// What else there is of the addresses: the first eight octets of each, then the third word of each.
    #[must_use]
    #[inline]
    pub(crate) fn other_words(&self) -> [u64; 3] {
        let thirds = u64::from(self.src.third_word()) | u64::from(self.dst.third_word()) << 32;
        [self.src.first_word(), self.dst.first_word(), thirds]
    }
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

/// Hashes flow keys with numbers drawn from the flow file's secret: `m₀ + Σ (mᵢ + lᵢ)·(m'ᵢ + hᵢ) mod 2⁶⁴` of pairs of
/// 32-bit words, with secret numbers of 64 bits; then mixed.
#[derive(Clone, Copy)]
pub struct FlowHasher {
    first: u64,
    /// For [`FlowKey::last_words`], then for the ports and what tells families and protocols apart.
    all: [Pair; 2],
    /// For [`FlowKey::other_words`], of IPv6.
    others: [Pair; 3],
}

/// What is added to the lower and the upper half of a word of 64 bits before they are multiplied.
#[derive(Clone, Copy)]
struct Pair(u64, u64);

impl Pair {
    #[inline]
    fn product(self, word: u64) -> u64 {
        self.0.wrapping_add(word & 0xffff_ffff).wrapping_mul(self.1.wrapping_add(word >> 32))
    }
}

impl FlowHasher {
    /// With the two halves of the secret.
    #[must_use]
    pub fn new(secret: [u64; 2]) -> Self {
        let source = SipHasher13::new_with_keys(secret[0], secret[1]);
        let mut counter = 0u64;
        let mut drawn = || {
            counter += 1;
            source.hash(&[b"flow key".as_slice(), &counter.to_le_bytes()].concat())
        };
        let mut pair = || Pair(drawn(), drawn());
        let (all, others) = ([pair(), pair()], [pair(), pair(), pair()]);
        Self { first: drawn(), all, others }
    }

    /// The hash of a key.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> FlowHash {
        let v4 = key.dst.is_v4();
        let number = key.protocol.0 | if v4 { 0 } else { Kind::IPV6 };
        self.hash_words(key.last_words(), key.ports, number, (!v4).then(|| key.other_words()))
    }

    /// By [`FlowKey::last_words`], the ports, the protocol's number with [`Kind::IPV6`], of IPv6 [`FlowKey::other_words`].
    #[inline]
    pub(super) fn hash_words(&self, last: u64, ports: Ports, number: u8, others: Option<[u64; 3]>) -> FlowHash {
        let end = u64::from(ports.word()) | u64::from(number) << 32;
        let mut sum = self.first.wrapping_add(self.all[0].product(last)).wrapping_add(self.all[1].product(end));
        if let Some(words) = others {
            let more = self.others.iter().zip(words).map(|(pair, word)| pair.product(word));
            sum = more.fold(sum, u64::wrapping_add);
        }
        FlowHash(mix(sum))
    }

    /// The hash of an address alone.
    #[must_use]
    #[inline]
    pub fn hash_address(&self, address: &Addr) -> FlowHash {
        let ports = Ports::new(Port::new(0), Port::new(0));
        self.hash(&FlowKey { src: *address, dst: *address, ports, protocol: Protocol(0) })
    }

    /// The hash of a plain frame's key.
    #[must_use]
    #[inline]
    pub(crate) fn hash_plain(&self, plain: &Plain, head: &Head) -> FlowHash {
        let others = plain.kind.ipv6().then(|| Plain::other_words(head));
        self.hash_words(plain.last_words, plain.ports, plain.kind as u8, others)
    }
}

/// A permutation of 64-bit numbers that spreads neighbours. Multilinear hashes of keys in
/// arithmetic progression, such as a client's ports, are one themselves, and some secrets would lump them together.
#[inline]
const fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^ word >> 32
}

impl core::fmt::Debug for FlowHasher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // The secret stays one.
        f.write_str("FlowHasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(source: u16, destination: u16) -> Ports {
        Ports::new(Port::new(source), Port::new(destination))
    }

    fn key(n: u32, v6: bool) -> FlowKey {
        let [a, b, c, d] = n.to_be_bytes();
        let src = if v6 {
            Addr::from_v6([0xfd, 0, 0, 0, a, 0, 0, 0, b, 0, 0, 0, 0, 0, c, d])
        } else {
            Addr::from_v4([10, b, c, d])
        };
        let dst = if v6 { Addr::from_v6([0xfd; 16]) } else { Addr::from_v4([10, 0, 0, 1]) };
        FlowKey { src, dst, ports: ports(c.into(), 80), protocol: Protocol::TCP }
    }

    #[test]
    fn every_part_of_a_key_counts_and_so_does_the_secret() {
        let hasher = FlowHasher::new([1, 2]);
        for v6 in [false, true] {
            let base = key(7, v6);
            let other = if v6 { Addr::from_v6([7; 16]) } else { Addr::from_v4([7; 4]) };
            let changed = [
                FlowKey { src: other, ..base },
                FlowKey { dst: other, ..base },
                FlowKey { ports: Ports::new(Port::new(9), base.ports.destination()), ..base },
                FlowKey { ports: Ports::new(base.ports.source(), Port::new(9)), ..base },
                FlowKey { protocol: Protocol::UDP, ..base },
                FlowKey { src: base.dst, dst: base.src, ports: base.ports.reversed(), ..base },
            ];
            assert_eq!(hasher.hash(&base), FlowHasher::new([1, 2]).hash(&base));
            assert_ne!(hasher.hash(&base), FlowHasher::new([1, 3]).hash(&base));
            for key in changed {
                assert_ne!(hasher.hash(&base), hasher.hash(&key), "{key:?}");
            }
        }
    }

    #[test]
    fn neighbouring_keys_spread_evenly_over_buckets_and_tags() {
        for (secret, v6) in [([1, 2], false), ([3, 4], false), ([1, 2], true)] {
            let hasher = FlowHasher::new(secret);
            let (mut buckets, mut tags) = (vec![0u32; 256], vec![0u32; 256]);
            for n in 0..256 * 256 {
                let hash = hasher.hash(&key(n, v6));
                buckets[hash.0 as usize % 256] += 1;
                tags[usize::from(hash.tag()) % 256] += 1;
            }
            // 256 each on average; a binomial strays by 16, and no hash that is even by more than some ten times that.
            for count in buckets.iter().chain(&tags) {
                assert!((96..=416).contains(count), "{count} of 256 in one place");
            }
        }
    }
}

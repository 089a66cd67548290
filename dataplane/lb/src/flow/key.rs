//! What a packet is looked up by, and the keyed hash of it.
//!
//! The hash is multilinear with secret numbers, drawn by SipHash-1-3 from the secret in the flow file, and then mixed. It
//! is strongly universal: to whoever sees none of its values, those of any two keys are independent and even, so nobody
//! outside can aim at a bucket. No value leaves the process. All workers, before and after a restart, agree. Source:
//! Lemire and Kaser, "Strongly universal string hashing is fast", The Computer Journal 57 (2014), section 3.

use siphasher::sip::SipHasher13;
use wire::{Addr, Head, Plain, Port, Ports, Protocol};

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

/// Words of a key of IPv4: both addresses, then ports and protocol.
const WORDS_V4: usize = 2;
/// Words of a key of IPv6.
const WORDS_V6: usize = 5;

/// Hashes flow keys with numbers drawn from the flow file's secret.
#[derive(Clone, Copy)]
pub struct FlowHasher {
    v4: Multilinear<WORDS_V4>,
    v6: Multilinear<WORDS_V6>,
}

/// `(m₀ + Σ mᵢ·wᵢ mod 2¹²⁸) ÷ 2⁶⁴` of 64-bit words, with secret numbers of 128 bits; then [`mix`].
#[derive(Clone, Copy)]
struct Multilinear<const N: usize> {
    first: u128,
    others: [u128; N],
}

impl<const N: usize> Multilinear<N> {
    fn draw(drawn: &mut impl FnMut() -> u128) -> Self {
        Self { first: drawn(), others: core::array::from_fn(|_| drawn()) }
    }

    #[inline]
    fn hash(&self, words: [u64; N]) -> FlowHash {
        let sum = self
            .others
            .iter()
            .zip(words)
            .fold(self.first, |sum, (m, word)| sum.wrapping_add(m.wrapping_mul(u128::from(word))));
        FlowHash(mix((sum >> 64) as u64))
    }
}

impl FlowHasher {
    /// With the two halves of the secret.
    #[must_use]
    pub fn new(secret: [u64; 2]) -> Self {
        let source = SipHasher13::new_with_keys(secret[0], secret[1]);
        let mut counter = 0u64;
        let mut half = || {
            counter += 1;
            source.hash(&[b"flow key".as_slice(), &counter.to_le_bytes()].concat())
        };
        let mut drawn = || u128::from(half()) << 64 | u128::from(half());
        Self { v4: Multilinear::draw(&mut drawn), v6: Multilinear::draw(&mut drawn) }
    }

    /// The hash of a key.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> FlowHash {
        let last = u64::from(key.ports.word()) | u64::from(key.protocol.0) << 32;
        if key.dst.is_v4() {
            self.v4.hash([key.last_words(), last])
        } else {
            let [src, dst, thirds] = key.other_words();
            self.v6.hash([key.last_words(), src, dst, thirds, last])
        }
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
        let last = u64::from(plain.ports.word()) | u64::from(plain.protocol.0) << 32;
        match plain.ipv6 {
            false => self.v4.hash([plain.last_words, last]),
            true => {
                let [src, dst, thirds] = Plain::other_words(head);
                self.v6.hash([plain.last_words, src, dst, thirds, last])
            }
        }
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

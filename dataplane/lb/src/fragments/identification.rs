//! Identifications for datagrams that go out in the name of an address of ours.
//!
//! Two clients may choose the same one at a time, and their datagrams would come from one source behind us (RFC 6864
//! section 4.3, RFC 3022 section 6.3). So each datagram gets a new one, which no other gets until all were given out; of
//! IPv4 there are 65,536, of IPv6 2^32. They follow no order that can be seen (RFC 7739 section 5): a counter, permuted by
//! a secret. Workers draw from one permutation at places of their own.

use siphasher::sip::SipHasher13;

/// Rounds of the permutation: four make it as good as random (Luby, Rackoff, 1988).
const ROUNDS: u8 = 4;

/// A worker's source of identifications.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identifications {
    secret: [u64; 2],
    next: u32,
    step: u32,
}

impl Identifications {
    /// Of worker `place` among `workers`, which have one `secret` in common; `start` is random.
    pub(crate) fn new(secret: [u64; 2], place: usize, workers: usize, start: u32) -> Self {
        // A power of two has whole turns in both numbers of places: workers never meet.
        let step = workers.next_power_of_two() as u32;
        Self { secret, next: (start / step).wrapping_mul(step).wrapping_add(place as u32), step }
    }

    /// The next one.
    pub(crate) fn draw(&mut self, ipv6: bool) -> u32 {
        let place = self.next;
        self.next = place.wrapping_add(self.step);
        self.permute(place, if ipv6 { 16 } else { 8 })
    }

    /// A Feistel network over two halves of so many bits.
    fn permute(&self, place: u32, bits: u32) -> u32 {
        let mask = (1 << bits) - 1;
        let (mut left, mut right) = (place >> bits & mask, place & mask);
        for round in 0..ROUNDS {
            let [a, b, c, d] = right.to_le_bytes();
            let hash =
                SipHasher13::new_with_keys(self.secret[0], self.secret[1]).hash(&[round, bits as u8, a, b, c, d]);
            (left, right) = (right, left ^ hash as u32 & mask);
        }
        left << bits | right
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn all_of_ipv4_are_given_out_before_one_comes_again() {
        for start in [0, 65_000, u32::MAX] {
            let mut ids = Identifications::new([1, 2], 0, 1, start);
            let drawn: HashSet<u32> = (0..1 << 16).map(|_| ids.draw(false)).collect();
            assert_eq!((drawn.len(), drawn.iter().max()), (1 << 16, Some(&0xffff)));
        }
    }

    #[test]
    fn workers_never_draw_the_same() {
        for (workers, ipv6) in [(4, true), (3, true), (4, false), (3, false)] {
            let mut seen = HashSet::new();
            for worker in 0..workers {
                // They start anywhere.
                let mut ids = Identifications::new([1, 2], worker, workers, 30_000 * worker as u32);
                assert!((0..10_000).all(|_| seen.insert(ids.draw(ipv6))), "{workers}, IPv6 {ipv6}");
            }
        }
    }

    #[test]
    fn neighbours_are_not_neighbours_and_the_secret_counts() {
        let mut ids = Identifications::new([1, 2], 0, 1, 0);
        let drawn: Vec<u32> = (0..1000).map(|_| ids.draw(false)).collect();
        let close = drawn.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 16).count();
        assert!(close < 10, "{close} of 999, of random ones there is one in two thousand");
        let mut other = Identifications::new([1, 3], 0, 1, 0);
        assert_ne!(drawn, (0..1000).map(|_| other.draw(false)).collect::<Vec<_>>());
    }
}

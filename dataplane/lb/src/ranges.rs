//! Where clients may come from (`loadBalancerSourceRanges`).
//!
//! A list that only admits has no exceptions: what its longest matching prefix admits, any matching prefix does. So prefixes
//! that touch or lie in one another become one range.
//!
//! Invariant: ranges of a family are sorted and do not touch, so one binary search decides. Of IPv6 that goes over the upper
//! halves alone, which are a quarter of the memory and seldom the same. A copy shares them.

use std::net::IpAddr;
use std::sync::Arc;

use wire::Addr;

/// The addresses that may open flows; without a range everyone may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    /// First and last address of each range, as numbers.
    v4: Arc<[(u32, u32)]>,
    /// The upper half of each range's first address.
    v6: Arc<[u64]>,
    v6_rest: Arc<[RestV6]>,
    closed: bool,
}

/// What there is of a range of IPv6 beside the upper half of its first address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RestV6 {
    first_low: u64,
    last_high: u64,
    last_low: u64,
}

impl SourceRanges {
    /// From prefixes (address, prefix length); host bits are ignored, a length beyond the family's counts as the whole
    /// address. An empty list admits everyone.
    #[must_use]
    pub fn new(prefixes: &[(IpAddr, u8)]) -> Self {
        let v4 = prefixes.iter().filter_map(|&(address, length)| match address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                Some((address.to_bits() & !host, address.to_bits() | host))
            }
            IpAddr::V6(_) => None,
        });
        let v6 = prefixes.iter().filter_map(|&(address, length)| match address {
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                Some((address.to_bits() & !host, address.to_bits() | host))
            }
            IpAddr::V4(_) => None,
        });
        let v6 = merged(v6.collect(), |last| last.saturating_add(1));
        let rest = |&(first, last): &(u128, u128)| RestV6 {
            first_low: first as u64,
            last_high: (last >> 64) as u64,
            last_low: last as u64,
        };
        Self {
            v4: merged(v4.collect(), |last| last.saturating_add(1)).into(),
            v6: v6.iter().map(|(first, _)| (first >> 64) as u64).collect(),
            v6_rest: v6.iter().map(rest).collect(),
            closed: !prefixes.is_empty(),
        }
    }

    /// Whether both are one copy.
    #[cfg(test)]
    pub(crate) fn shares_with(&self, other: &Self) -> bool {
        let v6 = Arc::ptr_eq(&self.v6, &other.v6) && Arc::ptr_eq(&self.v6_rest, &other.v6_rest);
        v6 && Arc::ptr_eq(&self.v4, &other.v4)
    }

    /// Octets that it refers to.
    #[must_use]
    pub fn octets(&self) -> usize {
        size_of_val(&self.v4[..]) + size_of_val(&self.v6[..]) + size_of_val(&self.v6_rest[..])
    }

    /// Whether this source may open a flow.
    #[must_use]
    #[inline]
    pub fn admits(&self, source: &Addr) -> bool {
        !self.closed
            || if source.is_v4() {
                self.admits_v4(u32::from_be_bytes(source.v4_octets()))
            } else {
                self.admits_v6(u128::from_be_bytes(*source.octets()))
            }
    }

    #[inline]
    fn admits_v4(&self, number: u32) -> bool {
        let after = self.v4.partition_point(|&(first, _)| first <= number);
        after.checked_sub(1).is_some_and(|at| number <= self.v4[at].1)
    }

    #[inline]
    fn admits_v6(&self, number: u128) -> bool {
        let (high, low) = ((number >> 64) as u64, number as u64);
        let mut after = self.v6.partition_point(|first| *first <= high);
        let begins_later = |at: usize| self.v6[at] == high && self.v6_rest[at].first_low > low;
        if after.checked_sub(1).is_some_and(begins_later) {
            // Ranges within one /64.
            let same = self.v6[..after].partition_point(|first| *first < high);
            after = same + self.v6_rest[same..after].partition_point(|range| range.first_low <= low);
        }
        let last = |at: usize| (self.v6_rest[at].last_high, self.v6_rest[at].last_low);
        after.checked_sub(1).is_some_and(|at| (high, low) <= last(at))
    }
}

/// Sorted, and what overlaps or touches made one.
fn merged<N: Ord + Copy>(mut ranges: Vec<(N, N)>, after: impl Fn(N) -> N) -> Vec<(N, N)> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let one = next.0 <= after(before.1);
        if one {
            before.1 = before.1.max(next.1);
        }
        one
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> (IpAddr, u8) {
        let (address, length) = text.split_once('/').unwrap();
        (address.parse().unwrap(), length.parse().unwrap())
    }

    fn ranges(prefixes: &[&str]) -> SourceRanges {
        SourceRanges::new(&prefixes.iter().map(|text| prefix(text)).collect::<Vec<_>>())
    }

    fn admits(ranges: &SourceRanges, source: &str) -> bool {
        ranges.admits(&source.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn no_range_admits_everyone() {
        assert!(admits(&ranges(&[]), "192.0.2.1"));
        assert!(admits(&ranges(&[]), "2001:db8::1"));
    }

    #[test]
    fn a_range_admits_its_first_and_last_address_and_none_beside() {
        let ranges = ranges(&["10.1.2.128/25", "192.0.2.7/32", "2001:db8:1::/48"]);
        for inside in ["10.1.2.128", "10.1.2.255", "192.0.2.7", "2001:db8:1::", "2001:db8:1:ffff::1"] {
            assert!(admits(&ranges, inside), "{inside}");
        }
        for outside in ["10.1.2.127", "10.1.3.0", "192.0.2.6", "192.0.2.8", "2001:db8:2::", "::", "255.255.255.255"] {
            assert!(!admits(&ranges, outside), "{outside}");
        }
    }

    #[test]
    fn ranges_within_one_network_of_ipv6_are_apart() {
        let ranges = ranges(&["2001:db8::10/124", "2001:db8::30/124", "2001:db8::8000:0:0:0/66", "2001:db8:0:1::/64"]);
        for inside in ["::10", "::1f", "::30", "::3f", "::8000:0:0:0", "::bfff:0:0:1", ":0:1::", ":0:1:ffff::"] {
            assert!(admits(&ranges, &format!("2001:db8{inside}")), "{inside}");
        }
        for outside in ["::", "::f", "::20", "::2f", "::40", "::7fff:0:0:0", "::c000:0:0:0", ":0:2::"] {
            assert!(!admits(&ranges, &format!("2001:db8{outside}")), "{outside}");
        }
    }

    #[test]
    fn nested_overlapping_and_adjacent_ranges_are_one() {
        let ranges = ranges(&["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "10.255.255.255/32"]);
        assert_eq!(ranges.v4.len(), 1);
        assert!(admits(&ranges, "10.200.0.1") && admits(&ranges, "11.255.255.255") && !admits(&ranges, "12.0.0.0"));
    }

    #[test]
    fn host_bits_are_ignored_and_zero_length_is_the_whole_family_only() {
        let ranges = ranges(&["10.9.9.9/0"]);
        assert!(admits(&ranges, "1.1.1.1") && admits(&ranges, "255.255.255.255") && !admits(&ranges, "2001:db8::1"));
        let all_v6 = self::ranges(&["::/0"]);
        assert!(admits(&all_v6, "2001:db8::1") && !admits(&all_v6, "1.1.1.1"));
    }

    /// Prefixes of both families, many of which lie in others.
    fn many(count: u32) -> Vec<(IpAddr, u8)> {
        let scattered = |n: u32| n.wrapping_mul(0x9e37_79b9);
        let v4 = (0..count / 2).map(|n| (IpAddr::from(scattered(n).to_be_bytes()), (20 + n % 13) as u8));
        let v6 = (0..count / 2).map(|n| {
            let high = 0x2000_0000_0000_0000 | u64::from(scattered(n)) << 20 | u64::from(n);
            (IpAddr::from((u128::from(high) << 64).to_be_bytes()), (40 + n % 60) as u8)
        });
        v4.chain(v6).collect()
    }

    #[test]
    fn what_the_longest_matching_prefix_of_thousands_says_is_what_is_said() {
        let prefixes = many(2_000);
        let ranges = SourceRanges::new(&prefixes);
        let within = |source: IpAddr, (net, length): (IpAddr, u8)| match (source, net) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(length),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(length),
            _ => false,
        };
        let near = prefixes.iter().flat_map(|&(net, _)| match net {
            IpAddr::V4(net) => [0, 1, 7, 1 << 9, 1 << 13].map(|off| IpAddr::from((net.to_bits() ^ off).to_be_bytes())),
            IpAddr::V6(net) => {
                [0, 1, 7 << 30, 1 << 70, 1 << 90].map(|o| IpAddr::from((net.to_bits() ^ o).to_be_bytes()))
            }
        });
        let mut admitted = 0;
        for source in near {
            let longest = prefixes.iter().filter(|prefix| within(source, **prefix)).max_by_key(|prefix| prefix.1);
            assert_eq!(ranges.admits(&source.into()), longest.is_some(), "{source}");
            admitted += usize::from(longest.is_some());
        }
        assert!((2_500..9_500).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_hundred_thousand_take_little_memory_and_copies_share_it() {
        let ranges = SourceRanges::new(&many(100_000));
        assert!(ranges.octets() <= 50_000 * (8 + 32), "{} octets", ranges.octets());
        assert!(ranges.shares_with(&ranges.clone()));
    }
}

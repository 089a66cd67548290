//! Where clients may come from (`loadBalancerSourceRanges`).
//!
//! Invariant: ranges are sorted and do not touch, so one binary search decides. An IPv4 prefix is the same prefix of the
//! IPv4-mapped address, 96 bits longer; IPv4 and IPv6 never meet.

use std::net::IpAddr;

use wire::Addr;

/// The addresses that may open flows; without a range everyone may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    /// First and last address of each range, as numbers.
    ranges: Box<[(u128, u128)]>,
    open: bool,
}

impl SourceRanges {
    /// From prefixes (address, prefix length); host bits are ignored, a length beyond the family's counts as the whole
    /// address. An empty list admits everyone.
    #[must_use]
    pub fn new(prefixes: &[(IpAddr, u8)]) -> Self {
        let mut sorted: Vec<(u128, u128)> = prefixes.iter().map(|&(address, length)| range(address, length)).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self { ranges: merged.into(), open: prefixes.is_empty() }
    }

    /// Octets that it refers to.
    pub(crate) fn octets(&self) -> usize {
        size_of_val(&self.ranges[..])
    }

    /// Whether this source may open a flow.
    #[must_use]
    #[inline]
    pub fn admits(&self, source: &Addr) -> bool {
        let source = u128::from_be_bytes(*source.octets());
        let after = self.ranges.partition_point(|&(first, _)| first <= source);
        self.open || self.ranges[..after].last().is_some_and(|&(_, last)| source <= last)
    }
}

fn range(address: IpAddr, length: u8) -> (u128, u128) {
    let bits = u128::from_be_bytes(*Addr::from(address).octets());
    let length = match address {
        IpAddr::V4(_) => 96 + u32::from(length.min(32)),
        IpAddr::V6(_) => u32::from(length.min(128)),
    };
    let host = u128::MAX.checked_shr(length).unwrap_or(0);
    (bits & !host, bits | host)
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
    fn nested_overlapping_and_adjacent_ranges_are_one() {
        let ranges = ranges(&["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "10.255.255.255/32"]);
        assert_eq!(ranges.ranges.len(), 1);
        assert!(admits(&ranges, "10.200.0.1") && admits(&ranges, "11.255.255.255") && !admits(&ranges, "12.0.0.0"));
    }

    #[test]
    fn host_bits_are_ignored_and_zero_length_is_the_whole_family_only() {
        let ranges = ranges(&["10.9.9.9/0"]);
        assert!(admits(&ranges, "1.1.1.1") && admits(&ranges, "255.255.255.255") && !admits(&ranges, "2001:db8::1"));
        let all_v6 = self::ranges(&["::/0"]);
        assert!(admits(&all_v6, "2001:db8::1"));
    }
}

//! What many `loadBalancerSourceRanges` cost: to build, to keep, to look one source up in.

use std::hint::black_box;
use std::net::IpAddr;

use lb::ranges::SourceRanges;
use wire::Addr;

use super::{figure, millis, timed};
use crate::figure::Figure;

/// Prefixes, half of them of each family.
const RANGES: u32 = 100_000;
/// Sources that are looked up in a run.
const SOURCES: u32 = 1_000_000;

/// All of it.
pub fn figures(runs: usize) -> Vec<Figure> {
    let prefixes: Vec<(IpAddr, u8)> =
        (0..RANGES / 2).flat_map(|n| [(v4(n), 24 + (n % 9) as u8), (v6(n), 48)]).collect();
    let ranges = SourceRanges::new(&prefixes);
    let build = (0..runs).map(|_| millis(timed(|| SourceRanges::new(black_box(&prefixes))).0));
    let mut figures = vec![
        figure("source_ranges_build", "ms", build.collect()),
        figure("octets_a_source_range", "B", vec![ranges.octets() as f64 / f64::from(RANGES)]),
    ];
    for (name, source) in [("source_range_lookup_v4", v4 as fn(u32) -> IpAddr), ("source_range_lookup_v6", v6)] {
        // Every other one is within.
        let sources: Vec<Addr> = (0..SOURCES).map(|n| source(n.wrapping_mul(0x85eb_ca6b) % RANGES).into()).collect();
        let look = || timed(|| sources.iter().filter(|source| ranges.admits(black_box(source))).count());
        let values = (0..runs).map(|_| look().0.as_secs_f64() * 1e9 / f64::from(SOURCES));
        figures.push(figure(name, "ns", values.collect()));
    }
    figures.into_iter().map(|figure| figure.of(RANGES.to_string())).collect()
}

/// Addresses all over the space, no two in one /24 of what is admitted.
fn v4(n: u32) -> IpAddr {
    IpAddr::from((n.wrapping_mul(0x9e37_79b1) & 0xffff_ff00).to_be_bytes())
}

fn v6(n: u32) -> IpAddr {
    IpAddr::from(((0x2000_0000_0000_u128 | u128::from(n.wrapping_mul(0x9e37_79b1))) << 80).to_be_bytes())
}

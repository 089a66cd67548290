//! The table of one Service port: who is chosen how often.

use std::sync::Arc;
use std::time::Duration;

use wire::{Addr, Port};

use crate::id::{BackendId, ServiceId};
use crate::maglev::Maglev;
use crate::model::{Algorithm, ServicePort, TABLE_SIZES};
use crate::ranges::SourceRanges;
use crate::tables::{SelectionSeed, ServiceTable, UsableBackend};
use crate::time::Tick;

/// Longest timeout: half of the ticks' range is about 26 days, and this well below it.
const LONGEST_TIMEOUT_MS: u128 = 20 * 86_400_000;

/// An endpoint that gets new flows, by what its Maglev permutation is made of.
pub(super) type Usable = (Addr, Port, u16, BackendId);

/// The table of a Service port: the former one where nothing changed, its Maglev table where only settings did.
pub(super) fn service_table(
    id: ServiceId,
    port: &ServicePort,
    usable: &[Usable],
    ranges: SourceRanges,
    former: Option<&Arc<ServiceTable>>,
    seed: SelectionSeed,
) -> Arc<ServiceTable> {
    let (cumulative, stride) = shares(usable);
    let mut table = ServiceTable {
        id,
        protocol: port.key.protocol,
        port: Port::new(port.port),
        algorithm: port.algorithm,
        mode: port.mode,
        affinity: port.affinity.map(ticks),
        ranges,
        no_endpoint: port.no_endpoint,
        udp_timeout: port.udp_timeout.map(ticks),
        usable: usable.iter().map(|&(_, _, weight, id)| UsableBackend { id, weight }).collect(),
        cumulative,
        stride,
        table_size: table_size(port, former),
        maglev: Arc::default(),
    };
    if let Some(former) = former {
        if former.usable == table.usable && former.table_size == table.table_size {
            table.maglev = Arc::clone(&former.maglev);
        }
        if **former == table {
            return Arc::clone(former);
        }
    }
    let by_hash = matches!(table.algorithm, Algorithm::Maglev | Algorithm::SourceHash) || table.affinity.is_some();
    if by_hash && table.maglev.size() == 0 {
        let endpoints: Vec<_> = usable.iter().map(|&(address, port, weight, _)| (address, port, weight)).collect();
        table.maglev = Arc::new(Maglev::of_endpoints(&endpoints, table.table_size, seed));
    }
    Arc::new(table)
}

/// The smallest size of the ladder that is 100 times the endpoints; never below what was reached.
fn table_size(port: &ServicePort, former: Option<&Arc<ServiceTable>>) -> usize {
    let wanted = (port.endpoints.len() * 100).max(port.min_table_size).max(former.map_or(0, |old| old.table_size));
    let [.., largest] = TABLE_SIZES;
    TABLE_SIZES.into_iter().find(|&size| size >= wanted).unwrap_or(largest)
}

/// Sums of the weights up to and with each endpoint, divided by their greatest common divisor, and round-robin's stride
/// through the total: 1 where all weights are equal, else near the golden section of the total, which spreads turns.
pub(super) fn shares(usable: &[Usable]) -> (Vec<u32>, u32) {
    let divisor = usable.iter().fold(0, |divisor, &(_, _, weight, _)| gcd(divisor, weight.into())).max(1);
    let total: u64 = usable.iter().map(|&(_, _, weight, _)| u64::from(weight) / divisor).sum();
    let shift = (64 - total.leading_zeros()).saturating_sub(31);
    let mut sum = 0u32;
    let cumulative: Vec<u32> = usable
        .iter()
        .map(|&(_, _, weight, _)| {
            sum += (((u64::from(weight) / divisor) >> shift) as u32).max(1);
            sum
        })
        .collect();
    if sum as usize == usable.len() {
        return (cumulative, 1);
    }
    let golden = (u64::from(sum) * 618 / 1000).max(1);
    let stride = (golden..).find(|&stride| gcd(stride, sum.into()) == 1).unwrap_or(1);
    (cumulative, stride as u32)
}

pub(super) fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn ticks(duration: Duration) -> u32 {
    Tick::from_millis(duration.as_millis().min(LONGEST_TIMEOUT_MS) as u64)
}

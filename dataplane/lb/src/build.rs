//! Desired state → [`Tables`].
//!
//! Runs on the control thread. What did not change is shared with the previous tables: a Service port whose endpoints,
//! weights and settings are the same keeps its [`ServiceTable`], Maglev table included. Ids come from a registry that
//! outlives the process, so rows stay where flows point.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use wire::{Addr, Port, Protocol};

use crate::id::{BackendId, ServiceId};
use crate::maglev::Maglev;
use crate::model::{Algorithm, DesiredState, EndpointState, FrontendKind, ServicePort, ServicePortKey, TABLE_SIZES};
use crate::ranges::SourceRanges;
use crate::tables::{
    AddressMap, BackendRow, BackendState, FrontendMap, FrontendRow, Hop, OurAddress, PortRow, SelectionSeed,
    ServiceTable, SnatAddress, SnatPool, Tables, Timeouts, UsableBackend,
};
use crate::time::Tick;

/// Longest timeout: half of the ticks' range is about 26 days, and this well below it.
const LONGEST_TIMEOUT_MS: u128 = 20 * 86_400_000;

/// Where stable ids come from; the flow file's registry.
pub trait Ids {
    /// The id of a Service port, a new one where it has none. `None`: no slot is left.
    fn service_id(&mut self, key: &ServicePortKey) -> Option<ServiceId>;
    /// The id of an endpoint of a Service port, a new one where it has none. `None`: no slot is left.
    fn backend_id(&mut self, key: &ServicePortKey, address: Addr, port: Port) -> Option<BackendId>;
    /// Ends the use of an id that nothing desires and no flow has; its slot may go to another.
    fn release_service(&mut self, id: ServiceId);
    /// As [`Ids::release_service`].
    fn release_backend(&mut self, id: BackendId);
    /// How many flows this endpoint has, over all workers.
    fn connections(&self, id: BackendId) -> u32;
}

/// An endpoint that flows go to though no tables know it: found in an adopted flow file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptBackend {
    /// Its id.
    pub id: BackendId,
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: Port,
}

/// What tables are built from besides the desired state.
#[derive(Clone, Debug, Default)]
pub struct BuildConfig {
    /// NICs by [`crate::PortId`].
    pub ports: Vec<PortRow>,
    /// SNAT addresses of both families.
    pub snat: Vec<SnatAddress>,
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// Most flows of one source; 0: no limit.
    pub flows_per_source: u32,
    /// Seed of endpoint selection.
    pub seed: SelectionSeed,
    /// Removed endpoints whose drain ended: their rows are freed, and so their flows end.
    pub expired: HashSet<BackendId>,
    /// Endpoints of adopted flows; counts for the first tables. Whatever of them has neither flows nor is desired is
    /// released at once: no worker runs by older tables yet.
    pub kept: Vec<KeptBackend>,
    /// Service ports that had an id, for the first tables too.
    pub kept_services: Vec<ServiceId>,
}

/// What was built, and what there was no room for.
#[derive(Debug)]
pub struct Built {
    /// To publish.
    pub tables: Tables,
    /// Service ports and endpoints that found no slot in the registry: they are not served.
    pub refused: usize,
}

/// Builds the tables that follow `previous`. `hops` says how an address is reached.
///
/// An endpoint that is no longer desired keeps a row of state [`BackendState::Removed`] while it has connections. Its id
/// is released one build later at the earliest, so that no worker opens a flow to it by older tables.
#[must_use]
pub fn build(
    previous: Option<&Tables>,
    desired: &DesiredState,
    ids: &mut dyn Ids,
    hops: &dyn Fn(IpAddr) -> Hop,
    config: &BuildConfig,
) -> Built {
    let mut rows = Rows { rows: Vec::new(), hops };
    let mut services: Vec<Option<Arc<ServiceTable>>> = Vec::new();
    let mut frontends = Vec::new();
    let mut refused = 0;
    for port in &desired.service_ports {
        let Some(id) = ids.service_id(&port.key) else {
            refused += 1 + port.endpoints.len();
            continue;
        };
        let usable = rows.take_endpoints(port, ids, &mut refused);
        let former = previous.and_then(|tables| tables.services.get(id.index())?.as_ref()).filter(|old| old.id == id);
        let same_seed = previous.is_some_and(|tables| tables.seed == config.seed);
        if services.len() <= id.index() {
            services.resize(id.index() + 1, None);
        }
        services[id.index()] = Some(service_table(id, port, &usable, former, same_seed, config.seed));
        frontends.extend(frontend_rows(id, port));
    }
    if let Some(previous) = previous {
        rows.keep_removed(&previous.backends, ids, &config.expired);
        release_services(previous.services.iter().flatten().map(|old| old.id), &services, ids);
    }
    rows.keep_adopted(&config.kept, ids);
    release_services(config.kept_services.iter().copied(), &services, ids);
    let shared = Tables::default();
    let previous = previous.unwrap_or(&shared);
    let tables = Tables {
        generation: previous.generation + 1,
        frontends: reuse(&previous.frontends, FrontendMap::new(&frontends)),
        addresses: reuse(&previous.addresses, AddressMap::new(&our_addresses(desired, &config.snat))),
        services,
        backends: reuse(&previous.backends, rows.rows),
        ports: config.ports.clone(),
        snat: reuse(&previous.snat, snat_pool(&config.snat)),
        timeouts: config.timeouts,
        flows_per_source: config.flows_per_source,
        seed: config.seed,
    };
    Built { tables, refused }
}

/// The previous tables with every next hop asked for anew; all else is shared.
#[must_use]
pub fn rehop(previous: &Tables, hops: &dyn Fn(IpAddr) -> Hop) -> Tables {
    let in_use = |row: &&mut BackendRow| row.address != Addr::UNSPECIFIED;
    let mut rows = previous.backends.to_vec();
    rows.iter_mut().filter(in_use).for_each(|row| row.hop = hops(row.address.into()));
    Tables {
        generation: previous.generation + 1,
        frontends: Arc::clone(&previous.frontends),
        addresses: Arc::clone(&previous.addresses),
        services: previous.services.clone(),
        backends: reuse(&previous.backends, rows),
        ports: previous.ports.clone(),
        snat: Arc::clone(&previous.snat),
        timeouts: previous.timeouts,
        flows_per_source: previous.flows_per_source,
        seed: previous.seed,
    }
}

/// Endpoint rows while they are put together.
struct Rows<'a> {
    rows: Vec<BackendRow>,
    hops: &'a dyn Fn(IpAddr) -> Hop,
}

/// An endpoint that gets new flows, by what its Maglev permutation is made of.
type Usable = (Addr, Port, u16, BackendId);

impl Rows<'_> {
    /// Gives the endpoints of a Service port their rows. The usable ones of weight above 0, ordered by address and port.
    fn take_endpoints(&mut self, port: &ServicePort, ids: &mut dyn Ids, refused: &mut usize) -> Vec<Usable> {
        let mut usable: Vec<Usable> = Vec::with_capacity(port.endpoints.len());
        for endpoint in &port.endpoints {
            let (address, number) = (Addr::from(endpoint.address), Port::new(endpoint.port));
            let Some(id) = ids.backend_id(&port.key, address, number) else {
                *refused += 1;
                continue;
            };
            let takes_flows = endpoint.state == EndpointState::Usable && endpoint.weight > 0;
            let state = if takes_flows { BackendState::Usable } else { BackendState::Draining };
            self.put(id, address, number, state);
            if takes_flows {
                usable.push((address, number, endpoint.weight, id));
            }
        }
        usable.sort_unstable();
        usable.dedup_by_key(|&mut (.., id)| id);
        usable
    }

    /// Rows of endpoints that are no longer desired: kept while they have connections, then released.
    fn keep_removed(&mut self, previous: &[BackendRow], ids: &mut dyn Ids, expired: &HashSet<BackendId>) {
        for old in previous {
            if old.address == Addr::UNSPECIFIED || self.has(old.id) {
                continue;
            }
            let was_removed = matches!(old.state, BackendState::Removed | BackendState::Free);
            if was_removed && ids.connections(old.id) == 0 {
                ids.release_backend(old.id);
            } else if expired.contains(&old.id) {
                // The row still says whose the slot is, so that it is released when the last flow is gone.
                self.put(old.id, old.address, old.port, BackendState::Free);
            } else {
                self.put(old.id, old.address, old.port, BackendState::Removed);
            }
        }
    }

    /// Rows of endpoints that only adopted flows know; the slots of others that nothing desires are free again.
    fn keep_adopted(&mut self, kept: &[KeptBackend], ids: &mut dyn Ids) {
        for kept in kept {
            let taken = self.rows.get(kept.id.index()).is_some_and(|row| row.address != Addr::UNSPECIFIED);
            if taken {
                continue;
            }
            if ids.connections(kept.id) > 0 {
                self.put(kept.id, kept.address, kept.port, BackendState::Removed);
            } else {
                ids.release_backend(kept.id);
            }
        }
    }

    fn has(&self, id: BackendId) -> bool {
        self.rows.get(id.index()).is_some_and(|row| row.id == id && row.address != Addr::UNSPECIFIED)
    }

    fn put(&mut self, id: BackendId, address: Addr, port: Port, state: BackendState) {
        if self.rows.len() <= id.index() {
            self.rows.resize(id.index() + 1, BackendRow::FREE);
        }
        self.rows[id.index()] = BackendRow { id, address, port, state, hop: (self.hops)(address.into()) };
    }
}

/// The table of a Service port: the former one where nothing changed, its Maglev table where only settings did.
fn service_table(
    id: ServiceId,
    port: &ServicePort,
    usable: &[Usable],
    former: Option<&Arc<ServiceTable>>,
    same_seed: bool,
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
        ranges: SourceRanges::new(&port.source_ranges),
        no_endpoint: port.no_endpoint,
        udp_timeout: port.udp_timeout.map(ticks),
        usable: usable.iter().map(|&(_, _, weight, id)| UsableBackend { id, weight }).collect(),
        cumulative,
        stride,
        table_size: table_size(port, former),
        maglev: Arc::default(),
    };
    if let Some(former) = former.filter(|_| same_seed) {
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
fn shares(usable: &[Usable]) -> (Vec<u32>, u32) {
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

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn ticks(duration: Duration) -> u32 {
    Tick::from_millis(duration.as_millis().min(LONGEST_TIMEOUT_MS) as u64)
}

fn frontend_rows(id: ServiceId, port: &ServicePort) -> impl Iterator<Item = (Addr, Port, Protocol, FrontendRow)> + '_ {
    port.frontends.iter().map(move |frontend| {
        let external = matches!(frontend.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp);
        let row = FrontendRow { service: id, check_source_ranges: external && !port.source_ranges.is_empty() };
        (frontend.address.into(), Port::new(frontend.port), port.key.protocol, row)
    })
}

/// SNAT addresses come first: what arrives at a host's own one that is both is a reply unless a frontend is there.
fn our_addresses(desired: &DesiredState, snat: &[SnatAddress]) -> Vec<(Addr, OurAddress)> {
    let snat = snat.iter().map(|entry| (entry.address, OurAddress::Snat { dedicated: entry.dedicated }));
    let vips = desired.addresses.iter().map(|vip| {
        let what = if vip.host_owned { OurAddress::HostOwned } else { OurAddress::Vip { echo: vip.echo } };
        (vip.address.into(), what)
    });
    snat.chain(vips).collect()
}

fn snat_pool(snat: &[SnatAddress]) -> SnatPool {
    let (v4, v6) = snat.iter().partition(|entry| entry.address.is_v4());
    SnatPool { v4, v6 }
}

fn release_services(
    former: impl Iterator<Item = ServiceId>,
    services: &[Option<Arc<ServiceTable>>],
    ids: &mut dyn Ids,
) {
    for old in former {
        let stays = services.get(old.index()).and_then(Option::as_ref).is_some_and(|new| new.id == old);
        if !stays {
            ids.release_service(old);
        }
    }
}

fn reuse<T: PartialEq>(previous: &Arc<T>, new: T) -> Arc<T> {
    if **previous == new { Arc::clone(previous) } else { Arc::new(new) }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;

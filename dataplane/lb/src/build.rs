//! Desired state → [`Tables`].
//!
//! Runs on the control thread. What did not change is shared with the previous tables: a Service port whose endpoints,
//! weights and settings are the same keeps its [`ServiceTable`] and its endpoints' rows but for their next hops; one whose
//! settings alone changed keeps its Maglev table. Ids come from a registry that outlives the process, so rows stay where
//! flows point.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use wire::{Addr, MacAddr, Port, Protocol};

use crate::id::{BackendId, PortId, ServiceId};
use crate::maglev::Maglev;
use crate::model::{
    Algorithm, DesiredState, Endpoint, EndpointState, FrontendKind, Mode, ServicePort, ServicePortKey, TABLE_SIZES,
};
use crate::origin::Origin;
use crate::ranges::SourceRanges;
use crate::tables::{
    AddressMap, BackendRow, BackendState, EndpointSet, FrontendMap, FrontendRow, Hop, Link, MssClamp, OurAddress,
    PortRow, SelectionSeed, ServiceTable, SnatAddress, SnatPool, Tables, Timeouts, TunnelSources, UsableBackend,
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
    /// Source addresses of outer headers.
    pub tunnels: Vec<Addr>,
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// What becomes of the segment sizes that SYNs offer.
    pub mss_clamp: MssClamp,
    /// Most flows of one source; 0: no limit.
    pub flows_per_source: u32,
    /// Most flows that one source may open a second; 0: no limit.
    pub new_flows_per_source: u32,
    /// Seed of endpoint selection.
    pub seed: SelectionSeed,
    /// Removed endpoints whose drain ended: their rows are freed, and so their flows end.
    pub expired: HashSet<BackendId>,
    /// Endpoints of adopted flows; counts for the first tables. Whatever of them has neither flows nor is desired is
    /// released at once: no worker runs by older tables yet.
    pub kept: Vec<KeptBackend>,
    /// Service ports that had an id, for the first tables too.
    pub kept_services: Vec<ServiceId>,
    /// Whether every next hop is as it was when the previous tables were built or [`rehop`] made them, so that those of
    /// new endpoints alone are asked for.
    pub same_hops: bool,
}

/// How frames leave by each NIC, to whom is not said.
fn links(ports: &[PortRow]) -> Vec<Link> {
    let link = |(n, row): (usize, &PortRow)| Link::new(PortId(n as u8), row.mac, MacAddr::UNKNOWN, row.mtu);
    ports.iter().enumerate().map(link).collect()
}

/// What was built, and what there was no room for.
#[derive(Debug)]
pub struct Built {
    /// To publish.
    pub tables: Tables,
    /// Service ports and endpoints that found no slot in the registry: they are not served.
    pub refused: usize,
}

/// Builds the tables that follow `previous`. `hops` says how an address is reached; it is asked for every endpoint, where
/// [`BuildConfig::same_hops`] does not say that this would be in vain.
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
    let first = Tables::default();
    let is_first = previous.is_none();
    let previous = previous.unwrap_or(&first);
    let same_seed = !is_first && previous.seed == config.seed;
    let mut rows = Rows::after(previous, hops);
    let mut services: Vec<Option<Arc<ServiceTable>>> = Vec::with_capacity(desired.service_ports.len());
    let mut origins: Vec<Origin> = Vec::with_capacity(desired.service_ports.len());
    let mut refused = 0;
    let (mut same_places, mut same_answering) = (!is_first, !is_first);
    let mut formers = Formers::of(previous);
    let mut made = MadeRanges::default();
    for port in &desired.service_ports {
        let known = formers.next_of(port);
        let Some(id) = known.map(|origin| origin.id).or_else(|| ids.service_id(&port.key)) else {
            refused += 1 + port.endpoints.len();
            continue;
        };
        if services.len() <= id.index() {
            services.resize(id.index() + 1, None);
        }
        let origin = known.or_else(|| formers.by_id(id));
        let former = origin.and_then(|origin| Some((previous.services.get(id.index())?.as_ref()?, origin)));
        same_places &= origin.is_some_and(|origin| origin.is_reached_as(port));
        same_answering &= origin.is_some_and(|origin| origin.answers_like(port));
        services[id.index()] = match former {
            Some((former, origin)) if same_seed && origin.is_whole() && origin.is(port) => {
                origins.push(Origin { id, port: Arc::clone(port), backends: Arc::clone(&origin.backends) });
                Some(Arc::clone(former))
            }
            _ => {
                rows.leave(origin);
                let (usable, backends) = rows.take_endpoints(port, ids, &mut refused);
                origins.push(Origin { id, port: Arc::clone(port), backends });
                let same = former.filter(|(_, origin)| origin.port.source_ranges == port.source_ranges);
                let ranges = made.ranges(port, same.map(|(former, _)| &former.ranges));
                let former = former.map(|(former, _)| former);
                Some(service_table(id, port, &usable, ranges, former.filter(|_| same_seed), config.seed))
            }
        };
    }
    for origin in previous.origins.iter() {
        let at = origin.id.index();
        let same = services.get(at).zip(previous.services.get(at)).is_some_and(|(new, old)| match (new, old) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old) || new.id == origin.id,
            _ => false,
        });
        if !same {
            rows.leave(Some(origin));
            ids.release_service(origin.id);
        }
    }
    same_places &= previous.origins.len() == origins.len();
    same_answering &= previous.origins.len() == origins.len();
    rows.keep_removed(ids, &config.expired);
    rows.keep_adopted(&config.kept, ids);
    release_services(&config.kept_services, &services, ids);
    let ours = our_addresses(desired, config);
    let same_addresses = !is_first && *previous.ours == ours;
    if !config.same_hops {
        rows.ask_again();
    }
    let (backends, leaving) = rows.done();
    let tables = Tables {
        generation: previous.generation + 1,
        frontends: if same_places { Arc::clone(&previous.frontends) } else { frontend_map(previous, &origins) },
        answering: if same_answering { Arc::clone(&previous.answering) } else { Arc::new(answering(&origins)) },
        addresses: match same_addresses {
            true => Arc::clone(&previous.addresses),
            false => reuse(&previous.addresses, AddressMap::new(&ours)),
        },
        ours: if same_addresses { Arc::clone(&previous.ours) } else { Arc::new(ours) },
        services,
        origins: Arc::new(origins),
        backends,
        drains_over: leaving.iter().any(|id| config.expired.contains(id)),
        leaving,
        ports: config.ports.clone(),
        links: links(&config.ports),
        snat: reuse(&previous.snat, snat_pool(&config.snat)),
        tunnels: reuse(&previous.tunnels, TunnelSources::new(&config.tunnels)),
        timeouts: config.timeouts,
        mss_clamp: config.mss_clamp,
        flows_per_source: config.flows_per_source,
        new_flows_per_source: config.new_flows_per_source,
        seed: config.seed,
    };
    Built { tables, refused }
}

/// What the previous tables were made of, walked along with the desired state: both are ordered by key.
struct Formers<'t> {
    origins: &'t [Origin],
    at: usize,
    by_id: OnceCell<HashMap<ServiceId, &'t Origin>>,
}

impl<'t> Formers<'t> {
    fn of(previous: &'t Tables) -> Self {
        Self { origins: &previous.origins, at: 0, by_id: OnceCell::new() }
    }

    /// What there was of this Service port, where it stands in order.
    fn next_of(&mut self, port: &Arc<ServicePort>) -> Option<&'t Origin> {
        while let Some(origin) = self.origins.get(self.at) {
            let same = Arc::ptr_eq(&origin.port, port);
            if !same && origin.port.key > port.key {
                return None;
            }
            self.at += 1;
            if same || origin.port.key == port.key {
                return Some(origin);
            }
        }
        None
    }

    fn by_id(&self, id: ServiceId) -> Option<&'t Origin> {
        let by_id = self.by_id.get_or_init(|| self.origins.iter().map(|origin| (origin.id, origin)).collect());
        by_id.get(&id).copied()
    }
}

/// The endpoints of UDP.
fn answering(origins: &[Origin]) -> EndpointSet {
    let udp = origins.iter().map(|origin| &origin.port).filter(|port| port.key.protocol == Protocol::UDP);
    let endpoints = udp.flat_map(|port| &port.endpoints);
    let place = |endpoint: &Endpoint| (Addr::from(endpoint.address), Port::new(endpoint.port), Protocol::UDP);
    EndpointSet::new(&endpoints.map(place).collect::<Vec<_>>())
}

/// Source ranges as they are looked up: made once for all ports of a Service, which come one after the other and share
/// what is written, and not at all where a former table has them.
#[derive(Default)]
struct MadeRanges {
    written: Arc<[(IpAddr, u8)]>,
    made: SourceRanges,
}

impl MadeRanges {
    fn ranges(&mut self, port: &ServicePort, former: Option<&SourceRanges>) -> SourceRanges {
        if !Arc::ptr_eq(&self.written, &port.source_ranges) {
            self.made = former.cloned().unwrap_or_else(|| SourceRanges::new(&port.source_ranges));
            self.written = Arc::clone(&port.source_ranges);
        }
        self.made.clone()
    }
}

/// The previous tables with every next hop asked for anew; all else is shared.
#[must_use]
pub fn rehop(previous: &Tables, hops: &dyn Fn(IpAddr) -> Hop) -> Tables {
    let in_use = |row: &&mut BackendRow| row.address != Addr::UNSPECIFIED;
    let mut rows = previous.backends.to_vec();
    rows.iter_mut().filter(in_use).for_each(|row| *row = row.by(hops(row.address.into())));
    Tables {
        generation: previous.generation + 1,
        frontends: Arc::clone(&previous.frontends),
        addresses: Arc::clone(&previous.addresses),
        answering: Arc::clone(&previous.answering),
        ours: Arc::clone(&previous.ours),
        services: previous.services.clone(),
        origins: Arc::clone(&previous.origins),
        backends: reuse(&previous.backends, rows),
        leaving: previous.leaving.clone(),
        drains_over: previous.drains_over,
        ports: previous.ports.clone(),
        links: previous.links.clone(),
        snat: Arc::clone(&previous.snat),
        tunnels: Arc::clone(&previous.tunnels),
        timeouts: previous.timeouts,
        mss_clamp: previous.mss_clamp,
        flows_per_source: previous.flows_per_source,
        new_flows_per_source: previous.new_flows_per_source,
        seed: previous.seed,
    }
}

/// Endpoint rows while they are put together: the previous ones until the first differs.
struct Rows<'a> {
    previous: &'a Tables,
    own: Option<Vec<BackendRow>>,
    /// Those that are desired and were looked at.
    taken: HashSet<BackendId>,
    /// Those that perhaps are desired no longer.
    leaving: Vec<BackendId>,
    hops: &'a dyn Fn(IpAddr) -> Hop,
}

/// An endpoint that gets new flows, by what its Maglev permutation is made of.
type Usable = (Addr, Port, u16, BackendId);

impl<'a> Rows<'a> {
    fn after(previous: &'a Tables, hops: &'a dyn Fn(IpAddr) -> Hop) -> Self {
        Self { previous, own: None, taken: HashSet::new(), leaving: previous.leaving.clone(), hops }
    }

    /// Gives the endpoints of a Service port their rows. Those of weight above 0 that get new flows, ordered by address
    /// and port; and the ids of all in the Service port's order, `None` for one that found no room.
    fn take_endpoints(
        &mut self,
        port: &ServicePort,
        ids: &mut dyn Ids,
        refused: &mut usize,
    ) -> (Vec<Usable>, Arc<[Option<BackendId>]>) {
        let mut usable: Vec<Usable> = Vec::with_capacity(port.endpoints.len());
        let mut given = Vec::with_capacity(port.endpoints.len());
        for endpoint in &port.endpoints {
            let (address, number) = (Addr::from(endpoint.address), Port::new(endpoint.port));
            let id = ids.backend_id(&port.key, address, number);
            given.push(id);
            let Some(id) = id else {
                *refused += 1;
                continue;
            };
            let takes_flows = endpoint.state == EndpointState::Usable && endpoint.weight > 0;
            let state = if takes_flows { BackendState::Usable } else { BackendState::Draining };
            self.put(id, (address, number), state, port.mode == Mode::DsrL2);
            self.taken.insert(id);
            if takes_flows {
                usable.push((address, number, endpoint.weight, id));
            }
        }
        usable.sort_unstable();
        usable.dedup_by_key(|&mut (.., id)| id);
        (usable, given.into())
    }

    /// Of these some may be desired no longer.
    fn leave(&mut self, origin: Option<&Origin>) {
        self.leaving.extend(origin.into_iter().flat_map(Origin::ids));
    }

    /// Rows of endpoints that are no longer desired: kept while they have connections, then released.
    fn keep_removed(&mut self, ids: &mut dyn Ids, expired: &HashSet<BackendId>) {
        let mut candidates = std::mem::take(&mut self.leaving);
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|id| !self.taken.contains(id));
        for id in candidates {
            let Some(&old) = self.previous.backends.get(id.index()).filter(|row| row.id == id) else { continue };
            let was_removed = matches!(old.state, BackendState::Removed | BackendState::Free);
            if was_removed && ids.connections(id) == 0 {
                self.set(id.index(), BackendRow::FREE);
                ids.release_backend(id);
            } else {
                // The row of one whose drain is over still says whose the slot is, so that it is released when the last
                // flow is gone.
                let state = if expired.contains(&id) { BackendState::Free } else { BackendState::Removed };
                self.put(id, (old.address, old.port), state, old.near);
                self.leaving.push(id);
            }
        }
    }

    /// Rows of endpoints that only adopted flows know; the slots of others that nothing desires are free again.
    fn keep_adopted(&mut self, kept: &[KeptBackend], ids: &mut dyn Ids) {
        for kept in kept {
            if self.rows().get(kept.id.index()).is_some_and(|row| row.address != Addr::UNSPECIFIED) {
                continue;
            }
            if ids.connections(kept.id) > 0 {
                self.put(kept.id, (kept.address, kept.port), BackendState::Removed, false);
                self.leaving.push(kept.id);
            } else {
                ids.release_backend(kept.id);
            }
        }
    }

    fn rows(&self) -> &[BackendRow] {
        self.own.as_ref().unwrap_or(&self.previous.backends)
    }

    fn put(&mut self, id: BackendId, (address, port): (Addr, Port), state: BackendState, near: bool) {
        let row = BackendRow { id, address, port, state, near, ..BackendRow::FREE };
        self.set(id.index(), row.by((self.hops)(address.into())));
    }

    fn set(&mut self, at: usize, row: BackendRow) {
        if self.rows().get(at) == Some(&row) {
            return;
        }
        let rows = self.own.get_or_insert_with(|| self.previous.backends.to_vec());
        if rows.len() <= at {
            rows.resize(at + 1, BackendRow::FREE);
        }
        rows[at] = row;
    }

    /// Asks for the next hop of every row: a neighbour may have been found since it was made, whatever else stayed.
    fn ask_again(&mut self) {
        for at in 0..self.rows().len() {
            let row = self.rows()[at];
            if row.address != Addr::UNSPECIFIED {
                self.set(at, row.by((self.hops)(row.address.into())));
            }
        }
    }

    /// The rows, and those of endpoints that are not desired.
    fn done(self) -> (Arc<Vec<BackendRow>>, Vec<BackendId>) {
        let Some(mut rows) = self.own else { return (Arc::clone(&self.previous.backends), self.leaving) };
        let used = rows.iter().rposition(|row| row.address != Addr::UNSPECIFIED).map_or(0, |last| last + 1);
        rows.truncate(used);
        (Arc::new(rows), self.leaving)
    }
}

/// The table of a Service port: the former one where nothing changed, its Maglev table where only settings did.
fn service_table(
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

fn frontend_map(previous: &Tables, origins: &[Origin]) -> Arc<FrontendMap> {
    let rows: Vec<_> = origins.iter().flat_map(|origin| frontend_rows(origin.id, &origin.port)).collect();
    reuse(&previous.frontends, FrontendMap::new(&rows))
}

/// SNAT addresses come first: what arrives at a host's own one that is both is a reply unless a frontend is there. Those
/// that tunnels start at get errors alone.
fn our_addresses(desired: &DesiredState, config: &BuildConfig) -> Vec<(Addr, OurAddress)> {
    let tunnels = config.tunnels.iter().map(|address| (*address, OurAddress::Snat { dedicated: true }));
    let snat = config.snat.iter().map(|entry| (entry.address, OurAddress::Snat { dedicated: entry.dedicated }));
    let vips = desired.addresses.iter().map(|vip| {
        let what = if vip.host_owned { OurAddress::HostOwned } else { OurAddress::Vip { echo: vip.echo } };
        (vip.address.into(), what)
    });
    snat.chain(vips).chain(tunnels).collect()
}

fn snat_pool(snat: &[SnatAddress]) -> SnatPool {
    let (v4, v6) = snat.iter().partition(|entry| entry.address.is_v4());
    SnatPool { v4, v6 }
}

fn release_services(former: &[ServiceId], services: &[Option<Arc<ServiceTable>>], ids: &mut dyn Ids) {
    for &old in former {
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
#[path = "build_model_tests.rs"]
mod model_tests;
#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;

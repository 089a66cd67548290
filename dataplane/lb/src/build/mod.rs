//! Desired state → [`Tables`].
//!
//! Runs on the control thread. What did not change is shared with the previous tables: a Service port whose endpoints,
//! weights and settings are the same keeps its [`ServiceTable`] and its endpoints' rows but for their next hops; one whose
//! settings alone changed keeps its Maglev table. Ids come from a registry that outlives the process, so rows stay where
//! flows point.

mod rows;
mod service;

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use wire::{Addr, MacAddr, Port, Protocol};

pub use self::rows::Spare;

use self::rows::Rows;
use self::service::service_table;
use crate::id::{BackendId, PortId, ServiceId};
use crate::list::List;
use crate::model::{DesiredState, Endpoint, FrontendKind, ServicePort, ServicePortKey};
use crate::origin::Origin;
use crate::ranges::SourceRanges;
use crate::select::SelectionHash;
use crate::tables::{
    AddressMap, BackendRow, EndpointSet, FrontendMap, FrontendRow, Hop, KernelPort, Link, MssClamp, OurAddress,
    PortRow, SelectionSeed, ServiceTable, SnatAddress, SnatPool, Tables, Timeouts, TunnelSources,
};

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
    /// The same of the kernel port.
    pub kernel_snat: Vec<SnatAddress>,
    /// The way to the kernel.
    pub kernel: Option<KernelPort>,
    /// Source addresses of outer headers.
    pub tunnels: Vec<Addr>,
    /// VIPs that another node answers ARP and NDP for; they are served here too.
    pub elsewhere: BTreeSet<IpAddr>,
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
    /// Endpoints of Service ports that are not as they were: what is new is among them.
    pub taken: HashSet<BackendId>,
}

/// Builds the tables that follow `previous`. `hops` says how an address is reached; it is asked for every endpoint, where
/// [`BuildConfig::same_hops`] does not say that this would be in vain.
///
/// An endpoint that is no longer desired keeps a row of state [`crate::tables::BackendState::Removed`] while it has
/// connections. Its id is released one build later at the earliest, so that no worker opens a flow to it by older tables.
#[must_use]
pub fn build(
    previous: Option<&Tables>,
    desired: &DesiredState,
    ids: &mut dyn Ids,
    hops: &dyn Fn(IpAddr) -> Hop,
    config: &BuildConfig,
) -> Built {
    build_with(previous, desired, ids, hops, config, &mut Spare::default())
}

/// The same, in memory of former tables where there is some.
#[must_use]
pub fn build_with(
    previous: Option<&Tables>,
    desired: &DesiredState,
    ids: &mut dyn Ids,
    hops: &dyn Fn(IpAddr) -> Hop,
    config: &BuildConfig,
    spare: &mut Spare,
) -> Built {
    let first = Tables::default();
    let mut parts = Parts::after(previous, &first, (hops, spare), config);
    for (at, piece) in desired.service_ports.pieces().iter().enumerate() {
        if !parts.keep(at, &desired.service_ports) {
            piece.iter().for_each(|port| parts.take(port, ids));
        }
    }
    parts.leave_others(ids);
    parts.rows.keep_removed(ids, &config.expired);
    parts.rows.keep_adopted(&config.kept, ids);
    release_services(&config.kept_services, &parts.services, ids);
    if !config.same_hops {
        parts.rows.ask_again();
    }
    parts.done(desired, our_addresses(desired, config))
}

/// Tables while they are put together: Service ports, and the rows of their endpoints.
struct Parts<'a> {
    config: &'a BuildConfig,
    /// Those before; empty ones if there are none.
    previous: &'a Tables,
    is_first: bool,
    same_seed: bool,
    /// Whether every Service port taken so far is reached, and answered for, as before.
    same_places: bool,
    same_answering: bool,
    formers: Formers<'a>,
    ranges: MadeRanges,
    rows: Rows<'a>,
    /// The previous ones until one differs.
    services: List<Option<Arc<ServiceTable>>>,
    origins: List<Origin>,
    /// Those that were looked at.
    taken: HashSet<ServiceId>,
    refused: usize,
}

impl<'a> Parts<'a> {
    fn after(
        previous: Option<&'a Tables>,
        first: &'a Tables,
        (hops, spare): (&'a dyn Fn(IpAddr) -> Hop, &'a mut Spare),
        config: &'a BuildConfig,
    ) -> Self {
        let is_first = previous.is_none();
        let previous = previous.unwrap_or(first);
        Self {
            config,
            previous,
            is_first,
            same_seed: !is_first && previous.selection.seed() == config.seed,
            same_places: !is_first,
            same_answering: !is_first,
            formers: Formers::of(previous),
            ranges: MadeRanges::default(),
            rows: Rows::after(previous, hops, spare),
            services: previous.services.clone(),
            origins: List::default(),
            taken: HashSet::new(),
            refused: 0,
        }
    }

    /// Takes a piece of the Service ports in without a look at it, if it is as it was before. Whether it is.
    fn keep(&mut self, at: usize, ports: &List<Arc<ServicePort>>) -> bool {
        let in_place = self.origins.is_even() && self.origins.pieces().len() == at;
        let kept = in_place && self.same_seed && self.previous.made_of.shares(at, ports);
        if kept {
            self.origins.share(&self.previous.origins.pieces()[at]);
            self.formers.at = self.origins.len();
        }
        kept
    }

    /// Takes a Service port in, as it was before where nothing about it changed.
    fn take(&mut self, port: &Arc<ServicePort>, ids: &mut dyn Ids) {
        let known = self.formers.next_of(port);
        let Some(id) = known.map(|origin| origin.id).or_else(|| ids.service_id(&port.key)) else {
            self.refused += 1 + port.endpoints.len();
            return;
        };
        self.taken.insert(id);
        self.services.fill(id.index() + 1, &None);
        let origin = known.or_else(|| self.formers.by_id(id));
        let former = origin.and_then(|origin| Some((self.previous.services.get(id.index())?.as_ref()?, origin)));
        self.same_places &= origin.is_some_and(|origin| origin.is_reached_as(port));
        self.same_answering &= origin.is_some_and(|origin| origin.answers_like(port));
        match former {
            Some((_, origin)) if self.same_seed && origin.is_whole() && origin.is(port) => {
                self.origins.push(Origin { id, port: Arc::clone(port), backends: Arc::clone(&origin.backends) });
            }
            _ => {
                self.rows.leave(origin);
                let (usable, backends) = self.rows.take_endpoints(port, ids, &mut self.refused);
                self.origins.push(Origin { id, port: Arc::clone(port), backends });
                let same = former.filter(|(_, origin)| origin.port.source_ranges == port.source_ranges);
                let ranges = self.ranges.ranges(port, same.map(|(former, _)| &former.ranges));
                let former = former.map(|(former, _)| former).filter(|_| self.same_seed);
                let table = service_table(id, port, &usable, ranges, former, self.config.seed);
                self.services.set(id.index(), Some(table));
            }
        }
    }

    /// Lets those go that were not taken in again.
    fn leave_others(&mut self, ids: &mut dyn Ids) {
        for origin in self.previous.origins.without_shared(&self.origins) {
            if self.taken.contains(&origin.id) {
                continue;
            }
            self.rows.leave(Some(origin));
            let at = origin.id.index();
            // Unless another has the slot by now.
            if self.services[at].as_ref().is_some_and(|table| table.id == origin.id) {
                self.services.set(at, None);
            }
            ids.release_service(origin.id);
        }
        let as_many = self.previous.origins.len() == self.origins.len();
        self.same_places &= as_many;
        self.same_answering &= as_many;
    }

    fn done(self, desired: &DesiredState, ours: Vec<(Addr, OurAddress)>) -> Built {
        let Self { config, previous, origins, .. } = self;
        let same_addresses = !self.is_first && *previous.ours == ours;
        let (backends, leaving, taken) = self.rows.done();
        let tables = Tables {
            generation: previous.generation + 1,
            frontends: match self.same_places {
                true => Arc::clone(&previous.frontends),
                false => frontend_map(previous, &origins),
            },
            answering: match self.same_answering {
                true => Arc::clone(&previous.answering),
                false => Arc::new(answering(&origins)),
            },
            addresses: match same_addresses {
                true => Arc::clone(&previous.addresses),
                false => reuse(&previous.addresses, AddressMap::new(&ours)),
            },
            ours: if same_addresses { Arc::clone(&previous.ours) } else { Arc::new(ours) },
            services: self.services,
            origins,
            made_of: if self.refused == 0 { desired.service_ports.clone() } else { List::default() },
            backends,
            drains_over: leaving.iter().any(|id| config.expired.contains(id)),
            leaving,
            ports: config.ports.clone(),
            links: links(&config.ports),
            kernel: config.kernel,
            snat: reuse(&previous.snat, snat_pool(&config.snat, &config.kernel_snat)),
            tunnels: reuse(&previous.tunnels, TunnelSources::new(&config.tunnels)),
            timeouts: config.timeouts,
            mss_clamp: config.mss_clamp,
            flows_per_source: config.flows_per_source,
            new_flows_per_source: config.new_flows_per_source,
            selection: SelectionHash::new(config.seed),
        };
        Built { tables, refused: self.refused, taken }
    }
}

/// What the previous tables were made of, walked along with the desired state: both are ordered by key.
struct Formers<'t> {
    origins: &'t List<Origin>,
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
fn answering(origins: &List<Origin>) -> EndpointSet {
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
        origins: previous.origins.clone(),
        made_of: previous.made_of.clone(),
        backends: reuse(&previous.backends, rows),
        leaving: previous.leaving.clone(),
        drains_over: previous.drains_over,
        ports: previous.ports.clone(),
        links: previous.links.clone(),
        kernel: previous.kernel,
        snat: Arc::clone(&previous.snat),
        tunnels: Arc::clone(&previous.tunnels),
        timeouts: previous.timeouts,
        mss_clamp: previous.mss_clamp,
        flows_per_source: previous.flows_per_source,
        new_flows_per_source: previous.new_flows_per_source,
        selection: previous.selection,
    }
}

fn frontend_rows(id: ServiceId, port: &ServicePort) -> impl Iterator<Item = (Addr, Port, Protocol, FrontendRow)> + '_ {
    port.frontends.iter().map(move |frontend| {
        let external = matches!(frontend.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp);
        let row = FrontendRow { service: id, check_source_ranges: external && !port.source_ranges.is_empty() };
        (frontend.address.into(), Port::new(frontend.port), port.key.protocol, row)
    })
}

fn frontend_map(previous: &Tables, origins: &List<Origin>) -> Arc<FrontendMap> {
    let rows: Vec<_> = origins.iter().flat_map(|origin| frontend_rows(origin.id, &origin.port)).collect();
    reuse(&previous.frontends, FrontendMap::new(&rows))
}

/// SNAT addresses come first: what arrives at a host's own one that is both is a reply unless a frontend is there. Those
/// that tunnels start at get errors alone.
fn our_addresses(desired: &DesiredState, config: &BuildConfig) -> Vec<(Addr, OurAddress)> {
    let tunnels = config.tunnels.iter().map(|address| (*address, OurAddress::Snat { dedicated: true }));
    let snat = config
        .snat
        .iter()
        .chain(&config.kernel_snat)
        .map(|entry| (entry.address, OurAddress::Snat { dedicated: entry.dedicated }));
    let vips = desired.addresses.iter().map(|vip| {
        let answers = !vip.internal && !config.elsewhere.contains(&vip.address);
        let what = if vip.host_owned { OurAddress::HostOwned } else { OurAddress::Vip { echo: vip.echo, answers } };
        (vip.address.into(), what)
    });
    snat.chain(vips).chain(tunnels).collect()
}

fn snat_pool(snat: &[SnatAddress], kernel: &[SnatAddress]) -> SnatPool {
    let (v4, v6) = snat.iter().partition(|entry| entry.address.is_v4());
    let (kernel_v4, kernel_v6) = kernel.iter().partition(|entry| entry.address.is_v4());
    SnatPool { v4, v6, kernel_v4, kernel_v6 }
}

fn release_services(former: &[ServiceId], services: &List<Option<Arc<ServiceTable>>>, ids: &mut dyn Ids) {
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
mod model_tests;
#[cfg(test)]
mod tests;

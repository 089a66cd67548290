//! Which endpoint a flow that opens goes to.
//!
//! Session affinity first, then the Service's algorithm. The selection hash is keyed with the selection seed, the same on
//! every box, so that boxes which share an address agree where they remember nothing.

use wire::{Addr, Port, Ports, Protocol};

use crate::affinity::Affinity;
use crate::flow::{FlowHasher, FlowKey};
use crate::id::{BackendId, ServiceId};
use crate::model::Algorithm;
use crate::tables::{BackendState, SelectionSeed, ServiceTable, Tables};
use crate::time::Tick;

/// The packet that opens a flow: its addresses, ports and protocol as the client sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The client.
    pub source: Addr,
    /// The client's port.
    pub source_port: Port,
    /// The frontend's address.
    pub destination: Addr,
    /// The frontend's port.
    pub destination_port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// What selection must know that all workers share.
pub trait Balance {
    /// How many connections this endpoint has, over all workers.
    fn connections(&self, backend: BackendId) -> u32;
    /// Session affinity.
    fn affinity(&self) -> &Affinity;
}

/// Slots of a table, or endpoints, that are looked at for another endpoint.
const LONGEST_WALK: usize = 1024;

/// A worker's own part of selection: positions of round-robin, and randomness.
pub struct Selector {
    /// By [`ServiceId::index`]; pages that no Service uses are never touched.
    turns: Vec<u32>,
    random: u64,
}

impl Selector {
    /// With a seed of its own for `random` and ties.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { turns: vec![0; ServiceId::MAX], random: seed }
    }

    /// The endpoint for a flow that opens, `None` where none is usable. Notes the choice where the Service has affinity.
    pub fn select<B: Balance + ?Sized>(
        &mut self,
        service: &ServiceTable,
        tables: &Tables,
        shared: &B,
        opening: &Opening,
        now: Tick,
    ) -> Option<BackendId> {
        let Some(timeout) = service.affinity else {
            return self.pick(service, &tables.selection, shared, opening);
        };
        let backend = self.recall(service, tables, shared, opening, now)?;
        shared.affinity().put(&opening.source, service.id, backend, now, timeout);
        Some(backend)
    }

    /// Another endpoint for a flow that opens, where the one that was chosen for it is not to have it: of those that `may`
    /// have it the next of the table after the flow's own place, or of a place drawn at random where chance or turns choose.
    pub fn another(
        &mut self,
        service: &ServiceTable,
        hash: &SelectionHash,
        opening: &Opening,
        may: &mut dyn FnMut(BackendId) -> bool,
    ) -> Option<BackendId> {
        next_by_hash(service, hash, opening, may).or_else(|| {
            let start = ((u128::from(self.next_random()) * service.usable.len() as u128) >> 64) as usize;
            let (before, after) = service.usable.split_at_checked(start)?;
            after.iter().chain(before).take(LONGEST_WALK).map(|backend| backend.id).find(|id| may(*id))
        })
    }

    /// The endpoint that a packet's flow has, as far as that is known without the flow: by affinity, or by its hash. Changes
    /// nothing.
    pub fn recall<B: Balance + ?Sized>(
        &self,
        service: &ServiceTable,
        tables: &Tables,
        shared: &B,
        opening: &Opening,
        now: Tick,
    ) -> Option<BackendId> {
        if service.affinity.is_none() {
            return by_hash_alone(service, &tables.selection, opening);
        }
        let known = shared.affinity().get(&opening.source, service.id, now).filter(|&id| takes_flows(tables, id));
        // By source alone, so that two workers which open flows of one source at once agree.
        known.or_else(|| by_hash(service, tables.selection.of_source(&opening.source)))
    }

    fn pick<B: Balance + ?Sized>(
        &mut self,
        service: &ServiceTable,
        hash: &SelectionHash,
        shared: &B,
        opening: &Opening,
    ) -> Option<BackendId> {
        match service.algorithm {
            Algorithm::Maglev => by_hash(service, hash.of(opening)),
            Algorithm::SourceHash => by_hash(service, hash.of_source(&opening.source)),
            Algorithm::RoundRobin => self.in_turn(service),
            Algorithm::Random => {
                let total = *service.cumulative.last()?;
                let ticket = (u128::from(self.next_random()) * u128::from(total)) >> 64;
                by_ticket(service, ticket as u32)
            }
            Algorithm::LeastConnections => self.least_connections(service, shared),
        }
    }

    /// Each endpoint comes as often as its weight in as many turns as the weights sum up to, spread over them.
    fn in_turn(&mut self, service: &ServiceTable) -> Option<BackendId> {
        let total = *service.cumulative.last()?;
        let turn = self.turns.get_mut(service.id.index())?;
        let at = *turn % total;
        *turn = (at + service.stride) % total;
        by_ticket(service, at)
    }

    /// The fewest connections for its weight; of equal ones the first after a place drawn at random.
    fn least_connections<B: Balance + ?Sized>(&mut self, service: &ServiceTable, shared: &B) -> Option<BackendId> {
        let count = service.usable.len();
        let start = ((u128::from(self.next_random()) * count as u128) >> 64) as usize;
        let (before, after) = service.usable.split_at_checked(start)?;
        let mut best: Option<(u64, u64, BackendId)> = None;
        for backend in after.iter().chain(before) {
            let (connections, weight) = (u64::from(shared.connections(backend.id)), u64::from(backend.weight));
            if best.is_none_or(|(fewest, its_weight, _)| connections * its_weight < fewest * weight) {
                best = Some((connections, weight, backend.id));
            }
        }
        best.map(|(_, _, id)| id)
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// The selection hash: the one of flow keys, with numbers drawn from the selection seed.
#[derive(Clone, Copy, Debug)]
pub struct SelectionHash {
    seed: SelectionSeed,
    hasher: FlowHasher,
}

impl Default for SelectionHash {
    fn default() -> Self {
        Self::new(SelectionSeed::default())
    }
}

impl SelectionHash {
    /// For a seed.
    #[must_use]
    pub fn new(seed: SelectionSeed) -> Self {
        Self { seed, hasher: FlowHasher::new([seed.0, seed.1]) }
    }

    /// What it was made for.
    #[must_use]
    pub const fn seed(&self) -> SelectionSeed {
        self.seed
    }

    /// Of source, source port, destination, destination port and protocol.
    #[must_use]
    #[inline]
    pub fn of(&self, opening: &Opening) -> u64 {
        let ports = Ports::new(opening.source_port, opening.destination_port);
        self.hasher
            .hash(&FlowKey { src: opening.source, dst: opening.destination, ports, protocol: opening.protocol })
            .0
    }

    /// Of the source alone.
    #[must_use]
    #[inline]
    pub fn of_source(&self, source: &Addr) -> u64 {
        self.hasher.hash_address(source).0
    }
}

/// The endpoint that a flow goes to where its hash alone says so; `None` where more counts.
#[must_use]
#[inline]
pub fn by_hash_alone(service: &ServiceTable, hash: &SelectionHash, opening: &Opening) -> Option<BackendId> {
    match (service.affinity, service.algorithm) {
        (None, Algorithm::Maglev) => by_hash(service, hash.of(opening)),
        (None, Algorithm::SourceHash) => by_hash(service, hash.of_source(&opening.source)),
        _ => None,
    }
}

/// The next endpoint of the table that `may` have a flow, from the flow's own place on, where a hash says which that is.
pub fn next_by_hash(
    service: &ServiceTable,
    hash: &SelectionHash,
    opening: &Opening,
    may: &mut dyn FnMut(BackendId) -> bool,
) -> Option<BackendId> {
    let hash = match (service.affinity, service.algorithm) {
        (Some(_), _) | (None, Algorithm::SourceHash) => hash.of_source(&opening.source),
        (None, Algorithm::Maglev) => hash.of(opening),
        (None, _) => return None,
    };
    let slots = service.maglev.from_slot_of(hash).take(LONGEST_WALK);
    slots.filter_map(|at| service.usable.get(at)).map(|backend| backend.id).find(|id| may(*id))
}

fn takes_flows(tables: &Tables, id: BackendId) -> bool {
    tables.backend(id).is_some_and(|row| row.state == BackendState::Usable)
}

fn by_hash(service: &ServiceTable, hash: u64) -> Option<BackendId> {
    service.usable.get(service.maglev.lookup(hash)?).map(|backend| backend.id)
}

/// The endpoint whose share of the summed weights has this ticket.
fn by_ticket(service: &ServiceTable, ticket: u32) -> Option<BackendId> {
    let at = service.cumulative.partition_point(|&sum| sum <= ticket);
    service.usable.get(at).map(|backend| backend.id)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;
    use crate::maglev::Maglev;
    use crate::model::{Mode, NoEndpoint};
    use crate::ranges::SourceRanges;
    use crate::tables::{BackendRow, UsableBackend};

    const SEED: SelectionSeed = SelectionSeed(11, 12);

    struct World {
        affinity: Affinity,
        connections: HashMap<BackendId, u32>,
    }

    impl Balance for World {
        fn connections(&self, backend: BackendId) -> u32 {
            self.connections.get(&backend).copied().unwrap_or(0)
        }

        fn affinity(&self) -> &Affinity {
            &self.affinity
        }
    }

    fn world() -> World {
        World { affinity: Affinity::new(1024, (1, 2)), connections: HashMap::new() }
    }

    fn id(n: usize) -> BackendId {
        BackendId::new(n as u32, 1)
    }

    fn address(n: usize) -> Addr {
        Addr::from_v4([10, 0, 0, n as u8 + 1])
    }

    /// A Service with these weights; `stride` as `build` makes it is passed in.
    fn service(algorithm: Algorithm, weights: &[u16], stride: u32) -> (ServiceTable, Tables) {
        let endpoints: Vec<_> = weights.iter().enumerate().map(|(n, &w)| (address(n), Port::new(80), w)).collect();
        let table = ServiceTable {
            id: ServiceId::new(5, 1),
            protocol: Protocol::TCP,
            port: Port::new(80),
            algorithm,
            mode: Mode::Nat,
            affinity: None,
            ranges: SourceRanges::default(),
            no_endpoint: NoEndpoint::Reject,
            udp_timeout: None,
            usable: weights.iter().enumerate().map(|(n, &weight)| UsableBackend { id: id(n), weight }).collect(),
            cumulative: weights
                .iter()
                .scan(0, |sum, &weight| {
                    *sum += u32::from(weight);
                    Some(*sum)
                })
                .collect(),
            stride,
            table_size: 1021,
            maglev: Arc::new(Maglev::of_endpoints(&endpoints, 1021, SEED)),
        };
        let row = |n| BackendRow { id: id(n), address: address(n), state: BackendState::Usable, ..BackendRow::FREE };
        let backends = Arc::new((0..weights.len()).map(row).collect());
        (table, Tables { backends, selection: SelectionHash::new(SEED), ..Tables::default() })
    }

    fn opening(n: u32) -> Opening {
        let [.., a, b, c] = n.to_be_bytes();
        Opening {
            source: Addr::from_v4([172, a, b, c]),
            source_port: Port::new(40_000),
            destination: Addr::from_v4([192, 0, 2, 1]),
            destination_port: Port::new(80),
            protocol: Protocol::TCP,
        }
    }

    fn count(algorithm: Algorithm, weights: &[u16], stride: u32, flows: u32) -> Vec<u32> {
        let ((service, tables), world) = (service(algorithm, weights, stride), world());
        let mut selector = Selector::new(1);
        let mut counts = vec![0; weights.len()];
        for n in 0..flows {
            counts[selector.select(&service, &tables, &world, &opening(n), Tick(0)).unwrap().index()] += 1;
        }
        counts
    }

    #[test]
    fn without_an_endpoint_nothing_is_selected_by_any_algorithm() {
        use Algorithm::{LeastConnections, Maglev, Random, RoundRobin, SourceHash};
        for algorithm in [Maglev, RoundRobin, Random, LeastConnections, SourceHash] {
            let ((mut service, tables), world) = (service(algorithm, &[], 1), world());
            let mut selector = Selector::new(1);
            assert_eq!(selector.select(&service, &tables, &world, &opening(1), Tick(0)), None);
            service.affinity = Some(100);
            assert_eq!(selector.select(&service, &tables, &world, &opening(1), Tick(0)), None);
        }
    }

    #[test]
    fn maglev_and_source_hash_spread_by_weight_and_agree_on_every_worker() {
        for algorithm in [Algorithm::Maglev, Algorithm::SourceHash] {
            let counts = count(algorithm, &[1, 2, 1], 1, 20_000);
            for (count, wanted) in counts.iter().zip([5_000, 10_000, 5_000]) {
                assert!(count.abs_diff(wanted) < 300, "{algorithm:?}: {counts:?}");
            }
            let ((service, tables), world) = (service(algorithm, &[1, 2, 1], 1), world());
            let by = |seed| Selector::new(seed).select(&service, &tables, &world, &opening(9), Tick(0));
            assert_eq!(by(1), by(2));
        }
    }

    #[test]
    fn source_hash_ignores_ports_and_maglev_does_not() {
        let world = world();
        let reached = |algorithm| {
            let (service, tables) = service(algorithm, &[1; 10], 1);
            let mut selector = Selector::new(1);
            let by_port = (1..100).map(|port| Opening { source_port: Port::new(port), ..opening(1) });
            let reached: std::collections::HashSet<_> =
                by_port.map(|opening| selector.select(&service, &tables, &world, &opening, Tick(0))).collect();
            reached.len()
        };
        assert_eq!(reached(Algorithm::SourceHash), 1);
        assert!(reached(Algorithm::Maglev) > 5);
    }

    #[test]
    fn round_robin_takes_turns_in_proportion_to_weights() {
        let ((service, tables), world) = (service(Algorithm::RoundRobin, &[1, 1, 1], 1), world());
        let mut selector = Selector::new(1);
        let turns: Vec<_> =
            (0..6).map(|n| selector.select(&service, &tables, &world, &opening(n), Tick(0)).unwrap().index()).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
        assert_eq!(count(Algorithm::RoundRobin, &[5, 1, 2], 5, 80), [50, 10, 20]);
    }

    #[test]
    fn random_follows_the_weights() {
        let counts = count(Algorithm::Random, &[3, 1], 1, 40_000);
        assert!(counts[0].abs_diff(30_000) < 600, "{counts:?}");
    }

    #[test]
    fn least_connections_weighs_them_and_breaks_ties_evenly() {
        let ((service, tables), mut world) = (service(Algorithm::LeastConnections, &[1, 4, 1], 1), world());
        let mut selector = Selector::new(1);
        for n in 0..600 {
            let chosen = selector.select(&service, &tables, &world, &opening(n), Tick(0)).unwrap();
            *world.connections.entry(chosen).or_default() += 1;
        }
        let counts: Vec<_> = (0..3).map(|n| world.connections(id(n))).collect();
        assert_eq!(counts, [100, 400, 100]);
        let ties = count(Algorithm::LeastConnections, &[1, 1], 1, 10_000);
        assert!(ties[0].abs_diff(5_000) < 300, "{ties:?}");
    }

    #[test]
    fn affinity_holds_across_workers_until_its_timeout_and_is_refreshed_by_use() {
        let ((mut service, tables), world) = (service(Algorithm::RoundRobin, &[1; 8], 1), world());
        service.affinity = Some(100);
        // Remembered is another endpoint than the source alone would lead to.
        let first = by_hash(&service, SelectionHash::new(SEED).of_source(&opening(1).source)).unwrap();
        let other = id((first.index() + 1) % 8);
        world.affinity.put(&opening(1).source, service.id, other, Tick(0), 100);
        let (mut one, mut two) = (Selector::new(1), Selector::new(2));
        let at = |selector: &mut Selector, tick| {
            selector.select(&service, &tables, &world, &opening(1), Tick(tick)).unwrap()
        };
        assert_eq!((at(&mut one, 90), at(&mut two, 180), at(&mut one, 270)), (other, other, other));
        assert_eq!(at(&mut two, 371), first, "expired: by source alone");
    }

    #[test]
    fn affinity_leaves_an_endpoint_that_is_no_longer_usable() {
        for gone in [BackendState::Draining, BackendState::Removed, BackendState::Free] {
            let ((mut service, mut tables), world) = (service(Algorithm::Maglev, &[1; 8], 1), world());
            service.affinity = Some(100);
            let first = by_hash(&service, SelectionHash::new(SEED).of_source(&opening(1).source)).unwrap();
            let other = id((first.index() + 1) % 8);
            world.affinity.put(&opening(1).source, service.id, other, Tick(0), 100);
            let mut rows = tables.backends.to_vec();
            rows[other.index()].state = gone;
            tables.backends = Arc::new(rows);
            let mut selector = Selector::new(1);
            assert_eq!(selector.select(&service, &tables, &world, &opening(1), Tick(1)), Some(first));
            assert_eq!(world.affinity.get(&opening(1).source, service.id, Tick(2)), Some(first), "and follows it");
        }
    }

    /// The same on every machine and in every version: boxes that share addresses agree, also while they are upgraded.
    #[test]
    fn hashes_are_the_same_everywhere() {
        let hash = SelectionHash::new(SEED);
        let v4 = opening(1);
        let v6 = Opening { source: Addr::from_v6([1; 16]), destination: Addr::from_v6([2; 16]), ..v4 };
        let found = [hash.of(&v4), hash.of(&v6), hash.of_source(&v4.source), hash.of_source(&v6.source)];
        let told = [0xda21_b9d7_e4a9_0e32, 0x792a_32ac_a376_1a90, 0x8b14_7ecd_da47_39b8, 0xaa1f_5d8c_ee3c_8e98];
        assert_eq!(found, told, "{found:#x?}");
    }

    #[test]
    fn the_first_pick_of_affinity_is_by_source_alone() {
        let (mut service, tables) = service(Algorithm::Random, &[1; 8], 1);
        service.affinity = Some(100);
        let pick = |port, seed| {
            let opening = Opening { source_port: Port::new(port), ..opening(7) };
            Selector::new(seed).select(&service, &tables, &world(), &opening, Tick(0))
        };
        assert!((1..50).all(|n| pick(n, n.into()) == pick(1, 99)));
    }
}

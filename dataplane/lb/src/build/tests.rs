use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::service::{Usable, gcd, shares};
use super::*;
use crate::model::{EndpointState, Frontend, VipAddress};
use crate::tables::{BackendState, HopState};
use crate::time::Tick;

/// Ids in memory; connections as a test sets them.
#[derive(Default)]
struct Registry {
    services: HashMap<ServicePortKey, ServiceId>,
    backends: HashMap<(ServicePortKey, Addr, Port), BackendId>,
    connections: HashMap<BackendId, u32>,
    next: u32,
    room: Option<u32>,
}

impl Registry {
    fn take(&mut self) -> Option<u32> {
        self.next += 1;
        self.room.is_none_or(|room| self.next <= room).then_some(self.next - 1)
    }
}

impl Ids for Registry {
    fn service_id(&mut self, key: &ServicePortKey) -> Option<ServiceId> {
        if let Some(&id) = self.services.get(key) {
            return Some(id);
        }
        let id = ServiceId::new(self.take()?, 1);
        self.services.insert(key.clone(), id);
        Some(id)
    }

    fn backend_id(&mut self, key: &ServicePortKey, address: Addr, port: Port) -> Option<BackendId> {
        if let Some(&id) = self.backends.get(&(key.clone(), address, port)) {
            return Some(id);
        }
        let id = BackendId::new(self.take()?, 1);
        self.backends.insert((key.clone(), address, port), id);
        Some(id)
    }

    fn release_service(&mut self, id: ServiceId) {
        self.services.retain(|_, kept| *kept != id);
    }

    fn release_backend(&mut self, id: BackendId) {
        self.backends.retain(|_, kept| *kept != id);
    }

    fn connections(&self, id: BackendId) -> u32 {
        self.connections.get(&id).copied().unwrap_or(0)
    }
}

fn endpoint(address: &str, weight: u16) -> Endpoint {
    Endpoint { weight, ..Endpoint::new(address.parse().unwrap(), 8080) }
}

fn service(name: &str, frontend: &str, endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort {
        frontends: vec![Frontend { address: frontend.parse().unwrap(), port: 80, kind: FrontendKind::LoadBalancer }],
        endpoints,
        ..ServicePort::new(ServicePortKey::new("default", name, Protocol::TCP, false), 80)
    }
}

/// A Service port, to be changed.
fn port(desired: &mut DesiredState, at: usize) -> &mut ServicePort {
    Arc::make_mut(desired.service_ports.iter_mut().nth(at).unwrap())
}

fn state(service_ports: Vec<ServicePort>) -> DesiredState {
    DesiredState { service_ports: service_ports.into_iter().map(Arc::new).collect(), addresses: Vec::new() }
}

fn hop(_: IpAddr) -> Hop {
    Hop { state: HopState::Resolved, ..Hop::NO_ROUTE }
}

fn two_endpoints() -> Vec<Endpoint> {
    vec![endpoint("10.0.0.1", 1), endpoint("10.0.0.2", 1)]
}

fn next(previous: Option<&Tables>, desired: &DesiredState, ids: &mut Registry) -> Tables {
    let built = build(previous, desired, ids, &hop, &BuildConfig::default());
    assert_eq!(built.refused, 0);
    built.tables
}

fn at(tables: &Tables, frontend: &str) -> Arc<ServiceTable> {
    let address = frontend.parse::<IpAddr>().unwrap().into();
    let row = tables.frontends.get(&address, Port::new(80), Protocol::TCP).unwrap();
    Arc::clone(tables.services[row.service.index()].as_ref().unwrap())
}

#[test]
fn a_frontend_leads_to_its_service_and_its_endpoints_rows() {
    let mut ids = Registry::default();
    let tables = next(None, &state(vec![service("web", "192.0.2.1", two_endpoints())]), &mut ids);
    let service = at(&tables, "192.0.2.1");
    assert_eq!((service.usable.len(), service.table_size, service.maglev.size()), (2, 1021, 1021));
    let row = tables.backend(service.usable[1].id).unwrap();
    assert_eq!((row.address, row.port.number()), (Addr::from_v4([10, 0, 0, 2]), 8080));
    assert_eq!((row.state, row.hop.state), (BackendState::Usable, HopState::Resolved));
    let elsewhere = tables.frontends.get(&Addr::from_v4([192, 0, 2, 1]), Port::new(80), Protocol::UDP);
    assert!(elsewhere.is_none() && tables.service(ServiceId::new(0, 9)).is_none());
}

#[test]
fn an_unchanged_service_is_shared_and_only_the_changed_one_is_built() {
    let mut ids = Registry::default();
    let mut desired =
        state(vec![service("a", "192.0.2.1", two_endpoints()), service("b", "192.0.2.2", two_endpoints())]);
    let first = next(None, &desired, &mut ids);
    let again = next(Some(&first), &desired, &mut ids);
    assert!(Arc::ptr_eq(&first.backends, &again.backends) && Arc::ptr_eq(&first.frontends, &again.frontends));
    port(&mut desired, 1).endpoints[0].weight = 3;
    let second = next(Some(&again), &desired, &mut ids);
    assert_eq!(second.generation, 3);
    assert!(Arc::ptr_eq(&at(&first, "192.0.2.1"), &at(&second, "192.0.2.1")));
    assert_ne!(at(&first, "192.0.2.2").maglev, at(&second, "192.0.2.2").maglev);
    port(&mut desired, 0).affinity = Some(Duration::from_secs(10));
    let third = next(Some(&second), &desired, &mut ids);
    assert!(Arc::ptr_eq(&at(&second, "192.0.2.1").maglev, &at(&third, "192.0.2.1").maglev), "settings move no slot");
    assert_eq!(at(&third, "192.0.2.1").affinity, Some(Tick::from_millis(10_000)));
}

#[test]
fn what_did_not_change_keeps_its_rows_and_next_hops_are_asked_for_anew() {
    let mut ids = Registry::default();
    let mut desired =
        state(vec![service("a", "192.0.2.1", two_endpoints()), service("b", "192.0.2.2", two_endpoints())]);
    let first = next(None, &desired, &mut ids);
    port(&mut desired, 1).endpoints[0].address = "10.0.0.9".parse().unwrap();
    let asked = std::cell::RefCell::new(Vec::new());
    let note = |address: IpAddr| {
        asked.borrow_mut().push(address.to_string());
        Hop::NO_ROUTE
    };
    let config = BuildConfig::default();
    let second = build(Some(&first), &desired, &mut ids, &note, &config).tables;
    let asked = asked.take();
    assert!(["10.0.0.1", "10.0.0.2", "10.0.0.9"].iter().all(|address| asked.iter().any(|a| a == address)), "{asked:?}");
    for (old, new) in first.backends.iter().zip(second.backends.iter()).take(2) {
        assert_eq!((old.id, old.address, old.port, Hop::NO_ROUTE), (new.id, new.address, new.port, new.hop));
    }
    assert!(Arc::ptr_eq(&first.frontends, &second.frontends));
    let fresh = build(None, &desired, &mut ids, &hop, &config).tables;
    assert_eq!(at(&second, "192.0.2.2"), at(&fresh, "192.0.2.2"));
    port(&mut desired, 0).frontends[0].address = "192.0.2.7".parse().unwrap();
    let third = next(Some(&second), &desired, &mut ids);
    assert!(at(&third, "192.0.2.7").usable == at(&first, "192.0.2.1").usable && third.frontends.len() == 2);
    desired.service_ports = desired.service_ports.iter().skip(1).cloned().collect();
    assert_eq!(next(Some(&third), &desired, &mut ids).frontends.len(), 1);
}

#[test]
fn an_endpoint_that_found_no_room_is_tried_again_though_nothing_changed() {
    let mut ids = Registry { room: Some(2), ..Registry::default() };
    let desired = state(vec![service("a", "192.0.2.1", two_endpoints())]);
    let built = build(None, &desired, &mut ids, &hop, &BuildConfig::default());
    assert_eq!((built.refused, at(&built.tables, "192.0.2.1").usable.len()), (1, 1));
    ids.room = None;
    assert_eq!(at(&next(Some(&built.tables), &desired, &mut ids), "192.0.2.1").usable.len(), 2);
}

#[test]
fn draining_endpoints_and_those_of_weight_0_have_rows_but_get_no_flows() {
    let mut ids = Registry::default();
    let mut endpoints = two_endpoints();
    endpoints[0].state = EndpointState::Draining;
    endpoints.push(endpoint("10.0.0.3", 0));
    let tables = next(None, &state(vec![service("web", "192.0.2.1", endpoints)]), &mut ids);
    assert_eq!(at(&tables, "192.0.2.1").usable.len(), 1);
    let draining = tables.backends.iter().filter(|row| row.state == BackendState::Draining).count();
    assert_eq!(draining, 2);
}

#[test]
fn a_removed_endpoint_keeps_its_row_while_it_has_connections_and_its_id_one_build_longer() {
    let mut ids = Registry::default();
    let full = state(vec![service("web", "192.0.2.1", two_endpoints())]);
    let less = state(vec![service("web", "192.0.2.1", vec![endpoint("10.0.0.1", 1)])]);
    let first = next(None, &full, &mut ids);
    let gone = at(&first, "192.0.2.1").usable[1].id;
    ids.connections.insert(gone, 1);
    let mut tables = next(Some(&first), &less, &mut ids);
    for _ in 0..3 {
        assert_eq!(tables.backend(gone).map(|row| row.state), Some(BackendState::Removed));
        tables = next(Some(&tables), &less, &mut ids);
    }
    let back = next(Some(&tables), &full, &mut ids);
    assert_eq!(at(&back, "192.0.2.1").usable[1].id, gone, "an endpoint that comes back is the same one");
    ids.connections.clear();
    let removed = next(Some(&back), &less, &mut ids);
    assert!(removed.backend(gone).is_some() && ids.backends.len() == 2, "older tables may still choose it");
    let released = next(Some(&removed), &less, &mut ids);
    assert!(released.backend(gone).is_none() && ids.backends.len() == 1);
}

#[test]
fn an_expired_endpoint_is_free_at_once_and_released_when_its_flows_are_gone() {
    let mut ids = Registry::default();
    let first = next(None, &state(vec![service("web", "192.0.2.1", two_endpoints())]), &mut ids);
    let gone = at(&first, "192.0.2.1").usable[1].id;
    ids.connections.insert(gone, 1);
    let config = BuildConfig { expired: HashSet::from([gone]), ..BuildConfig::default() };
    let less = state(vec![service("web", "192.0.2.1", vec![endpoint("10.0.0.1", 1)])]);
    let expired = build(Some(&first), &less, &mut ids, &hop, &config).tables;
    assert!(expired.backend(gone).is_none() && ids.backends.len() == 2);
    ids.connections.clear();
    let after = build(Some(&expired), &less, &mut ids, &hop, &config).tables;
    assert!(after.backend(gone).is_none() && ids.backends.len() == 1);
}

#[test]
fn a_removed_service_serves_nothing_and_its_endpoints_keep_their_flows() {
    let mut ids = Registry::default();
    let first = next(None, &state(vec![service("web", "192.0.2.1", two_endpoints())]), &mut ids);
    let service = at(&first, "192.0.2.1");
    ids.connections.insert(service.usable[0].id, 5);
    let second = next(Some(&first), &state(Vec::new()), &mut ids);
    assert!(second.frontends.is_empty() && second.service(service.id).is_none() && ids.services.is_empty());
    assert_eq!(second.backend(service.usable[0].id).map(|row| row.state), Some(BackendState::Removed));
}

#[test]
fn endpoints_that_only_adopted_flows_know_get_rows() {
    let mut ids = Registry::default();
    let kept = KeptBackend { id: BackendId::new(9, 4), address: Addr::from_v4([10, 0, 0, 9]), port: Port::new(53) };
    ids.connections.insert(kept.id, 2);
    let config = BuildConfig { kept: vec![kept], ..BuildConfig::default() };
    let tables = build(None, &state(Vec::new()), &mut ids, &hop, &config).tables;
    assert_eq!(
        tables.backend(kept.id).map(|row| (row.address, row.state)),
        Some((kept.address, BackendState::Removed))
    );
}

#[test]
fn the_table_size_climbs_the_ladder_and_never_steps_down() {
    let mut ids = Registry::default();
    let endpoints = |count: u8| (0..count).map(|n| endpoint(&format!("10.0.1.{n}"), 1)).collect();
    let sized = |count| state(vec![service("web", "192.0.2.1", endpoints(count))]);
    let small = next(None, &sized(10), &mut ids);
    assert_eq!(at(&small, "192.0.2.1").table_size, 1021);
    let large = next(Some(&small), &sized(11), &mut ids);
    assert_eq!(at(&large, "192.0.2.1").table_size, 16381);
    assert_eq!(at(&next(Some(&large), &sized(1), &mut ids), "192.0.2.1").maglev.size(), 16381);
    let mut asked = sized(1);
    port(&mut asked, 0).min_table_size = 65537;
    assert_eq!(at(&next(None, &asked, &mut ids), "192.0.2.1").maglev.size(), 65537);
}

#[test]
fn source_ranges_count_at_external_frontends_only() {
    let mut ids = Registry::default();
    let mut port = service("web", "192.0.2.1", two_endpoints());
    port.source_ranges = [("203.0.113.0".parse().unwrap(), 24)].into();
    let kinds = [FrontendKind::LoadBalancer, FrontendKind::ExternalIp, FrontendKind::ClusterIp, FrontendKind::NodePort];
    port.frontends = kinds
        .into_iter()
        .zip(1..)
        .map(|(kind, n)| Frontend { address: [192, 0, 2, n].into(), port: 80, kind })
        .collect();
    let tables = next(None, &state(vec![port]), &mut ids);
    let checked = |n| tables.frontends.get(&Addr::from_v4([192, 0, 2, n]), Port::new(80), Protocol::TCP).unwrap();
    assert_eq!([1, 2, 3, 4].map(|n| checked(n).check_source_ranges), [true, true, false, false]);
}

#[test]
fn source_ranges_are_made_once_for_all_ports_of_a_service_and_not_again_for_another_change_of_it() {
    let mut ids = Registry::default();
    let written: Arc<[(IpAddr, u8)]> = (0..1000u32).map(|n| (IpAddr::from((n << 12).to_be_bytes()), 24)).collect();
    let port = |address: &str, weight| ServicePort {
        source_ranges: Arc::clone(&written),
        ..service(address, address, vec![endpoint("10.0.0.1", weight)])
    };
    let first = next(None, &state(vec![port("192.0.2.1", 1), port("192.0.2.2", 1)]), &mut ids);
    let is_shared = |a: &ServiceTable, b: &ServiceTable| a.ranges.shares_with(&b.ranges);
    assert!(is_shared(&at(&first, "192.0.2.1"), &at(&first, "192.0.2.2")));
    let second = next(Some(&first), &state(vec![port("192.0.2.1", 1), port("192.0.2.2", 2)]), &mut ids);
    assert!(is_shared(&at(&first, "192.0.2.1"), &at(&second, "192.0.2.2")));
    let mut other = port("192.0.2.2", 2);
    other.source_ranges = written[1..].into();
    let third = next(Some(&second), &state(vec![port("192.0.2.1", 1), other]), &mut ids);
    assert!(!is_shared(&at(&third, "192.0.2.1"), &at(&third, "192.0.2.2")));
}

#[test]
fn addresses_and_snat_pools_are_told_apart() {
    let vip =
        |address: [u8; 4], host_owned, echo| VipAddress { address: address.into(), host_owned, echo, internal: false };
    let addresses = vec![vip([192, 0, 2, 1], false, true), vip([192, 0, 2, 2], true, false)];
    let snat = |address, dedicated| SnatAddress { address, index: 0, first_port: 1024, last_port: 65535, dedicated };
    let (v4, v6) = (Addr::from_v4([10, 9, 9, 9]), "2001:db8::9".parse::<IpAddr>().unwrap().into());
    let config = BuildConfig { snat: vec![snat(v6, false), snat(v4, true)], ..BuildConfig::default() };
    let desired = DesiredState { service_ports: List::default(), addresses };
    let tables = build(None, &desired, &mut Registry::default(), &hop, &config).tables;
    let what = |address| tables.addresses.get(&address);
    assert_eq!(what(Addr::from_v4([192, 0, 2, 1])), Some(OurAddress::Vip { echo: true, answers: true }));
    assert_eq!(what(Addr::from_v4([192, 0, 2, 2])), Some(OurAddress::HostOwned));
    assert_eq!(
        (what(v4), what(v6)),
        (Some(OurAddress::Snat { dedicated: true }), Some(OurAddress::Snat { dedicated: false }))
    );
    assert_eq!((tables.snat.v4.len(), tables.snat.v6.len(), what(Addr::from_v4([1, 1, 1, 1]))), (1, 1, None));
    assert_eq!(tables.snat.get(&v6).map(|entry| entry.dedicated), Some(false));
}

#[test]
fn round_robin_shares_are_reduced_and_the_stride_meets_every_ticket() {
    let usable = |weights: &[u16]| -> Vec<Usable> {
        weights.iter().zip(0..).map(|(&w, n)| (Addr::UNSPECIFIED, Port::new(0), w, BackendId::new(n, 0))).collect()
    };
    assert_eq!(shares(&usable(&[100, 100, 100])), (vec![1, 2, 3], 1));
    assert_eq!(shares(&usable(&[])), (vec![], 1));
    let (cumulative, stride) = shares(&usable(&[30, 10, 20]));
    assert_eq!((cumulative, gcd(stride.into(), 6)), (vec![3, 4, 6], 1));
    let (cumulative, _) = shares(&usable(&[65535, 65534].repeat(40_000)));
    assert!(cumulative.windows(2).all(|pair| pair[0] < pair[1]), "huge sums are scaled, none wraps");
}

#[test]
fn a_registry_without_room_refuses_and_serves_the_rest() {
    let mut ids = Registry { room: Some(4), ..Registry::default() };
    let desired = state(vec![service("a", "192.0.2.1", two_endpoints()), service("b", "192.0.2.2", two_endpoints())]);
    let built = build(None, &desired, &mut ids, &hop, &BuildConfig::default());
    assert_eq!((built.refused, at(&built.tables, "192.0.2.1").usable.len()), (2, 2));
}

#[test]
fn next_hops_change_alone() {
    let mut ids = Registry::default();
    let tables = next(None, &state(vec![service("web", "192.0.2.1", two_endpoints())]), &mut ids);
    let lost = rehop(&tables, &|_| Hop::NO_ROUTE);
    let id = at(&tables, "192.0.2.1").usable[0].id;
    assert_eq!(lost.backend(id).map(|row| row.hop.state), Some(HopState::NoRoute));
    assert!(Arc::ptr_eq(&at(&tables, "192.0.2.1"), &at(&lost, "192.0.2.1")) && lost.generation == 2);
}

#[test]
fn a_thousand_services_of_ten_endpoints_build_in_a_blink() {
    let mut ids = Registry::default();
    let ports = (0..1000u32).map(|n| {
        let [.., high, low] = n.to_be_bytes();
        let endpoints = (1..=10).map(|e| endpoint(&format!("10.{high}.{low}.{e}"), 1)).collect();
        service(&format!("s{n:04}"), &format!("192.168.{high}.{low}"), endpoints)
    });
    let mut desired = state(ports.collect());
    let start = Instant::now();
    let first = next(None, &desired, &mut ids);
    let fresh = start.elapsed();
    port(&mut desired, 500).endpoints.pop();
    let start = Instant::now();
    let second = next(Some(&first), &desired, &mut ids);
    println!("1000 Services x 10 endpoints: {fresh:?}; after one endpoint went: {:?}", start.elapsed());
    assert!(fresh.as_secs() < 5, "{fresh:?}");
    let shared =
        first.services.iter().zip(second.services.iter()).flat_map(|(old, new)| Some((old.as_ref()?, new.as_ref()?)));
    assert_eq!(shared.filter(|(old, new)| !Arc::ptr_eq(old, new)).count(), 1);
}

#[test]
fn rows_that_differ_are_made_where_former_ones_were_that_nobody_reads() {
    let (mut ids, mut spare) = (Registry::default(), Spare::default());
    let mut make = |previous: Option<&Tables>, endpoints: Vec<Endpoint>| {
        let desired = state(vec![service("a", "192.0.2.1", endpoints)]);
        let built = build_with(previous, &desired, &mut ids, &hop, &BuildConfig::default(), &mut spare);
        let is_looked_at = |row: &&BackendRow| built.taken.contains(&row.id);
        assert_eq!(built.tables.backends.iter().filter(is_looked_at).count(), 2);
        built.tables
    };
    let at = |tables: &Tables| tables.backends.as_ptr();
    let (one, other) = (two_endpoints(), vec![endpoint("10.0.0.1", 0), endpoint("10.0.0.2", 1)]);
    let first = make(None, one.clone());
    let second = make(Some(&first), other.clone());
    let (was_first, is_second) = (at(&first), at(&second));
    let third = make(Some(&second), one.clone());
    assert!(at(&third) != was_first, "somebody may read the first ones");
    drop(first);
    let fourth = make(Some(&third), other.clone());
    assert_eq!((at(&fourth), at(&second)), (was_first, is_second));
    assert_eq!(fourth.backends, second.backends);
}

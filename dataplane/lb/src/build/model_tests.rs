//! Whatever changes, tables made after others are those that a look at everything gives.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::flow::{FlowFile, FlowFileConfig};
use crate::model::{Algorithm, EndpointState, Frontend, VipAddress};
use crate::registry::Registry;
use crate::tables::HopState;

/// One step; few names, hosts and slots, so that they meet often.
#[derive(Clone, Debug)]
enum Step {
    Service { name: u8, endpoints: Vec<u8>, settings: u8 },
    Gone(u8),
    Opened(u8),
    Closed(u8),
    Neighbours(u8),
    Expired(u8),
    Seed(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = prop::collection::vec(any::<u8>(), 0..5);
    prop_oneof![
        6 => (0..6u8, endpoints, any::<u8>())
            .prop_map(|(name, endpoints, settings)| Step::Service { name, endpoints, settings }),
        2 => (0..6u8).prop_map(Step::Gone),
        3 => any::<u8>().prop_map(Step::Opened),
        3 => any::<u8>().prop_map(Step::Closed),
        1 => any::<u8>().prop_map(Step::Neighbours),
        1 => any::<u8>().prop_map(Step::Expired),
        1 => (0..2u8).prop_map(Step::Seed),
    ]
}

fn service_port(name: u8, endpoints: &[u8], settings: u8) -> ServicePort {
    let endpoint = |seed: &u8| Endpoint {
        weight: u16::from(seed / 4 % 3),
        state: if seed & 64 == 0 { EndpointState::Usable } else { EndpointState::Draining },
        zone: (seed & 128 != 0).then(|| "z".to_owned()),
        ..Endpoint::new([10, 0, 0, seed % 4].into(), 8080)
    };
    let frontend = |port| Frontend { address: [192, 0, 2, settings % 3].into(), port, kind: FrontendKind::ExternalIp };
    ServicePort {
        frontends: vec![frontend(u16::from(name))],
        endpoints: endpoints.iter().map(endpoint).collect(),
        algorithm: if settings & 8 == 0 { Algorithm::Maglev } else { Algorithm::RoundRobin },
        affinity: (settings & 16 != 0).then_some(Duration::from_secs(1)),
        source_ranges: if settings & 32 == 0 { [].into() } else { [([10, 0, 0, 0].into(), 8)].into() },
        ..ServicePort::new(ServicePortKey::new("default", &name.to_string(), Protocol::TCP, false), 80)
    }
}

/// A builder with its own ids; `blind` makes nothing look as it was.
struct Builder {
    registry: Registry,
    tables: Option<Tables>,
    spare: Spare,
    blind: bool,
}

impl Builder {
    fn new(blind: bool) -> Self {
        let file = FlowFileConfig { services: 4, backends: 10, flows: 16, ..FlowFileConfig::default() };
        Self { registry: FlowFile::in_memory(&file).unwrap().registry, tables: None, spare: Spare::default(), blind }
    }

    fn build(&mut self, desired: &DesiredState, neighbours: u8, config: &BuildConfig) -> (&Tables, usize) {
        let hop = |address: IpAddr| {
            let found = Addr::from(address).octets().iter().fold(neighbours, |sum, octet| sum ^ octet) & 1 == 0;
            let state = if found { HopState::Resolved } else { HopState::Unresolved };
            Hop { state, dst_mac: MacAddr([2, 0, 0, 0, 0, neighbours]), ..Hop::NO_ROUTE }
        };
        if let Some(tables) = self.tables.as_mut().filter(|_| self.blind) {
            tables.ours = Arc::new(vec![(Addr::UNSPECIFIED, OurAddress::HostOwned)]);
            tables.made_of = List::default();
            for origin in tables.origins.iter_mut() {
                let port = Arc::make_mut(&mut origin.port);
                (port.udp_timeout, port.frontends) = (Some(Duration::MAX), Vec::new());
            }
        }
        let same_hops = config.same_hops && !self.blind;
        let config = BuildConfig { same_hops, ..config.clone() };
        let mut none = Spare::default();
        let spare = if self.blind { &mut none } else { &mut self.spare };
        let built = build_with(self.tables.as_ref(), desired, &mut self.registry, &hop, &config, spare);
        (self.tables.insert(built.tables), built.refused)
    }

    fn row(&self, seed: u8) -> Option<BackendId> {
        let rows = &self.tables.as_ref()?.backends;
        let row = rows.get(usize::from(seed) % rows.len().max(1))?;
        (row.address != Addr::UNSPECIFIED).then_some(row.id)
    }
}

/// The list of these, which shares with the former one what is the same.
fn renewed<'p>(
    former: &List<Arc<ServicePort>>,
    ports: impl ExactSizeIterator<Item = &'p Arc<ServicePort>>,
) -> List<Arc<ServicePort>> {
    if former.len() != ports.len() {
        return ports.cloned().collect();
    }
    let mut list = former.clone();
    for (at, port) in ports.enumerate().filter(|(at, port)| !Arc::ptr_eq(&former[*at], port)) {
        list.set(at, Arc::clone(port));
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn tables_after_any_changes_are_those_of_a_builder_that_looks_at_everything(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let (mut after, mut anew) = (Builder::new(false), Builder::new(true));
        let mut ports: BTreeMap<u8, Arc<ServicePort>> = BTreeMap::new();
        let mut service_ports = List::default();
        let (mut neighbours, mut asked) = (0, None);
        let mut config = BuildConfig::default();
        let mut connections: HashMap<BackendId, u32> = HashMap::new();
        for step in &steps {
            config.expired.clear();
            match step {
                Step::Service { name, endpoints, settings } => {
                    ports.insert(*name, Arc::new(service_port(*name, endpoints, *settings)));
                }
                Step::Gone(name) => drop(ports.remove(name)),
                Step::Opened(seed) => if let Some(id) = after.row(*seed) {
                    *connections.entry(id).or_default() += 1;
                    for builder in [&after, &anew] {
                        builder.registry.shared().tally(crate::WorkerId(0)).connection_opened(id);
                    }
                },
                Step::Closed(seed) => if let Some(id) = after.row(*seed)
                    && let Some(open) = connections.get_mut(&id).filter(|open| **open > 0)
                {
                    *open -= 1;
                    for builder in [&after, &anew] {
                        builder.registry.shared().tally(crate::WorkerId(0)).connection_closed(id);
                    }
                },
                Step::Neighbours(seed) => neighbours = *seed,
                Step::Expired(seed) => config.expired.extend(after.row(*seed)),
                Step::Seed(seed) => config.seed = SelectionSeed(u64::from(*seed), 0),
            }
            let mut addresses: Vec<_> = ports.values().flat_map(|port| &port.frontends).map(|f| f.address).collect();
            addresses.sort();
            addresses.dedup();
            let vip = |address| VipAddress { address, host_owned: false, echo: true, internal: false };
            service_ports = renewed(&service_ports, ports.values());
            let desired = DesiredState {
                service_ports: service_ports.clone(),
                addresses: addresses.into_iter().map(vip).collect(),
            };
            config.same_hops = asked.replace(neighbours) == Some(neighbours);
            let (a, refused) = after.build(&desired, neighbours, &config);
            let (b, refused_anew) = anew.build(&desired, neighbours, &config);
            prop_assert_eq!(refused, refused_anew);
            prop_assert_eq!(&a.services, &b.services);
            prop_assert_eq!(&a.backends, &b.backends, "after {:?}", step);
            prop_assert_eq!((&a.frontends, &a.addresses, &a.leaving), (&b.frontends, &b.addresses, &b.leaving));
        }
    }
}

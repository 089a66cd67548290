//! Where things are served: places, steering, announcements and neighbours. Each is done again only where something that
//! it depends on changed, for most changes are of endpoints alone.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use lb::PortId;
use lb::list::List;
use lb::model::{DesiredState, Endpoint, FrontendKind, Mode, ServicePort, VipAddress};
use translate::Pool;
use xsk::Steering;

use super::inputs::announced;
use super::inside::left_to_others;
use super::{Control, TICK};
use crate::config::Config;
use crate::instance::{Plane, View};
use crate::kernel_port::{NODE_PORTS, Redirected};
use crate::kubernetes;
use crate::linger::{self, Place, Places};
use crate::netlink::{HostAddress, Link, Network};
use crate::steering;

/// What was done last, and what of.
#[derive(Debug, Default)]
pub(super) struct Reach {
    followed: Option<Followed>,
    steered: Option<Steered>,
    announced: Option<Announcing>,
    routed: Option<Routed>,
    /// Where a cluster's ClusterIPs come from.
    pub(super) ranges: Vec<IpNet>,
    endpoints: Endpoints,
}

/// What announcements were made from.
#[derive(Debug)]
struct Announcing {
    config: Arc<Config>,
    pools: Vec<Pool>,
    vips: Vec<VipAddress>,
    host: Vec<HostAddress>,
    vlans: Vec<(PortId, Link)>,
}

/// What the host's own packets are sent here by.
#[derive(Debug)]
struct Routed {
    ranges: Vec<IpNet>,
    vips: Vec<VipAddress>,
    /// Those of them that other nodes are asked for.
    left: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Followed {
    desired: DesiredState,
    host: Vec<IpAddr>,
    places: Places,
    /// Whether some of these are gone.
    lingers: bool,
    /// Those to answer for.
    addresses: Vec<VipAddress>,
}

#[derive(Debug)]
struct Steered {
    served: DesiredState,
    places: Places,
    host: Vec<IpAddr>,
}

impl Control {
    /// Notes where something is served, and adds the addresses of what is gone and lingers.
    pub(super) fn follow_places(&mut self, desired: &mut DesiredState) {
        let done = self.reach.followed.as_mut().filter(|done| {
            done.host == self.host && done.places == self.kept.places && done.desired.is_reached_as(desired)
        });
        if let Some(done) = done {
            // So that what does not change next time is shared with these.
            done.desired.service_ports.clone_from(&desired.service_ports);
            desired.addresses.clone_from(&done.addresses);
            return;
        }
        let (before, places) = (desired.clone(), self.kept.places.clone());
        let lingers = self.kept.places.follow(desired, &self.host);
        if places != self.kept.places {
            // Not before workers have seen these tables.
            self.look = Instant::now() + TICK;
        }
        let (places, addresses) = (self.kept.places.clone(), desired.addresses.clone());
        self.reach.followed = Some(Followed { desired: before, host: self.host.clone(), places, lingers, addresses });
    }

    /// Steers what is to be served, and the replies of `endpoints`' and of those that still have flows.
    pub(super) fn steer(&mut self, served: &DesiredState, endpoints: &DesiredState) -> Result<(), String> {
        let instance = Arc::clone(&self.instance);
        // Held while the maps are written: who lets go of it lets go of them.
        let registry = instance.registry();
        if registry.is_none() {
            return Ok(());
        }
        let plane = instance.plane();
        let mut steerings = instance.steering();
        let host: Vec<IpAddr> = instance.network.host_addresses().into_iter().map(|host| host.address).collect();
        let by_source =
            self.reach.endpoints.preserving > 0 || steerings.iter().any(|steering| steering.sources().next().is_some());
        let places = &self.kept.places;
        let done = self.reach.steered.as_mut().filter(|done| {
            !by_source && done.host == host && done.places == *places && done.served.is_reached_as(served)
        });
        if let Some(done) = done {
            done.served.service_ports.clone_from(&served.service_ports);
            return Ok(());
        }
        self.reach.steered = None;
        let mut desired = steering::desired(served, &self.kept.places.gone(served), &instance.snat, &instance.tunnels);
        let steered: BTreeSet<steering::Source> = steerings.iter().flat_map(Steering::sources).collect();
        let sources = steering::sources(endpoints, steered, |source| self.has_flows(plane.as_ref(), source));
        desired.extend(steering::by_source(&sources, &host));
        for steering in steerings.iter_mut() {
            steering.set_addresses(&desired).map_err(|error| format!("{}: {error}", steering.interface()))?;
        }
        self.reach.steered = Some(Steered { served: served.clone(), places: self.kept.places.clone(), host });
        Ok(())
    }

    /// Whether an endpoint has flows, or nobody can say yet: flows that were taken over are not counted before the
    /// workers run.
    fn has_flows(&self, plane: Option<&Plane>, (address, _, port): &steering::Source) -> bool {
        let Some(plane) = plane else { return true };
        let mut reader = self.instance.tables.reader();
        let tables = reader.pin();
        let (address, port) = (wire::Addr::from(*address), wire::Port::new(*port));
        let rows = tables.backends.iter().filter(|row| row.address == address && row.port == port);
        rows.into_iter().any(|row| plane.shared.backend_connections(row.id) > 0)
    }

    /// Announces what is to be announced.
    pub(super) fn announce(&mut self, config: &Arc<Config>, view: &View) {
        let (vips, network) = (&view.translation.desired.addresses, &self.instance.network);
        let (host, vlans) = (network.host_addresses(), network.vlans());
        let same = |done: &Announcing| {
            Arc::ptr_eq(&done.config, config)
                && done.pools == view.pools
                && done.vips == *vips
                && done.host == host
                && done.vlans == vlans
        };
        if !self.reach.announced.as_ref().is_some_and(same) {
            self.instance.announcer.follow(&vlans.iter().map(|(_, link)| link.clone()).collect::<Vec<_>>());
            self.instance.announcer.set(announced(config, view, &self.instance));
            self.reach.announced = Some(Announcing {
                config: Arc::clone(config),
                pools: view.pools.clone(),
                vips: vips.clone(),
                host,
                vlans,
            });
        }
    }

    /// Has the host's own packets to addresses that are Millrace's alone come here, where they would be served, and those to
    /// ranges of ClusterIPs, so that there is no route for each.
    pub(super) fn route_inward(&mut self, config: &Config, view: &View) {
        let desired = &view.translation.desired;
        let left = self.instance.cluster.as_ref().map(|_| {
            let node = kubernetes::this_node(&config.node, &[]);
            left_to_others(desired, node.hostname.as_deref())
        });
        let left = left.unwrap_or_default();
        let same =
            |done: &Routed| done.ranges == self.reach.ranges && done.vips == desired.addresses && done.left == left;
        if self.reach.routed.as_ref().is_some_and(same) {
            return;
        }
        let mut wanted: BTreeSet<IpNet> = self.reach.ranges.iter().copied().collect();
        let within = |vip: &VipAddress| vip.internal && wanted.iter().any(|range| range.contains(&vip.address));
        let ours =
            desired.addresses.iter().filter(|vip| !vip.host_owned && !left.contains(&vip.address) && !within(vip));
        let single: Vec<IpNet> = ours.map(|vip| vip.address.into()).collect();
        wanted.extend(single);
        self.instance.inward.send_if_modified(|known| {
            let differs = *known != wanted;
            *known = wanted;
            differs
        });
        self.reach.routed = Some(Routed { ranges: self.reach.ranges.clone(), vips: desired.addresses.clone(), left });
    }

    /// Has what the node itself and its pods send to its own NodePorts come here.
    pub(super) fn redirect(&self, view: &View) {
        let wanted = redirected(&view.translation.desired.service_ports);
        self.instance.redirected.send_if_modified(|known| {
            let differs = *known != wanted;
            *known = wanted;
            differs
        });
    }

    /// Has the next hops to endpoints kept resolved.
    pub(super) fn resolve(&mut self, desired: &DesiredState) {
        self.reach.endpoints.follow(&desired.service_ports, &self.instance.network);
    }

    /// Lets go of frontends that are gone and have no flow left.
    pub(super) fn let_go(&mut self) {
        let now = Instant::now();
        let nothing = |done: &Followed| !done.lingers && done.places == self.kept.places;
        if now < self.look || self.reach.followed.as_ref().is_some_and(nothing) {
            return;
        }
        let gone = self.kept.places.gone(&self.instance.view().translation.desired);
        if gone.is_empty() {
            return;
        }
        let Some(used) = self.used(&gone) else { return };
        // All flows may have to be looked through: a hundredth of the time goes there at most.
        self.look = Instant::now() + now.elapsed().saturating_mul(100);
        let over: BTreeSet<Place> = gone.difference(&used).copied().collect();
        if !over.is_empty() {
            self.kept.places.forget(&over);
            self.apply();
        }
    }

    /// Which of these places flows still use; `None` if nobody can say.
    fn used(&self, places: &BTreeSet<Place>) -> Option<BTreeSet<Place>> {
        let plane = self.instance.plane();
        let plane = plane.as_ref().filter(|plane| plane.dataplane.failed().is_none())?;
        let mut used = BTreeSet::new();
        let mut is_new = |flow: &lb::flow::FlowRecord| {
            let place = Place::of(flow);
            linger::is_open(flow) && places.contains(&place) && used.insert(place)
        };
        drop(plane.dataplane.export_flows(places.len(), &mut is_new));
        Some(used)
    }
}

/// The NodePorts that are served at the node's own addresses, and those. A number that the host itself listens on is served
/// at none, and stays the host's for who asks from within as well.
fn redirected(ports: &List<Arc<ServicePort>>) -> Redirected {
    let mut wanted = Redirected::default();
    let mut within = BTreeSet::new();
    for port in ports.iter() {
        let protocol = steering::protocol_number(port.key.protocol);
        for frontend in port.frontends.iter().filter(|frontend| frontend.kind == FrontendKind::NodePort) {
            let number = (frontend.address.is_ipv6(), protocol, frontend.port);
            if NODE_PORTS.contains(&frontend.address) {
                within.insert(number);
            } else {
                wanted.addresses.insert(frontend.address);
                wanted.ports.insert(number);
            }
        }
    }
    wanted.ports.retain(|number| within.contains(number));
    wanted
}

/// Where endpoints are, and how many are at each address.
#[derive(Debug, Default)]
struct Endpoints {
    /// By key.
    ports: List<Arc<ServicePort>>,
    counts: HashMap<IpAddr, u32>,
    /// Service ports in mode `preserve`.
    preserving: usize,
}

impl Endpoints {
    /// Has the neighbours towards these Service ports' endpoints kept resolved; they are ordered by key.
    fn follow(&mut self, ports: &List<Arc<ServicePort>>, network: &Network) {
        let is_first = self.ports.is_empty();
        let touched = self.take(ports);
        if is_first {
            // Whatever was wanted before, by a control thread that failed, say.
            network.resolve(self.counts.keys().copied().collect());
            return;
        }
        let (added, removed): (Vec<IpAddr>, Vec<IpAddr>) =
            touched.into_iter().partition(|address| self.counts.contains_key(address));
        network.resolve_also(&added, &removed);
    }

    /// Counts what differs. The addresses that endpoints came to or went from.
    fn take(&mut self, ports: &List<Arc<ServicePort>>) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        let former = std::mem::replace(&mut self.ports, ports.clone());
        let mut old = former.without_shared(ports).peekable();
        let mut new = ports.without_shared(&former).peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return touched,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {
                    old.next();
                    new.next();
                    continue;
                }
                (Some(a), Some(b)) => a.key.cmp(&b.key),
            };
            if order.is_ge()
                && let Some(port) = new.next()
            {
                self.preserving += usize::from(port.mode == Mode::Preserve);
                for Endpoint { address, .. } in &port.endpoints {
                    *self.counts.entry(*address).or_default() += 1;
                    touched.insert(*address);
                }
            }
            if order.is_le()
                && let Some(port) = old.next()
            {
                self.preserving -= usize::from(port.mode == Mode::Preserve);
                for Endpoint { address, .. } in &port.endpoints {
                    self.leave(*address);
                    touched.insert(*address);
                }
            }
        }
    }

    fn leave(&mut self, address: IpAddr) {
        let left = self.counts.get_mut(&address).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            self.counts.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use lb::model::Frontend;

    use super::*;
    use crate::fixture;

    fn port(name: &str, hosts: &[u8]) -> Arc<ServicePort> {
        let endpoints = hosts.iter().map(|host| Endpoint::new([10, 0, 0, *host].into(), 80)).collect();
        Arc::new(ServicePort { endpoints, ..fixture::service_port(name) })
    }

    #[test]
    fn a_node_port_that_the_host_keeps_for_itself_is_not_redirected_from_within() {
        let own: IpAddr = "10.0.0.1".parse().unwrap();
        let node_port = |name: &str, addresses: &[IpAddr], port| {
            let frontend = |address: &IpAddr| Frontend { address: *address, port, kind: FrontendKind::NodePort };
            let frontends = addresses.iter().map(frontend).collect();
            Arc::new(ServicePort { frontends, ..fixture::service_port(name) })
        };
        let ports = [node_port("kept", &[NODE_PORTS[0]], 30022), node_port("served", &[own, NODE_PORTS[0]], 30080)];
        let wanted = redirected(&ports.into());
        assert_eq!((wanted.addresses, wanted.ports), ([own].into(), [(false, 6, 30080)].into()));
        // Policies may give outside and within different endpoints, each its own Service port.
        let ports = [node_port("a", &[own], 30080), node_port("a", &[NODE_PORTS[0]], 30080)];
        assert_eq!(redirected(&ports.into()).ports, [(false, 6, 30080)].into());
    }

    #[test]
    fn an_address_is_wanted_as_long_as_some_endpoint_is_there() {
        let (a, b, c) = (port("a", &[1, 2]), port("b", &[2, 3]), port("c", &[4]));
        let states = [
            vec![Arc::clone(&a), Arc::clone(&b)],
            vec![Arc::clone(&b), Arc::clone(&c)],
            vec![a, port("b", &[5]), c],
            vec![port("b", &[5, 5])],
            Vec::new(),
        ];
        let mut endpoints = Endpoints::default();
        let mut wanted = BTreeSet::new();
        for ports in states.map(List::from) {
            for address in endpoints.take(&ports) {
                let there = endpoints.counts.contains_key(&address);
                if there {
                    wanted.insert(address)
                } else {
                    wanted.remove(&address)
                };
            }
            let all: BTreeSet<IpAddr> =
                ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| endpoint.address).collect();
            assert_eq!(wanted, all);
            assert_eq!(endpoints.counts.keys().copied().collect::<BTreeSet<_>>(), all);
        }
    }
}

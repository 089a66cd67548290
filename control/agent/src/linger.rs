//! Frontends whose Service, address or port is gone from the manifests, and which flows still use.
//!
//! TCP flows of what was removed go on until they are idle, so their frontends stay steered, and addresses of their own
//! answered for, until the last flow has ended. Nothing is served there: who comes anew is refused. Kept over restarts,
//! for only who steered a frontend knows that it is gone. An address that the host has lost is let go at once: another
//! machine may have it by now.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb::flow::{FlowRecord, FlowState};
use lb::model::{DesiredState, VipAddress};
use serde::{Deserialize, Serialize};

use crate::steering::protocol_number;

/// Where something is or was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

impl Place {
    /// Where a flow's client sends.
    #[must_use]
    pub fn of(flow: &FlowRecord) -> Self {
        Self { address: flow.vip.0.into(), protocol: flow.protocol.0, port: flow.vip.1.number() }
    }
}

/// Places, and of each whether the address was the host's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places(Arc<BTreeSet<(Place, bool)>>);

impl Places {
    /// Those of a desired state.
    #[must_use]
    pub fn of(desired: &DesiredState) -> Self {
        let own: HashSet<IpAddr> =
            desired.addresses.iter().filter(|vip| vip.host_owned).map(|vip| vip.address).collect();
        let own = &own;
        let places = desired.service_ports.iter().flat_map(|port| {
            let protocol = protocol_number(port.key.protocol);
            port.frontends.iter().map(move |frontend| {
                let place = Place { address: frontend.address, protocol, port: frontend.port };
                (place, own.contains(&frontend.address))
            })
        });
        Self(Arc::new(places.collect()))
    }

    /// Whether this place is one of them.
    #[must_use]
    pub fn contains(&self, place: &Place) -> bool {
        [false, true].iter().any(|own| self.0.contains(&(*place, *own)))
    }

    /// Those that `desired` does not have.
    #[must_use]
    pub fn gone(&self, desired: &DesiredState) -> BTreeSet<Place> {
        let now = Self::of(desired);
        self.0.iter().map(|(place, _)| *place).filter(|place| !now.contains(place)).collect()
    }

    /// Takes in what is desired now, forgets what the host has lost, and adds the addresses of what is gone to those that
    /// are answered for.
    pub fn follow(&mut self, desired: &mut DesiredState, host: &[IpAddr]) {
        let now = Self::of(desired);
        let mut all = (*self.0).clone();
        all.retain(|(place, own)| !now.contains(place) && (!own || host.contains(&place.address)));
        let mut answered: HashSet<IpAddr> = desired.addresses.iter().map(|vip| vip.address).collect();
        for (place, _) in &all {
            if answered.insert(place.address) {
                let host_owned = host.contains(&place.address);
                desired.addresses.push(VipAddress { address: place.address, host_owned, echo: false });
            }
        }
        desired.addresses.sort();
        all.extend(now.0.iter());
        if all != *self.0 {
            self.0 = Arc::new(all);
        }
    }

    /// Forgets these.
    pub fn forget(&mut self, over: &BTreeSet<Place>) {
        Arc::make_mut(&mut self.0).retain(|(place, _)| !over.contains(place));
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Whether a flow still needs its frontend.
#[must_use]
pub fn is_open(flow: &FlowRecord) -> bool {
    !matches!(flow.state, FlowState::Closed | FlowState::Reset)
}

#[cfg(test)]
mod tests {
    use lb::model::{Frontend, FrontendKind, ServicePort};

    use super::*;
    use crate::fixture;

    fn desired(frontends: &[(&str, u16, bool)]) -> DesiredState {
        let frontend = |&(address, port, _): &(&str, u16, bool)| Frontend {
            address: address.parse().unwrap(),
            port,
            kind: FrontendKind::LoadBalancer,
        };
        let frontends_of = frontends.iter().map(frontend).collect();
        let port = ServicePort { frontends: frontends_of, ..fixture::service_port("web") };
        let vip = |&(address, _, host_owned): &(&str, u16, bool)| VipAddress {
            address: address.parse().unwrap(),
            host_owned,
            echo: true,
        };
        DesiredState { service_ports: vec![port.into()], addresses: frontends.iter().map(vip).collect() }
    }

    fn addresses(state: &DesiredState) -> Vec<(String, bool, bool)> {
        state.addresses.iter().map(|vip| (vip.address.to_string(), vip.host_owned, vip.echo)).collect()
    }

    #[test]
    fn what_is_gone_is_answered_for_until_it_is_forgotten_also_by_the_next_process() {
        let host = ["192.0.2.1".parse().unwrap()];
        let mut places = Places::default();
        places.follow(&mut desired(&[("10.0.0.5", 80, false), ("192.0.2.1", 30080, true)]), &host);
        let mut places: Places = serde_json::from_slice(&serde_json::to_vec(&places).unwrap()).unwrap();
        let mut now = desired(&[("192.0.2.1", 30081, true)]);
        places.follow(&mut now, &host);
        let expected = [("10.0.0.5".to_owned(), false, false), ("192.0.2.1".to_owned(), true, true)];
        assert_eq!(addresses(&now), expected);
        let gone = places.gone(&now);
        assert_eq!(gone.iter().map(|place| place.port).collect::<Vec<_>>(), [80, 30080]);
        places.forget(&gone);
        let mut now = desired(&[("192.0.2.1", 30081, true)]);
        places.follow(&mut now, &host);
        assert_eq!(addresses(&now), expected[1..]);
    }

    #[test]
    fn an_address_that_the_host_lost_is_not_answered_for() {
        let mut places = Places::default();
        places.follow(&mut desired(&[("192.0.2.1", 30080, true)]), &["192.0.2.1".parse().unwrap()]);
        let mut now = desired(&[]);
        places.follow(&mut now, &[]);
        assert_eq!((addresses(&now), places.gone(&now)), (Vec::new(), BTreeSet::new()));
    }
}

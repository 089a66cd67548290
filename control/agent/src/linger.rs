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

/// A place and what its address is, which after its Service nobody else could say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    #[serde(flatten)]
    place: Place,
    /// Whether nobody announces it (a ClusterIP). Files of older versions lack it, and those take no offence at it.
    #[serde(default, skip_serializing_if = "is_not")]
    internal: bool,
}

fn is_not(told: &bool) -> bool {
    !*told
}

/// Places, and of each whether the address was the host's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places(Arc<BTreeSet<(Known, bool)>>);

impl Places {
    /// Those of a desired state.
    #[must_use]
    pub fn of(desired: &DesiredState) -> Self {
        let those = |is: fn(&VipAddress) -> bool| -> HashSet<IpAddr> {
            desired.addresses.iter().filter(|vip| is(vip)).map(|vip| vip.address).collect()
        };
        let (own, internal) = (&those(|vip| vip.host_owned), &those(|vip| vip.internal));
        let places = desired.service_ports.iter().flat_map(|port| {
            let protocol = protocol_number(port.key.protocol);
            port.frontends.iter().map(move |frontend| {
                let place = Place { address: frontend.address, protocol, port: frontend.port };
                (Known { place, internal: internal.contains(&place.address) }, own.contains(&place.address))
            })
        });
        Self(Arc::new(places.collect()))
    }

    /// Whether this place is one of them.
    #[must_use]
    pub fn contains(&self, place: &Place) -> bool {
        let known = |internal, own| self.0.contains(&(Known { place: *place, internal }, own));
        known(false, false) || known(false, true) || known(true, false) || known(true, true)
    }

    /// Those that `desired` does not have.
    #[must_use]
    pub fn gone(&self, desired: &DesiredState) -> BTreeSet<Place> {
        let now = Self::of(desired);
        self.0.iter().map(|(known, _)| known.place).filter(|place| !now.contains(place)).collect()
    }

    /// Takes in what is desired now, forgets what the host has lost, and adds the addresses of what is gone to those that
    /// are answered for. Whether anything is gone.
    pub fn follow(&mut self, desired: &mut DesiredState, host: &[IpAddr]) -> bool {
        let now = Self::of(desired);
        let mut all = (*self.0).clone();
        all.retain(|(Known { place, .. }, own)| !now.contains(place) && (!own || host.contains(&place.address)));
        let mut answered: HashSet<IpAddr> = desired.addresses.iter().map(|vip| vip.address).collect();
        for (Known { place: Place { address, .. }, internal }, _) in &all {
            if answered.insert(*address) {
                let (address, host_owned) = (*address, host.contains(address));
                desired.addresses.push(VipAddress { address, host_owned, echo: false, internal: *internal });
            }
        }
        desired.addresses.sort();
        let is_gone = !all.is_empty();
        all.extend(now.0.iter());
        if all != *self.0 {
            self.0 = Arc::new(all);
        }
        is_gone
    }

    /// Forgets these.
    pub fn forget(&mut self, over: &BTreeSet<Place>) {
        Arc::make_mut(&mut self.0).retain(|(known, _)| !over.contains(&known.place));
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Whether a flow still needs its frontend.
#[must_use]
pub fn is_open(flow: &FlowRecord) -> bool {
    !matches!(flow.state, FlowState::Closed | FlowState::Reset | FlowState::ClientReset)
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
            internal: false,
        };
        DesiredState { service_ports: vec![port.into()].into(), addresses: frontends.iter().map(vip).collect() }
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

    #[test]
    fn a_cluster_ip_that_lingers_is_announced_by_nobody_also_by_the_next_process() {
        let mut before = desired(&[("10.96.0.5", 80, false), ("203.0.113.5", 80, false)]);
        before.addresses[0].internal = true;
        let mut places = Places::default();
        places.follow(&mut before, &[]);
        for _ in 0..2 {
            places = serde_json::from_slice(&serde_json::to_vec(&places).unwrap()).unwrap();
            let mut now = desired(&[]);
            places.follow(&mut now, &[]);
            let announced: Vec<_> =
                now.addresses.iter().map(|vip| (vip.address.to_string(), vip.is_announced())).collect();
            assert_eq!(announced, [("10.96.0.5".to_owned(), false), ("203.0.113.5".to_owned(), true)]);
            assert_eq!(places.gone(&now).len(), 2);
        }
        places.forget(&places.gone(&desired(&[])));
        assert_eq!(places, Places::default());
    }

    #[test]
    fn what_an_older_version_wrote_is_read_and_what_is_written_of_other_addresses_is_the_same() {
        let older = r#"[[{"address":"203.0.113.5","protocol":6,"port":80},false]]"#;
        let places: Places = serde_json::from_str(older).unwrap();
        assert_eq!(places, Places::of(&desired(&[("203.0.113.5", 80, false)])));
        assert_eq!(serde_json::to_string(&places).unwrap(), older);
    }
}

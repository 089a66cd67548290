//! What each interface has to announce, of what it may: some addresses always, others while this node owns them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use wire::MacAddr;

use super::Announced;

/// What is known of addresses that several nodes may announce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owning {
    /// Those that this node owns.
    pub owned: BTreeSet<IpAddr>,
    /// Those that are left to machines of which nothing is heard but that: whether they still answer is asked.
    pub watched: BTreeSet<IpAddr>,
    /// Link-layer addresses of nodes whose claims are settled otherwise.
    pub peers: BTreeSet<MacAddr>,
}

/// Another machine says that it has an address which this one may announce too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contest {
    /// The address.
    pub address: IpAddr,
    /// Who says so.
    pub theirs: MacAddr,
    /// By what this node announces it there.
    pub ours: MacAddr,
}

/// What one interface has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// To be announced.
    pub addresses: BTreeSet<IpAddr>,
    /// Those that several nodes may announce, owned or not: claims are reported.
    pub shared: BTreeSet<IpAddr>,
    /// Those of them to ask for.
    pub watched: BTreeSet<IpAddr>,
    /// Whose claims are not reported.
    pub peers: BTreeSet<MacAddr>,
    /// How often each was to be announced again.
    pub again: BTreeMap<IpAddr, u64>,
}

/// What is to be announced where.
#[derive(Debug, Default)]
pub(super) struct Plan {
    placed: BTreeMap<String, (BTreeSet<IpAddr>, BTreeSet<IpAddr>)>,
    owning: Owning,
    again: BTreeMap<IpAddr, u64>,
}

impl Plan {
    pub fn place(&mut self, announced: Vec<Announced>) {
        self.placed.clear();
        for Announced { interface, addresses, shared } in announced {
            let entry = self.placed.entry(interface).or_default();
            entry.0.extend(addresses);
            entry.1.extend(shared);
        }
    }

    pub fn own(&mut self, owning: Owning) {
        self.again.retain(|address, _| owning.owned.contains(address));
        self.owning = owning;
    }

    pub fn again(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            *self.again.entry(*address).or_default() += 1;
        }
    }

    /// Where anything is placed.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        let some = |(_, (addresses, shared)): &(&String, &(BTreeSet<_>, BTreeSet<_>))| {
            !addresses.is_empty() || !shared.is_empty()
        };
        self.placed.iter().filter(some).map(|(interface, _)| interface.as_str())
    }

    pub fn orders(&self, interface: &str) -> Orders {
        let Some((always, shared)) = self.placed.get(interface) else { return Orders::default() };
        let Owning { owned, watched, peers } = &self.owning;
        Orders {
            addresses: always.iter().chain(shared.intersection(owned)).copied().collect(),
            shared: shared.clone(),
            watched: shared.intersection(watched).copied().collect(),
            peers: if shared.is_empty() { BTreeSet::new() } else { peers.clone() },
            again: self.again.iter().filter(|(address, _)| shared.contains(address)).map(|(a, n)| (*a, *n)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_address_is_announced_where_it_is_placed_while_it_is_owned() {
        let [vip, other, snat]: [IpAddr; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|text| text.parse().unwrap());
        let mut plan = Plan::default();
        plan.place(vec![
            Announced { interface: "eth0".into(), addresses: [snat].into(), shared: [vip, other].into() },
            Announced { interface: "eth1".into(), ..Announced::default() },
        ]);
        assert_eq!(plan.orders("eth0").addresses, [snat].into());
        plan.own(Owning { owned: [vip].into(), watched: [other].into(), ..Owning::default() });
        plan.again(&[vip]);
        let orders = plan.orders("eth0");
        assert_eq!((orders.addresses, orders.watched), ([snat, vip].into(), [other].into()));
        assert_eq!((orders.shared, orders.again), ([vip, other].into(), [(vip, 1)].into()));
        assert_eq!((plan.orders("eth1"), plan.orders("eth2")), (Orders::default(), Orders::default()));
        assert_eq!(plan.interfaces().collect::<Vec<_>>(), ["eth0"]);
        plan.own(Owning::default());
        assert_eq!((plan.orders("eth0").addresses, plan.orders("eth0").again.len()), ([snat].into(), 0));
    }
}

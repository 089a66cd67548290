//! Which address is announced on which interface. Pure: configuration and addresses in, a list out.
//!
//! An address belongs to the segments whose subnet has it, for only there somebody resolves it; one of no subnet is
//! announced everywhere, since nobody can say who routes it here. `announce` narrows that down for the addresses of its
//! pool, the first entry that fits; a NIC that it names stands for its VLANs too, for an address of theirs. SNAT addresses
//! are not subject to it: replies of backends depend on them. VIPs that several nodes may announce are told apart.

use std::net::IpAddr;

use ipnet::IpNet;
use translate::Pool;

use super::Announced;
use crate::config::{Announce, Config};
use crate::netlink::HostAddress;

/// What to announce where: for each interface of the configuration, in its order, then for each of `vlans`: those that
/// stand on these interfaces, and on which by its number. `pools` are those of configuration and cluster.
#[must_use]
pub fn place(
    (config, pools): (&Config, &[Pool]),
    vips: &[IpAddr],
    snat: &[IpAddr],
    host: &[HostAddress],
    vlans: &[(usize, String)],
) -> Vec<Announced> {
    let shared = config.shares_addresses();
    let nics = config.nics().iter().map(|interface| interface.name.clone()).enumerate();
    let (nic_of, mut per): (Vec<usize>, Vec<Announced>) = nics
        .chain(vlans.iter().cloned())
        .map(|(nic, interface)| (nic, Announced { interface, ..Announced::default() }))
        .unzip();
    for &address in vips {
        match rule(config, pools, address) {
            Some(rule) if !rule.l2 => {}
            Some(rule) if !rule.interfaces.is_empty() => {
                for (nic, _) in config.nics().iter().enumerate().filter(|(_, i)| rule.interfaces.contains(&i.name)) {
                    let own = |at: &usize| nic_of[*at] == nic && is_on_link(&per[*at].interface, address, host);
                    let mut places: Vec<usize> = (0..per.len()).filter(own).collect();
                    if places.is_empty() {
                        places.push(nic);
                    }
                    for at in places {
                        insert(&mut per[at], address, shared);
                    }
                }
            }
            _ => by_subnet(&mut per, address, host, shared),
        }
    }
    for &address in snat {
        by_subnet(&mut per, address, host, false);
    }
    per
}

/// Whether Millrace announces a VIP, or a routing daemon does; `pools` are those of configuration and cluster.
#[must_use]
pub fn is_announced(config: &Config, pools: &[Pool], vip: IpAddr) -> bool {
    rule(config, pools, vip).is_none_or(|rule| rule.l2)
}

fn insert(entry: &mut Announced, address: IpAddr, shared: bool) {
    let addresses = if shared { &mut entry.shared } else { &mut entry.addresses };
    addresses.insert(address);
}

/// Whether an address is of a subnet that the host has an address of on an interface.
fn is_on_link(interface: &str, address: IpAddr, host: &[HostAddress]) -> bool {
    host.iter().any(|own| {
        own.interface == interface && IpNet::new(own.address, own.prefix).is_ok_and(|net| net.contains(&address))
    })
}

/// The first entry of `announce` that an address is subject to.
fn rule<'c>(config: &'c Config, pools: &[Pool], address: IpAddr) -> Option<&'c Announce> {
    let pool = pools.iter().find(|pool| pool.addresses.iter().any(|range| range.contains(address)));
    config.announce.iter().find(|rule| match &rule.pool {
        None => true,
        Some(name) => pool.is_some_and(|pool| pool.name == *name),
    })
}

fn by_subnet(per: &mut [Announced], address: IpAddr, host: &[HostAddress], shared: bool) {
    let on_link = |interface: &str| is_on_link(interface, address, host);
    let anywhere = !per.iter().any(|entry| on_link(&entry.interface));
    for entry in per.iter_mut().filter(|entry| anywhere || on_link(&entry.interface)) {
        insert(entry, address, shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "interfaces: [eth0, eth1]\nmanifests: [/m]\n\
                          pools: [{name: public, addresses: [10.0.0.96/28, 203.0.113.0/28, \"2001:db8::100/124\"]}]\n";

    fn placed(announce: &str, vips: &[&str], snat: &[&str]) -> Vec<Vec<String>> {
        placed_with(&[], announce, vips, snat)
    }

    fn placed_with(vlans: &[(usize, &str)], announce: &str, vips: &[&str], snat: &[&str]) -> Vec<Vec<String>> {
        let (config, findings) = Config::read(std::path::Path::new("m.yaml"), &format!("{CONFIG}{announce}\n"));
        assert_eq!(findings, []);
        let own = |interface: &str, address: &str, prefix| HostAddress {
            interface: interface.to_owned(),
            address: address.parse().unwrap(),
            prefix,
        };
        let host = [
            own("eth0", "10.0.0.1", 24),
            own("eth0", "2001:db8::1", 64),
            own("eth1", "10.1.0.1", 24),
            own("eth9", "203.0.113.1", 24),
            own("eth0.100", "198.51.100.1", 24),
            own("inner", "192.0.2.1", 25),
        ];
        let vlans: Vec<_> = vlans.iter().map(|(nic, name)| (*nic, (*name).to_owned())).collect();
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let per = place((&config, &config.pools), &parse(vips), &parse(snat), &host, &vlans);
        let names: Vec<_> = ["eth0", "eth1"].into_iter().chain(vlans.iter().map(|(_, name)| name.as_str())).collect();
        assert_eq!(per.iter().map(|entry| entry.interface.as_str()).collect::<Vec<_>>(), names);
        per.iter().map(|entry| entry.addresses.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn an_address_goes_where_its_subnet_is_and_everywhere_if_nowhere() {
        assert_eq!(
            placed("", &["10.0.0.100", "2001:db8::100"], &["10.1.0.9"]),
            [vec!["10.0.0.100", "2001:db8::100"], vec!["10.1.0.9"]]
        );
        assert_eq!(placed("", &["203.0.113.2"], &["192.0.2.9"]), [["192.0.2.9", "203.0.113.2"]; 2]);
    }

    #[test]
    fn announce_says_which_interfaces_whatever_the_subnet() {
        let rule = "announce: [{pool: public, interfaces: [eth1]}]";
        assert_eq!(
            placed(rule, &["10.0.0.100", "198.51.100.1"], &[]),
            [vec!["198.51.100.1"], vec!["10.0.0.100", "198.51.100.1"]]
        );
    }

    #[test]
    fn an_address_of_a_vlans_subnet_is_announced_in_that_vlan_alone() {
        let vlans = [(0, "eth0.100"), (1, "inner")];
        let vips = ["198.51.100.7", "10.0.0.100", "203.0.113.2"];
        let everywhere = "203.0.113.2";
        assert_eq!(
            placed_with(&vlans, "", &vips, &["192.0.2.9"]),
            [
                vec!["10.0.0.100", everywhere],
                vec![everywhere],
                vec!["198.51.100.7", everywhere],
                vec!["192.0.2.9", everywhere]
            ]
        );
        // A NIC that is named stands for the VLAN that the address is of, and else for itself.
        for (named, places) in [("eth0", [0, 0, 1, 0]), ("eth1", [0, 1, 0, 0])] {
            let rule = format!("announce: [{{interfaces: [{named}]}}]");
            let placed = placed_with(&vlans, &rule, &["198.51.100.7"], &[]);
            assert_eq!(placed.iter().map(Vec::len).collect::<Vec<_>>(), places);
        }
    }

    #[test]
    fn what_a_routing_daemon_announces_is_left_to_it_but_snat_addresses_are_not() {
        let rule = "announce: [{pool: public, mode: none}]";
        assert_eq!(placed(rule, &["10.0.0.100"], &["10.1.0.9"]), [vec![], vec!["10.1.0.9"]]);
        assert_eq!(placed("announce: [{mode: none}]", &["198.51.100.1"], &["10.0.0.9"]), [vec!["10.0.0.9"], vec![]]);
    }

    #[test]
    fn a_pool_of_the_cluster_has_its_entry_too() {
        let text = "interfaces: [eth0]\nkubernetes: {}\nannounce: [{pool: object, mode: none}, {mode: none}]\n";
        let (config, findings) =
            Config::read(std::path::Path::new("m.yaml"), &text.replace("{mode: none}", "{mode: l2}"));
        assert!(findings.len() == 1 && findings[0].field == "kubernetes.heartbeat", "{findings:?}");
        let pools = [Pool::new("object", vec!["203.0.113.0/28".parse().unwrap()])];
        let [inside, outside] = ["203.0.113.1", "203.0.113.16"].map(|ip| ip.parse().unwrap());
        assert!(!is_announced(&config, &pools, inside) && is_announced(&config, &pools, outside));
        assert!(is_announced(&config, &[], inside));
    }

    #[test]
    fn the_first_entry_that_fits_counts() {
        let rules = "announce: [{pool: public, interfaces: [eth1]}, {mode: none}]";
        assert_eq!(placed(rules, &["10.0.0.100", "198.51.100.1"], &[]), [vec![], vec!["10.0.0.100"]]);
    }
}

//! Which address is announced on which interface. Pure: configuration and addresses in, a list out.
//!
//! An address belongs to the segments whose subnet has it, for only there somebody resolves it; one of no subnet is
//! announced everywhere, since nobody can say who routes it here. `announce` narrows that down for the addresses of its
//! pool, the first entry that fits. SNAT addresses are not subject to it: replies of backends depend on them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Announced;
use crate::config::{Announce, Config};
use crate::netlink::HostAddress;

/// What to announce where: for each interface of the configuration, in its order.
#[must_use]
pub fn place(config: &Config, vips: &[IpAddr], snat: &[IpAddr], host: &[HostAddress]) -> Vec<Announced> {
    let mut per: Vec<Announced> =
        config.interfaces.iter().map(|i| Announced { interface: i.name.clone(), ..Announced::default() }).collect();
    for &address in vips {
        match rule(config, address) {
            Some(rule) if !rule.l2 => {}
            Some(rule) if !rule.interfaces.is_empty() => {
                for entry in per.iter_mut().filter(|entry| rule.interfaces.contains(&entry.interface)) {
                    entry.addresses.insert(address);
                }
            }
            _ => by_subnet(&mut per, address, host),
        }
    }
    for &address in snat {
        by_subnet(&mut per, address, host);
    }
    per
}

/// The first entry of `announce` that an address is subject to.
fn rule(config: &Config, address: IpAddr) -> Option<&Announce> {
    let pool = config.pools.iter().find(|pool| pool.addresses.iter().any(|range| range.contains(address)));
    config.announce.iter().find(|rule| match &rule.pool {
        None => true,
        Some(name) => pool.is_some_and(|pool| pool.name == *name),
    })
}

fn by_subnet(per: &mut [Announced], address: IpAddr, host: &[HostAddress]) {
    let on_link = |interface: &str| {
        host.iter().any(|own| {
            own.interface == interface && IpNet::new(own.address, own.prefix).is_ok_and(|net| net.contains(&address))
        })
    };
    let anywhere = !per.iter().any(|entry| on_link(&entry.interface));
    for entry in per.iter_mut().filter(|entry| anywhere || on_link(&entry.interface)) {
        entry.addresses.insert(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "interfaces: [eth0, eth1]\nmanifests: [/m]\n\
                          pools: [{name: public, addresses: [10.0.0.96/28, 203.0.113.0/28, \"2001:db8::100/124\"]}]\n";

    fn placed(announce: &str, vips: &[&str], snat: &[&str]) -> Vec<Vec<String>> {
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
        ];
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let per = place(&config, &parse(vips), &parse(snat), &host);
        assert_eq!(per.iter().map(|entry| entry.interface.as_str()).collect::<Vec<_>>(), ["eth0", "eth1"]);
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
    fn what_a_routing_daemon_announces_is_left_to_it_but_snat_addresses_are_not() {
        let rule = "announce: [{pool: public, mode: none}]";
        assert_eq!(placed(rule, &["10.0.0.100"], &["10.1.0.9"]), [vec![], vec!["10.1.0.9"]]);
        assert_eq!(placed("announce: [{mode: none}]", &["198.51.100.1"], &["10.0.0.9"]), [vec!["10.0.0.9"], vec![]]);
    }

    #[test]
    fn the_first_entry_that_fits_counts() {
        let rules = "announce: [{pool: public, interfaces: [eth1]}, {mode: none}]";
        assert_eq!(placed(rules, &["10.0.0.100", "198.51.100.1"], &[]), [vec![], vec!["10.0.0.100"]]);
    }
}

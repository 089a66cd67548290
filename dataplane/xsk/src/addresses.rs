//! The steering program's maps of addresses, ports and sources, written by difference.
//!
//! Keys and values are the bytes of the structs in `steering.bpf.c`: addresses as IPv6 (IPv4 mapped into it), ports in
//! network order, kinds and ranges in the machine's. Invariant: `rules`, `open` and `replying` mirror the maps, entry by
//! entry, so that an error half-way is made good by the next call.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use aya::maps::{HashMap, MapData, MapError};

use crate::{SteeredAddress, XskError};

/// `struct address`.
type AddressKey = [u8; 16];
/// `struct address_rule`.
type AddressValue = [u8; 8];
/// `struct port_key`.
type PortKey = [u8; 20];

const ADDRESS_WHOLE: u32 = 1;
const ADDRESS_PORTS: u32 = 2;
const ADDRESS_HOST: u32 = 3;
/// A range that no port is in.
const NO_RANGE: (u16, u16) = (1, 0);

/// The maps `addresses`, `ports` and `sources`, with a mirror of what is in them.
#[derive(Debug)]
pub(crate) struct AddressMaps {
    addresses: HashMap<MapData, AddressKey, AddressValue>,
    ports: HashMap<MapData, PortKey, u32>,
    sources: HashMap<MapData, PortKey, u32>,
    rules: BTreeMap<AddressKey, AddressValue>,
    open: BTreeSet<PortKey>,
    replying: BTreeSet<PortKey>,
}

/// What the maps should hold.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    rules: BTreeMap<AddressKey, AddressValue>,
    open: BTreeSet<PortKey>,
    replying: BTreeSet<PortKey>,
}

impl AddressMaps {
    /// Takes the maps as a predecessor left them.
    pub(crate) fn adopt(
        addresses: HashMap<MapData, AddressKey, AddressValue>,
        ports: HashMap<MapData, PortKey, u32>,
        sources: HashMap<MapData, PortKey, u32>,
    ) -> Result<AddressMaps, XskError> {
        let rules = addresses.iter().collect::<Result<_, _>>().map_err(in_addresses)?;
        let open = ports.keys().collect::<Result<_, _>>().map_err(in_ports)?;
        let replying = sources.keys().collect::<Result<_, _>>().map_err(in_sources)?;
        Ok(AddressMaps { addresses, ports, sources, rules, open, replying })
    }

    /// The map `sources`: address, protocol, port.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (IpAddr, u8, u16)> {
        self.replying.iter().map(|key| {
            let mut address = [0; 16];
            address.copy_from_slice(&key[..16]);
            let port = u16::from_be_bytes([key[16], key[17]]);
            (Ipv6Addr::from(address).to_canonical(), key[18], port)
        })
    }

    /// Makes the maps hold `addresses` and nothing else: ports first, then the addresses that send packets to look for
    /// them, then the sources that count where there is no address, then removals in the other direction.
    pub(crate) fn set(&mut self, addresses: &[SteeredAddress]) -> Result<(), XskError> {
        let wanted = wanted(addresses)?;
        for key in &wanted.open {
            if !self.open.contains(key) {
                self.ports.insert(key, 1, 0).map_err(in_ports)?;
                self.open.insert(*key);
            }
        }
        for (key, value) in &wanted.rules {
            if self.rules.get(key) != Some(value) {
                self.addresses.insert(key, value, 0).map_err(in_addresses)?;
                self.rules.insert(*key, *value);
            }
        }
        for key in &wanted.replying {
            if !self.replying.contains(key) {
                self.sources.insert(key, 1, 0).map_err(in_sources)?;
                self.replying.insert(*key);
            }
        }
        self.remove_others(&wanted)
    }

    fn remove_others(&mut self, wanted: &Wanted) -> Result<(), XskError> {
        let silent: Vec<PortKey> = self.replying.difference(&wanted.replying).copied().collect();
        for key in silent {
            absent_is_fine(self.sources.remove(&key)).map_err(in_sources)?;
            self.replying.remove(&key);
        }
        let gone: Vec<AddressKey> = self.rules.keys().filter(|key| !wanted.rules.contains_key(*key)).copied().collect();
        for key in gone {
            absent_is_fine(self.addresses.remove(&key)).map_err(in_addresses)?;
            self.rules.remove(&key);
        }
        let closed: Vec<PortKey> = self.open.difference(&wanted.open).copied().collect();
        for key in closed {
            absent_is_fine(self.ports.remove(&key)).map_err(in_ports)?;
            self.open.remove(&key);
        }
        Ok(())
    }
}

fn in_addresses(source: MapError) -> XskError {
    XskError::Map { map: "addresses", source }
}

fn in_ports(source: MapError) -> XskError {
    XskError::Map { map: "ports", source }
}

fn in_sources(source: MapError) -> XskError {
    XskError::Map { map: "sources", source }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn wanted(addresses: &[SteeredAddress]) -> Result<Wanted, XskError> {
    let mut wanted = Wanted::default();
    // Ranges given so far, to tell an address with no range from one with another range.
    let mut ranges: BTreeMap<AddressKey, (u16, u16)> = BTreeMap::new();
    let whole = rule(ADDRESS_WHOLE, NO_RANGE);
    let mut host = Vec::new();
    for steered in addresses {
        match steered {
            SteeredAddress::Whole(address) => {
                let before = wanted.rules.insert(address_key(*address), whole);
                if before.is_some_and(|before| before != whole) {
                    return Err(XskError::Contradiction { address: *address });
                }
            }
            SteeredAddress::Ports { address, ports, range } => {
                let key = address_key(*address);
                let given = ranges.get(&key).copied();
                let contradicts = given.is_some() && range.is_some() && given != *range;
                if contradicts || wanted.rules.get(&key) == Some(&whole) {
                    return Err(XskError::Contradiction { address: *address });
                }
                if let Some(range) = range {
                    ranges.insert(key, *range);
                }
                wanted.rules.insert(key, rule(ADDRESS_PORTS, range.or(given).unwrap_or(NO_RANGE)));
                wanted.open.extend(ports.iter().map(|(protocol, port)| port_key(&key, *protocol, *port)));
            }
            SteeredAddress::Source { address, protocol, port } => {
                wanted.replying.insert(port_key(&address_key(*address), *protocol, *port));
            }
            SteeredAddress::Host(address) => host.push(address_key(*address)),
        }
    }
    for key in host {
        wanted.rules.entry(key).or_insert(rule(ADDRESS_HOST, NO_RANGE));
    }
    Ok(wanted)
}

fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn rule(kind: u32, (low, high): (u16, u16)) -> AddressValue {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&kind.to_ne_bytes());
    value[4..6].copy_from_slice(&low.to_ne_bytes());
    value[6..].copy_from_slice(&high.to_ne_bytes());
    value
}

fn port_key(address: &AddressKey, protocol: u8, port: u16) -> PortKey {
    let mut key = [0; 20];
    key[..16].copy_from_slice(address);
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key[18] = protocol;
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn ports(address: &str, ports: &[(u8, u16)], range: Option<(u16, u16)>) -> SteeredAddress {
        SteeredAddress::Ports { address: ip(address), ports: ports.to_vec(), range }
    }

    #[test]
    fn port_lists_of_one_address_add_up() {
        let apart = [ports("192.0.2.1", &[(6, 80)], None), ports("192.0.2.1", &[(17, 53)], Some((40000, 40999)))];
        let together = [ports("192.0.2.1", &[(17, 53), (6, 80), (6, 80)], Some((40000, 40999)))];
        assert_eq!(wanted(&apart).unwrap(), wanted(&together).unwrap());
        let mut reversed = apart;
        reversed.reverse();
        assert_eq!(wanted(&reversed).unwrap(), wanted(&together).unwrap());
    }

    #[test]
    fn an_address_is_not_steered_in_two_ways() {
        let whole = SteeredAddress::Whole(ip("192.0.2.1"));
        let by_port = ports("192.0.2.1", &[(6, 80)], None);
        for pair in [[whole.clone(), by_port.clone()], [by_port, whole]] {
            assert!(matches!(wanted(&pair), Err(XskError::Contradiction { .. })));
        }
        let ranges = [ports("192.0.2.1", &[], Some((1, 2))), ports("192.0.2.1", &[], Some((1, 3)))];
        assert!(matches!(wanted(&ranges), Err(XskError::Contradiction { .. })));
    }

    #[test]
    fn an_address_of_the_host_yields_to_what_is_steered_of_it() {
        let host = SteeredAddress::Host(ip("192.0.2.1"));
        for steered in [SteeredAddress::Whole(ip("192.0.2.1")), ports("192.0.2.1", &[(6, 80)], None)] {
            let alone = wanted(std::slice::from_ref(&steered)).unwrap();
            assert_eq!(wanted(&[host.clone(), steered.clone()]).unwrap(), alone);
            assert_eq!(wanted(&[steered, host.clone()]).unwrap(), alone);
        }
        assert_eq!(wanted(&[host]).unwrap().rules.len(), 1);
    }

    #[test]
    fn keys_are_the_bytes_of_the_programs_structs() {
        let mapped = address_key(ip("192.0.2.1"));
        assert_eq!(mapped, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(port_key(&mapped, 17, 0x1234)[16..], [0x12, 0x34, 17, 0]);
        assert_eq!(rule(ADDRESS_PORTS, (3, 4))[..4], 2u32.to_ne_bytes());
    }
}

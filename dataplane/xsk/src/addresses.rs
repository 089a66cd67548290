//! The steering program's maps of addresses and ports, written by difference.
//!
//! Keys and values are the bytes of the structs in `steering.bpf.c`: addresses as IPv6 (IPv4 mapped into it), ports in
//! network order, kinds and ranges in the machine's. Invariant: `rules` and `open` mirror the maps, entry by entry, so
//! that an error half-way is made good by the next call.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
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
/// A range that no port is in.
const NO_RANGE: (u16, u16) = (1, 0);

/// The maps `addresses` and `ports`, with a mirror of what is in them.
#[derive(Debug)]
pub(crate) struct AddressMaps {
    addresses: HashMap<MapData, AddressKey, AddressValue>,
    ports: HashMap<MapData, PortKey, u32>,
    rules: BTreeMap<AddressKey, AddressValue>,
    open: BTreeSet<PortKey>,
}

/// What the maps should hold.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    rules: BTreeMap<AddressKey, AddressValue>,
    open: BTreeSet<PortKey>,
}

impl AddressMaps {
    /// Takes the maps as a predecessor left them.
    pub(crate) fn adopt(
        addresses: HashMap<MapData, AddressKey, AddressValue>,
        ports: HashMap<MapData, PortKey, u32>,
    ) -> Result<AddressMaps, XskError> {
        let rules = addresses.iter().collect::<Result<_, _>>().map_err(in_addresses)?;
        let open = ports.keys().collect::<Result<_, _>>().map_err(in_ports)?;
        Ok(AddressMaps { addresses, ports, rules, open })
    }

    /// Makes the maps hold `addresses` and nothing else: ports first, then the addresses that send packets to look for
    /// them, then removals in the other direction.
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
        }
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
    fn keys_are_the_bytes_of_the_programs_structs() {
        let mapped = address_key(ip("192.0.2.1"));
        assert_eq!(mapped, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(port_key(&mapped, 17, 0x1234)[16..], [0x12, 0x34, 17, 0]);
        assert_eq!(rule(ADDRESS_PORTS, (3, 4))[..4], 2u32.to_ne_bytes());
    }
}

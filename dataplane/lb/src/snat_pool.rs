//! The addresses that SNAT ports are taken from: some for flows that leave by NICs, some for those by the kernel port, whose
//! replies the kernel's routes bring back there.

use wire::{Addr, Port};

/// Ports of a block.
pub const BLOCK_PORTS: u16 = 64;

/// Where SNAT ports are taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnatPool {
    /// IPv4 addresses.
    pub v4: Vec<SnatAddress>,
    /// IPv6 addresses.
    pub v6: Vec<SnatAddress>,
    /// IPv4 addresses that the kernel's routes lead to the kernel port: for flows that leave by it.
    pub kernel_v4: Vec<SnatAddress>,
    /// The same of IPv6.
    pub kernel_v6: Vec<SnatAddress>,
}

/// How many supplies of SNAT ports there are: one for each family, by NICs and by the kernel port.
pub const SNAT_SUPPLIES: usize = 4;

/// The part of a [`SnatPool`] that a flow's SNAT port is taken from.
#[derive(Clone, Copy, Debug)]
pub struct SnatSupply<'a> {
    /// Its number, below `SNAT_SUPPLIES`.
    pub number: usize,
    /// Its addresses.
    pub addresses: &'a [SnatAddress],
}

/// A SNAT port in few octets, which are good as long as its supply is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SupplyPort {
    /// Which of [`SnatSupply::addresses`].
    pub(crate) address: u16,
    /// The port.
    pub(crate) port: Port,
}

impl SnatSupply<'_> {
    /// The address and the port.
    ///
    /// # Panics
    /// If it is another supply's.
    #[inline]
    pub(crate) fn end(&self, port: SupplyPort) -> (Addr, Port) {
        (self.addresses[usize::from(port.address)].address, port.port)
    }
}

/// An address that SNAT ports are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatAddress {
    /// The address.
    pub address: Addr,
    /// Its number in the port blocks of the flow file.
    pub index: u16,
    /// First port that may be used.
    pub first_port: u16,
    /// Last port that may be used.
    pub last_port: u16,
    /// Whether it is Millrace's alone (its ARP and NDP are answered here), not the host's with a range of its ports.
    pub dedicated: bool,
}

impl SnatPool {
    /// What flows to endpoints of a family take their ports from, by the kernel port or by a NIC. Replies to the kernel
    /// port's addresses come back by NICs too, where there are no others.
    #[must_use]
    #[inline]
    pub fn supply(&self, v4: bool, by_kernel: bool) -> SnatSupply<'_> {
        let (nics, kernel) = if v4 { (&self.v4, &self.kernel_v4) } else { (&self.v6, &self.kernel_v6) };
        let by_kernel = by_kernel || nics.is_empty();
        let addresses = if by_kernel { kernel } else { nics };
        SnatSupply { number: supply_number(v4, by_kernel), addresses }
    }

    /// All supplies.
    pub(crate) fn supplies(&self) -> [SnatSupply<'_>; SNAT_SUPPLIES] {
        let of = |v4, by_kernel, addresses| SnatSupply { number: supply_number(v4, by_kernel), addresses };
        [
            of(true, false, &self.v4[..]),
            of(false, false, &self.v6[..]),
            of(true, true, &self.kernel_v4[..]),
            of(false, true, &self.kernel_v6[..]),
        ]
    }

    /// The entry of an address.
    #[must_use]
    #[inline]
    pub fn get(&self, address: &Addr) -> Option<&SnatAddress> {
        let (nics, kernel) = if address.is_v4() { (&self.v4, &self.kernel_v4) } else { (&self.v6, &self.kernel_v6) };
        nics.iter().chain(kernel).find(|entry| entry.address == *address)
    }

    /// The entry of an address that this port of it may be taken from.
    #[must_use]
    #[inline]
    pub fn of(&self, address: &Addr, port: Port) -> Option<&SnatAddress> {
        self.get(address).filter(|entry| (entry.first_port..=entry.last_port).contains(&port.number()))
    }
}

/// The number of a supply.
#[inline]
pub(crate) fn supply_number(v4: bool, by_kernel: bool) -> usize {
    2 * usize::from(by_kernel) + usize::from(!v4)
}

/// First and last port of a block that the address's range allows.
#[inline]
pub(crate) fn ports(address: &SnatAddress, block: u16) -> Option<(u16, u16)> {
    let begin = block * BLOCK_PORTS;
    let first = begin.max(address.first_port);
    let last = (begin + (BLOCK_PORTS - 1)).min(address.last_port);
    (first <= last).then_some((first, last))
}

/// How many blocks a range of ports touches, from the first to the last; none if it is empty.
#[must_use]
pub fn blocks_of_range(first: u16, last: u16) -> usize {
    if first > last {
        return 0;
    }
    usize::from(last / BLOCK_PORTS - first / BLOCK_PORTS) + 1
}

/// How many blocks the addresses' ranges touch.
pub(crate) fn blocks_of(addresses: &[SnatAddress]) -> usize {
    addresses.iter().map(|address| blocks_of_range(address.first_port, address.last_port)).sum()
}

/// The nth block of the addresses' ranges.
pub(crate) fn block_at(addresses: &[SnatAddress], mut n: usize) -> Option<(u16, u16)> {
    for address in addresses {
        let count = blocks_of_range(address.first_port, address.last_port);
        if n < count {
            return Some((address.index, address.first_port / BLOCK_PORTS + n as u16));
        }
        n -= count;
    }
    None
}

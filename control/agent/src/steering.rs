//! What is steered to AF_XDP, and which SNAT addresses may be used at all.
//!
//! Dedicated addresses are steered wholly; an address of the host only on the ports that are served. A host's address
//! for SNAT needs a port range that nothing else of the host uses, which is checked here and reserved. In mode `preserve`
//! a reply's destination is the client, so it is steered by its source, an endpoint's address and port.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;

use lb::model::{DesiredState, Mode};
use wire::Protocol;
use xsk::SteeredAddress;

use crate::config::{Config, KernelPort, Snat};
use crate::host::settings;
use crate::linger::Place;

const LOCAL_RANGE: &str = "net/ipv4/ip_local_port_range";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
/// In the runtime folder: what was added to the reserved ports.
const RESERVED_NOTE: &str = "reserved-ports";
/// Octets of a note: all ports, every other one.
const LONGEST_NOTE: u64 = 6 * 32_768;

/// A SNAT address that passed the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatSource {
    /// The address.
    pub address: IpAddr,
    /// First and last port.
    pub ports: (u16, u16),
    /// Whether it is Millrace's alone.
    pub dedicated: bool,
    /// Whether it is for what leaves by the kernel port.
    pub kernel: bool,
}

/// What the host uses itself.
#[derive(Clone, Debug, Default)]
pub struct HostPorts {
    /// The host's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// `ip_local_port_range`.
    pub local: Option<RangeInclusive<u16>>,
    /// Ports that something listens on.
    pub listeners: BTreeSet<u16>,
    /// What is listened on: IP protocol number, address (unspecified for all), port.
    pub sockets: BTreeSet<(u8, IpAddr, u16)>,
}

impl HostPorts {
    /// Of the network namespace that this runs in.
    #[must_use]
    pub fn read(addresses: BTreeSet<IpAddr>) -> Self {
        let local = fs::read_to_string(settings().join(LOCAL_RANGE)).ok().and_then(|text| {
            let mut numbers = text.split_whitespace().filter_map(|n| n.parse().ok());
            Some(numbers.next()?..=numbers.next()?)
        });
        let mut sockets = BTreeSet::new();
        for (file, protocol, listening) in [
            ("tcp", Protocol::TCP, "0A"),
            ("tcp6", Protocol::TCP, "0A"),
            ("udp", Protocol::UDP, "07"),
            ("udp6", Protocol::UDP, "07"),
        ] {
            let text = fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
            let found = text.lines().skip(1).filter_map(|line| listener(line, listening));
            sockets.extend(found.map(|(address, port)| (protocol.0, address, port)));
        }
        let text = fs::read_to_string("/proc/self/net/sctp/eps").unwrap_or_default();
        let endpoints = text.lines().skip(1).flat_map(sctp_listener);
        sockets.extend(endpoints.map(|(address, port)| (Protocol::SCTP.0, address, port)));
        let listeners = sockets.iter().map(|(.., port)| *port).collect();
        Self { addresses, local, listeners, sockets }
    }

    /// Whether packets for this place have a socket of the host. One of all IPv6 addresses counts for IPv4 too, as it does
    /// unless it says otherwise.
    #[must_use]
    pub fn listens(&self, place: &Place) -> bool {
        let all = [IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)];
        let all = if place.address.is_ipv4() { &all[..] } else { &all[..1] };
        let mut addresses = all.iter().chain([&place.address]);
        addresses.any(|address| self.sockets.contains(&(place.protocol, *address, place.port)))
    }
}

/// The local address and port of a line of `/proc/net/tcp` or `udp` that is in this state.
fn listener(line: &str, state: &str) -> Option<(IpAddr, u16)> {
    let mut columns = line.split_whitespace().skip(1);
    let (address, port) = columns.next()?.rsplit_once(':')?;
    if columns.nth(1)? != state {
        return None;
    }
    // Words of 32 bits, each in the machine's own order (`net/ipv4/tcp_ipv4.c`, `get_tcp4_sock`).
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let octets = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical()
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

/// The local addresses and the port of a line of `/proc/net/sctp/eps` that is of a socket which listens (`net/sctp/proc.c`,
/// `sctp_eps_seq_show`: SST is the state, LADDRS are all that come last).
fn sctp_listener(line: &str) -> Vec<(IpAddr, u16)> {
    const LISTENING: &str = "10";
    let columns: Vec<_> = line.split_whitespace().collect();
    let [_, _, _, LISTENING, _, port, _, _, addresses @ ..] = columns.as_slice() else { return Vec::new() };
    let Ok(port) = port.parse() else { return Vec::new() };
    addresses.iter().filter_map(|address| Some((address.parse().ok()?, port))).collect()
}

/// Checks SNAT addresses against what the host uses. The error says the way out.
///
/// # Errors
/// A text for people: which address, what stands against it, what to change.
pub fn check_snat(snat: &Snat, node_ports: &RangeInclusive<u16>, host: &HostPorts) -> Result<Vec<SnatSource>, String> {
    if snat.addresses.is_empty() {
        return Err(
            "no SNAT address: add `snat: {addresses: [ADDRESS]}` with an address of the backends' network that \
                    nobody else uses, or a host's own address and `ports: FIRST-LAST`"
                .to_owned(),
        );
    }
    let mut sources = Vec::new();
    for &address in &snat.addresses {
        let owned = host.addresses.contains(&address);
        let ports = match (&snat.ports, owned) {
            (Some(ports), true) => {
                check_range(address, ports, node_ports, host)?;
                (*ports.start(), *ports.end())
            }
            (None, true) => {
                return Err(format!(
                    "snat.addresses: {address} is the host's own address, and taking all its ports would break the host's \
                     connections: use an address that no host has, or add `ports: FIRST-LAST`, a range clear of \
                     ip_local_port_range{}",
                    host.local.as_ref().map_or_else(String::new, |l| format!(" ({}-{})", l.start(), l.end()))
                ));
            }
            (Some(ports), false) => (*ports.start(), *ports.end()),
            (None, false) => (1024, 65535),
        };
        sources.push(SnatSource { address, ports, dedicated: !owned, kernel: false });
    }
    Ok(sources)
}

/// All SNAT addresses, those of the kernel port last; where it has some, others may be missing.
///
/// # Errors
/// As [`check_snat`].
pub fn snat_sources(config: &Config, host: &HostPorts) -> Result<Vec<SnatSource>, String> {
    let kernel = of_kernel_port(config.kernel_port.as_ref(), &host.addresses)?;
    let mut sources = match config.snat.addresses.is_empty() && !kernel.is_empty() {
        true => Vec::new(),
        false => check_snat(&config.snat, &config.node_port_range, host)?,
    };
    sources.extend(kernel);
    Ok(sources)
}

/// The kernel port's addresses as SNAT addresses.
fn of_kernel_port(port: Option<&KernelPort>, own: &BTreeSet<IpAddr>) -> Result<Vec<SnatSource>, String> {
    let source = |&address: &IpAddr| match own.contains(&address) {
        true => Err(format!(
            "kernelPort.snat: {address} is the host's own address, and answers to it would end there: use an address that \
             nobody has and that is routed to this host"
        )),
        false => Ok(SnatSource { address, ports: (1024, 65535), dedicated: true, kernel: true }),
    };
    port.iter().flat_map(|port| &port.snat).map(source).collect()
}

/// The addresses that tunnels start at: what is configured, else the SNAT addresses that are Millrace's alone. Errors about
/// outer packets come to them, so they must not be the host's.
///
/// # Errors
/// A text for people: which address is the host's, what to change.
pub fn check_tunnels(
    configured: &[IpAddr],
    snat: &[SnatSource],
    own: &BTreeSet<IpAddr>,
) -> Result<Vec<IpAddr>, String> {
    if let Some(address) = configured.iter().find(|address| own.contains(address)) {
        return Err(format!(
            "tunnel.sources: {address} is the host's own address, which errors would not come to us from: use addresses \
             that no host has"
        ));
    }
    if configured.is_empty() {
        return Ok(snat
            .iter()
            .filter(|source| source.dedicated && !source.kernel)
            .map(|source| source.address)
            .collect());
    }
    Ok(configured.to_vec())
}

fn check_range(
    address: IpAddr,
    ports: &RangeInclusive<u16>,
    node_ports: &RangeInclusive<u16>,
    host: &HostPorts,
) -> Result<(), String> {
    let overlaps = |other: &RangeInclusive<u16>| ports.start() <= other.end() && other.start() <= ports.end();
    let range = format!("snat.ports: {}-{} of the host's own address {address}", ports.start(), ports.end());
    if let Some(local) = host.local.as_ref().filter(|local| overlaps(local)) {
        return Err(format!(
            "{range} overlaps ip_local_port_range ({}-{}), which the host's own connections use: choose a range outside, \
             or narrow that with `sysctl net.ipv4.ip_local_port_range`",
            local.start(),
            local.end()
        ));
    }
    if overlaps(node_ports) {
        return Err(format!(
            "{range} overlaps nodePortRange ({}-{}): choose a range outside",
            node_ports.start(),
            node_ports.end()
        ));
    }
    if let Some(port) = host.listeners.range(ports.clone()).next() {
        return Err(format!("{range} has port {port} in it, on which something listens: choose another range"));
    }
    Ok(())
}

/// Adds the ranges of host-owned SNAT addresses to `ip_local_reserved_ports`, and notes in the runtime folder what was
/// added, for [`trim`] and [`unreserve`]. What a predecessor added stays: it may still use that, and go on if this start
/// fails.
///
/// # Errors
/// If the kernel or the file system refuses.
pub fn reserve(runtime: &Path, sources: &[SnatSource]) -> io::Result<()> {
    reserve_in(&settings().join(RESERVED), runtime, sources)
}

fn reserve_in(file: &Path, runtime: &Path, sources: &[SnatSource]) -> io::Result<()> {
    let mut reserved = read_ports(file)?;
    let added: BTreeSet<u16> = wanted(sources).difference(&reserved).copied().collect();
    if added.is_empty() {
        return Ok(());
    }
    let noted: BTreeSet<u16> = noted(runtime)?.union(&added).copied().collect();
    fs::write(runtime.join(RESERVED_NOTE), format_ports(&noted))?;
    reserved.extend(added);
    fs::write(file, format_ports(&reserved))
}

/// Takes back what [`reserve`] added for others than these: of a predecessor that has ended.
///
/// # Errors
/// If the kernel or the file system refuses.
pub fn trim(runtime: &Path, sources: &[SnatSource]) -> io::Result<()> {
    take_back(&settings().join(RESERVED), runtime, &wanted(sources)).map(drop)
}

/// Whether [`reserve`] noted in the runtime folder that it added something.
///
/// # Errors
/// If there is something else of that name, or it cannot be read.
pub fn is_reserved(runtime: &Path) -> io::Result<bool> {
    Ok(!noted(runtime)?.is_empty())
}

/// Takes back all that [`reserve`] added. Whether there was anything.
///
/// # Errors
/// If the kernel or the file system refuses, or the note is somebody else's.
pub fn unreserve(runtime: &Path) -> io::Result<bool> {
    take_back(&settings().join(RESERVED), runtime, &BTreeSet::new())
}

fn take_back(file: &Path, runtime: &Path, keep: &BTreeSet<u16>) -> io::Result<bool> {
    let noted = noted(runtime)?;
    let over: BTreeSet<u16> = noted.difference(keep).copied().collect();
    if over.is_empty() {
        return Ok(false);
    }
    let rest: BTreeSet<u16> = read_ports(file)?.difference(&over).copied().collect();
    fs::write(file, format!("{}\n", format_ports(&rest)))?;
    let note = runtime.join(RESERVED_NOTE);
    if over.len() == noted.len() {
        fs::remove_file(note)?;
    } else {
        fs::write(note, format_ports(&noted.difference(&over).copied().collect()))?;
    }
    Ok(true)
}

/// The ports that these addresses take from the host.
fn wanted(sources: &[SnatSource]) -> BTreeSet<u16> {
    sources.iter().filter(|s| !s.dedicated).flat_map(|s| s.ports.0..=s.ports.1).collect()
}

/// What was added: nothing where there is no note. What [`format_ports`] writes reads back to the letter, and anything
/// else is somebody else's file.
fn noted(runtime: &Path) -> io::Result<BTreeSet<u16>> {
    let note = runtime.join(RESERVED_NOTE);
    let said = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", note.display()));
    let found = match fs::symlink_metadata(&note) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(said(error)),
    };
    let text = if found.is_file() && found.len() <= LONGEST_NOTE { fs::read(&note).map_err(said)? } else { Vec::new() };
    let text = String::from_utf8_lossy(&text);
    let ports = parse_ports(&text);
    if ports.is_empty() || format_ports(&ports) != text {
        let why = "is not a list of reserved ports: move it away, or choose another runtime folder";
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} {why}", note.display())));
    }
    Ok(ports)
}

fn read_ports(file: &Path) -> io::Result<BTreeSet<u16>> {
    Ok(parse_ports(&fs::read_to_string(file)?))
}

fn parse_ports(text: &str) -> BTreeSet<u16> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
        })
        .flatten()
        .collect()
}

fn format_ports(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == port => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let text = |&(a, b): &(u16, u16)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

/// An endpoint whose replies are steered by their source: address, IP protocol number, port.
pub type Source = (IpAddr, u8, u16);

/// The sources to steer: the endpoints of Services in mode `preserve`, and of those that are steered now the ones that
/// `has_flows` says still have flows (removed endpoints, Services whose mode changed).
pub fn sources<'a>(
    state: &DesiredState,
    steered: impl IntoIterator<Item = Source> + 'a,
    has_flows: impl Fn(&Source) -> bool,
) -> BTreeSet<Source> {
    let preserving = state.service_ports.iter().filter(|port| port.mode == Mode::Preserve);
    let endpoints = preserving.flat_map(|port| {
        let protocol = protocol_number(port.key.protocol);
        port.endpoints.iter().map(move |endpoint| (endpoint.address, protocol, endpoint.port))
    });
    let mut wanted: BTreeSet<Source> = endpoints.collect();
    for source in steered {
        if !wanted.contains(&source) && has_flows(&source) {
            wanted.insert(source);
        }
    }
    wanted
}

/// What steering by source adds: the sources, and the host's own addresses, to which the kernel gets their packets.
pub fn by_source(sources: &BTreeSet<Source>, host: &[IpAddr]) -> Vec<SteeredAddress> {
    if sources.is_empty() {
        return Vec::new();
    }
    let endpoints = sources.iter();
    let endpoints = endpoints.map(|&(address, protocol, port)| SteeredAddress::Source { address, protocol, port });
    endpoints.chain(host.iter().copied().map(SteeredAddress::Host)).collect()
}

/// The IP protocol number that a Service's protocol is steered by.
#[must_use]
pub fn protocol_number(protocol: Protocol) -> u8 {
    protocol.0
}

/// What to steer by its destination, the same on every interface: a client may come in by any. `gone` are places that
/// nothing is served at any more and flows still go to.
#[must_use]
pub fn desired(
    state: &DesiredState,
    gone: &BTreeSet<Place>,
    snat: &[SnatSource],
    tunnels: &[IpAddr],
) -> Vec<SteeredAddress> {
    let mut ports: BTreeMap<IpAddr, BTreeSet<(u8, u16)>> = BTreeMap::new();
    for service in state.service_ports.iter() {
        for frontend in &service.frontends {
            let number = protocol_number(service.key.protocol);
            ports.entry(frontend.address).or_default().insert((number, frontend.port));
        }
    }
    for place in gone {
        ports.entry(place.address).or_default().insert((place.protocol, place.port));
    }
    let range = |address: IpAddr| snat.iter().find(|s| s.address == address && !s.dedicated).map(|s| s.ports);
    let mut steered: Vec<SteeredAddress> = Vec::new();
    for vip in &state.addresses {
        if vip.host_owned {
            let ports = ports.get(&vip.address).map(|set| set.iter().copied().collect()).unwrap_or_default();
            steered.push(SteeredAddress::Ports { address: vip.address, ports, range: range(vip.address) });
        } else {
            steered.push(SteeredAddress::Whole(vip.address));
        }
    }
    for source in snat {
        if state.addresses.iter().any(|vip| vip.address == source.address) {
            continue;
        }
        steered.push(if source.dedicated {
            SteeredAddress::Whole(source.address)
        } else {
            SteeredAddress::Ports { address: source.address, ports: Vec::new(), range: Some(source.ports) }
        });
    }
    let of_snat = |address: &IpAddr| snat.iter().any(|source| source.address == *address);
    steered.extend(tunnels.iter().filter(|address| !of_snat(address)).map(|address| SteeredAddress::Whole(*address)));
    steered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn host() -> HostPorts {
        HostPorts {
            addresses: ["10.0.0.1".parse().unwrap()].into(),
            local: Some(32768..=60999),
            listeners: [22, 20022].into(),
            sockets: BTreeSet::new(),
        }
    }

    fn check(address: &str, ports: Option<RangeInclusive<u16>>) -> Result<Vec<SnatSource>, String> {
        let snat = Snat { addresses: vec![address.parse().unwrap()], ports, line: 1 };
        check_snat(&snat, &(30000..=32767), &host())
    }

    #[test]
    fn without_addresses_the_refusal_says_what_to_add() {
        let error = check_snat(&Snat::default(), &(30000..=32767), &host()).unwrap_err();
        assert!(error.contains("snat: {addresses:"), "{error}");
    }

    #[test]
    fn dedicated_addresses_have_all_ports() {
        let sources = check("10.0.0.9", None).unwrap();
        assert_eq!(
            sources[0],
            SnatSource { address: "10.0.0.9".parse().unwrap(), ports: (1024, 65535), dedicated: true, kernel: false }
        );
    }

    #[test]
    fn a_host_address_needs_a_range_clear_of_everything() {
        for (ports, expected) in [
            (None, "add `ports: FIRST-LAST`"),
            (Some(32000..=33000), "ip_local_port_range (32768-60999)"),
            (Some(29000..=30000), "nodePortRange"),
            (Some(20000..=21000), "port 20022"),
        ] {
            let error = check("10.0.0.1", ports).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(!check("10.0.0.1", Some(61000..=65000)).unwrap()[0].dedicated);
    }

    #[test]
    fn the_kernel_ports_addresses_come_last_and_do_alone_but_are_not_the_hosts() {
        let text = "interfaces: [eth0]\nmanifests: [/m]\n";
        let sources = |more: &str| {
            let (config, _) = Config::read(Path::new("m.yaml"), &format!("{text}{more}\n"));
            snat_sources(&config, &host())
                .map(|all| all.iter().map(|s| (s.address.to_string(), s.kernel)).collect::<Vec<_>>())
        };
        let of = |address: &str, kernel| (address.to_owned(), kernel);
        let both = "snat: {addresses: [10.0.0.9]}\nkernelPort: {snat: [10.244.1.250]}";
        assert_eq!(sources(both).unwrap(), [of("10.0.0.9", false), of("10.244.1.250", true)]);
        assert_eq!(sources("kernelPort: {snat: [10.244.1.250]}").unwrap(), [of("10.244.1.250", true)]);
        assert!(sources("").unwrap_err().contains("no SNAT address"));
        let error = sources("kernelPort: {snat: [10.0.0.1]}").unwrap_err();
        assert!(error.starts_with("kernelPort.snat: 10.0.0.1 is the host's own address"), "{error}");
    }

    fn service(mode: Mode, endpoint: &str) -> lb::model::ServicePort {
        let endpoint = lb::model::Endpoint::new(endpoint.parse().unwrap(), 8080);
        let endpoints = vec![lb::model::Endpoint { state: lb::model::EndpointState::Draining, ..endpoint }];
        lb::model::ServicePort { endpoints, mode, ..fixture::service_port("web") }
    }

    #[test]
    fn sources_are_the_endpoints_in_mode_preserve_and_those_that_still_have_flows() {
        let service_ports =
            vec![service(Mode::Nat, "10.0.1.1").into(), service(Mode::Preserve, "10.0.1.2").into()].into();
        let state = DesiredState { service_ports, addresses: Vec::new() };
        let source = |text: &str| -> Source { (text.parse().unwrap(), 6, 8080) };
        let (busy, idle) = (source("10.0.1.3"), source("10.0.1.4"));
        let found = sources(&state, [busy, idle], |source| *source == busy);
        assert_eq!(found, [source("10.0.1.2"), busy].into());
        assert_eq!(sources(&DesiredState::default(), [idle], |_| false), BTreeSet::new());
    }

    #[test]
    fn the_hosts_addresses_are_named_only_where_something_is_steered_by_source() {
        let host = ["10.0.0.1".parse().unwrap()];
        assert_eq!(by_source(&BTreeSet::new(), &host), []);
        let with = by_source(&[("10.0.1.2".parse().unwrap(), 17, 53)].into(), &host);
        assert_eq!(with.len(), 2);
        assert!(with.contains(&SteeredAddress::Host(host[0])), "{with:?}");
    }

    #[test]
    fn a_successor_adds_its_ports_beside_the_predecessors_and_takes_those_back_when_it_has_taken_over() {
        let folder = std::env::temp_dir().join(format!("millrace-reserve-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let kernel = folder.join("kernel");
        fs::write(&kernel, "22,61000\n").unwrap();
        let own = |first, last| {
            [SnatSource { address: "10.0.0.1".parse().unwrap(), ports: (first, last), dedicated: false, kernel: false }]
        };
        let reserved = || format_ports(&read_ports(&kernel).unwrap());
        reserve_in(&kernel, &folder, &own(61000, 61009)).unwrap();
        assert_eq!(reserved(), "22,61000-61009");
        // A successor with another range; should it fail now, the predecessor has what it had.
        reserve_in(&kernel, &folder, &own(61005, 61019)).unwrap();
        assert_eq!(reserved(), "22,61000-61019");
        assert!(take_back(&kernel, &folder, &wanted(&own(61005, 61019))).unwrap());
        assert_eq!(reserved(), "22,61000,61005-61019", "61000 was the host's before");
        assert!(take_back(&kernel, &folder, &BTreeSet::new()).unwrap());
        assert_eq!(reserved(), "22,61000");
        assert!(!take_back(&kernel, &folder, &BTreeSet::new()).unwrap(), "nothing is left");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn port_lists_survive_reading_and_writing() {
        let ports = parse_ports("22,100-103,65535\n");
        assert_eq!(format_ports(&ports), "22,100-103,65535");
        assert_eq!(parse_ports(""), BTreeSet::new());
    }

    #[test]
    fn listeners_are_read_from_the_kernels_tables() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 1 1";
        assert_eq!(listener(line, "0A"), Some(("127.0.0.1".parse().unwrap(), 8080)));
        assert_eq!(listener(line, "07"), None);
        let six = line.replace("0100007F", "B80D0120000000000000000001000000");
        assert_eq!(listener(&six, "0A"), Some(("2001:db8::1".parse().unwrap(), 8080)));
        let mapped = line.replace("0100007F", "0000000000000000FFFF00000100007F");
        assert_eq!(listener(&mapped, "0A"), Some(("127.0.0.1".parse().unwrap(), 8080)));
    }

    #[test]
    fn an_sctp_socket_that_listens_has_all_its_addresses() {
        // As `net/sctp/proc.c` prints: endpoint, socket, style, state, bucket, port, user, inode, addresses.
        let line = |state| format!(" ffff1 ffff2 2   {state}  29   38412     0 12345 10.0.0.1 2001:db8::1 ");
        let found = [("10.0.0.1", 38412), ("2001:db8::1", 38412)].map(|(ip, port)| (ip.parse().unwrap(), port));
        assert_eq!(sctp_listener(&line("10")), found);
        assert_eq!(sctp_listener(&line("7")), []);
        assert_eq!(sctp_listener("ENDPT"), []);
    }

    #[test]
    fn a_listener_has_its_own_address_or_all_of_its_family() {
        let listens = |bound: &str, address: &str| {
            let host = HostPorts { sockets: [(6, bound.parse().unwrap(), 22)].into(), ..HostPorts::default() };
            let place = |protocol, port| Place { address: address.parse().unwrap(), protocol, port };
            assert!(!host.listens(&place(17, 22)) && !host.listens(&place(6, 23)), "{bound}");
            host.listens(&place(6, 22))
        };
        for (bound, address, expected) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("127.0.0.1", "10.0.0.1", false),
            ("0.0.0.0", "10.0.0.1", true),
            ("::", "10.0.0.1", true),
            ("0.0.0.0", "fd00::1", false),
            ("::", "fd00::1", true),
            ("fd00::2", "fd00::1", false),
        ] {
            assert_eq!(listens(bound, address), expected, "{bound} {address}");
        }
    }
}

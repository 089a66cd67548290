//! What the configuration asks of this host: its interfaces, its own addresses and ports, memory for flows.
//!
//! `millrace run` refuses by these before it changes anything, and `millrace check` tells them beforehand.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use lb::flow::FlowFileConfig;
use lb::snat::{BLOCK_PORTS, blocks_of_range};
use translate::{Finding, Severity};

use crate::config::{Config, Cores, Snat};
use crate::control;
use crate::netlink::{HostAddress, Link, Network};
use crate::steering::{self, HostPorts};

/// Where the kernel's settings are, and where a container has the host's: `/proc/sys` of its own is read-only.
const SETTINGS: &str = "/proc/sys";
const SETTINGS_OF_HOST: &str = "/host/proc/sys";

/// The folder of the kernel's settings, `net/ipv4/ip_forward` and the like. They are those of the network namespace that
/// this runs in, wherever they are mounted.
#[must_use]
pub fn settings() -> &'static Path {
    Path::new(if Path::new(SETTINGS_OF_HOST).join("net").exists() { SETTINGS_OF_HOST } else { SETTINGS })
}

/// Ethernet header and two VLAN tags.
pub const LINK_OVERHEAD: usize = 22;

/// A field of the configuration and why this host cannot give what it asks for, with the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// The field.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Objection {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// As a finding about this configuration.
    #[must_use]
    pub fn finding(self, config: &Config) -> Finding {
        Finding {
            file: config.path.display().to_string(),
            line: config.line(&self.field),
            field: self.field,
            message: self.message,
            severity: Severity::Error,
        }
    }
}

/// The addresses of this host that NodePorts are served at.
///
/// # Errors
/// If the kernel cannot be asked.
pub async fn addresses() -> Result<Vec<IpAddr>, String> {
    let (network, _changes) = Network::start(&[]).await.map_err(|e| e.to_string())?;
    Ok(control::host_addresses(&network))
}

/// Everything that this host cannot give.
///
/// # Errors
/// If the kernel cannot be asked.
pub async fn judge(config: &Config) -> Result<Vec<Objection>, String> {
    let (host, _changes) = Network::start(&[]).await.map_err(|e| e.to_string())?;
    let mut objections = Vec::new();
    let mut links = Vec::new();
    for (index, interface) in config.nics().iter().enumerate() {
        match Network::start(std::slice::from_ref(&interface.name)).await {
            Ok((network, _changes)) => links.extend(network.links()),
            Err(error) => objections.push(Objection::new(format!("interfaces[{index}]"), error.to_string())),
        }
    }
    objections.extend(about_links(config, &links));
    objections.extend(about_workers(config, &links));
    objections.extend(about_serving(config));
    let own: BTreeSet<_> = host.host_addresses().into_iter().map(|h| h.address).collect();
    if let Err(error) = steering::check_tunnels(&config.tunnels, &[], &own) {
        objections.push(Objection::new("tunnel.sources", error.trim_start_matches("tunnel.sources: ")));
    }
    if let Err(error) = steering::snat_sources(config, &HostPorts::read(own)) {
        let (field, message) = error
            .split_once(": ")
            .filter(|(field, _)| field.starts_with("snat.") || field.starts_with("kernelPort."))
            .unwrap_or(("snat.addresses", &error));
        objections.push(Objection::new(field, message));
    }
    Ok(objections)
}

/// What a node lacks for what it is to serve.
#[must_use]
pub fn about_serving(config: &Config) -> Option<Objection> {
    config.lacks_kernel_port().then(|| Objection::new("serve", crate::config::NO_KERNEL_PORT))
}

/// Which links cannot be forwarded on.
#[must_use]
pub fn about_links(config: &Config, links: &[Link]) -> Vec<Objection> {
    let field = |link: &Link| {
        let index = config.interfaces.iter().position(|interface| interface.name == link.name);
        index.map_or_else(|| "interfaces".to_owned(), |index| format!("interfaces[{index}]"))
    };
    let most = xsk::max_frame_len(4096) - LINK_OVERHEAD;
    let most_queues = xsk::MAX_QUEUES;
    let judge = |link: &Link| {
        if link.is_stacked() {
            return Some(Objection::new(field(link), stacked(link)));
        }
        let Link { name, mtu, rx_queues, .. } = link;
        if *mtu as usize > most {
            let why = format!("the MTU of {name}, {mtu}, is more than a frame takes ({most})");
            return Some(Objection::new(field(link), format!("{why}: lower it with `ip link set {name} mtu {most}`")));
        }
        (*rx_queues > most_queues).then(|| {
            let why = format!("{name} has {rx_queues} receive queues and up to {most_queues} can be served");
            let what = format!("lower them with `ethtool -L {name} combined {most_queues}` (or `rx {most_queues}`)");
            Objection::new(field(link), format!("{why}, packets of the others would be lost: {what}"))
        })
    };
    links.iter().filter_map(judge).collect()
}

/// Why an interface that stands on others cannot be used, and what can be instead.
fn stacked(link: &Link) -> String {
    let Link { name, kind, .. } = link;
    let instead = match kind.as_str() {
        "bond" | "team" => format!("name its members in `interfaces` instead (`ip link show master {name}`)"),
        "vlan" => {
            format!(
                "name the NIC that it stands on in `interfaces` instead, which serves its VLANs (`ip -d link show {name}`)"
            )
        }
        "bridge" => format!(
            "name its port towards the clients, or the backends, in `interfaces` instead (`ip link show master {name}`)"
        ),
        _ => format!("name the NIC that its frames leave by in `interfaces` instead (`ip -d link show {name}`)"),
    };
    format!("{name} is a {kind} and has no queues for AF_XDP: {instead}")
}

/// How many receive queues of a link get a socket: all of them.
#[must_use]
pub fn queues(link: &Link) -> u32 {
    link.rx_queues.clamp(1, xsk::MAX_QUEUES)
}

/// The cores that this process may use.
#[must_use]
pub fn usable_cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// The core of each worker, for NICs with these numbers of queues.
#[must_use]
pub fn cores(config: &Config, queues: &[u32]) -> Vec<Option<usize>> {
    match &config.cores {
        Cores::These(cores) => cores.iter().map(|core| Some(*core)).collect(),
        Cores::Auto => {
            let usable = usable_cores();
            let most = queues.iter().copied().max().unwrap_or(1) as usize;
            (0..worker::default_workers(most, usable.len())).map(|worker| usable.get(worker).copied()).collect()
        }
    }
}

/// What stands against so many workers, flows and interfaces.
#[must_use]
pub fn about_workers(config: &Config, links: &[Link]) -> Vec<Objection> {
    let mut objections = Vec::new();
    if u8::try_from(links.len()).is_err() {
        objections.push(Objection::new("interfaces", format!("{} are too many, expected up to 255", links.len())));
    }
    let queues: Vec<u32> = links.iter().map(queues).collect();
    let kernel = config.kernel_port.iter().flat_map(|port| &port.snat);
    let file = FlowFileConfig {
        workers: cores(config, &queues).len(),
        flows: config.limits.flows as usize,
        snat: config.snat.addresses.iter().chain(kernel).map(|address| (*address).into()).collect(),
        ..FlowFileConfig::default()
    };
    if let Err(error) = file.check() {
        objections.push(Objection::new("limits.flows", format!("{error}: see workers.cores and snat.addresses too")));
    }
    objections.extend(about_snat_ports(&config.snat, file.workers));
    objections
}

/// Whether each worker finds a block of SNAT ports: without one it opens no flow.
fn about_snat_ports(snat: &Snat, workers: usize) -> Option<Objection> {
    let ports = snat.ports.as_ref()?;
    let of_address = blocks_of_range(*ports.start(), *ports.end());
    let families = [true, false].map(|v4| snat.addresses.iter().filter(|address| address.is_ipv4() == v4).count());
    let blocks = families.into_iter().filter(|count| *count > 0).map(|count| count * of_address).min()?;
    (blocks < workers).then(|| {
        let message = format!(
            "{}-{} has {blocks} of the blocks of {BLOCK_PORTS} ports that workers take, and there are {workers} workers: \
             take a wider range, or name fewer `workers.cores`",
            ports.start(),
            ports.end()
        );
        Objection::new("snat.ports", message)
    })
}

/// First and last of the host's subnets; of IPv6 the first is the routers' anycast address (RFC 4291, 2.6.1).
#[must_use]
pub fn subnet_ends(host: &[HostAddress]) -> Vec<IpAddr> {
    let nets = host.iter().filter_map(|host| IpNet::new(host.address, host.prefix).ok());
    let subnets = nets.filter(|net| net.max_prefix_len() - net.prefix_len() > 1);
    let ends = subnets.flat_map(|net| [Some(net.network()), net.addr().is_ipv4().then(|| net.broadcast())]);
    ends.flatten().collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_snat_ports_has_a_block_for_each_worker() {
        let about = |ports: std::ops::RangeInclusive<u16>, addresses: &[&str], workers| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            about_snat_ports(&Snat { addresses, ports: Some(ports), ..Snat::default() }, workers)
        };
        assert_eq!(about(61_000..=61_999, &["10.0.0.1"], 16), None);
        assert_eq!(about(61_056..=61_119, &["10.0.0.1", "10.0.0.2", "fd00::1"], 1), None);
        let objection = about(61_056..=61_119, &["10.0.0.1", "10.0.0.2", "fd00::1"], 2).expect("an objection");
        assert_eq!(objection.field, "snat.ports");
        assert!(objection.message.starts_with("61056-61119 has 1 of the blocks of 64 ports"), "{}", objection.message);
    }

    fn link(kind: &str) -> Link {
        Link {
            name: "nic0".to_owned(),
            ifindex: 2,
            mac: wire::MacAddr::UNKNOWN,
            mtu: 1500,
            rx_queues: 1,
            tx_queues: 1,
            virtual_device: false,
            up: true,
            kind: kind.to_owned(),
        }
    }

    fn config(text: &str) -> Config {
        Config::read(std::path::Path::new("m.yaml"), text).0
    }

    #[test]
    fn a_device_that_stands_on_others_is_refused_with_what_to_use_instead() {
        let config = config("manifests: [/m]\ninterfaces:\n- eth9\n- nic0\n");
        for (kind, instead) in [
            ("bond", "members"),
            ("team", "members"),
            ("vlan", "which serves its VLANs"),
            ("bridge", "its port"),
            ("vxlan", "the NIC that its frames leave by"),
        ] {
            let found = about_links(&config, &[link(""), link(kind)]);
            let text = found[0].clone().finding(&config).to_string();
            assert!(text.starts_with(&format!("m.yaml:4: interfaces[1]: nic0 is a {kind}")), "{text}");
            assert!(found.len() == 1 && text.contains(instead), "{text}");
        }
        assert_eq!(about_links(&config, &[link(""), link("veth")]), []);
    }

    #[test]
    fn frames_larger_than_memory_has_room_for_are_refused_with_the_command_that_helps() {
        let found = about_links(&Config::default(), &[Link { mtu: 9000, ..link("") }]);
        assert!(found.len() == 1 && found[0].message.contains("ip link set nic0 mtu"), "{found:?}");
    }

    #[test]
    fn more_receive_queues_than_can_be_served_are_refused_with_the_command_that_helps() {
        let many = |rx_queues| [Link { rx_queues, tx_queues: 128, ..link("") }];
        let found = about_links(&Config::default(), &many(xsk::MAX_QUEUES + 1));
        let text = &found[0].message;
        assert!(text.contains("65 receive queues") && text.contains("ethtool -L nic0 combined 64"), "{text}");
        assert_eq!(about_links(&Config::default(), &many(xsk::MAX_QUEUES)), []);
    }

    #[test]
    fn more_workers_than_the_flow_file_has_room_for_are_refused() {
        let many = Config { cores: Cores::These((0..5000).collect()), ..Config::default() };
        let found = about_workers(&many, &[link("")]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(about_workers(&Config::default(), &[link("")]), []);
    }

    #[tokio::test]
    async fn everything_that_the_host_cannot_give_is_said_at_once() {
        let text = "interfaces: [none0, lo, none1]\nmanifests: [/m]\nsnat:\n  addresses: [127.0.0.1]\n";
        let found = judge(&config(text)).await.unwrap();
        let fields: Vec<&str> = found.iter().map(|objection| objection.field.as_str()).collect();
        assert!(fields.starts_with(&["interfaces[0]", "interfaces[2]"]), "{found:?}");
        assert_eq!(fields.last(), Some(&"snat.addresses"), "{found:?}");
    }
}

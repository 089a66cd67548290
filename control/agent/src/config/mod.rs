//! The configuration file: what may stand in it, what it means, and what is wrong with it.
//!
//! Every finding is `file:line: field: what, expected what`. Unknown keys are errors with a hint.

mod duration;
mod judge;
mod nodes;
mod read;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use lb::model::{Algorithm, Mode};
use lb::tables::MssClamp;
use translate::{AddressRange, Defaults, Finding, Node, Pool, Serve};

use crate::kernel_port;

pub(crate) use read::NO_KERNEL_PORT;

pub use duration::{Span, SpanError};

/// Where the configuration is by default.
pub const DEFAULT_PATH: &str = "/etc/millrace/millrace.yaml";
/// Where the admin socket is by default.
pub const DEFAULT_ADMIN: &str = "/run/millrace/admin.sock";

/// A NIC to forward on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// How AF_XDP is to be used on it.
    pub mode: InterfaceMode,
}

/// How AF_XDP is used on a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterfaceMode {
    /// Native where the driver has it, zero-copy where it has that; else copy, else generic.
    #[default]
    Auto,
    /// Zero-copy or an error.
    ZeroCopy,
    /// Native, copying.
    Copy,
    /// In the kernel's stack.
    Generic,
}

/// Which cores workers run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// min(4, queues, cores that may be used).
    #[default]
    Auto,
    /// One worker on each of these.
    These(Vec<usize>),
}

/// What a worker without work does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Spins for a while, then sleeps.
    #[default]
    Adaptive,
    /// Spins.
    Busy,
}

/// Who tells the network where addresses are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The pool; `None`: all addresses.
    pub pool: Option<String>,
    /// By which interfaces; empty: all.
    pub interfaces: Vec<String>,
    /// Whether Millrace does it (`l2`), or a routing daemon (`none`).
    pub l2: bool,
}

/// The API server that objects come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// How to reach it; `None`: by the service account of the pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// How nodes tell each other that they live; `None`: they do not.
    pub heartbeat: Option<Heartbeat>,
    /// Whether `healthCheckNodePort`s are answered, where it is written.
    pub health_check_node_ports: Option<bool>,
}

/// Heartbeats between the nodes that may announce the same addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The file of the key that all of them have.
    pub key: PathBuf,
    /// The UDP port of each.
    pub port: u16,
}

/// The UDP port of heartbeats where none is written.
pub const HEARTBEAT_PORT: u16 = 9478;

/// Source addresses towards backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snat {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The ports to take; needed where an address is the host's own.
    pub ports: Option<RangeInclusive<u16>>,
    /// The line of the configuration, for findings.
    pub line: u32,
}

/// The way to backends that only the kernel reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelPort {
    /// Source addresses towards them, routed into it.
    pub snat: Vec<IpAddr>,
}

impl KernelPort {
    /// Addresses that NodePorts are served at, and those that the node's own packets to them are sent to.
    #[must_use]
    pub fn with_way_to(&self, mut own: Vec<IpAddr>) -> Vec<IpAddr> {
        let (v4, v6) = self.families();
        let served = |way: &IpAddr| {
            let is_family = |address: &IpAddr| address.is_ipv6() == way.is_ipv6();
            own.iter().any(is_family) && if way.is_ipv6() { v6 } else { v4 }
        };
        let ways: Vec<IpAddr> = kernel_port::NODE_PORTS.into_iter().filter(served).collect();
        own.extend(ways);
        own
    }

    /// Whether there is an IPv4 address, and whether there is an IPv6 one.
    #[must_use]
    pub fn families(&self) -> (bool, bool) {
        (self.snat.iter().any(IpAddr::is_ipv4), self.snat.iter().any(IpAddr::is_ipv6))
    }
}

/// Limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most flows in all.
    pub flows: u32,
    /// Most flows of one source; 0: no limit.
    pub flows_per_source: u32,
    /// Most flows that one source may open a second; 0: no limit.
    pub new_flows_per_source: u32,
    /// Most SYNs to one address a second.
    pub syns_per_vip: SynLimit,
}

/// How many SYNs to one address are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SynLimit {
    /// All while workers keep up, else [`crate::flood::UNDER_OVERLOAD`].
    #[default]
    Auto,
    /// All.
    Off,
    /// So many a second.
    PerSecond(u32),
}

/// Idle timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, established.
    pub tcp_established: Duration,
    /// TCP, half closed.
    pub tcp_transitory: Duration,
    /// TCP, handshake not complete.
    pub tcp_opening: Duration,
    /// TCP, closed.
    pub tcp_closed: Duration,
    /// UDP with traffic both ways.
    pub udp: Duration,
    /// UDP, nothing came back.
    pub udp_unreplied: Duration,
    /// UDP port 53.
    pub dns: Duration,
    /// UDP port 53 after one query and one reply.
    pub dns_done: Duration,
    /// SCTP, handshake not complete.
    pub sctp_opening: Duration,
    /// SCTP, associated.
    pub sctp_established: Duration,
    /// SCTP, shutting down.
    pub sctp_closing: Duration,
    /// SCTP, shut down or aborted.
    pub sctp_closed: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            tcp_established: s(7440),
            tcp_transitory: s(240),
            tcp_opening: s(60),
            tcp_closed: s(10),
            udp: s(300),
            udp_unreplied: s(120),
            dns: s(30),
            dns_done: s(5),
            sctp_opening: s(10),
            sctp_established: s(210),
            sctp_closing: s(3),
            sctp_closed: s(10),
        }
    }
}

/// The configuration, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it was read from.
    pub path: PathBuf,
    /// NICs and, at the end, Millrace's end of the kernel port where there is one; the index is the port's id.
    pub interfaces: Vec<Interface>,
    /// Which cores workers run on.
    pub cores: Cores,
    /// What a worker without work does.
    pub idle: Idle,
    /// Files or folders of manifests.
    pub manifests: Vec<PathBuf>,
    /// The API server in their place.
    pub kubernetes: Option<Kubernetes>,
    /// What topology rules compare with.
    pub node: Node,
    /// Where LoadBalancer addresses come from.
    pub pools: Vec<Pool>,
    /// Source addresses towards backends.
    pub snat: Snat,
    /// The kernel port.
    pub kernel_port: Option<KernelPort>,
    /// Source addresses of tunnels to endpoints; empty: the dedicated ones of `snat`.
    pub tunnels: Vec<IpAddr>,
    /// Who announces what; empty: everything, everywhere, by ARP and NDP.
    pub announce: Vec<Announce>,
    /// Which external IPs are served; `None`: all.
    pub external_ips: Option<Vec<IpNet>>,
    /// Seed of endpoint selection.
    pub seed: String,
    /// Which kinds of frontend are served.
    pub serve: Serve,
    /// What no Service of a cluster may have, and what it is: addresses that nodes have for themselves.
    pub reserved: Vec<(AddressRange, String)>,
    /// Where ClusterIPs come from.
    pub service_ranges: Vec<IpNet>,
    /// Where NodePorts come from.
    pub node_port_range: RangeInclusive<u16>,
    /// What becomes of the segment sizes that SYNs offer.
    pub mss_clamp: MssClamp,
    /// What Services without annotations get.
    pub defaults: Defaults,
    /// Limits.
    pub limits: Limits,
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// The admin socket.
    pub admin: PathBuf,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Flows, affinity, bpffs.
    pub runtime: PathBuf,
    /// What was given, the last good objects.
    pub state: PathBuf,
    /// The line of each field that is written, for findings.
    pub lines: BTreeMap<String, u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: PathBuf::from(DEFAULT_PATH),
            interfaces: Vec::new(),
            cores: Cores::Auto,
            idle: Idle::Adaptive,
            manifests: Vec::new(),
            kubernetes: None,
            node: Node::default(),
            pools: Vec::new(),
            snat: Snat::default(),
            kernel_port: None,
            tunnels: Vec::new(),
            announce: Vec::new(),
            external_ips: None,
            seed: "0".to_owned(),
            serve: Serve::default(),
            reserved: Vec::new(),
            service_ranges: Vec::new(),
            node_port_range: 30000..=32767,
            mss_clamp: MssClamp::Off,
            defaults: Defaults { algorithm: Algorithm::Maglev, mode: Mode::Nat, echo: true },
            limits: Limits {
                flows: 1_000_000,
                flows_per_source: 10_000,
                new_flows_per_source: 0,
                syns_per_vip: SynLimit::Auto,
            },
            timeouts: Timeouts::default(),
            admin: PathBuf::from(DEFAULT_ADMIN),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9477))),
            runtime: PathBuf::from("/run/millrace"),
            state: PathBuf::from("/var/lib/millrace"),
            lines: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads and judges a file, on this node.
    ///
    /// # Errors
    /// If the file cannot be read; whatever is wrong in it is among the findings.
    pub fn load(path: &Path) -> std::io::Result<(Self, Vec<Finding>)> {
        let node = crate::kubernetes::node_name();
        Ok(Self::read_on(node.as_deref(), path, &std::fs::read_to_string(path)?))
    }

    /// Judges a text. What is wrong has its default in the configuration; what it says of single nodes is of nobody here.
    #[must_use]
    pub fn read(path: &Path, text: &str) -> (Self, Vec<Finding>) {
        Self::read_on(None, path, text)
    }

    /// The same on a node of this name, where `node.hostname` says no other.
    #[must_use]
    pub fn read_on(node: Option<&str>, path: &Path, text: &str) -> (Self, Vec<Finding>) {
        read::read(node, path, text)
    }

    /// The NICs alone.
    #[must_use]
    pub fn nics(&self) -> &[Interface] {
        &self.interfaces[..self.interfaces.len() - usize::from(self.kernel_port.is_some())]
    }

    /// The names of all interfaces, the kernel port's last.
    #[must_use]
    pub fn interface_names(&self) -> Vec<String> {
        self.interfaces.iter().map(|interface| interface.name.clone()).collect()
    }

    /// Whether other nodes may announce the VIPs that this one does.
    #[must_use]
    pub fn shares_addresses(&self) -> bool {
        self.kubernetes.is_some()
    }

    /// Whether this node answers `healthCheckNodePort`s: where it is not written, where no kube-proxy has NodePorts.
    #[must_use]
    pub fn answers_health_checks(&self) -> bool {
        let written = |kubernetes: &Kubernetes| kubernetes.health_check_node_ports;
        self.kubernetes.as_ref().is_some_and(|kubernetes| written(kubernetes).unwrap_or(self.serve.node_port))
    }

    /// Whether this is a node that is to serve what the node itself and its pods ask for, and has no way from them.
    #[must_use]
    pub fn lacks_kernel_port(&self) -> bool {
        let asks = self.serve.cluster_ip || self.serve.node_port;
        self.kubernetes.is_some() && asks && self.kernel_port.is_none()
    }

    /// The line of a field, such as `interfaces[1].name`, or of what it is written in; 1 if neither is written.
    #[must_use]
    pub fn line(&self, field: &str) -> u32 {
        let mut field = field;
        loop {
            if let Some(line) = self.lines.get(field) {
                return (*line).max(1);
            }
            match field.rfind(['.', '[']) {
                Some(end) => field = &field[..end],
                None => return 1,
            }
        }
    }

    /// Takes over from the configuration in force what only a successor can change, so that this one says what is so.
    /// The names of the settings that differ.
    #[must_use]
    pub fn keep_plumbing(&mut self, in_force: &Self) -> Vec<&'static str> {
        fn keep<T: Clone + PartialEq>(ours: &mut T, theirs: &T) -> bool {
            let differs = ours != theirs;
            ours.clone_from(theirs);
            differs
        }
        // Where it is written matters to no one.
        self.snat.line = in_force.snat.line;
        if self.kubernetes != in_force.kubernetes {
            // One of both is the source.
            self.manifests.clone_from(&in_force.manifests);
        }
        // What of the kernel's is set for it was set at the start.
        let on_node = in_force.kubernetes.is_some();
        let settings = [
            ("serve", on_node && keep(&mut self.serve, &in_force.serve)),
            ("interfaces", keep(&mut self.interfaces, &in_force.interfaces)),
            ("kubernetes", keep(&mut self.kubernetes, &in_force.kubernetes)),
            ("workers.cores", keep(&mut self.cores, &in_force.cores)),
            ("workers.idle", keep(&mut self.idle, &in_force.idle)),
            ("snat", keep(&mut self.snat, &in_force.snat)),
            ("kernelPort", keep(&mut self.kernel_port, &in_force.kernel_port)),
            ("tunnel", keep(&mut self.tunnels, &in_force.tunnels)),
            ("limits.flows", keep(&mut self.limits.flows, &in_force.limits.flows)),
            ("admin", keep(&mut self.admin, &in_force.admin)),
            ("metrics", keep(&mut self.metrics, &in_force.metrics)),
            ("runtime", keep(&mut self.runtime, &in_force.runtime)),
            ("state", keep(&mut self.state, &in_force.state)),
        ];
        settings.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        Config::read(Path::new("m.yaml"), text).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_whole_example_is_understood() {
        let (config, findings) = Config::read(Path::new("m.yaml"), include_str!("example.yaml"));
        assert_eq!(findings, []);
        assert_eq!(config.interfaces[1], Interface { name: "eth1".into(), mode: InterfaceMode::Auto });
        assert_eq!(config.pools[0].addresses.len(), 2);
        assert_eq!(config.node.hostname.as_deref(), Some("gw1"));
        assert!(config.serve.load_balancer && config.serve.external_ips && !config.serve.cluster_ip);
        assert_eq!(config.timeouts, Timeouts::default());
        assert_eq!(config.limits, Config::default().limits);
        assert_eq!(config.node_port_range, 30000..=32767);
        assert_eq!(config.service_ranges.len(), 2);
    }

    #[test]
    fn what_ends_too_early_is_told_on_the_last_line_that_says_something() {
        for text in ["interfaces: [eth0", "interfaces: [eth0\n", "interfaces: [eth0\n\n \n"] {
            assert!(findings(text)[0].starts_with("m.yaml:1: configuration: no YAML"), "{:?}", findings(text));
        }
    }

    #[test]
    fn a_pool_says_whom_it_is_for_and_when_it_is_tried() {
        let rest = "interfaces: [eth0]\nmanifests: [/m]\npools:\n- {name: a, addresses: [10.0.0.0/28]";
        let text = "priority: 5, autoAssign: off, namespaceSelector: {matchLabels: {team: x}}, \
                    serviceSelector: {matchExpressions: [{key: tier, operator: In, values: [gold, silver]}]}}";
        let (config, findings) = Config::read(Path::new("m.yaml"), &format!("{rest}, {text}\n"));
        assert_eq!(findings, []);
        let labels = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        let (pool, none) = (&config.pools[0], translate::Labels::new());
        assert!(pool.priority == 5 && !pool.auto_assign);
        assert!(pool.services.matches(&labels("tier", "silver")) && !pool.services.matches(&none));
        assert!(pool.namespaces.matches(&labels("team", "x")) && !pool.namespaces.matches(&labels("team", "y")));
        for (text, says) in [
            ("autoAssign: no", "pools[0].autoAssign: `no`, expected on or off"),
            ("serviceSelector: {matchExpressions: [{key: a, operator: Has}]}", "`Has` of `a`, expected In, "),
            ("serviceSelector: {labels: {a: b}}", "unknown key, expected one of matchLabels, matchExpressions"),
            ("namespaceSelector: {matchLabels: [a]}", "expected a mapping of labels"),
        ] {
            let found = self::findings(&format!("{rest}, {text}}}\n"));
            assert!(found.len() == 1 && found[0].contains(says), "{text}: {found:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_hint_and_its_line() {
        let found = findings("interfaces: [eth0]\nmanifests: [/m]\nlimits:\n  flow: 5\n");
        assert_eq!(found, ["m.yaml:4: limits.flow: unknown key, did you mean `flows`?"]);
        let found = findings("interfaces: [eth0]\nmanifests: [/m]\ninterface: eth1\n");
        assert_eq!(found, ["m.yaml:3: interface: unknown key, did you mean `interfaces`?"]);
    }

    #[test]
    fn values_that_are_wrong_say_what_was_expected() {
        for (line, expected) in [
            ("workers: {idle: lazy}", "workers.idle: `lazy`, expected adaptive or busy"),
            ("metrics: here", "metrics: `here`, expected"),
            ("timeouts: {udp: 30}", "timeouts.udp: `30`, expected a duration"),
            ("serve: [loadbalancer]", "did you mean `loadBalancer`?"),
            ("pools: [{name: a, addresses: [1.2.3.4/40]}]", "pools[0].addresses[0]: `1.2.3.4/40`, expected"),
            ("nodePortRange: 5-2", "nodePortRange: `5-2`, expected"),
            ("limits: {flows: 0}", "limits.flows: `0`, expected"),
            (
                "limits: {newFlowsPerSource: 5/m}",
                "limits.newFlowsPerSource: `5/m`, expected flows a second, such as 100/s, or off",
            ),
            (
                "limits: {synsPerVip: on}",
                "limits.synsPerVip: `on`, expected SYNs a second, such as 50000/s, auto or off",
            ),
            ("limits: {newFlowsPerSource: 0}", "limits.newFlowsPerSource: `0`, expected flows a second"),
            ("kernelPort: {}", "kernelPort: no address, expected `snat`"),
            ("kernelPort: {snat: []}", "kernelPort: no address, expected `snat`"),
            ("kernelPort: {snat: [10.0.0.1, 10.0.0.1]}", "kernelPort.snat: 10.0.0.1 twice, expected each address once"),
            ("interfaces: [millrace-k0]", "interfaces[0]: `millrace-k0` is a name of the kernel port's"),
            ("mssClamp: on", "mssClamp: `on`, expected off, auto or octets from 536 to 65495"),
            ("mssClamp: 100", "mssClamp: `100`, expected off, auto or octets from 536 to 65495"),
            ("tunnel: {sources: [10.0.0.0/8]}", "tunnel.sources: 16777216 addresses, expected 256 of a family at most"),
            ("tunnel: {source: 10.0.0.1}", "did you mean `sources`?"),
            ("tunnel: {sources: [10.0.0.x]}", "tunnel.sources[0]: `10.0.0.x`, expected"),
            ("serve: [loadBalancer, ClusterIP]", "did you mean `clusterIP`?"),
            ("kubernetes: {}", "kubernetes: beside `manifests`, expected one of both"),
            ("announce: [{pool: other}]", "announce[0].pool: there is no pool `other`"),
        ] {
            let nics = if line.starts_with("interfaces") { "workers: {cores: auto}" } else { "interfaces: [eth0]" };
            let found = findings(&format!("{nics}\nmanifests: [/m]\n{line}\n"));
            assert!(found.len() == 1 && found[0].contains(expected), "{line}: {found:?}");
            assert!(found[0].starts_with("m.yaml:3: "), "{found:?}");
        }
    }

    #[test]
    fn the_kernel_port_is_the_last_port_and_its_addresses_are_its_own() {
        let text = "interfaces: [eth0]\nmanifests: [/m]\npools: [{name: a, addresses: [10.0.1.0/28]}]\n\
                    snat: {addresses: [10.0.0.9]}\n";
        let with = |addresses: &str| format!("{text}kernelPort: {{snat: [{addresses}]}}\n");
        let (config, found) = Config::read(Path::new("m.yaml"), &with("10.244.1.250, \"fd00::250\""));
        assert_eq!(found, []);
        let names = |interfaces: &[Interface]| interfaces.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&config.interfaces), names(config.nics())),
            (names_of(&["eth0", "millrace-k0"]), names_of(&["eth0"]))
        );
        assert_eq!(config.kernel_port.unwrap().snat.len(), 2);
        assert_eq!(Config::read(Path::new("m.yaml"), text).0.nics().len(), 1);
        for (address, says) in [("10.0.1.3", "of `pools`"), ("10.0.0.9", "of `snat`"), ("127.0.0.1", "no host's")] {
            let found = findings(&with(address));
            assert!(found.len() == 1 && found[0].contains(says), "{found:?}");
        }
    }

    fn names_of(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_field_has_the_line_that_it_or_what_has_it_is_written_on() {
        let (config, _) = Config::read(Path::new("m.yaml"), "manifests: [/m]\ninterfaces:\n- eth0\n- {name: eth1}\n");
        let lines = ["manifests[0]", "interfaces[0]", "interfaces[1].name", "interfaces[7]", "snat.addresses"];
        assert_eq!(lines.map(|field| config.line(field)), [1, 3, 4, 3, 1]);
    }

    #[test]
    fn what_cannot_run_is_said_at_once() {
        let found = findings("manifests: [/m]\n");
        assert!(found.iter().any(|f| f.contains("interfaces: missing")), "{found:?}");
        let found = findings("interfaces: [eth0]\n");
        assert!(found.iter().any(|f| f.contains("manifests: missing")), "{found:?}");
        assert_eq!(findings("interfaces: [eth0\n").len(), 1);
        assert!(findings("interfaces: [eth0, eth0]\nmanifests: [/m]\n")[0].contains("twice"));
    }

    #[test]
    fn an_api_server_in_place_of_manifests_is_in_the_cluster_or_in_a_kubeconfig() {
        let rest = "interfaces: [eth0]\nannounce: [{mode: none}]\n";
        for (text, kubeconfig) in
            [("kubernetes: {}", None), ("kubernetes:", None), ("kubernetes: {kubeconfig: /k}", Some("/k"))]
        {
            let (config, findings) = Config::read(Path::new("m.yaml"), &format!("{rest}{text}\n"));
            assert_eq!(findings, [], "{text}");
            assert_eq!(
                config.kubernetes,
                Some(Kubernetes { kubeconfig: kubeconfig.map(PathBuf::from), ..Kubernetes::default() })
            );
        }
    }

    #[test]
    fn health_check_node_ports_are_answered_where_kube_proxy_has_no_node_ports_or_as_it_is_written() {
        for (written, node_port, answers) in [
            ("", false, false),
            ("", true, true),
            ("healthCheckNodePorts: on", false, true),
            ("healthCheckNodePorts: off", true, false),
        ] {
            let text = format!("interfaces: [eth0]\nkubernetes: {{{written}}}\nannounce: [{{mode: none}}]\n");
            let (mut config, findings) = Config::read(Path::new("m.yaml"), &text);
            assert_eq!(findings, []);
            config.serve.node_port = node_port;
            assert_eq!(config.answers_health_checks(), answers, "{written} {node_port}");
        }
    }

    #[test]
    fn nodes_that_announce_addresses_have_a_key_for_heartbeats() {
        for (text, port) in [("{key: /k}", 9478), ("{key: /k, port: 7000}", 7000)] {
            let text = format!("interfaces: [eth0]\nkubernetes: {{heartbeat: {text}}}\nannounce: [{{mode: l2}}]\n");
            let (config, findings) = Config::read(Path::new("m.yaml"), &text);
            assert_eq!(findings, []);
            let heartbeat = config.kubernetes.and_then(|kubernetes| kubernetes.heartbeat);
            assert_eq!(heartbeat, Some(Heartbeat { key: "/k".into(), port }));
        }
    }

    #[test]
    fn what_is_not_built_yet_beside_an_api_server_is_refused() {
        let pools = "pools: [{name: a, addresses: [10.0.0.0/28]}, {name: b, addresses: [10.0.1.0/28]}]";
        let none = "announce: [{mode: none}]";
        for (text, says) in [
            (format!("kubernetes: {{config: /k}}\n{none}"), "m.yaml:2: kubernetes.config: unknown key"),
            (format!("kubernetes: yes\n{none}"), "kubernetes: `yes`, expected a mapping with kubeconfig"),
            ("kubernetes: {}".to_owned(), "m.yaml:2: kubernetes.heartbeat: missing, and"),
            // An object may be a pool too.
            ("kubernetes: {}\nannounce: [{pool: c, mode: none}]".to_owned(), "m.yaml:2: kubernetes.heartbeat: missing"),
            ("kubernetes: {}\nannounce: [{mode: l2}]".to_owned(), "`kubectl create secret generic"),
            (
                format!("kubernetes: {{}}\n{pools}\nannounce: [{{pool: a, mode: none}}]"),
                "m.yaml:2: kubernetes.heartbeat: missing",
            ),
            ("kubernetes: {heartbeat: {port: 5}}".to_owned(), "m.yaml:2: kubernetes.heartbeat: no key, expected"),
            ("kubernetes: {heartbeat: {key: /k, port: 0}}".to_owned(), "heartbeat.port: `0`, expected a UDP port"),
            (format!("kubernetes: {{}}\n{none}\nserve: [nodePort]"), "m.yaml:4: serve: `clusterIP` and `nodePort` are"),
            (
                format!("kubernetes: {{}}\n{none}\nserve: [clusterIP]\nnodes:\n  n1: {{mssClamp: off}}"),
                "m.yaml:6: nodes.n1: `n1` has no `kernelPort`: ",
            ),
            (format!("kubernetes: {{}}\n{none}\nserviceRange: [10.96.0.0/16]"), "m.yaml:4: serviceRange: "),
        ] {
            let found = findings(&format!("interfaces: [eth0]\n{text}\n"));
            assert!(found.len() == 1 && found[0].contains(says), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_only_a_successor_can_change_stays_and_is_named() {
        let text = "interfaces: [eth0]\nmanifests: [/m]\nsnat: {addresses: [192.0.2.1]}\n";
        let (in_force, _) = Config::read(Path::new("m.yaml"), text);
        let changed = "tunnel: {sources: [192.0.2.3]}\n\ninterfaces: [eth1]\nworkers: {cores: [1], idle: busy}\nmanifests: [/n]\n\
                       snat: {addresses: [192.0.2.2]}\nkernelPort: {snat: [192.0.2.9]}\nlimits: {flows: 2000, flowsPerSource: 7, newFlowsPerSource: 100/s, synsPerVip: 9}\nadmin: /a\n\
                       metrics: off\nruntime: /r\nstate: /s\n";
        let (mut config, findings) = Config::read(Path::new("m.yaml"), changed);
        assert_eq!(findings, []);
        let named = config.keep_plumbing(&in_force);
        let (mut other, _) = Config::read(
            Path::new("m.yaml"),
            "interfaces: [eth0]\nkubernetes: {}\nannounce: [{mode: none}]\nsnat: {addresses: [192.0.2.1]}\n",
        );
        assert_eq!(other.keep_plumbing(&in_force), ["kubernetes"]);
        assert_eq!((other.kubernetes, other.manifests), (None, in_force.manifests.clone()), "a source remains");
        let all =
            "interfaces workers.cores workers.idle snat kernelPort tunnel limits.flows admin metrics runtime state";
        assert_eq!(named, all.split(' ').collect::<Vec<_>>());
        let expected = Config {
            manifests: vec!["/n".into()],
            limits: Limits {
                flows_per_source: 7,
                new_flows_per_source: 100,
                syns_per_vip: SynLimit::PerSecond(9),
                ..in_force.limits
            },
            lines: config.lines.clone(),
            // Another's addresses are kept from Services at once.
            reserved: config.reserved.clone(),
            ..in_force.clone()
        };
        assert_eq!(config, expected);
        let (mut same, _) = Config::read(Path::new("m.yaml"), &format!("# a line more\n{text}"));
        assert!(same.keep_plumbing(&in_force).is_empty());
    }
}

//! From a judged document to a [`Config`], one function a section.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use lb::model::Algorithm;
use lb::tables::MssClamp;
use translate::{AddressRange, Finding, Pool, Selector, Serve};

use super::judge::{Fields, Judge, Node, Value};
use super::nodes;
use super::{
    Announce, Config, Cores, HEARTBEAT_PORT, Heartbeat, Idle, Interface, InterfaceMode, KernelPort, Kubernetes, Snat,
    Span, SynLimit,
};
use crate::kernel_port;

const KEYS: &[&str] = &[
    "interfaces",
    "workers",
    "manifests",
    "kubernetes",
    "node",
    "nodes",
    "pools",
    "snat",
    "tunnel",
    "kernelPort",
    "announce",
    "externalIPs",
    "seed",
    "mssClamp",
    "serve",
    "serviceRange",
    "nodePortRange",
    "defaults",
    "limits",
    "timeouts",
    "admin",
    "metrics",
    "runtime",
    "state",
];

/// Highest rate that may be written.
const MOST_A_SECOND: u32 = 10_000_000;

/// Addresses of a family that tunnels start at: more queues no receiver has.
const MOST_TUNNEL_SOURCES: u128 = 256;

/// Reads one section into the configuration.
type Section = fn(&mut Config, &Node, &mut Judge);

pub(super) fn read(node: Option<&str>, path: &Path, text: &str) -> (Config, Vec<Finding>) {
    let mut judge = Judge::new(&path.display().to_string());
    let mut config = Config { path: path.to_owned(), ..Config::default() };
    if let Some(root) = judge.parse(text) {
        lines(&root, &mut config.lines);
        let fields = judge.fields(&root, KEYS);
        sections(&mut config, &fields, &mut judge);
        config.reserved = nodes::own_addresses(&config, "all nodes");
        if let Some(of_nodes) = fields.get("nodes") {
            nodes::apply(&mut config, of_nodes, node, &mut judge);
        }
        required(&config, &fields, &mut judge);
    }
    if config.kernel_port.is_some() {
        config.interfaces.push(Interface { name: kernel_port::OURS.to_owned(), mode: InterfaceMode::Copy });
    }
    (config, judge.findings)
}

/// Where each field is written.
fn lines(node: &Node, found: &mut BTreeMap<String, u32>) {
    found.insert(node.path.clone(), node.line);
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| lines(item, found)),
        Value::Map(entries) => entries.iter().for_each(|(_, value)| lines(value, found)),
        Value::Null | Value::Bool(_) | Value::Text(_) => {}
    }
}

pub(super) fn sections(config: &mut Config, fields: &Fields<'_>, judge: &mut Judge) {
    let sections: [(&str, Section); 18] = [
        ("interfaces", interfaces),
        ("workers", workers),
        ("manifests", |c, n, j| c.manifests = j.parsed_list(n, "a file or folder")),
        ("node", node),
        ("pools", pools),
        ("snat", snat),
        ("tunnel", tunnel),
        ("announce", announce),
        ("externalIPs", |c, n, j| c.external_ips = Some(j.parsed_list(n, "a range such as 198.51.100.0/24"))),
        ("serve", serve),
        ("serviceRange", |c, n, j| c.service_ranges = j.parsed_list(n, "a range such as 10.96.0.0/16")),
        ("nodePortRange", |c, n, j| c.node_port_range = ports(n, j).unwrap_or(c.node_port_range.clone())),
        ("defaults", defaults),
        ("limits", limits),
        ("timeouts", timeouts),
        ("metrics", metrics),
        ("kernelPort", kernel_port),
        ("mssClamp", |c, n, j| c.mss_clamp = mss_clamp(n, j)),
    ];
    // What it has, others ask.
    if let Some(node) = fields.has("kubernetes") {
        config.kubernetes = Some(kubernetes(node, judge));
    }
    for (key, section) in sections {
        if let Some(node) = fields.get(key) {
            section(config, node, judge);
        }
    }
    for (key, target) in [("admin", &mut config.admin), ("runtime", &mut config.runtime), ("state", &mut config.state)]
    {
        if let Some(node) = fields.get(key)
            && let Some(path) = judge.text(node, "a path")
        {
            *target = path.into();
        }
    }
    if let Some(node) = fields.get("seed")
        && let Some(seed) = judge.text(node, "a text")
    {
        seed.clone_into(&mut config.seed);
    }
    if fields.get("admin").is_none() && fields.get("runtime").is_some() {
        config.admin = config.runtime.join("admin.sock");
    }
}

/// What is missing or contradicts itself.
fn required(config: &Config, fields: &Fields<'_>, judge: &mut Judge) {
    if config.interfaces.is_empty() && fields.get("interfaces").is_none() {
        judge.error(0, "interfaces", "missing, expected the NICs to forward on, such as `interfaces: [eth0]`");
    }
    if config.manifests.is_empty() && config.kubernetes.is_none() && fields.get("manifests").is_none() {
        let message = "missing, expected files or folders, such as `manifests: [/etc/millrace/manifests]`";
        judge.error(0, "manifests", message);
    }
    if let Some(node) = fields.has("kubernetes") {
        let has_heartbeat =
            matches!(&node.value, Value::Map(entries) if entries.iter().any(|(key, _)| key == "heartbeat"));
        beside_kubernetes(config, fields, (node.line, has_heartbeat), judge);
    }
}

/// What to do where nodes are to announce addresses and have no key for heartbeats.
const NO_HEARTBEAT: &str = "missing, and the nodes that announce addresses must hear each other: expected \
     `heartbeat: {key: FILE}` with the same key on each, such as a mounted Secret of `kubectl create secret generic \
     millrace-heartbeat --from-literal=key=$(openssl rand -hex 32)`; or `announce: [{mode: none}]` and a routing daemon";

/// What to do where a node is to serve ClusterIPs or NodePorts and has no way from and to its pods.
pub(crate) const NO_KERNEL_PORT: &str = "`clusterIP` and `nodePort` are for the node itself and its pods, which the kernel \
     port leads here: expected `kernelPort: {snat: [ADDRESS]}` (of each node, below `nodes`), an address of each family \
     that is routed to this node and that nobody has, such as one of its part of the Pods' range that is given to no Pod; \
     or kube-proxy, and `serve: [loadBalancer, externalIPs]`";

/// What goes with an API server, and what does not yet.
fn beside_kubernetes(config: &Config, fields: &Fields<'_>, (line, has_heartbeat): (u32, bool), judge: &mut Judge) {
    if fields.get("manifests").is_some() {
        judge.error(line, "kubernetes", "beside `manifests`, expected one of both");
        return;
    }
    // Pools may be objects too, which only a rule without a name is for.
    let all_ruled = config.announce.iter().any(|rule| rule.pool.is_none());
    let l2 = !all_ruled || config.announce.iter().any(|rule| rule.l2);
    if l2 && !has_heartbeat {
        judge.error(line, "kubernetes.heartbeat", NO_HEARTBEAT);
    }
    // What is of single nodes is judged with them.
    if config.lacks_kernel_port() && fields.get("nodes").is_none() {
        judge.error(config.line("serve"), "serve", NO_KERNEL_PORT);
    }
    if !config.service_ranges.is_empty() {
        let message = "beside `kubernetes`, expected none: the API server gives ClusterIPs";
        judge.error(config.line("serviceRange"), "serviceRange", message);
    }
}

fn kubernetes(node: &Node, judge: &mut Judge) -> Kubernetes {
    let fields = judge.fields(node, &["kubeconfig", "heartbeat", "healthCheckNodePorts"]);
    let kubeconfig = fields.get("kubeconfig").and_then(|node| judge.text(node, "a kubeconfig file"));
    let heartbeat = fields.has("heartbeat").and_then(|node| heartbeat(node, judge));
    let answers = fields.get("healthCheckNodePorts");
    let health_check_node_ports = answers.and_then(|node| judge.word(node, &[("on", true), ("off", false)]));
    Kubernetes { kubeconfig: kubeconfig.map(Into::into), heartbeat, health_check_node_ports }
}

fn heartbeat(node: &Node, judge: &mut Judge) -> Option<Heartbeat> {
    let fields = judge.fields(node, &["key", "port"]);
    let port = fields.get("port").and_then(|node| judge.parsed::<std::num::NonZeroU16>(node, "a UDP port"));
    let Some(key) = fields.get("key") else {
        if matches!(node.value, Value::Map(_) | Value::Null) {
            judge.wrong(node, "no key, expected `key`: a file with a key that all nodes have");
        }
        return None;
    };
    let key = judge.text(key, "a file")?.into();
    Some(Heartbeat { key, port: port.map_or(HEARTBEAT_PORT, std::num::NonZeroU16::get) })
}

fn interfaces(config: &mut Config, node: &Node, judge: &mut Judge) {
    for item in judge.items(node) {
        let Some(interface) = interface(item, judge) else { continue };
        if [kernel_port::OURS, kernel_port::KERNELS].contains(&interface.name.as_str()) {
            judge.wrong(item, format!("`{}` is a name of the kernel port's, expected a NIC", interface.name));
        } else if config.interfaces.iter().any(|other| other.name == interface.name) {
            judge.wrong(item, format!("`{}` twice, expected each interface once", interface.name));
        } else {
            config.interfaces.push(interface);
        }
    }
    if let Value::List(items) = &node.value
        && items.is_empty()
    {
        judge.wrong(node, "an empty list, expected a NIC, such as `[eth0]`");
    }
}

fn interface(item: &Node, judge: &mut Judge) -> Option<Interface> {
    let name = |node: &Node, judge: &mut Judge| {
        let text = judge.text(node, "an interface's name")?;
        if text.len() > 15 || text.contains(['/', ' ', ':']) {
            judge.unexpected(node, "an interface's name (see `ip link`)");
            return None;
        }
        Some(text.to_owned())
    };
    if let Value::Text(_) = item.value {
        return Some(Interface { name: name(item, judge)?, mode: InterfaceMode::Auto });
    }
    let fields = judge.fields(item, &["name", "mode"]);
    let mode = fields.get("mode").and_then(|node| {
        let modes = [
            ("auto", InterfaceMode::Auto),
            ("zero-copy", InterfaceMode::ZeroCopy),
            ("copy", InterfaceMode::Copy),
            ("generic", InterfaceMode::Generic),
        ];
        judge.word(node, &modes)
    });
    let Some(node) = fields.get("name") else {
        judge.wrong(item, "no name, expected `name`");
        return None;
    };
    Some(Interface { name: name(node, judge)?, mode: mode.unwrap_or_default() })
}

fn workers(config: &mut Config, node: &Node, judge: &mut Judge) {
    let fields = judge.fields(node, &["cores", "idle"]);
    if let Some(node) = fields.get("idle") {
        config.idle = judge.word(node, &[("adaptive", Idle::Adaptive), ("busy", Idle::Busy)]).unwrap_or_default();
    }
    if let Some(node) = fields.get("cores") {
        if matches!(&node.value, Value::Text(text) if text == "auto") {
            return;
        }
        let cores: Vec<usize> = judge.parsed_list(node, "auto or a list of core numbers");
        let mut sorted = cores.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if cores.is_empty() || sorted.len() != cores.len() || cores.len() > lb::WorkerId::MAX {
            judge.wrong(node, "expected auto or a list of core numbers, each once, 64 at most");
        } else {
            config.cores = Cores::These(cores);
        }
    }
}

fn node(config: &mut Config, node: &Node, judge: &mut Judge) {
    let fields = judge.fields(node, &["hostname", "zone", "region"]);
    let mut text = |key: &str| fields.get(key).and_then(|n| judge.text(n, "a name")).map(str::to_owned);
    config.node = translate::Node { hostname: text("hostname"), zone: text("zone"), region: text("region") };
}

fn pools(config: &mut Config, node: &Node, judge: &mut Judge) {
    for item in judge.items(node) {
        let known = ["name", "addresses", "priority", "autoAssign", "namespaceSelector", "serviceSelector"];
        let fields = judge.fields(item, &known);
        let name = fields.get("name").and_then(|n| judge.text(n, "a name"));
        let Some(name) = name else {
            judge.wrong(item, "a pool without a name, expected `name` and `addresses`");
            continue;
        };
        let expected = "ADDRESS, ADDRESS/PREFIX or FIRST-LAST";
        let addresses: Vec<AddressRange> =
            fields.get("addresses").map(|n| judge.parsed_list(n, expected)).unwrap_or_default();
        if fields.get("addresses").is_none() {
            judge.wrong(item, format!("pool `{name}` has no addresses, expected `addresses`"));
        }
        if config.pools.iter().any(|pool| pool.name == name) {
            judge.wrong(item, format!("pool `{name}` twice, expected each name once"));
        }
        let priority = fields.get("priority").and_then(|n| judge.parsed(n, "a number, higher ones first"));
        let auto_assign = fields.get("autoAssign").and_then(|n| judge.word(n, &[("on", true), ("off", false)]));
        let mut selector = |key: &str| fields.get(key).and_then(|node| selector(node, judge)).unwrap_or_default();
        let (namespaces, services) = (selector("namespaceSelector"), selector("serviceSelector"));
        let (priority, auto_assign) = (priority.unwrap_or_default(), auto_assign.unwrap_or(true));
        config.pools.push(Pool { priority, auto_assign, namespaces, services, ..Pool::new(name, addresses) });
    }
}

/// A selector as the API has it.
fn selector(node: &Node, judge: &mut Judge) -> Option<Selector> {
    let fields = judge.fields(node, &["matchLabels", "matchExpressions"]);
    let mut selector = LabelSelector::default();
    if let Some(Node { value: Value::Map(entries), .. }) = fields.get("matchLabels") {
        let labels = entries
            .iter()
            .filter_map(|(key, node)| Some((key.clone(), judge.text(node, "a label's value")?.to_owned())));
        selector.match_labels = Some(labels.collect());
    } else if let Some(node) = fields.get("matchLabels") {
        judge.unexpected(node, "a mapping of labels");
    }
    for item in fields.get("matchExpressions").map(|node| judge.items(node)).unwrap_or_default() {
        let fields = judge.fields(item, &["key", "operator", "values"]);
        let mut text = |key: &str| fields.get(key).and_then(|n| judge.text(n, "a text")).unwrap_or_default().to_owned();
        let (key, operator) = (text("key"), text("operator"));
        let values = fields.get("values").map(|n| judge.parsed_list(n, "labels' values"));
        let expressions = selector.match_expressions.get_or_insert_default();
        expressions.push(LabelSelectorRequirement { key, operator, values });
    }
    let made = Selector::of(&selector);
    made.map_err(|message| judge.wrong(node, message)).ok()
}

fn snat(config: &mut Config, node: &Node, judge: &mut Judge) {
    let fields = judge.fields(node, &["addresses", "ports"]);
    let addresses: Vec<IpAddr> =
        fields.get("addresses").map(|n| judge.parsed_list(n, "an address")).unwrap_or_default();
    let ports = fields.get("ports").and_then(|n| {
        let range = ports(n, judge)?;
        if *range.start() < 1024 || range.end() - range.start() < 63 {
            judge.unexpected(n, "64 ports or more, none below 1024");
            return None;
        }
        Some(range)
    });
    config.snat = Snat { addresses, ports, line: node.line };
}

fn tunnel(config: &mut Config, node: &Node, judge: &mut Judge) {
    let fields = judge.fields(node, &["sources"]);
    let Some(node) = fields.get("sources") else { return };
    let expected = "ADDRESS, ADDRESS/PREFIX or FIRST-LAST";
    let ranges: Vec<AddressRange> = judge.parsed_list(node, expected);
    for ipv6 in [false, true] {
        let of_family = ranges.iter().filter(|range| range.is_ipv6() == ipv6);
        let count = of_family.clone().fold(0, |sum: u128, range| sum.saturating_add(range.size()));
        if count > MOST_TUNNEL_SOURCES {
            judge.wrong(node, format!("{count} addresses, expected {MOST_TUNNEL_SOURCES} of a family at most"));
            continue;
        }
        config.tunnels.extend(of_family.flat_map(|range| (0..range.size()).map(|at| range.at(at))));
    }
    let taken = |address: &&IpAddr| config.pools.iter().flat_map(|pool| &pool.addresses).any(|r| r.contains(**address));
    if let Some(address) = config.tunnels.iter().find(taken) {
        judge.wrong(node, format!("{address} is of `pools`, expected addresses that nothing else uses"));
    }
}

fn kernel_port(config: &mut Config, node: &Node, judge: &mut Judge) {
    let fields = judge.fields(node, &["snat"]);
    let snat: Vec<IpAddr> = fields.get("snat").map(|n| judge.parsed_list(n, "an IP address")).unwrap_or_default();
    let Some(list) = fields.get("snat").filter(|_| !snat.is_empty()) else {
        if fields.get("snat").is_none_or(|list| matches!(&list.value, Value::List(items) if items.is_empty())) {
            let what = "no address, expected `snat` with addresses that nobody has and that are routed to this host";
            judge.wrong(node, what);
        }
        return;
    };
    for (at, address) in snat.iter().enumerate() {
        let pool = config.pools.iter().any(|pool| pool.addresses.iter().any(|range| range.contains(*address)));
        let wrong = match address {
            _ if snat[..at].contains(address) => "twice, expected each address once",
            _ if pool => "is of `pools`, expected addresses that nothing else uses",
            _ if config.snat.addresses.contains(address) => "is of `snat` too, expected addresses for one of both",
            _ if address.is_unspecified() || address.is_loopback() || address.is_multicast() => {
                "is no host's, expected addresses that are routed to this host"
            }
            _ => continue,
        };
        judge.wrong(list, format!("{address} {wrong}"));
    }
    config.kernel_port = Some(KernelPort { snat });
}

/// `FIRST-LAST`.
fn ports(node: &Node, judge: &mut Judge) -> Option<RangeInclusive<u16>> {
    let text = judge.text(node, "FIRST-LAST")?;
    let range = text.split_once('-').and_then(|(first, last)| {
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    });
    if range.is_none() {
        judge.unexpected(node, "FIRST-LAST, such as 30000-32767");
    }
    range
}

fn announce(config: &mut Config, node: &Node, judge: &mut Judge) {
    for item in judge.items(node) {
        let fields = judge.fields(item, &["pool", "interfaces", "mode"]);
        let pool = fields.get("pool").and_then(|n| judge.text(n, "a pool's name").map(str::to_owned));
        if let (Some(name), Some(node)) = (&pool, fields.get("pool"))
            && !config.pools.iter().any(|p| p.name == *name)
            // There it may be an object.
            && config.kubernetes.is_none()
        {
            judge.wrong(node, format!("there is no pool `{name}`, expected a name of `pools`"));
        }
        let interfaces: Vec<String> =
            fields.get("interfaces").map(|n| judge.parsed_list(n, "an interface")).unwrap_or_default();
        for name in &interfaces {
            if !config.interfaces.iter().any(|i| i.name == *name) {
                judge.wrong(item, format!("`{name}` is none of `interfaces`, expected one of them"));
            }
        }
        let l2 = fields.get("mode").and_then(|n| judge.word(n, &[("l2", true), ("none", false)])).unwrap_or(true);
        config.announce.push(Announce { pool, interfaces, l2 });
    }
}

fn serve(config: &mut Config, node: &Node, judge: &mut Judge) {
    let mut serve = Serve { load_balancer: false, external_ips: false, cluster_ip: false, node_port: false };
    for item in judge.items(node) {
        match judge.word(item, &[("loadBalancer", 0), ("externalIPs", 1), ("clusterIP", 2), ("nodePort", 3)]) {
            Some(0) => serve.load_balancer = true,
            Some(1) => serve.external_ips = true,
            Some(2) => serve.cluster_ip = true,
            Some(_) => serve.node_port = true,
            None => {}
        }
    }
    config.serve = serve;
}

fn defaults(config: &mut Config, node: &Node, judge: &mut Judge) {
    let fields = judge.fields(node, &["algorithm", "mode", "echo"]);
    if let Some(node) = fields.get("algorithm") {
        let words = [
            ("maglev", Algorithm::Maglev),
            ("round-robin", Algorithm::RoundRobin),
            ("random", Algorithm::Random),
            ("least-connections", Algorithm::LeastConnections),
            ("source-hash", Algorithm::SourceHash),
        ];
        config.defaults.algorithm = judge.word(node, &words).unwrap_or_default();
    }
    if let Some(node) = fields.get("mode") {
        config.defaults.mode = judge.word(node, &translate::MODES.map(|(mode, word)| (word, mode))).unwrap_or_default();
    }
    if let Some(node) = fields.get("echo") {
        config.defaults.echo = judge.word(node, &[("on", true), ("off", false)]).unwrap_or(true);
    }
}

fn mss_clamp(node: &Node, judge: &mut Judge) -> MssClamp {
    let text = match &node.value {
        Value::Bool(false) => "off",
        Value::Text(text) => text.trim(),
        _ => "",
    };
    match (text, text.parse()) {
        ("off", _) => MssClamp::Off,
        ("auto", _) => MssClamp::Auto,
        // From what everybody takes (RFC 9293 section 3.7.1) to what an IPv4 packet holds.
        (_, Ok(most @ 536..=65495)) => MssClamp::Most(most),
        _ => {
            judge.unexpected(node, "off, auto or octets from 536 to 65495");
            MssClamp::Off
        }
    }
}

fn limits(config: &mut Config, node: &Node, judge: &mut Judge) {
    let fields = judge.fields(node, &["flows", "flowsPerSource", "newFlowsPerSource", "synsPerVip"]);
    if let Some(node) = fields.get("flows")
        && let Some(flows) = judge.parsed::<u32>(node, "a number of flows, 1024 to 64000000")
    {
        if (1024..=64_000_000).contains(&flows) {
            config.limits.flows = flows;
        } else {
            judge.unexpected(node, "a number of flows, 1024 to 64000000");
        }
    }
    if let Some(node) = fields.get("flowsPerSource") {
        config.limits.flows_per_source = match node.value {
            Value::Bool(false) => 0,
            Value::Text(ref text) if text == "off" => 0,
            _ => judge.parsed(node, "a number of flows or off").unwrap_or(10_000),
        };
    }
    if let Some(node) = fields.get("newFlowsPerSource") {
        config.limits.new_flows_per_source = rate(node, judge, "flows a second, such as 100/s, or off");
    }
    if let Some(node) = fields.get("synsPerVip") {
        config.limits.syns_per_vip = match &node.value {
            Value::Text(text) if text.trim() == "auto" => SynLimit::Auto,
            _ => match rate(node, judge, "SYNs a second, such as 50000/s, auto or off") {
                0 => SynLimit::Off,
                rate => SynLimit::PerSecond(rate),
            },
        };
    }
}

/// So many a second, written `100/s` or `100`; 0 is off.
fn rate(node: &Node, judge: &mut Judge, expected: &str) -> u32 {
    let text = match &node.value {
        Value::Bool(false) => "off",
        Value::Text(text) => text.trim(),
        _ => "",
    };
    let number = text.strip_suffix("/s").unwrap_or(text).trim_end();
    match (text, number.parse()) {
        ("off", _) => 0,
        (_, Ok(rate @ 1..=MOST_A_SECOND)) => rate,
        _ => {
            judge.unexpected(node, expected);
            0
        }
    }
}

fn timeouts(config: &mut Config, node: &Node, judge: &mut Judge) {
    let t = &mut config.timeouts;
    let targets: [(&str, &mut Duration); 12] = [
        ("tcpEstablished", &mut t.tcp_established),
        ("tcpTransitory", &mut t.tcp_transitory),
        ("tcpOpening", &mut t.tcp_opening),
        ("tcpClosed", &mut t.tcp_closed),
        ("udp", &mut t.udp),
        ("udpUnreplied", &mut t.udp_unreplied),
        ("dns", &mut t.dns),
        ("dnsDone", &mut t.dns_done),
        ("sctpOpening", &mut t.sctp_opening),
        ("sctpEstablished", &mut t.sctp_established),
        ("sctpClosing", &mut t.sctp_closing),
        ("sctpClosed", &mut t.sctp_closed),
    ];
    let names = targets.each_ref().map(|(name, _)| *name);
    let fields = judge.fields(node, &names);
    for (name, target) in targets {
        let Some(node) = fields.get(name) else { continue };
        let Some(Span(duration)) = judge.parsed(node, "a duration such as 30s or 5m") else { continue };
        if duration.is_zero() || duration > Duration::from_secs(20 * 86_400) {
            judge.unexpected(node, "a duration above 0, 20d at most");
        } else {
            *target = duration;
        }
    }
}

fn metrics(config: &mut Config, node: &Node, judge: &mut Judge) {
    let off = match &node.value {
        Value::Bool(false) => true,
        Value::Text(text) => text == "off",
        _ => false,
    };
    config.metrics = if off { None } else { judge.parsed(node, "ADDRESS:PORT, such as 127.0.0.1:9477, or off") };
}

//! From a judged document to a [`Config`], one function a section.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use lb::model::Algorithm;
use lb::tables::MssClamp;
use translate::{AddressRange, Finding, Pool, Serve};

use super::judge::{Fields, Judge, Node, Value};
use super::{Announce, Config, Cores, Idle, Interface, InterfaceMode, Kubernetes, Snat, Span, SynLimit};

const KEYS: &[&str] = &[
    "interfaces",
    "workers",
    "manifests",
    "kubernetes",
    "node",
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

pub(super) fn read(path: &Path, text: &str) -> (Config, Vec<Finding>) {
    let mut judge = Judge::new(&path.display().to_string());
    let mut config = Config { path: path.to_owned(), ..Config::default() };
    if let Some(root) = judge.parse(text) {
        lines(&root, &mut config.lines);
        let fields = judge.fields(&root, KEYS);
        sections(&mut config, &fields, &mut judge);
        required(&config, &fields, &mut judge);
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

fn sections(config: &mut Config, fields: &Fields<'_>, judge: &mut Judge) {
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
        ("kernelPort", |_, n, j| unavailable(n, j, "the kernel port", "backends that a NIC reaches")),
        ("mssClamp", |c, n, j| c.mss_clamp = mss_clamp(n, j)),
    ];
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
    if let Some(node) = fields.has("kubernetes") {
        config.kubernetes = Some(kubernetes(node, judge));
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
        beside_kubernetes(config, fields, node.line, judge);
    }
}

/// What goes with an API server, and what does not yet.
fn beside_kubernetes(config: &Config, fields: &Fields<'_>, line: u32, judge: &mut Judge) {
    if fields.get("manifests").is_some() {
        judge.error(line, "kubernetes", "beside `manifests`, expected one of both");
        return;
    }
    let none = "`{mode: none}` and a routing daemon that announces the addresses: in this version every node would \
                answer for all of them";
    if let Some(at) = config.announce.iter().position(|rule| rule.l2) {
        let field = format!("announce[{at}]");
        judge.error(config.line(&field), &field, &format!("l2 beside `kubernetes`, expected {none}"));
    } else if config.announce.is_empty() {
        let message = "missing, expected `announce: [{mode: none}]` and a routing daemon that announces the addresses: \
                       in this version every node would answer for all of them";
        judge.error(0, "announce", message);
    } else {
        let ruled = |name: &str| config.announce.iter().any(|r| r.pool.as_deref().is_none_or(|pool| pool == name));
        for pool in config.pools.iter().filter(|pool| !ruled(&pool.name)) {
            let message = format!("no rule for pool `{}`, expected {none}", pool.name);
            judge.error(config.line("announce"), "announce", &message);
        }
    }
    if config.serve.cluster_ip || config.serve.node_port {
        let message = "`clusterIP` and `nodePort` are not in this version beside `kubernetes`, expected \
                       `[loadBalancer, externalIPs]` and kube-proxy for the rest";
        judge.error(config.line("serve"), "serve", message);
    }
    if !config.service_ranges.is_empty() {
        let message = "beside `kubernetes`, expected none: the API server gives ClusterIPs";
        judge.error(config.line("serviceRange"), "serviceRange", message);
    }
}

fn kubernetes(node: &Node, judge: &mut Judge) -> Kubernetes {
    let fields = judge.fields(node, &["kubeconfig"]);
    let kubeconfig = fields.get("kubeconfig").and_then(|node| judge.text(node, "a kubeconfig file"));
    Kubernetes { kubeconfig: kubeconfig.map(Into::into) }
}

fn unavailable(node: &Node, judge: &mut Judge, what: &str, instead: &str) {
    judge.wrong(node, format!("{what} is not in this version, expected {instead} instead"));
}

fn interfaces(config: &mut Config, node: &Node, judge: &mut Judge) {
    for item in judge.items(node) {
        let Some(interface) = interface(item, judge) else { continue };
        if config.interfaces.iter().any(|other| other.name == interface.name) {
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
        let fields = judge.fields(item, &["name", "addresses"]);
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
        config.pools.push(Pool { name: name.to_owned(), addresses });
    }
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

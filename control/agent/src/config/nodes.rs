//! What single nodes have in place of what all have: `nodes: {NAME: {snat: …}}`, so that one file serves a cluster.
//!
//! Everything is judged on every node, also what is of others: a mistake is told before its node starts.

use super::Config;
use super::judge::{Judge, Node, Value};
use super::read::{NO_KERNEL_PORT, sections};
use translate::AddressRange;

/// What may differ. What is served, and at which addresses, is the cluster's.
const KEYS: &[&str] =
    &["interfaces", "workers", "node", "snat", "tunnel", "kernelPort", "announce", "mssClamp", "limits", "timeouts"];

/// Judges what is written of each node, and takes over what is of this one: the one that `node.hostname` names, else
/// `own`.
pub(super) fn apply(config: &mut Config, nodes: &Node, own: Option<&str>, judge: &mut Judge) {
    let Value::Map(entries) = &nodes.value else {
        return judge.unexpected(nodes, "a mapping from names of Nodes to what they have of their own");
    };
    let own = config.node.hostname.clone().or_else(|| own.map(str::to_owned));
    let mut this = None;
    let mut reserved = std::mem::take(&mut config.reserved);
    for (name, entry) in entries {
        let theirs = of_node(config, name, entry, judge);
        reserved.extend(own_addresses(&theirs, &format!("Node {name}")));
        if own.as_ref() == Some(name) {
            this = Some(theirs);
        }
    }
    if let Some(mut this) = this {
        // Findings of the host are about what counts here.
        let prefix = format!("{}.{}.", nodes.path, own.unwrap_or_default());
        let lines =
            this.lines.iter().filter_map(|(field, line)| Some((field.strip_prefix(&prefix)?.to_owned(), *line)));
        let lines: Vec<_> = lines.collect();
        this.lines.extend(lines);
        *config = this;
    }
    config.reserved = reserved;
}

/// The addresses that a node has for itself, and what they are.
pub(super) fn own_addresses(config: &Config, of: &str) -> Vec<(AddressRange, String)> {
    let kernels =
        config.kernel_port.iter().flat_map(|port| port.snat.iter().map(|address| (address, "kernelPort.snat")));
    let all = config.snat.addresses.iter().map(|address| (address, "snat")).chain(kernels);
    let all = all.chain(config.tunnels.iter().map(|address| (address, "tunnel")));
    all.map(|(address, key)| (AddressRange::of(*address), format!("of `{key}` of {of}"))).collect()
}

fn of_node(config: &Config, name: &str, entry: &Node, judge: &mut Judge) -> Config {
    let mut theirs = config.clone();
    let fields = judge.fields(entry, KEYS);
    // Sections add to these.
    if fields.get("interfaces").is_some() {
        theirs.interfaces.clear();
    }
    if fields.get("tunnel").is_some() {
        theirs.tunnels.clear();
    }
    if fields.get("announce").is_some() {
        theirs.announce.clear();
    }
    let hostname = config.node.hostname.clone();
    sections(&mut theirs, &fields, judge);
    if let Some(node) = fields.get("node")
        && theirs.node.hostname.is_some()
    {
        judge.wrong(node, format!("`hostname` of the node `{name}`, expected zone and region alone"));
    }
    theirs.node.hostname = hostname;
    let known = |interface: &String| theirs.interfaces.iter().any(|known| known.name == *interface);
    let unknown = theirs.announce.iter().flat_map(|rule| &rule.interfaces).find(|interface| !known(interface));
    if let (None, Some(unknown)) = (fields.get("announce"), unknown) {
        judge.wrong(entry, format!("`announce` names `{unknown}`, which `{name}` lacks, expected `announce` here too"));
    }
    if theirs.lacks_kernel_port() {
        judge.wrong(entry, format!("`{name}` has no `kernelPort`: {NO_KERNEL_PORT}"));
    }
    theirs
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use super::*;

    const TEXT: &str = "\
interfaces: [eth0]
kubernetes: {}
announce: [{mode: none}]
limits: {flows: 2000}
nodes:
  n1.example.com:
    snat: {addresses: [192.0.2.1]}
  n2:
    interfaces: [eth1, eth2]
    snat: {addresses: [192.0.2.2], ports: 16384-29999}
    limits: {flowsPerSource: 7}
    node: {zone: b}
    tunnel: {sources: [192.0.2.3]}
";

    fn read(node: Option<&str>, text: &str) -> (Config, Vec<String>) {
        let (config, findings) = Config::read_on(node, Path::new("m.yaml"), text);
        (config, findings.iter().map(ToString::to_string).collect())
    }

    fn address(text: &str) -> Vec<IpAddr> {
        vec![text.parse().unwrap()]
    }

    #[test]
    fn a_node_has_what_is_written_of_it_and_for_the_rest_what_all_have() {
        let (n1, findings) = read(Some("n1.example.com"), TEXT);
        assert_eq!(findings, Vec::<String>::new());
        assert_eq!((n1.snat.addresses.clone(), n1.interfaces[0].name.as_str()), (address("192.0.2.1"), "eth0"));
        assert_eq!((n1.line("snat.addresses"), n1.line("interfaces")), (7, 1));
        let (n2, _) = read(Some("n2"), TEXT);
        assert_eq!(n2.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eth1", "eth2"]);
        assert_eq!((n2.snat.addresses.clone(), n2.snat.ports.clone()), (address("192.0.2.2"), Some(16384..=29999)));
        assert_eq!((n2.limits.flows, n2.limits.flows_per_source, n2.tunnels.clone()), (2000, 7, address("192.0.2.3")));
        assert_eq!((n2.node.zone.as_deref(), n2.node.hostname), (Some("b"), None));
        for nobody in [None, Some("n3")] {
            let (other, findings) = read(nobody, TEXT);
            assert_eq!((findings, other.snat.addresses), (Vec::new(), Vec::new()));
        }
    }

    #[test]
    fn what_any_node_has_for_itself_no_service_may_have() {
        let text = TEXT.replace("  n2:\n", "  n2:\n    kernelPort: {snat: [10.244.2.250]}\n");
        let expected = [
            ("192.0.2.1", "`snat` of Node n1.example.com"),
            ("192.0.2.2", "`snat` of Node n2"),
            ("10.244.2.250", "`kernelPort.snat` of Node n2"),
            ("192.0.2.3", "`tunnel` of Node n2"),
        ];
        let expected = expected.map(|(ip, what)| (AddressRange::of(ip.parse().unwrap()), format!("of {what}")));
        for node in [None, Some("n1.example.com"), Some("n2")] {
            assert_eq!(read(node, &text).0.reserved, expected);
        }
        let (config, _) = read(None, "interfaces: [eth0]\nmanifests: [/m]\nsnat: {addresses: [192.0.2.1]}\n");
        assert_eq!(config.reserved, [(expected[0].0, "of `snat` of all nodes".to_owned())]);
    }

    #[test]
    fn the_name_in_the_configuration_is_the_nodes() {
        let (config, _) = read(Some("n1.example.com"), &format!("node: {{hostname: n2}}\n{TEXT}"));
        assert_eq!(config.snat.addresses, address("192.0.2.2"));
        assert_eq!(config.node.hostname.as_deref(), Some("n2"));
    }

    #[test]
    fn what_is_wrong_is_told_whichever_node_it_is_of() {
        let rest = "interfaces: [eth0]\nkubernetes: {}\nannounce: [{mode: none, interfaces: [eth0]}]\n";
        for (nodes, says) in [
            ("[n1]", "m.yaml:4: nodes: a list, expected a mapping"),
            ("{n1: {snat: {addresses: [x]}}}", "m.yaml:4: nodes.n1.snat.addresses[0]: `x`, expected an address"),
            ("{n1: {snats: {}}}", "m.yaml:4: nodes.n1.snats: unknown key, did you mean `snat`?"),
            ("{n1: {pools: []}}", "m.yaml:4: nodes.n1.pools: unknown key"),
            ("{n1: {node: {hostname: n2}}}", "expected zone and region alone"),
            ("{n1: {interfaces: [eth1]}}", "`announce` names `eth0`, which `n1` lacks"),
        ] {
            for node in [None, Some("n1"), Some("n2")] {
                let (_, findings) = read(node, &format!("{rest}nodes: {nodes}\n"));
                assert!(findings.len() == 1 && findings[0].contains(says), "{nodes}: {findings:?}");
            }
        }
    }
}

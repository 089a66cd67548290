//! NodePorts that the node's own processes and its pods ask for: packets to the node's own addresses never leave the kernel,
//! so it is told to send those of NodePorts to an address of ours, which is routed into the kernel port, and to have answers
//! come from where they were asked.
//!
//! Which addresses and ports are sets of nftables; a change is what differs, in one transaction. What comes out of the kernel
//! port is for the host itself and stays. Every now and then it is looked whether the chains are there still, for who loads a
//! firewall's rules anew may begin with none (`nft flush ruleset`). Source: nft(8).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::sync::watch;

use super::marks::{has, has_rules, nft};
use super::{KERNELS, OURS, looks};

/// Where such packets are sent: addresses that are nobody's, of a range that no router forwards (RFC 3927), and of one that
/// nobody else drew (RFC 4193).
pub const NODE_PORTS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 86, 5)),
    IpAddr::V6(Ipv6Addr::new(0xfd6d, 0x696c, 0x6c72, 0x6163, 0x65, 0, 0, 2)),
];

/// How soon nft is run again after it failed.
const RETRY: Duration = Duration::from_secs(1);

const CHAINS: [&str; 2] = ["redirect-in", "redirect-own"];
const SETS: [[&str; 2]; 2] = [["own-v4", "node-ports-v4"], ["own-v6", "node-ports-v6"]];

/// What is redirected: packets to any of these addresses at any of these ports of its family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirected {
    /// The node's own.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether it is IPv6, the IP protocol number, the port.
    pub ports: BTreeSet<(bool, u8, u16)>,
}

/// Has these redirected, for as long as this runs and they are `ours` to see to. What somebody else took away is put back, at
/// the latest after the time `look`.
pub async fn redirect(mut wanted: watch::Receiver<Redirected>, look: Duration, ours: impl Fn() -> bool) {
    let (mut there, mut said) = (None, String::new());
    let mut looks = looks(look);
    let mut is_look = false;
    // A successor may have others redirected by now, or none.
    while ours() {
        if is_look && there.is_some() && is_taken().await {
            there = None;
        }
        let now = wanted.borrow_and_update().clone();
        let rules = script(there.as_ref(), &now);
        let run = tokio::task::spawn_blocking(move || if rules.is_empty() { Ok(()) } else { nft(&rules) });
        let done = run.await.unwrap_or_else(|error| Err(error.to_string()));
        match done {
            Ok(()) => (there, said) = (Some(now), String::new()),
            Err(error) => {
                if said != error {
                    tracing::error!(%error, "NodePorts are not reached from this node itself and its pods");
                }
                (there, said) = (None, error);
            }
        }
        is_look = tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return } else { false },
            () = tokio::time::sleep(RETRY), if there.is_none() => false,
            _ = looks.tick() => true,
        };
    }
}

/// Whether a chain or its rules are not there any more, or nobody can say; says so.
async fn is_taken() -> bool {
    let looked = tokio::task::spawn_blocking(|| has_rules(&CHAINS, "dnat")).await;
    let has = looked.unwrap_or_else(|error| Err(error.to_string()));
    if has == Ok(false) {
        tracing::warn!("somebody else took away the chains of nftables that lead to NodePorts; putting them back");
    }
    has != Ok(true)
}

/// Removes what a predecessor redirected, if it did.
///
/// # Errors
/// What nft says.
pub fn remove() -> Result<(), String> {
    if !has(&["chain", "inet", "millrace", CHAINS[0]]) {
        return Ok(());
    }
    let mut rules = String::new();
    for chain in CHAINS {
        let _ = writeln!(rules, "flush chain inet millrace {chain}\ndelete chain inet millrace {chain}");
    }
    for set in SETS.iter().flatten() {
        let _ = writeln!(rules, "delete set inet millrace {set}");
    }
    nft(&rules)
}

/// What brings nft from what is there, nothing if that is not known, to what is to be.
fn script(there: Option<&Redirected>, now: &Redirected) -> String {
    let mut rules = String::new();
    let none = Redirected::default();
    if there.is_none() {
        rules.push_str(&frame());
    }
    let there = there.unwrap_or(&none);
    for (ipv6, [own, ports]) in [false, true].into_iter().zip(SETS) {
        let addresses = |all: &Redirected| -> BTreeSet<String> {
            all.addresses.iter().filter(|ip| ip.is_ipv6() == ipv6).map(ToString::to_string).collect()
        };
        let places = |all: &Redirected| -> BTreeSet<String> {
            let of_family = all.ports.iter().filter(|(six, ..)| *six == ipv6);
            of_family.map(|(_, protocol, port)| format!("{protocol} . {port}")).collect()
        };
        differ(&mut rules, own, &addresses(there), &addresses(now));
        differ(&mut rules, ports, &places(there), &places(now));
    }
    rules
}

fn differ(rules: &mut String, set: &str, there: &BTreeSet<String>, now: &BTreeSet<String>) {
    for (verb, elements) in [("delete", there.difference(now)), ("add", now.difference(there))] {
        let elements: Vec<&str> = elements.map(String::as_str).collect();
        if !elements.is_empty() {
            let _ = writeln!(rules, "{verb} element inet millrace {set} {{ {} }}", elements.join(", "));
        }
    }
}

/// Sets and chains, made where they are not there, and emptied.
fn frame() -> String {
    let mut rules = "add table inet millrace\n".to_owned();
    for ([own, ports], family) in SETS.iter().zip(["ipv4_addr", "ipv6_addr"]) {
        for (set, kind) in [(own, family), (ports, "inet_proto . inet_service")] {
            let _ = writeln!(rules, "add set inet millrace {set} {{ type {kind}; }}\nflush set inet millrace {set}");
        }
    }
    for (chain, hook) in CHAINS.iter().zip(["prerouting", "output"]) {
        let _ = writeln!(
            rules,
            "add chain inet millrace {chain} {{ type nat hook {hook} priority -110; policy accept; }}\n\
             flush chain inet millrace {chain}"
        );
        let elsewhere =
            if hook == "prerouting" { format!("iifname != {{ {KERNELS:?}, {OURS:?} }} ") } else { String::new() };
        for (([own, ports], ip), to) in SETS.iter().zip(["ip", "ip6"]).zip(NODE_PORTS) {
            let _ = writeln!(
                rules,
                "add rule inet millrace {chain} {elsewhere}{ip} daddr @{own} meta l4proto . th dport @{ports} \
                 dnat {ip} to {to}"
            );
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::lab::Namespace;

    fn redirected(addresses: &[&str], ports: &[(bool, u8, u16)]) -> Redirected {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Redirected { addresses, ports: ports.iter().copied().collect() }
    }

    #[test]
    fn a_change_is_told_by_what_differs_alone() {
        let one = redirected(&["192.0.2.1", "2001:db8::1"], &[(false, 6, 30080), (true, 6, 30080)]);
        let other = redirected(&["192.0.2.1"], &[(false, 6, 30080), (false, 17, 30053)]);
        assert_eq!(script(Some(&one), &one), "");
        let expected = "add element inet millrace node-ports-v4 { 17 . 30053 }\n\
                        delete element inet millrace own-v6 { 2001:db8::1 }\n\
                        delete element inet millrace node-ports-v6 { 6 . 30080 }\n";
        assert_eq!(script(Some(&one), &other), expected);
    }

    #[test]
    fn the_kernel_takes_every_script_and_nothing_is_left_of_it() {
        let host = Namespace::new();
        let before = host.read("nft list ruleset");
        let one = redirected(&["192.0.2.1", "2001:db8::1"], &[(false, 6, 30080), (true, 132, 30080)]);
        let other = redirected(&["192.0.2.2"], &[(false, 17, 30053)]);
        for (there, now) in [(None, one.clone()), (Some(one), other.clone()), (None, other)] {
            host.within(move || nft(&script(there.as_ref(), &now))).unwrap();
        }
        let rules = host.read("nft list ruleset");
        assert!(rules.contains("192.0.2.2") && rules.contains("udp . 30053") && !rules.contains("30080"), "{rules}");
        assert_eq!(rules.matches("dnat ip to 169.254.86.5").count(), 2, "{rules}");
        host.within(|| remove().and(remove()).and(super::super::marks::remove())).unwrap();
        assert_eq!(host.read("nft list ruleset"), before);
    }
}

//! Lanes: for each contender wires of the same kind, from the one sender to the one sink through a gateway of its own.
//!
//! ```text
//! sender: s0 ── eth0 gateway 0 eth1 ── r0 :sink
//!         s1 ── eth0 gateway 1 eth1 ── r1         …
//! ```
//!
//! All stand at once, those that are not measured asleep, so that contenders take turns within milliseconds. The sink's
//! ends are plain: packets come for a link-layer address that is not theirs, and the kernel drops them right after it
//! counted them. Kernel forwarders receive and forward on the forwarder's core, in a NAPI thread, which of all ways to
//! place them (the sender's core, RPS) gave nftables most; for AF_XDP the kernel's half of receiving is on the sender's
//! core, where veth does it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use clap::ValueEnum;
use millrace_tests::lab::{Host, Lab, Process};
use millrace_tests::millrace::Gateway;
use millrace_tests::wait::eventually;
use wire::MacAddr;

use super::bare::Bare;
use super::{VIP, VIP_PORT};
use crate::cores;

/// The endpoints' port.
pub const BACKEND_PORT: u16 = 9000;
/// Endpoints: 64,512 flows each from one address is more than there are flows.
const BACKENDS: u8 = 10;
/// The one SNAT address of Millrace.
const SNAT: Ipv4Addr = Ipv4Addr::new(10, 82, 1, 100);
/// Nobody's link-layer address: all endpoints'.
pub const BACKEND_MAC: MacAddr = MacAddr([2, 0, 0, 0, 2, 0xee]);

/// Who forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Contender {
    /// Millrace's NAT: the binary as a user runs it.
    #[value(skip)]
    Millrace,
    /// An AF_XDP forwarder that changes link-layer addresses and nothing else.
    Bare,
    /// nftables: DNAT to ten endpoints and masquerade.
    Nftables,
    /// The kernel's forwarding, without NAT.
    Kernel,
}

impl Contender {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::Bare => "bare",
            Self::Nftables => "nftables",
            Self::Kernel => "kernel",
        }
    }
}

/// One contender and its wires.
pub struct Lane {
    /// Who forwards here.
    pub contender: Contender,
    /// Where.
    pub gateway: Host,
    /// The sending interface's index.
    pub interface: u32,
    /// What the sink's end is called.
    pub counted: String,
    running: Option<Running>,
}

/// What runs beside the kernel.
enum Running {
    Millrace { _process: Process, gateway: Gateway },
    Bare { _thread: Bare },
}

/// The link-layer address of a gateway's interface 0 or 1.
pub const fn gateway_mac(interface: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, interface])
}

/// The endpoints' addresses.
pub fn backends() -> impl Iterator<Item = Ipv4Addr> {
    (0..BACKENDS).map(|n| Ipv4Addr::new(10, 82, 1, 11 + n))
}

impl Lane {
    /// Makes wires and gateway, and starts the contender on `core`.
    pub fn new(lab: &mut Lab, sender: &Host, sink: &Host, contender: Contender, number: usize, core: usize) -> Self {
        let gateway = lab.host(contender.name());
        let (sending, counted) = (format!("s{number}"), format!("r{number}"));
        lab.wire((sender, &sending), (&gateway, "eth0"), 1);
        lab.wire((&gateway, "eth1"), (sink, &counted), 1);
        for (number, interface, address) in [(0, "eth0", "10.81.1.1/24"), (1, "eth1", "10.82.1.1/24")] {
            gateway.run("ip", ["link", "set", interface, "address", &gateway_mac(number).to_string()]);
            gateway.address(interface, address);
        }
        gateway.route("198.18.0.0/15 dev eth0");
        for backend in backends() {
            let words = format!("neigh add {backend} lladdr {BACKEND_MAC} dev eth1 nud permanent");
            gateway.run("ip", words.split(' '));
        }
        let index = sender.run("ip", ["-o", "link", "show", "dev", &sending]);
        let interface = index.split(':').next().and_then(|n| n.parse().ok()).expect("ip tells the index");
        let mut lane = Self { contender, gateway, interface, counted, running: None };
        lane.running = match contender {
            Contender::Millrace => Some(lane.millrace(lab, core)),
            Contender::Bare => Some(lane.bare(core)),
            Contender::Nftables => {
                lane.nftables();
                lane.kernel(core);
                None
            }
            Contender::Kernel => {
                lane.gateway.route(&format!("{VIP}/32 via {}", backends().next().expect("some")));
                lane.kernel(core);
                None
            }
        };
        lane
    }

    fn millrace(&self, lab: &Lab, core: usize) -> Running {
        let config = format!(
            "interfaces: [eth0, eth1]\nworkers: {{cores: [{core}]}}\n\
             pools: [{{name: public, addresses: [{VIP}/32]}}]\nsnat: {{addresses: [{SNAT}]}}"
        );
        let addresses: Vec<String> = backends().map(|address| format!("{{ip: {address}}}")).collect();
        let manifest = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: bench\n  annotations:\n    \
             millrace.dev/addresses: {VIP}\nspec:\n  type: LoadBalancer\n  ports:\n  \
             - {{port: {VIP_PORT}, targetPort: {BACKEND_PORT}, protocol: UDP}}\n---\n\
             apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: bench\nsubsets:\n- addresses: [{}]\n  ports:\n  \
             - {{port: {BACKEND_PORT}, protocol: UDP}}\n",
            addresses.join(", ")
        );
        let mut gateway = Gateway::new(&self.gateway, lab.dir(), &config);
        gateway.manifest("bench.yaml", &manifest);
        let process = gateway.start();
        Running::Millrace { _process: process, gateway }
    }

    fn bare(&self, core: usize) -> Running {
        let back = MacAddr([2, 0, 0, 0, 0, 1]);
        let ends = [("eth0", [back, gateway_mac(0)]), ("eth1", [BACKEND_MAC, gateway_mac(1)])];
        Running::Bare { _thread: Bare::start(&self.gateway, core, ends) }
    }

    /// Has the kernel forward, on `core` alone.
    fn kernel(&self, core: usize) {
        self.gateway.sysctl("net.ipv4.ip_forward", "1");
        // It switches NAPI on, without which live frames are not received.
        self.gateway.run("ethtool", ["-K", "eth0", "gro", "on"]);
        let before = napi_threads();
        // In a mount namespace of its own, whose /sys is this network namespace's.
        let set = "echo 1 > /sys/class/net/eth0/threaded";
        millrace_tests::lab::run("ip", ["netns", "exec", &self.gateway.netns, "sh", "-c", set]);
        let thread = eventually("the kernel starts a NAPI thread", Duration::from_secs(5), || {
            napi_threads().difference(&before).next().copied().ok_or_else(|| "none yet".to_owned())
        });
        cores::bind(thread, core);
    }

    fn nftables(&self) {
        let map: Vec<String> = backends().enumerate().map(|(n, address)| format!("{n} : {address}")).collect();
        let rules = format!(
            "table ip bench {{\n  chain in {{\n    type nat hook prerouting priority dstnat;\n    \
             ip daddr {VIP} udp dport {VIP_PORT} dnat to jhash ip saddr . udp sport mod {BACKENDS} map \
             {{ {} }}:{BACKEND_PORT}\n  }}\n  chain out {{\n    type nat hook postrouting priority srcnat;\n    \
             oifname eth1 masquerade\n  }}\n}}\n",
            map.join(", ")
        );
        self.gateway.run("nft", [&rules]);
        self.gateway.sysctl("net.netfilter.nf_conntrack_udp_timeout", "600");
    }

    /// Flows that it knows; `None` if it keeps none.
    pub fn known_flows(&self) -> Option<usize> {
        match (&self.running, self.contender) {
            (Some(Running::Millrace { gateway, .. }), _) => Some(gateway.metric("millrace_flows", "") as usize),
            (_, Contender::Nftables) => {
                let text = self.gateway.run("sysctl", ["-n", "net.netfilter.nf_conntrack_count"]);
                Some(text.trim().parse().expect("a number"))
            }
            _ => None,
        }
    }
}

/// Threads of the kernel's that receive for some `eth0`.
fn napi_threads() -> BTreeSet<i32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let number = |name: std::ffi::OsString| name.to_str()?.parse::<i32>().ok();
    let receives =
        |id: &i32| std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("napi/eth0-"));
    processes.filter_map(|entry| number(entry.file_name())).filter(receives).collect()
}

//! Who forwards, and how each is started on its gateway.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use millrace_tests::lab::{Host, Process};
use millrace_tests::millrace::Gateway;
use millrace_tests::wait::eventually;

use super::site::{ENDPOINTS, INNER, OUTER, Way};
use crate::cores;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    /// `millrace run`, the binary beside this one.
    Millrace,
    /// HAProxy in TCP mode.
    Haproxy,
    /// Kernel NAT by rules of the kind that kube-proxy writes.
    Nftables,
    /// The kernel's plain forwarding: a gateway that does not balance.
    Routed,
    /// Nobody: client and server on one wire.
    Direct,
}

impl Contender {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::Haproxy => "haproxy",
            Self::Nftables => "nftables",
            Self::Routed => "routed",
            Self::Direct => "direct",
        }
    }

    /// What it takes.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Haproxy => &["haproxy"],
            Self::Nftables => &["nft"],
            Self::Millrace | Self::Routed | Self::Direct => &[],
        }
    }

    /// Where clients connect to.
    pub fn targets(self, way: &Way) -> Vec<SocketAddr> {
        match self {
            Self::Millrace | Self::Haproxy | Self::Nftables => vec![way.vip()],
            Self::Routed | Self::Direct => way.endpoints(),
        }
    }

    /// Starts it on a way's gateway, on `core`; what is returned ends it. `dir` is the lab's.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(self, way: &Way, dir: &Path, core: usize) -> Option<Process> {
        let gateway = way.gateway.as_ref()?;
        let process = match self {
            Self::Millrace => Some(millrace(gateway, way, dir, core)),
            Self::Haproxy => Some(haproxy(gateway, way, dir)),
            Self::Nftables => {
                nftables(gateway, way, dir);
                None
            }
            Self::Routed => {
                gateway.sysctl("net.ipv4.ip_forward", "1");
                None
            }
            Self::Direct => None,
        };
        if let Some(process) = &process {
            cores::bind_process(process.pid(), core);
        }
        process
    }
}

fn millrace(host: &Host, way: &Way, dir: &Path, core: usize) -> Process {
    let vip = way.vip().ip();
    // All connections come from one address, which is more than a source is allowed by default.
    let config = format!(
        "interfaces: [{INNER}, {OUTER}]\nworkers: {{cores: [{core}]}}\npools: [{{name: public, addresses: [{vip}/32]}}]\n\
         snat: {{addresses: [{}]}}\nlimits: {{flows: 1000000, flowsPerSource: 1000000}}",
        way.snat()
    );
    let mut gateway = Gateway::new(host, dir, &config);
    let addresses: String = way.endpoints().iter().map(|e| format!("  - ip: {}\n", e.ip())).collect();
    gateway.manifest(
        "web.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    \
             millrace.dev/addresses: {vip}\nspec:\n  type: LoadBalancer\n  ports:\n  - port: 80\n    \
             targetPort: 8080\n---\napiVersion: v1\nkind: Endpoints\nmetadata:\n  name: web\nsubsets:\n\
             - addresses:\n{addresses}  ports:\n  - port: 8080\n"
        ),
    );
    gateway.start()
}

fn haproxy(host: &Host, way: &Way, dir: &Path) -> Process {
    let vip = way.vip();
    add_vip(host, way);
    let servers: String =
        way.endpoints().iter().enumerate().map(|(n, endpoint)| format!("  server b{n} {endpoint}\n")).collect();
    let config = dir.join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  \
         timeout server 30s\nfrontend web\n  bind {vip}\n  default_backend nginx\nbackend nginx\n  \
         balance roundrobin\n{servers}"
    );
    fs::write(&config, text).expect("HAProxy's configuration");
    let mut command = host.command("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    let log = dir.join("haproxy.log");
    let mut process = host.spawn("haproxy", command, &log);
    eventually("haproxy listens", Duration::from_secs(10), || {
        assert!(process.is_running(), "haproxy ended:\n{}", fs::read_to_string(&log).unwrap_or_default());
        let text = host.run("ss", ["-ltnH"]);
        if text.contains(&vip.to_string()) { Ok(()) } else { Err(text) }
    });
    process
}

/// As kube-proxy's nftables mode has it: a map of Services, a chain for the Service that draws an endpoint, a chain for
/// each endpoint, a mark for what is to be masqueraded.
fn nftables(host: &Host, way: &Way, dir: &Path) {
    let vip = way.vip();
    add_vip(host, way);
    host.sysctl("net.ipv4.ip_forward", "1");
    let (mut chains, mut draws) = (String::new(), Vec::new());
    for (n, endpoint) in way.endpoints().iter().enumerate() {
        chains.push_str(&format!("  chain endpoint-{n} {{ meta l4proto tcp dnat to {endpoint}; }}\n"));
        draws.push(format!("{n} : goto endpoint-{n}"));
    }
    let text = format!(
        "table ip balance\ndelete table ip balance\ntable ip balance {{\n{chains}  chain service-web {{\n    \
         mark set mark or 0x4000\n    numgen random mod {ENDPOINTS} vmap {{ {} }}\n  }}\n  map service-ips {{\n    \
         type ipv4_addr . inet_proto . inet_service : verdict\n    \
         elements = {{ {} . tcp . {} : goto service-web }}\n  }}\n  chain prerouting {{\n    \
         type nat hook prerouting priority dstnat; policy accept;\n    \
         ip daddr . meta l4proto . th dport vmap @service-ips\n  }}\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n    \
         mark and 0x4000 == 0 return\n    mark set mark xor 0x4000\n    masquerade fully-random\n  }}\n}}\n",
        draws.join(", "),
        vip.ip(),
        vip.port()
    );
    let file = dir.join("balance.nft");
    fs::write(&file, text).expect("the rules");
    host.run("nft", ["-f", &file.display().to_string()]);
    // As long as Millrace remembers a closed connection; the default of 120 s would fill the kernel's table in a bench.
    host.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "10");
}

/// Gives the gateway the address that is served, unless it has it.
fn add_vip(host: &Host, way: &Way) {
    host.run("ip", ["addr", "replace", &format!("{}/32", way.vip().ip()), "dev", INNER]);
}

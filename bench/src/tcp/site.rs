//! The site: a client and a server, and between them a gateway of its own for each way that connections may take.
//!
//! ```text
//!                     core of the load │ gateway's core │ core of the load
//! client c0 ── [near ⇄ far] ── in gateway out ── [near ⇄ far] ── s0 server      one such line for each way
//!        10.90.0.2        10.90.0.1   10.91.0.1            10.91.0.11 … .14
//! ```
//!
//! A veth's packet is received on the core of its sender, so each would do part of the other's work. Therefore every wire
//! has a joint in the middle (`[near ⇄ far]`, a namespace with two ends of veth, each redirected to the other by tc), where
//! receive packet steering moves packets by an interrupt to the core of whom they are for. So each receives in the softirq
//! of its own core, as from a NIC's interrupt; what the joint itself costs is paid by the receiving side, the same for
//! all.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use millrace_tests::lab::{Host, Lab, Process, run};
use millrace_tests::servers;

use super::Cores;
use crate::cores;

/// The gateway's interface towards the client.
pub const INNER: &str = "in";
/// The gateway's interface towards the server.
pub const OUTER: &str = "out";

/// Addresses that the server answers on, behind each way.
pub const ENDPOINTS: u8 = 4;

/// Client, server, and ways between them.
pub struct Site {
    /// Where connections come from.
    pub client: Host,
    server: Host,
    nginx: Option<Process>,
    ways: u8,
    /// Owns the namespaces: dropped last.
    pub lab: Lab,
}

/// One way from client to server.
pub struct Way {
    number: u8,
    /// What stands on it; on a wire that goes straight through, nothing does.
    pub gateway: Option<Host>,
}

impl Site {
    /// A client and a server, without a way yet.
    pub fn new() -> Self {
        let mut lab = Lab::new("bench-tcp");
        let client = lab.host("client");
        let server = lab.host("server");
        for host in [&client, &server] {
            host.sysctl("net.ipv4.ip_local_port_range", "1024 65535");
            host.sysctl("net.ipv4.tcp_tw_reuse", "1");
        }
        // One client address leaves the server thousands of TIME_WAITs a second. What a NAT's reuse of a port then costs
        // depends on the client's timestamps, not on who forwards, and takes 10 ms to 1 s: it would hide all else.
        server.sysctl("net.ipv4.tcp_max_tw_buckets", "0");
        Self { client, server, nginx: None, ways: 0, lab }
    }

    /// Adds a way with a gateway, or straight.
    pub fn way(&mut self, name: &str, straight: bool, at: Cores) -> Way {
        let number = self.ways;
        self.ways += 1;
        let gateway = (!straight).then(|| self.lab.host(name));
        let way = Way { number, gateway };
        let (client, server) = (self.client.clone(), self.server.clone());
        let (c, s) = (format!("c{number}"), format!("s{number}"));
        let (near, far) = ((&client, c.as_str(), at.load), (&server, s.as_str(), at.load));
        if let Some(gateway) = &way.gateway {
            self.wire(&format!("{name}-in"), near, (gateway, INNER, at.gateway));
            self.wire(&format!("{name}-out"), (gateway, OUTER, at.gateway), far);
            gateway.address(INNER, &format!("10.90.{number}.1/24"));
            gateway.address(OUTER, &format!("10.91.{number}.1/24"));
            gateway.sysctl("net.ipv4.ip_local_port_range", "1024 65535");
            gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
            client.address(&c, &format!("10.90.{number}.2/24"));
            client.route(&format!("10.91.{number}.0/24 via 10.90.{number}.1"));
        } else {
            self.wire(&format!("{name}-wire"), near, far);
            client.address(&c, &format!("10.91.{number}.2/24"));
        }
        for n in 0..ENDPOINTS {
            self.server.address(&s, &format!("{}/24", way.endpoint(n)));
        }
        if !straight {
            self.server.route(&format!("10.90.{number}.0/24 via 10.91.{number}.1"));
        }
        way
    }

    /// A wire with a joint; packets for each end are received on that end's core.
    fn wire(&mut self, name: &str, a: (&Host, &str, usize), b: (&Host, &str, usize)) {
        let joint = self.lab.host(name);
        for ((host, interface, _), end) in [(a, "near"), (b, "far")] {
            self.lab.wire((host, interface), (&joint, end), 1);
        }
        for (from, to, core) in [("near", "far", b.2), ("far", "near", a.2)] {
            joint.run("tc", ["qdisc", "add", "dev", from, "ingress"]);
            let all = format!("dev {from} parent ffff: protocol all u32 match u32 0 0");
            joint.run("tc", format!("filter add {all} action mirred egress redirect dev {to}").split(' '));
            // The interfaces of another namespace are seen in a mount of their own only.
            let steer = format!("echo {:x} > /sys/class/net/{from}/queues/rx-0/rps_cpus", 1_u128 << core);
            run("ip", ["netns", "exec", &joint.netns, "sh", "-c", &steer]);
        }
    }

    /// Starts the server behind all ways, on a core.
    pub fn serve(&mut self, ways: &[Way], core: usize) {
        let listen: Vec<String> =
            ways.iter().flat_map(|way| way.endpoints()).map(|endpoint| endpoint.to_string()).collect();
        let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
        let nginx = servers::nginx(&self.server, self.lab.dir(), "server", &listen);
        cores::bind_process(nginx.pid(), core);
        self.nginx = Some(nginx);
    }
}

impl Way {
    /// Where the gateway serves.
    pub fn vip(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 90, self.number, 100)), 80)
    }

    /// The gateway's own address towards the server, of replies to a Millrace.
    pub fn snat(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 91, self.number, 100))
    }

    /// Where the server answers.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        (0..ENDPOINTS).map(|n| SocketAddr::new(self.endpoint(n), 8080)).collect()
    }

    fn endpoint(&self, n: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 91, self.number, 11 + n))
    }
}

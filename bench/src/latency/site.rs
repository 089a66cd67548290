//! A client and a server, on one wire directly and on others through gateways.
//!
//! ```text
//! client ── direct ── server            10.83.1.1, .2
//! client ── eth0 gateway eth1 ── server 10.81.N.2, .1 / 10.82.N.1, .11, one gateway for each way of idling
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use millrace_tests::lab::{Host, Lab, Process};
use millrace_tests::millrace::Gateway;

/// The server's port.
pub const SERVER_PORT: u16 = 9000;
const VIP_PORT: u16 = 4000;
/// `/proc/PID/stat` counts in hundredths of a second wherever Linux shows it to users.
const TICK: Duration = Duration::from_millis(10);

/// What a worker without packets does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// It sleeps.
    Adaptive,
    /// It looks again and again.
    Busy,
}

impl Waiting {
    /// Its name, in the configuration and in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Busy => "busy",
        }
    }

    /// The number of its nets.
    fn net(self) -> u8 {
        self as u8 + 1
    }
}

/// All hosts and wires.
pub struct Site {
    /// Who sends.
    pub client: Host,
    /// Who receives.
    pub server: Host,
    gateways: [Host; 2],
    /// Owns the namespaces: dropped last.
    lab: Lab,
}

/// A running `millrace`, ended when it is dropped.
pub struct Instance {
    process: Process,
    /// How it idles.
    pub waiting: Waiting,
}

impl Site {
    /// Makes them.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn new() -> Self {
        let mut lab = Lab::new("latency");
        let (client, server) = (lab.host("client"), lab.host("server"));
        lab.wire((&client, "direct"), (&server, "direct"), 1);
        client.address("direct", "10.83.1.1/24");
        server.address("direct", "10.83.1.2/24");
        let gateways = [Waiting::Adaptive, Waiting::Busy].map(|waiting| {
            let gateway = lab.host(waiting.name());
            let (name, net) = (waiting.name(), waiting.net());
            lab.wire((&client, name), (&gateway, "eth0"), 1);
            lab.wire((&gateway, "eth1"), (&server, name), 1);
            client.address(name, &format!("10.81.{net}.2/24"));
            gateway.address("eth0", &format!("10.81.{net}.1/24"));
            gateway.address("eth1", &format!("10.82.{net}.1/24"));
            server.address(name, &format!("10.82.{net}.11/24"));
            gateway
        });
        Self { client, server, gateways, lab }
    }

    /// Where the server is reached directly.
    pub fn direct(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 83, 1, 2), SERVER_PORT)
    }

    /// Where it is reached through Millrace.
    pub fn through(&self, waiting: Waiting) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 81, waiting.net(), 100), VIP_PORT)
    }

    /// Starts Millrace on its gateway, with its worker on `core`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(&self, waiting: Waiting, core: usize) -> Instance {
        let (name, net, vip) = (waiting.name(), waiting.net(), *self.through(waiting).ip());
        let config = format!(
            "interfaces: [eth0, eth1]\nworkers: {{cores: [{core}], idle: {name}}}\n\
             pools: [{{name: public, addresses: [{vip}/32]}}]\nsnat: {{addresses: [10.82.{net}.100]}}"
        );
        let manifest = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: bench\n  annotations:\n    \
             millrace.dev/addresses: {vip}\nspec:\n  type: LoadBalancer\n  ports:\n  \
             - {{port: {VIP_PORT}, targetPort: {SERVER_PORT}, protocol: UDP}}\n---\n\
             apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: bench\nsubsets:\n\
             - addresses: [{{ip: 10.82.{net}.11}}]\n  ports:\n  - {{port: {SERVER_PORT}, protocol: UDP}}\n"
        );
        let mut gateway = Gateway::new(&self.gateways[usize::from(net) - 1], &self.lab.dir().join(name), &config);
        gateway.manifest("bench.yaml", &manifest);
        Instance { process: gateway.start(), waiting }
    }
}

impl Instance {
    /// Processor time that all its threads took so far, in the kernel too.
    ///
    /// # Panics
    /// If it does not run.
    pub fn processor_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.process.pid());
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        // Behind the name in parentheses, which may hold anything: state is the first word, utime and stime the 12th
        // and 13th.
        let words = text.rsplit(')').next().expect("there is always one").split_whitespace();
        let ticks: u32 = words.skip(11).take(2).filter_map(|word| word.parse::<u32>().ok()).sum();
        TICK * ticks
    }
}

//! Two network namespaces, client and gateway, with a veth pair between them and a bpffs; all gone when dropped.
//!
//! Needs root and iproute2 and says so. Threads enter a namespace by `setns`: `ip netns exec` would make a mount
//! namespace of its own each time, in which pins vanish.

use std::{
    fs::File,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use millrace_xsk::{Frame, Queue, QueueConfig, Steering, Umem, XskQueue, mount_bpffs, unmount_bpffs};
use nix::sched::{CloneFlags, setns};

pub const CLIENT: &str = "cl0";
pub const GATEWAY: &str = "gw0";
pub const CLIENT_ADDRESS: &str = "10.77.0.1";
pub const GATEWAY_ADDRESS: &str = "10.77.0.2";
pub const CLIENT_ADDRESS_6: &str = "fd77::1";
pub const GATEWAY_ADDRESS_6: &str = "fd77::2";

/// How long a test waits for what it needs.
const PATIENCE: Duration = Duration::from_secs(5);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(tag: &str) -> Namespace {
        let name = format!("mx-{}-{}-{tag}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let namespace = Namespace { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// `ip ARGUMENTS` in this namespace.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    /// Any command in this namespace.
    pub fn run(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// Runs `work` on a thread of its own in this namespace, and passes on its panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub struct Lab {
    pub client: Namespace,
    pub gateway: Namespace,
    pub bpf: PathBuf,
}

impl Lab {
    pub fn new(queues: u32) -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let client = Namespace::new("cl");
        let gateway = Namespace::new("gw");
        let bpf = PathBuf::from(format!("/run/{}-bpf", gateway.name));
        let lab = Lab { client, gateway, bpf };
        mount_bpffs(&lab.bpf).expect("a bpffs");
        run(&format!(
            "ip link add {CLIENT} netns {} numrxqueues {queues} numtxqueues {queues} type veth \
             peer name {GATEWAY} netns {} numrxqueues {queues} numtxqueues {queues}",
            lab.client.name, lab.gateway.name
        ));
        // Checksums are computed by the sender, as on a wire.
        lab.client.run(&format!("ethtool -K {CLIENT} tx off gro off"));
        for (namespace, interface, address, address_6) in [
            (&lab.client, CLIENT, CLIENT_ADDRESS, CLIENT_ADDRESS_6),
            (&lab.gateway, GATEWAY, GATEWAY_ADDRESS, GATEWAY_ADDRESS_6),
        ] {
            namespace.ip(&format!("addr add {address}/24 dev {interface}"));
            namespace.ip(&format!("addr add {address_6}/64 dev {interface} nodad"));
            namespace.ip(&format!("link set {interface} up"));
        }
        // Neighbours are known, so that what arrives is what was sent.
        let gateway_mac = mac(&lab.gateway, GATEWAY);
        let client_mac = mac(&lab.client, CLIENT);
        for address in [GATEWAY_ADDRESS, GATEWAY_ADDRESS_6] {
            lab.client.ip(&format!("neigh replace {address} lladdr {gateway_mac} dev {CLIENT}"));
        }
        for address in [CLIENT_ADDRESS, CLIENT_ADDRESS_6] {
            lab.gateway.ip(&format!("neigh replace {address} lladdr {client_mac} dev {GATEWAY}"));
        }
        lab
    }

    /// Tells the client that the gateway has `address`.
    pub fn resolve(&self, address: IpAddr) {
        let mac = mac(&self.gateway, GATEWAY);
        self.client.ip(&format!("neigh replace {address} lladdr {mac} dev {CLIENT}"));
    }

    /// The XDP program on the gateway's interface, as `ip` tells.
    pub fn xdp(&self) -> Option<serde_json::Value> {
        let links: serde_json::Value =
            serde_json::from_str(&self.gateway.ip(&format!("-j link show dev {GATEWAY}"))).expect("JSON of ip");
        links[0].get("xdp").cloned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = unmount_bpffs(&self.bpf);
    }
}

fn mac(namespace: &Namespace, interface: &str) -> String {
    let links: serde_json::Value =
        serde_json::from_str(&namespace.ip(&format!("-j link show dev {interface}"))).expect("JSON of ip");
    links[0]["address"].as_str().expect("a MAC address").to_owned()
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a command");
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {complaint} (these tests need root, iproute2 and ethtool)");
    String::from_utf8(output.stdout).expect("text")
}

/// Waits for `condition`, with a deadline.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// A UMEM with its sockets on the gateway's queues, and every frame accounted for.
pub struct Port {
    pub umem: Umem,
    pub queues: Vec<XskQueue>,
    pub pool: Vec<Frame>,
}

impl Port {
    /// Binds `queues` sockets in the calling thread's namespace.
    pub fn bind(queues: u32, steering: &mut Steering) -> Port {
        let (umem, pool) = Umem::new(512 * queues, 2048, false).expect("a UMEM");
        let config = QueueConfig { ring_size: 128, ..QueueConfig::default() };
        let bind = |queue| XskQueue::bind(&umem, GATEWAY, queue, &config).expect("a socket");
        let queues: Vec<XskQueue> = (0..queues).map(bind).collect();
        for queue in &queues {
            steering.insert_socket(queue.queue(), queue.socket()).expect("room in the socket map");
        }
        let mut port = Port { umem, queues, pool };
        port.turn();
        port
    }

    /// Refills, kicks and reclaims every queue.
    pub fn turn(&mut self) {
        for queue in &mut self.queues {
            while queue.reclaim(&mut self.pool) > 0 {}
            while queue.refill(&mut self.pool) > 0 {}
            queue.kick();
        }
    }

    /// The next frame that satisfies `wanted` and its queue; others go back to the pool.
    pub fn expect(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> (usize, Frame) {
        self.seek(PATIENCE, wanted).unwrap_or_else(|| panic!("waited in vain for {what}"))
    }

    /// As `expect`, but nothing if no such frame comes in `time`.
    pub fn seek(&mut self, time: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<(usize, Frame)> {
        let mut got = Vec::with_capacity(64);
        let deadline = Instant::now() + time;
        loop {
            self.turn();
            let mut found = None;
            for (number, queue) in self.queues.iter_mut().enumerate() {
                queue.receive(&mut got, 1);
                for frame in got.drain(..) {
                    if found.is_none() && wanted(self.umem.packet(&frame)) {
                        found = Some((number, frame));
                    } else {
                        self.pool.push(frame);
                    }
                }
                if found.is_some() {
                    return found;
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Waits until everything sent has come home, and asserts that no frame is missing.
    pub fn assert_conserved(&mut self) {
        wait_for("the completion of what was sent", || {
            self.turn();
            self.queues.iter().all(|queue| queue.in_flight() == 0).then_some(())
        });
        let held: usize = self.queues.iter().map(Queue::held).sum();
        assert_eq!(self.pool.len() + held, self.umem.frames() as usize, "frames are lost or doubled");
        for queue in &self.queues {
            let statistics = queue.statistics();
            assert_eq!((statistics.rx_invalid_descs, statistics.tx_invalid_descs, statistics.kick_errors), (0, 0, 0));
        }
    }
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

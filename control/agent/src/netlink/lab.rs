//! Network namespaces for tests of this crate: each has a name of its own, and goes away with its guard.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// How long a condition may take to hold.
pub const DEADLINE: Duration = Duration::from_secs(20);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A host of its own.
pub struct Namespace(String);

impl Namespace {
    /// A new one, with its loopback up and without duplicate address detection (addresses work at once).
    pub fn new() -> Self {
        let name = format!("mr-agent-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let namespace = Self(name);
        namespace.run("ip link set lo up");
        namespace.run("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
        namespace
    }

    /// Runs a command in it; its words are separated by blanks.
    pub fn run(&self, words: &str) {
        self.read(words);
    }

    /// Runs a command in it and returns what it printed.
    pub fn read(&self, words: &str) -> String {
        let mut all = vec!["ip", "netns", "exec", &self.0];
        all.extend(words.split(' '));
        run(&all)
    }

    /// A wire from `name` here to `other_name` in `other`, with these addresses; both ends up.
    pub fn wire(&self, name: &str, addresses: &[&str], other: &Namespace, other_name: &str, other_addresses: &[&str]) {
        let peer = &other.0;
        self.run(&format!(
            "ip link add {name} numrxqueues 2 numtxqueues 2 type veth peer name {other_name} netns {peer}"
        ));
        for (namespace, name, addresses) in [(self, name, addresses), (other, other_name, other_addresses)] {
            for address in addresses {
                namespace.run(&format!("ip addr add {address} dev {name}"));
            }
            namespace.run(&format!("ip link set {name} up"));
        }
    }

    /// Runs `work` on a thread in it, and returns what it returns.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a future on a runtime of one thread in it.
    pub fn block_on<F: Future<Output: Send + 'static>>(&self, make: impl FnOnce() -> F + Send + 'static) -> F::Output {
        self.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { tokio::time::timeout(3 * DEADLINE, make()).await.expect("within the deadline") })
        })
    }

    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.0);
        thread::spawn(move || {
            setns(File::open(path).expect("the namespace"), CloneFlags::CLONE_NEWNET).expect("to enter it");
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the command");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Looks at `condition` again whenever the receiver tells of a change, until it holds.
///
/// # Panics
/// If that takes longer than [`DEADLINE`].
pub async fn until(what: &str, changes: &mut tokio::sync::watch::Receiver<u64>, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            changes.changed().await.expect("somebody who tells of changes");
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"));
}

/// Looks at `condition` until it gives a value: for what nobody tells of.
///
/// # Panics
/// If that takes longer than [`DEADLINE`].
pub async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        loop {
            if let Some(value) = condition() {
                return value;
            }
            pace.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

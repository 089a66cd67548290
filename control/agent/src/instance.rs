//! The running instance as all of its parts see it.
//!
//! The control thread writes [`View`] and the registry; admin, metrics and signals read. Locks here are never held
//! across I/O of a peer, and the packet path takes none of them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use lb::list::List;
use lb::model::ServicePortKey;
use lb::registry::Registry;
use lb::shared::Shared;
use lb::tables::Origin;
use lb::{ServiceId, Tables};
use publish::Slot;
use tokio::sync::watch;
use translate::{Drained, Finding, Pool, Translation};
use worker::Dataplane;
use xsk::{AttachMode, Steering};

use crate::announce::Announcer;
use crate::config::Config;
use crate::control::Event;
use crate::health::Health;
use crate::kernel_port::Redirected;
use crate::kubernetes::Cluster;
use crate::manifests::Watch;
use crate::metrics::Durations;
use crate::netlink::Network;
use crate::node_health::NodeHealth;
use crate::owners::Owners;
use crate::steering::SnatSource;

/// A NIC as it came up.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Its index: that of the interface which has the sockets and the steering program.
    pub ifindex: u32,
    /// Native or generic.
    pub mode: AttachMode,
    /// Whether all queues are zero-copy.
    pub zero_copy: bool,
    /// How many queues have sockets.
    pub queues: u32,
    /// Largest IP packet.
    pub mtu: u32,
}

/// What moves packets; gone after it was handed to a successor.
pub struct Plane {
    /// The workers.
    pub dataplane: Dataplane,
    /// What they share.
    pub shared: Arc<Shared>,
}

/// What the control thread did last.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Of the tables in force.
    pub generation: u64,
    /// What is served.
    pub translation: Translation,
    /// What is wrong with the manifests as they are.
    pub findings: Vec<Finding>,
    /// Files of which an older text counts.
    pub kept: Vec<String>,
    /// How many files there are.
    pub files: usize,
    /// The pools that count, in their order.
    pub pools: Vec<Pool>,
    /// When the tables came in force.
    pub at: Option<SystemTime>,
    /// What went wrong outside the manifests.
    pub trouble: Option<String>,
    /// Service ports and their ids, by key.
    pub ids: List<Origin>,
    /// Backends that get no new flows by order.
    pub drained: BTreeSet<Drained>,
    /// Whether no new flows are taken, for it is to stop.
    pub draining: bool,
}

impl View {
    /// Service ports by id.
    #[must_use]
    pub fn names(&self) -> HashMap<ServiceId, &ServicePortKey> {
        self.ids.iter().map(|origin| (origin.id, &origin.port.key)).collect()
    }
}

/// All of it. Who holds several locks takes them in the order registry, plane, steering, and none twice.
pub struct Instance {
    /// The configuration in force.
    pub config: RwLock<Arc<Config>>,
    /// When the process started.
    pub started: Instant,
    /// NICs by port id; filled when they are up.
    pub ports: RwLock<Vec<PortInfo>>,
    /// The manifests.
    pub manifests: Watch,
    /// The API server in their place.
    pub cluster: Option<Cluster>,
    /// The kernel's network state.
    pub network: Arc<Network>,
    /// Announcements.
    pub announcer: Arc<Announcer>,
    /// Who settles with other nodes which VIPs this one announces, where they do.
    pub owners: Option<Owners>,
    /// Health checks.
    pub health: Arc<Health>,
    /// What workers read.
    pub tables: Arc<Slot<Tables>>,
    /// What moves packets.
    pub plane: RwLock<Option<Plane>>,
    /// Ids; `None` before the flow file is open and after a hand-over.
    pub registry: Mutex<Option<Registry>>,
    /// Steering programs by port id.
    pub steering: Mutex<Vec<Steering>>,
    /// SNAT addresses.
    pub snat: Vec<SnatSource>,
    /// Addresses that tunnels to endpoints start at.
    pub tunnels: Vec<IpAddr>,
    /// Addresses that the host's own packets reach by the kernel port.
    pub inward: watch::Sender<BTreeSet<IpNet>>,
    /// NodePorts that the host's own packets reach by the kernel port.
    pub redirected: watch::Sender<Redirected>,
    /// What load balancers outside are told of this node.
    pub node_health: NodeHealth,
    /// What the control thread did last.
    pub view: RwLock<Arc<View>>,
    /// To the control thread.
    pub events: mpsc::Sender<Event>,
    /// How long changes took.
    pub updates: Durations,
    /// Times that the control thread was started again.
    pub restarts: AtomicU64,
    /// When the control thread last went round, in milliseconds since the start.
    pub heartbeat: AtomicU64,
    /// Queues and flow file are a successor's, and with them state, steering and announcements. Set under the lock of
    /// [`Instance::registry`], and looked at under it by whoever writes those.
    pub released: AtomicBool,
}

/// A poisoned lock's value is whole all the same: every writer replaces it in one step.
fn through<G>(result: Result<G, PoisonError<G>>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl Instance {
    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&*through(self.config.read()))
    }

    /// What the control thread did last.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&*through(self.view.read()))
    }

    /// Replaces the view.
    pub fn set_view(&self, view: View) {
        *through(self.view.write()) = Arc::new(view);
    }

    /// What moves packets, if it is here. Nobody may ask twice at a time: whoever waits to take it out stands between.
    pub fn plane(&self) -> RwLockReadGuard<'_, Option<Plane>> {
        through(self.plane.read())
    }

    /// The same, to put it in or take it out.
    pub fn plane_mut(&self) -> RwLockWriteGuard<'_, Option<Plane>> {
        through(self.plane.write())
    }

    /// Ids.
    pub fn registry(&self) -> MutexGuard<'_, Option<Registry>> {
        through(self.registry.lock())
    }

    /// SYNs that the steering programs dropped beyond their addresses' rate.
    #[must_use]
    pub fn syn_flood_dropped(&self) -> u64 {
        self.steering().iter().map(|steering| steering.counters().syn_flood_dropped).sum()
    }

    /// Steering programs.
    pub fn steering(&self) -> MutexGuard<'_, Vec<Steering>> {
        through(self.steering.lock())
    }

    /// NICs as they came up.
    #[must_use]
    pub fn ports(&self) -> Vec<PortInfo> {
        through(self.ports.read()).clone()
    }

    /// Says which NICs came up.
    pub fn set_ports(&self, ports: Vec<PortInfo>) {
        *through(self.ports.write()) = ports;
    }

    /// What is wrong with NICs that got more receive queues since their sockets were bound, and what to do.
    #[must_use]
    pub fn unserved_queues(&self) -> Option<String> {
        let (ports, links) = (self.ports(), self.network.links());
        let mut more = ports.iter().zip(&links).filter(|(port, link)| link.up && link.rx_queues > port.queues);
        more.next().map(|(port, link)| {
            let PortInfo { name, queues, .. } = port;
            format!(
                "{name} has {} receive queues now, and {queues} have sockets: packets for the service addresses on the \
                 others are lost. Start a successor (`millrace run` beside this one), or take the change back with \
                 `ethtool -L {name}`",
                link.rx_queues
            )
        })
    }

    /// Why this can serve no longer and another start can: a NIC was made anew, without sockets and steering, or something
    /// that must go on has ended.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        if let Some(why) = self.plane().as_ref().and_then(|plane| plane.dataplane.failed()) {
            return Some(format!("a worker failed ({why})"));
        }
        let (ports, links) = (self.ports(), self.network.links());
        let anew = ports.iter().zip(&links).find(|(port, link)| link.up && link.ifindex != port.ifindex);
        if let Some((PortInfo { name, .. }, _)) = anew {
            return Some(format!("{name} was taken away and made anew, and nothing on it is served"));
        }
        if let Some(why) = self.network.failed() {
            return Some(format!("routes and neighbours are no longer followed ({why})"));
        }
        let thread = self.ended_thread()?;
        Some(format!("the thread `{thread}` ended, see above why"))
    }

    /// The name of a thread that must go on, and has ended.
    fn ended_thread(&self) -> Option<&'static str> {
        if self.manifests.has_ended() {
            return Some("manifests");
        }
        if self.cluster.as_ref().is_some_and(Cluster::has_ended) {
            return Some("kubernetes");
        }
        self.owners.as_ref().is_some_and(Owners::has_ended).then_some("heartbeats")
    }

    /// The control thread went round.
    pub fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heartbeat.store(now, Ordering::Relaxed);
    }

    /// How long the control thread has not gone round.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.heartbeat.load(Ordering::Relaxed)))
    }

    /// Whether packets are moved by tables that were built, and new flows are taken.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.moves(self.plane().as_ref()) && !self.view().draining
    }

    /// Whether packets are moved, for who has asked for the plane already.
    #[must_use]
    pub fn moves(&self, plane: Option<&Plane>) -> bool {
        self.view().generation > 0 && plane.is_some_and(|plane| plane.dataplane.failed().is_none())
    }

    /// What this node owns of the VIPs that several nodes may announce.
    #[must_use]
    pub fn owned(&self) -> BTreeSet<IpAddr> {
        self.owners.as_ref().map(|owners| owners.owned().as_ref().clone()).unwrap_or_default()
    }

    /// Stops the workers and lets go of queues and flow file, steering and flows left as they are. What was lost of
    /// frames is logged. Whether there was anything to release.
    pub fn release(&self) -> bool {
        if let Some(owners) = &self.owners {
            // Other nodes wait for a successor before they take what this one owns.
            owners.hand_over();
        }
        let registry = {
            let mut registry = self.registry();
            self.released.store(true, Ordering::Relaxed);
            registry.take()
        };
        if let Some(cluster) = &self.cluster {
            cluster.allot(None);
        }
        let Some(Plane { dataplane, shared }) = self.plane_mut().take() else { return false };
        let report = dataplane.stop();
        if !report.frames.balanced() {
            tracing::error!(frames = ?report.frames, "frames are not where they should be");
        }
        tracing::info!(frames = report.frames.total, lost = report.frames.lost(), "workers stopped");
        drop((report, registry, shared));
        true
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("ready", &self.ready()).finish_non_exhaustive()
    }
}

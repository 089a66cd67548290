//! An API server as the source of objects: Services, EndpointSlices, Nodes, and Endpoints that no slice mirrors.
//!
//! A thread of its own lists and watches each kind (`follow`) into a store (`store`); the control thread takes what is
//! there when it is told that something changed, and waits no longer than a millisecond for more. Nothing is taken before
//! every kind was listed whole. From then on a lost API server changes nothing: what was seen last counts, and is kept
//! under `state` (`last_good`) for a node that starts without one.
//!
//! One of all nodes gives Services their addresses (`allocator`), from the pools of the configuration and of the cluster
//! (`address_pool`).
//!
//! Sources: the list and watch protocol of the Kubernetes API (<https://kubernetes.io/docs/reference/using-api/api-concepts/>).

mod access;
mod address_pool;
mod allocator;
mod client;
mod follow;
mod kinds;
mod last_good;
mod lease;
mod node_lease;
mod node_ports;
mod service_ranges;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use tokio::sync::{Notify, oneshot, watch};
use translate::{AddressRange, Finding, Labels, Located, Objects, Pool};

use access::ApiServer;
use address_pool::AddressPool;
use allocator::Allocator;
use last_good::{Keeping, LastGood};
use store::{Key, Stores};

pub use access::Access;
pub use address_pool::merged;
pub use allocator::{Report, Rules};
pub use client::{answers, check};
pub use node_lease::{NodeLease, RENEW};
pub use node_ports::{no_node_ports, node_port_addresses};
pub use service_ranges::routable;

/// How long a start that has last good objects waits for an API server.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after a change last good objects are written at the earliest; an end in order writes them too.
const KEEP: Duration = Duration::from_secs(5);
/// The longest rest between two writes, where there is much to write, or the last one failed.
const KEEP_MOST: Duration = Duration::from_secs(60);
/// How long an end waits for the allocator's Lease to be released.
const LEAVE: Duration = Duration::from_secs(1);

/// What there is now.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Ordered by namespace and name; what did not change is shared with the snapshot before.
    pub objects: Objects,
    /// The cluster's own pools.
    pub pools: Arc<Vec<Pool>>,
    /// What no Service may have, and what it is.
    pub reserved: Vec<(AddressRange, String)>,
    /// Where ClusterIPs come from, as far as the API server says so.
    pub service_ranges: Vec<IpNet>,
    /// Whether every kind was listed: nothing is of what was kept.
    pub listed: bool,
    /// What is wrong with them that an API server does not know.
    pub findings: Arc<Vec<Finding>>,
    /// When the first was seen of what changed since the snapshot before.
    pub since: Option<Instant>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Not every kind was listed yet.
    Listing,
    /// The same, and why some kind cannot be.
    Failing(String),
    /// Every kind was.
    Synced,
}

/// What the thread and who takes from it share.
struct Shared {
    inner: Mutex<Inner>,
    phase: watch::Sender<Phase>,
    /// Something is to be kept.
    unkept: Notify,
    /// Something changed that addresses may depend on.
    unallotted: Notify,
    /// By what addresses are given; `None`: by another instance.
    rules: watch::Sender<Option<Arc<Rules>>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    stores: Stores,
    /// Until every kind was listed: what was kept.
    before: Option<Stores>,
    /// Since when something changed that nobody took.
    since: Option<Instant>,
    /// The kinds that cannot be followed now, and why.
    troubles: BTreeMap<&'static str, String>,
    /// Why addresses cannot be given.
    hindrance: Option<String>,
    report: Report,
    findings: Arc<Vec<Finding>>,
    pools: Arc<Vec<Pool>>,
    /// The revisions of the Services and pools that these were made of.
    judged: Option<(u64, u64)>,
}

/// Follows an API server; dropping it ends that and keeps what was seen last.
pub struct Cluster {
    shared: Arc<Shared>,
    quit: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Cluster {
    /// Starts to follow, from what is kept below `state`, and calls `changed` when there is something to take.
    ///
    /// # Errors
    /// If the thread cannot be started, or the configuration of the client cannot be had.
    pub fn start(access: &Access, state: &Path, changed: impl Fn() + Send + Sync + 'static) -> Result<Self, String> {
        check(&access.settings)?;
        let kept = LastGood::in_folder(state);
        let before = kept.read();
        let inner = Inner {
            stores: before.clone().unwrap_or_default(),
            before,
            since: None,
            troubles: BTreeMap::new(),
            hindrance: None,
            report: Report::default(),
            findings: Arc::default(),
            pools: Arc::default(),
            judged: None,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            phase: watch::Sender::new(Phase::Listing),
            unkept: Notify::new(),
            unallotted: Notify::new(),
            rules: watch::Sender::new(None),
            changed: Box::new(changed),
        });
        let (quit, ends) = oneshot::channel();
        access.learn_from(&shared);
        let (theirs, access) = (Arc::clone(&shared), access.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start to follow the API server: {error}"))?;
        let thread = thread::Builder::new()
            .name("kubernetes".to_owned())
            .spawn(move || runtime.block_on(serve(theirs, access, kept, ends)))
            .map_err(|error| format!("cannot start to follow the API server: {error}"))?;
        Ok(Self { shared, quit: Some(quit), thread: Some(thread) })
    }

    /// Whether the API server is followed no longer.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(thread::JoinHandle::is_finished)
    }

    /// Waits until there is something to serve: every kind was listed; or, where objects were kept, an API server does
    /// not answer.
    pub async fn await_first(&self) {
        let mut phase = self.shared.phase.subscribe();
        let has_before = self.shared.inner().before.is_some();
        let settled = phase.wait_for(|phase| match phase {
            Phase::Listing => false,
            Phase::Failing(_) => has_before,
            Phase::Synced => true,
        });
        if has_before {
            let _ = tokio::time::timeout(PATIENCE, settled).await;
            if self.shared.inner().before.is_some() {
                tracing::warn!("no API server answers: what was seen last is served");
            }
        } else {
            let _ = settled.await;
        }
    }

    /// What there is; from now on a change is told again.
    #[must_use]
    pub fn take(&self) -> Snapshot {
        self.shared.inner().take()
    }

    /// Why the API server cannot be followed now, or addresses cannot be given.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let inner = self.shared.inner();
        let Some((kind, why)) = inner.troubles.first_key_value() else {
            return inner.hindrance.as_ref().map(|why| format!("addresses cannot be given: {why}"));
        };
        Some(format!("{kind} cannot be followed: {why}; what was seen last is served"))
    }

    /// Each kind, and whether it was listed whole and can be followed.
    #[must_use]
    pub fn synced(&self) -> Vec<(&'static str, bool)> {
        let inner = self.shared.inner();
        let synced = |(kind, listed)| (kind, listed && !inner.troubles.contains_key(kind));
        inner.stores.listed().into_iter().map(synced).collect()
    }

    /// Takes part in giving addresses, by these rules; with none, no more: that is another instance's on this node.
    pub fn allot(&self, rules: Option<Rules>) {
        self.shared.rules.send_replace(rules.map(Arc::new));
    }

    /// How giving addresses goes here.
    #[must_use]
    pub fn allocator(&self) -> Report {
        self.shared.inner().report.clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("phase", &*self.shared.phase.borrow()).finish_non_exhaustive()
    }
}

impl Inner {
    fn take(&mut self) -> Snapshot {
        let since = self.since.take();
        let Inner { stores, before, findings, pools, judged, .. } = self;
        let listed = before.is_none() && stores.all_listed();
        let stores = before.as_ref().unwrap_or(stores);
        let objects = stores.objects();
        let revisions = Some((stores.services.revision(), stores.pools.revision()));
        if std::mem::replace(judged, revisions) != revisions {
            let (made, wrong) = address_pool::pools(&stores.pools.objects());
            let found = objects.services.iter().flat_map(|service| translate::judge_annotations(service));
            *findings = Arc::new(wrong.into_iter().chain(found).collect());
            *pools = Arc::new(made);
        }
        let ranges = address_pool::service_ranges(&stores.service_ranges.objects());
        let service_ranges = ranges.iter().map(|(range, _)| *range).collect();
        let reserved = ranges.into_iter().map(|(range, what)| (range.into(), what)).collect();
        let (pools, findings) = (Arc::clone(pools), Arc::clone(findings));
        Snapshot { objects, pools, reserved, service_ranges, listed, findings, since }
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change of a store is one step: what a panic leaves behind is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a store; tells who takes if it did, and everything may be taken.
    fn change<T>(&self, change: impl FnOnce(&mut Stores) -> (bool, T)) -> T {
        let mut inner = self.inner();
        let (changed, result) = change(&mut inner.stores);
        let tell = changed && self.note(&mut inner);
        drop(inner);
        if tell {
            (self.changed)();
        }
        result
    }

    /// Notes a change. Whether it is to be told.
    fn note(&self, inner: &mut Inner) -> bool {
        if *self.phase.borrow() != Phase::Synced {
            return false;
        }
        self.unkept.notify_one();
        self.unallotted.notify_one();
        let told = inner.since.is_some();
        inner.since.get_or_insert_with(Instant::now);
        !told
    }

    /// What addresses depend on.
    fn allocatable(&self) -> (Objects, BTreeMap<String, Labels>) {
        self.inner().stores.allocatable()
    }

    /// The version of a Service, if it is still this one.
    fn version_of(&self, key: &Key, service: &Arc<Located<Service>>) -> Option<u64> {
        let inner = self.inner();
        let entry = inner.stores.services.get(key).filter(|entry| Arc::ptr_eq(&entry.object, service))?;
        Some(entry.version)
    }

    /// What is kept for a start without an API server.
    fn to_keep(&self) -> Keeping {
        let mut inner = self.inner();
        ApiServer::known(&mut inner.stores);
        Keeping::of(&inner.stores)
    }

    fn with_stores<T>(&self, look: impl FnOnce(&Stores) -> T) -> T {
        look(&self.inner().stores)
    }

    /// How giving addresses goes.
    fn report(&self, report: Report) {
        self.inner().report = report;
    }

    /// Addresses cannot be given, or can again.
    fn hindered(&self, why: Option<String>) {
        let mut inner = self.inner();
        if inner.hindrance == why {
            return;
        }
        inner.hindrance.clone_from(&why);
        drop(inner);
        match why {
            Some(why) => tracing::error!("addresses cannot be given: {why}"),
            None => tracing::info!("addresses can be given again"),
        }
        (self.changed)();
    }

    /// A kind was listed whole, and what it lost is confirmed.
    fn listed(&self) {
        let mut inner = self.inner();
        if !inner.stores.all_listed() || *self.phase.borrow() == Phase::Synced {
            return;
        }
        (inner.before, inner.judged) = (None, None);
        // Before anything can empty it.
        ApiServer::known(&mut inner.stores);
        self.phase.send_replace(Phase::Synced);
        tracing::info!(objects = %inner.stores.count(), "the API server's objects are listed");
        let tell = self.note(&mut inner);
        drop(inner);
        if tell {
            (self.changed)();
        }
    }

    /// A kind can be followed.
    fn works(&self, kind: &'static str) {
        let mut inner = self.inner();
        if inner.troubles.remove(kind).is_some() && inner.troubles.is_empty() {
            drop(inner);
            tracing::info!("the API server answers again");
            (self.changed)();
        }
    }

    /// A kind cannot be followed.
    fn fails(&self, kind: &'static str, why: String) {
        let mut inner = self.inner();
        let known = inner.troubles.values().any(|known| *known == why);
        let first = inner.troubles.is_empty();
        inner.troubles.insert(kind, why.clone());
        drop(inner);
        if !known {
            tracing::error!(kind, "cannot be followed: {why}; what was seen last is served");
        }
        self.phase.send_if_modified(|phase| {
            let modified = *phase != Phase::Synced;
            if modified {
                *phase = Phase::Failing(why);
            }
            modified
        });
        if first {
            (self.changed)();
        }
    }
}

async fn serve(shared: Arc<Shared>, access: Access, kept: LastGood, ends: oneshot::Receiver<()>) {
    let mut allocator = Allocator::default();
    let all = async {
        tokio::join!(
            follow::follow::<Service>(&shared, &access),
            follow::follow::<EndpointSlice>(&shared, &access),
            follow::follow::<Endpoints>(&shared, &access),
            follow::follow::<Node>(&shared, &access),
            follow::follow::<Namespace>(&shared, &access),
            follow::follow::<ServiceCIDR>(&shared, &access),
            follow::follow::<AddressPool>(&shared, &access),
            allocator.run(&shared, &access),
            keep(&shared, &kept),
        )
    };
    tokio::select! {
        _ = all => {}
        _ = ends => {}
    }
    let _ = tokio::time::timeout(LEAVE, allocator.leave()).await;
    if *shared.phase.borrow() == Phase::Synced {
        let _ = kept.write(&shared.to_keep());
    }
}

/// Keeps what was seen last, on a thread of its own: it may be much, and the folder slow.
async fn keep(shared: &Shared, kept: &LastGood) {
    let mut rested = Instant::now();
    loop {
        shared.unkept.notified().await;
        // Not while the change is on its way into force; and a hundredth of the time goes there at most.
        tokio::time::sleep_until(rested.max(Instant::now() + KEEP).into()).await;
        let began = Instant::now();
        let (keeping, kept) = (shared.to_keep(), kept.clone());
        let written = tokio::task::spawn_blocking(move || kept.write(&keeping)).await;
        let rest = match written {
            Ok(true) => began.elapsed().saturating_mul(100).min(KEEP_MOST),
            _ => {
                shared.unkept.notify_one();
                KEEP_MOST
            }
        };
        rested = Instant::now() + rest;
    }
}

/// What topology rules compare this node with: what is configured, else its name (`NODE_NAME`, else the host's) and what
/// its Node says.
#[must_use]
pub fn this_node(configured: &translate::Node, nodes: &[Arc<translate::Located<Node>>]) -> translate::Node {
    let hostname = configured.hostname.clone().or_else(node_name);
    let named = |node: &&Arc<translate::Located<Node>>| {
        hostname.is_some() && node.object.metadata.name.as_deref() == hostname.as_deref()
    };
    let labels = nodes.iter().find(named).and_then(|node| node.object.metadata.labels.as_ref());
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).cloned();
    translate::Node {
        zone: configured.zone.clone().or_else(|| label(kinds::ZONE)),
        region: configured.region.clone().or_else(|| label(kinds::REGION)),
        hostname,
    }
}

/// The name of this host's Node: `NODE_NAME` of the environment, else the host's, as the kubelet takes it.
#[must_use]
pub fn node_name() -> Option<String> {
    let given = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    let own = || std::fs::read_to_string(PathBuf::from("/proc/sys/kernel/hostname")).ok();
    given.or_else(own).map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty())
}

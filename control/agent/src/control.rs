//! The control thread: manifests or an API server's objects, network, health and orders in; tables, steering,
//! announcements and probes out.
//!
//! One thread owns the way from objects to tables. A panic in it is caught, the thread starts over from what is kept,
//! and forwarding goes on by the tables in force.

mod inputs;
mod inside;
mod reach;
mod source;
mod supervise;

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use lb::build::{Spare, build_with, rehop};
use lb::list::List;
use lb::tables::{Hop, Origin};
use lb::{BackendId, DropReason, Tables};
use tokio::sync::oneshot;
use translate::{Drained, Finding, Translation};
use wire::Addr;

use crate::config::Config;
use crate::flood::FloodGuard;
use crate::instance::{Instance, Plane, View};
use crate::kubernetes::Cluster;
use crate::linger::Place;
use crate::manifests;
use crate::occupied;
use crate::state::{Kept, State};
use crate::steering::HostPorts;
use inputs::{await_next_hops, build_config, elsewhere, port_rows};
use reach::Reach;
use source::Taken;

pub use inputs::{host_addresses, selection_seed, static_context};
pub use supervise::run;

/// How often to look at what has no event: removed endpoints, failed workers.
const TICK: Duration = Duration::from_secs(1);

/// What the control thread reacts to.
#[derive(Debug)]
pub enum Event {
    /// Manifests changed.
    Manifests,
    /// Objects of the API server changed.
    Objects,
    /// Links, addresses, routes or neighbours changed.
    Network,
    /// An endpoint turned healthy or unhealthy.
    Health,
    /// Other VIPs than before are announced by this node.
    Owners,
    /// Read the configuration again.
    Reload,
    /// `millrace drain` and `undrain`.
    Drain {
        /// The backend.
        backend: Drained,
        /// To drain, or to end that.
        on: bool,
        /// How many endpoints that concerns, or what is wrong.
        reply: oneshot::Sender<Result<usize, String>>,
    },
    /// Take no new flows any more.
    Wind(oneshot::Sender<()>),
    /// Ends the thread.
    Quit,
}

/// The thread's own.
#[derive(Debug)]
pub struct Control {
    instance: Arc<Instance>,
    state: State,
    kept: Kept,
    /// What of it the files have.
    saved: Kept,
    /// What was read and translated last.
    former: Option<manifests::Former>,
    /// What was translated last of an API server's objects.
    translated: Option<translate::Former>,
    draining: bool,
    host: Vec<IpAddr>,
    first: bool,
    /// What was last said about queues that have no sockets.
    unserved: Option<String>,
    /// When to look again which frontends that are gone still have flows.
    look: Instant,
    /// Frontends that wait until the host does not listen there any more.
    occupied: Vec<Place>,
    /// What came while it started over.
    pending: Vec<Event>,
    reach: Reach,
    flood: FloodGuard,
    /// The network's version that every next hop in the tables in force is of.
    hops_of: Option<u64>,
    /// Memory of the rows of former tables.
    spare: Spare,
}

impl Control {
    /// From what is kept.
    #[must_use]
    pub fn new(instance: Arc<Instance>, state: State) -> Self {
        let kept = state.load();
        Self {
            instance,
            state,
            saved: kept.clone(),
            kept,
            former: None,
            translated: None,
            draining: false,
            host: Vec::new(),
            first: true,
            unserved: None,
            look: Instant::now(),
            occupied: Vec::new(),
            pending: Vec::new(),
            reach: Reach::default(),
            flood: FloodGuard::default(),
            hops_of: None,
            spare: Spare::default(),
        }
    }

    /// Goes on from what is kept now: a predecessor wrote it until it let go of the flow file.
    pub fn load(&mut self) {
        self.kept = self.state.load();
        self.saved = self.kept.clone();
        if self.instance.registry().as_ref().is_some_and(|registry| registry.kept_backends().is_empty()) {
            // A new flow file: no flow is left of what was served once.
            self.kept.places.clear();
        }
    }

    /// Writes what is to be kept. Only who has the flow file does: else it is a predecessor's or a successor's.
    fn save(&mut self) -> std::io::Result<()> {
        let instance = Arc::clone(&self.instance);
        let registry = instance.registry();
        if registry.is_some() {
            self.state.save(&self.saved, &self.kept)?;
            self.saved = self.kept.clone();
        }
        Ok(())
    }

    /// Reads, translates and, where the flow file is open, builds and publishes.
    pub fn apply(&mut self) {
        let mut seen = Instant::now();
        let config = self.instance.config();
        self.host = host_addresses(&self.instance.network);
        let mut judged = self.translate(&config, &mut seen);
        self.kept.given = judged.translation.given.clone();
        judged.findings.extend(self.withhold(&mut judged.translation));
        self.follow_places(&mut judged.translation.desired);
        if let Err(error) = self.save() {
            tracing::error!(%error, folder = %config.state.display(), "cannot keep state");
        }
        if self.draining {
            judged.wind_down();
        }
        self.log_findings(&judged);
        let objects = judged.objects.take();
        let view = View {
            translation: judged.translation,
            findings: judged.findings,
            kept: judged.kept,
            files: judged.files,
            pools: judged.pools,
            trouble: self.instance.cluster.as_ref().and_then(Cluster::trouble),
            drained: self.kept.drained.clone(),
            draining: self.draining,
            ..View::default()
        };
        self.publish(view, &config, seen);
        self.tell_owners(&config, objects.as_ref());
    }

    /// Leaves the host the ports that it listens on itself.
    fn withhold(&mut self, translation: &mut Translation) -> Vec<Finding> {
        let occupied = occupied::withhold(translation, &self.kept.places, || HostPorts::read(BTreeSet::new()));
        self.occupied = occupied.iter().map(|(place, _)| *place).collect();
        occupied.into_iter().map(|(_, finding)| finding).collect()
    }

    /// Says what is newly wrong, each finding once.
    fn log_findings(&self, judged: &Taken) {
        let before = self.instance.view();
        let known: HashSet<&Finding> = before.findings.iter().collect();
        for finding in judged.findings.iter().filter(|f| !known.contains(f)) {
            if finding.is_error() { tracing::error!("{finding}") } else { tracing::warn!("{finding}") }
        }
        for file in judged.kept.iter().filter(|file| !before.kept.contains(file)) {
            tracing::warn!(%file, "cannot be taken as it is; what it said when it was last sound goes on");
        }
    }

    /// Puts a translation in force: tables, then steering, announcements, probes and neighbours.
    fn publish(&mut self, mut view: View, config: &Arc<Config>, seen: Instant) {
        let instance = Arc::clone(&self.instance);
        if instance.released.load(Ordering::Relaxed) {
            // Announcements, probes and neighbours are a successor's.
            return;
        }
        instance.health.set(view.translation.probes.clone());
        let checks = &view.translation.health_check_node_ports;
        instance.node_health.tell(if config.answers_health_checks() { checks } else { &[] });
        self.resolve(&view.translation.desired);
        // Endpoints may answer as soon as the tables name them, so their replies are steered before.
        if !self.first
            && let Err(error) = self.steer(&instance.view().translation.desired, &view.translation.desired)
        {
            tracing::error!(%error, "cannot steer");
        }
        if !self.build(&mut view, config) {
            instance.set_view(view);
            return;
        }
        view.at = Some(SystemTime::now());
        if let Err(error) = self.steer(&view.translation.desired, &view.translation.desired) {
            tracing::error!(%error, "cannot steer");
            view.trouble = Some(error);
        }
        instance.updates.observe(seen.elapsed());
        view.trouble = view.trouble.take().or_else(|| self.unserved.clone());
        self.announce(config, &view);
        self.route_inward(config, &view);
        if config.serve.node_port && config.kernel_port.is_some() {
            self.redirect(&view);
        }
        instance.set_view(view);
    }

    fn build(&mut self, view: &mut View, config: &Config) -> bool {
        let instance = Arc::clone(&self.instance);
        let mut registry = instance.registry();
        let Some(registry) = registry.as_mut() else { return false };
        let now = SystemTime::now();
        let mut build_config = build_config(config, &instance, self.kept.drains.expired(now));
        build_config.elsewhere = elsewhere(config, view, &instance);
        if self.first {
            (build_config.kept, build_config.kept_services) = (registry.kept_backends(), registry.kept_services());
            let known = build_config.kept.iter().map(|k| (k.id, SocketAddr::new(k.address.into(), k.port.number())));
            self.kept.drains.adopt(&known.collect());
        }
        let network = Arc::clone(&instance.network);
        let hops = |address: IpAddr| -> Hop { network.hop(address) };
        let version = network.version();
        build_config.same_hops = self.hops_of == Some(version);
        let mut reader = instance.tables.reader();
        let (built, former) = {
            let previous = reader.pin();
            let previous = (!self.first).then_some(&*previous);
            let desired = &view.translation.desired;
            let mut built = build_with(previous, desired, registry, &hops, &build_config, &mut self.spare);
            if let Some(previous) = previous {
                await_next_hops(&mut built, previous, &instance.network);
            }
            (built, previous.map(|previous| previous.origins.clone()).unwrap_or_default())
        };
        if built.refused > 0 {
            view.trouble =
                Some(format!("{} Service ports and endpoints found no room and are not served", built.refused));
            tracing::error!(refused = built.refused, "Service ports and endpoints found no room and are not served");
        }
        self.note_drains(&former, &built.tables, now);
        match self.state.save(&self.saved, &self.kept) {
            Ok(()) => self.saved = self.kept.clone(),
            Err(error) => tracing::error!(%error, folder = %config.state.display(), "cannot keep state"),
        }
        view.generation = built.tables.generation;
        view.ids = built.tables.origins.clone();
        instance.tables.publish(built.tables);
        (self.first, self.hops_of) = (false, Some(version));
        true
    }

    /// Takes in what became of endpoints; `former` is what was served before.
    fn note_drains(&mut self, former: &List<Origin>, tables: &Tables, now: SystemTime) {
        let origins = tables.origins.without_shared(former);
        let mut former = former.without_shared(&tables.origins).peekable();
        for origin in origins {
            let same =
                |old: &Origin| Arc::ptr_eq(&old.port, &origin.port) && Arc::ptr_eq(&old.backends, &origin.backends);
            while former.peek().is_some_and(|old| !same(old) && old.port.key < origin.port.key) {
                former.next();
            }
            if former.next_if(|old| same(old)).is_some() {
                continue;
            }
            for (endpoint, id) in origin.port.endpoints.iter().zip(origin.backends.iter()) {
                let Some(id) = *id else { continue };
                self.kept.drains.desire(id, SocketAddr::new(endpoint.address, endpoint.port), origin.port.drain);
            }
        }
        // Those too whose time is over: they are told again until their slots are free.
        let row = |id: BackendId| tables.backends.get(id.index()).filter(|row| row.id == id);
        let live = |id| row(id).filter(|row| row.address != Addr::UNSPECIFIED).map(|row| row.state);
        self.kept.drains.note(live, now);
    }

    /// Tells the steering programs their interfaces' link-layer addresses.
    fn follow_stations(&self) {
        let registry = self.instance.registry();
        if registry.is_none() {
            return;
        }
        for (steering, link) in self.instance.steering().iter_mut().zip(self.instance.network.links()) {
            if let Err(error) = steering.set_station(link.mac.0) {
                tracing::warn!(interface = steering.interface(), %error, "cannot tell the steering program its address");
            }
        }
    }

    /// Notices NICs that have more receive queues than sockets now, and says what to do; shown as trouble too. Fewer the
    /// kernel refuses.
    fn follow_queues(&mut self) {
        let unserved = self.instance.unserved_queues();
        if unserved == self.unserved {
            return;
        }
        let mut view = (*self.instance.view()).clone();
        match &unserved {
            Some(text) => tracing::error!("{text}"),
            None => tracing::info!("every receive queue has a socket again"),
        }
        if view.trouble.is_none() || view.trouble == self.unserved {
            view.trouble.clone_from(&unserved);
        }
        self.instance.set_view(view);
        self.unserved = unserved;
    }

    /// Next hops changed, or more than that.
    fn network_changed(&mut self) {
        self.follow_stations();
        self.follow_queues();
        if host_addresses(&self.instance.network) != self.host {
            self.apply();
        }
        if self.first || self.instance.registry().is_none() {
            return;
        }
        let instance = Arc::clone(&self.instance);
        let version = instance.network.version();
        if self.hops_of == Some(version) {
            return;
        }
        let mut reader = instance.tables.reader();
        let tables = {
            let previous = reader.pin();
            let mut tables = rehop(&previous, &|address| instance.network.hop(address));
            (tables.ports, tables.kernel) = (port_rows(&instance), instance.network.to_kernel());
            self.hops_of = Some(version);
            let same_ports = tables.ports == previous.ports && tables.kernel == previous.kernel;
            if tables.backends == previous.backends && same_ports {
                return;
            }
            tables
        };
        let mut view = (*instance.view()).clone();
        view.generation = tables.generation;
        instance.tables.publish(tables);
        instance.set_view(view);
    }

    /// What has no event of its own.
    fn tick(&mut self) {
        self.instance.tables.collect();
        let over = !self.kept.drains.expired(SystemTime::now()).is_empty();
        let removed = {
            let mut reader = self.instance.tables.reader();
            let tables = reader.pin();
            let plane = self.instance.plane();
            let unused = |plane: &Plane| tables.leaving.iter().any(|id| plane.shared.backend_connections(*id) == 0);
            plane.as_ref().is_some_and(unused)
        };
        if over || removed {
            self.rebuild();
        }
        self.let_go();
        self.follow_flood();
        if !self.occupied.is_empty() && self.ports_left() {
            self.apply();
        }
    }

    /// Has the steering programs let in as many SYNs as may come now.
    fn follow_flood(&mut self) {
        let instance = Arc::clone(&self.instance);
        let registry = instance.registry();
        let shed = instance.plane().as_ref().map(|plane| plane.dataplane.snapshot().drops(DropReason::Overload));
        let (Some(_), Some(shed)) = (registry.as_ref(), shed) else { return };
        let dropped = instance.syn_flood_dropped();
        let Some(rate) = self.flood.look(instance.config().limits.syns_per_vip, shed, dropped) else { return };
        for steering in instance.steering().iter_mut() {
            if let Err(error) = steering.set_syn_limit(rate) {
                tracing::warn!(interface = steering.interface(), %error, "cannot limit SYNs");
                self.flood.forget();
            }
        }
        match rate {
            0 => tracing::info!("SYNs are not limited"),
            _ => tracing::info!(rate, shed, dropped, "SYNs to one address are limited"),
        }
    }

    /// Whether the host has stopped listening on a port that is wanted.
    fn ports_left(&self) -> bool {
        let host = HostPorts::read(BTreeSet::new());
        self.occupied.iter().any(|place| !host.listens(place))
    }

    /// Builds again from the translation in force.
    fn rebuild(&mut self) {
        let config = self.instance.config();
        let mut view = (*self.instance.view()).clone();
        if self.build(&mut view, &config) {
            if let Err(error) = self.steer(&view.translation.desired, &view.translation.desired) {
                tracing::error!(%error, "cannot steer");
            }
            self.instance.set_view(view);
        }
    }

    fn drain(&mut self, backend: Drained, on: bool) -> Result<usize, String> {
        let view = self.instance.view();
        let matching = view.translation.all_backends().filter(|b| b.address == backend.address);
        let count = matching.filter(|b| backend.port.is_none_or(|port| port == b.port)).count();
        if on && count == 0 {
            return Err(format!("no endpoint has {}: see `millrace backends`", shown(backend)));
        }
        let former = self.kept.drained.clone();
        let changed = if on { self.kept.drained.insert(backend) } else { self.kept.drained.remove(&backend) };
        if !on && !changed {
            return Err(format!("{} is not drained: see `millrace backends`", shown(backend)));
        }
        if let Err(error) = self.save() {
            self.kept.drained = former;
            return Err(format!("cannot keep that: {error}"));
        }
        self.apply();
        Ok(count)
    }

    fn reload(&mut self) {
        let path = self.instance.config().path.clone();
        let (mut config, findings) = match Config::load(&path) {
            Ok(read) => read,
            Err(error) => return tracing::error!(file = %path.display(), %error, "cannot read; the old one goes on"),
        };
        for finding in &findings {
            tracing::error!("{finding}");
        }
        if findings.iter().any(Finding::is_error) {
            return tracing::error!("the configuration has errors; the old one goes on");
        }
        let former = self.instance.config();
        let added: Vec<_> = config.manifests.iter().filter(|path| !former.manifests.contains(path)).cloned().collect();
        if let Err(error) = manifests::check_paths(&added) {
            return tracing::error!("manifests: {error}; the old configuration goes on");
        }
        for setting in config.keep_plumbing(&former) {
            tracing::warn!(
                setting,
                "changed, but stays as it is until a successor is started (`millrace run` beside this one)"
            );
        }
        self.instance.manifests.follow(&config.manifests);
        *self.instance.config.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(config);
        tracing::info!("configuration read again");
        self.apply();
    }

    /// Handles what came. Whether to go on.
    fn handle(&mut self, events: Vec<Event>) -> bool {
        let (mut all, mut network, mut owners) = (false, false, false);
        for event in events {
            match event {
                Event::Manifests | Event::Objects | Event::Health => all = true,
                Event::Owners => owners = true,
                Event::Network => network = true,
                Event::Reload => self.reload(),
                Event::Drain { backend, on, reply } => {
                    let _ = reply.send(self.drain(backend, on));
                }
                Event::Wind(reply) => {
                    self.draining = true;
                    if let Some(owners) = &self.instance.owners {
                        owners.drain();
                    }
                    self.apply();
                    let _ = reply.send(());
                }
                Event::Quit => return false,
            }
        }
        match (all, owners) {
            (true, _) => self.apply(),
            // Before the tables know them, nobody asks these workers.
            (false, true) if !self.first => self.rebuild(),
            _ => {}
        }
        if network {
            self.network_changed();
        }
        true
    }
}

/// A drained backend as it is written.
#[must_use]
pub fn shown(backend: Drained) -> String {
    match backend.port {
        Some(port) => std::net::SocketAddr::new(backend.address, port).to_string(),
        None => backend.address.to_string(),
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

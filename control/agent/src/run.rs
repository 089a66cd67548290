//! `millrace run`: the order in which things come up and go down.
//!
//! Up: configuration, netlink, manifests or an API server, memory, steering attached, the admin socket under another
//! name; then the queues and the flow file, of a running predecessor where there is one; then tables, sockets, workers,
//! steered addresses, announcements. What can fail does so before a predecessor is asked for its queues; what fails
//! after makes the predecessor take up service again (see `hand_over`). Down by SIGTERM: workers stop; steering, flows
//! and neighbours stay for a successor.

mod hand_over;
mod kernel_side;
mod provider;
mod signals;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use lb::flow::{FlowFile, FlowFileConfig, FlowFileError, FlowTable, Opened, Room};
use lb::shared::Shared;
use lb::state::WorkerState;
use lb::{PortId, Tables, WorkerId};
use publish::Slot;
use tokio::task::JoinHandle;
use worker::{Dataplane, DataplaneConfig, PlannedQueue, WorkerPlan};
use xsk::{AttachMode, BindMode, Frame, Queue, QueueConfig, Steering, Umem, XskQueue};

use crate::admin::{Admin, End, Hello};
use crate::announce::Announcer;
use crate::claim;
use crate::config::{Config, Idle, InterfaceMode};
use crate::control::{self, Control, Event};
use crate::health::Health;
use crate::host;
use crate::instance::{Instance, Plane, PortInfo};
use crate::kernel_port::Redirected;
use crate::manifests;
use crate::metrics;
use crate::netlink::{Link, Network};
use crate::node_health::{self, NodeHealth};
use crate::owners::Owners;
use crate::report;
use crate::state::State;
use crate::steering::{self, HostPorts, SnatSource};
use crate::stop;
use crate::vlan_tags;
use hand_over::{HAND_OVER, Handed, metrics_listener};
use signals::Signals;

/// Home frames for each queue: both rings full, and bursts under way.
pub const FRAMES_PER_QUEUE: u32 = 5120;
/// Home frames of a worker that has no queue.
pub const FRAMES_WITHOUT_QUEUE: u32 = 256;
const RING: u32 = 2048;
/// How long a start waits for next hops: neighbours that are there answer within milliseconds.
const NEXT_HOPS: Duration = Duration::from_millis(250);

/// Why it does not run (any more): a line for people that says what to do.
#[derive(Debug)]
pub enum RunError {
    /// The configuration asks for what this host cannot give, or would take what is the host's own.
    Refused(String),
    /// Something failed.
    Failed(String),
}

impl From<String> for RunError {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

/// Runs until it is told to end, or has handed over to a successor that runs; then, to `stay`, until it is told to end all
/// the same.
///
/// # Errors
/// See [`RunError`].
pub fn run(config: Config, stay: bool) -> Result<(), RunError> {
    let (mut config, mut role, mut owned) = (config, Role::Newcomer, BTreeSet::new());
    loop {
        // Its tasks end with it: nothing of an earlier time goes on.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let went_on = runtime.block_on(async {
            // First of all: a SIGHUP that comes early must not end the process.
            let mut signals = Signals::new().map_err(|e| e.to_string())?;
            let (left, confirmed) = match serve(config, (role, owned), &mut signals).await? {
                Ended::Whole => return Ok(None),
                Ended::HandedOver(left, confirmed) => (left, confirmed),
            };
            let settled = async {
                if confirmed.await.is_err() {
                    return Some(left);
                }
                if stay {
                    tracing::info!("the successor runs; waiting to be ended");
                    std::future::pending::<()>().await;
                }
                None
            };
            tokio::select! {
                left = settled => Ok::<_, RunError>(left),
                _ = signals.terminate.recv() => Ok(None),
                _ = signals.interrupt.recv() => Ok(None),
            }
        })?;
        let Some(left) = went_on else { return Ok(()) };
        tracing::error!("the successor ended before it ran; this instance takes up service again");
        (config, role, owned) = (left.config, Role::Returning, left.owned);
    }
}

/// As what an instance begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// First of its kind or successor of one that runs.
    Newcomer,
    /// It handed over to one that failed: what that still holds is about to be let go.
    Returning,
}

/// How it ended.
enum Ended {
    Whole,
    /// A successor has queues and flows, and will say that it runs, or not.
    HandedOver(Box<Left>, tokio::sync::oneshot::Receiver<()>),
}

/// What to go on with if the successor fails.
struct Left {
    config: Config,
    /// The VIPs that this node announces.
    owned: BTreeSet<IpAddr>,
}

async fn serve(
    config: Config,
    (role, owned): (Role, BTreeSet<IpAddr>),
    signals: &mut Signals,
) -> Result<Ended, RunError> {
    let started = Instant::now();
    let names = config.interface_names();
    let (network, network_changes) = Network::start(&names[..config.nics().len()]).await.map_err(|e| e.to_string())?;
    let (snat, tunnels) = judge_host(&config, &network)?;
    let (predecessor, claims) = succession(&config, role)?;
    stop::usable(&config.runtime).map_err(|e| RunError::Refused(format!("runtime: {e}")))?;
    let (network, network_changes) = match &config.kernel_port {
        Some(port) => kernel_side::bring_up(&config, port, &network.links()).await?,
        None => (network, network_changes),
    };
    let links = network.links();
    let metrics = metrics_listener(&config, predecessor.as_ref())?;
    let state = State::open(&config.state).map_err(|e| format!("state: {}: {e}", config.state.display()))?;
    let (health, health_changes) = Health::start();
    let (events, inbox) = mpsc::channel();
    let changed = events.clone();
    let manifests = manifests::Watch::start(&config.manifests, move || drop(changed.send(Event::Manifests)))
        .map_err(|e| format!("cannot follow manifests: {e}"))?;
    let access = provider::access(&config);
    let cluster = provider::cluster(&config, access.as_ref(), &events)?;
    // Before anything is asked of a predecessor: it serves meanwhile.
    if !provider::await_first(cluster.as_ref(), signals).await {
        return Ok(Ended::Whole);
    }
    let announcer = Announcer::start(&links);
    let owners = provider::owners(&config, access.as_ref(), &announcer, &events)?;
    let instance = Arc::new(Instance {
        config: RwLock::new(Arc::new(config.clone())),
        started,
        ports: RwLock::new(Vec::new()),
        announcer,
        owners,
        manifests,
        cluster,
        network,
        health,
        tables: Arc::new(Slot::new(Tables::default())),
        plane: RwLock::new(None),
        registry: Mutex::new(None),
        steering: Mutex::new(Vec::new()),
        snat,
        tunnels,
        inward: tokio::sync::watch::channel(BTreeSet::new()).0,
        node_health: NodeHealth::default(),
        redirected: tokio::sync::watch::channel(Redirected::default()).0,
        view: RwLock::default(),
        events: events.clone(),
        updates: metrics::Durations::default(),
        restarts: AtomicU64::new(0),
        released: AtomicBool::new(false),
        heartbeat: AtomicU64::new(0),
    });
    let mut control = Control::new(Arc::clone(&instance), state.clone());
    control.apply();
    let prepared = prepare(&instance, &links)?;
    await_next_hops(&instance).await?;
    let socket = Admin::bind(&config.admin).map_err(|e| format!("admin: {e}"))?;
    let checks = node_health::listen(&instance);
    // Dropped with all else if something fails from here on, which the predecessor takes for our end.
    let mut handed = predecessor.as_ref().map(Handed::ask).transpose()?.flatten();
    if let Some(owners) = &instance.owners {
        owners.inherit(handed.as_mut().map_or(owned, Handed::owned));
    }
    let locks = bring_up(&instance, &links, prepared, claims, &mut control)?;
    if let Some(owners) = &instance.owners {
        owners.begin(links.iter().take(config.nics().len()).map(|link| link.mac).collect())?;
    }
    let thread = spawn_control(Arc::clone(&instance), state, control, inbox)?;
    kernel_side::follow(&config, &instance, &network_changes);
    forward(network_changes, events.clone(), || Event::Network);
    forward(health_changes, events.clone(), || Event::Health);
    let (ends, mut ending) = tokio::sync::mpsc::channel(4);
    socket.take_over().map_err(|e| format!("admin: {e}"))?;
    let claims = claim::answer(locks, &report::hello(&instance)).map_err(|e| e.to_string())?;
    stop::detach_others(&config.runtime, &names);
    let admin = tokio::spawn(socket.serve(Arc::clone(&instance), ends));
    let exporter = config.metrics.map(|address| tokio::spawn(metrics::serve(Arc::clone(&instance), address, metrics)));
    let checks = tokio::spawn(node_health::serve(Arc::clone(&instance), checks));
    if let Some(handed) = handed {
        handed.confirm();
    }
    if let Err(error) = steering::trim(&config.runtime, &instance.snat) {
        tracing::warn!(%error, "cannot take ports of a predecessor from ip_local_reserved_ports");
    }
    kernel_side::settle(&config).await;
    tracing::info!(pid = std::process::id(), ready = instance.ready(), took = ?started.elapsed(), "running");
    let end = until_end(&instance, signals, &events, &mut ending).await;
    if let (Err(_), Some(owners)) = (&end, &instance.owners) {
        // What this node cannot serve others announce.
        owners.leave();
    }
    let end = end?;
    Tasks { control: thread, admin, exporter, checks, claims }.end(&instance, end).await
}

fn spawn_control(
    instance: Arc<Instance>,
    state: State,
    control: Control,
    inbox: mpsc::Receiver<Event>,
) -> Result<thread::JoinHandle<()>, String> {
    let control = move || control::run(&instance, &state, control, &inbox);
    thread::Builder::new().name("control".to_owned()).spawn(control).map_err(|e| e.to_string())
}

/// Whom this instance succeeds; where it is nobody, its claims, which keep `stop` from cleaning up what it is making.
fn succession(config: &Config, role: Role) -> Result<(Option<Hello>, Option<Vec<UnixListener>>), RunError> {
    if role == Role::Returning {
        return Ok((None, None));
    }
    let predecessor = claim::predecessor(config)?;
    let claims = if predecessor.is_none() { Some(claim::lock_all(config, HAND_OVER)?) } else { None };
    Ok((predecessor, claims))
}

/// What this host has against the configuration is refused; SNAT addresses, and those of tunnels, otherwise.
fn judge_host(config: &Config, network: &Network) -> Result<(Vec<SnatSource>, Vec<IpAddr>), RunError> {
    let links = network.links();
    let objections = host::about_links(config, &links).into_iter().chain(host::about_workers(config, &links));
    let objections = objections.chain(host::about_serving(config));
    if let Some(objection) = objections.into_iter().next() {
        return Err(RunError::Refused(objection.finding(config).to_string()));
    }
    for link in links.iter().filter(|link| !link.up) {
        tracing::warn!(interface = %link.name, "is down; it is used as soon as it comes up");
    }
    let own: BTreeSet<_> = network.host_addresses().into_iter().map(|h| h.address).collect();
    let tunnels = |snat: &[SnatSource]| {
        steering::check_tunnels(&config.tunnels, snat, &own)
            .map_err(|e| RunError::Refused(format!("{}:{}: {e}", config.path.display(), config.line("tunnel.sources"))))
    };
    let snat = steering::snat_sources(config, &HostPorts::read(own.clone())).map_err(|e| {
        let line = config.line(if e.starts_with("kernelPort.") { "kernelPort.snat" } else { "snat" });
        RunError::Refused(format!("{}:{line}: {e}", config.path.display()))
    })?;
    manifests::check_paths(&config.manifests)
        .map_err(|e| RunError::Refused(format!("{}: manifests: {e}", config.path.display())))?;
    let tunnels = tunnels(&snat)?;
    Ok((snat, tunnels))
}

/// What runs beside the workers.
struct Tasks {
    control: thread::JoinHandle<()>,
    admin: JoinHandle<()>,
    exporter: Option<JoinHandle<()>>,
    checks: JoinHandle<()>,
    claims: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Ends them in order, and does the last steps between.
    async fn end(self, instance: &Arc<Instance>, end: Option<End>) -> Result<Ended, RunError> {
        let leaves = Arc::clone(instance);
        // Others have its VIPs before it stops to serve them.
        let farewell = move || leaves.owners.as_ref().map(Owners::leave);
        let _ = tokio::task::spawn_blocking(farewell).await;
        for task in self.exporter.into_iter().chain([self.checks]) {
            task.abort();
        }
        let _ = instance.events.send(Event::Quit);
        let _ = tokio::task::spawn_blocking(move || self.control.join()).await;
        if end_kind(end.as_ref()) == Last::Clean {
            // Neighbours that the kernel was told to keep resolved; a successor takes those over as they are.
            instance.network.release().await;
        }
        let finish = Arc::clone(instance);
        let outcome = tokio::task::spawn_blocking(move || wind_up(&finish, end)).await;
        for task in [self.admin].into_iter().chain(self.claims) {
            task.abort();
            let _ = task.await;
        }
        Ok(outcome.map_err(|e| e.to_string())??)
    }
}

/// Waits for a signal or an order to end; looks meanwhile whether it can still serve.
async fn until_end(
    instance: &Instance,
    signals: &mut Signals,
    events: &mpsc::Sender<Event>,
    ending: &mut tokio::sync::mpsc::Receiver<End>,
) -> Result<Option<End>, String> {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(None),
            _ = signals.interrupt.recv() => return Ok(None),
            _ = signals.hang_up.recv() => drop(events.send(Event::Reload)),
            Some(end) = ending.recv() => return Ok(Some(end)),
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if let Some(why) = instance.broken() {
                    return Err(format!("{why}; start it again, flows and steering are kept"));
                }
            }
        }
    }
}

/// What the last steps are.
#[derive(Debug, PartialEq)]
enum Last {
    Leave,
    Clean,
}

fn end_kind(end: Option<&End>) -> Last {
    if matches!(end, Some(End::Stop(_))) { Last::Clean } else { Last::Leave }
}

fn wind_up(instance: &Instance, end: Option<End>) -> Result<Ended, String> {
    if end_kind(end.as_ref()) == Last::Clean {
        instance.announcer.set(Vec::new());
    }
    instance.release();
    instance.steering().clear();
    let config = instance.config();
    let done = match end {
        Some(End::Stop(done)) => done,
        Some(End::HandedOver(confirmed)) => {
            tracing::info!("handed over; waiting for the successor to run");
            let left = Left { config: (*config).clone(), owned: instance.owned() };
            return Ok(Ended::HandedOver(Box::new(left), confirmed));
        }
        None => {
            tracing::info!("ended; steering and flows are left for a successor");
            return Ok(Ended::Whole);
        }
    };
    // The socket stays for the answer; whoever asked removes it.
    let result = stop::clean(&config.runtime, None).map(|_| ());
    let _ = done.send(result.clone());
    // The answer is written by a task of the main thread.
    thread::sleep(Duration::from_millis(50));
    result.map(|()| Ended::Whole)
}

fn forward(mut changes: tokio::sync::watch::Receiver<u64>, events: mpsc::Sender<Event>, event: fn() -> Event) {
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            if events.send(event()).is_err() {
                return;
            }
        }
    });
}

/// All that can be had while a predecessor still runs.
struct Prepared {
    /// Receive queues of each interface: each gets a socket.
    queues: Vec<u32>,
    /// Transmit queues of each interface.
    sending: Vec<u32>,
    cores: Vec<Option<usize>>,
    counts: Vec<u32>,
    umem: Umem,
    frames: Vec<Frame>,
    file: FlowFileConfig,
    room: Room,
}

/// Does everything that may fail before a predecessor is asked for anything: what fails here changes nothing for it.
fn prepare(instance: &Instance, links: &[Link]) -> Result<Prepared, RunError> {
    let config = instance.config();
    // Every receive queue: a packet that finds no socket is lost, and the NIC chooses the queue.
    let queues: Vec<u32> = links.iter().map(host::queues).collect();
    let sending = links.iter().map(|link| link.tx_queues.max(1)).collect();
    let cores = host::cores(&config, &queues[..config.nics().len()]);
    let file = flow_file(&config, cores.len(), instance)?;
    fs::create_dir_all(&config.runtime).map_err(|e| format!("runtime: {}: {e}", config.runtime.display()))?;
    let room = FlowFile::make_room(&config.runtime, &file).map_err(|e| e.to_string())?;
    let counts = frame_counts(&queues, cores.len());
    let mtu = links.iter().map(|link| link.mtu as usize).max().unwrap_or(1500);
    let size = if mtu + host::LINK_OVERHEAD <= xsk::max_frame_len(2048) { 2048 } else { 4096 };
    let (umem, frames) = Umem::new(counts.iter().sum(), size, false).map_err(|e| e.to_string())?;
    let vlans = instance.network.vlans();
    for (at, interface) in config.nics().iter().enumerate() {
        let has_vlans = vlans.iter().any(|(port, _)| usize::from(port.0) == at);
        vlan_tags::leave(&config.runtime, &interface.name, has_vlans).map_err(RunError::Refused)?;
    }
    let pins = stop::pins(&config.runtime);
    xsk::mount_bpffs(&pins).map_err(|e| e.to_string())?;
    let attach = |interface: &crate::config::Interface| {
        let mode = match interface.mode {
            InterfaceMode::Auto => AttachMode::Auto,
            InterfaceMode::Generic => AttachMode::Generic,
            InterfaceMode::ZeroCopy | InterfaceMode::Copy => AttachMode::Native,
        };
        Steering::attach(&interface.name, mode, &pins).map_err(|e| e.to_string())
    };
    *instance.steering() = config.interfaces.iter().map(attach).collect::<Result<_, _>>()?;
    steering::reserve(&config.runtime, &instance.snat).map_err(|e| format!("ip_local_reserved_ports: {e}"))?;
    Ok(Prepared { queues, sending, cores, counts, umem, frames, file, room })
}

/// Waits for the endpoints' next hops, but not for long: packets to an unresolved one are dropped, and who opens a
/// connection tries again after a second.
async fn await_next_hops(instance: &Arc<Instance>) -> Result<(), String> {
    let instance = Arc::clone(instance);
    let wait = move || {
        let view = instance.view();
        let endpoints = view.translation.desired.service_ports.iter().flat_map(|port| &port.endpoints);
        let addresses: BTreeSet<IpAddr> = endpoints.map(|endpoint| endpoint.address).collect();
        instance.network.await_resolved(&Vec::from_iter(addresses), NEXT_HOPS);
    };
    tokio::task::spawn_blocking(wait).await.map_err(|error| error.to_string())
}

/// Takes queues and flows once they are free, builds tables, starts workers and steers.
fn bring_up(
    instance: &Instance,
    links: &[Link],
    prepared: Prepared,
    claims: Option<Vec<UnixListener>>,
    control: &mut Control,
) -> Result<Vec<UnixListener>, String> {
    let config = instance.config();
    let Prepared { queues, sending, cores, counts, umem, frames, file, mut room } = prepared;
    let opened = open_flows(&mut room, &file)?;
    let locks = claims.map_or_else(|| claim::lock_all(&config, HAND_OVER), Ok)?;
    let (shared, tables) = (opened.shared, opened.tables);
    *instance.registry() = Some(opened.registry);
    control.load();
    control.apply();
    let memory = Memory { umem: &umem, frames, counts };
    let plans = plan(instance, (&queues, &sending), &cores, memory, tables, &shared)?;
    let idle = if config.idle == Idle::Busy { worker::Idle::Busy } else { worker::Idle::Adaptive };
    let settings = DataplaneConfig { idle, ..DataplaneConfig::default() };
    let dataplane = Dataplane::start(umem, plans, Arc::clone(&instance.tables), settings).map_err(|e| e.to_string())?;
    *instance.plane_mut() = Some(Plane { dataplane, shared });
    report_ports(instance, links, &queues);
    Ok(locks)
}

/// Worker of a queue: the same number on every interface, so that what comes in on one leaves by its own on another.
fn worker_of(queue: u32, workers: usize) -> usize {
    queue as usize % workers
}

/// Home frames of each worker.
fn frame_counts(queues: &[u32], workers: usize) -> Vec<u32> {
    let mut counts = vec![0; workers];
    for &count in queues {
        for queue in 0..count {
            counts[worker_of(queue, workers)] += FRAMES_PER_QUEUE;
        }
    }
    counts.into_iter().map(|count| count.max(FRAMES_WITHOUT_QUEUE)).collect()
}

fn flow_file(config: &Config, workers: usize, instance: &Instance) -> Result<FlowFileConfig, String> {
    Ok(FlowFileConfig {
        workers,
        flows: config.limits.flows as usize,
        snat: instance.snat.iter().map(|source| source.address.into()).collect(),
        kernel_snat: instance.snat.iter().filter(|source| source.kernel).count(),
        boot_id: boot_id(),
        secret: random()?,
        ..FlowFileConfig::default()
    })
}

fn open_flows(room: &mut Room, file: &FlowFileConfig) -> Result<Opened, String> {
    let deadline = Instant::now() + HAND_OVER;
    loop {
        match FlowFile::open_in(room, file) {
            Ok(opened) => {
                let (adopted, dropped) = (opened.adopted, opened.dropped);
                tracing::info!(adopted, dropped, discarded = ?opened.discarded, "flow file open");
                return Ok(opened);
            }
            Err(FlowFileError::InUse { .. }) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes()
}

fn random() -> Result<[u8; 16], String> {
    let mut bytes = [0; 16];
    let mut file = std::fs::File::open(Path::new("/dev/urandom")).map_err(|e| format!("/dev/urandom: {e}"))?;
    file.read_exact(&mut bytes).map_err(|e| format!("/dev/urandom: {e}"))?;
    Ok(bytes)
}

/// Memory for packets and how it is shared out.
struct Memory<'m> {
    umem: &'m Umem,
    frames: Vec<Frame>,
    counts: Vec<u32>,
}

/// Binds every receive queue and deals queues, frames and flows out to workers; `queues` and `sending` are the numbers
/// of each interface's receive and transmit queues.
fn plan(
    instance: &Instance,
    (queues, sending): (&[u32], &[u32]),
    cores: &[Option<usize>],
    mut memory: Memory<'_>,
    tables: Vec<FlowTable>,
    shared: &Arc<Shared>,
) -> Result<Vec<WorkerPlan<XskQueue>>, String> {
    let config = instance.config();
    let mut plans = Vec::new();
    for (id, (flows, core)) in tables.into_iter().zip(cores).enumerate() {
        let id = WorkerId(u8::try_from(id).map_err(|_| "too many workers".to_owned())?);
        let state = WorkerState::new(id, flows, Arc::clone(shared), random()?);
        let rest = memory.frames.len() - memory.counts[plans.len()] as usize;
        let frames = memory.frames.split_off(rest);
        plans.push(WorkerPlan { core: *core, queues: Vec::new(), state, frames });
    }
    let mut steering = instance.steering();
    let mut ports = Vec::new();
    for (port, interface) in config.interfaces.iter().enumerate() {
        let mode = match interface.mode {
            InterfaceMode::Auto => BindMode::Auto,
            InterfaceMode::ZeroCopy => BindMode::ZeroCopy,
            InterfaceMode::Copy | InterfaceMode::Generic => BindMode::Copy,
        };
        let mut zero_copy = true;
        for queue in 0..queues[port] {
            let receive_only = queue >= sending[port];
            let settings = QueueConfig { ring_size: RING, mode, receive_only, ..QueueConfig::default() };
            let bound = XskQueue::bind(memory.umem, &interface.name, queue, &settings).map_err(|e| e.to_string())?;
            steering[port].insert_socket(queue, bound.socket()).map_err(|e| e.to_string())?;
            zero_copy &= bound.zero_copy();
            let worker = worker_of(queue, plans.len());
            let id = PortId(u8::try_from(port).map_err(|_| "too many interfaces".to_owned())?);
            plans[worker].queues.push(PlannedQueue { port: id, queue: bound });
        }
        let (name, mode, queues) = (interface.name.clone(), steering[port].mode(), queues[port]);
        ports.push(PortInfo { name, ifindex: 0, mode, zero_copy, queues, mtu: 0 });
    }
    instance.set_ports(ports);
    Ok(plans)
}

/// Says what each NIC got.
fn report_ports(instance: &Instance, links: &[Link], queues: &[u32]) {
    let mut ports = instance.ports();
    for ((port, link), queues) in ports.iter_mut().zip(links).zip(queues) {
        (port.ifindex, port.mtu) = (link.ifindex, link.mtu);
        let (name, mode, copy) = (&port.name, port.mode, !port.zero_copy);
        tracing::info!(interface = %name, ?mode, copy, queues, mtu = link.mtu, "interface is in use");
        if mode == AttachMode::Generic {
            tracing::warn!(interface = %name, "generic mode: switch merging off (`ethtool -K {name} gro off lro off`)");
        }
    }
    instance.set_ports(ports);
}

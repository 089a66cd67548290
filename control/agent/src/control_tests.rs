use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, RwLock};
use std::thread;

use lb::flow::{FlowFile, FlowFileConfig};
use lb::state::WorkerState;
use lb::{PortId, Tables, WorkerId};
use publish::Slot;
use worker::{Dataplane, DataplaneConfig, PlannedQueue, WorkerPlan};
use xsk::Umem;
use xsk::memory::{Wire, WireLimits};

use super::supervise::{serve, supervise};
use super::*;
use crate::announce::Announcer;
use crate::health::Health;
use crate::instance::Plane;
use crate::manifests::Watch;
use crate::metrics::Durations;
use crate::netlink::Network;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SOON: Duration = Duration::from_secs(20);

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::yield_now();
    }
}

/// An instance with one worker on a NIC in memory and its control thread's parts; forwarding needs no network for what
/// workers answer themselves.
struct Rig {
    folder: std::path::PathBuf,
    instance: Arc<Instance>,
    state: State,
    wire: Wire,
}

impl Rig {
    async fn new(name: &str) -> (Self, Receiver<Event>) {
        let folder = std::env::temp_dir().join(format!("millrace-control-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("manifests")).unwrap();
        service(&folder, "web", VIP);
        let text =
            format!("pools: [{{name: p, addresses: [192.0.2.0/28]}}]\nmanifests: [{}/manifests]\n", folder.display());
        let (config, _) = Config::read(&folder.join("m.yaml"), &text);
        let (network, _) = Network::start(&[]).await.unwrap();
        let (health, _) = Health::start();
        let tables = Arc::new(Slot::new(Tables::default()));
        let file = FlowFileConfig { flows: 64, services: 16, backends: 16, affinity_sources: 64, ..Default::default() };
        let mut opened = FlowFile::in_memory(&file).unwrap();
        let (umem, frames) = Umem::anonymous(256, 2048).unwrap();
        let limits = WireLimits { fill_ring: 64, rx_ring: 64, tx_ring: 64, sent_per_kick: 32, delay_completion: false };
        let (wire, queue) = Wire::new(&umem, limits);
        let flows = opened.tables.remove(0);
        let worker = WorkerState::new(WorkerId(0), flows, Arc::clone(&opened.shared), [7; 16]);
        let queues = vec![PlannedQueue { port: PortId(0), queue }];
        let plan = WorkerPlan { core: None, queues, state: worker, frames };
        let dataplane = Dataplane::start(umem, vec![plan], Arc::clone(&tables), DataplaneConfig::default()).unwrap();
        let (events, inbox) = mpsc::channel();
        let changed = events.clone();
        let manifests = Watch::start(&config.manifests, move || drop(changed.send(Event::Manifests))).unwrap();
        let instance = Arc::new(Instance {
            config: RwLock::new(Arc::new(config)),
            started: Instant::now(),
            ports: RwLock::default(),
            manifests,
            cluster: None,
            network,
            announcer: Announcer::start(&[]),
            owners: None,
            health,
            tables,
            plane: RwLock::new(Some(Plane { dataplane, shared: opened.shared })),
            registry: Mutex::new(Some(opened.registry)),
            steering: Mutex::default(),
            snat: Vec::new(),
            tunnels: Vec::new(),
            inward: tokio::sync::watch::channel(std::collections::BTreeSet::new()).0,
            node_health: Default::default(),
            redirected: tokio::sync::watch::channel(crate::kernel_port::Redirected::default()).0,
            view: RwLock::default(),
            events,
            updates: Durations::default(),
            restarts: AtomicU64::new(0),
            released: AtomicBool::new(false),
            heartbeat: AtomicU64::new(0),
        });
        let state = State::open(&folder.join("state")).unwrap();
        (Self { folder, instance, state, wire }, inbox)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.instance.release();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A manifest of a Service without endpoints at this address.
fn service(folder: &std::path::Path, name: &str, address: Ipv4Addr) {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations: {{millrace.dev/addresses: {address}}}\n\
         spec:\n  type: LoadBalancer\n  ports: [{{port: 80}}]\n"
    );
    std::fs::write(folder.join(format!("manifests/{name}.yaml")), text).unwrap();
}

/// An echo request to [`VIP`].
fn ping() -> Vec<u8> {
    let mut frame = Vec::new();
    let request = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([198, 51, 100, 7], VIP.octets(), 64)
        .icmpv4_echo_request(1, 1);
    request.write(&mut frame, b"are you there").unwrap();
    frame
}

#[test]
fn a_panic_starts_the_control_thread_over_and_forwarding_goes_on_meanwhile() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (rig, inbox) = runtime.block_on(Rig::new("panic"));
    let (fall, falling, rise) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let control = Control::new(Arc::clone(&rig.instance), rig.state.clone());
    let answered = |count: usize| {
        for _ in 0..count {
            until("the wire takes a packet", || rig.wire.inject(&ping()));
            until("an echo comes back", || !rig.wire.collect().is_empty());
        }
    };
    let names = || rig.instance.view().translation.services.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    thread::scope(|scope| {
        let (instance, state) = (&rig.instance, &rig.state);
        let (fall, falling, rise) = (&fall, &falling, &rise);
        let thread = scope.spawn(move || {
            supervise(instance, state, control, &inbox, |control, events| {
                if !fall.load(Ordering::Relaxed) {
                    // As `serve` begins, then the worst moment: both locks held, the registry half-way.
                    control.apply();
                    until("told to fail", || fall.load(Ordering::Relaxed));
                    let _registry = instance.registry();
                    let _view = instance.view.write();
                    falling.store(true, Ordering::Relaxed);
                    until("seen to forward meanwhile", || rise.load(Ordering::Relaxed));
                    panic!("as a fault in the control thread would");
                }
                serve(control, events);
            });
        });
        let steps = || {
            until("the Service is served", || names() == ["web"]);
            answered(10);
            fall.store(true, Ordering::Relaxed);
            until("the control thread is failing", || falling.load(Ordering::Relaxed));
            answered(10);
            rise.store(true, Ordering::Relaxed);
            answered(10);
            until("it started over", || rig.instance.restarts.load(Ordering::Relaxed) == 1);
            // An order that comes before it goes on is not lost.
            let (reply, answer) = oneshot::channel();
            rig.instance.events.send(Event::Wind(reply)).unwrap();
            answered(10);
            answer.blocking_recv().unwrap();
            // And it works again: a manifest is followed, orders are answered.
            service(&rig.folder, "more", Ipv4Addr::new(192, 0, 2, 2));
            until("the new Service is served", || names() == ["more", "web"]);
            answered(10);
            let (reply, answer) = oneshot::channel();
            let backend = Drained { address: "10.0.0.1".parse().unwrap(), port: None };
            rig.instance.events.send(Event::Drain { backend, on: true, reply }).unwrap();
            assert!(answer.blocking_recv().unwrap().unwrap_err().contains("no endpoint has 10.0.0.1"));
            until("it beats again", || rig.instance.silent_for() < Duration::from_secs(2));
        };
        let outcome = catch_unwind(AssertUnwindSafe(steps));
        // Also after a step that failed: the thread must end for the test to.
        fall.store(true, Ordering::Relaxed);
        rise.store(true, Ordering::Relaxed);
        rig.instance.events.send(Event::Quit).unwrap();
        thread.join().unwrap();
        outcome.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    assert_eq!(rig.instance.restarts.load(Ordering::Relaxed), 1);
}

//! Which VIPs this node announces, settled with the other nodes of the cluster.
//!
//! A thread of its own tells and hears heartbeats and has `members` settle who owns what (`talk`); what comes of it is
//! announced at once, and the control thread has the workers answer for it. It starts when tables are in force and ends
//! before a successor begins, which goes on with what it owned.

mod eligible;
mod key;
mod leaving;
mod record;
mod talk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use wire::MacAddr;

use crate::announce::Announcer;
use crate::config::{Heartbeat, Kubernetes};
use crate::control::Event;
use crate::kubernetes::Access;
use key::KeyFile;

pub(crate) use eligible::{EXCLUDED, TO_BE_DELETED};
pub use eligible::{Situation, situation};

/// How long the thread may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What may become of a datagram.
pub const RESULTS: [&str; 8] =
    ["sent", "unsendable", "accepted", "unconfirmed", "malformed", "unauthenticated", "replayed", "own"];

/// What was counted of heartbeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams by what became of them.
    pub heartbeats: BTreeMap<&'static str, u64>,
    /// Addresses that this node took.
    pub takeovers: u64,
}

/// A node as it is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub standing: &'static str,
    /// How many addresses it owns.
    pub owned: usize,
    /// How long it was not heard, milliseconds; none of this node.
    pub silent_ms: Option<u64>,
}

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// This node first.
    pub members: Vec<Member>,
    /// Who owns each address.
    pub owners: BTreeMap<IpAddr, Option<String>>,
    /// What was counted.
    pub counts: Counts,
}

/// What the thread and the others share.
#[derive(Debug, Default)]
struct Shared {
    owned: Mutex<Arc<BTreeSet<IpAddr>>>,
    standing: Mutex<Standing>,
}

impl Shared {
    fn owned(&self) -> MutexGuard<'_, Arc<BTreeSet<IpAddr>>> {
        // It is replaced in one step.
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread is told.
enum Order {
    Situation(Arc<Situation>),
    Drain,
    /// Ends; answered when others have what it owned, or need too long.
    Leave(mpsc::Sender<()>),
    /// Ends; what it owned is a successor's on this node.
    HandOver(mpsc::Sender<BTreeSet<IpAddr>>),
}

/// A thread that runs.
struct Running {
    orders: UnboundedSender<Order>,
    thread: thread::JoinHandle<()>,
}

/// Settles with other nodes what this one announces.
pub struct Owners {
    access: Access,
    heartbeat: Heartbeat,
    name: String,
    announcer: Arc<Announcer>,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    situation: Mutex<Arc<Situation>>,
    running: Mutex<Option<Running>>,
}

impl Owners {
    /// Of the node of this name, where nodes tell each other that they live. Nothing runs yet.
    ///
    /// # Errors
    /// If the key cannot be used, and what to do.
    pub fn new(
        kubernetes: &Kubernetes,
        access: &Access,
        name: Option<String>,
        announcer: &Arc<Announcer>,
        events: &mpsc::Sender<Event>,
    ) -> Result<Option<Self>, String> {
        let Some(heartbeat) = kubernetes.heartbeat.clone() else { return Ok(None) };
        check(&heartbeat)?;
        let name = name.ok_or("this node has no name, expected `node: {hostname: NAME}` or NODE_NAME")?;
        if name.len() > members::datagram::LONGEST_NAME {
            return Err(format!("`{name}` is too long for the name of a Node"));
        }
        Ok(Some(Self {
            access: access.clone(),
            heartbeat,
            name,
            announcer: Arc::clone(announcer),
            events: events.clone(),
            shared: Arc::default(),
            situation: Mutex::default(),
            running: Mutex::default(),
        }))
    }

    /// What a predecessor on this node owned is this node's from the start.
    pub fn inherit(&self, owned: BTreeSet<IpAddr>) {
        *self.shared.owned() = Arc::new(owned);
    }

    /// Starts to talk; `macs` are those that it announces by.
    ///
    /// # Errors
    /// If the thread cannot be started, or the port cannot be had.
    pub fn begin(&self, macs: Vec<MacAddr>) -> Result<(), String> {
        let (orders, inbox) = unbounded_channel();
        let (contests, contested) = unbounded_channel();
        self.announcer.report_to(contests);
        let talk = talk::Talk::new(
            talk::Start {
                access: self.access.clone(),
                port: self.heartbeat.port,
                key: KeyFile::open(&self.heartbeat.key)?,
                name: self.name.as_str().into(),
                macs: macs.into_iter().map(|mac| mac.0).collect(),
                situation: Arc::clone(&self.situation()),
            },
            Arc::clone(&self.announcer),
            self.events.clone(),
            Arc::clone(&self.shared),
        )?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start to tell heartbeats: {error}"))?;
        let thread = thread::Builder::new()
            .name("heartbeats".to_owned())
            .spawn(move || {
                runtime.block_on(talk.run(inbox, contested));
                // A question to the API server may wait for a name's address.
                runtime.shutdown_background();
            })
            .map_err(|error| format!("cannot start to tell heartbeats: {error}"))?;
        *self.running() = Some(Running { orders, thread });
        Ok(())
    }

    /// Whether nobody tells heartbeats any more, though that was begun and not ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.running().as_ref().is_some_and(|running| running.thread.is_finished())
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn situation(&self) -> MutexGuard<'_, Arc<Situation>> {
        self.situation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be settled from now on.
    pub fn tell(&self, situation: Situation) {
        let mut known = self.situation();
        if **known == situation {
            return;
        }
        let (name, nodes) = (self.name.as_str(), &situation.cluster.nodes);
        if !nodes.contains_key(name) && (known.cluster.nodes.contains_key(name) || known.cluster.nodes.is_empty()) {
            tracing::warn!(
                name,
                "no Node has this node's name: `node: {{hostname: NAME}}` or NODE_NAME says which it is"
            );
        }
        *known = Arc::new(situation);
        self.order(Order::Situation(Arc::clone(&known)));
    }

    fn order(&self, order: Order) {
        if let Some(running) = &*self.running() {
            let _ = running.orders.send(order);
        }
    }

    /// What this node owns.
    #[must_use]
    pub fn owned(&self) -> Arc<BTreeSet<IpAddr>> {
        Arc::clone(&self.shared.owned())
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.shared.standing().clone()
    }

    /// It is to end: what others can have, they get.
    pub fn drain(&self) {
        self.order(Order::Drain);
    }

    /// Takes its leave: others get what it owned, and are waited for, but not for long. Nothing happens a second time.
    pub fn leave(&self) {
        let (done, answer) = mpsc::channel();
        self.end(Order::Leave(done), &answer);
    }

    /// Ends for a successor on this node, which goes on with what it owns: that.
    pub fn hand_over(&self) -> BTreeSet<IpAddr> {
        let (done, answer) = mpsc::channel();
        self.end(Order::HandOver(done), &answer).unwrap_or_default()
    }

    fn end<T>(&self, order: Order, answer: &mpsc::Receiver<T>) -> Option<T> {
        let running = self.running().take()?;
        let _ = running.orders.send(order);
        let answer = answer.recv_timeout(ANSWER).ok();
        // It ends with its answer, or has failed.
        let _ = running.thread.join();
        answer
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        let running = self.running().take();
        if let Some(Running { orders, thread }) = running {
            drop(orders);
            let _ = thread.join();
        }
    }
}

/// Whether the key can be used.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn check(heartbeat: &Heartbeat) -> Result<(), String> {
    check_file(&heartbeat.key)
}

fn check_file(path: &Path) -> Result<(), String> {
    KeyFile::open(path).map(drop).map_err(|why| format!("heartbeat.key: {why}"))
}

//! The thread that tells and hears heartbeats, and does what is settled.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use members::datagram::{LONGEST, Reject};
use members::session::Session;
use members::{Mac, Members, Name, Settled, Time, Timing, Why};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Interval, MissedTickBehavior, interval};
use wire::MacAddr;

use super::key::KeyFile;
use super::leaving::Leaving;
use super::record::record;
use super::{Counts, Member, Order, Shared, Situation, Standing};
use crate::announce::{Announcer, Contest, Owning};
use crate::control::Event;
use crate::kubernetes::{self, Access};

/// How often the key file is looked at.
const KEY: Duration = Duration::from_secs(1);
/// How long the API server may take to answer a node without peers, and how often that asks.
const ASK: Duration = Duration::from_secs(1);
/// So many questions in a row without an answer, and the API server is not there.
const UNANSWERED: u32 = 2;
/// Between two goodbyes of a node that waits for others to take what it owned.
const GOODBYE: Duration = Duration::from_millis(20);
/// Datagrams that are read before anything else is done.
const BATCH: usize = 64;

/// What the thread starts from.
pub(super) struct Start {
    pub access: Access,
    pub port: u16,
    pub key: KeyFile,
    pub name: Name,
    pub macs: Vec<Mac>,
    pub situation: Arc<Situation>,
}

/// The thread's own.
pub(super) struct Talk {
    start: Start,
    announcer: Arc<Announcer>,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    begun: Instant,
    members: Members,
    session: Session,
    socket: std::net::UdpSocket,
    /// Where nodes are that the API server does not name.
    strays: BTreeMap<Name, SocketAddr>,
    counts: Counts,
    owning: Owning,
    key_read: Instant,
    leaving: Option<Leaving>,
    api: Api,
}

/// The question whether the API server answers.
#[derive(Default)]
struct Api {
    asked: Option<Instant>,
    pending: Option<tokio::task::JoinHandle<bool>>,
    unanswered: u32,
}

/// What woke the thread.
enum Woken {
    Order(Option<Order>),
    Contest(Contest),
    Readable,
    Beat,
}

impl Talk {
    /// Binds its port.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn new(
        start: Start,
        announcer: Arc<Announcer>,
        events: mpsc::Sender<Event>,
        shared: Arc<Shared>,
    ) -> Result<Self, String> {
        let socket = bind(start.port).map_err(|error| {
            format!("heartbeat.port: {}: {error}; see who has it with `ss -lunp`, or name another", start.port)
        })?;
        let begun = Instant::now();
        let inherited = shared.owned().as_ref().clone();
        let timing = Timing::default();
        let mut members = Members::new(Arc::clone(&start.name), start.macs.clone(), timing, inherited, Time::ZERO);
        members.set_cluster(start.situation.cluster.clone());
        let mut boot = [0; 8];
        SystemRandom::new().fill(&mut boot).map_err(|_| "there are no random numbers".to_owned())?;
        let session = Session::new(Arc::clone(&start.name), u64::from_be_bytes(boot), &members.said());
        Ok(Self {
            start,
            announcer,
            events,
            shared,
            begun,
            members,
            session,
            socket,
            strays: BTreeMap::new(),
            counts: Counts::default(),
            owning: Owning::default(),
            key_read: begun,
            leaving: None,
            api: Api::default(),
        })
    }

    /// Until it is told to end, or nobody can tell it any more.
    pub async fn run(mut self, mut orders: UnboundedReceiver<Order>, mut contests: UnboundedReceiver<Contest>) {
        let socket = self.socket.try_clone().and_then(UdpSocket::from_std);
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(%error, "heartbeats cannot be told"),
        };
        self.settle();
        self.show();
        let (access, node) = (self.start.access.clone(), self.start.name.to_string());
        // It ends with the thread's runtime.
        tokio::spawn(record(access, node, Arc::clone(&self.shared)));
        let mut beats = every(Timing::default().heartbeat);
        loop {
            let woken = tokio::select! {
                order = orders.recv() => Woken::Order(order),
                Some(contest) = contests.recv() => Woken::Contest(contest),
                readable = socket.readable() => {
                    if readable.is_err() {
                        return;
                    }
                    Woken::Readable
                }
                _ = beats.tick() => Woken::Beat,
            };
            match woken {
                Woken::Order(None) => {
                    self.members.leave();
                    self.settle();
                    return self.tell_all();
                }
                Woken::Order(Some(Order::HandOver(done))) => {
                    let owned = self.members.hand_over();
                    self.tell_all();
                    self.tell_all();
                    let _ = done.send(owned);
                    return;
                }
                Woken::Order(Some(Order::Leave(done))) => {
                    let owned = self.members.leave();
                    self.leaving = Some(Leaving::begin(owned, done, Instant::now()));
                    self.settle();
                    beats = every(GOODBYE);
                }
                Woken::Order(Some(Order::Drain)) => {
                    self.members.drain();
                    self.settle();
                }
                Woken::Order(Some(Order::Situation(situation))) => {
                    self.members.set_cluster(situation.cluster.clone());
                    self.start.situation = situation;
                    self.settle();
                }
                Woken::Contest(Contest { address, theirs, ours }) => {
                    if self.members.contest(address, theirs.0, ours.0, self.begun.elapsed()) {
                        self.settle();
                    }
                }
                Woken::Readable => self.hear(&socket),
                Woken::Beat => self.beat().await,
            }
            if self.has_left() {
                return;
            }
        }
    }

    /// Whether it took its leave, and others have what it owned or need too long. Who waits is told.
    fn has_left(&mut self) -> bool {
        let Some(leaving) = &mut self.leaving else { return false };
        let is_taken = self.members.have_taken(&leaving.owned);
        if !leaving.is_over(self.members.has_peers(), is_taken, Instant::now()) {
            return false;
        }
        self.tell_all();
        if let Some(leaving) = self.leaving.take() {
            leaving.end();
        }
        true
    }

    /// What is due every tenth of a second.
    async fn beat(&mut self) {
        if self.key_read.elapsed() >= KEY {
            self.key_read = Instant::now();
            self.start.key.follow();
        }
        self.ask().await;
        self.session.mark(self.begun.elapsed());
        if !self.settle() {
            self.tell_all();
        }
        self.show();
    }

    /// Without peers, asks whether the API server is there: a node that hears nobody may be the one that is cut off.
    async fn ask(&mut self) {
        if self.members.has_peers() || !self.members.has_rivals() {
            self.api = Api::default();
            return self.members.set_api(None);
        }
        if let Some(pending) = self.api.pending.take_if(|pending| pending.is_finished()) {
            let answers = pending.await.unwrap_or(false);
            self.api.unanswered = if answers { 0 } else { self.api.unanswered.saturating_add(1) };
            if answers || self.api.unanswered >= UNANSWERED {
                self.members.set_api(Some(answers));
            }
        }
        let rests = self.api.asked.is_some_and(|asked| asked.elapsed() < ASK);
        if self.api.pending.is_none() && !rests {
            self.api.asked = Some(Instant::now());
            let access = self.start.access.clone();
            let asks = async move { tokio::time::timeout(ASK, kubernetes::answers(&access)).await.unwrap_or(false) };
            self.api.pending = Some(tokio::spawn(asks));
        }
    }

    /// Takes what came.
    fn hear(&mut self, socket: &UdpSocket) {
        let mut buffer = [0; LONGEST + 1];
        for _ in 0..BATCH {
            let (length, from) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What a peer's host said of a datagram that was sent to it.
                Err(_) => continue,
            };
            self.hear_one(&buffer[..length], from);
        }
    }

    fn hear_one(&mut self, octets: &[u8], from: SocketAddr) {
        let now = self.begun.elapsed();
        let heard = match self.session.hear(octets, self.start.key.keys(), now) {
            Ok(heard) => heard,
            Err(reject) => return self.count(rejected(reject)),
        };
        self.count(if heard.said.is_some() { "accepted" } else { "unconfirmed" });
        if !self.start.situation.places.contains_key(&heard.name) {
            self.strays.insert(Arc::clone(&heard.name), from);
        }
        if heard.answer {
            let datagrams = self.session.answer(&heard.name, self.start.key.keys());
            self.send(&heard.name, &datagrams);
        }
        if let Some(said) = heard.said
            && self.members.hear(&heard.name, said, heard.hears_us, now)
        {
            self.settle();
        }
    }

    /// Settles what is owned, and does what follows. Whether all were told.
    fn settle(&mut self) -> bool {
        let settled = self.members.turn(self.begun.elapsed());
        self.session.say(&self.members.said());
        let changed = !settled.gained.is_empty() || !settled.lost.is_empty();
        self.announce(&settled);
        if changed {
            self.counts.takeovers += settled.gained.len() as u64;
            *self.shared.owned() = Arc::clone(self.members.owned());
            let _ = self.events.send(Event::Owners);
            self.tell_all();
            log(&settled);
            self.show();
        }
        changed
    }

    fn announce(&mut self, settled: &Settled) {
        let owning = Owning {
            owned: self.members.owned().as_ref().clone(),
            watched: self.members.watched(),
            peers: self.members.peer_macs().into_iter().map(MacAddr).collect(),
        };
        if owning != self.owning {
            self.owning = owning.clone();
            self.announcer.own(owning);
        }
        if !settled.again.is_empty() {
            self.announcer.again(&settled.again);
        }
    }

    fn tell_all(&mut self) {
        let situation = Arc::clone(&self.start.situation);
        self.strays.retain(|name, _| !situation.places.contains_key(name));
        let names: Vec<Name> = situation.places.keys().chain(self.strays.keys()).cloned().collect();
        let own = Name::clone(&self.start.name);
        for name in names.iter().filter(|name| **name != own) {
            let datagrams = self.session.datagrams(name, self.start.key.keys());
            self.send(name, &datagrams);
        }
    }

    fn send(&mut self, to: &Name, datagrams: &[Vec<u8>]) {
        let places = match self.start.situation.places.get(to) {
            Some(places) => places.iter().map(|place| SocketAddr::new(*place, self.start.port)).collect(),
            None => Vec::from_iter(self.strays.get(to).copied()),
        };
        for place in places {
            for octets in datagrams {
                let sent = self.socket.send_to(octets, self.reachable(place)).is_ok();
                self.count(if sent { "sent" } else { "unsendable" });
            }
        }
    }

    /// An address as the socket takes it.
    fn reachable(&self, place: SocketAddr) -> SocketAddr {
        let v6 = self.socket.local_addr().is_ok_and(|own| own.is_ipv6());
        match place.ip() {
            IpAddr::V4(v4) if v6 => SocketAddr::new(v4.to_ipv6_mapped().into(), place.port()),
            _ => place,
        }
    }

    fn count(&mut self, result: &'static str) {
        *self.counts.heartbeats.entry(result).or_default() += 1;
    }

    /// Shows how things stand.
    fn show(&self) {
        let now = self.begun.elapsed();
        let own = Member {
            name: self.start.name.to_string(),
            standing: self.members.standing().as_str(),
            owned: self.members.owned().len(),
            silent_ms: None,
        };
        let others = self.members.peers(now).map(|(name, standing, owned, silent)| Member {
            name: name.to_string(),
            standing: standing.as_str(),
            owned,
            silent_ms: Some(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        });
        let owners = self.members.owners().into_iter();
        let standing = Standing {
            members: std::iter::once(own).chain(others).collect(),
            owners: owners.map(|(address, name)| (address, name.map(|name| name.to_string()))).collect(),
            counts: self.counts.clone(),
        };
        *self.shared.standing() = standing;
    }
}

/// One socket for both families, where the host has both.
fn bind(port: u16) -> io::Result<std::net::UdpSocket> {
    let both = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port));
    let socket = match both {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => std::net::UdpSocket::bind(("0.0.0.0", port))?,
        other => other?,
    };
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn every(period: Duration) -> Interval {
    let mut beats = interval(period);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

fn rejected(reject: Reject) -> &'static str {
    match reject {
        Reject::Malformed => "malformed",
        Reject::Unauthenticated => "unauthenticated",
        Reject::Replayed => "replayed",
        Reject::Own => "own",
    }
}

fn log(settled: &Settled) {
    for address in &settled.gained {
        tracing::info!(%address, "announced by this node from now on");
    }
    for (address, why) in &settled.lost {
        let why = match why {
            Why::Gone => "no Service has it any more".to_owned(),
            Why::Excluded => "this node is excluded from load balancers".to_owned(),
            Why::NoEndpoint => "this node has no endpoint of its Services, others have".to_owned(),
            Why::Draining | Why::Leaving => "this node is to end".to_owned(),
            Why::Isolated => "neither another node nor the API server is heard".to_owned(),
            Why::Peer(name) => format!("{name} announces it too"),
            Why::Machine(mac) => format!("{} announces it too", MacAddr(*mac)),
        };
        tracing::info!(%address, "not announced by this node any more: {why}");
    }
}

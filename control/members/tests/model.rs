//! Nodes that talk over a bad network: whatever happened, once it is quiet every address has one owner among those that
//! are connected, and nothing moved that need not.
//!
//! Every node has a clock of its own that started at another time, and hears the real octets of real sessions, lost,
//! late and out of order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_members::datagram::Keys;
use millrace_members::session::Session;
use millrace_members::{Candidates, Cluster, Mac, Members, Name, Time, Timing};
use proptest::prelude::*;

const STEP: Time = Duration::from_millis(10);
/// Longer than anything takes to settle: a death, three turns of the vacant, and a hand-over.
const QUIET: Time = Duration::from_secs(12);

struct Node {
    name: Name,
    members: Members,
    session: Session,
    /// What its clock says at the start of the world.
    offset: Time,
    next: Time,
    api: bool,
    is_up: bool,
}

/// A datagram on its way: when it arrives, from, to, octets.
type Flight = (Time, usize, usize, Vec<u8>);

struct World {
    nodes: Vec<Node>,
    now: Time,
    /// Ordered pairs that no datagram passes between.
    cut: BTreeSet<(usize, usize)>,
    /// Whether ARP passes where datagrams do not.
    one_segment: bool,
    flights: Vec<Flight>,
    /// Lost of 100.
    loss: u32,
    /// Longest delay, in steps.
    delay: u32,
    random: u64,
    boots: u64,
    keys: Keys,
    cluster: Cluster,
    moves: u32,
}

fn name(at: usize) -> Name {
    format!("n{at}").into()
}

fn mac(at: usize) -> Mac {
    [2, 0, 0, 0, 0, at as u8]
}

fn addresses(count: u8) -> impl Iterator<Item = IpAddr> {
    (1..=count).map(|n| IpAddr::from([192, 0, 2, n]))
}

impl World {
    fn new(count: usize, vips: u8, seed: u64) -> Self {
        let nodes = (0..count).map(|at| (name(at), false)).collect();
        let cluster = Cluster { nodes, addresses: addresses(vips).map(|vip| (vip, Candidates::All)).collect() };
        let mut world = Self {
            nodes: Vec::new(),
            now: Time::ZERO,
            cut: BTreeSet::new(),
            one_segment: false,
            flights: Vec::new(),
            loss: 0,
            delay: 0,
            random: seed | 1,
            boots: 0,
            keys: Keys::parse(b"a key that is long enough").unwrap(),
            cluster,
            moves: 0,
        };
        for at in 0..count {
            let node = world.start(at, BTreeSet::new());
            world.nodes.push(node);
        }
        world
    }

    fn start(&mut self, at: usize, inherited: BTreeSet<IpAddr>) -> Node {
        self.boots += 1;
        // Days apart.
        let offset = Duration::from_secs(100_000 * (at as u64 + 1) + self.random() % 1000);
        let mut members = Members::new(name(at), vec![mac(at)], Timing::default(), inherited, self.now + offset);
        members.set_cluster(self.cluster.clone());
        let session = Session::new(name(at), self.boots, &members.said());
        Node { name: name(at), members, session, offset, next: self.now, api: true, is_up: true }
    }

    fn restart(&mut self, at: usize, inherited: BTreeSet<IpAddr>) {
        let api = self.nodes[at].api;
        let node = self.start(at, inherited);
        self.nodes[at] = Node { api, ..node };
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn set_cluster(&mut self, cluster: Cluster) {
        self.cluster = cluster;
        for node in &mut self.nodes {
            node.members.set_cluster(self.cluster.clone());
        }
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a, b))
    }

    fn send(&mut self, from: usize, to: usize, datagrams: Vec<Vec<u8>>) {
        for octets in datagrams {
            if self.is_cut(from, to) || self.random() % 100 < u64::from(self.loss) {
                continue;
            }
            let delay = if self.delay == 0 { 0 } else { self.random() % u64::from(self.delay) };
            self.flights.push((self.now + STEP * delay as u32, from, to, octets));
        }
    }

    /// A node settles, tells the others if that changed anything, or if it is time to.
    fn turn(&mut self, at: usize, is_time: bool) {
        let now = self.now;
        let count = self.nodes.len();
        let node = &mut self.nodes[at];
        node.members.set_api((!node.members.has_peers()).then_some(node.api));
        let settled = node.members.turn(now + node.offset);
        let changed = !settled.gained.is_empty() || !settled.lost.is_empty();
        self.moves += settled.gained.len() as u32;
        if is_time {
            node.session.mark(now + node.offset);
        }
        node.session.say(&node.members.said());
        if is_time || changed {
            for to in (0..count).filter(|to| *to != at) {
                let datagrams = self.nodes[at].session.datagrams(&name(to), &self.keys);
                self.send(at, to, datagrams);
            }
        }
        for address in settled.gained.into_iter().chain(settled.again) {
            self.announce(at, address);
        }
    }

    /// A gratuitous ARP: whoever owns the address too defends it.
    fn announce(&mut self, at: usize, address: IpAddr) {
        for to in (0..self.nodes.len()).filter(|to| *to != at) {
            let passes = self.nodes[to].is_up && (self.one_segment || !self.is_cut(at, to));
            if passes {
                let node = &mut self.nodes[to];
                node.members.contest(address, mac(at), mac(to), self.now + node.offset);
                if node.members.owned().contains(&address) {
                    let node = &mut self.nodes[at];
                    node.members.contest(address, mac(to), mac(at), self.now + node.offset);
                }
            }
        }
    }

    /// Who left an address to another asks whether that still answers.
    fn probe(&mut self, at: usize) {
        for address in self.nodes[at].members.watched() {
            for to in (0..self.nodes.len()).filter(|to| *to != at) {
                let passes = self.nodes[to].is_up && (self.one_segment || !self.is_cut(at, to));
                if passes && self.nodes[to].members.owned().contains(&address) {
                    let node = &mut self.nodes[at];
                    node.members.contest(address, mac(to), mac(at), self.now + node.offset);
                }
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let (due, later) = std::mem::take(&mut self.flights).into_iter().partition(|flight| flight.0 <= self.now);
        self.flights = later;
        let due: Vec<Flight> = due;
        for (_, from, to, octets) in due {
            if !self.nodes[to].is_up {
                continue;
            }
            let node = &mut self.nodes[to];
            let now = self.now + node.offset;
            let Ok(heard) = node.session.hear(&octets, &self.keys, now) else { continue };
            if heard.answer {
                let answer = node.session.answer(&heard.name, &self.keys);
                self.send(to, from, answer);
            }
            let node = &mut self.nodes[to];
            if let Some(said) = heard.said
                && node.members.hear(&heard.name, said, heard.hears_us, now)
            {
                self.turn(to, false);
            }
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_up && self.nodes[at].next <= self.now {
                self.nodes[at].next = self.now + Timing::default().heartbeat;
                self.probe(at);
                self.turn(at, true);
            }
        }
    }

    fn pass(&mut self, time: Time) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn owners(&self, address: IpAddr) -> Vec<usize> {
        let owns = |at: &usize| self.nodes[*at].is_up && self.nodes[*at].members.owned().contains(&address);
        (0..self.nodes.len()).filter(owns).collect()
    }

    fn all_owners(&self) -> BTreeMap<IpAddr, Vec<usize>> {
        self.cluster.addresses.keys().map(|address| (*address, self.owners(*address))).collect()
    }

    fn kill(&mut self, at: usize) {
        self.nodes[at].is_up = false;
    }

    /// It says goodbye and ends.
    fn stop(&mut self, at: usize) {
        self.nodes[at].members.leave();
        self.turn(at, true);
        self.nodes[at].is_up = false;
    }

    fn part(&mut self, groups: &[&[usize]]) {
        for (a, b) in (0..self.nodes.len()).flat_map(|a| (0..self.nodes.len()).map(move |b| (a, b))) {
            let together = groups.iter().any(|group| group.contains(&a) && group.contains(&b));
            if together {
                self.cut.remove(&(a, b))
            } else {
                self.cut.insert((a, b))
            };
        }
    }

    fn assert_one_owner_each(&self) {
        for (address, owners) in self.all_owners() {
            assert_eq!(owners.len(), 1, "{address} at {:?}: {owners:?}", self.now);
        }
    }

    /// How long it takes until every address has one owner, and after that still has.
    fn settles_in(&mut self, most: Time) -> Time {
        let begun = self.now;
        let mut last = None;
        while self.now < begun + most + QUIET {
            let is_good = self.all_owners().values().all(|owners| owners.len() == 1);
            last = if is_good { last.or(Some(self.now - begun)) } else { None };
            self.step();
        }
        let took = last.expect("it settles");
        assert!(took <= most, "it took {took:?}");
        took
    }
}

#[test]
fn nodes_that_start_together_share_the_addresses_and_nothing_moves_then() {
    let mut world = World::new(4, 100, 1);
    world.settles_in(Duration::from_secs(2));
    let mut counts = [0; 4];
    world.all_owners().values().for_each(|owners| counts[owners[0]] += 1);
    assert!(counts.iter().all(|count| *count >= 10), "{counts:?}");
    assert_eq!(world.moves, 100);
    let owners = world.all_owners();
    (world.loss, world.delay) = (30, 8);
    world.pass(Duration::from_secs(60));
    assert_eq!((world.all_owners(), world.moves), (owners, 100), "three heartbeats of ten are lost, others are late");
}

#[test]
fn a_killed_nodes_addresses_are_elsewhere_in_less_than_two_seconds_and_stay_when_it_comes_back() {
    let mut world = World::new(3, 20, 2);
    world.pass(Duration::from_secs(3));
    let before = world.all_owners();
    world.kill(0);
    world.settles_in(Duration::from_millis(1400));
    let after = world.all_owners();
    for (address, owners) in &before {
        assert!(owners == &after[address] || owners == &[0], "{address} moved from {owners:?}");
    }
    world.restart(0, BTreeSet::new());
    world.pass(Duration::from_secs(5));
    assert_eq!(world.all_owners(), after);
}

#[test]
fn a_stopped_nodes_addresses_are_elsewhere_at_once() {
    let mut world = World::new(3, 20, 3);
    world.delay = 3;
    world.pass(Duration::from_secs(3));
    world.stop(1);
    world.settles_in(Duration::from_millis(100));
}

#[test]
fn a_successor_keeps_what_its_predecessor_owned() {
    for gap in [0, 300, 4000] {
        let mut world = World::new(3, 20, 4);
        world.pass(Duration::from_secs(3));
        let before = world.all_owners();
        let owned = world.nodes[2].members.hand_over();
        world.turn(2, true);
        world.nodes[2].is_up = false;
        world.pass(Duration::from_millis(gap));
        world.restart(2, owned);
        world.pass(Duration::from_secs(5));
        assert_eq!(world.all_owners(), before, "after {gap} ms");
    }
}

#[test]
fn partitions_settle_within_a_second_of_their_end() {
    for seed in 1..10 {
        let mut world = World::new(4, 30, seed);
        (world.loss, world.delay) = (10, 4);
        world.pass(Duration::from_secs(3));
        world.part(&[&[0, 1], &[2, 3]]);
        world.pass(Duration::from_secs(10));
        let doubled = world.all_owners().values().filter(|owners| owners.len() == 2).count();
        assert_eq!(doubled, 30, "each side serves its clients");
        world.part(&[&[0, 1, 2, 3]]);
        world.settles_in(Duration::from_secs(1));
    }
}

#[test]
fn nodes_that_do_not_hear_each_other_on_one_segment_settle_by_arp() {
    for seed in 1..10 {
        let mut world = World::new(3, 20, seed);
        world.one_segment = true;
        world.pass(Duration::from_secs(3));
        world.part(&[&[0], &[1, 2]]);
        world.settles_in(Duration::from_millis(3500));
        world.part(&[&[0, 1, 2]]);
        world.settles_in(Duration::from_secs(1));
    }
}

#[test]
fn a_node_without_peers_and_api_server_owns_nothing_and_the_others_everything() {
    let mut world = World::new(3, 20, 5);
    world.pass(Duration::from_secs(3));
    world.part(&[&[0], &[1, 2]]);
    world.nodes[0].api = false;
    world.settles_in(Duration::from_millis(1500));
    assert!(world.nodes[0].members.owned().is_empty());
    world.nodes[1].api = false;
    world.nodes[2].api = false;
    world.pass(Duration::from_secs(5));
    world.assert_one_owner_each();
}

#[test]
fn of_two_of_which_one_hears_the_other_alone_one_owns() {
    for pair in [(0, 1), (1, 0)] {
        let mut world = World::new(2, 20, 6);
        world.pass(Duration::from_secs(3));
        world.cut.insert(pair);
        world.pass(Duration::from_secs(5));
        world.assert_one_owner_each();
    }
}

/// Something that happens to the world.
#[derive(Clone, Debug)]
enum Happens {
    Kill(usize),
    Stop(usize),
    Restart(usize),
    Part(u8),
    OneWay(usize, usize),
    Heal,
    Exclude(usize, bool),
    Local(u8, u8),
    Api(usize, bool),
    Weather(u32, u32),
    Pass(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let node = 0..4usize;
    prop_oneof![
        node.clone().prop_map(Happens::Kill),
        node.clone().prop_map(Happens::Stop),
        node.clone().prop_map(Happens::Restart),
        any::<u8>().prop_map(Happens::Part),
        (node.clone(), node.clone()).prop_map(|(a, b)| Happens::OneWay(a, b)),
        Just(Happens::Heal),
        (node.clone(), any::<bool>()).prop_map(|(at, excluded)| Happens::Exclude(at, excluded)),
        (1..6u8, 1..16u8).prop_map(|(vip, nodes)| Happens::Local(vip, nodes)),
        (node, any::<bool>()).prop_map(|(at, api)| Happens::Api(at, api)),
        (0..40u32, 0..20u32).prop_map(|(loss, delay)| Happens::Weather(loss, delay)),
        (0..4000u64).prop_map(Happens::Pass),
    ]
}

impl World {
    fn happen(&mut self, what: &Happens) {
        match *what {
            Happens::Kill(at) => self.kill(at),
            Happens::Stop(at) if self.nodes[at].is_up => self.stop(at),
            Happens::Stop(_) => {}
            Happens::Restart(at) => self.restart(at, BTreeSet::new()),
            Happens::Part(sides) => {
                let side = |of: u8| (0..4).filter(|at| sides >> at & 1 == of).collect::<Vec<usize>>();
                self.part(&[&side(0), &side(1)]);
            }
            Happens::OneWay(a, b) if a != b => drop(self.cut.insert((a, b))),
            Happens::OneWay(..) => {}
            Happens::Heal => self.cut.clear(),
            Happens::Exclude(at, excluded) => {
                let mut cluster = self.cluster.clone();
                cluster.nodes.insert(name(at), excluded);
                self.set_cluster(cluster);
            }
            Happens::Local(vip, nodes) => {
                let names = (0..4).filter(|at| nodes >> at & 1 == 1).map(name).collect();
                let mut cluster = self.cluster.clone();
                cluster.addresses.insert(IpAddr::from([192, 0, 2, vip]), Candidates::These(Arc::new(names)));
                self.set_cluster(cluster);
            }
            Happens::Api(at, api) => self.nodes[at].api = api,
            Happens::Weather(loss, delay) => (self.loss, self.delay) = (loss, delay),
            Happens::Pass(ms) => self.pass(Duration::from_millis(ms)),
        }
    }

    /// Who may own an address, of those that run.
    fn may_own(&self, candidates: &Candidates) -> Vec<usize> {
        let may = |at: &usize| {
            let named = match candidates {
                Candidates::All => true,
                Candidates::These(names) => names.contains(&self.nodes[*at].name),
            };
            self.nodes[*at].is_up && named && !self.cluster.nodes[&self.nodes[*at].name]
        };
        (0..self.nodes.len()).filter(may).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// Whatever happens: once all hear each other and the API server, every address that somebody may own has one owner,
    /// who may; and nothing moves any more.
    #[test]
    fn once_it_is_quiet_every_address_has_one_owner(
        what in proptest::collection::vec(happens(), 1..25),
        seed in any::<u64>(),
        one_segment in any::<bool>(),
    ) {
        let mut world = World::new(4, 6, seed);
        world.one_segment = one_segment;
        for one in &what {
            world.happen(one);
        }
        (world.loss, world.delay) = (0, 0);
        world.cut.clear();
        world.nodes.iter_mut().for_each(|node| node.api = true);
        world.pass(QUIET);
        for (address, candidates) in &world.cluster.addresses.clone() {
            let (owners, may) = (world.owners(*address), world.may_own(candidates));
            prop_assert_eq!(owners.len(), usize::from(!may.is_empty()), "{} of {:?}: {:?}", address, may, owners);
            prop_assert!(owners.iter().all(|owner| may.contains(owner)), "{} of {:?}: {:?}", address, may, owners);
        }
        let (owners, moves) = (world.all_owners(), world.moves);
        world.pass(Duration::from_secs(5));
        prop_assert_eq!((world.all_owners(), world.moves), (owners, moves));
    }
}

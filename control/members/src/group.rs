//! Who lives, and what this node owns: the rules, one function each.
//!
//! Invariants: an address that this node owns is never claimed anew; one that a live peer owns is never claimed; of two
//! live owners that hear each other exactly one gives up. A node that starts claims nothing before it listened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::{Candidates, Cluster, Mac, Name, Said, Standing, Time, Timing, rank};

/// How long link-layer addresses of a peer that took its leave may still be heard to claim something.
const FAREWELL: Time = Time::from_secs(5);

/// What changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Owned from now on.
    pub gained: Vec<IpAddr>,
    /// Not any more, and why.
    pub lost: Vec<(IpAddr, Why)>,
    /// Owned as before, and to be announced again: another owner gave it up.
    pub again: Vec<IpAddr>,
}

/// Why an address is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody is to own it any more.
    Gone,
    /// This node is excluded.
    Excluded,
    /// This node may not own it: it has no ready endpoint of a Service of policy Local.
    NoEndpoint,
    /// This node is to end, and another can have it.
    Draining,
    /// This node ends.
    Leaving,
    /// This node has neither a peer nor the API server, and others may own it.
    Isolated,
    /// A peer that ranks higher owns it too, or one that does not hear this node.
    Peer(Name),
    /// A machine that is no peer answers for it, and ranks higher.
    Machine(Mac),
}

/// A node that was heard.
#[derive(Clone, Debug)]
struct Peer {
    heard: Time,
    said: Said,
    /// Since when it does not hear this node.
    deaf_since: Option<Time>,
}

/// An owner beside this node.
struct Rival<'m> {
    name: &'m Name,
    peer: &'m Peer,
}

/// This node among the others.
#[derive(Debug)]
pub struct Members {
    name: Name,
    timing: Timing,
    cluster: Cluster,
    peers: BTreeMap<Name, Peer>,
    owned: Arc<BTreeSet<IpAddr>>,
    macs: Vec<Mac>,
    /// Until when it listens; none once it is a member.
    joining: Option<Time>,
    draining: bool,
    /// Its last word, if that was said.
    last: Option<Standing>,
    /// Whether the API server answers; none while nobody asked.
    api: Option<bool>,
    /// Addresses that nobody owns, and since when.
    vacant: BTreeMap<IpAddr, Time>,
    /// Addresses that are left to a machine that is no peer, until when, and to which.
    yielded: BTreeMap<IpAddr, (Time, Mac)>,
    /// Addresses that a peer owns too, which is to give them up.
    contested: BTreeSet<IpAddr>,
    /// Link-layer addresses of peers that took their leave, and until when they are known.
    left: BTreeMap<Mac, Time>,
    lost: Vec<(IpAddr, Why)>,
}

impl Members {
    /// A node that starts, with what its predecessor on this node owned.
    #[must_use]
    pub fn new(name: Name, macs: Vec<Mac>, timing: Timing, inherited: BTreeSet<IpAddr>, now: Time) -> Self {
        Self {
            name,
            timing,
            cluster: Cluster::default(),
            peers: BTreeMap::new(),
            owned: Arc::new(inherited),
            macs,
            joining: Some(now + timing.join),
            draining: false,
            last: None,
            api: None,
            vacant: BTreeMap::new(),
            yielded: BTreeMap::new(),
            contested: BTreeSet::new(),
            left: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    /// What it is to tell the others.
    #[must_use]
    pub fn said(&self) -> Said {
        Said { standing: self.standing(), owned: Arc::clone(&self.owned), macs: self.macs.clone() }
    }

    /// What it owns.
    #[must_use]
    pub fn owned(&self) -> &Arc<BTreeSet<IpAddr>> {
        &self.owned
    }

    /// What it says of itself.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.last {
            Some(last) => last,
            None if self.draining => Standing::Draining,
            None if self.is_excluded(&self.name) => Standing::Aside,
            None if self.joining.is_some() => Standing::Joining,
            None => Standing::Member,
        }
    }

    /// Whether any other node is heard.
    #[must_use]
    pub fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Whether others may own what this node may: then, without peers, the API server is to be asked.
    #[must_use]
    pub fn has_rivals(&self) -> bool {
        self.cluster.nodes.iter().any(|(name, excluded)| !excluded && *name != self.name)
    }

    /// The others: name, what it says of itself, how many addresses it owns, how long it was not heard.
    pub fn peers(&self, now: Time) -> impl Iterator<Item = (&Name, Standing, usize, Time)> {
        self.peers
            .iter()
            .map(move |(name, peer)| (name, peer.said.standing, peer.said.owned.len(), now.saturating_sub(peer.heard)))
    }

    /// Link-layer addresses of live peers: what they claim is settled by heartbeats.
    #[must_use]
    pub fn peer_macs(&self) -> BTreeSet<Mac> {
        self.peers.values().flat_map(|peer| peer.said.macs.iter().copied()).collect()
    }

    /// Who owns each address, as far as this node knows.
    #[must_use]
    pub fn owners(&self) -> BTreeMap<IpAddr, Option<Name>> {
        let mut owners: BTreeMap<IpAddr, Option<Name>> =
            self.cluster.addresses.keys().map(|address| (*address, None)).collect();
        for (name, peer) in &self.peers {
            for address in peer.said.owned.iter() {
                if let Some(owner) = owners.get_mut(address) {
                    *owner = Some(Arc::clone(name));
                }
            }
        }
        for address in self.owned.iter() {
            owners.insert(*address, Some(Arc::clone(&self.name)));
        }
        owners
    }

    /// Addresses that are left to machines that are no peers: whether they still answer is to be asked.
    #[must_use]
    pub fn watched(&self) -> BTreeSet<IpAddr> {
        self.yielded.keys().copied().collect()
    }

    /// Whether live peers own all of these that are to be owned.
    #[must_use]
    pub fn have_taken(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let taken = |address| self.peers.values().any(|peer| peer.said.owned.contains(address));
        addresses.iter().filter(|address| self.cluster.addresses.contains_key(address)).all(taken)
    }

    /// What the API server says now.
    pub fn set_cluster(&mut self, cluster: Cluster) {
        self.cluster = cluster;
    }

    /// Whether the API server answers; `None` while nobody asks. Counts while there is no peer.
    pub fn set_api(&mut self, answers: Option<bool>) {
        self.api = answers;
    }

    /// The link-layer addresses that it announces by.
    pub fn set_macs(&mut self, macs: Vec<Mac>) {
        self.macs = macs;
    }

    /// It is to end, later.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// It ends: what it owned is the others'. What that was.
    pub fn leave(&mut self) -> BTreeSet<IpAddr> {
        self.last = Some(Standing::Leaving);
        let owned = std::mem::take(&mut self.owned);
        self.lost.extend(owned.iter().map(|address| (*address, Why::Leaving)));
        owned.as_ref().clone()
    }

    /// Its successor on this node goes on with what it owns.
    pub fn hand_over(&mut self) -> BTreeSet<IpAddr> {
        self.last = Some(Standing::HandingOver);
        self.owned.as_ref().clone()
    }

    /// A peer said that, authentic and newer than what it said before; whether it heard this node lately. Whether that
    /// changes anything but that it lives.
    pub fn hear(&mut self, from: &Name, said: Said, hears_us: bool, now: Time) -> bool {
        if *from == self.name {
            return false;
        }
        // What it owns it says itself.
        self.yielded.retain(|_, (_, mac)| !said.macs.contains(mac));
        if said.standing == Standing::Leaving {
            self.left.extend(said.macs.iter().map(|mac| (*mac, now + FAREWELL)));
            return self.peers.remove(from).is_some();
        }
        let former = self.peers.get(from);
        let deaf_since = (!hears_us).then(|| former.and_then(|peer| peer.deaf_since).unwrap_or(now));
        let changed = former.is_none_or(|peer| peer.said != said);
        self.peers.insert(Arc::clone(from), Peer { heard: now, said, deaf_since });
        changed
    }

    /// A machine with the link-layer address `theirs` says that it has an address, where this node announces by `ours`.
    /// Of two owners that do not hear each other the same one gives up on both sides; who does not own it leaves it there.
    /// Whether anything changed.
    pub fn contest(&mut self, address: IpAddr, theirs: Mac, ours: Mac, now: Time) -> bool {
        let is_peer = self.peers.values().any(|peer| peer.said.macs.contains(&theirs));
        let has_left = self.left.get(&theirs).is_some_and(|until| now < *until);
        let stays = self.owned.contains(&address) && rank::of_mac(address, theirs) <= rank::of_mac(address, ours);
        if is_peer || has_left || stays {
            return false;
        }
        if !self.cluster.addresses.contains_key(&address) || self.last.is_some() {
            return false;
        }
        let is_new = self.yielded.insert(address, (now + self.timing.hold, theirs)).is_none();
        if Arc::make_mut(&mut self.owned).remove(&address) {
            self.lost.push((address, Why::Machine(theirs)));
        }
        is_new
    }

    /// Settles what this node owns now.
    pub fn turn(&mut self, now: Time) -> Settled {
        self.forget(now);
        let mut settled = Settled { lost: std::mem::take(&mut self.lost), ..Settled::default() };
        if self.last.is_some() {
            return settled;
        }
        let rivals = self.rivals();
        let mut contested = BTreeSet::new();
        for &address in self.owned.iter() {
            let of_address = rivals.get(&address).map(Vec::as_slice).unwrap_or_default();
            if let Some(why) = self.must_give_up(address, of_address, now) {
                settled.lost.push((address, why));
            } else if !of_address.is_empty() {
                contested.insert(address);
            } else if self.contested.contains(&address) {
                settled.again.push(address);
            }
        }
        let claimed: BTreeSet<IpAddr> = rivals.into_keys().collect();
        let lost: BTreeSet<IpAddr> = settled.lost.iter().map(|(address, _)| *address).collect();
        if !lost.is_empty() {
            Arc::make_mut(&mut self.owned).retain(|address| !lost.contains(address));
        }
        self.contested = contested;
        settled.gained = self.claims(&claimed, now);
        if !settled.gained.is_empty() {
            Arc::make_mut(&mut self.owned).extend(&settled.gained);
        }
        settled
    }

    /// Lets go of the dead, and of what is over.
    fn forget(&mut self, now: Time) {
        let Timing { dead, handing_over, .. } = self.timing;
        self.peers.retain(|_, peer| {
            let patience = if peer.said.standing == Standing::HandingOver { handing_over } else { dead };
            now < peer.heard + patience
        });
        self.yielded.retain(|_, (until, _)| now < *until);
        self.left.retain(|_, until| now < *until);
        let nodes = &self.cluster.nodes;
        let unheard = nodes.keys().any(|name| *name != self.name && !self.peers.contains_key(name));
        if self.joining.is_some_and(|until| until <= now || !unheard) {
            self.joining = None;
        }
    }

    /// The peers that own each address.
    fn rivals(&self) -> BTreeMap<IpAddr, Vec<Rival<'_>>> {
        let mut rivals: BTreeMap<IpAddr, Vec<Rival<'_>>> = BTreeMap::new();
        for (name, peer) in &self.peers {
            for address in peer.said.owned.iter() {
                rivals.entry(*address).or_default().push(Rival { name, peer });
            }
        }
        rivals
    }

    /// Why an address that this node owns is to be given up, if it is.
    fn must_give_up(&self, address: IpAddr, rivals: &[Rival<'_>], now: Time) -> Option<Why> {
        let Some(candidates) = self.cluster.addresses.get(&address) else { return Some(Why::Gone) };
        if self.is_excluded(&self.name) {
            return Some(Why::Excluded);
        }
        if !candidates.is_nobody() && !candidates.has(&self.name) {
            return Some(Why::NoEndpoint);
        }
        if let Some(rival) = rivals.iter().find(|rival| self.yields_to(address, rival, now)) {
            return Some(Why::Peer(Arc::clone(rival.name)));
        }
        let others = || self.peers.iter().any(|(name, peer)| self.takes(name, peer, candidates));
        if self.draining && others() {
            return Some(Why::Draining);
        }
        let alone = self.peers.is_empty() && self.api == Some(false);
        (alone && !self.is_only_one(candidates)).then_some(Why::Isolated)
    }

    /// Of two that hear each other the one that ranks lower gives up; to one that does not hear this node, this one does.
    fn yields_to(&self, address: IpAddr, rival: &Rival<'_>, now: Time) -> bool {
        if rival.peer.deaf_since.is_some_and(|since| since + self.timing.step <= now) {
            return true;
        }
        let theirs = (class(rival.peer.said.standing), rank::of_node(address, rival.name), rival.name);
        let ours = (class(self.standing()), rank::of_node(address, &self.name), &self.name);
        theirs > ours
    }

    /// What falls to this node: addresses that nobody owns, each once those that rank higher had their time.
    fn claims(&mut self, claimed: &BTreeSet<IpAddr>, now: Time) -> Vec<IpAddr> {
        let is_vacant = |address: &IpAddr| {
            !self.owned.contains(address) && !claimed.contains(address) && !self.yielded.contains_key(address)
        };
        let vacant: BTreeMap<IpAddr, Time> = self
            .cluster
            .addresses
            .keys()
            .filter(|address| is_vacant(address))
            .map(|address| (*address, self.vacant.get(address).copied().unwrap_or(now)))
            .collect();
        self.vacant = vacant;
        if self.standing() != Standing::Member {
            return Vec::new();
        }
        let falls_here = |address: &IpAddr, since: Time| {
            let Some(candidates) = self.cluster.addresses.get(address) else { return false };
            let reaches = !self.peers.is_empty() || self.api == Some(true) || self.is_only_one(candidates);
            reaches && candidates.has(&self.name) && since + self.timing.step * self.before(*address, candidates) <= now
        };
        let gained = self.vacant.iter().filter(|(address, since)| falls_here(address, **since));
        let gained: Vec<IpAddr> = gained.map(|(address, _)| *address).collect();
        self.vacant.retain(|address, _| !gained.contains(address));
        gained
    }

    /// How many live nodes that may own an address rank before this one.
    fn before(&self, address: IpAddr, candidates: &Candidates) -> u32 {
        let ours = (rank::of_node(address, &self.name), &self.name);
        let may = |name: &Name, peer: &Peer| {
            let standing = matches!(peer.said.standing, Standing::Joining | Standing::Member | Standing::HandingOver);
            standing && !self.is_excluded(name) && candidates.has(name)
        };
        let before = self.peers.iter().filter(|(name, peer)| may(name, peer));
        let before = before.filter(|(name, _)| (rank::of_node(address, name), *name) > ours).count();
        u32::try_from(before).unwrap_or(u32::MAX)
    }

    /// Whether a peer would take an address that this node gives up.
    fn takes(&self, name: &Name, peer: &Peer, candidates: &Candidates) -> bool {
        peer.said.standing == Standing::Member && !self.is_excluded(name) && candidates.has(name)
    }

    fn is_excluded(&self, name: &Name) -> bool {
        self.cluster.nodes.get(name).copied().unwrap_or(false)
    }

    /// Whether no other Node may own an address.
    fn is_only_one(&self, candidates: &Candidates) -> bool {
        let may = |(name, excluded): (&Name, &bool)| *name != self.name && !excluded && candidates.has(name);
        !self.cluster.nodes.iter().any(may)
    }
}

/// What counts before the rank: who is to end, or only just begins, gives up to whom stays.
fn class(standing: Standing) -> u8 {
    match standing {
        Standing::Member | Standing::HandingOver => 2,
        Standing::Draining => 1,
        Standing::Joining | Standing::Aside | Standing::Leaving => 0,
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;

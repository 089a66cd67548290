//! What this node sends to whom, and which of what comes counts.
//!
//! A datagram counts if it is authentic, was not heard before, and is of a process that is known: one that restarted is
//! known once it says that it heard something that this node sent a moment ago, so that nothing that was recorded can be
//! played again. Each side tells which set of the other's addresses it has whole, and parts are sent until it has the
//! newest. The window of counters is RFC 4303's, section 3.4.3.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::datagram::{self, Datagram, Keys, MOST_MACS, MOST_PARTS, Place, Reject};
use crate::{Mac, Name, Said, Standing, Time};

/// How old what a new process heard of this node may be.
const FRESH: Duration = Duration::from_secs(5);
/// How old what a peer heard of this node may be for the peer to hear it.
const HEARS: Duration = Duration::from_millis(1200);
/// Between two answers to a peer at once.
const ANSWER: Duration = Duration::from_millis(20);
/// Former processes of a peer that are remembered.
const RETIRED: usize = 8;
/// Most nodes.
const MOST_PEERS: usize = 5000;

/// This node as the others hear it, and what it heard of them.
#[derive(Debug)]
pub struct Session {
    name: Name,
    place: Place,
    standing: Standing,
    macs: Vec<Mac>,
    owned: Arc<BTreeSet<IpAddr>>,
    generation: u32,
    parts: Vec<Vec<IpAddr>>,
    /// What the counter was when.
    marks: VecDeque<(Time, u64)>,
    peers: BTreeMap<Name, Peer>,
}

/// What counts of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Of whom.
    pub name: Name,
    /// What it says; none before its process is known and all its addresses are.
    pub said: Option<Said>,
    /// Whether it heard this node lately.
    pub hears_us: bool,
    /// Whether it is to be answered at once, for it waits for that.
    pub answer: bool,
}

#[derive(Debug, Default)]
struct Peer {
    known: Option<Known>,
    /// A process that is not known yet, where it was heard last.
    candidate: Option<Place>,
    retired: VecDeque<u64>,
    /// The set of ours that it has whole.
    has: u32,
    answered: Option<Time>,
}

/// The process of a peer.
#[derive(Debug)]
struct Known {
    boot: u64,
    window: Window,
    standing: Standing,
    macs: Vec<Mac>,
    /// The newest set of addresses that is told of.
    generation: u32,
    parts: BTreeMap<u16, Vec<IpAddr>>,
    /// The newest that is whole.
    whole: Option<(u32, Arc<BTreeSet<IpAddr>>)>,
}

/// Counters that were heard: the newest, and which of the 64 up to it.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    newest: u64,
    seen: u64,
}

impl Window {
    /// Whether a counter is heard for the first time.
    fn take(&mut self, counter: u64) -> bool {
        if counter > self.newest {
            let ahead = counter - self.newest;
            self.seen = if ahead < 64 { self.seen << ahead } else { 0 };
            self.seen |= 1;
            self.newest = counter;
            return true;
        }
        let behind = self.newest - counter;
        let bit = if behind < 64 { 1 << behind } else { 0 };
        let is_new = bit != 0 && self.seen & bit == 0;
        self.seen |= bit;
        is_new
    }
}

impl Session {
    /// A process of a node; `boot` is a random number of it.
    #[must_use]
    pub fn new(name: Name, boot: u64, said: &Said) -> Self {
        let mut session = Self {
            name,
            place: Place { boot: boot.max(1), counter: 0 },
            standing: said.standing,
            macs: Vec::new(),
            owned: Arc::default(),
            generation: 1,
            parts: Vec::new(),
            marks: VecDeque::new(),
            peers: BTreeMap::new(),
        };
        session.say(said);
        session
    }

    /// What is told from now on.
    pub fn say(&mut self, said: &Said) {
        self.standing = said.standing;
        self.macs = said.macs.iter().take(MOST_MACS).copied().collect();
        if self.owned != said.owned {
            self.owned = Arc::clone(&said.owned);
            self.generation = self.generation.wrapping_add(1).max(1);
            self.parts = parts(&said.owned, datagram::room(&self.name, MOST_MACS));
        }
    }

    /// A time of which is known what was sent before: to be called with each heartbeat.
    pub fn mark(&mut self, now: Time) {
        self.marks.push_back((now, self.place.counter));
        while self.marks.get(1).is_some_and(|(then, _)| *then + FRESH <= now) {
            self.marks.pop_front();
        }
    }

    /// What is to be sent to a peer now.
    pub fn datagrams(&mut self, to: &Name, keys: &Keys) -> Vec<Vec<u8>> {
        let peer = self.peers.get(to);
        let known = peer.and_then(|peer| peer.known.as_ref());
        let heard = known.map(|known| Place { boot: known.boot, counter: known.window.newest });
        let heard = heard.or_else(|| peer.and_then(|peer| peer.candidate));
        let have = known.and_then(|known| Some(known.whole.as_ref()?.0)).unwrap_or_default();
        let lacks = peer.is_none_or(|peer| peer.has != self.generation);
        self.written((heard.unwrap_or_default(), have), lacks, keys)
    }

    /// The answer to a peer that waits for one, of a process that need not be known yet.
    pub fn answer(&mut self, to: &Name, keys: &Keys) -> Vec<Vec<u8>> {
        match self.peers.get(to).and_then(|peer| peer.candidate) {
            Some(candidate) => self.written((candidate, 0), true, keys),
            None => self.datagrams(to, keys),
        }
    }

    fn written(&mut self, (heard, have): (Place, u32), lacks: bool, keys: &Keys) -> Vec<Vec<u8>> {
        let count = if lacks { self.parts.len() } else { 0 };
        let parts = u16::try_from(self.parts.len()).unwrap_or(MOST_PARTS);
        let numbers = if count == 0 { 0..=0 } else { 1..=count };
        let datagrams = numbers.map(|part| {
            self.place.counter += 1;
            let datagram = Datagram {
                name: self.name.to_string(),
                standing: self.standing,
                from: self.place,
                heard,
                generation: self.generation,
                have,
                macs: self.macs.clone(),
                part: u16::try_from(part).unwrap_or_default(),
                parts,
                addresses: part.checked_sub(1).map(|at| self.parts[at].clone()).unwrap_or_default(),
            };
            datagram.write(keys)
        });
        datagrams.collect()
    }

    /// Takes a datagram.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn hear(&mut self, octets: &[u8], keys: &Keys, now: Time) -> Result<Heard, Reject> {
        let datagram = Datagram::read(octets, keys)?;
        if datagram.name == *self.name {
            return Err(Reject::Own);
        }
        let name = Name::from(datagram.name.as_str());
        if !self.peers.contains_key(&name) && self.peers.len() >= MOST_PEERS {
            return Err(Reject::Malformed);
        }
        let reached = |age: Duration| self.reached(now, age);
        let ours = datagram.heard.boot == self.place.boot && datagram.heard.counter <= self.place.counter;
        let fresh = ours && datagram.heard.counter > reached(FRESH);
        let hears_us = ours && datagram.heard.counter > reached(HEARS);
        let generation = self.generation;
        let peer = self.peers.entry(Arc::clone(&name)).or_default();
        let is_known = peer.known.as_ref().is_some_and(|known| known.boot == datagram.from.boot);
        if !is_known && (peer.retired.contains(&datagram.from.boot) || !peer.meets(datagram.from, fresh)) {
            return match peer.candidate {
                Some(place) if place == datagram.from => Ok(peer.waits(name, now)),
                _ => Err(Reject::Replayed),
            };
        }
        let Some(known) = peer.known.as_mut() else { return Err(Reject::Replayed) };
        let is_newest = datagram.from.counter > known.window.newest;
        if !known.window.take(datagram.from.counter) {
            return Err(Reject::Replayed);
        }
        if ours && is_newest {
            peer.has = datagram.have;
        }
        let said = known.take(datagram, is_newest);
        let answer = (!hears_us || peer.has != generation) && peer.may_answer(now);
        Ok(Heard { name, said, hears_us, answer })
    }

    /// What the counter was at least so long ago.
    fn reached(&self, now: Time, age: Duration) -> u64 {
        let before = self.marks.iter().rev().find(|(then, _)| *then + age <= now);
        before.map_or(0, |(_, counter)| *counter)
    }
}

impl Peer {
    /// A process that is not known; whether it is from now on.
    fn meets(&mut self, from: Place, is_fresh: bool) -> bool {
        if !is_fresh {
            // A replay of an older datagram changes nothing of what was heard.
            let is_older = self.candidate.is_some_and(|place| place.boot == from.boot && place.counter >= from.counter);
            if !is_older {
                self.candidate = Some(from);
            }
            return false;
        }
        if let Some(former) = self.known.take() {
            self.retired.push_back(former.boot);
            if self.retired.len() > RETIRED {
                self.retired.pop_front();
            }
        }
        (self.candidate, self.has) = (None, 0);
        self.known = Some(Known {
            boot: from.boot,
            window: Window::default(),
            standing: Standing::Joining,
            macs: Vec::new(),
            generation: 0,
            parts: BTreeMap::new(),
            whole: None,
        });
        true
    }

    fn waits(&mut self, name: Name, now: Time) -> Heard {
        Heard { name, said: None, hears_us: false, answer: self.may_answer(now) }
    }

    fn may_answer(&mut self, now: Time) -> bool {
        let may = self.answered.is_none_or(|then| then + ANSWER <= now);
        if may {
            self.answered = Some(now);
        }
        may
    }
}

impl Known {
    /// What the peer says after this datagram.
    fn take(&mut self, datagram: Datagram, is_newest: bool) -> Option<Said> {
        if is_newest {
            (self.standing, self.macs) = (datagram.standing, datagram.macs);
            if self.generation != datagram.generation {
                self.generation = datagram.generation;
                self.parts.clear();
            }
        }
        let is_whole = self.whole.as_ref().is_some_and(|(generation, _)| *generation == self.generation);
        if datagram.generation == self.generation && !is_whole {
            if datagram.part > 0 {
                self.parts.insert(datagram.part, datagram.addresses);
            }
            if self.parts.len() == usize::from(datagram.parts) {
                let all = std::mem::take(&mut self.parts).into_values().flatten().collect();
                self.whole = Some((self.generation, Arc::new(all)));
            }
        }
        if self.standing == Standing::Leaving {
            return Some(Said { standing: self.standing, owned: Arc::default(), macs: self.macs.clone() });
        }
        let (_, owned) = self.whole.as_ref()?;
        Some(Said { standing: self.standing, owned: Arc::clone(owned), macs: self.macs.clone() })
    }
}

/// Addresses in parts that fit.
fn parts(owned: &BTreeSet<IpAddr>, room: usize) -> Vec<Vec<IpAddr>> {
    let mut parts: Vec<Vec<IpAddr>> = Vec::new();
    let mut left = 0;
    for &address in owned {
        let length = datagram::length(address);
        if left < length {
            if parts.len() == usize::from(MOST_PARTS) {
                break;
            }
            parts.push(Vec::new());
            left = room;
        }
        left -= length;
        if let Some(part) = parts.last_mut() {
            part.push(address);
        }
    }
    parts
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

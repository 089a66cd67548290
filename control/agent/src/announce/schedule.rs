//! When which frame is sent for an address. Pure: the time comes in.
//!
//! An address that appears: two probes 100 ms apart, 100 ms to hear an answer, then five announcements one second apart.
//! RFC 5227 takes seconds for the probes, which an address that fails over does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

const PROBES: u8 = 2;
const PROBE_WAIT: Duration = Duration::from_millis(100);
const ANNOUNCEMENTS: u8 = 5;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// An address is defended no more often than this (RFC 5227 section 1.1).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// The same of one that several nodes may announce: who hears that gives it up.
const DEFEND_SHARED: Duration = Duration::from_millis(300);
/// How soon one that several nodes may announce is announced a second time: a node that does not hear this one any more may
/// have taken the first for a peer's.
const SECOND: Duration = Duration::from_millis(300);
/// How often a machine that an address is left to is asked for it.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often is asked whether a conflict still is.
const REPROBE_INTERVAL: Duration = Duration::from_secs(15);
/// What could not be sent is tried again then.
const RETRY: Duration = Duration::from_secs(1);

/// What to send for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Probe,
    Announcement,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Frames sent of those that an address that appears gets.
    sent: u8,
    /// When the next is due; none while there is nothing to send.
    due: Option<Instant>,
    defended: Option<Instant>,
    reprobe: Option<Instant>,
    /// Whether several nodes may announce it.
    shared: bool,
}

/// The addresses of a segment and how far each has come.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    announced: BTreeMap<IpAddr, Progress>,
    /// Addresses that are asked for, and when next.
    watched: BTreeMap<IpAddr, Instant>,
}

impl Schedule {
    /// Addresses that were not there start now, others go on or go. Those that are `shared` are not probed for first.
    pub fn set(&mut self, addresses: &BTreeSet<IpAddr>, shared: &BTreeSet<IpAddr>, now: Instant) {
        self.announced.retain(|address, _| addresses.contains(address));
        for &address in addresses {
            let shared = shared.contains(&address);
            let sent = if shared { PROBES } else { 0 };
            let fresh = Progress { sent, due: Some(now), defended: None, reprobe: None, shared };
            self.announced.entry(address).or_insert(fresh);
        }
    }

    /// These are asked for from now on, again and again.
    pub fn watch(&mut self, addresses: &BTreeSet<IpAddr>, now: Instant) {
        self.watched.retain(|address, _| addresses.contains(address));
        for &address in addresses {
            self.watched.entry(address).or_insert(now);
        }
    }

    /// An address starts announcing again, at once.
    pub fn restart(&mut self, address: IpAddr, now: Instant) {
        if let Some(progress) = self.announced.get_mut(&address) {
            (progress.sent, progress.due) = (progress.sent.min(PROBES), Some(now));
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.announced.contains_key(&address)
    }

    /// Another machine claimed an address: it is announced once more, unless that was done a moment ago, and asked about
    /// again later.
    pub fn contested(&mut self, address: IpAddr, now: Instant) -> Option<Frame> {
        let progress = self.announced.get_mut(&address)?;
        progress.reprobe = Some(now + REPROBE_INTERVAL);
        let interval = if progress.shared { DEFEND_SHARED } else { DEFEND_INTERVAL };
        let rests = progress.defended.is_some_and(|last| now.duration_since(last) < interval);
        (!rests).then(|| {
            progress.defended = Some(now);
            Frame::Announcement
        })
    }

    /// The next time that something is due.
    pub fn next(&self) -> Option<Instant> {
        let announced = self.announced.values().flat_map(|progress| [progress.due, progress.reprobe]).flatten();
        announced.chain(self.watched.values().copied()).min()
    }

    /// What is due now, in the order of the addresses.
    pub fn due(&mut self, now: Instant, contested: &BTreeSet<IpAddr>) -> Vec<(IpAddr, Frame)> {
        let mut frames = Vec::new();
        for (&address, next) in self.watched.iter_mut().filter(|(_, next)| **next <= now) {
            *next = now + WATCH_INTERVAL;
            frames.push((address, Frame::Probe));
        }
        for (&address, progress) in &mut self.announced {
            if progress.reprobe.is_some_and(|at| at <= now) {
                progress.reprobe = contested.contains(&address).then(|| now + REPROBE_INTERVAL);
                if progress.reprobe.is_some() {
                    frames.push((address, Frame::Probe));
                }
            }
            if progress.due.is_none_or(|at| at > now) {
                continue;
            }
            let frame = if progress.sent < PROBES { Frame::Probe } else { Frame::Announcement };
            progress.sent += 1;
            let last = PROBES + ANNOUNCEMENTS + u8::from(progress.shared);
            progress.due = match progress.sent {
                ..=PROBES => Some(now + PROBE_WAIT),
                sent if progress.shared && sent == PROBES + 1 => Some(now + SECOND),
                sent if sent < last => Some(now + ANNOUNCE_INTERVAL),
                _ => None,
            };
            frames.push((address, frame));
        }
        frames
    }

    /// A frame could not be sent: this address starts announcing again, a little later.
    pub fn failed(&mut self, address: IpAddr, now: Instant) {
        if let Some(progress) = self.announced.get_mut(&address) {
            progress.sent = progress.sent.min(PROBES);
            progress.due = Some(now + RETRY);
        }
    }

    /// Everything is announced again: the link was away.
    pub fn again(&mut self, now: Instant) {
        for progress in self.announced.values_mut() {
            progress.sent = progress.sent.min(PROBES);
            progress.due = Some(now + RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the schedule to its end; times are milliseconds since the start.
    fn play(schedule: &mut Schedule, start: Instant) -> Vec<(u128, Frame)> {
        let mut played = Vec::new();
        while let Some(at) = schedule.next() {
            let frames = schedule.due(at, &BTreeSet::new());
            played.extend(frames.into_iter().map(|(_, frame)| ((at - start).as_millis(), frame)));
        }
        played
    }

    #[test]
    fn an_address_that_appears_is_probed_for_and_then_announced_five_times() {
        use Frame::{Announcement as A, Probe as P};
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let addresses = BTreeSet::from(["10.0.0.1".parse().unwrap()]);
        schedule.set(&addresses, &BTreeSet::new(), start);
        let expected = [(0, P), (100, P), (200, A), (1200, A), (2200, A), (3200, A), (4200, A)];
        assert_eq!(play(&mut schedule, start), expected);
        schedule.set(&addresses, &BTreeSet::new(), start);
        assert_eq!(schedule.next(), None, "an address that stays is not announced again");
        schedule.again(start);
        assert_eq!(play(&mut schedule, start).len(), 5);
    }

    #[test]
    fn a_shared_address_is_announced_at_once_and_for_five_seconds_and_again_when_told() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let addresses = BTreeSet::from(["10.0.0.1".parse().unwrap()]);
        let announced = [0, 300, 1300, 2300, 3300, 4300].map(|ms| (ms, Frame::Announcement));
        schedule.set(&addresses, &addresses, start);
        assert_eq!(play(&mut schedule, start), announced);
        schedule.restart("10.0.0.1".parse().unwrap(), start);
        assert_eq!(play(&mut schedule, start), announced);
    }

    #[test]
    fn what_is_left_to_another_machine_is_asked_for_every_second_until_it_is_not() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        schedule.watch(&BTreeSet::from([address]), start);
        for second in 0..10 {
            let at = schedule.next().unwrap();
            assert_eq!(at, start + Duration::from_secs(second));
            assert_eq!(schedule.due(at, &BTreeSet::new()), [(address, Frame::Probe)]);
        }
        schedule.watch(&BTreeSet::new(), start);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn a_contested_address_is_defended_at_most_every_ten_seconds_and_asked_about_while_contested() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let contested = BTreeSet::from([address]);
        schedule.set(&contested, &BTreeSet::new(), start);
        play(&mut schedule, start);
        assert_eq!(schedule.contested(address, start), Some(Frame::Announcement));
        assert_eq!(schedule.contested(address, start + DEFEND_INTERVAL / 2), None);
        assert_eq!(schedule.contested(address, start + DEFEND_INTERVAL), Some(Frame::Announcement));
        let at = schedule.next().unwrap();
        assert_eq!(schedule.due(at, &contested), [(address, Frame::Probe)]);
        let at = schedule.next().unwrap();
        assert_eq!(schedule.due(at, &BTreeSet::new()), []);
        assert_eq!(schedule.next(), None);
    }
}

//! SYNs that were sent on and not yet answered, kept so that they can be sent again to another endpoint.
//!
//! A fixed number of slots of two cache lines, made at the start: who finds them all taken is not kept, and loses no more
//! than the retry. A slot has the client's packet as it came, headers with all options and nothing else, so that what is
//! built from it is the very SYN. Slots that wait stand in one line for each length of wait, the next one due in front: to
//! keep, to forget and to find what is due take a few steps however many there are.
//!
//! A slot names its flow and the flow's entry its slot; only where both agree is there something to send again, so nobody
//! need tell this table that a flow ended.

mod budget;
mod losers;

pub(crate) use budget::Budget;
pub(crate) use losers::{Loser, Losers};

use crate::flow::FlowRef;
use crate::id::BackendId;
use crate::time::{Now, Tick};

/// How many SYNs a worker keeps: 32,768 a second where every endpoint is silent for the shortest wait.
pub(crate) const KEPT: usize = 8192;
/// Longest packet that is kept: an IPv6 header, a TCP header and all options that there may be.
pub(crate) const LONGEST: usize = 100;
/// Endpoints that an opening connection goes to, the first included.
pub(crate) const ENDPOINTS: usize = 3;
/// Shortest wait for an endpoint's answer.
pub(crate) const SHORTEST_WAIT_MS: u64 = 250;
/// How often a SYN is sent again to the same endpoint because its answer was to something else.
pub(crate) const REPEATS: u8 = 2;

/// Waits, each longer than the one before by a fourth of an octave; the first is none.
const WAITS_MS: [u64; 17] = [0, 250, 297, 354, 420, 500, 595, 707, 841, 1000, 1189, 1414, 1682, 2000, 2378, 2828, 3364];
const NOBODY: u32 = u32::MAX;

/// A SYN that waits for its answer.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Attempt {
    due: Tick,
    flow: u32,
    /// In its line, or in that of free slots.
    next: u32,
    prev: u32,
    /// The endpoints that it was sent to before.
    lost: [BackendId; ENDPOINTS - 1],
    losses: u8,
    repeats: u8,
    /// Its line; [`FREE`] or [`UNDER_WAY`].
    line: u8,
    len: u8,
    packet: [u8; LONGEST],
}

const _: () = assert!(size_of::<Attempt>() == 128);

/// The slot keeps nothing.
const FREE: u8 = u8::MAX;
/// The slot is in no line: its SYN is about to be sent, or forgotten.
const UNDER_WAY: u8 = u8::MAX - 1;

impl Attempt {
    const NONE: Self = Self {
        due: Tick(0),
        flow: NOBODY,
        next: NOBODY,
        prev: NOBODY,
        lost: [BackendId::new(0, 0); ENDPOINTS - 1],
        losses: 0,
        repeats: 0,
        line: FREE,
        len: 0,
        packet: [0; LONGEST],
    };
}

/// A kept SYN; good until it is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AttemptRef(u32);

impl AttemptRef {
    /// As a flow's entry has it.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// A kept SYN that is to be seen to; in no line any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// It is to be sent to the same endpoint again.
    Again(AttemptRef),
    /// Its endpoint did not answer in time.
    Silent(AttemptRef),
}

#[derive(Clone, Copy)]
struct Line {
    first: u32,
    last: u32,
}

/// A worker's kept SYNs.
pub(crate) struct Attempts {
    slots: Box<[Attempt]>,
    /// The slot that was freed last.
    free: u32,
    lines: [Line; WAITS_MS.len()],
    /// Nothing is due before, in nanoseconds; it may turn out that nothing is due then.
    earliest: u64,
}

impl Attempts {
    pub(crate) fn new() -> Self {
        let mut slots = vec![Attempt::NONE; KEPT].into_boxed_slice();
        for (slot, number) in slots.iter_mut().zip(1..) {
            slot.next = if number == KEPT as u32 { NOBODY } else { number };
        }
        Self { slots, free: 0, lines: [Line { first: NOBODY, last: NOBODY }; WAITS_MS.len()], earliest: u64::MAX }
    }

    /// Whether one more would be kept.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.free != NOBODY
    }

    /// Keeps a flow's SYN, an IP packet, until it is answered, for at most so many milliseconds; `None` where there is no
    /// room.
    pub(crate) fn keep(&mut self, flow: FlowRef, packet: &[u8], now: Now, wait_ms: u64) -> Option<AttemptRef> {
        let at = self.free;
        let slot = self.slots.get_mut(at as usize)?;
        let room = slot.packet.get_mut(..packet.len())?;
        room.copy_from_slice(packet);
        self.free = slot.next;
        (slot.flow, slot.len, slot.losses, slot.repeats, slot.line) = (flow.0, packet.len() as u8, 0, 0, UNDER_WAY);
        self.wait(AttemptRef(at), now, wait_ms);
        if let Some(next) = self.slots.get(self.free as usize) {
            // The next SYN that is kept will want it.
            arena::prefetch(next);
            arena::prefetch(&next.packet[LONGEST / 2]);
        }
        Some(AttemptRef(at))
    }

    /// The kept SYN that a flow's entry names, if it is this flow's.
    #[inline]
    pub(crate) fn of(&self, number: u32, flow: FlowRef) -> Option<AttemptRef> {
        let slot = self.slots.get(number as usize)?;
        (slot.flow == flow.0 && slot.line != FREE).then_some(AttemptRef(number))
    }

    /// Lets it wait anew, at most so many milliseconds (of the lengths there are, the next longer one).
    pub(crate) fn wait(&mut self, at: AttemptRef, now: Now, wait_ms: u64) {
        self.leave_line(at);
        let line = WAITS_MS.partition_point(|ms| *ms < wait_ms).min(WAITS_MS.len() - 1);
        // A tick more, for `now` is rounded down.
        let ticks = if line == 0 { 0 } else { Tick::from_millis(WAITS_MS[line]) + 1 };
        let last = self.lines[line].last;
        let slot = &mut self.slots[at.0 as usize];
        slot.due = Tick(now.tick().0.wrapping_add(ticks));
        (slot.line, slot.prev, slot.next) = (line as u8, last, NOBODY);
        match self.slots.get_mut(last as usize) {
            Some(before) => before.next = at.0,
            None => self.lines[line].first = at.0,
        }
        self.lines[line].last = at.0;
        self.earliest = self.earliest.min(now.0 + (u64::from(ticks) << Tick::SHIFT));
    }

    /// Frees its slot.
    pub(crate) fn forget(&mut self, at: AttemptRef) {
        self.leave_line(at);
        let slot = &mut self.slots[at.0 as usize];
        (slot.line, slot.flow, slot.next) = (FREE, NOBODY, self.free);
        self.free = at.0;
    }

    /// When one may be due.
    #[inline]
    pub(crate) fn next_due(&self) -> Option<Now> {
        (self.earliest != u64::MAX).then_some(Now(self.earliest))
    }

    /// Takes one that is due out of its line: it is to wait anew or to be forgotten.
    pub(crate) fn take_due(&mut self, now: Now) -> Option<Due> {
        if now.0 < self.earliest {
            return None;
        }
        let mut least = i32::MAX;
        for line in 0..self.lines.len() {
            let first = self.lines[line].first;
            let Some(slot) = self.slots.get(first as usize) else { continue };
            let left = slot.due.0.wrapping_sub(now.tick().0).cast_signed();
            if left <= 0 {
                let at = AttemptRef(first);
                self.leave_line(at);
                return Some(if line == 0 { Due::Again(at) } else { Due::Silent(at) });
            }
            least = least.min(left);
        }
        self.earliest = match least {
            i32::MAX => u64::MAX,
            left => ((now.0 >> Tick::SHIFT) + u64::from(left.unsigned_abs())) << Tick::SHIFT,
        };
        None
    }

    /// Its flow, which may be gone.
    pub(crate) fn flow(&self, at: AttemptRef) -> FlowRef {
        FlowRef(self.slots[at.0 as usize].flow)
    }

    /// The SYN, from its IP header on.
    pub(crate) fn packet(&self, at: AttemptRef) -> &[u8] {
        let slot = &self.slots[at.0 as usize];
        &slot.packet[..usize::from(slot.len)]
    }

    /// The SYN's sequence number.
    pub(crate) fn seq(&self, at: AttemptRef) -> u32 {
        let packet = self.packet(at);
        let tcp = if packet[0] >> 4 == 6 { 40 } else { 20 };
        packet.get(tcp + 4..tcp + 8).and_then(|seq| seq.try_into().ok()).map_or(0, u32::from_be_bytes)
    }

    /// The endpoints that it was sent to in vain.
    pub(crate) fn lost(&self, at: AttemptRef) -> &[BackendId] {
        let slot = &self.slots[at.0 as usize];
        &slot.lost[..usize::from(slot.losses)]
    }

    /// Notes that it was sent to an endpoint in vain; `false` if it may go to no more.
    pub(crate) fn lose(&mut self, at: AttemptRef, backend: BackendId) -> bool {
        let slot = &mut self.slots[at.0 as usize];
        let Some(place) = slot.lost.get_mut(usize::from(slot.losses)) else { return false };
        *place = backend;
        slot.losses += 1;
        slot.repeats = 0;
        true
    }

    /// Whether it may be sent once more to the same endpoint.
    pub(crate) fn repeat(&mut self, at: AttemptRef) -> bool {
        let slot = &mut self.slots[at.0 as usize];
        slot.repeats += 1;
        slot.repeats <= REPEATS
    }

    fn leave_line(&mut self, at: AttemptRef) {
        let slot = &mut self.slots[at.0 as usize];
        let (line, next, prev) = (usize::from(slot.line), slot.next, slot.prev);
        if line >= self.lines.len() {
            return;
        }
        slot.line = UNDER_WAY;
        match self.slots.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => self.lines[line].first = next,
        }
        match self.slots.get_mut(next as usize) {
            Some(after) => after.prev = prev,
            None => self.lines[line].last = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACKET: [u8; 40] = [0x45; 40];

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Keep(u64),
        Forget(usize),
        Wait(usize, u64),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u64..4000).prop_map(Step::Keep),
            2 => any::<usize>().prop_map(Step::Forget),
            1 => (any::<usize>(), 0u64..4000).prop_map(|(at, ms)| Step::Wait(at, ms)),
            3 => (0u64..900_000_000).prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Against a plain list: each is due once, no sooner than asked for and not much later, and it is known when.
        #[test]
        fn each_kept_syn_is_due_in_its_time(steps in steps()) {
            let mut attempts = Attempts::new();
            let mut now = Now(u64::from(u32::MAX) << Tick::SHIFT);
            let mut model: Vec<(AttemptRef, u64, u64)> = Vec::new();
            for step in steps {
                let deadline = |now: Now, ms: u64| {
                    let most = if ms == 0 { 0 } else { ms.max(SHORTEST_WAIT_MS) };
                    (now.0 + ms * 1_000_000, now.0 + most * 1_200_000 + 3_000_000)
                };
                match step {
                    Step::Keep(ms) => {
                        let at = attempts.keep(FlowRef(7), &PACKET, now, ms).unwrap();
                        let (soonest, latest) = deadline(now, ms.min(3364));
                        model.push((at, soonest, latest));
                    }
                    Step::Forget(n) if !model.is_empty() => attempts.forget(model.swap_remove(n % model.len()).0),
                    Step::Wait(n, ms) if !model.is_empty() => {
                        let n = n % model.len();
                        attempts.wait(model[n].0, now, ms);
                        (model[n].1, model[n].2) = deadline(now, ms.min(3364));
                    }
                    Step::Pass(ns) => now.0 += ns,
                    _ => {}
                }
                let due_before = attempts.next_due();
                while let Some(Due::Again(at) | Due::Silent(at)) = attempts.take_due(now) {
                    prop_assert!(due_before.is_some_and(|due| due <= now));
                    let n = model.iter().position(|(known, ..)| *known == at).unwrap();
                    prop_assert!(now.0 >= model[n].1 >> Tick::SHIFT << Tick::SHIFT, "too soon");
                    attempts.forget(at);
                    model.swap_remove(n);
                }
                prop_assert!(model.iter().all(|(.., latest)| *latest > now.0), "one is late");
                prop_assert!(model.is_empty() || attempts.next_due().is_some(), "nobody would ask");
            }
        }
    }

    #[test]
    fn a_full_table_keeps_no_more_and_what_is_forgotten_makes_room() {
        let mut attempts = Attempts::new();
        let kept: Vec<_> = (0..KEPT).map(|_| attempts.keep(FlowRef(1), &PACKET, Now(5), 250).unwrap()).collect();
        assert_eq!(attempts.keep(FlowRef(1), &PACKET, Now(5), 250), None);
        attempts.forget(kept[77]);
        assert_eq!(attempts.keep(FlowRef(1), &PACKET, Now(5), 250), Some(kept[77]));
        assert_eq!(attempts.keep(FlowRef(1), &[0; LONGEST + 1], Now(5), 250), None);
    }

    #[test]
    fn a_slot_is_of_the_flow_that_it_was_taken_for_alone() {
        let mut attempts = Attempts::new();
        let at = attempts.keep(FlowRef(1), &PACKET, Now(5), 250).unwrap();
        assert_eq!((attempts.of(at.number(), FlowRef(1)), attempts.of(at.number(), FlowRef(2))), (Some(at), None));
        attempts.forget(at);
        assert_eq!((attempts.of(at.number(), FlowRef(1)), attempts.of(u32::MAX, FlowRef(1))), (None, None));
    }
}

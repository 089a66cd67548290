//! A worker's round: receive, decide, hand over, emit, send, take back, refill, tend; and the loop around it.
//!
//! Everything in a round is bounded: a burst from each queue, a burst from each other worker, a burst of packets of its
//! own, what the return rings hold when looked at, one step of housekeeping, one command.

use std::{sync::Arc, time::Duration};

use arrayvec::ArrayVec;
use lb::{DropReason, Now, PortId, Tables, Verdict};
use publish::{Reader, Slot};
use xsk::{BURST, Frame, Queue, Umem};

use crate::{
    Decide, Idle,
    backlog::Backlog,
    cells::Cells,
    clock::monotonic_ns,
    command::{Answer, EXPORT_SLOTS},
    dataplane::DataplaneConfig,
    doorbell::Slept,
    gathering::Gathering,
    idle::{self, Patience},
    lane::Lane,
    mesh::{Errand, Mesh, Parcel},
    routes::Routes,
};

/// Nanoseconds between two looks at the kernel's counters.
const REFRESH_NS: u64 = 1_000_000_000;
/// Empty rounds before a worker blocks: about as long as blocking takes itself, so that it never costs much more than
/// twice of what would have been best.
const SPIN_ROUNDS: u32 = 8;
/// Rounds by which packets of its own are put off while whole bursts come: a ring full of them.
const MOST_PUT_OFF: u32 = 32;
/// Rounds that a worker spends on getting sent frames back when it ends.
const LAST_ROUNDS: usize = 64;

/// One worker, on its thread.
pub(crate) struct Worker<Q, D> {
    id: usize,
    umem: Umem,
    decide: D,
    tables: Reader<Tables>,
    lanes: Vec<Lane<Q>>,
    routes: Routes,
    mesh: Arc<Mesh>,
    cells: Arc<Cells>,
    idle: Idle,
    patience: Patience,
    gathering: Gathering,
    /// Home frames at hand; room for all of them is reserved, and for a burst of others' that were just sent.
    pool: Vec<Frame>,
    /// The burst that is decided; empty between bursts. The NICs that its frames came in on are at the same places.
    burst: Vec<Frame>,
    ports: [PortId; BURST],
    /// Scratch for frames that come back or go out to be filled; empty between uses.
    spare: Vec<Frame>,
    /// Read when a round begins and after each burst.
    now_ns: u64,
    /// Workers that were given something and not yet rung for, a bit each.
    unrung: u64,
    backlog: Backlog,
    /// Rounds by which packets of its own were put off.
    put_off: u32,
    /// Housekeeping is due beyond the last round's step.
    behind: bool,
    refresh: Refresh,
}

/// What a worker is made of on another thread.
pub(crate) struct WorkerParts<Q, D> {
    pub(crate) id: usize,
    pub(crate) umem: Umem,
    pub(crate) decide: D,
    pub(crate) tables: Arc<Slot<Tables>>,
    pub(crate) lanes: Vec<Lane<Q>>,
    pub(crate) routes: Routes,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) cells: Arc<Cells>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) config: DataplaneConfig,
}

/// How a worker ended.
pub(crate) struct Ended<D> {
    pub(crate) decide: D,
    /// Frames in its hands.
    pub(crate) frames: Vec<Frame>,
    /// Frames that its queues held when they were closed.
    pub(crate) held: usize,
}

/// Where a burst came from.
#[derive(Clone, Copy)]
struct Arrival {
    /// When; of one that was handed over, its first frame.
    received_ns: u64,
    /// Picks one of several queues of an out port.
    spread: usize,
    /// By another worker.
    handed: bool,
}

/// The once-a-second part of the loop.
#[derive(Default)]
struct Refresh {
    last_ns: u64,
    busy_then_ns: u64,
}

impl<Q: Queue, D: Decide> Worker<Q, D> {
    /// On the thread that it is to run on, which the tables' reader belongs to.
    pub(crate) fn new(parts: WorkerParts<Q, D>) -> Self {
        Self {
            id: parts.id,
            umem: parts.umem,
            decide: parts.decide,
            tables: parts.tables.reader(),
            lanes: parts.lanes,
            routes: parts.routes,
            mesh: parts.mesh,
            cells: parts.cells,
            idle: parts.config.idle,
            patience: Patience::new(parts.config.longest_sleep),
            gathering: Gathering::default(),
            pool: parts.frames,
            burst: Vec::with_capacity(BURST),
            ports: [PortId(0); BURST],
            spare: Vec::with_capacity(BURST),
            now_ns: 0,
            unrung: 0,
            backlog: Backlog::default(),
            put_off: 0,
            behind: false,
            refresh: Refresh::default(),
        }
    }

    /// Rounds until told to stop.
    pub(crate) fn run(mut self) -> Ended<D> {
        let mut empty_rounds = 0;
        if self.idle == Idle::Adaptive {
            idle::be_punctual();
        }
        while !self.mesh.stopping() {
            if self.round() {
                empty_rounds = 0;
                self.patience.reset();
                self.gather();
            } else if self.idle == Idle::Busy || empty_rounds < SPIN_ROUNDS {
                empty_rounds = empty_rounds.saturating_add(1);
                std::hint::spin_loop();
            } else if !self.behind {
                self.sleep();
            }
        }
        self.end()
    }

    /// Does everything once. Says whether there was any work.
    fn round(&mut self) -> bool {
        let start_ns = monotonic_ns();
        self.now_ns = start_ns;
        self.gathering.begin();
        let mut work = self.come_home();
        for lane in 0..self.lanes.len() {
            work += self.receive(lane);
        }
        // Of its own queues: what other workers hand over comes after.
        self.decide.set_overloaded(self.backlog.note(self.gathering.is_full(), start_ns));
        for from in 0..self.mesh.workers() {
            work += self.take_handed(from);
        }
        work += self.emit();
        work += self.transmit();
        self.refill();
        work += self.answer();
        self.behind = self.decide.housekeep(Now(start_ns), &self.tables.pin());
        if work > 0 {
            self.show_flows();
            self.cells.busy_ns.add(self.now_ns.saturating_sub(start_ns));
        }
        if start_ns.saturating_sub(self.refresh.last_ns) >= REFRESH_NS {
            self.show_statistics(start_ns);
        }
        work > 0
    }

    /// Takes home frames that others are done with.
    fn come_home(&mut self) -> usize {
        let mut came = 0;
        for from in 0..self.mesh.workers() {
            let ring = self.mesh.returns(from, self.id);
            // As many as there are now, so that a busy peer does not hold this worker up.
            for _ in 0..ring.len() {
                let Some(frame) = ring.pop() else { break };
                self.pool.push(frame);
                came += 1;
            }
        }
        came
    }

    /// Takes a burst from one of its queues and decides it.
    fn receive(&mut self, lane: usize) -> usize {
        let Lane { port, queue, .. } = &mut self.lanes[lane];
        let count = queue.receive(&mut self.burst, BURST);
        if count == 0 {
            return 0;
        }
        self.gathering.took(count);
        self.ports[..count].fill(*port);
        let arrival = Arrival { received_ns: self.now_ns, spread: self.routes.spread(lane), handed: false };
        let cells = &self.cells.queues[lane];
        cells.received_packets.add(count as u64);
        cells.received_bytes.add(self.burst.iter().map(|frame| frame.len() as u64).sum());
        self.decide_burst(arrival);
        count
    }

    /// Takes a burst from another worker: decides what is for it to decide, sends what is for it to send.
    fn take_handed(&mut self, from: usize) -> usize {
        let mut count = 0;
        let mut arrival = Arrival { received_ns: self.now_ns, spread: from, handed: true };
        while count < BURST {
            let Some(parcel) = self.mesh.handed(from, self.id).pop() else { break };
            let Parcel { frame, port, received_ns, errand } = parcel;
            count += 1;
            match errand {
                Errand::Transmit(out) => self.send_own(frame, out, Arrival { received_ns, ..arrival }),
                Errand::Decide => {
                    arrival.received_ns = arrival.received_ns.min(received_ns);
                    self.ports[self.burst.len()] = port;
                    self.burst.push(frame);
                }
            }
        }
        if count > 0 {
            self.gathering.took(count);
            self.cells.handed_received.add(count as u64);
        }
        if !self.burst.is_empty() {
            self.decide_burst(arrival);
        }
        count
    }

    /// Sends what is due of packets that answer no frame, in frames of its own. First it looks at what has come: after a
    /// while without the core, what is overdue may have been answered long ago.
    #[inline]
    fn emit(&mut self) -> usize {
        match self.decide.next_emission() {
            Some(due) if due <= Now(self.now_ns) => {
                self.put_off += 1;
                if self.gathering.is_full() && self.put_off <= MOST_PUT_OFF {
                    return 0;
                }
                self.put_off = 0;
                self.emit_due()
            }
            _ => 0,
        }
    }

    #[cold]
    fn emit_due(&mut self) -> usize {
        let arrival = Arrival { received_ns: self.now_ns, spread: 0, handed: false };
        for sent in 0..BURST {
            // Without a frame at hand it waits: some come back as packets are sent.
            let Some(mut frame) = self.pool.pop() else { return sent };
            frame.reset();
            let room = self.umem.room_mut(&mut frame);
            let Some(emission) = self.decide.emit(Now(self.now_ns), &self.tables.pin(), room) else {
                self.pool.push(frame);
                return sent;
            };
            frame.set_len(emission.len);
            let verdict = emission.to.map_or(Verdict::Tx(emission.port), Verdict::HandOffPart);
            self.carry_out(verdict, frame, emission.port, arrival);
        }
        BURST
    }

    /// Decides `self.burst` and carries the verdicts out.
    fn decide_burst(&mut self, arrival: Arrival) {
        let mut burst = std::mem::take(&mut self.burst);
        let mut verdicts = [Verdict::Pass; BURST];
        let verdicts = &mut verdicts[..burst.len()];
        let mut lengths = [0; BURST];
        let lengths = &mut lengths[..burst.len()];
        let changed = {
            let mut views: ArrayVec<lb::Frame<'_>, BURST> = ArrayVec::new();
            for ((frame, &port), length) in burst.iter_mut().zip(&self.ports).zip(lengths.iter_mut()) {
                let len = frame.len();
                *length = len;
                views.push(lb::Frame { room: self.umem.room_mut(frame), len, port, handed: arrival.handed });
            }
            self.decide.process(&mut views, Now(self.now_ns), &self.tables.pin(), verdicts);
            let mut changed = 0;
            for (length, view) in lengths.iter_mut().zip(&views) {
                changed |= *length ^ view.len;
                *length = view.len;
            }
            changed != 0
        };
        // Before they move, not while: a length that was just written would have to wait for the store buffer.
        if changed {
            burst.iter_mut().zip(lengths).for_each(|(frame, length)| frame.set_len(*length));
        }
        self.carry_all_out(verdicts, &mut burst, arrival);
        self.burst = burst;
        self.ring();
        // For the next burst, and for how long this one stayed.
        self.now_ns = monotonic_ns();
    }

    /// Carries out what was decided of a burst. Its frames came in by one queue or from one worker, so those that leave by
    /// one NIC take the same one of its queues: those of the first such NIC, nearly always all, go there without more ado.
    #[inline]
    fn carry_all_out(&mut self, verdicts: &[Verdict], burst: &mut Vec<Frame>, arrival: Arrival) {
        let first = verdicts.iter().find(|verdict| matches!(verdict, Verdict::Tx(_))).copied();
        let line = first.and_then(|first| Some((first, self.lane_for(first, burst.len(), arrival)?)));
        if let Some((first, lane)) = line {
            self.lanes[lane].measure(arrival.received_ns);
            if verdicts.iter().all(|verdict| *verdict == first) {
                return self.lanes[lane].append(burst);
            }
        }
        for (at, frame) in burst.drain(..).enumerate() {
            match line {
                Some((first, lane)) if verdicts[at] == first => self.lanes[lane].push(frame),
                _ => self.carry_out(verdicts[at], frame, self.ports[at], arrival),
            }
        }
    }

    /// The queue of its own by which so many frames of this verdict can leave.
    #[inline]
    fn lane_for(&self, verdict: Verdict, frames: usize, arrival: Arrival) -> Option<usize> {
        let Verdict::Tx(port) = verdict else { return None };
        self.routes.own(port, arrival.spread).filter(|lane| self.lanes[*lane].has_room(frames))
    }

    fn carry_out(&mut self, verdict: Verdict, frame: Frame, port: PortId, arrival: Arrival) {
        match verdict {
            Verdict::Tx(out) => self.send(frame, out, port, arrival),
            // What was handed over is decided here; a frame must not wander. Parts of datagrams may be handed over a second time,
            // by the one worker where they meet.
            Verdict::HandOff(owner) if arrival.handed || usize::from(owner.0) == self.id => {
                self.discard(frame, DropReason::OwnerGone);
            }
            Verdict::HandOffPart(owner) if usize::from(owner.0) == self.id => {
                self.discard(frame, DropReason::OwnerGone);
            }
            Verdict::HandOff(owner) | Verdict::HandOffPart(owner) => {
                self.hand_over(usize::from(owner.0), frame, port, arrival, Errand::Decide);
            }
            Verdict::Keep => self.take_back(frame),
            Verdict::Pass => self.discard(frame, DropReason::NoKernelPort),
            Verdict::Drop(reason) => self.discard(frame, reason),
        }
    }

    /// Sends by one of its own queues, or by another worker's where it has none. `port` is where the frame came in.
    fn send(&mut self, frame: Frame, out: PortId, port: PortId, arrival: Arrival) {
        if self.routes.own(out, arrival.spread).is_some() {
            return self.send_own(frame, out, arrival);
        }
        match self.routes.peer(out) {
            Some(peer) => self.hand_over(peer, frame, port, arrival, Errand::Transmit(out)),
            None => self.discard(frame, DropReason::NoTxQueue),
        }
    }

    /// Sends by one of its own queues.
    fn send_own(&mut self, frame: Frame, out: PortId, arrival: Arrival) {
        let Some(lane) = self.routes.own(out, arrival.spread) else {
            return self.discard(frame, DropReason::NoTxQueue);
        };
        let (cells, queue) = (&self.cells.queues[lane], &mut self.lanes[lane]);
        if let Err(frame) = queue.enqueue(frame, arrival.received_ns, self.now_ns, cells, &self.cells.residence) {
            self.discard(frame, DropReason::TxFull);
        }
    }

    fn hand_over(&mut self, peer: usize, frame: Frame, port: PortId, arrival: Arrival, errand: Errand) {
        if peer >= self.mesh.workers() {
            return self.discard(frame, DropReason::OwnerGone);
        }
        let parcel = Parcel { frame, port, received_ns: arrival.received_ns, errand };
        match self.mesh.handed(self.id, peer).push(parcel) {
            Ok(()) => {
                self.cells.handed_sent.add(1);
                self.unrung |= 1 << peer;
            }
            Err(parcel) => {
                self.cells.handed_full.add(1);
                self.discard(parcel.frame, DropReason::HandOffFull);
            }
        }
    }

    fn discard(&mut self, frame: Frame, reason: DropReason) {
        self.cells.drops[reason as usize].add(1);
        self.take_back(frame);
    }

    fn take_back(&mut self, mut frame: Frame) {
        frame.reset();
        self.release(frame);
    }

    /// Puts a frame that is done with where it belongs.
    #[inline]
    fn release(&mut self, frame: Frame) {
        let home = self.mesh.homes.of(&frame);
        if home == self.id {
            self.pool.push(frame);
            return;
        }
        self.cells.sent_home.add(1);
        self.unrung |= 1 << home;
        let full = self.mesh.returns(self.id, home).push(frame).is_err();
        assert!(!full, "a return ring has room for all frames of its home");
    }

    /// Rings for the workers that were given something.
    fn ring(&mut self) {
        while self.unrung != 0 {
            self.mesh.doorbell(self.unrung.trailing_zeros() as usize).ring();
            self.unrung &= self.unrung - 1;
        }
    }

    /// Submits what waits, has it sent, and takes back what was sent.
    fn transmit(&mut self) -> usize {
        let mut work = 0;
        for lane in 0..self.lanes.len() {
            work += self.lanes[lane].submit(self.now_ns, &self.cells.queues[lane], &self.cells.residence);
            let Lane { queue, stuck, .. } = &mut self.lanes[lane];
            *stuck = !queue.kick();
            for _ in 0..=queue.in_flight() / BURST {
                let at_hand = self.pool.len();
                let back = self.lanes[lane].queue.reclaim(&mut self.pool);
                if back == 0 {
                    break;
                }
                work += back;
                self.send_home(at_hand);
            }
        }
        self.ring();
        work
    }

    /// Sends frames of others home that came into the pool, from place `from` on.
    #[inline]
    fn send_home(&mut self, from: usize) {
        // All frames are its own.
        if self.mesh.workers() == 1 {
            return;
        }
        for at in (from..self.pool.len()).rev() {
            if self.mesh.homes.of(&self.pool[at]) != self.id {
                let frame = self.pool.swap_remove(at);
                self.release(frame);
            }
        }
    }

    /// Gives frames to be received into, a batch to each queue in turn until none takes any.
    fn refill(&mut self) {
        let mut progress = true;
        while progress && !self.pool.is_empty() {
            progress = false;
            for lane in &mut self.lanes {
                progress |= lane.refill(&mut self.pool, &mut self.spare) > 0;
            }
        }
    }

    /// Answers one command, if there is one.
    fn answer(&mut self) -> usize {
        let Some(mut command) = self.mesh.mailbox(self.id).pop() else { return 0 };
        let next = self.decide.export(command.from, EXPORT_SLOTS, &mut command.into);
        command.reply.give(Answer { next, records: command.into });
        1
    }

    fn show_flows(&self) {
        self.cells.flows.set(self.decide.flows() as u64);
        for (cell, value) in self.cells.counters.iter().zip(self.decide.counters().values()) {
            cell.set(value);
        }
        self.cells.spare_frames.set(self.pool.len() as u64);
    }

    fn show_handshakes(&self) {
        for (cell, value) in self.cells.handshakes.iter().zip(self.decide.handshakes().values()) {
            cell.set(value);
        }
    }

    /// Shows what takes a system call to know, and how busy it was since the last time.
    fn show_statistics(&mut self, now_ns: u64) {
        for (lane, cells) in self.lanes.iter().zip(&self.cells.queues) {
            cells.set_statistics(&lane.queue.statistics());
            cells.held.set(lane.queue.held() as u64);
            cells.in_flight.set(lane.queue.in_flight() as u64);
        }
        self.show_flows();
        self.show_handshakes();
        let busy_ns = self.cells.busy_ns.get();
        let (elapsed, busy) = (now_ns - self.refresh.last_ns, busy_ns - self.refresh.busy_then_ns);
        self.cells.busy_ppm.set(busy.saturating_mul(1_000_000).checked_div(elapsed).unwrap_or(0).min(1_000_000));
        self.refresh = Refresh { last_ns: now_ns, busy_then_ns: busy_ns };
    }

    /// After a round with work: lets packets gather for the next, where that is of use.
    fn gather(&mut self) {
        if self.idle == Idle::Busy || self.behind {
            return;
        }
        if let Some(rest) = self.gathering.rest(self.now_ns) {
            std::thread::sleep(rest);
        }
    }

    /// How long it may sleep until there is a packet of its own to send.
    fn until_emission(&self) -> Duration {
        // Without a frame nothing can be sent: what comes back is looked for as often as without anything to send.
        match self.decide.next_emission() {
            Some(due) if !self.pool.is_empty() => Duration::from_nanos(due.0.saturating_sub(monotonic_ns())),
            _ => Duration::MAX,
        }
    }

    /// Blocks until there is work or the patience ends.
    fn sleep(&mut self) {
        self.show_flows();
        self.show_handshakes();
        // Frames in transmission are missed only where none are left to receive into, or where others wait for theirs.
        let missed = self.pool.is_empty() || self.mesh.workers() > 1;
        let timeout = self.patience.timeout(&self.lanes, missed).min(self.until_emission());
        let nothing = || self.mesh.nothing_for(self.id);
        let block = |bell: std::os::fd::BorrowedFd<'_>| {
            self.cells.sleeps.add(1);
            idle::wait(&self.lanes, bell, timeout)
        };
        let slept = self.mesh.doorbell(self.id).sleep(nothing, block);
        self.cells.woken.add(u64::from(slept == Slept::Woken));
    }

    /// Gets back what it can of what was sent, and says where its frames are. Its queues are closed thereafter.
    fn end(mut self) -> Ended<D> {
        for _ in 0..LAST_ROUNDS {
            self.transmit();
            if self.lanes.iter().all(|lane| lane.out.is_empty() && lane.queue.in_flight() == 0) {
                break;
            }
        }
        self.show_statistics(monotonic_ns());
        let held = self.lanes.iter().map(|lane| lane.queue.held()).sum();
        let mut frames = self.pool;
        frames.extend(self.lanes.into_iter().flat_map(|lane| lane.out));
        Ended { decide: self.decide, frames, held }
    }
}

//! What a worker asks about its frames. [`lb`] is who answers; the worker itself knows no protocol.

use lb::{
    Emission, Frame, Now, Tables, Verdict, WorkerId, counters::Counters, flow::FlowRecord, handshake::Handshakes,
    state::WorkerState,
};

/// Decides what becomes of frames. Implemented by [`WorkerState`].
///
/// The first four and [`Decide::next_emission`] run on the packet path: they must not allocate, lock or block.
pub trait Decide: Send + 'static {
    /// Rewrites frames in place and says what becomes of each; as many verdicts as frames.
    fn process(&mut self, burst: &mut [Frame<'_>], now: Now, tables: &Tables, verdicts: &mut [Verdict]);

    /// Does a bounded piece of the work that no frame asks for. Says whether more of it is due, so that a worker without
    /// frames goes on with it before it sleeps.
    fn housekeep(&mut self, now: Now, tables: &Tables) -> bool;

    /// Says whether more frames come than the worker can take; said in every round.
    fn set_overloaded(&mut self, overloaded: bool);

    /// Writes a packet of its own into `room`, which is as long as a frame's, if one is due; asked until there is none, a
    /// burst a round at most.
    fn emit(&mut self, now: Now, tables: &Tables, room: &mut [u8]) -> Option<Emission>;

    /// When [`Decide::emit`] will have something, if it knows; it may have nothing then after all.
    fn next_emission(&self) -> Option<Now>;

    /// How many flows there are here.
    fn flows(&self) -> usize;

    /// Whose state this is.
    fn worker(&self) -> WorkerId;

    /// What was counted beside verdicts.
    fn counters(&self) -> Counters;

    /// How long endpoints took to answer SYNs.
    fn handshakes(&self) -> Handshakes;

    /// Appends the flows of at most `slots` slots from slot `from` on to `into`; returns the slot to go on from, `None` at
    /// the end.
    fn export(&self, from: u32, slots: u32, into: &mut Vec<FlowRecord>) -> Option<u32>;
}

impl Decide for WorkerState {
    #[inline]
    fn process(&mut self, burst: &mut [Frame<'_>], now: Now, tables: &Tables, verdicts: &mut [Verdict]) {
        lb::process::process(burst, now, tables, self, verdicts);
    }

    #[inline]
    fn housekeep(&mut self, now: Now, tables: &Tables) -> bool {
        WorkerState::housekeep(self, now, tables)
    }

    #[inline]
    fn set_overloaded(&mut self, overloaded: bool) {
        self.admission.set_overloaded(overloaded);
    }

    #[inline]
    fn emit(&mut self, now: Now, tables: &Tables, room: &mut [u8]) -> Option<Emission> {
        lb::emit(now, tables, self, room)
    }

    #[inline]
    fn next_emission(&self) -> Option<Now> {
        WorkerState::next_emission(self)
    }

    fn flows(&self) -> usize {
        self.flows.len()
    }

    fn worker(&self) -> WorkerId {
        self.id
    }

    fn counters(&self) -> Counters {
        WorkerState::counters(self)
    }

    fn handshakes(&self) -> Handshakes {
        self.handshakes
    }

    fn export(&self, from: u32, slots: u32, into: &mut Vec<FlowRecord>) -> Option<u32> {
        self.flows.export(from, slots, into)
    }
}

//! Packets that Millrace sends of itself, answering no frame that came: SYNs that go on to another endpoint, fragments that
//! waited for the first one of their datagram, pieces of packets that were cut.
//!
//! The worker asks once a round, when [`WorkerState::next_emission`] says that something is due, and gives a frame of its
//! own for each. Whoever has such packets keeps them in memory that was taken at the start, says in `next_emission` when
//! they are due, and writes them in [`emit`].

use super::Turn;
use crate::id::{PortId, WorkerId};
use crate::state::WorkerState;
use crate::tables::Tables;
use crate::time::Now;

/// A packet that was written into a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Emission {
    /// Octets of packet, Ethernet header included.
    pub len: usize,
    /// The NIC to transmit it on; of a packet for another worker, the one that it came in on.
    pub port: PortId,
    /// The worker that is to decide it, as with [`crate::Verdict::HandOffPart`].
    pub to: Option<WorkerId>,
}

/// Most things that are due and lead to no packet in one call.
const IDLE_STEPS: usize = 64;

impl WorkerState {
    /// When [`emit`] may have a packet; `None` while nothing waits.
    #[must_use]
    #[inline]
    pub fn next_emission(&self) -> Option<Now> {
        // Fragments wait for nothing but a frame.
        if self.fragments.has_pending() { Some(Now(0)) } else { self.attempts.next_due() }
    }
}

/// Writes a packet that is due into `room`, which is as long as a frame's. `None`: there is nothing to send now.
pub fn emit(now: Now, tables: &Tables, state: &mut WorkerState, room: &mut [u8]) -> Option<Emission> {
    let mut turn = Turn::new(now, tables, state);
    if let Some(emission) = turn.emit_fragment(room) {
        return Some(emission);
    }
    for _ in 0..IDLE_STEPS {
        let due = turn.state.attempts.take_due(now)?;
        if let Some(emission) = turn.attempt_due(due, room) {
            return Some(emission);
        }
    }
    None
}

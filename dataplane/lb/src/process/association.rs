//! What is SCTP's own about packets of flows (RFC 9260): how far the association has come, and endpoints that do not answer.
//!
//! An INIT is not kept to be sent again, as SYNs are: it has no fixed size, and an endpoint keeps nothing of one that it
//! answered (section 5.1.3). An endpoint that is silent is found out when the client sends its INIT again, which then goes to
//! another endpoint; one that refuses is told to the client. Either counts as a failure, unless the first INIT was one that an
//! endpoint may have dropped.

use wire::{Chunks, Transport};

use super::Turn;
use crate::flow::{Direction, FlowRef, FlowState, Said};
use crate::verdict::Frame;

impl Turn<'_> {
    /// The INIT that opened a flow.
    pub(super) fn begin_association(&mut self, frame: &Frame<'_>, t: &Transport, flow: FlowRef) {
        self.state.retries.open(self.now);
        if !self.is_for_an_answer(frame, t) {
            self.state.flows.entry_mut(flow).forget_opened();
        }
        self.note_chunks(frame, t, flow, Direction::Forward);
    }

    /// What a packet tells of its association.
    pub(super) fn note_chunks(&mut self, frame: &Frame<'_>, t: &Transport, flow: FlowRef, direction: Direction) {
        let said = Said::of(t, frame.room);
        let believed = self.state.flows.sctp_packet(flow, direction, &said, self.tick);
        self.state.counters.resets_not_believed += u64::from(!believed);
    }

    /// Sees to a packet of an association that opens. `false`: its INIT is to open a flow to another endpoint, and this one
    /// was ended.
    #[cold]
    pub(super) fn association_goes_on(
        &mut self,
        frame: &Frame<'_>,
        t: &Transport,
        flow: FlowRef,
        direction: Direction,
    ) -> bool {
        let entry = self.state.flows.entry(flow);
        let association = entry.association();
        if entry.state() != FlowState::CookieWait || association.one_sided || association.is_answered() {
            return true;
        }
        match direction {
            Direction::Forward => return !(t.may_open() && self.goes_elsewhere(flow)),
            Direction::Reply if t.chunks.intersects(Chunks::INIT_ACK) => {
                self.note_handshake(flow);
                self.won(flow, None);
            }
            Direction::Reply => {
                let refused = t.chunks.intersects(Chunks::ABORT);
                if refused && association.has_right_tag(direction, &Said::of(t, frame.room)) {
                    self.endpoint_failed(flow);
                }
            }
        }
        true
    }

    /// Whether an INIT that comes again leaves its endpoint, which had the time to answer.
    fn goes_elsewhere(&mut self, flow: FlowRef) -> bool {
        let entry = self.state.flows.entry(flow);
        let (backend, service) = (entry.backend_id(), entry.service());
        let waited_ms = entry.since_opened_us(self.now).map_or(0, |microseconds| microseconds / 1000);
        if waited_ms < self.wait_ms(backend) {
            return false;
        }
        self.endpoint_failed(flow);
        let others = self.tables.service(service).is_some_and(|service| service.usable.len() > 1);
        if !others || !self.state.retries.take(self.now) {
            return false;
        }
        self.state.counters.connects_retried += 1;
        self.silent = Some(backend);
        self.end(flow);
        true
    }
}

//! How far an SCTP association has come: as much of RFC 9260 section 4 as timeouts need, for one path (RFC 9260 section
//! 6.4's other ones are flows of their own that nothing opens).
//!
//! What ends an association is believed with the right verification tag only (section 8.5), which nobody knows who does not
//! see its packets. The tags come from the handshake: a client's INIT has that of packets to it, the INIT ACK the other one;
//! after a restart (section 5.2) the endpoint's COOKIE ACK and the client's next packet tell them. What is not believed is
//! delivered all the same: its receiver judges it exactly.

use wire::{Chunks, Transport};

use crate::flow::state::{Direction, FlowState};

/// What a packet says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Said {
    /// What it does to the association.
    pub chunks: Chunks,
    /// Its verification tag.
    pub tag: u32,
    /// The tag that packets to its sender will have, in INIT and INIT ACK.
    pub initiate: Option<u32>,
}

impl Said {
    /// # Panics
    /// If `frame` is not the one that was parsed.
    #[must_use]
    pub fn of(t: &Transport, frame: &[u8]) -> Self {
        Self { chunks: t.chunks, tag: t.verification_tag(frame), initiate: t.initiate_tag(frame) }
    }
}

/// What is kept of an association.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Association {
    pub state: FlowState,
    /// Once it ended: whose packets went on, by [`Direction`], a bit each.
    pub seen: u8,
    /// By [`Direction`], the verification tag of its packets; 0: not known.
    pub tags: [u32; 2],
    /// Whether the client's packets alone are seen.
    pub one_sided: bool,
}

const ENDS: Chunks = Chunks::ABORT.union(Chunks::SHUTDOWN_COMPLETE);

impl Association {
    /// Takes note of a packet; `false` if it would have ended the association and is not believed.
    pub fn note(&mut self, direction: Direction, said: &Said) -> bool {
        let chunks = said.chunks;
        if let Some(initiate) = said.initiate {
            self.initiate(direction, said, initiate);
            return true;
        }
        if chunks.intersects(ENDS) {
            let believed = self.has_right_tag(direction, said);
            if believed && (chunks.intersects(Chunks::ABORT) || self.is_shutting_down()) {
                (self.state, self.seen) = (FlowState::Ended, 0);
            }
            return believed;
        }
        if chunks.intersects(Chunks::COOKIE_ACK) && direction == Direction::Reply {
            self.accepted(said.tag);
            return true;
        }
        let tag = &mut self.tags[direction as usize];
        if *tag == 0 {
            *tag = said.tag;
        }
        if *tag == said.tag {
            self.go_on(direction, chunks);
        }
        true
    }

    /// An INIT or its answer. One that comes while the association stands is of a restart, of which the endpoint judges.
    fn initiate(&mut self, direction: Direction, said: &Said, initiate: u32) {
        let [forward, reply] = &mut self.tags;
        match (self.state, direction) {
            (FlowState::CookieWait, Direction::Forward) if said.chunks.intersects(Chunks::INIT) => {
                (*forward, *reply) = (0, initiate);
            }
            (FlowState::CookieWait, Direction::Reply) if said.tag == *reply => *forward = initiate,
            _ => {}
        }
    }

    /// The endpoint took the client's cookie: there is an association, whatever was before.
    fn accepted(&mut self, tag: u32) {
        let [forward, reply] = &mut self.tags;
        if *reply != tag {
            (*forward, *reply) = (0, tag);
        }
        if !self.is_shutting_down() {
            (self.state, self.seen) = (FlowState::Associated, 0);
        }
    }

    /// A packet with the right tag that ends nothing.
    fn go_on(&mut self, direction: Direction, chunks: Chunks) {
        let echo = chunks.intersects(Chunks::COOKIE_ECHO);
        if self.one_sided && self.state == FlowState::CookieEchoed && !echo {
            // Only who got the COOKIE ACK goes on.
            self.state = FlowState::Associated;
        }
        self.state = match self.state {
            FlowState::CookieWait if echo && direction == Direction::Forward => FlowState::CookieEchoed,
            FlowState::Associated if chunks.intersects(Chunks::SHUTDOWN) => FlowState::ShutdownSent,
            FlowState::Associated | FlowState::ShutdownSent if chunks.intersects(Chunks::SHUTDOWN_ACK) => {
                FlowState::ShutdownAckSent
            }
            // Both sides go on: what ended it did not get where it was meant for, or was damaged.
            FlowState::Ended if chunks.is_empty() => {
                self.seen |= 1 << direction as u8;
                if self.seen == 3 || self.one_sided { FlowState::Associated } else { FlowState::Ended }
            }
            state => state,
        };
    }

    /// Whether the endpoint answered an INIT.
    pub fn is_answered(&self) -> bool {
        self.tags[Direction::Forward as usize] != 0
    }

    fn is_shutting_down(&self) -> bool {
        matches!(self.state, FlowState::ShutdownSent | FlowState::ShutdownAckSent)
    }

    /// RFC 9260 section 8.5.1 B and C: the tag of its own direction or, with the T bit, that of the other one.
    pub fn has_right_tag(&self, direction: Direction, said: &Said) -> bool {
        let reflected = said.chunks.intersects(Chunks::REFLECTED);
        let of = if reflected { direction.opposite() } else { direction };
        let tag = self.tags[of as usize];
        tag != 0 && tag == said.tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: Direction = Direction::Forward;
    const R: Direction = Direction::Reply;
    /// Of packets to the client, and of those to the endpoint.
    const CLIENTS: u32 = 11;
    const ENDPOINTS: u32 = 22;

    fn opening(one_sided: bool) -> Association {
        let mut association = Association { state: FlowState::CookieWait, seen: 0, tags: [0; 2], one_sided };
        association.note(F, &Said { chunks: Chunks::INIT, tag: 0, initiate: Some(CLIENTS) });
        association
    }

    fn said(direction: Direction, chunks: Chunks) -> Said {
        let reflected = chunks.intersects(Chunks::REFLECTED);
        let to_endpoint = (direction == F) != reflected;
        Said { chunks, tag: if to_endpoint { ENDPOINTS } else { CLIENTS }, initiate: None }
    }

    const INIT_ACK: Said = Said { chunks: Chunks::INIT_ACK, tag: CLIENTS, initiate: Some(ENDPOINTS) };
    const NOTHING: Chunks = Chunks::REFLECTED;

    fn data(direction: Direction) -> Said {
        Said { chunks: Chunks::default(), ..said(direction, Chunks::default()) }
    }

    fn opened() -> Association {
        let mut association = opening(false);
        association.note(R, &INIT_ACK);
        association.note(F, &said(F, Chunks::COOKIE_ECHO));
        assert_eq!(association.state, FlowState::CookieEchoed);
        association.note(R, &said(R, Chunks::COOKIE_ACK));
        assert_eq!((association.state, association.tags), (FlowState::Associated, [ENDPOINTS, CLIENTS]));
        association
    }

    fn after(mut association: Association, steps: &[(Direction, Chunks)]) -> FlowState {
        for &(direction, chunks) in steps {
            let said = if chunks == NOTHING { data(direction) } else { said(direction, chunks) };
            association.note(direction, &said);
        }
        association.state
    }

    #[test]
    fn an_association_opens_by_four_packets_and_ends_by_three() {
        let open = opened();
        for (first, second) in [(F, R), (R, F)] {
            let steps = [(first, Chunks::SHUTDOWN), (second, Chunks::SHUTDOWN_ACK), (first, Chunks::SHUTDOWN_COMPLETE)];
            assert_eq!(after(open, &steps[..1]), FlowState::ShutdownSent);
            assert_eq!(after(open, &steps[..2]), FlowState::ShutdownAckSent);
            assert_eq!(after(open, &steps), FlowState::Ended);
            // The last one may be answered by whom nothing is left of.
            let reflected = Chunks::SHUTDOWN_COMPLETE.union(Chunks::REFLECTED);
            assert_eq!(after(open, &[steps[0], steps[1], (first, reflected)]), FlowState::Ended);
        }
        assert_eq!(after(open, &[(F, Chunks::SHUTDOWN_COMPLETE)]), FlowState::Associated);
        assert_eq!(after(open, &[(F, NOTHING), (R, NOTHING)]), FlowState::Associated);
    }

    #[test]
    fn an_abort_is_believed_by_its_tag_alone() {
        for direction in [F, R] {
            for chunks in [Chunks::ABORT, Chunks::ABORT.union(Chunks::REFLECTED)] {
                let right = said(direction, chunks);
                let mut association = opened();
                for tag in [0, right.tag ^ 1, CLIENTS + ENDPOINTS - right.tag] {
                    assert!(!association.note(direction, &Said { tag, ..right }));
                    assert_eq!(association.state, FlowState::Associated);
                }
                assert!(association.note(direction, &right));
                assert_eq!(association.state, FlowState::Ended);
            }
        }
    }

    #[test]
    fn an_endpoint_refuses_by_the_tag_of_the_init() {
        let mut association = opening(false);
        assert!(!association.note(F, &Said { tag: 0, ..said(F, Chunks::ABORT) }), "nobody knows its tag yet");
        assert!(association.note(R, &said(R, Chunks::ABORT)));
        assert_eq!(association.state, FlowState::Ended);
    }

    #[test]
    fn what_ended_goes_on_if_both_sides_do() {
        let abort = (F, Chunks::ABORT);
        assert_eq!(after(opened(), &[abort, (R, NOTHING), (R, NOTHING)]), FlowState::Ended);
        assert_eq!(after(opened(), &[abort, (R, NOTHING), (F, NOTHING)]), FlowState::Associated);
        let mut association = opened();
        association.note(F, &said(F, Chunks::ABORT));
        association.note(R, &data(R));
        association.note(F, &Said { tag: 9, ..data(F) });
        assert_eq!(association.state, FlowState::Ended, "by a stranger");
    }

    #[test]
    fn shutdowns_with_another_tag_change_nothing() {
        let mut association = opened();
        for chunks in [Chunks::SHUTDOWN, Chunks::SHUTDOWN_ACK] {
            association.note(F, &Said { tag: 9, ..said(F, chunks) });
            assert_eq!(association.state, FlowState::Associated);
        }
    }

    #[test]
    fn a_restart_has_other_tags_from_the_cookie_ack_on() {
        let mut association = opened();
        association.note(F, &Said { chunks: Chunks::INIT, tag: 0, initiate: Some(33) });
        association.note(R, &Said { chunks: Chunks::INIT_ACK, tag: 33, initiate: Some(44) });
        assert_eq!(association.tags, [ENDPOINTS, CLIENTS], "nobody answered for it yet");
        association.note(F, &Said { tag: 44, ..said(F, Chunks::COOKIE_ECHO) });
        association.note(R, &Said { tag: 33, ..said(R, Chunks::COOKIE_ACK) });
        assert!(!association.note(F, &Said { tag: 44, ..said(F, Chunks::ABORT) }), "not known yet");
        association.note(F, &Said { tag: 44, ..data(F) });
        assert_eq!((association.state, association.tags), (FlowState::Associated, [44, 33]));
        assert!(association.note(F, &Said { tag: 44, ..said(F, Chunks::ABORT) }));
    }

    #[test]
    fn another_init_while_it_opens_begins_anew() {
        let mut association = opening(false);
        association.note(R, &INIT_ACK);
        association.note(F, &Said { chunks: Chunks::INIT, tag: 0, initiate: Some(33) });
        assert_eq!((association.state, association.tags), (FlowState::CookieWait, [0, 33]));
        association.note(R, &INIT_ACK);
        assert_eq!(association.tags, [0, 33], "of the former one");
    }

    #[test]
    fn where_replies_are_not_seen_the_clients_packets_tell() {
        let after = |steps: &[Chunks]| {
            let steps: Vec<_> = steps.iter().map(|chunks| (F, *chunks)).collect();
            after(opening(true), &steps)
        };
        assert_eq!(after(&[Chunks::COOKIE_ECHO]), FlowState::CookieEchoed);
        assert_eq!(after(&[Chunks::COOKIE_ECHO, Chunks::COOKIE_ECHO]), FlowState::CookieEchoed);
        let open = [Chunks::COOKIE_ECHO, NOTHING];
        assert_eq!(after(&open), FlowState::Associated);
        let then = |chunks: &[Chunks]| after(&[&open[..], chunks].concat());
        assert_eq!(then(&[Chunks::SHUTDOWN]), FlowState::ShutdownSent);
        assert_eq!(then(&[Chunks::SHUTDOWN, Chunks::SHUTDOWN_COMPLETE]), FlowState::Ended);
        assert_eq!(then(&[Chunks::SHUTDOWN_ACK]), FlowState::ShutdownAckSent);
        assert_eq!(then(&[Chunks::ABORT]), FlowState::Ended);
        assert_eq!(then(&[Chunks::ABORT, NOTHING]), FlowState::Associated);
    }
}

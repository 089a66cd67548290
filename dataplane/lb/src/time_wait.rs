//! Which SNAT ports lead into an endpoint's TIME_WAIT, and which SYNs are past it all the same.
//!
//! The side that closes first keeps the connection's end in mind for a while (RFC 9293 section 3.6.1). Where that is the
//! endpoint, a SYN from the same SNAT port is another connection to it only if its timestamp or its sequence number is
//! beyond what the old connection's client sent last (RFC 6191); SNAT mixes clients whose numbers have nothing to do with
//! each other. What the client sent last is its FIN, which is when it is noted here: in a table of fixed size, one place for
//! each hash, the later one stays. What is forgotten costs a client that meets it a round trip more.

use crate::flow::FlowHash;
use crate::time::Tick;

/// How long a port is kept from SYNs that would not pass: as long as Linux's TIME_WAIT takes.
pub(crate) const QUARANTINE: u32 = Tick::from_millis(60_000);
/// Most connections that are remembered; more than a thousand a second end for.
const MOST: usize = 1 << 17;
/// Bit of a tag: the timestamp is one.
const HAS_TIMESTAMP: u32 = 1;

/// What tells a connection's segments from another's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Numbers {
    /// The next sequence number.
    pub sequence: u32,
    /// The timestamp, where there is one (RFC 7323).
    pub timestamp: Option<u32>,
}

/// Connections that ended at the endpoint first.
pub(crate) struct TimeWaits {
    places: Vec<Place>,
}

/// 16 octets; a tag of 0 is none.
#[derive(Clone, Copy, Default)]
struct Place {
    tag: u32,
    ended: u32,
    sequence: u32,
    timestamp: u32,
}

impl TimeWaits {
    /// For a table of so many flows.
    pub fn new(flows: usize) -> Self {
        Self { places: vec![Place::default(); flows.next_power_of_two().clamp(1 << 10, MOST)] }
    }

    /// The client of a connection sent its last; the hash is that of its replies' key.
    pub fn note(&mut self, replies: FlowHash, last: Numbers, now: Tick) {
        let at = self.place(replies);
        self.places[at] = Place {
            tag: tag(replies) | if last.timestamp.is_some() { HAS_TIMESTAMP } else { 0 },
            ended: now.0,
            sequence: last.sequence,
            timestamp: last.timestamp.unwrap_or(0),
        };
    }

    /// Asks for the memory that a question to come will touch.
    #[inline]
    pub fn prefetch(&self, replies: FlowHash) {
        arena::prefetch(&self.places[self.place(replies)]);
    }

    /// Whether a SYN with these numbers is taken for an old connection's: it would be answered by an ACK, and nothing opens.
    pub fn holds(&self, replies: FlowHash, syn: impl FnOnce() -> Numbers, now: Tick) -> bool {
        let place = &self.places[self.place(replies)];
        // One worker's times never go back, and what ended long ago must not seem to end in future.
        if place.tag & !HAS_TIMESTAMP != tag(replies) || now.0.wrapping_sub(place.ended) >= QUARANTINE {
            return false;
        }
        let timestamp = (place.tag & HAS_TIMESTAMP != 0).then_some(place.timestamp);
        !passes(Numbers { sequence: place.sequence, timestamp }, syn())
    }

    fn place(&self, replies: FlowHash) -> usize {
        replies.0 as usize & (self.places.len() - 1)
    }
}

fn tag(replies: FlowHash) -> u32 {
    // Of bits that say nothing about the place; never 0.
    (replies.0 >> 32) as u32 & !HAS_TIMESTAMP | 2
}

/// Whether a SYN opens a connection at an endpoint in TIME_WAIT, by RFC 6191 section 2.
fn passes(last: Numbers, syn: Numbers) -> bool {
    let newer = |new: u32, old: u32| (new.wrapping_sub(old) as i32).cmp(&0);
    let sequence = newer(syn.sequence, last.sequence).is_gt();
    match (last.timestamp, syn.timestamp) {
        (Some(old), Some(new)) => newer(new, old).then(newer(syn.sequence, last.sequence)).is_gt(),
        _ => sequence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: Tick = Tick(1000);
    const HASH: FlowHash = FlowHash(0x0123_4567_89ab_cdef);

    fn numbers(sequence: u32, timestamp: Option<u32>) -> Numbers {
        Numbers { sequence, timestamp }
    }

    fn holds(last: Numbers, syn: Numbers, now: Tick) -> bool {
        let mut waits = TimeWaits::new(1);
        waits.note(HASH, last, ENDED);
        waits.holds(HASH, || syn, now)
    }

    #[test]
    fn a_syn_passes_by_a_later_timestamp_or_where_there_are_none_by_a_later_number() {
        for (last, syn, held) in [
            // RFC 6191 section 2, and both wrap.
            (numbers(900, Some(50)), numbers(5, Some(51)), false),
            (numbers(900, Some(50)), numbers(901, Some(49)), true),
            (numbers(900, Some(50)), numbers(901, Some(50)), false),
            (numbers(900, Some(50)), numbers(900, Some(50)), true),
            (numbers(900, Some(50)), numbers(901, None), false),
            (numbers(900, Some(50)), numbers(5, None), true),
            (numbers(900, None), numbers(901, None), false),
            (numbers(900, None), numbers(900, Some(7)), true),
            (numbers(u32::MAX, None), numbers(3, None), false),
            (numbers(900, Some(u32::MAX)), numbers(5, Some(0)), false),
            (numbers(900, Some(0)), numbers(5, Some(0)), true),
        ] {
            assert_eq!(holds(last, syn, ENDED), held, "{last:?} then {syn:?}");
        }
    }

    #[test]
    fn a_minute_later_every_syn_passes() {
        let (last, syn) = (numbers(900, Some(50)), numbers(5, Some(49)));
        assert!(holds(last, syn, Tick(ENDED.0 + QUARANTINE - 1)));
        for later in [QUARANTINE, 1 << 31, u32::MAX] {
            assert!(!holds(last, syn, Tick(ENDED.0.wrapping_add(later))), "{later}");
        }
    }

    #[test]
    fn others_and_what_was_overwritten_are_held_by_nothing() {
        let mut waits = TimeWaits::new(1);
        waits.note(HASH, numbers(900, None), ENDED);
        let other = FlowHash(HASH.0 ^ 0xff00_0000_0000_0000);
        assert!(!waits.holds(other, || numbers(5, None), ENDED), "the same place");
        waits.note(other, numbers(900, None), ENDED);
        assert!(waits.holds(other, || numbers(5, None), ENDED) && !waits.holds(HASH, || numbers(5, None), ENDED));
        assert!(!TimeWaits::new(1).holds(FlowHash(0), || numbers(5, None), Tick(0)), "nothing was noted");
    }
}

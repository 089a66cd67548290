//! What is remembered of one datagram: where it goes, and which of its octets were seen.

use wire::{Fragment, Ports, Protocol};

use super::kept::Chain;
use crate::flow::FlowKey;
use crate::id::WorkerId;
use crate::time::Tick;
use crate::verdict::DropReason;

/// Most parts of a datagram: one of 64 KiB over links of 576 octets has 119.
pub(crate) const MOST_PARTS: usize = 128;

/// Where a datagram goes, as its first part has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bound {
    pub ports: Ports,
    pub protocol: Protocol,
    /// The other worker whose flow it is.
    pub owner: Option<WorkerId>,
    /// What identifies it from here on, where that is another number than before.
    pub id: u32,
}

/// What becomes of a datagram's parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// The first part was not seen yet.
    Waiting,
    /// The first part was sent on.
    Going(Bound),
    /// All that comes is dropped.
    Ended(DropReason),
}

/// Octets of a datagram, in units of eight; the last unit of all may not be whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    start: u16,
    end: u16,
}

/// A datagram.
pub(crate) struct Datagram {
    pub key: FlowKey,
    pub bucket: u32,
    /// The next row of the bucket.
    pub chained: Option<u16>,
    /// Its neighbours in the line in which it stands.
    pub older: Option<u16>,
    pub newer: Option<u16>,
    pub line: u8,
    /// Which source it counts for.
    pub source: u16,
    pub since: Tick,
    pub fate: Fate,
    /// Parts that wait, in the order in which they came.
    pub kept: Chain,
    spans: [Span; MOST_PARTS],
    parts: u8,
    /// Units seen.
    seen: u16,
    /// Octets of all, once the last part was seen.
    total: Option<u32>,
}

impl Datagram {
    pub(crate) fn new(key: FlowKey, bucket: u32, source: u16, now: Tick) -> Self {
        Self {
            key,
            bucket,
            chained: None,
            older: None,
            newer: None,
            line: 0,
            source,
            since: now,
            fate: Fate::Waiting,
            kept: Chain::default(),
            spans: [Span { start: 0, end: 0 }; MOST_PARTS],
            parts: 0,
            seen: 0,
            total: None,
        }
    }

    /// Takes note of a sound part.
    ///
    /// # Errors
    /// What it is dropped for: it was there already ([`DropReason::FragmentDuplicate`]), it has octets that another part has
    /// or that are past the end ([`DropReason::FragmentOverlap`]), or there are too many ([`DropReason::FragmentLimit`]).
    pub(crate) fn take(&mut self, part: &Fragment) -> Result<(), DropReason> {
        let end = u32::from(part.offset) + u32::from(part.len());
        let span = Span { start: part.offset / 8, end: end.div_ceil(8) as u16 };
        let seen = &self.spans[..usize::from(self.parts)];
        if let Some(other) = seen.iter().find(|other| span.start < other.end && other.start < span.end) {
            // The last part's octets may be fewer than its units have.
            let is_last = self.total.is_some_and(|total| total.div_ceil(8) == u32::from(other.end));
            let same = *other == span && if is_last { !part.more && self.total == Some(end) } else { part.more };
            return Err(if same { DropReason::FragmentDuplicate } else { DropReason::FragmentOverlap });
        }
        let past_end = match (self.total, part.more) {
            (Some(total), true) => end >= total,
            (Some(_), false) => true,
            (None, true) => false,
            (None, false) => seen.iter().any(|other| other.end >= span.end),
        };
        if past_end {
            return Err(DropReason::FragmentOverlap);
        }
        if usize::from(self.parts) == MOST_PARTS {
            return Err(DropReason::FragmentLimit);
        }
        if !part.more {
            self.total = Some(end);
        }
        self.spans[usize::from(self.parts)] = span;
        self.parts += 1;
        self.seen += span.end - span.start;
        Ok(())
    }

    /// Whether all parts were seen.
    pub(crate) fn is_whole(&self) -> bool {
        self.total.is_some_and(|total| u32::from(self.seen) == total.div_ceil(8))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::{Addr, Ip, MacAddr, Port, Ports};

    use super::*;

    fn part(offset: u16, len: u16, more: bool) -> Fragment {
        let address = Addr::from_v4([192, 0, 2, 1]);
        let ip = Ip {
            src: address,
            dst: address,
            l3: 14,
            l4: 34,
            end: 34 + len,
            ipv6: false,
            protocol: Protocol::UDP,
            ttl: 64,
            src_mac: MacAddr([2; 6]),
        };
        Fragment { ip, id: 1, offset, more }
    }

    fn datagram() -> Datagram {
        let address = Addr::from_v4([192, 0, 2, 1]);
        let ports = Ports::new(Port::new(0), Port::new(1));
        Datagram::new(FlowKey { src: address, dst: address, ports, protocol: Protocol::UDP }, 0, 0, Tick(0))
    }

    #[test]
    fn parts_in_any_order_make_it_whole_and_duplicates_add_nothing() {
        let parts = [part(0, 16, true), part(16, 24, true), part(40, 8, true), part(48, 5, false)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let mut datagram = datagram();
            for (at, number) in order.iter().enumerate() {
                assert!(!datagram.is_whole());
                assert_eq!(datagram.take(&parts[*number]), Ok(()));
                for seen in &order[..=at] {
                    assert_eq!(datagram.take(&parts[*seen]), Err(DropReason::FragmentDuplicate));
                }
            }
            assert!(datagram.is_whole());
        }
    }

    #[test]
    fn what_overlaps_or_is_past_the_end_is_told() {
        let overlap = Err(DropReason::FragmentOverlap);
        for wrong in [part(8, 16, true), part(16, 8, true), part(24, 8, true), part(0, 48, true), part(24, 5, false)] {
            let mut datagram = datagram();
            assert_eq!(datagram.take(&part(16, 16, true)), Ok(()));
            assert_eq!(datagram.take(&wrong), overlap, "{wrong:?}");
        }
        for (wrong, beyond) in [(48, 8, true), (56, 8, true), (56, 1, false), (40, 8, true), (40, 8, false)]
            .map(|(o, l, m)| (part(o, l, m), o))
        {
            let mut datagram = datagram();
            assert_eq!(datagram.take(&part(40, 5, false)), Ok(()));
            assert_eq!(datagram.take(&wrong), overlap, "{beyond}");
        }
        // A last part before one that was seen.
        let mut datagram = datagram();
        assert_eq!(datagram.take(&part(40, 8, true)), Ok(()));
        assert_eq!(datagram.take(&part(16, 5, false)), overlap);
        assert_eq!(datagram.take(&part(40, 8, false)), overlap, "the same octets, and now the last ones");
    }

    #[test]
    fn there_is_a_most_of_parts_and_the_longest_datagram_is_within() {
        let mut datagram = datagram();
        for n in 0..MOST_PARTS as u16 {
            assert_eq!(datagram.take(&part(n * 8, 8, true)), Ok(()));
        }
        assert_eq!(datagram.take(&part(MOST_PARTS as u16 * 8, 8, true)), Err(DropReason::FragmentLimit));
        let mut datagram = super::tests::datagram();
        for n in 0..119u16 {
            let len = if n == 118 { 65_515 - 118 * 552 } else { 552 };
            assert_eq!(datagram.take(&part(n * 552, len, n != 118)), Ok(()));
        }
        assert!(datagram.is_whole());
    }

    proptest! {
        /// Against a map of octets.
        #[test]
        fn what_is_taken_never_overlaps_and_whole_means_whole(
            parts in prop::collection::vec((0u16..16, 1u16..40, any::<bool>()), 1..24),
        ) {
            let mut datagram = datagram();
            let (mut octets, mut total) = ([false; 256], None);
            for (unit, len, more) in parts {
                let part = part(unit * 8, if more { len.next_multiple_of(8) } else { len }, more);
                let range = usize::from(part.offset)..usize::from(part.offset + part.len());
                if datagram.take(&part).is_ok() {
                    prop_assert!(!octets[range.clone()].iter().any(|seen| *seen), "overlap");
                    octets[range.clone()].fill(true);
                    if !more {
                        prop_assert_eq!(total, None);
                        total = Some(range.end);
                    }
                    prop_assert!(total.is_none_or(|total| octets[total..].iter().all(|seen| !seen)));
                }
                let whole = total.is_some_and(|total| octets[..total].iter().all(|seen| *seen));
                prop_assert_eq!(datagram.is_whole(), whole);
            }
        }
    }
}

//! Copies of frames in a fixed number of slots: parts that wait for the first of their datagram, and pieces that were cut
//! and wait to be sent.
//!
//! The memory is taken at the start and touched where it is used. A slot knows the next one of its chain; a chain's owner
//! knows its first and its last.

use crate::id::PortId;

/// Slots of a worker.
pub(crate) const SLOTS: usize = 1024;
/// Longest frame that is kept: as long as any frame's room.
pub(crate) const LONGEST: usize = 4096;

/// A slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot(u16);

/// Slots one after another.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Chain {
    ends: Option<(Slot, Slot)>,
    len: u16,
}

impl Chain {
    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    len: u16,
    port: PortId,
    next: Option<Slot>,
}

/// The slots.
pub(crate) struct Kept {
    bytes: Vec<u8>,
    /// Of slots that were ever used.
    entries: Vec<Entry>,
    free: Chain,
    used: usize,
}

impl Kept {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; SLOTS * LONGEST], entries: Vec::with_capacity(SLOTS), free: Chain::default(), used: 0 }
    }

    /// Slots in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Whether so many more slots are free.
    pub(crate) fn has_room(&self, slots: usize) -> bool {
        self.used + slots <= SLOTS
    }

    /// Appends a frame that `write` makes, given a slot's room, and that came in, or goes out, by `port`. `false`: all slots
    /// are used.
    #[must_use]
    pub(crate) fn append(&mut self, chain: &mut Chain, port: PortId, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(slot) = self.take() else { return false };
        let at = usize::from(slot.0) * LONGEST;
        let len = write(&mut self.bytes[at..at + LONGEST]);
        self.entries[usize::from(slot.0)] = Entry { len: len as u16, port, next: None };
        self.link(chain, slot);
        true
    }

    /// The first frame of a chain and its port.
    pub(crate) fn first(&self, chain: &Chain) -> Option<(&[u8], PortId)> {
        let (first, _) = chain.ends?;
        let (at, entry) = (usize::from(first.0) * LONGEST, &self.entries[usize::from(first.0)]);
        Some((&self.bytes[at..at + usize::from(entry.len)], entry.port))
    }

    /// Frees the first slot of a chain.
    pub(crate) fn release_first(&mut self, chain: &mut Chain) {
        if let Some(slot) = self.unlink(chain) {
            let mut free = self.free;
            self.entries[usize::from(slot.0)].next = None;
            self.link(&mut free, slot);
            self.free = free;
            self.used -= 1;
        }
    }

    /// Frees a whole chain; gives how many slots it had.
    pub(crate) fn release(&mut self, chain: &mut Chain) -> usize {
        let len = chain.len();
        while !chain.is_empty() {
            self.release_first(chain);
        }
        len
    }

    fn take(&mut self) -> Option<Slot> {
        let mut free = self.free;
        let slot = self.unlink(&mut free);
        self.free = free;
        let slot = slot.or_else(|| {
            let number = self.entries.len();
            (number < SLOTS).then(|| {
                self.entries.push(Entry { len: 0, port: PortId(0), next: None });
                Slot(number as u16)
            })
        })?;
        self.used += 1;
        Some(slot)
    }

    fn link(&mut self, chain: &mut Chain, slot: Slot) {
        chain.ends = Some(match chain.ends {
            Some((first, last)) => {
                self.entries[usize::from(last.0)].next = Some(slot);
                (first, slot)
            }
            None => (slot, slot),
        });
        chain.len += 1;
    }

    fn unlink(&mut self, chain: &mut Chain) -> Option<Slot> {
        let (first, last) = chain.ends?;
        chain.ends = self.entries[usize::from(first.0)].next.map(|next| (next, last));
        chain.len -= 1;
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kept: &mut Kept, chain: &mut Chain, byte: u8) -> bool {
        kept.append(chain, PortId(byte % 3), |room| {
            room[..2].fill(byte);
            2
        })
    }

    #[test]
    fn frames_come_out_in_the_order_in_which_they_went_in_and_slots_are_used_again() {
        let mut kept = Kept::new();
        let mut chains = [Chain::default(); 3];
        for round in 0..5 {
            for n in 0..90u8 {
                assert!(put(&mut kept, &mut chains[usize::from(n) % 3], n));
            }
            assert_eq!(kept.used(), 90);
            for (number, chain) in chains.iter_mut().enumerate() {
                for n in (number as u8..90).step_by(3).take(if number == 2 { 10 } else { 30 }) {
                    assert_eq!(kept.first(chain), Some((&[n, n][..], PortId(n % 3))), "round {round}");
                    kept.release_first(chain);
                }
            }
            assert_eq!((kept.release(&mut chains[2]), kept.used()), (20, 0));
            assert!(chains.iter().all(|chain| kept.first(chain).is_none()));
        }
        assert_eq!(kept.entries.len(), 90);
    }

    #[test]
    fn when_all_slots_are_used_nothing_is_kept() {
        let (mut kept, mut chain) = (Kept::new(), Chain::default());
        assert!((0..SLOTS).all(|_| put(&mut kept, &mut chain, 1)));
        assert!(!kept.has_room(1) && !put(&mut kept, &mut chain, 2));
        kept.release_first(&mut chain);
        assert!(kept.has_room(1) && put(&mut kept, &mut chain, 3) && !put(&mut kept, &mut chain, 4));
    }
}

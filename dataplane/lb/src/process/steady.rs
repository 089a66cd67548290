//! Packets that change nothing about their flow but when it was last seen: all but the first and the last few.
//!
//! The shortest way there is, for plain frames of flows that are established, whose endpoint serves and can be reached.
//! It decides only what it is sure of; everything else goes the general way ([`super::established`] and on), which gives
//! the same for these packets, only later.

use core::hint::select_unpredictable;

use wire::{Head, Plain, TcpFlags};

use super::Turn;
use super::established::SHORTEST_FRAME;
use crate::flow::{Direction, Guess};
use crate::verdict::{Frame, Verdict};

/// Flags of segments that end a connection.
const ENDING: TcpFlags = TcpFlags::FIN.union(TcpFlags::RST);

impl Turn<'_> {
    /// Sends the packet on if that is all there is to do; `None`, and nothing was changed, where it is not.
    #[inline(always)] // As `decide`.
    pub(super) fn steady(&mut self, frame: &mut Frame<'_>, plain: &Plain, guess: Guess) -> Option<Verdict> {
        let (entry, direction) = self.state.flows.guessed_mut(guess)?;
        let head: &mut Head = frame.room.first_chunk_mut()?;
        if !entry.is_of(direction, plain, head) || !entry.is_steady(direction) || plain.tcp_flags.intersects(ENDING) {
            return None;
        }
        let row = self.backends.get(entry.backend_id().index()).filter(|row| row.id == entry.backend_id())?;
        if !row.steady {
            return None;
        }
        let forward = direction == Direction::Forward;
        let client = entry.client_word();
        let elsewhere = (Plain::source_mac(head) ^ client) | u64::from(entry.client_nic().0 ^ frame.port.0);
        // A number and not a condition, which would become a branch that no predictor can tell.
        let moved = select_unpredictable(forward, elsewhere, 0);
        let back = self.links.get(usize::from(entry.client_nic().0))?;
        let link = select_unpredictable(forward, &row.link, back);
        let too_long = u64::from(plain.end > link.end());
        if moved | too_long != 0 || self.offloads && plain.is_partial(head) {
            return None;
        }
        let link = link.towards(select_unpredictable(forward, 0, client));
        let rewrite = entry.rewrite(direction, plain.kind.ipv6());
        let acked = plain.rewrite(head, &rewrite, link.addresses());
        entry.touch(direction, acked, self.tick);
        let end = usize::from(plain.end);
        if frame.len > end {
            // What stood behind the packet is padding at best.
            frame.len = frame.len.min(end.max(SHORTEST_FRAME));
        }
        Some(Verdict::Tx(link.port()))
    }
}

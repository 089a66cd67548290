//! Fragmented datagrams on their way: what their parts have in common, and copies of parts that came before the first one.
//!
//! Parts are sent on as they come, once the first one, which has the ports, has shown where they go; nothing is put
//! together. What is remembered of a datagram is its flow's ports and which octets were seen, so that nothing that
//! overlaps goes on (RFC 5722; for IPv4 as well, RFC 1858 and 3128). Everything has a fixed size, made at the start: rows
//! for datagrams, slots for copies. Both are given up after [`LIFETIME_MS`], the oldest first when there is no room, and
//! no source has more than its share. Datagrams whose first part was sent on and those that still wait for it stand in
//! lines of their own, so that parts that lead nowhere never push out those of flows.

mod datagram;
mod identification;
mod kept;

use std::fmt;

use wire::{Addr, Fragment, Ports, Protocol};

use datagram::Datagram;
pub(crate) use datagram::{Bound, Fate};
use identification::Identifications;
use kept::{Chain, Kept, SLOTS};

use crate::flow::{FlowHash, FlowKey};
use crate::id::{PortId, WorkerId};
use crate::time::Tick;
use crate::verdict::DropReason;

/// How long parts may come after one another: what is still missing then was lost, and identifications of IPv4 come again
/// soon (RFC 4963).
pub const LIFETIME_MS: u64 = 2_000;
const LIFETIME: u32 = Tick::from_millis(LIFETIME_MS);

/// Datagrams of a worker.
const ROWS: usize = 4096;
/// Those of them that may wait for their first part, or lead nowhere.
const WAITING_ROWS: usize = ROWS / 4;
/// A source's share of datagrams; of IPv6, a /64's.
const ROWS_SHARE: u16 = (ROWS / 8) as u16;
/// A source's share of kept parts.
const KEPT_SHARE: u16 = (SLOTS / 8) as u16;
/// Slots that pieces of cut packets may take.
const PIECES: usize = SLOTS / 2;
/// Places of sources and of datagrams; who meets by chance shares a share.
const PLACES: usize = 4096;
/// Datagrams that are given up for one part's room.
const MOST_GIVEN_UP: usize = 8;
/// Datagrams looked at for their age in one go.
const EXPIRED_AT_ONCE: usize = 16;

/// Stands where IPv4 has the protocol in a datagram's key: IPv6's first part alone tells it (RFC 8200 section 4.5).
const ANY: Protocol = Protocol(0);

/// What identifies a datagram, with its identification in the place of ports.
pub(crate) fn key_of(part: &Fragment) -> FlowKey {
    let protocol = if part.ip.ipv6 { ANY } else { part.ip.protocol };
    FlowKey { src: part.ip.src, dst: part.ip.dst, ports: Ports::from_octets(part.id.to_be_bytes()), protocol }
}

/// The key that stands for a part's source in what it may take: an address, or the /64 of an IPv6 address.
pub(crate) fn source_key(source: &Addr) -> FlowKey {
    let network = if source.is_v4() { *source } else { Addr::from_parts(source.first_word(), 0, 0) };
    FlowKey { src: network, dst: network, ports: Ports::from_octets([0; 4]), protocol: ANY }
}

/// The worker where a datagram's parts meet.
pub(crate) fn meeting_worker(hash: FlowHash, workers: usize) -> WorkerId {
    WorkerId(((u128::from(hash.0) * workers as u128) >> 64) as u8)
}

/// A line of datagrams, the oldest first.
#[derive(Clone, Copy, Default)]
struct Line {
    oldest: Option<u16>,
    newest: Option<u16>,
    len: usize,
}

/// Their first part was not seen, or was not sent on.
const WAITING: u8 = 0;
/// Their first part was sent on.
const GOING: u8 = 1;
/// As well, and kept parts are to be sent.
const READY: u8 = 2;

/// A datagram; good until another one is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DatagramRef(u16);

/// What is to be sent without a frame.
pub(crate) enum Pending<'a> {
    /// A part as it came, by this NIC.
    Part(&'a [u8], PortId),
    /// A frame as it goes out, by this NIC.
    Piece(&'a [u8], PortId),
}

/// A worker's fragments.
pub(crate) struct Fragments {
    /// Rows that were ever used, of room for all.
    rows: Vec<Datagram>,
    free: Option<u16>,
    /// By place, the first row plus one.
    heads: Vec<u16>,
    lines: [Line; 3],
    row_shares: Vec<u16>,
    kept_shares: Vec<u16>,
    kept: Kept,
    pieces: Chain,
    ids: Identifications,
    given_up: u64,
}

impl Fragments {
    /// Of worker `id` among `workers`. They have `secret` in common; `start` is random.
    pub(crate) fn new(id: WorkerId, workers: usize, secret: [u64; 2], start: u64) -> Self {
        Self {
            rows: Vec::with_capacity(ROWS),
            free: None,
            heads: vec![0; PLACES],
            lines: [Line::default(); 3],
            row_shares: vec![0; PLACES],
            kept_shares: vec![0; PLACES],
            kept: Kept::new(),
            pieces: Chain::default(),
            ids: Identifications::new(secret, usize::from(id.0), workers, start as u32),
            given_up: 0,
        }
    }

    /// Parts that were kept and never sent.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up
    }

    /// An identification that no other datagram has.
    pub(crate) fn draw_id(&mut self, ipv6: bool) -> u32 {
        self.ids.draw(ipv6)
    }

    pub(crate) fn fate(&self, at: DatagramRef) -> Fate {
        self.rows[usize::from(at.0)].fate
    }

    /// Takes note of a sound part, and begins a datagram with it if it is the first to come. `hash` is the key's, `source`
    /// that of [`source_key`].
    ///
    /// # Errors
    /// What it is dropped for.
    pub(crate) fn meet(
        &mut self,
        hash: FlowHash,
        key: &FlowKey,
        source: FlowHash,
        part: &Fragment,
        now: Tick,
    ) -> Result<DatagramRef, DropReason> {
        let at = match self.find(hash, key, now) {
            Some(at) => at,
            None => self.begin(hash, key, place(source) as u16, now)?,
        };
        self.take(at, part)
    }

    /// Takes note of a sound part of a datagram that is known.
    ///
    /// # Errors
    /// What it is dropped for.
    pub(crate) fn follow(
        &mut self,
        hash: FlowHash,
        key: &FlowKey,
        part: &Fragment,
        now: Tick,
    ) -> Result<DatagramRef, DropReason> {
        let at = self.find(hash, key, now).ok_or(DropReason::FragmentUnmatched)?;
        self.take(at, part)
    }

    fn take(&mut self, at: DatagramRef, part: &Fragment) -> Result<DatagramRef, DropReason> {
        let row = &mut self.rows[usize::from(at.0)];
        if let Fate::Ended(reason) = row.fate {
            return Err(reason);
        }
        match row.take(part) {
            Ok(()) => Ok(at),
            Err(DropReason::FragmentDuplicate) => Err(DropReason::FragmentDuplicate),
            Err(reason) => {
                self.end(at, reason);
                Err(reason)
            }
        }
    }

    /// Has all that comes of a datagram dropped.
    pub(crate) fn end(&mut self, at: DatagramRef, reason: DropReason) {
        self.drop_kept(at.0);
        self.rows[usize::from(at.0)].fate = Fate::Ended(reason);
        self.move_to(at.0, WAITING);
    }

    /// The first part has shown where it goes: kept parts are to be sent.
    pub(crate) fn bind(&mut self, at: DatagramRef, bound: Bound) {
        let row = &mut self.rows[usize::from(at.0)];
        row.fate = Fate::Going(bound);
        let line = if row.kept.is_empty() { GOING } else { READY };
        self.move_to(at.0, line);
    }

    /// Forgets a datagram of which all was seen and sent.
    pub(crate) fn settle(&mut self, at: DatagramRef) {
        let row = &self.rows[usize::from(at.0)];
        if row.line == GOING && row.is_whole() {
            self.remove(at.0);
        }
    }

    /// Keeps a copy of a part that came before its datagram's first one, by `port`.
    ///
    /// # Errors
    /// [`DropReason::FragmentLimit`] where its source has kept its share, or there is no room; then all that comes is
    /// dropped.
    pub(crate) fn keep(&mut self, at: DatagramRef, frame: &[u8], port: PortId) -> Result<(), DropReason> {
        let source = usize::from(self.rows[usize::from(at.0)].source);
        let mut left = MOST_GIVEN_UP;
        while !self.kept.has_room(1) && left > 0 && self.lines[usize::from(WAITING)].oldest.is_some_and(|o| o != at.0) {
            self.give_up_oldest(WAITING);
            left -= 1;
        }
        let row = &mut self.rows[usize::from(at.0)];
        let copy = |room: &mut [u8]| {
            room[..frame.len()].copy_from_slice(frame);
            frame.len()
        };
        if frame.len() > kept::LONGEST
            || self.kept_shares[source] >= KEPT_SHARE
            || !self.kept.append(&mut row.kept, port, copy)
        {
            self.end(at, DropReason::FragmentLimit);
            return Err(DropReason::FragmentLimit);
        }
        self.kept_shares[source] += 1;
        Ok(())
    }

    /// Whether so many pieces of a cut packet can be kept, each of `longest` octets at most.
    pub(crate) fn has_room_for_pieces(&self, pieces: usize, longest: usize) -> bool {
        self.pieces.len() + pieces <= PIECES && self.kept.has_room(pieces) && longest <= kept::LONGEST
    }

    /// Keeps a piece that `write` makes, to be sent by `port`. There must be room.
    pub(crate) fn keep_piece(&mut self, port: PortId, write: impl FnOnce(&mut [u8]) -> usize) {
        let kept = self.kept.append(&mut self.pieces, port, write);
        debug_assert!(kept, "room was asked for");
    }

    /// Whether [`Fragments::pending`] has something.
    #[inline]
    pub(crate) fn has_pending(&self) -> bool {
        !self.pieces.is_empty() || self.lines[usize::from(READY)].oldest.is_some()
    }

    /// What is to be sent next.
    pub(crate) fn pending(&self) -> Option<Pending<'_>> {
        if let Some((bytes, port)) = self.kept.first(&self.pieces) {
            return Some(Pending::Piece(bytes, port));
        }
        let row = &self.rows[usize::from(self.lines[usize::from(READY)].oldest?)];
        self.kept.first(&row.kept).map(|(bytes, port)| Pending::Part(bytes, port))
    }

    /// The datagram whose part [`Fragments::pending`] gives.
    pub(crate) fn pending_bound(&self) -> Option<Bound> {
        match self.rows[usize::from(self.lines[usize::from(READY)].oldest?)].fate {
            Fate::Going(bound) => Some(bound),
            Fate::Waiting | Fate::Ended(_) => None,
        }
    }

    /// Forgets the piece that [`Fragments::pending`] gave.
    pub(crate) fn settle_piece(&mut self) {
        self.kept.release_first(&mut self.pieces);
    }

    /// Forgets the part that [`Fragments::pending`] gave; `sent`: it was.
    pub(crate) fn settle_part(&mut self, sent: bool) {
        self.given_up += u64::from(!sent);
        let Some(at) = self.lines[usize::from(READY)].oldest else { return };
        let row = &mut self.rows[usize::from(at)];
        self.kept.release_first(&mut row.kept);
        self.kept_shares[usize::from(row.source)] -= 1;
        if row.kept.is_empty() {
            self.move_to(at, GOING);
            self.settle(DatagramRef(at));
        }
    }

    /// Gives up some of the datagrams whose parts did not all come in time.
    pub(crate) fn expire(&mut self, now: Tick) {
        for line in [WAITING, GOING] {
            for _ in 0..EXPIRED_AT_ONCE {
                let Some(oldest) = self.lines[usize::from(line)].oldest else { break };
                if !self.is_over(oldest, now) {
                    break;
                }
                self.remove(oldest);
            }
        }
    }

    fn is_over(&self, at: u16, now: Tick) -> bool {
        now.since(self.rows[usize::from(at)].since) > LIFETIME
    }

    fn find(&mut self, hash: FlowHash, key: &FlowKey, now: Tick) -> Option<DatagramRef> {
        let mut next = self.heads[place(hash)].checked_sub(1);
        while let Some(at) = next {
            let row = &self.rows[usize::from(at)];
            if row.key == *key {
                // Kept parts that are being sent are of this datagram still.
                if row.line != READY && self.is_over(at, now) {
                    self.remove(at);
                    return None;
                }
                return Some(DatagramRef(at));
            }
            next = row.chained;
        }
        None
    }

    fn begin(&mut self, hash: FlowHash, key: &FlowKey, source: u16, now: Tick) -> Result<DatagramRef, DropReason> {
        if self.row_shares[usize::from(source)] >= ROWS_SHARE {
            return Err(DropReason::FragmentLimit);
        }
        if self.lines[usize::from(WAITING)].len >= WAITING_ROWS {
            self.give_up_oldest(WAITING);
        } else if self.free.is_none() && self.rows.len() == ROWS {
            self.give_up_oldest(if self.lines[usize::from(GOING)].oldest.is_some() { GOING } else { WAITING });
        }
        let bucket = place(hash);
        let mut datagram = Datagram::new(*key, bucket as u32, source, now);
        datagram.chained = self.heads[bucket].checked_sub(1);
        let at = match self.free {
            Some(at) => {
                self.free = self.rows[usize::from(at)].chained;
                self.rows[usize::from(at)] = datagram;
                at
            }
            None if self.rows.len() < ROWS => {
                self.rows.push(datagram);
                self.rows.len() as u16 - 1
            }
            // All of them are being sent.
            None => return Err(DropReason::FragmentLimit),
        };
        self.heads[bucket] = at + 1;
        self.row_shares[usize::from(source)] += 1;
        self.enter(at, WAITING);
        Ok(DatagramRef(at))
    }

    fn give_up_oldest(&mut self, line: u8) {
        if let Some(oldest) = self.lines[usize::from(line)].oldest {
            self.remove(oldest);
        }
    }

    fn drop_kept(&mut self, at: u16) {
        let row = &mut self.rows[usize::from(at)];
        let dropped = self.kept.release(&mut row.kept);
        self.kept_shares[usize::from(row.source)] -= dropped as u16;
        self.given_up += dropped as u64;
    }

    fn remove(&mut self, at: u16) {
        self.drop_kept(at);
        self.leave(at);
        let row = &self.rows[usize::from(at)];
        let (bucket, after, source) = (row.bucket as usize, row.chained, usize::from(row.source));
        self.row_shares[source] -= 1;
        let mut before = None;
        let mut next = self.heads[bucket].checked_sub(1);
        while let Some(other) = next.filter(|other| *other != at) {
            before = Some(other);
            next = self.rows[usize::from(other)].chained;
        }
        match before {
            Some(before) => self.rows[usize::from(before)].chained = after,
            None => self.heads[bucket] = after.map_or(0, |after| after + 1),
        }
        self.rows[usize::from(at)].chained = self.free;
        self.free = Some(at);
    }

    fn move_to(&mut self, at: u16, line: u8) {
        if self.rows[usize::from(at)].line != line {
            self.leave(at);
            self.enter(at, line);
        }
    }

    /// Puts a row at the end of a line.
    fn enter(&mut self, at: u16, line: u8) {
        let newest = self.lines[usize::from(line)].newest;
        let row = &mut self.rows[usize::from(at)];
        (row.line, row.older, row.newer) = (line, newest, None);
        match newest {
            Some(newest) => self.rows[usize::from(newest)].newer = Some(at),
            None => self.lines[usize::from(line)].oldest = Some(at),
        }
        let line = &mut self.lines[usize::from(line)];
        line.newest = Some(at);
        line.len += 1;
    }

    fn leave(&mut self, at: u16) {
        let row = &self.rows[usize::from(at)];
        let (older, newer, line) = (row.older, row.newer, usize::from(row.line));
        match older {
            Some(older) => self.rows[usize::from(older)].newer = newer,
            None => self.lines[line].oldest = newer,
        }
        match newer {
            Some(newer) => self.rows[usize::from(newer)].older = older,
            None => self.lines[line].newest = older,
        }
        self.lines[line].len -= 1;
    }
}

fn place(hash: FlowHash) -> usize {
    // The upper bits choose the meeting worker.
    hash.0 as usize % PLACES
}

impl fmt::Debug for Fragments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [waiting, going, ready] = self.lines.map(|line| line.len);
        f.debug_struct("Fragments")
            .field("waiting", &waiting)
            .field("going", &going)
            .field("ready", &ready)
            .field("kept", &self.kept.used())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

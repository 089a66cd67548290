//! What is kept of a flow: 128 octets of plain data, no pointers.
//!
//! The first cache line has all that a packet of IPv4 needs; the second has the rest of IPv6 addresses. An address
//! is kept as its last four octets in the first line and its first twelve in the second, which need not be read for
//! IPv4. What is kept for both directions stands side by side, as in the packets of each: a direction is an index and
//! not a branch, for client and endpoint take turns as no predictor can tell. What packets of one direction become is
//! the key of the other, turned around. An entry counts from its last store on, that of the commit word, which is made of
//! both keys' hashes: an entry cut short by kill -9 has none.

use core::fmt;
use core::sync::atomic::{Ordering, compiler_fence};

use wire::nat::Rewrite;
use wire::{Addr, Delta, Head, Kind, MacAddr, Plain, Port, Ports, Protocol, Tags, TcpFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow::association::{Association, Said};
use crate::flow::key::{FlowHash, FlowHasher, FlowKey};
use crate::flow::spec::FlowSpec;
use crate::flow::state::{Direction, FlowState};
use crate::id::{BackendId, PortId, ServiceId};
use crate::model::Mode;
use crate::time::{Now, Tick};

/// In `kind`: the addresses are of IPv6.
const IPV6: u8 = Kind::IPV6;
/// In `kind`, so that no plain frame's is the same: its packets need more than a rewrite.
const INTRICATE: u8 = Kind::IPV6 << 1;
/// What tells protocols apart in `kind`: their numbers, of which it has six bits.
const PROTOCOLS: u8 = Kind::IPV6 - 1;
/// Flag: counted as a connection of its endpoint and its source; not while closed.
const COUNTED: u8 = 1 << 2;
/// Three bits: the mode's number.
const MODE_SHIFT: u32 = 3;
const MODE_MASK: u8 = 7;
/// Two bits that belong to the state of TCP or SCTP, see [`FlowState::after_segment`] and [`Association::seen`].
const SEEN_SHIFT: u32 = 6;
/// Flag, where replies are not seen and those bits have no use: [`FlowSpec::dispensable`].
const DISPENSABLE: u8 = 1 << 6;

/// How far a reset may be ahead of what was acknowledged, in units of 2^16 octets: 16 MiB, more than is nearly ever on its
/// way. One that is further ahead is delivered all the same, and the flow ends when it is idle.
const RESET_AHEAD: i16 = 256;
/// Nanoseconds are shifted right by this in `opened_fine`.
const FINE_SHIFT: u32 = 10;
/// Ticks are shifted right by this in what is kept of `udp-timeout`.
const UDP_TIMEOUT_SHIFT: u32 = 10;
/// The state's number is shifted left by this in `stage`.
const STATE_SHIFT: u32 = 3;
/// Where that timeout is in `client`, above the octets of the link-layer address.
const TIMEOUT_AT: u32 = 48;

/// A flow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct FlowEntry {
    /// By direction, [`FlowKey::last_words`] of its key.
    low: [u64; 2],
    /// By direction, as in its key.
    ports: [Ports; 2],
    last_seen: Tick,
    service: ServiceId,
    backend_id: BackendId,
    /// The [`Kind`] of its packets; of SCTP as if it had one.
    kind: u8,
    /// The number of the [`FlowState`]; below it, of a slot with a flow, [`FlowState::steady`].
    stage: u8,
    flags: u8,
    client_nic: PortId,
    /// The client's link-layer address, see [`MacAddr::word`]; above it the Service's own `udp-timeout`, 0 for none.
    client: u64,
    /// By direction; address delta, then transport delta.
    deltas: [[Delta; 2]; 2],
    /// By direction, of TCP: the upper half of what its last packet acknowledged. For UDP it means nothing. Of SCTP: the two
    /// halves of the verification tag of the endpoint's packets, the upper one first.
    acked: [u16; 2],
    commit: u32,
    // Second line.
    /// By direction, [`FlowKey::other_words`] of its key.
    high: [[u64; 3]; 2],
    /// While the flow opens: the number of the kept SYN plus one, 0 if none is. Means nothing to another process. Of SCTP: the
    /// verification tag of the client's packets.
    kept_syn: u32,
    opened_at: Tick,
    /// [`Now`] at the opening in units of 2^10 ns, wrapping after 73 minutes; 0 is unknown. Ticks are too coarse for the
    /// time of a handshake.
    opened_fine: u32,
    /// The VLAN tags that the client's packets come with; of a free slot: the one freed before it, plus one.
    client_tags_or_next: Tags,
}

/// States and protocols find room in their octets, and protocols stay apart there.
const _: () = {
    assert!((FlowState::ClientReset as u8) < 1 << (8 - STATE_SHIFT));
    assert!(Protocol::TCP.0 <= PROTOCOLS && Protocol::UDP.0 <= PROTOCOLS);
    let sctp = Protocol::SCTP.0 & PROTOCOLS;
    assert!(sctp != Protocol::TCP.0 && sctp != Protocol::UDP.0);
};
const _: () = assert!(size_of::<FlowEntry>() == 128 && core::mem::offset_of!(FlowEntry, high) == 64);

impl FlowEntry {
    /// Writes all but the commit word, which is cleared first.
    #[inline]
    pub(crate) fn write(&mut self, spec: &FlowSpec, now: Tick) {
        let keys = [Direction::Forward, Direction::Reply].map(|d| spec.key(d));
        self.uncommit();
        self.low = keys.map(|key| key.last_words());
        self.high = keys.map(|key| key.other_words());
        self.ports = keys.map(|key| key.ports);
        self.last_seen = now;
        self.opened_at = now;
        self.service = spec.service;
        self.backend_id = spec.backend_id;
        let direct = spec.mode.is_direct();
        self.set_state(match spec.protocol {
            Protocol::TCP => FlowState::Opening,
            Protocol::SCTP => FlowState::CookieWait,
            Protocol::UDP if spec.vip.1 == Port::new(53) && direct => FlowState::DnsDone,
            Protocol::UDP if spec.vip.1 == Port::new(53) => FlowState::DnsQuery,
            _ if direct => FlowState::Sent,
            _ => FlowState::Unreplied,
        });
        self.kind = spec.protocol.0 & PROTOCOLS
            | if spec.client.0.is_v4() { 0 } else { IPV6 }
            | if spec.mode.wrapping().is_some() { INTRICATE } else { 0 };
        self.flags =
            if direct && spec.dispensable { DISPENSABLE } else { 0 } | (spec.mode as u8) << MODE_SHIFT | COUNTED;
        self.client_nic = spec.client_nic;
        let timeout = spec
            .udp_timeout
            .map_or(0, |ticks| ticks.div_ceil(1 << UDP_TIMEOUT_SHIFT).clamp(1, u32::from(u16::MAX)).into());
        self.client = spec.client_mac.word() | timeout << TIMEOUT_AT;
        let [ip_delta, l4_delta] = spec.deltas();
        self.deltas = [[ip_delta, l4_delta], [ip_delta.negate(), l4_delta.negate()]];
        self.kept_syn = 0;
        self.acked = [0; 2];
        self.opened_fine = 0;
        self.client_tags_or_next = Tags::NONE;
    }

    /// The last store of an entry: from here on it counts.
    pub(crate) fn commit(&mut self, forward: FlowHash, reply: FlowHash) {
        // Another process reads this memory only after this one ended, and then sees every store that was executed;
        // so it is the compiler alone that must keep the order.
        compiler_fence(Ordering::SeqCst);
        self.commit = commit_word(forward, reply);
        compiler_fence(Ordering::SeqCst);
    }

    /// From here on the entry does not count, and has no steady packets.
    pub(crate) fn uncommit(&mut self) {
        compiler_fence(Ordering::SeqCst);
        self.commit = 0;
        self.stage &= !((1 << STATE_SHIFT) - 1);
        compiler_fence(Ordering::SeqCst);
    }

    /// Asks for both of its lines.
    #[inline]
    pub(crate) fn prefetch(&self) {
        arena::prefetch(self);
        arena::prefetch(&self.high);
    }

    /// Puts a slot without a flow before another in the list of free ones.
    pub(crate) fn link_free(&mut self, next: Option<u32>) {
        self.client_tags_or_next = zerocopy::transmute!(next.map_or(0, |slot| slot + 1));
    }

    /// The next free slot after this one.
    pub(crate) fn next_free(&self) -> Option<u32> {
        let next: u32 = zerocopy::transmute!(self.client_tags_or_next);
        next.checked_sub(1)
    }

    /// Whether the slot has a flow.
    #[inline]
    pub(crate) fn is_committed(&self) -> bool {
        self.commit != 0
    }

    /// Whether what a file holds is a whole flow: its commit word is that of its keys, its numbers mean something.
    pub(crate) fn is_whole(&self, forward: FlowHash, reply: FlowHash) -> bool {
        self.commit == commit_word(forward, reply)
            && Mode::from_number(self.flags >> MODE_SHIFT & MODE_MASK).is_some()
            && FlowState::from_number(self.stage >> STATE_SHIFT)
                .is_some_and(|state| state.protocol() == self.protocol() && stage(state) == self.stage)
    }

    /// What packets of IPv6 need beside the first line.
    #[inline]
    pub(crate) fn second_line(&self) -> &[[u64; 3]; 2] {
        &self.high
    }

    /// The source and the destination of a direction's packets.
    #[inline]
    fn ends(&self, direction: Direction, ipv6: bool) -> (Addr, Addr) {
        let d = direction as usize;
        let low = self.low[d];
        let (src, dst) = (low as u32, (low >> 32) as u32);
        if !ipv6 {
            return (Addr::from_v4_word(src), Addr::from_v4_word(dst));
        }
        let [src_first, dst_first, thirds] = self.high[d];
        (Addr::from_parts(src_first, thirds as u32, src), Addr::from_parts(dst_first, (thirds >> 32) as u32, dst))
    }

    /// The key of a direction's packets.
    #[must_use]
    #[inline]
    pub fn key(&self, direction: Direction) -> FlowKey {
        let (src, dst) = self.ends(direction, self.kind & IPV6 != 0);
        FlowKey { src, dst, ports: self.ports[direction as usize], protocol: self.protocol() }
    }

    /// The hash of that key.
    #[must_use]
    #[inline]
    pub(crate) fn hash(&self, direction: Direction, hasher: &FlowHasher) -> FlowHash {
        let (d, family) = (direction as usize, self.kind & IPV6);
        let others = (family != 0).then_some(self.high[d]);
        hasher.hash_words(self.low[d], self.ports[d], self.protocol().0 | family, others)
    }

    /// Whether this is the key of a direction's packets. For IPv4 the first line alone is looked at.
    #[must_use]
    #[inline]
    pub(crate) fn has_key(&self, direction: Direction, key: &FlowKey) -> bool {
        let d = direction as usize;
        let ports = self.ports[d].word() ^ key.ports.word();
        let protocol = self.protocol().0 ^ key.protocol.0;
        if (self.low[d] ^ key.last_words()) | u64::from(ports) | u64::from(protocol) != 0 {
            return false;
        }
        if self.kind & IPV6 == 0 { key.dst.is_v4() } else { self.high[d] == key.other_words() }
    }

    /// Whether this plain frame is a packet of a direction, and needs no more than a rewrite where that direction
    /// [is steady](Self::is_steady). For IPv4 the first line alone is looked at.
    #[must_use]
    #[inline]
    pub(crate) fn is_of(&self, direction: Direction, plain: &Plain, head: &Head) -> bool {
        let d = direction as usize;
        let ports = self.ports[d].word() ^ plain.ports.word();
        let kind = self.kind ^ plain.kind as u8;
        let other = (self.low[d] ^ plain.last_words) | u64::from(ports) | u64::from(kind);
        other == 0 && (!plain.kind.ipv6() || Plain::other_words(head) == self.high[d])
    }

    /// Whether the slot has a flow whose state packets of that direction leave as it is, see [`FlowState::steady`].
    #[inline]
    pub(crate) fn is_steady(&self, direction: Direction) -> bool {
        self.stage >> direction as u8 & 1 != 0
    }

    /// Takes note of a packet that changes nothing else; `acked` is the upper half of what it acknowledges, of TCP.
    #[inline]
    pub(crate) fn touch(&mut self, direction: Direction, acked: u16, now: Tick) {
        self.last_seen = now;
        self.acked[direction as usize] = acked;
    }

    /// Takes note of a part of a packet whose other parts said all else.
    pub(crate) fn refresh(&mut self, now: Tick) {
        self.last_seen = now;
    }

    /// Takes note of what a TCP segment acknowledges.
    #[inline]
    pub(crate) fn note_ack(&mut self, direction: Direction, ack: u32) {
        self.acked[direction as usize] = (ack >> 16) as u16;
    }

    /// Whether a direction's sender went on after the client's reset.
    pub(crate) fn went_on(&self, direction: Direction) -> bool {
        self.state() == FlowState::ClientReset && self.flags >> SEEN_SHIFT & direction.bit() != 0
    }

    /// Whether whom a reset is for may accept it, by its sequence number (RFC 9293 section 3.10.7.4): that is what it
    /// acknowledged last or what it may have got since.
    ///
    /// Before both sides acknowledged anything, nothing is known, and every reset may be.
    pub(crate) fn may_accept_reset(&self, direction: Direction, seq: u32) -> bool {
        let judged = matches!(self.state(), FlowState::Established | FlowState::HalfClosed | FlowState::Closing);
        let acked = self.acked[direction.opposite() as usize];
        let ahead = ((seq >> 16) as u16).wrapping_sub(acked).cast_signed();
        !judged || self.mode().is_direct() || (-1..=RESET_AHEAD).contains(&ahead)
    }

    /// What a direction's packets become; `ipv6` is of the packet, whose family is the flow's.
    #[must_use]
    #[inline(always)] // For the steady path.
    pub fn rewrite(&self, direction: Direction, ipv6: bool) -> Rewrite {
        let back = direction.opposite();
        let (dst, src) = self.ends(back, ipv6);
        let [ip_delta, l4_delta] = self.deltas[direction as usize];
        Rewrite { src, dst, ports: self.ports[back as usize].reversed(), ip_delta, l4_delta }
    }

    /// Takes note of a packet: last seen, and the state.
    #[inline]
    pub(crate) fn packet(&mut self, direction: Direction, flags: TcpFlags, now: Tick) {
        self.last_seen = now;
        let before = self.state();
        if self.mode().is_direct() {
            self.set_state(before.after_one_sided(flags));
        } else if self.protocol() == Protocol::TCP {
            let (state, seen) = before.after_segment(self.flags >> SEEN_SHIFT, direction, flags);
            self.set_state(state);
            self.flags = self.flags & ((1 << SEEN_SHIFT) - 1) | seen << SEEN_SHIFT;
        } else {
            self.set_state(before.after_datagram(direction));
        }
    }

    /// What is kept of the association, of SCTP.
    pub(crate) fn association(&self) -> Association {
        let one_sided = self.mode().is_direct();
        let seen = if one_sided { 0 } else { self.flags >> SEEN_SHIFT };
        let [upper, lower] = self.acked.map(u32::from);
        let tags = [self.kept_syn, upper << 16 | lower];
        Association { state: self.state(), seen, tags, one_sided }
    }

    /// Takes note of an SCTP packet; `false` if it would have ended the association and is not believed.
    pub(crate) fn sctp_packet(&mut self, direction: Direction, said: &Said, now: Tick) -> bool {
        self.last_seen = now;
        let mut association = self.association();
        let believed = association.note(direction, said);
        self.set_state(association.state);
        let [forward, reply] = association.tags;
        (self.kept_syn, self.acked) = (forward, [(reply >> 16) as u16, reply as u16]);
        if !association.one_sided {
            self.flags = self.flags & ((1 << SEEN_SHIFT) - 1) | association.seen << SEEN_SHIFT;
        }
        believed
    }

    /// Where the client's packets come from now; stored only where it changed.
    #[inline]
    pub fn set_client_hop(&mut self, mac: MacAddr, nic: PortId) {
        if self.client_mac() != mac || self.client_nic != nic {
            self.client = self.client >> TIMEOUT_AT << TIMEOUT_AT | mac.word();
            self.client_nic = nic;
        }
    }

    /// The VLAN tags that the client's packets come with now.
    pub fn set_client_tags(&mut self, tags: Tags) {
        self.client_tags_or_next = tags;
        let intricate = !tags.is_none() || self.mode().wrapping().is_some();
        self.kind = self.kind & !INTRICATE | if intricate { INTRICATE } else { 0 };
    }

    /// The VLAN tags that the client's packets come with.
    #[must_use]
    pub fn client_tags(&self) -> Tags {
        self.client_tags_or_next
    }

    /// How long it may be idle, in ticks.
    #[must_use]
    #[inline]
    pub fn timeout(&self, timeouts: &crate::tables::Timeouts) -> u32 {
        self.state().timeout(timeouts, self.udp_timeout())
    }

    /// Remembers when the flow was opened, finer than [`FlowEntry::opened_at`].
    pub(crate) fn set_opened(&mut self, now: Now) {
        self.opened_fine = fine(now).max(1);
    }

    /// How long its endpoint takes to answer tells nothing.
    pub(crate) fn forget_opened(&mut self) {
        self.opened_fine = 0;
    }

    /// Microseconds since the opening, which is less than an hour ago; `None` where it was not remembered.
    pub(crate) fn since_opened_us(&self, now: Now) -> Option<u64> {
        let units = fine(now).wrapping_sub(self.opened_fine);
        (self.opened_fine != 0).then(|| (u64::from(units) << FINE_SHIFT) / 1000)
    }

    /// The number of the SYN that is kept for it, which is to be asked whether it is this flow's.
    #[inline]
    pub(crate) fn kept_syn(&self) -> Option<u32> {
        self.kept_syn.checked_sub(1)
    }

    pub(crate) fn set_kept_syn(&mut self, number: Option<u32>) {
        self.kept_syn = number.map_or(0, |number| number + 1);
    }

    /// What it would be opened with towards another endpoint.
    pub(crate) fn towards(&self, backend_id: BackendId, backend: (Addr, Port), snat: (Addr, Port)) -> FlowSpec {
        FlowSpec {
            protocol: self.protocol(),
            client: (self.client(), self.client_port()),
            vip: (self.vip(), self.vip_port()),
            snat,
            backend,
            dispensable: false,
            mode: self.mode(),
            service: self.service,
            backend_id,
            client_mac: self.client_mac(),
            client_nic: self.client_nic,
            udp_timeout: self.udp_timeout(),
        }
    }

    pub(crate) fn set_counted(&mut self, counted: bool) {
        self.flags = if counted { self.flags | COUNTED } else { self.flags & !COUNTED };
    }

    pub(crate) fn is_counted(&self) -> bool {
        self.flags & COUNTED != 0
    }

    /// How far the flow has come.
    #[must_use]
    #[inline]
    pub fn state(&self) -> FlowState {
        // A flow is looked at when it is opened or was found whole, so its number is one of a state.
        FlowState::from_number(self.stage >> STATE_SHIFT).unwrap_or(FlowState::Reset)
    }

    #[inline]
    fn set_state(&mut self, state: FlowState) {
        self.stage = stage(state);
    }

    /// TCP, UDP or SCTP.
    #[must_use]
    #[inline]
    pub fn protocol(&self) -> Protocol {
        const TCP: u8 = Protocol::TCP.0;
        const UDP: u8 = Protocol::UDP.0;
        match self.kind & PROTOCOLS {
            TCP => Protocol::TCP,
            UDP => Protocol::UDP,
            _ => Protocol::SCTP,
        }
    }

    /// The client's address.
    #[must_use]
    pub fn client(&self) -> Addr {
        self.key(Direction::Forward).src
    }

    /// The client's port.
    #[must_use]
    pub fn client_port(&self) -> Port {
        self.ports[Direction::Forward as usize].source()
    }

    /// The frontend's address.
    #[must_use]
    pub fn vip(&self) -> Addr {
        self.key(Direction::Forward).dst
    }

    /// The frontend's port.
    #[must_use]
    pub fn vip_port(&self) -> Port {
        self.ports[Direction::Forward as usize].destination()
    }

    /// What the endpoint sees as the client.
    #[must_use]
    pub fn snat(&self) -> Addr {
        self.key(Direction::Reply).dst
    }

    /// Its port.
    #[must_use]
    pub fn snat_port(&self) -> Port {
        self.ports[Direction::Reply as usize].destination()
    }

    /// What the endpoint answers from: its address, or the frontend's where it answers past us.
    #[must_use]
    pub fn backend(&self) -> Addr {
        self.key(Direction::Reply).src
    }

    /// The same of its port.
    #[must_use]
    pub fn backend_port(&self) -> Port {
        self.ports[Direction::Reply as usize].source()
    }

    /// How packets get to the endpoint.
    #[must_use]
    pub fn mode(&self) -> Mode {
        // A flow is looked at when it is opened or was found whole, so its number is one of a mode.
        Mode::from_number(self.flags >> MODE_SHIFT & MODE_MASK).unwrap_or_default()
    }

    /// Whether a packet without the flow would go to the same endpoint.
    pub(crate) fn is_dispensable(&self) -> bool {
        self.mode().is_direct() && self.flags & DISPENSABLE != 0
    }

    /// The Service port.
    #[must_use]
    pub fn service(&self) -> ServiceId {
        self.service
    }

    /// The endpoint.
    #[must_use]
    #[inline]
    pub fn backend_id(&self) -> BackendId {
        self.backend_id
    }

    /// The link-layer hop that the client's packets come from.
    #[must_use]
    #[inline]
    pub fn client_mac(&self) -> MacAddr {
        MacAddr::from_word(self.client)
    }

    /// The same as [`MacAddr::word`] gives it.
    #[must_use]
    #[inline]
    pub(crate) fn client_word(&self) -> u64 {
        self.client & ((1 << TIMEOUT_AT) - 1)
    }

    /// The NIC that they come in by.
    #[must_use]
    #[inline]
    pub fn client_nic(&self) -> PortId {
        self.client_nic
    }

    /// The Service's own `udp-timeout`, in ticks.
    #[must_use]
    #[inline]
    pub fn udp_timeout(&self) -> Option<u32> {
        let timeout = (self.client >> TIMEOUT_AT) as u32;
        (timeout != 0).then_some(timeout << UDP_TIMEOUT_SHIFT)
    }

    /// When the last packet came, of either direction.
    #[must_use]
    #[inline]
    pub fn last_seen(&self) -> Tick {
        self.last_seen
    }

    /// When the flow was opened.
    #[must_use]
    pub fn opened_at(&self) -> Tick {
        self.opened_at
    }
}

impl fmt::Debug for FlowEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowEntry")
            .field("forward", &self.key(Direction::Forward))
            .field("reply", &self.key(Direction::Reply))
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

fn fine(now: Now) -> u32 {
    (now.0 >> FINE_SHIFT) as u32
}

/// What stands for a state in an entry that has a flow.
#[inline]
const fn stage(state: FlowState) -> u8 {
    (state as u8) << STATE_SHIFT | state.steady()
}

/// What an entry of these keys ends with; never 0.
fn commit_word(forward: FlowHash, reply: FlowHash) -> u32 {
    (forward.0 as u32 ^ (reply.0 as u32).rotate_left(1)) | 1
}

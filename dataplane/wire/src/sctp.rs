//! The SCTP common header and chunk headers (RFC 9260 section 3): where their fields are, what makes them whole, and the
//! CRC over a translated packet.
//!
//! Of chunks only those are told apart that open or end an association; they come before any data (section 6.10), so a
//! packet with data is read up to its first chunk of that.

use crate::addr::Ports;
use crate::crc;
use crate::field;
use crate::nat::ChecksumMode;
use crate::packet::{ParseError, Transport};

pub(crate) const HEADER_LEN: usize = 12;
pub(crate) const TAG: usize = 4;
pub(crate) const CHECKSUM: usize = 8;

pub(crate) const CHUNK_HEADER_LEN: usize = 4;
/// A packet with one chunk that has no value.
pub(crate) const SHORTEST: usize = HEADER_LEN + CHUNK_HEADER_LEN;
/// INIT and INIT ACK without parameters (sections 3.3.2 and 3.3.3).
const INIT_LEN: usize = 20;
/// In either: the tag that packets to their sender have.
const INITIATE_TAG: usize = SHORTEST;

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
pub(crate) const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const ERROR: u8 = 9;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
pub(crate) const SHUTDOWN_COMPLETE: u8 = 14;
/// RFC 8260 section 2.1.
const I_DATA: u8 = 64;

/// Flag of ABORT and SHUTDOWN COMPLETE: the tag is the one of packets the other way (section 8.5.1).
pub(crate) const REFLECTED: u8 = 1;

/// What the chunks of an SCTP packet do to its association; nothing for other protocols.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Chunks(u16);

impl Chunks {
    /// An INIT alone, in a packet without a verification tag: nothing else opens an association (section 8.5.1 A).
    pub const INIT: Self = Self(1 << 0);
    /// An INIT ACK alone.
    pub const INIT_ACK: Self = Self(1 << 1);
    /// COOKIE ECHO.
    pub const COOKIE_ECHO: Self = Self(1 << 2);
    /// COOKIE ACK.
    pub const COOKIE_ACK: Self = Self(1 << 3);
    /// SHUTDOWN.
    pub const SHUTDOWN: Self = Self(1 << 4);
    /// SHUTDOWN ACK.
    pub const SHUTDOWN_ACK: Self = Self(1 << 5);
    /// SHUTDOWN COMPLETE.
    pub const SHUTDOWN_COMPLETE: Self = Self(1 << 6);
    /// ABORT.
    pub const ABORT: Self = Self(1 << 7);
    /// ERROR whose first cause is a stale cookie.
    pub const STALE_COOKIE: Self = Self(1 << 9);
    /// With ABORT or SHUTDOWN COMPLETE: its T bit, the verification tag is the one of packets the other way.
    pub const REFLECTED: Self = Self(1 << 8);

    /// Whether any of `other` is there.
    #[must_use]
    #[inline]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether none of those are there that open or end an association.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Of one chunk; `alone`: the packet has no other.
    fn of(chunk: &[u8], alone: bool, tag: u32) -> Self {
        let reflected = if chunk[1] & REFLECTED == 0 { Self(0) } else { Self::REFLECTED };
        // An initiate tag of 0 is none (section 3.3.2).
        let initiates = || alone && chunk.len() >= INIT_LEN && field::u32_at(chunk, CHUNK_HEADER_LEN) != 0;
        match chunk[0] {
            INIT if tag == 0 && initiates() => Self::INIT,
            INIT_ACK if initiates() => Self::INIT_ACK,
            COOKIE_ECHO => Self::COOKIE_ECHO,
            COOKIE_ACK => Self::COOKIE_ACK,
            SHUTDOWN => Self::SHUTDOWN,
            SHUTDOWN_ACK => Self::SHUTDOWN_ACK,
            SHUTDOWN_COMPLETE if alone => Self::SHUTDOWN_COMPLETE.union(reflected),
            ABORT => Self::ABORT.union(reflected),
            // Cause code 3 (section 3.3.10.3).
            ERROR if chunk.get(CHUNK_HEADER_LEN..CHUNK_HEADER_LEN + 2) == Some(&[0, 3]) => Self::STALE_COOKIE,
            _ => Self(0),
        }
    }
}

/// Proves that the common header and the headers of the chunks lie within `packet`, and that none ends past it; of a `part`,
/// the chunks may.
pub(crate) fn check(packet: &[u8], part: bool) -> Result<Chunks, ParseError> {
    if packet.len() < SHORTEST {
        return Err(ParseError::Truncated);
    }
    let tag = field::u32_at(packet, TAG);
    let (mut chunks, mut at) = (Chunks::default(), HEADER_LEN);
    while let Some(rest) = packet.get(at..).filter(|rest| rest.len() >= CHUNK_HEADER_LEN) {
        let len = usize::from(field::u16_at(rest, 2));
        if len < CHUNK_HEADER_LEN || len > rest.len() && !part {
            return Err(ParseError::BadHeader);
        }
        if matches!(rest[0], DATA | I_DATA) {
            break;
        }
        let next = at + len.next_multiple_of(4);
        let alone = at == HEADER_LEN && next >= packet.len() && !part;
        chunks = chunks.union(Chunks::of(&rest[..len.min(rest.len())], alone, tag));
        at = next;
    }
    Ok(chunks)
}

/// The CRC of a packet as it stands, whatever its field holds (section 6.8).
fn computed(packet: &[u8]) -> u32 {
    crc::crc32c([&packet[..CHECKSUM], &[0; 4], &packet[CHECKSUM + 4..]])
}

/// The CRC that a packet has.
fn stated(packet: &[u8]) -> u32 {
    u32::from_le_bytes(field::octets(packet, CHECKSUM))
}

/// Whether a packet's CRC is right.
pub(crate) fn is_right(packet: &[u8]) -> bool {
    stated(packet) == computed(packet)
}

/// Whether the sender left the CRC to its NIC, or has sent none at all (RFC 9653).
pub(crate) fn has_none(packet: &[u8]) -> bool {
    stated(packet) == 0
}

/// Writes the right CRC.
pub(crate) fn complete(packet: &mut [u8]) {
    let crc = computed(packet);
    field::put(packet, CHECKSUM, &crc.to_le_bytes());
}

/// Carries the CRC of `packet`, of which `octets` are covered in all, over a change of its ports.
pub(crate) fn carry(packet: &mut [u8], old: Ports, new: Ports, octets: u16) {
    let difference = u32::from_le_bytes(old.octets()) ^ u32::from_le_bytes(new.octets());
    if difference != 0 {
        let crc = stated(packet) ^ crc::change(difference, octets);
        field::put(packet, CHECKSUM, &crc.to_le_bytes());
    }
}

/// Writes a packet's new ports and what that does to its CRC. A CRC that is none stays so, but for frames of virtual devices,
/// where it was left to be computed. Of a part, whose others the CRC covers too, ports must stay.
pub(crate) fn rewrite(frame: &mut [u8], t: &Transport, ports: Ports, mode: ChecksumMode) {
    let packet = &mut frame[usize::from(t.l4)..usize::from(t.end)];
    field::put(packet, 0, &ports.octets());
    match (has_none(packet), mode) {
        (true, ChecksumMode::Virtual) if !t.part => complete(packet),
        (true, _) => {}
        (false, _) => carry(packet, t.ports, ports, t.end - t.l4),
    }
}

impl Transport {
    /// Whether this is SCTP.
    #[must_use]
    #[inline]
    pub fn is_sctp(&self) -> bool {
        self.protocol == crate::Protocol::SCTP
    }

    /// Whether such a packet may open a flow: a SYN, an INIT alone, any datagram of UDP.
    #[must_use]
    #[inline]
    pub fn may_open(&self) -> bool {
        match self.protocol {
            crate::Protocol::TCP => self.tcp_flags.opens(),
            crate::Protocol::SCTP => self.chunks.intersects(Chunks::INIT),
            _ => true,
        }
    }

    /// The verification tag of an SCTP packet.
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed.
    #[must_use]
    pub fn verification_tag(&self, frame: &[u8]) -> u32 {
        field::u32_at(frame, usize::from(self.l4) + TAG)
    }

    /// The tag that packets to the sender of this INIT or INIT ACK will have; `None` for other packets.
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed.
    #[must_use]
    pub fn initiate_tag(&self, frame: &[u8]) -> Option<u32> {
        let opening = self.chunks.intersects(Chunks::INIT.union(Chunks::INIT_ACK));
        opening.then(|| field::u32_at(frame, usize::from(self.l4) + INITIATE_TAG))
    }
}

#[cfg(test)]
#[path = "sctp_tests.rs"]
mod tests;

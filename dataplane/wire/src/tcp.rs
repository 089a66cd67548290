//! The TCP header (RFC 9293 section 3.1): where its fields are and what makes it whole.

use crate::field;
use crate::packet::{ParseError, Transport};

pub(crate) const HEADER_LEN: usize = 20;
pub(crate) const SEQ: usize = 4;
pub(crate) const ACK: usize = 8;
pub(crate) const DATA_OFFSET: usize = 12;
pub(crate) const FLAGS: usize = 13;
pub(crate) const WINDOW: usize = 14;
pub(crate) const CHECKSUM: usize = 16;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
/// RFC 2385 section 3.0, RFC 5925 section 2.2.
const MD5_SIGNATURE: u8 = 19;
const AUTHENTICATION: u8 = 29;
/// Kind and length of the timestamps option (RFC 7323 section 3.2).
pub(crate) const TIMESTAMPS: (u8, u8) = (8, 10);

/// The eight control bits of a TCP header; none for UDP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);

    /// Whether every bit of `other` is set.
    #[must_use]
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is set.
    #[must_use]
    #[inline]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The bits of both.
    #[must_use]
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether this opens a connection: SYN without ACK, RST or FIN.
    #[must_use]
    #[inline]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
    }
}

/// Octets of the header of a segment, options included.
#[inline]
pub(crate) fn header_len(segment: &[u8]) -> usize {
    stated_len(segment[DATA_OFFSET])
}

/// Octets of a header by the octet that has its data offset.
#[inline]
fn stated_len(data_offset: u8) -> usize {
    usize::from(data_offset >> 4) * 4
}

/// Whether the fixed header and the options of a segment that begins at `from` lie before `end`.
#[inline]
pub(crate) fn is_sound(data_offset: u8, from: usize, end: usize) -> bool {
    stated_len(data_offset) >= HEADER_LEN && from + stated_len(data_offset) <= end
}

/// Proves that the fixed header and the options lie within `segment`.
#[inline]
pub(crate) fn check(segment: &[u8]) -> Result<TcpFlags, ParseError> {
    if segment.len() < HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    if !is_sound(segment[DATA_OFFSET], 0, segment.len()) {
        return Err(ParseError::BadHeader);
    }
    Ok(TcpFlags(field::octets::<1>(segment, FLAGS)[0]))
}

/// Options one after another: where each begins, its kind and its length; `None`, and no more, for one that says what cannot
/// be. Each turn goes on by one octet at least.
fn options(octets: &[u8]) -> impl Iterator<Item = Option<(usize, u8, u8)>> {
    let mut at = 0;
    core::iter::from_fn(move || {
        while octets.get(at) == Some(&NO_OPERATION) {
            at += 1;
        }
        let (begins, kind) = (at, *octets.get(at).filter(|kind| **kind != END)?);
        let len = octets.get(at + 1).copied().filter(|len| *len >= 2 && at + usize::from(*len) <= octets.len());
        at = len.map_or(octets.len(), |len| at + usize::from(len));
        Some(len.map(|len| (begins, kind, len)))
    })
}

/// Whether options are such as they should be, and none is a signature: without its key a receiver drops the segment
/// (RFC 2385 section 2, RFC 5925 section 7.3).
fn need_no_key(octets: &[u8]) -> bool {
    let is_signature = |kind| matches!(kind, MD5_SIGNATURE | AUTHENTICATION);
    options(octets).all(|option| option.is_some_and(|(_, kind, _)| !is_signature(kind)))
}

impl Transport {
    /// Whether no TCP option stands against its being read by a receiver without keys.
    ///
    /// # Panics
    /// When `frame` is not the frame that was parsed.
    #[must_use]
    pub fn needs_no_key(&self, frame: &[u8]) -> bool {
        let segment = &frame[usize::from(self.l4)..usize::from(self.end)];
        !self.is_tcp() || need_no_key(&segment[HEADER_LEN..header_len(segment)])
    }
}

/// Where an option of this kind and length is among others.
pub(crate) fn option_at(octets: &[u8], wanted: (u8, u8)) -> Option<usize> {
    let mut sound = options(octets).map_while(|option| option);
    sound.find(|(_, kind, len)| (*kind, *len) == wanted).map(|(at, ..)| at)
}

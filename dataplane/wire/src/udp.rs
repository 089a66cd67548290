//! The UDP header (RFC 768): where its fields are and what makes it whole.

use crate::field;
use crate::packet::ParseError;

pub(crate) const HEADER_LEN: usize = 8;
pub(crate) const LENGTH: usize = 4;
pub(crate) const CHECKSUM: usize = 6;

/// Whether the header of a datagram that begins at `from` and what it states as its length lie before `end`.
///
/// A length of zero (RFC 2675 jumbograms) is refused: no frame here is as long as that.
#[inline]
pub(crate) fn is_sound(length: u16, from: usize, end: usize) -> bool {
    usize::from(length) >= HEADER_LEN && from + usize::from(length) <= end
}

/// Proves that the header and the length that it states lie within `datagram`.
#[inline]
pub(crate) fn check(datagram: &[u8]) -> Result<(), ParseError> {
    if datagram.len() < HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    if is_sound(field::u16_at(datagram, LENGTH), 0, datagram.len()) { Ok(()) } else { Err(ParseError::BadHeader) }
}

/// The same of a datagram's first part, in which the header must be whole; the datagram ends in another part.
pub(crate) fn check_first(part: &[u8]) -> Result<(), ParseError> {
    if part.len() < HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    if usize::from(field::u16_at(part, LENGTH)) < HEADER_LEN { Err(ParseError::BadHeader) } else { Ok(()) }
}

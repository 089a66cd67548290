//! VLAN tags (IEEE 802.1Q clause 9.6; two of them as provider bridges put them, IEEE 802.1ad): taken off where a frame comes
//! in, put on where one leaves, so that nothing between knows of them.
//!
//! A frame's start stays where it is, so what is behind the link-layer addresses moves. A tag of VLAN 0 says a priority
//! and no VLAN (IEEE 802.1Q clause 6.9): it comes off, and counts for nothing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{ethernet, field};

/// Octets of a tag.
const TAG_LEN: usize = 4;
/// Where the first tag is.
const FIRST: usize = ethernet::ETHER_TYPE;
const TYPE_CUSTOMER: u16 = 0x8100;
const TYPE_PROVIDER: u16 = 0x88a8;
/// The VLAN's number in a tag; the other bits are its priority, and whether it may be dropped first.
const NUMBER: u16 = 0x0fff;
/// In [`Tags`]: there is a tag.
const THERE: u16 = 0x1000;
/// In [`Tags`]: it is a provider's.
const PROVIDER: u16 = 0x2000;

/// The tags of a frame, none to two, the outer one first.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Tags([u16; 2]);

/// What the tags of a frame say besides their VLANs (PCP and DEI), the outer one's first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Priorities([u16; 2]);

impl Priorities {
    /// Best effort, not to be dropped before others.
    pub const NONE: Self = Self([0; 2]);
}

/// Whether a type says that a tag follows, and whether that is a provider's.
fn is_provider(ether_type: u16) -> Option<bool> {
    match ether_type {
        TYPE_CUSTOMER => Some(false),
        TYPE_PROVIDER => Some(true),
        _ => None,
    }
}

impl Tags {
    /// No tag.
    pub const NONE: Self = Self([0; 2]);

    /// These tags within another one: VLAN `number` (its lower 12 bits), a provider's (802.1ad) or a customer's (802.1Q).
    /// `None` if there are two already.
    #[must_use]
    pub const fn within(self, number: u16, provider: bool) -> Option<Self> {
        let tag = number & NUMBER | THERE | if provider { PROVIDER } else { 0 };
        match self.0 {
            [0, _] => Some(Self([tag, 0])),
            [inner, 0] => Some(Self([tag, inner])),
            _ => None,
        }
    }

    /// Whether there is no tag.
    #[must_use]
    #[inline]
    pub const fn is_none(self) -> bool {
        self.0[0] == 0
    }

    /// Octets that they take in a frame.
    #[must_use]
    pub const fn octets(self) -> usize {
        (self.0[0] != 0) as usize * TAG_LEN + (self.0[1] != 0) as usize * TAG_LEN
    }

    /// Largest packet that a link of this MTU takes with these tags: one tag makes a frame longer than others may be (IEEE
    /// 802.3 clause 3.2.7), a second is the packet's loss.
    #[must_use]
    pub const fn mtu(self, link: u16) -> u16 {
        link.saturating_sub(self.octets().saturating_sub(TAG_LEN) as u16)
    }

    /// Whether a frame has a tag.
    #[must_use]
    #[inline]
    pub fn are_in(frame: &[u8]) -> bool {
        frame.len() >= ethernet::HEADER_LEN && is_provider(field::u16_at(frame, FIRST)).is_some()
    }

    /// Takes the tags off a frame, two at most. Gives the frame's new length as well. A frame that ends within a tag keeps
    /// that.
    ///
    /// # Panics
    /// If the frame is shorter than a link-layer header.
    #[must_use]
    pub fn take_off(frame: &mut [u8]) -> (Self, Priorities, usize) {
        let (mut tags, mut priorities) = (Self::NONE, Priorities::NONE);
        let (mut at, mut found) = (FIRST, 0);
        for _ in 0..tags.0.len() {
            let Some(provider) = frame.get(at..at + TAG_LEN + 2).and_then(|tag| is_provider(field::u16_at(tag, 0)))
            else {
                break;
            };
            let control = field::u16_at(frame, at + 2);
            if control & NUMBER != 0 {
                tags.0[found] = control & NUMBER | THERE | if provider { PROVIDER } else { 0 };
                priorities.0[found] = control & !NUMBER;
                found += 1;
            }
            at += TAG_LEN;
        }
        frame.copy_within(at.., FIRST);
        (tags, priorities, frame.len() - (at - FIRST))
    }

    /// Puts the tags on the frame of `len` octets at the start of `room`. Gives its new length; `None`, and nothing was
    /// written, if the room is too short.
    ///
    /// # Panics
    /// If the frame is shorter than a link-layer header.
    #[must_use]
    pub fn put_on(self, priorities: Priorities, room: &mut [u8], len: usize) -> Option<usize> {
        let after = len + self.octets();
        if after > room.len() {
            return None;
        }
        room.copy_within(FIRST..len, FIRST + self.octets());
        for (n, (tag, priority)) in self.0.into_iter().zip(priorities.0).filter(|(tag, _)| *tag != 0).enumerate() {
            let at = FIRST + n * TAG_LEN;
            field::put_u16(room, at, if tag & PROVIDER != 0 { TYPE_PROVIDER } else { TYPE_CUSTOMER });
            field::put_u16(room, at + 2, tag & NUMBER | priority);
        }
        Some(after)
    }
}

impl core::fmt::Display for Tags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut separator = "";
        for tag in self.0.into_iter().filter(|tag| *tag != 0) {
            write!(f, "{separator}{}", tag & NUMBER)?;
            separator = ".";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames;

    fn any_tags() -> impl Strategy<Value = Tags> {
        prop::collection::vec((1..4096u16, any::<bool>()), 0..3).prop_map(|tags| {
            tags.into_iter().fold(Tags::NONE, |inner, (number, provider)| inner.within(number, provider).unwrap())
        })
    }

    fn any_priorities() -> impl Strategy<Value = Priorities> {
        prop::array::uniform2(0..16u16).prop_map(|priorities| Priorities(priorities.map(|bits| bits << 12)))
    }

    proptest! {
        #[test]
        fn what_is_put_on_is_what_etherparse_reads_and_comes_off_again(
            spec in frames::any_spec(),
            tags in any_tags(),
            priorities in any_priorities(),
        ) {
            let plain = spec.frame();
            let mut room = plain.clone();
            room.resize(plain.len() + 8, 0x55);
            let len = tags.put_on(priorities, &mut room, plain.len()).unwrap();
            prop_assert_eq!(len, plain.len() + tags.octets());
            prop_assert_eq!(Tags::are_in(&room[..len]), !tags.is_none());
            let numbers: Vec<u16> = etherparse::SlicedPacket::from_ethernet(&room[..len]).unwrap().vlan_ids()
                .iter().map(|id| id.value()).collect();
            let shown = numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(".");
            prop_assert_eq!(tags.to_string(), shown);
            let read = etherparse::SlicedPacket::from_ethernet(&room[..len]).unwrap().vlan().map(|vlan| vlan.to_header());
            let bits = |header: &etherparse::SingleVlanHeader| {
                u16::from(header.pcp.value()) << 13 | u16::from(header.drop_eligible_indicator) << 12
            };
            let bits = match &read {
                None => vec![],
                Some(etherparse::VlanHeader::Single(one)) => vec![bits(one)],
                Some(etherparse::VlanHeader::Double(two)) => vec![bits(&two.outer), bits(&two.inner)],
            };
            prop_assert_eq!(&priorities.0[..bits.len()], &bits[..]);
            let (off, kept, shorter) = Tags::take_off(&mut room[..len]);
            prop_assert_eq!((off, shorter), (tags, plain.len()));
            prop_assert_eq!(&kept.0[..bits.len()], &bits[..]);
            prop_assert_eq!(&room[..plain.len()], &plain[..]);
        }

        #[test]
        fn frames_of_any_length_and_content_are_taken(mut frame: Vec<u8>, at in 12usize..40) {
            if frame.len() >= at + 2 {
                field::put_u16(&mut frame, at & !3, TYPE_CUSTOMER);
            }
            let before = frame.len();
            prop_assume!(before >= 14);
            let (tags, _, len) = Tags::take_off(&mut frame);
            prop_assert!((14..=before - tags.octets()).contains(&len));
        }
    }

    #[test]
    fn a_tag_that_says_no_vlan_comes_off_and_counts_for_nothing() {
        let plain = frames::Spec::v4(true).frame();
        let (none, customer) = (Tags([THERE, 0]), Tags::NONE.within(7, false).unwrap());
        let within = |inner: Tags, outer: Tags| Tags([outer.0[0], inner.0[0]]);
        for (tags, counts) in [(none, Tags::NONE), (within(none, none), Tags::NONE), (within(customer, none), customer)]
        {
            let mut room = plain.clone();
            room.resize(plain.len() + 8, 0);
            let len = tags.put_on(Priorities([0xe000; 2]), &mut room, plain.len()).unwrap();
            let (off, _, len) = Tags::take_off(&mut room[..len]);
            assert_eq!((off, &room[..len]), (counts, &plain[..]));
        }
    }

    #[test]
    fn a_third_tag_stays_and_no_room_leaves_a_frame_alone() {
        let mut frame = frames::Spec::v4(true).frame();
        let len = frame.len();
        frame.resize(len + 12, 0);
        let two = Tags::NONE.within(3, false).unwrap().within(2, true).unwrap();
        assert_eq!(two.within(1, true), None);
        let len = two.put_on(Priorities::NONE, &mut frame, len).unwrap();
        let len = Tags::NONE.within(1, true).unwrap().put_on(Priorities::NONE, &mut frame, len).unwrap();
        let (off, _, shorter) = Tags::take_off(&mut frame[..len]);
        assert_eq!((off.to_string().as_str(), shorter), ("1.2", len - 8));
        assert!(Tags::are_in(&frame[..len - 8]));
        let before = frame.clone();
        let all = before.len();
        assert_eq!(two.put_on(Priorities::NONE, &mut frame, all), None);
        assert_eq!(frame, before);
    }
}

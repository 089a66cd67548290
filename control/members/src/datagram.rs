//! Heartbeats as octets: one version, bounded size, authenticated by HMAC-SHA256 under a key that all nodes have.
//!
//! ```text
//!  0  "MRH", version 1           40  generation of the sender's addresses
//!  4  standing                   44  generation of the receiver's that the sender has whole
//!  5  0                          48  part of the sender's addresses, 0 if none is in here
//!  6  number of MACs             50  how many parts they have
//!  7  length of the name         52  name, MACs, addresses (4 or 6, then the octets)
//!  8  boot, counter              …
//! 24  boot and counter heard     end  HMAC-SHA256 of all before, 32 octets
//! ```
//! Numbers are in network order. Source of the tag: RFC 2104, FIPS 180-4, by `ring`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ring::hmac;

use crate::{Mac, Standing};

/// Longest datagram, octets: it fits every link that nodes have between them, headers included.
pub const LONGEST: usize = 1400;
/// Longest name of a Node.
pub const LONGEST_NAME: usize = 253;
/// Most link-layer addresses that are told.
pub const MOST_MACS: usize = 16;
/// Most parts that a node's addresses may have.
pub const MOST_PARTS: u16 = 1024;

const MAGIC: [u8; 4] = *b"MRH\x01";
const HEADER: usize = 52;
const TAG: usize = 32;
/// Shortest key, octets.
const SHORTEST_KEY: usize = 16;
/// Most keys at a time.
const MOST_KEYS: usize = 8;

/// Keys: the first signs, all are taken.
#[derive(Clone, Debug)]
pub struct Keys(Vec<hmac::Key>);

impl Keys {
    /// From the text of a key file: a key a line.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let lines = text.split(|octet| *octet == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let lines: Vec<&[u8]> = lines.collect();
        if lines.is_empty() {
            return Err("it is empty, expected a key".to_owned());
        }
        if lines.len() > MOST_KEYS {
            return Err(format!("{} keys, expected {MOST_KEYS} at most", lines.len()));
        }
        if let Some(short) = lines.iter().find(|line| line.len() < SHORTEST_KEY) {
            return Err(format!("a key of {} octets, expected {SHORTEST_KEY} or more on each line", short.len()));
        }
        Ok(Self(lines.into_iter().map(|line| hmac::Key::new(hmac::HMAC_SHA256, line)).collect()))
    }
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reject {
    /// It is none of this version.
    Malformed,
    /// No key of ours made its tag.
    Unauthenticated,
    /// It was heard before, or is older than what was.
    Replayed,
    /// It says that it is of this node.
    Own,
}

/// One process of a node, and how far it is in what it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// A random number of the process; 0 is none.
    pub boot: u64,
    /// Grows with each datagram that it sends.
    pub counter: u64,
}

/// What a datagram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub name: String,
    /// What the sender says of itself.
    pub standing: Standing,
    /// Where the sender is.
    pub from: Place,
    /// Where the receiver was when the sender heard it last.
    pub heard: Place,
    /// Which of its sets of addresses the sender owns now.
    pub generation: u32,
    /// Which of the receiver's sets of addresses the sender has whole.
    pub have: u32,
    /// Link-layer addresses that the sender announces by.
    pub macs: Vec<Mac>,
    /// Which part of the sender's addresses this has, from 1; 0: none.
    pub part: u16,
    /// How many parts they have.
    pub parts: u16,
    /// Those of the part.
    pub addresses: Vec<IpAddr>,
}

/// How many octets a datagram has for addresses.
#[must_use]
pub fn room(name: &str, macs: usize) -> usize {
    LONGEST.saturating_sub(HEADER + TAG + name.len() + 6 * macs)
}

/// How many of them an address takes.
#[must_use]
pub const fn length(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 5,
        IpAddr::V6(_) => 17,
    }
}

const STANDINGS: [Standing; 6] = [
    Standing::Joining,
    Standing::Member,
    Standing::Draining,
    Standing::Aside,
    Standing::HandingOver,
    Standing::Leaving,
];

impl Datagram {
    /// As octets, with the tag of the first key.
    ///
    /// # Panics
    /// With a name or more link-layer addresses than there is room for.
    #[must_use]
    pub fn write(&self, keys: &Keys) -> Vec<u8> {
        assert!(self.name.len() <= LONGEST_NAME && self.macs.len() <= MOST_MACS, "{self:?}");
        let mut octets = Vec::with_capacity(LONGEST);
        octets.extend(MAGIC);
        let standing = STANDINGS.iter().position(|standing| *standing == self.standing).unwrap_or_default();
        octets.extend([standing as u8, 0, self.macs.len() as u8, self.name.len() as u8]);
        for number in [self.from.boot, self.from.counter, self.heard.boot, self.heard.counter] {
            octets.extend(number.to_be_bytes());
        }
        octets.extend(self.generation.to_be_bytes());
        octets.extend(self.have.to_be_bytes());
        octets.extend(self.part.to_be_bytes());
        octets.extend(self.parts.to_be_bytes());
        octets.extend(self.name.as_bytes());
        octets.extend(self.macs.iter().flatten());
        for address in &self.addresses {
            match address {
                IpAddr::V4(v4) => {
                    octets.push(4);
                    octets.extend(v4.octets());
                }
                IpAddr::V6(v6) => {
                    octets.push(6);
                    octets.extend(v6.octets());
                }
            }
        }
        octets.extend(hmac::sign(&keys.0[0], &octets).as_ref());
        octets
    }

    /// From octets that came.
    ///
    /// # Errors
    /// If they are none of this version, or no key made their tag: nothing else of them was looked at then.
    pub fn read(octets: &[u8], keys: &Keys) -> Result<Self, Reject> {
        if octets.len() < HEADER + TAG || octets.len() > LONGEST || octets[..4] != MAGIC {
            return Err(Reject::Malformed);
        }
        let (said, tag) = octets.split_at(octets.len() - TAG);
        if !keys.0.iter().any(|key| hmac::verify(key, said, tag).is_ok()) {
            return Err(Reject::Unauthenticated);
        }
        parse(said).ok_or(Reject::Malformed)
    }
}

/// What octets say that are authentic; whoever has the key may still have another version.
fn parse(octets: &[u8]) -> Option<Datagram> {
    let (header, rest) = octets.split_at_checked(HEADER)?;
    let wide = |at: usize| Some(u64::from_be_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    let short = |at: usize| Some(u16::from_be_bytes(header.get(at..at + 2)?.try_into().ok()?));
    let standing = *STANDINGS.get(usize::from(header[4]))?;
    let (macs, name) = (usize::from(header[6]), usize::from(header[7]));
    if header[5] != 0 || macs > MOST_MACS || name == 0 || name > LONGEST_NAME {
        return None;
    }
    let (name, rest) = rest.split_at_checked(name)?;
    let (macs, mut rest) = rest.split_at_checked(6 * macs)?;
    let macs = macs.chunks_exact(6).filter_map(|mac| mac.try_into().ok()).collect();
    let mut addresses = Vec::new();
    while let Some((&kind, more)) = rest.split_first() {
        let (address, left) = match kind {
            4 => more.split_first_chunk::<4>().map(|(v4, left)| (Ipv4Addr::from(*v4).into(), left))?,
            6 => more.split_first_chunk::<16>().map(|(v6, left)| (Ipv6Addr::from(*v6).into(), left))?,
            _ => return None,
        };
        addresses.push(address);
        rest = left;
    }
    let (part, parts) = (short(48)?, short(50)?);
    let from = Place { boot: wide(8)?, counter: wide(16)? };
    if part > parts || parts > MOST_PARTS || from.boot == 0 || (part == 0 && !addresses.is_empty()) {
        return None;
    }
    Some(Datagram {
        name: std::str::from_utf8(name).ok()?.to_owned(),
        standing,
        from,
        heard: Place { boot: wide(24)?, counter: wide(32)? },
        generation: number(40)?,
        have: number(44)?,
        macs,
        part,
        parts,
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &[u8] = b"0123456789abcdef";

    fn example() -> Datagram {
        Datagram {
            name: "n1".to_owned(),
            standing: Standing::Member,
            from: Place { boot: 7, counter: 9 },
            heard: Place { boot: 11, counter: 13 },
            generation: 3,
            have: 2,
            macs: vec![[2, 0, 0, 0, 0, 1]],
            part: 1,
            parts: 1,
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        }
    }

    #[test]
    fn what_was_written_is_read_and_any_other_octet_is_refused() {
        let keys = Keys::parse(KEY).unwrap();
        let octets = example().write(&keys);
        assert_eq!(Datagram::read(&octets, &keys), Ok(example()));
        for at in 0..octets.len() {
            let mut other = octets.clone();
            other[at] ^= 0x40;
            let expected = if at < 4 { Reject::Malformed } else { Reject::Unauthenticated };
            assert_eq!(Datagram::read(&other, &keys), Err(expected), "octet {at}");
        }
    }

    #[test]
    fn keys_are_changed_by_a_second_line_that_is_taken_before_it_signs() {
        let keys = |text: &str| Keys::parse(text.as_bytes()).unwrap();
        let (old, both) = (keys("an old key of ours\n"), keys("an old key of ours\nthe new key of ours\n"));
        let (swapped, new) = (keys("the new key of ours\nan old key of ours"), keys("  the new key of ours\r\n\n"));
        let is_heard = |from: &Keys, by: &Keys| Datagram::read(&example().write(from), by).is_ok();
        for pair in [[&old, &both], [&both, &swapped], [&swapped, &new]] {
            assert!(is_heard(pair[0], pair[1]) && is_heard(pair[1], pair[0]));
        }
        assert!(!is_heard(&old, &new) && !is_heard(&new, &old));
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        for (text, says) in [("", "empty"), ("\n \n", "empty"), ("short", "5 octets"), (&"k\n".repeat(9), "9 keys")] {
            let error = Keys::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn lengths_that_lie_are_malformed_though_they_are_authentic() {
        let keys = Keys::parse(KEY).unwrap();
        let signed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut octets = example().write(&keys);
            octets.truncate(octets.len() - TAG);
            change(&mut octets);
            octets.extend(hmac::sign(&keys.0[0], &octets).as_ref());
            Datagram::read(&octets, &keys)
        };
        assert_eq!(signed(&|_| {}), Ok(example()));
        let changes: [fn(&mut Vec<u8>); 9] = [
            |octets| octets[4] = 6,
            |octets| octets[5] = 1,
            |octets| octets[6] = 17,
            |octets| octets[7] = 0,
            |octets| octets[7] = 200,
            |octets| octets[8..16].fill(0),
            |octets| octets[49] = 0,
            |octets| octets[49] = 2,
            |octets| octets.push(4),
        ];
        for (at, change) in changes.iter().enumerate() {
            assert_eq!(signed(change), Err(Reject::Malformed), "change {at}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_panic(octets in proptest::collection::vec(any::<u8>(), 0..200), signed: bool) {
            let keys = Keys::parse(KEY).unwrap();
            let mut octets = octets;
            if signed {
                let mut whole = MAGIC.to_vec();
                whole.append(&mut octets);
                whole.extend(hmac::sign(&keys.0[0], &whole).as_ref());
                octets = whole;
            }
            let _ = Datagram::read(&octets, &keys);
        }
    }
}

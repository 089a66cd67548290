//! CRC32c as SCTP has it (RFC 9260 appendix A): of a whole packet, and what a change of its first word does to it.
//!
//! The CRC is linear: that of a packet whose first word changed differs by the CRC of the difference alone, which is the
//! difference times a power of x that tells how many octets there are. So ports are changed without a look at the data, and
//! a wrong CRC stays exactly as wrong as it was. Written here because that power is what no lean library gives; the table
//! for whole packets is a few lines more.
//!
//! Polynomials stand as the CRC has them, x^0 in the highest bit; a word is the four octets with the first one lowest.

/// Castagnoli's polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0.
const ONE: u32 = 1 << 31;
/// x^8, one octet.
const OCTET: u32 = ONE >> 8;

/// What an octet does to the register.
const OCTETS: [u32; 256] = {
    let mut table = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        let (mut register, mut bit) = (octet as u32, 0);
        while bit < 8 {
            register = times_x(register);
            bit += 1;
        }
        table[octet] = register;
        octet += 1;
    }
    table
};

/// By digit of a length in octets, the lowest first, and by its value: x to the power of so many octets.
const POWERS: [[u32; 16]; 4] = {
    let mut powers = [[ONE; 16]; 4];
    let (mut digit, mut unit) = (0, OCTET);
    while digit < 4 {
        let mut value = 1;
        while value < 16 {
            powers[digit][value] = times(powers[digit][value - 1], unit);
            value += 1;
        }
        unit = times(powers[digit][15], unit);
        digit += 1;
    }
    powers
};

const fn times_x(a: u32) -> u32 {
    a >> 1 ^ POLYNOMIAL & (a & 1).wrapping_neg()
}

/// The product of two polynomials.
const fn times(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 32);
    while bit > 0 {
        bit -= 1;
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = times_x(b);
    }
    product
}

/// The register after `bytes`.
fn register(before: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(before, |register, octet| register >> 8 ^ OCTETS[usize::from(register as u8 ^ octet)])
}

/// The CRC of octets that stand one after the other.
pub(crate) fn crc32c<const N: usize>(parts: [&[u8]; N]) -> u32 {
    !parts.into_iter().fold(u32::MAX, register)
}

/// By what the CRC of a message of so many octets differs when its first word differs by `difference`.
pub(crate) fn change(difference: u32, octets: u16) -> u32 {
    let digits = [octets & 15, octets >> 4 & 15, octets >> 8 & 15, octets >> 12];
    digits.into_iter().zip(&POWERS).fold(difference, |change, (digit, powers)| match digit {
        0 => change,
        digit => times(change, powers[usize::from(digit)]),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit.
    fn slowly(bytes: &[u8]) -> u32 {
        let step = |register: u32, octet: &u8| (0..8).fold(register ^ u32::from(*octet), |a, _| times_x(a));
        !bytes.iter().fold(u32::MAX, step)
    }

    #[test]
    fn the_examples_of_rfc_3720_appendix_b_4_hold() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (bytes, crc) in [
            (&[0; 32][..], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (b"123456789", 0xe306_9283),
        ] {
            assert_eq!(crc32c([bytes]), crc);
        }
    }

    proptest! {
        #[test]
        fn a_changed_first_word_changes_the_crc_by_what_a_recomputation_gives(
            mut bytes in prop::collection::vec(any::<u8>(), 4..3000), word in any::<[u8; 4]>(),
        ) {
            let before = crc32c([&bytes]);
            prop_assert_eq!(before, slowly(&bytes));
            let first = [bytes[0], bytes[1], bytes[2], bytes[3]];
            bytes[..4].copy_from_slice(&word);
            let difference = u32::from_le_bytes(first) ^ u32::from_le_bytes(word);
            prop_assert_eq!(before ^ change(difference, bytes.len() as u16), crc32c([&bytes[..3], &bytes[3..]]));
        }
    }

    #[test]
    fn the_longest_packets_are_within() {
        for len in [65_535, 65_520, 4096, 16] {
            let mut bytes = vec![7; len];
            let before = crc32c([&bytes]);
            bytes[3] ^= 0x81;
            assert_eq!(before ^ change(0x8100_0000, len as u16), crc32c([&bytes]));
        }
    }
}

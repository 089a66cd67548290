//! A look at a cache line of atomics, by vector loads: which of them have a value costs no branch and few instructions.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_movemask_epi8, _mm_packs_epi16,
    _mm_packs_epi32, _mm_set_epi32, _mm_set1_epi32, _mm_setzero_si128, _mm_shuffle_ps,
};

/// What atomics held: `4 * VECTORS` words.
///
/// Each is what a load of it with [`Ordering::SeqCst`] would have given, one after the other: they are not of one moment.
#[derive(Clone, Copy)]
pub struct Snapshot<const VECTORS: usize>([Vector; VECTORS]);

#[cfg(target_arch = "x86_64")]
type Vector = __m128i;
#[cfg(not(target_arch = "x86_64"))]
type Vector = [u32; 4];

impl Snapshot<4> {
    /// Of these words.
    #[must_use]
    #[inline]
    pub fn of(words: &[AtomicU32; 16]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if words.as_ptr().cast::<Vector>().is_aligned() {
            // SAFETY: 64 octets that may be read, aligned as asked.
            return Self(unsafe { load_line(words.as_ptr().cast()) });
        }
        Self(vectors(words.each_ref().map(|word| word.load(Ordering::SeqCst))))
    }
}

impl Snapshot<2> {
    /// Of the upper halves of these words.
    #[must_use]
    #[inline]
    pub fn of_upper_halves(words: &[AtomicU64; 8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if words.as_ptr().cast::<Vector>().is_aligned() {
            // SAFETY: 64 octets that may be read, aligned as asked.
            let [a, b, c, d] = unsafe { load_line(words.as_ptr().cast()) };
            return Self([upper_halves(a, b), upper_halves(c, d)]);
        }
        Self(vectors(words.each_ref().map(|word| (word.load(Ordering::SeqCst) >> 32) as u32)))
    }
}

impl<const VECTORS: usize> Snapshot<VECTORS> {
    /// Which words have `value` in the bits of `mask`: bit i for word i.
    #[must_use]
    #[inline]
    pub fn matching(&self, mask: u32, value: u32) -> u32 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE2 is part of x86-64; nothing else is asked of the caller.
        unsafe {
            let (mask, value) = (_mm_set1_epi32(mask.cast_signed()), _mm_set1_epi32(value.cast_signed()));
            let equal = |vector| _mm_cmpeq_epi32(_mm_and_si128(vector, mask), value);
            let (pairs, _) = self.0.as_chunks::<2>();
            let halves = |[low, high]: [Vector; 2]| _mm_packs_epi32(equal(low), equal(high));
            let octets = |pair| _mm_packs_epi16(halves(pair), _mm_setzero_si128());
            pairs.iter().rev().fold(0, |bits, &pair| bits << 8 | _mm_movemask_epi8(octets(pair)) as u32)
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.0.as_flattened().iter().rev().fold(0, |bits, word| bits << 1 | u32::from(word & mask == value))
    }
}

/// Words in the order that they have in memory.
#[inline]
fn vectors<const WORDS: usize, const VECTORS: usize>(words: [u32; WORDS]) -> [Vector; VECTORS] {
    const { assert!(WORDS == 4 * VECTORS) };
    let (fours, _) = words.as_chunks::<4>();
    std::array::from_fn(|i| vector(fours[i]))
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn vector(words: [u32; 4]) -> Vector {
    let [a, b, c, d] = words.map(u32::cast_signed);
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_set_epi32(d, c, b, a) }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn vector(words: [u32; 4]) -> Vector {
    words
}

/// The upper halves of four 64-bit words.
#[cfg(target_arch = "x86_64")]
#[inline]
fn upper_halves(low: __m128i, high: __m128i) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(_mm_castsi128_ps(low), _mm_castsi128_ps(high))) }
}

/// Loads 64 octets that other threads may write, if only as aligned atomics.
///
/// Rust has no vector load of atomics, so these are instructions that the compiler knows nothing of but that they may
/// touch any memory. Where there is AVX the processor promises that each is one access; without it, that each eight octets
/// are (Intel SDM vol. 3A, 9.1.1). Loads pass neither each other nor a locked operation (ibid. 9.2.2).
///
/// # Safety
/// `at` is aligned to 16 octets, and 64 octets may be read there.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn load_line(at: *const __m128i) -> [__m128i; 4] {
    let (a, b, c, d);
    // SAFETY: the caller's promise; nothing else is touched.
    unsafe {
        core::arch::asm!(
            "movdqa {a}, [{at}]",
            "movdqa {b}, [{at} + 16]",
            "movdqa {c}, [{at} + 32]",
            "movdqa {d}, [{at} + 48]",
            at = in(reg) at,
            a = out(xmm_reg) a,
            b = out(xmm_reg) b,
            c = out(xmm_reg) c,
            d = out(xmm_reg) d,
            options(nostack, preserves_flags),
        );
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aligned as buckets are.
    #[repr(align(64))]
    struct Line<T>(T);

    fn draw(word: &mut u32) -> u32 {
        *word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        [0, 5, 0x8000_0005, 0xffff_ffff][(*word >> 30) as usize]
    }

    fn one_by_one(words: &[u32], mask: u32, value: u32) -> u32 {
        words.iter().rev().fold(0, |bits, word| bits << 1 | u32::from(word & mask == value))
    }

    const ASKED: [(u32, u32); 5] =
        [(u32::MAX, 0), (0x7fff_ffff, 5), (0x8000_0000, 0x8000_0000), (0, 0), (0xffff_0000, 0xffff_0000)];

    #[test]
    fn words_are_matched_as_one_by_one_wherever_they_lie() {
        let mut word = 1;
        for _ in 0..2000 {
            let words: [u32; 20] = std::array::from_fn(|_| draw(&mut word));
            let line = Line(words.map(AtomicU32::new));
            for (mask, value) in ASKED {
                for from in 0..4 {
                    let of = Snapshot::of(line.0[from..].first_chunk().unwrap());
                    assert_eq!(
                        of.matching(mask, value),
                        one_by_one(&words[from..from + 16], mask, value),
                        "{words:x?}"
                    );
                }
            }
        }
    }

    #[test]
    fn so_are_upper_halves() {
        let mut word = 2;
        for _ in 0..2000 {
            let words: [u32; 9] = std::array::from_fn(|_| draw(&mut word));
            // What is in the lower halves does not matter.
            let line = Line(words.map(|upper| AtomicU64::new(u64::from(upper) << 32 | u64::from(!upper))));
            for (mask, value) in ASKED {
                for from in 0..2 {
                    let of = Snapshot::of_upper_halves(line.0[from..].first_chunk().unwrap());
                    assert_eq!(of.matching(mask, value), one_by_one(&words[from..from + 8], mask, value), "{words:x?}");
                }
            }
        }
    }

    #[test]
    fn a_word_that_is_written_is_seen_whole() {
        let line = Line([const { AtomicU64::new(0) }; 8]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200_000u64 {
                    let half = n & 0xffff;
                    line.0[n as usize % 8].store(half << 48 | half << 32, Ordering::SeqCst);
                }
            });
            for _ in 0..200_000 {
                let of = Snapshot::of_upper_halves(&line.0);
                for lane in of.words() {
                    assert_eq!(lane >> 16, lane & 0xffff, "{lane:#x}");
                }
            }
        });
    }

    impl<const VECTORS: usize> Snapshot<VECTORS> {
        fn words(&self) -> Vec<u32> {
            // SAFETY: four words, whatever the machine calls them.
            let vectors = self.0.map(|vector| unsafe { std::mem::transmute::<Vector, [u32; 4]>(vector) });
            vectors.as_flattened().to_vec()
        }
    }
}

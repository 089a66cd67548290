//! Prefetch and the comparison of many tags at once, as safe functions.
//!
//! Baselines only (SSE2 is part of x86-64); elsewhere plain Rust, which compilers turn into what the machine has.

/// Asks for the cache line of `value`, to be read soon. A hint: it changes nothing but time.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching any address is allowed and has no effect on memory; SSE is part of x86-64.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks for the cache line at which a slice starts. A hint: it changes nothing but time.
#[inline]
pub fn prefetch_start<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `prefetch`; an empty slice's address is as good as any.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Which of eight tags equal `tag`: bit i for tag i.
#[must_use]
#[inline]
pub fn match_tags8(tags: &[u16; 8], tag: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86-64; the load is unaligned and reads the 16 octets of the array.
    unsafe {
        use core::arch::x86_64::{
            _mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16, _mm_setzero_si128,
        };
        let equal = _mm_cmpeq_epi16(_mm_loadu_si128(tags.as_ptr().cast()), _mm_set1_epi16(tag as i16));
        _mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u32
    }
    #[cfg(not(target_arch = "x86_64"))]
    plain(tags, tag)
}

/// Which of sixteen tags equal `tag`: bit i for tag i.
#[must_use]
#[inline]
pub fn match_tags16(tags: &[u16; 16], tag: u16) -> u32 {
    let (low, high) = tags.split_at(8);
    let halves: (&[u16; 8], &[u16; 8]) =
        (low.try_into().expect("eight of sixteen"), high.try_into().expect("eight of sixteen"));
    match_tags8(halves.0, tag) | match_tags8(halves.1, tag) << 8
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain(tags: &[u16], tag: u16) -> u32 {
    tags.iter().enumerate().fold(0, |bits, (i, &t)| bits | u32::from(t == tag) << i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_matched_as_one_by_one() {
        let mut word = 1u32;
        for _ in 0..2000 {
            let tags: [u16; 16] = std::array::from_fn(|_| {
                word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                [0, 1, 0x8000, 0xffff][(word >> 30) as usize]
            });
            let low: [u16; 8] = tags[..8].try_into().unwrap();
            for tag in [0, 1, 0x8000, 0xffff, 0x7fff] {
                assert_eq!(match_tags16(&tags, tag), plain(&tags, tag));
                assert_eq!(match_tags8(&low, tag), plain(&low, tag));
            }
        }
    }

    #[test]
    fn prefetch_changes_nothing() {
        let value = 7u64;
        prefetch(&value);
        assert_eq!(value, 7);
    }
}

//! How long frames stay: from the RX ring to the TX ring, sampled, as a histogram that its owner writes without locks.
//!
//! Cells are log-linear, eight to an octave, so a value is off by at most an eighth; whoever reads puts them into an
//! [`hdrhistogram::Histogram`], where the workers' are merged.

use hdrhistogram::Histogram;

use crate::cells::Cell;

/// Cells to an octave, as a power of two.
const SHIFT: u32 = 3;
/// The longest stay that is told apart: 2^34 ns, 17 s.
const LONGEST: u64 = (1 << 34) - 1;
/// How many cells that takes.
const CELLS: usize = cell_of(LONGEST) + 1;

/// Samples of nanoseconds.
#[derive(Debug)]
pub(crate) struct Residence([Cell; CELLS]);

impl Residence {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Cell::default()))
    }

    /// Counts one stay. Only the owner may call this.
    #[inline]
    pub(crate) fn record(&self, nanoseconds: u64) {
        self.0[cell_of(nanoseconds.min(LONGEST))].add(1);
    }

    /// Adds all samples to `histogram`, each at the middle of its cell.
    pub(crate) fn merge_into(&self, histogram: &mut Histogram<u64>) {
        for (at, cell) in self.0.iter().enumerate() {
            let count = cell.get();
            if count > 0 {
                histogram.saturating_record_n(middle_of(at), count);
            }
        }
    }
}

/// A histogram that takes every sample.
pub(crate) fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 2).expect("constant bounds that the library takes")
}

const fn cell_of(value: u64) -> usize {
    if value < 1 << SHIFT {
        return value as usize;
    }
    let octave = value.ilog2() - SHIFT;
    ((octave as usize) << SHIFT) + (value >> octave) as usize
}

const fn middle_of(cell: usize) -> u64 {
    if cell < 2 << SHIFT {
        return cell as u64;
    }
    let octave = (cell >> SHIFT) - 1;
    let low = ((cell & ((1 << SHIFT) - 1)) | 1 << SHIFT) << octave;
    low as u64 + (1 << octave) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_its_own_middle() {
        for cell in 0..CELLS {
            assert_eq!(cell_of(middle_of(cell)), cell);
        }
    }

    #[test]
    fn a_merged_sample_is_off_by_at_most_an_eighth() {
        for value in [1u64, 7, 8, 15, 16, 17, 100, 999, 4096, 123_456, 7_890_123, 16_000_000_000] {
            let residence = Residence::new();
            residence.record(value);
            let mut histogram = empty_histogram();
            residence.merge_into(&mut histogram);
            assert_eq!(histogram.len(), 1);
            assert!(histogram.max().abs_diff(value) <= value / 8 + 1, "{value} became {}", histogram.max());
        }
    }

    #[test]
    fn a_stay_of_any_length_is_counted() {
        let residence = Residence::new();
        residence.record(0);
        residence.record(u64::MAX);
        let mut histogram = empty_histogram();
        residence.merge_into(&mut histogram);
        assert_eq!(histogram.len(), 2);
    }
}

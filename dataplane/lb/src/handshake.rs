//! How long endpoints take to answer a SYN: a histogram with one writer, in plain numbers.

/// Upper bounds of the buckets, in microseconds, inclusive; a last bucket has what is longer.
pub const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Times from a flow's opening to its endpoint's first SYN-ACK, as bursts see them: to the time of the burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handshakes {
    /// How many were within each of [`BOUNDS_US`] and not within the one before; last those beyond all.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// Their sum in microseconds.
    pub sum_us: u64,
}

impl Handshakes {
    /// How many numbers there are in [`Handshakes::values`].
    pub const LEN: usize = BOUNDS_US.len() + 2;

    /// Counts one.
    pub fn record(&mut self, microseconds: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < microseconds);
        self.buckets[bucket] += 1;
        self.sum_us = self.sum_us.wrapping_add(microseconds);
    }

    /// Adds those of another worker.
    pub fn add(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All numbers, the sum last.
    pub fn values(&self) -> impl Iterator<Item = u64> {
        self.buckets.into_iter().chain([self.sum_us])
    }

    /// From the numbers that [`Handshakes::values`] gives.
    #[must_use]
    pub fn from_values(values: [u64; Self::LEN]) -> Self {
        let mut handshakes = Self { sum_us: values[Self::LEN - 1], ..Self::default() };
        handshakes.buckets.copy_from_slice(&values[..Self::LEN - 1]);
        handshakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_bucket_of_the_next_bound() {
        for (at, bound) in BOUNDS_US.into_iter().enumerate() {
            let mut handshakes = Handshakes::default();
            handshakes.record(bound);
            handshakes.record(bound + 1);
            assert_eq!((handshakes.buckets[at], handshakes.buckets[at + 1]), (1, 1));
            assert_eq!((handshakes.count(), handshakes.sum_us), (2, 2 * bound + 1));
        }
    }

    #[test]
    fn numbers_go_there_and_back_and_add_up() {
        let mut handshakes = Handshakes::default();
        handshakes.record(0);
        handshakes.record(u64::MAX / 4);
        let mut values = [0; Handshakes::LEN];
        values.iter_mut().zip(handshakes.values()).for_each(|(to, value)| *to = value);
        let mut twice = Handshakes::from_values(values);
        assert_eq!(twice, handshakes);
        twice.add(&handshakes);
        assert_eq!((twice.count(), twice.buckets[0], twice.buckets[BOUNDS_US.len()]), (4, 2, 2));
    }
}

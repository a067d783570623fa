//! Stands in for the crate `base2histogram`, in which openraft counts how large its batches are and how long they take.
//!
//! That crate makes tables for sixteen resolutions when the first number is counted, of which openraft uses one: 25 MB in each
//! daemon, more than all else it holds. Nothing of hasup reads these statistics. This one counts by powers of two, and has what
//! openraft asks for and no more. To be dropped once the crate makes its tables when they are asked for.

use std::fmt;
use std::marker::PhantomData;

/// A bucket for zero, and one for each power of two.
const BUCKETS: usize = 65;

/// Counts numbers by their binary order of magnitude.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    of: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self { counts: [0; BUCKETS], of: PhantomData }
    }

    /// Counts a number.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a number that occurred so many times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let count = &mut self.counts[order(value)];
        *count = count.saturating_add(times);
    }

    /// Returns how many numbers were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count))
    }

    /// Returns the least number of the bucket that holds the one at `share` of all, from 0 to 1; zero where there is none.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = (self.total() as f64 * share).ceil().max(1.0);
        let mut below = 0.0;
        for (order, count) in self.counts.iter().enumerate() {
            below += *count as f64;
            if below >= rank {
                return order.checked_sub(1).map_or(0, |power| 1 << power);
            }
        }
        0
    }

    /// Returns the usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

fn order(value: u64) -> usize {
    value.checked_ilog2().map_or(0, |power| power as usize + 1)
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.percentile_stats().fmt(out)
    }
}

/// Percentiles of what was counted, each as the least number of its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many numbers there are.
    pub samples: u64,
    /// 0.1 % are at most of this order.
    pub p0_1: u64,
    /// 1 %.
    pub p1: u64,
    /// 5 %.
    pub p5: u64,
    /// 10 %.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} samples, median {}, 99 % below {}", self.samples, self.p50, self.p99)
    }
}

/// Histograms for people: a line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart(Vec<(String, Histogram)>);

impl AsciiChart {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns it with one more line.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.0.push((name.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, histogram)| writeln!(out, "{name}: {}", histogram.percentile_stats()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_the_power_of_two() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile(0.5), 0);
        histogram.record_n(5, 98);
        histogram.record(0);
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p50, stats.p99, stats.p99_9), (100, 0, 4, 4, 1 << 63));
    }
}

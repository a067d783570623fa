//! The one source of chance of a run: a seed gives the same run for ever.

/// Virtual nanoseconds since the run began.
pub type Time = u64;

/// One virtual millisecond.
pub const MS: Time = 1_000_000;

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and good enough to choose faults by.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// Returns the source that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.bits() % (high - low + 1)
    }

    /// Returns a span of `low..=high` microseconds.
    pub fn micros(&mut self, low: u64, high: u64) -> Time {
        self.between(low * 1_000, high * 1_000)
    }

    /// Returns a span of `low..=high` milliseconds.
    pub fn millis(&mut self, low: u64, high: u64) -> Time {
        self.between(low * MS, high * MS)
    }

    /// Returns true in `per_mille` of 1000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.bits() % 1000 < per_mille
    }

    /// Returns one of `items`.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.bits() % items.len() as u64).unwrap_or(0)]
    }
}

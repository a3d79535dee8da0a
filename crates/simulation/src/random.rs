//! Chance from one seed: equal seeds give equal runs.

/// The generator called `SplitMix64`.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for one occasion, which draws nothing from any other: what happens elsewhere must not change it.
    pub(crate) fn of(seed: u64, occasion: [u64; 3]) -> Self {
        let mut random = Self(seed);
        for word in occasion {
            random.0 ^= word.wrapping_mul(0xff51_afd7_ed55_8ccd);
            random.0 = random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Below `end`, which is above 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        let span = u64::try_from(high - low).unwrap_or_default() + 1;
        low + i64::try_from(self.below(span)).unwrap_or_default()
    }

    /// True so many times in a thousand.
    pub(crate) fn permille(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }

    /// One of the items; there is at least one.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let count = u64::try_from(items.len()).unwrap_or(1);
        &items[usize::try_from(self.below(count)).unwrap_or_default()]
    }

    /// An index below `len`.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(u64::try_from(len).unwrap_or(1))).unwrap_or_default()
    }

    /// A waiting time in milliseconds, with about this mean: memoryless, cut at ten times the mean. In whole numbers, as
    /// logarithms differ in their last digits from machine to machine.
    pub(crate) fn wait(&mut self, mean: i64) -> i64 {
        const ONE: i128 = 1 << 31;
        // Of a share between 0 and 1: minus its binary logarithm, in parts of ONE, straight between powers of two.
        let share = u32::try_from(self.next() >> 32).unwrap_or(1).max(1);
        let zeros = share.leading_zeros();
        let logarithm = (i128::from(zeros) + 2) * ONE - i128::from(share << zeros);
        // The natural logarithm of 2 is 0.693.
        let wait = i128::from(mean) * 693 * logarithm / (1000 * ONE);
        i64::try_from(wait)
            .unwrap_or(i64::MAX)
            .clamp(1, mean.saturating_mul(10))
    }
}

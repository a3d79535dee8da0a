//! Choices that bytes make: so that a fuzzer which changes bytes changes choices, and a short input is a simple one.

use jiff::Timestamp;

/// Bytes, used up one after the other; when there are no more, zeros.
#[derive(Clone, Debug)]
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// Fewer than `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    pub(crate) fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| some(self))
    }

    pub(crate) fn list<T>(&mut self, limit: u8, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(limit)).map(|_| item(self)).collect()
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let limit = u8::try_from(from.len()).unwrap_or(u8::MAX).max(1);
        from.get(usize::from(self.below(limit))).copied()
    }

    pub(crate) fn number(&mut self) -> i64 {
        i64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Mostly near `now`, at times at either end of time.
    pub(crate) fn time(&mut self, now: Timestamp) -> Timestamp {
        let seconds = match self.below(8) {
            0..4 => -i64::from(self.byte()),
            4 => i64::from(self.byte()),
            5 => -i64::from(self.byte()) * 60,
            6 => return Timestamp::from_second(self.number()).unwrap_or(Timestamp::MAX),
            _ if self.flag() => return Timestamp::MAX,
            _ => return Timestamp::MIN,
        };
        Timestamp::from_second(now.as_second() + seconds).unwrap_or(now)
    }
}
